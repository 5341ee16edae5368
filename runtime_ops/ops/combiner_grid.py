"""Combiner's factorisations over a grid: every query reads some keys itself and all others through summaries.

The tokens stand in a grid of n rows and m columns, row after row. A factorisation is a list of parts; each part has
logits for every query and a value for every logit, and all parts of a query share one softmax. A summary of a region
stands for its keys: a pooled key gives its logit, and its value is the attention of a pooled query over the region.

Source: Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost" (2021), sections 3 and 4;
leaving hidden keys and empty regions out, mean pooling and counted regions are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime_ops.ops.pieces import count, hide, steps, weights
from runtime_ops.words import Expr, const, dim, make


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tokens in rows: q [b g r n m d] (scaled), k [b g 1 n m d], v [b g 1 n m e], keep [b 1 1 n m] (bool).

    Attributes:
        pooling: "max" or "mean", how keys and queries of a region become one.
        counted: whether the logit of a region grows with the logarithm of its number of keys.
        causal: whether queries see no later key.
    """

    q: Expr
    k: Expr
    v: Expr
    keep: Expr
    pooling: str
    counted: bool
    causal: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """Logits [b g r n m j] and their values [b g r n j e]; by column, n and m are exchanged in both."""

    logits: Expr
    values: Expr
    by_column: bool = False


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """One summary per region: key [… j d], value [… j e], size [… j] (float, how many visible keys)."""

    key: Expr
    value: Expr
    size: Expr


def swap(x: Expr, a: int, b: int) -> Expr:
    """Return ``x`` with two axes exchanged."""
    assert x.rank is not None  # everything here is made from inputs of rank 4
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return make("transpose", x, perm=tuple(order))


def products(q: Expr, k: Expr) -> Expr:
    """Return the scores of queries [… i d] and keys [… j d]."""
    return make("matmul", q, swap(k, -1, -2))


def number(keep: Expr) -> Expr:
    """Return 1.0 where true, 0.0 where false."""
    return make("cast", keep, to=np.dtype(np.float32))


def filler(x: Expr, axis: int, length: Expr) -> Expr:
    """Return zeros (false) of the shape of ``x`` but for one axis."""
    edge = make("concat", *(dim(x, i) if i != axis else length for i in range(x.rank or 0)), axis=0)
    return make("expand", const(False if x.dtype == np.bool_ else 0.0), edge)


def longer(tokens: Grid, by: Expr) -> Grid:
    """Return tokens in one row with hidden ones at the end."""
    q, k, v, keep = (make("concat", x, filler(x, 4, by), axis=4) for x in (tokens.q, tokens.k, tokens.v, tokens.keep))
    return replace(tokens, q=q, k=k, v=v, keep=keep)


def last(x: Expr, times: int = 1) -> Expr:
    """Return ``x`` with new axes of length 1 at its end."""
    return make("unsqueeze", x, axes=tuple(range(-times, 0)))


def apart(length: Expr, how: str) -> Expr:
    """Return [i j], true where j < i ("before"), j > i ("after"), j ≤ i ("upto") or j ≠ i ("other")."""
    j, i = count(length), last(count(length))
    pairs = {"before": ("lt", j, i), "after": ("lt", i, j), "upto": ("le", j, i), "other": ("eq", j, i)}
    word, a, b = pairs[how]
    found = make(word, a, b)
    return make("not", found) if how == "other" else found


def settle(total: Expr, size: Expr, pooling: str) -> Expr:
    """Return pooled features from their maximum or sum [… d]; 0 for an empty region."""
    size = last(size)
    if pooling == "max":
        return make("where", make("lt", const(0.0), size), total, const(0.0))
    return make("div", total, make("max", size, const(1.0)))


def pool(x: Expr, keep: Expr, size: Expr, pooling: str) -> Expr:
    """Return one feature vector [… d] for the visible ones of [… j d]."""
    word, hidden = ("amax", -np.inf) if pooling == "max" else ("sum", 0.0)
    shown = make("where", last(keep), x, const(hidden))
    return settle(make(word, shown, axes=(-2,), keepdims=False), size, pooling)


