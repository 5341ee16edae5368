"""Pieces that several operations are said with: scores, hiding, weights that allow rows without a key, counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    peak = make("max", make("amax", scores, axes=(-1,), keepdims=True), const(_LOWEST))
    exps = make("exp", make("sub", scores, peak))
    return make("div", exps, make("max", make("sum", exps, axes=(-1,), keepdims=True), const(1.0)))


def causal(s: Expr, t: Expr, past_length: Expr | None) -> Expr:
    """Return which key [.. t] each query [.. s 1] may see: key j if j <= i + past_length [b]."""
    row = make("unsqueeze", count(s), axes=(0, 1, 3))
    if past_length is not None:
        row = make("add", row, reshape(past_length, [-1, 1, 1, 1]))
    return make("le", count(t), row)


def top(scores: Expr, k: int) -> Expr:
    """Return weights that are zero outside the k best scores of each row."""
    best = make("topk", scores, make("min", const([k]), dim(scores, 3)))
    chosen = weights(make("pick", scores, best))
    return make("scatter", make("expand", const(0.0), make("dim", scores)), best, chosen)


def check_attributes(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with k, causal and softcap, or None."""
    if attrs["k"] < 0:
        return f"k is {attrs['k']}; it must be 0 (all keys) or more"
    if attrs["causal"] not in (0, 1):
        return f"causal is {attrs['causal']}; it must be 0 or 1"
    if attrs["softcap"] < 0:
        return f"softcap is {attrs['softcap']}; it must be 0 (none) or more"
    return None


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
