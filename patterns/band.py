"""Bands in constants: a triangle or diagonal band that an exporter stored, and what was cut out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from patterns.mask import ALWAYS, Causal, Mask, Window
from patterns.positions import Position, never_negative, position
from rewriter import layout
from runtime_ops import interpret
from runtime_ops.words import Expr, const, make


@dataclass(kw_only=True)
class _Cut:
    """A constant behind views, casts and slices: what it was cut out of, and where each cut starts."""

    values: np.ndarray
    axes: layout.Axes = ()
    starts: dict[str, Expr] = field(default_factory=dict)  # by axis, s or t

    def start(self, letter: str) -> Position:
        rest = self.starts.get(letter)
        return Position(s=0, t=0, rest=const(0) if rest is None else rest)


def band(expr: Expr, axes: layout.Axes, visible: Callable[[np.ndarray], np.ndarray]) -> tuple[Mask, ...] | None:
    """Return which keys a stored band leaves visible; nothing if all, None if it is no band over queries and keys.

    Args:
        expr: a constant, or a cut out of one.
        axes: its layout.
        visible: which of its values leave a key visible.
    """
    cut = _cut(expr, axes)
    shown = None if cut is None else _square(visible(cut.values), cut.axes)
    if cut is None or shown is None or not shown.any():
        return None
    s, t = shown.shape
    rows = np.flatnonzero(shown.any(axis=1))
    ahead = int((t - 1 - shown[rows, ::-1].argmax(axis=1) - rows).max())
    back = int((rows - shown[rows].argmax(axis=1)).max())
    stored = np.tri(s, t, ahead, dtype=bool) & ~np.tri(s, t, -back - 1, dtype=bool)
    if not np.array_equal(shown, stored):
        return None
    shift = cut.start("s").plus(cut.start("t").times(-1))
    offset = shift.plus(Position(s=0, t=0, rest=const(ahead)))
    lengths = [f"{letter}={n}" for letter, n in (("s", s), ("t", t)) if letter not in cut.starts]
    holds = f"only at {' '.join(lengths)}" if lengths else ALWAYS
    found: list[Mask] = [Causal(offset=offset.length, value=offset.rest, holds=holds)] if ahead < t - 1 else []
    if back < s - 1:
        found.append(Window(left=back - shift.length, right=None, holds=holds))
    return tuple(found)


def _square(shown: np.ndarray, axes: layout.Axes) -> np.ndarray | None:
    """Return the values as queries by keys, None if they span anything else."""
    long = [i for i, axis in enumerate(axes) if axis]
    names = [axis[0].name for axis in axes if len(axis) == 1]
    if len(names) != len(long) or sorted(names) != ["s", "t"]:
        return None
    if any(n != 1 for i, n in enumerate(shown.shape) if i not in long):
        return None
    square = shown.reshape([shown.shape[i] for i in long])
    return square if names == ["s", "t"] else square.T


def _cut(expr: Expr, axes: layout.Axes) -> _Cut | None:
    """Follow views, casts and slices inwards to a constant."""
    have = layout.aligned(expr, axes)
    if have is None:
        return None
    if expr.word == "const":
        values = interpret.constant(expr)
        return None if values is None else _Cut(values=values, axes=have)
    if expr.word == "slice":
        return _sliced(expr, have)
    inner = layout.back(expr, have)
    if inner is None and expr.word != "cast":
        return None
    cut = _cut(*inner) if inner is not None else _cut(expr.args[0], have)
    if cut is not None and expr.word == "cast":
        cut.values = cut.values.astype(expr.attrs["to"])
    return cut


def _sliced(expr: Expr, have: layout.Axes) -> _Cut | None:
    x, starts, _, axes, steps = expr.args
    if x.rank != len(have) or axes.known is None or steps.known is None or starts.known is None:
        return None
    cut = _cut(x, have)
    if cut is None or not bool((steps.known == 1).all()):
        return None
    for n, axis in enumerate(axes.known.reshape(-1).tolist()):
        at = make("gather", starts, const([n]), axis=0)
        start, atoms = position(at, ((),)), have[axis]
        if start is None or not never_negative(start.length) or len(atoms) != 1:
            return None
        before = cut.starts.get(atoms[0].name)
        cut.starts[atoms[0].name] = start.rest if before is None else make("add", before, start.rest)
    return cut
