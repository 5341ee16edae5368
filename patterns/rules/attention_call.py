"""The call that stands for an attention site; shared by the rules that make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patterns.site import AttentionSite, Operand
from rewriter import layout
from rewriter.plan import Plan
from runtime_ops.ops import OPS
from runtime_ops.ops.remainder import BLOCKS, NONE
from runtime_ops.ops.topk_attention import MEAN, ZERO
from runtime_ops.words import Expr, dim, make, reshape

_OP = OPS["TopKAttention"]


def why_not(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    """Return why the site cannot become a call, or None."""
    if site.leaks:
        return f"its probabilities are also read by {site.leaks[0]}, and the operation does not give them"
    if site.softcap is not None and site.softcap <= 0:
        return f"its soft cap is {site.softcap:g}; the operation takes positive ones"
    return None


def call(site: AttentionSite, k: int, remainder: str = NONE) -> Plan:
    """Return the plan that computes the site's output by one call of ``TopKAttention``."""
    inputs = operands(site)
    inputs["past_length"] = _place(site, inputs) if remainder == BLOCKS else past_length(site)
    return Plan(values=result(site, _OP.call(inputs, {"k": k, "remainder": remainder, **flags(site), **numbers(site)})))


def _place(site: AttentionSite, inputs: Mapping[str, Expr | None]) -> Expr | None:
    """Return where the first query stands among the keys, for operations that ask where causality does not."""
    q, k = inputs["q"], inputs["k"]
    if site.causal is not None or site.cache is None or q is None or k is None:
        return past_length(site)
    return make("sub", dim(k, 2), dim(q, 2))  # a cache's new keys are those of the queries, and come last


def past_length(site: AttentionSite) -> Expr | None:
    """Return how far a causal mask is moved, None if it is not."""
    moved = site.causal is not None and site.causal.offset != 0 and not _both_sides(site)
    return reshape(site.causal.value, [1]) if moved and site.causal is not None else None


def flags(site: AttentionSite) -> dict[str, Any]:
    """Return the attributes that say which keys are hidden, and what becomes of queries that see none."""
    both = _both_sides(site)
    return {
        "causal": int(site.causal is not None and not both),
        "window": both or site.window,
        "no_key": MEAN if site.averages else ZERO,
    }


def _both_sides(site: AttentionSite) -> int:
    """Return the window around the query that is as wide before it as behind it; 0 if there is none."""
    ahead = 0 if site.causal is None else site.causal.offset
    return ahead + 1 if isinstance(ahead, int) and ahead > 0 and site.window == 2 * ahead + 1 else 0


def operands(site: AttentionSite) -> dict[str, Expr | None]:
    """Return q [b h s d], k [b g t d], v [b g t e] of one type, and what masks them."""
    frame, dtype, d, e = site.frame, _common_type(site), _letter(site.q, "d"), _letter(site.out, "e")
    return {
        "q": _typed(site.q.arranged((frame["b"], frame["h"], frame["s"], d)), dtype),
        "k": _typed(site.k.arranged((frame["b"], frame["g"], frame["t"], d)), dtype),
        "v": _typed(site.v.arranged((frame["b"], frame["g"], frame["t"], e)), dtype),
        "bias": site.bias,
        "key_mask": site.keys,
    }


def numbers(site: AttentionSite) -> dict[str, float]:
    """Return the attributes that say how scores are scaled and capped."""
    return {"scale": site.scale, "softcap": site.softcap or 0.0}


def result(site: AttentionSite, call: Expr) -> dict[Any, Expr]:
    """Return what takes the place of the site's output, given the call [b h s e] that computes it."""
    frame, out = site.frame, site.out.value
    back = layout.arrange(call, (frame["b"], frame["h"], frame["s"], _letter(site.out, "e")), site.out.axes)
    assert back is not None  # the reader made this layout from the same atoms
    if out.dtype is not None and out.dtype != _common_type(site):
        back = make("cast", back, to=out.dtype)
    return {out.handle: back, **site.beside}


def _letter(operand: Operand, letter: str) -> layout.Axis:
    return tuple(a for axis in operand.axes for a in axis if a.letter == letter)


def _common_type(site: AttentionSite) -> np.dtype[Any]:
    types = {x.value.dtype for x in (site.q, site.k, site.v)} - {None}
    return types.pop() or np.dtype(np.float32) if len(types) == 1 else np.dtype(np.float32)


def typed(expr: Expr | None, site: AttentionSite) -> Expr | None:
    """Return a tensor in the type that the site computes in."""
    return None if expr is None else _typed(expr, _common_type(site))


def _typed(expr: Expr | None, dtype: np.dtype[Any]) -> Expr:
    assert expr is not None  # the reader only chose tensors that can be arranged
    # not "in (dtype, None)": numpy takes None for float64
    return expr if expr.dtype is None or expr.dtype == dtype else make("cast", expr, to=dtype)
