"""Pieces that several operations are said with: counting, hiding, and weights that allow rows without a key."""

from __future__ import annotations

import numpy as np

from runtime_ops.words import Expr, const, make

_LOWEST = float(np.finfo(np.float32).min)
_MOST_STEPS = 20


def count(length: Expr) -> Expr:
    """Return 0, 1, … up to a length that is given as a tensor of one element."""
    return make("range", const(0), make("squeeze", length, axes=(0,)), const(1))


def hide(scores: Expr, keep: Expr) -> Expr:
    """Return the scores where ``keep`` is true, -inf elsewhere."""
    return make("where", keep, scores, const(-np.inf))


def weights(scores: Expr) -> Expr:
    """Return softmax over the last axis, 0 where every score is -inf."""
    # With the maximum bounded below, exp gives 0 for every hidden key; the sum is at least 1 unless all are hidden.
    peak = make("max", make("amax", scores, axes=(-1,), keepdims=True), const(_LOWEST))
    exps = make("exp", make("sub", scores, peak))
    return make("div", exps, make("max", make("sum", exps, axes=(-1,), keepdims=True), const(1.0)))


def steps(length: Expr) -> int:
    """Return how many doublings reach a length; where it is not known, enough for a million."""
    number = length.number()
    return _MOST_STEPS if number is None else max(int(number) - 1, 0).bit_length()


def ceiling(a: Expr, b: Expr) -> Expr:
    """Return a / b for whole numbers, rounded up."""
    return make("div", make("sub", make("add", a, b), const([1])), b)
