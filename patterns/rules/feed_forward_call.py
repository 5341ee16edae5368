"""The call of ``TopKFeedForward`` that stands for a feed-forward site; shared by the rules that make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patterns.site import FeedForwardSite, Operand
from rewriter import layout
from rewriter.layout import Axis
from rewriter.plan import Plan
from runtime_ops.interpret import is_float
from runtime_ops.ops import OPS
from runtime_ops.words import Expr, make

_OP = OPS["TopKFeedForward"]


def why_not(site: FeedForwardSite, given: Mapping[str, Any]) -> str | None:
    """Return why the site cannot become a call, or None."""
    if site.quantised is not None:
        return f"its numbers are rounded to few bits by {site.quantised}; the operation computes in floats"
    if site.stored is not None:
        return f"its weights are stored as {site.stored}; the operation takes floats, which would be larger"
    if site.leaks:
        return f"its inner values are also read by {site.leaks[0]}, and the operation does not give them"
    kind = _type(site)
    if not is_float(kind) or kind == np.float64:
        return f"it computes in {kind}; the operation takes float32, float16 and bfloat16"
    if _rows(site.x, site) is None or any(_matrix(w, to, over) is None for w, to, over in _weights(site)):
        return "the lengths of some axes are not known well enough to bring its tensors into the operation's layout"
    return None


def call(site: FeedForwardSite, k: int, select_by: str) -> Plan:
    """Return the plan that computes the site's output by one call."""
    dtype = _type(site)
    inputs = {
        "x": _rows(site.x, site),
        "w_in": _matrix(site.w_in, "f", "m"),
        "w_out": _matrix(site.w_out, "f", "m"),
        "b_in": site.b_in,
        "b_out": site.b_out,
        "w_gate": None if site.w_gate is None else _matrix(site.w_gate, "f", "m"),
        "b_gate": site.b_gate,
    }
    typed = {name: None if x is None else _typed(x, dtype) for name, x in inputs.items()}
    result = _OP.call(typed, {"k": k, "activation": site.activation, "select_by": select_by})
    back = layout.arrange(result, (*site.rows, _axis(site.out, "m")), site.out.axes)
    assert back is not None  # the reader made this layout from the same atoms
    return Plan(values={site.out.value.handle: back})


def _type(site: FeedForwardSite) -> np.dtype[Any]:
    """Return the type that the block computes in: its input may come in another, converted for each product."""
    return site.out.value.dtype or site.x.value.dtype or np.dtype(np.float32)


def _weights(site: FeedForwardSite) -> list[tuple[Operand, str, str]]:
    gate = [] if site.w_gate is None else [(site.w_gate, "f", "m")]
    return [(site.w_in, "f", "m"), (site.w_out, "f", "m"), *gate]


def _rows(x: Operand, site: FeedForwardSite) -> Expr | None:
    """Return x with a row per token."""
    return x.arranged((*site.rows, _axis(x, "m")))


def _matrix(w: Operand, to: str, over: str) -> Expr | None:
    """Return weights with a row per neuron."""
    return w.arranged((_axis(w, to), _axis(w, over)))


def _axis(operand: Operand, letter: str) -> Axis:
    return tuple(a for axis in operand.axes for a in axis if a.letter == letter)


def _typed(expr: Expr, dtype: np.dtype[Any]) -> Expr:
    # not "in (dtype, None)": numpy takes None for float64
    return expr if expr.dtype is None or expr.dtype == dtype else make("cast", expr, to=dtype)