def running(x: Expr, keep: Expr, size: Expr, pooling: str, how: str) -> Expr:
    """Return for every i the features [… i d] pooled over the visible ones of those "before" or "after" it."""
    length = dim(keep, (keep.rank or 0) - 1)
    if pooling == "mean":
        shown = make("where", last(keep), x, const(0.0))
        return settle(make("matmul", number(apart(length, how)), shown), size, pooling)
    return settle(_running_max(hide(x, last(keep)), length, how), size, pooling)


def _running_max(x: Expr, length: Expr, how: str) -> Expr:
    """Return the maximum over all earlier (later) places of the axis before the last; -inf at the first (last).

    ONNX has no running maximum, so it is made by doubling.
    """
    best = _moved(x, length, 1, how)
    for step in range(steps(length)):
        best = make("max", best, _moved(best, length, 2**step, how))
    return best


def _moved(x: Expr, length: Expr, by: int, how: str) -> Expr:
    """Return ``x`` moved along the axis before the last, away from where it looks; -inf comes in."""
    rank = x.rank or 0
    step = make("min", const([by]), length)
    left = make("sub", length, step)
    edge = [dim(x, i) if i != rank - 2 else step for i in range(rank)]
    fill = make("expand", const(-np.inf), make("concat", *edge, axis=0))
    start, end = (const([0]), left) if how == "before" else (step, length)
    rest = make("slice", x, start, end, const([rank - 2]), const([1]))
    return make("concat", *((fill, rest) if how == "before" else (rest, fill)), axis=rank - 2)


def region_logits(grid: Grid, q: Expr, found: Summaries, allowed: Expr) -> Expr:
    """Return the logits of summaries for queries; hidden where not allowed or where a region is empty."""
    size = make("unsqueeze", found.size, axes=(-2,))
    logits = products(q, found.key)
    if grid.counted:
        logits = make("add", logits, make("log", make("max", size, const(1.0))))
    return hide(logits, make("and", make("lt", const(0.0), size), allowed))


def own_row(grid: Grid) -> Part:
    """Return the keys of a query's own row, up to itself if causal."""
    keep = make("unsqueeze", grid.keep, axes=(-2,))
    if grid.causal:
        keep = make("and", keep, apart(dim(grid.keep, 4), "upto"))
    return Part(logits=hide(products(grid.q, grid.k), keep), values=grid.v)


def own_column(grid: Grid) -> Part:
    """Return the keys of a query's own column: those above if causal, else all but itself."""
    turned = _turned(grid)
    keep = make("unsqueeze", turned.keep, axes=(-2,))
    keep = make("and", keep, apart(dim(grid.keep, 3), "before" if grid.causal else "other"))
    return Part(logits=hide(products(turned.q, turned.k), keep), values=turned.v, by_column=True)


def _turned(grid: Grid) -> Grid:
    """Return the grid with rows and columns exchanged."""
    return replace(grid, q=swap(grid.q, 3, 4), k=swap(grid.k, 3, 4), v=swap(grid.v, 3, 4), keep=swap(grid.keep, 3, 4))


def summarise(grid: Grid) -> Summaries:
    """Return one summary for every row of a grid."""
    size = make("sum", number(grid.keep), axes=(-1,), keepdims=False)
    query, key = (pool(x, grid.keep, size, grid.pooling) for x in (grid.q, grid.k))
    inner = products(make("unsqueeze", query, axes=(-2,)), grid.k)
    inner = hide(inner, make("unsqueeze", grid.keep, axes=(-2,)))
    value = make("squeeze", make("matmul", weights(inner), grid.v), axes=(-2,))
    return Summaries(key=key, value=value, size=size)


def fixed(grid: Grid) -> Sequence[Part]:
    """Own row directly; every other row (earlier ones if causal) is one region."""
    rows = summarise(grid)
    # one summary serves every row of queries, so the rows of summaries become the last axis
    found = Summaries(**{name: make("unsqueeze", x, axes=(3,)) for name, x in vars(rows).items()})
    allowed = make("unsqueeze", apart(dim(grid.keep, 3), "before" if grid.causal else "other"), axes=(1,))
    return own_row(grid), Part(logits=region_logits(grid, grid.q, found, allowed), values=found.value)


