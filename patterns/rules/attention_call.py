"""The call that stands for an attention site; shared by the rules that make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patterns.site import AttentionSite
from rewriter import layout
from rewriter.plan import Plan
from runtime_ops.ops import OPS
from runtime_ops.ops.remainder import BLOCKS, NONE
from runtime_ops.ops.topk_attention import MEAN, ZERO
from runtime_ops.spec import OUT, TOKENS_FIRST
from runtime_ops.words import Expr, dim, make, reshape

_OP = OPS["TopKAttention"]
_LETTERS = {"q": tuple("hsd"), "k": tuple("gtd"), "v": tuple("gte"), OUT: tuple("hse")}  # behind b


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
    attrs = {"k": k, "remainder": remainder, **flags(site), **numbers(site), **order(site)}
    return Plan(values=result(site, _OP.call(inputs, attrs)))


def _place(site: AttentionSite, inputs: Mapping[str, Expr | None]) -> Expr | None:
    """Return where the first query stands among the keys, for operations that ask where causality does not."""
    q, k = inputs["q"], inputs["k"]
    if site.causal is not None or site.cache is None or q is None or k is None:
        return past_length(site)
    return make("sub", length(site, "k", k), length(site, "q", q))  # a cache's new keys are the queries', and come last


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
    """Return q [b h s d], k [b g t d], v [b g t e] of one type, ordered as ``order`` says, and what masks them."""
    dtype = _common_type(site)
    tensors = {name: _typed(getattr(site, name).arranged(_axes(site, name)), dtype) for name in "qkv"}
    return {**tensors, "bias": site.bias, "key_mask": site.keys}


def order(site: AttentionSite, allowed: Sequence[str] = tuple(_LETTERS)) -> dict[str, str]:
    """Return the attribute that says which tensors have tokens first, because they have in the graph."""
    return {TOKENS_FIRST.name: " ".join(name for name in allowed if tokens_first(site, name))}


def tokens_first(site: AttentionSite, name: str) -> bool:
    """Return whether heads first would take a transposed copy of q, k, v or out, and tokens first none."""
    have = [a.name for axis in getattr(site, name).axes for a in axis]
    b, heads, tokens, width = _heads_first(site, name)
    ways = (b, tokens, heads, width), (b, heads, tokens, width)
    return [[a.name for axis in way for a in axis if a.name in have] == have for way in ways] == [True, False]


def length(site: AttentionSite, name: str, x: Expr) -> Expr:
    """Return how many tokens an operand of the call has."""
    return dim(x, 1 if tokens_first(site, name) else 2)


def _axes(site: AttentionSite, name: str) -> layout.Axes:
    """Return the axes that a tensor has in the call."""
    b, heads, tokens, width = _heads_first(site, name)
    return (b, tokens, heads, width) if tokens_first(site, name) else (b, heads, tokens, width)


def _heads_first(site: AttentionSite, name: str) -> layout.Axes:
    heads, tokens, width = _LETTERS[name]
    letters = tuple(a for axis in getattr(site, name).axes for a in axis if a.letter == width)
    return site.frame["b"], site.frame[heads], site.frame[tokens], letters


def numbers(site: AttentionSite) -> dict[str, float]:
    """Return the attributes that say how scores are scaled and capped."""
    return {"scale": site.scale, "softcap": site.softcap or 0.0}


def result(site: AttentionSite, call: Expr) -> dict[Any, Expr]:
    """Return what takes the place of the site's output, given the call that computes it, ordered as ``order`` says."""
    out = site.out.value
    back = layout.arrange(call, _axes(site, OUT), site.out.axes)
    assert back is not None  # the reader made this layout from the same atoms
    if out.dtype is not None and out.dtype != _common_type(site):
        back = make("cast", back, to=out.dtype)
    return {out.handle: back, **site.beside}


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
