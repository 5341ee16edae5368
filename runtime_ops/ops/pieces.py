"""Pieces that several operations are said with: scores, hiding, weights that allow rows without a key, counting."""

from __future__ import annotations

import numpy as np

from runtime_ops.words import Expr, const, dim, make, reshape

_LOWEST = float(np.finfo(np.float32).min)
_MOST_STEPS = 20


def count(length: Expr, start: int = 0) -> Expr:
    """Return [start, start + 1, …] up to a length that is given as a tensor of one element."""
    return make("range", const(start), make("squeeze", length, axes=(0,)), const(1))


def hide(scores: Expr, keep: Expr) -> Expr:
    """Return the scores where ``keep`` is true, -inf elsewhere."""
    return make("where", keep, scores, const(-np.inf, scores.dtype))


def weights(scores: Expr) -> Expr:
    """Return softmax over the last axis, 0 where every score is -inf."""
    # With the maximum bounded below, exp gives 0 for every hidden key; the sum is at least 1 unless all are hidden.
    exps = make("exp", make("sub", scores, peak(scores)))
    return make("div", exps, make("max", make("sum", exps, axes=(-1,), keepdims=True), const(1.0)))


def peak(scores: Expr) -> Expr:
    """Return the highest score along the last axis, a finite one where every score is -inf."""
    return make("max", make("amax", scores, axes=(-1,), keepdims=True), const(_LOWEST))


def level(weights: Expr) -> Expr:
    """Return the weights, and equal ones in rows that have none."""
    count = make("max", make("cast", dim(weights, 3), to=np.dtype(np.float32)), const(1.0))
    none = make("eq", make("sum", weights, axes=(-1,), keepdims=True), const(0.0))
    return make("where", none, make("div", const(1.0), count), weights)


def steps(length: Expr) -> int:
    """Return how many doublings reach a length; where it is not known, enough for a million."""
    number = length.number()
    return _MOST_STEPS if number is None else max(int(number) - 1, 0).bit_length()


def ceiling(a: Expr, b: Expr) -> Expr:
    """Return a / b for whole numbers, rounded up."""
    return make("div", make("sub", make("add", a, b), const([1])), b)


def scores(q: Expr, k: Expr, scale: float | None, softcap: float) -> Expr:
    """Return [b h s t] for q [b h s d] and k [b g t d], scaled (by 1/sqrt(d) if None) and capped."""
    return scaled(grouped(q, make("transpose", k, perm=(0, 1, 3, 2))), dim(q, 3), scale, softcap)


def scaled(products: Expr, d: Expr, scale: float | None, softcap: float) -> Expr:
    """Return scores from products of queries and keys: scaled (by 1/sqrt(d) if None) and capped."""
    if scale is None:
        width = make("cast", d, to=np.dtype(np.float32))
        factor = make("div", const(1.0), make("sqrt", width))
    else:
        factor = const(float(scale))
    found = make("mul", products, factor)
    if softcap:
        cap = const(float(softcap))
        found = make("mul", make("tanh", make("div", found, cap)), cap)
    return found


def grouped(x: Expr, y: Expr) -> Expr:
    """Return x [b h . n] times y [b g n .], where every h / g heads of x share one of y."""
    if x.shape is not None and y.shape is not None and x.shape[1] == y.shape[1]:
        return make("matmul", x, y)
    # A batch of 1 broadcasts, so heads are split on both sides and multiplied by broadcasting over the group.
    h, g = dim(x, 1), dim(y, 1)
    split = reshape(x, [dim(x, 0), g, make("div", h, g), dim(x, 2), dim(x, 3)])
    out = make("matmul", split, make("unsqueeze", y, axes=(2,)))
    return reshape(out, [dim(out, 0), h, dim(x, 2), dim(y, 3)])