def vertical(grid: Grid) -> Sequence[Part]:
    """Own row and own column directly; of every other column the part above the row, and the part below it."""
    parts = [own_row(grid), own_column(grid)]
    turned, other = _turned(grid), apart(dim(grid.keep, 4), "other")
    for how in ("before",) if grid.causal else ("before", "after"):
        between = apart(dim(grid.keep, 3), how)
        size = _squeezed(make("matmul", number(between), last(number(turned.keep))))
        query, key = (running(x, turned.keep, size, grid.pooling, how) for x in (turned.q, turned.k))
        inner = hide(products(query, turned.k), make("and", make("unsqueeze", turned.keep, axes=(-2,)), between))
        value = make("matmul", weights(inner), turned.v)
        found = Summaries(key=swap(key, 3, 4), value=swap(value, 3, 4), size=swap(size, 3, 4))
        parts.append(Part(logits=region_logits(grid, grid.q, found, other), values=found.value))
    return parts


def _squeezed(x: Expr) -> Expr:
    return make("squeeze", x, axes=(-1,))


def horizontal(grid: Grid) -> Sequence[Part]:
    """Own row and own column directly; of every other row all but the query's column is one region."""
    total = make("sum", number(grid.keep), axes=(-1,), keepdims=True)
    size = make("sub", total, number(grid.keep))
    query, key = (_without_one(x, grid.keep, size, grid.pooling) for x in (grid.q, grid.k))
    keep = make("and", make("unsqueeze", grid.keep, axes=(-2,)), apart(dim(grid.keep, 4), "other"))
    value = make("matmul", weights(hide(products(query, grid.k), keep)), grid.v)
    return own_row(grid), own_column(grid), _by_row(grid, Summaries(key=key, value=value, size=size))


def _without_one(x: Expr, keep: Expr, size: Expr, pooling: str) -> Expr:
    """Return for every place of a row the features [… m d] pooled over all other places."""
    if pooling == "mean":
        shown = make("where", last(keep), x, const(0.0))
        return settle(make("sub", make("sum", shown, axes=(-2,), keepdims=True), shown), size, pooling)
    shown, length = hide(x, last(keep)), dim(keep, 4)
    both = make("max", *(_running_max(shown, length, how) for how in ("before", "after")))
    return settle(both, size, pooling)


def row_major(grid: Grid) -> Sequence[Part]:
    """Own row directly; every other row is one region, which a query reads as the token of its column there does."""
    query = make("where", last(grid.keep), grid.q, const(0.0))
    inner = weights(hide(products(query, grid.k), make("unsqueeze", grid.keep, axes=(-2,))))
    total = make("sum", number(grid.keep), axes=(-1,), keepdims=True)
    size = make("add", total, make("mul", number(grid.keep), const(0.0)))
    found = Summaries(key=make("matmul", inner, grid.k), value=make("matmul", inner, grid.v), size=size)
    return own_row(grid), _by_row(grid, found)


def _by_row(grid: Grid, found: Summaries) -> Part:
    """Return the part whose regions are the other rows (earlier ones if causal), summarised per column."""
    turned = Summaries(**{name: swap(x, 3, 4) for name, x in vars(found).items()})
    allowed = apart(dim(grid.keep, 3), "before" if grid.causal else "other")
    logits = region_logits(grid, swap(grid.q, 3, 4), turned, allowed)
    return Part(logits=logits, values=turned.value, by_column=True)


def combine(parts: Sequence[Part]) -> Expr:
    """Return the result [b g r n m e]: one softmax over the logits of all parts."""
    logits = [swap(p.logits, 3, 4) if p.by_column else p.logits for p in parts]
    shares = weights(make("concat", *logits, axis=5))
    start, out = const([0]), None
    for part, own in zip(parts, logits, strict=True):
        end = make("add", start, dim(own, 5))
        share = make("slice", shares, start, end, const([5]), const([1]))
        share = swap(share, 3, 4) if part.by_column else share
        one = make("matmul", share, part.values)
        one = swap(one, 3, 4) if part.by_column else one
        start, out = end, one if out is None else make("add", out, one)
    assert out is not None
    return out


FACTORISATIONS: Mapping[str, Callable[[Grid], Sequence[Part]]] = {
    "fixed": fixed,
    "axial-vertical": vertical,
    "axial-horizontal": horizontal,
    "axial-row-major": row_major,
}
