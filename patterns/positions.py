"""Positions: which integer tensors count along the queries and keys of the scores, and how two of them compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rewriter import layout
from runtime_ops.dims import Dim, Sym, vague
from runtime_ops.words import Expr, const, make


@dataclass(frozen=True, kw_only=True)
class Position:
    """The integer s · i + t · j + rest, for query i and key j.

    Attributes:
        s, t: how it counts along queries and keys.
        rest: what is added, a scalar whose value is known as a length.
    """

    s: int
    t: int
    rest: Expr

    @property
    def length(self) -> Dim:
        """The rest as a length."""
        assert self.rest.known is not None  # ``position`` takes no other
        value = self.rest.known.reshape(-1)[0]
        return value if isinstance(value, Sym) else int(value)

    def plus(self, other: Position) -> Position:
        """Return the sum of two positions."""
        return Position(s=self.s + other.s, t=self.t + other.t, rest=make("add", self.rest, other.rest))

    def times(self, factor: int) -> Position:
        """Return a multiple of this position."""
        rest = make("mul", self.rest, const(factor))
        return Position(s=self.s * factor, t=self.t * factor, rest=rest)


def position(expr: Expr, axes: layout.Axes) -> Position | None:
    """Return what a tensor that broadcasts against ``axes`` counts, None if that is not proved."""
    have = layout.aligned(expr, axes)
    if have is None or (expr.dtype is not None and expr.dtype.kind not in "iu" and expr.dtype.itemsize < 4):
        return None
    if expr.known is not None and expr.known.size == 1:
        return _constant(expr)
    inner = layout.back(expr, have)
    if inner is not None:
        return position(*inner)
    if expr.word == "cast":
        return position(expr.args[0], have)
    return _ROWS.get(expr.word, _combined)(expr, have)


def _constant(expr: Expr) -> Position | None:
    if expr.known is None:
        return None
    value = expr.known.reshape(-1)[0]
    if not isinstance(value, Sym) and not float(value).is_integer():
        return None
    return Position(s=0, t=0, rest=_scalar(expr))


def _scalar(x: Expr) -> Expr:
    x = x if x.dtype == np.dtype(np.int64) else make("cast", x, to=np.dtype(np.int64))
    return make("squeeze", x, axes=tuple(range(x.rank))) if x.rank else x


def _listed(expr: Expr, have: layout.Axes) -> Position | None:
    """Read numbers that count, such as a range over an axis of fixed length."""
    values = expr.known
    if values is None:
        return None
    long = [axis for axis, n in zip(have, values.shape, strict=True) if n != 1]
    if len(long) != 1 or len(long[0]) != 1 or values.dtype.kind not in "iu":
        return None
    (atom,) = long[0]
    flat = values.reshape(-1)
    if atom.name not in ("s", "t") or atom.size != flat.size or not bool((np.diff(flat) == 1).all()):
        return None
    return Position(s=int(atom.name == "s"), t=int(atom.name == "t"), rest=const(int(flat[0])))


def _counted(expr: Expr, have: layout.Axes) -> Position | None:
    """Read a range over the whole of one axis of the scores."""
    start, step = expr.args[0], expr.args[2].number()
    if step != 1 or start.known is None or start.known.size != 1 or len(have) != 1:
        return None
    rest = _constant(start)
    if rest is None or not have[0]:  # one element: the start itself
        return rest
    atom, *more = have[0]
    if more or atom.name not in ("s", "t") or expr.shape != (atom.size,):
        return None  # another length might be 1 when the model runs, and then be broadcast
    return Position(s=int(atom.name == "s"), t=int(atom.name == "t"), rest=rest.rest)


def _combined(expr: Expr, have: layout.Axes) -> Position | None:
    if expr.word not in ("add", "sub", "neg", "mul"):
        return None
    parts = [position(arg, have) for arg in expr.args]
    first, last = parts[0], parts[-1]
    if first is None or last is None:
        return None
    if expr.word == "neg":
        return first.times(-1)
    if expr.word != "mul":
        return first.plus(last if expr.word == "add" else last.times(-1))
    for one, other in ((first, last), (last, first)):
        if (one.s, one.t) == (0, 0) and isinstance(one.length, int):
            return other.times(one.length)
    return None


_ROWS: Mapping[str, Callable[[Expr, layout.Axes], Position | None]] = {"range": _counted, "const": _listed}


def never_negative(length: Dim) -> bool:
    """Return whether a sum of lengths is proved to be 0 or more."""
    if isinstance(length, int):
        return length >= 0
    return not vague(length) and all(coefficient > 0 for _, coefficient in length.terms)
