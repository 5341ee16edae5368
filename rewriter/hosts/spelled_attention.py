"""What fused attention of both hosts is spelled out in: scores, masks, grouped heads and what they weigh."""

from __future__ import annotations

from rewriter.hosts.base import Unfit
from rewriter.hosts.spelled import column, number, or_zero
from runtime_ops.dims import divide
from runtime_ops.ops.pieces import count, hide
from runtime_ops.words import Expr, const, dim, make, reshape


def scores(q: Expr, k: Expr, scale: float | Expr | None) -> Expr:
    """Return scale · q·kᵀ of q [… s d] and k [… t d]; without a scale, that of the head width.

    Raises:
        Unfit: the head width is not known.
    """
    if scale is None:
        width = q.shape[-1] if q.shape is not None else None
        if not isinstance(width, int):
            raise Unfit("its head width, which gives the scale, is not known")
        scale = width**-0.5
    n = k.rank or 0
    product = make("matmul", q, make("transpose", k, perm=(*range(n - 2), n - 1, n - 2)))
    if isinstance(scale, Expr):
        known = scale.number()
        return make("mul", product, scale if known is None else number(known, product))
    return make("mul", product, number(scale, product))


def causal(scores: Expr, q: Expr, k: Expr, past: Expr | None = None) -> Expr:
    """Return scores [... s t] with key j hidden from query i unless j <= i + the length of the past."""
    last = (q.rank or 4) - 2
    rows = column(count(dim(q, last)))
    if past is not None:
        rows = make("add", rows, dim(past, last))
    return hide(scores, make("le", count(dim(k, last)), rows))


def weighted(scores: Expr, v: Expr, empty_rows: bool = False) -> Expr:
    """Return softmax(scores)·v; ``empty_rows`` says that a row without any key gives 0."""
    probabilities = make("softmax", scores, axis=(scores.rank or 4) - 1)
    return make("matmul", or_zero(probabilities) if empty_rows else probabilities, v)


def repeated(x: Expr, q: Expr) -> Expr:
    """Return key or value heads [… g t d] repeated to the number of query heads.

    Raises:
        Unfit: one of the numbers is not known.
    """
    mine, yours = (e.shape[-3] if e.shape is not None else None for e in (x, q))
    if mine is None or yours is None or mine == yours:
        return x
    group = divide(yours, mine)
    if not isinstance(group, int):
        raise Unfit("the numbers of query and key heads are not known")
    return repeated_each(x, group, (x.rank or 4) - 3)


def repeated_each(x: Expr, times: int, axis: int) -> Expr:
    """Return every element along an axis repeated, as grouped heads are."""
    lengths = [dim(x, i) for i in range(x.rank or 0)]
    wide = make("unsqueeze", x, axes=(axis + 1,))
    wide = make("expand", wide, make("concat", *lengths[: axis + 1], const([times]), *lengths[axis + 1 :], axis=0))
    merged = make("mul", lengths[axis], const([times]))
    return reshape(wide, [*lengths[:axis], merged, *lengths[axis + 1 :]])
