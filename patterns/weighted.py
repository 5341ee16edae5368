"""Reads scores times a tensor that is the same for all keys, as cosine attention learns it for each head.

Queries times that tensor give the same scores, so it moves into the queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from patterns.site import Unreadable
from rewriter import layout
from runtime_ops.words import Expr, make

if TYPE_CHECKING:
    from patterns.scores import Frame, Scores

    Peel = Callable[[Expr, layout.Axes, Frame], Scores]


def weighted(expr: Expr, axes: layout.Axes, frame: Frame, peel: Peel) -> Scores:
    """Return scores whose queries carry the factor.

    Raises:
        Unreadable: the factor differs from key to key, or something was added to the scores before.
    """
    sides = [expr.args, (expr.args[1], expr.args[0])] if expr.word == "mul" else [expr.args]
    for inner, factor in sides:
        have = layout.aligned(factor, axes)
        if inner.shape != expr.shape or have is None or any(a.letter == "t" for axis in have for a in axis):
            continue
        scores = peel(inner, axes, frame)
        if scores.masking.said or scores.cap is not None:
            raise Unreadable("scores that already have a mask, a bias or a soft cap are multiplied by a tensor", expr)
        q, layout_of_q = scores.q
        moved = _broadcast(factor, have, layout_of_q)
        if moved is not None:
            scores = dataclasses.replace(scores, q=(make(expr.word, q, moved), layout_of_q))
            return scores.said(expr, expr.word, f"queries × [{layout.text(have)}]")
    raise Unreadable("the scores are multiplied by a tensor that differs from key to key or has another layout", expr)


def _broadcast(x: Expr, have: layout.Axes, target: layout.Axes) -> Expr | None:
    """Return ``x`` arranged to broadcast against a tensor laid out as ``target``, None if axes would not match."""
    names = {a.name for axis in have for a in axis}
    whole = all({a.name for a in axis} <= names or names.isdisjoint(a.name for a in axis) for axis in target)
    return layout.arrange(x, have, target) if whole else None
