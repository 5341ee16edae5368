"""Reads which keys a mask leaves visible: a boolean tensor taken apart into parts that must all let a key through.

Each peel takes one layer off (a view, a conjunction, a negation, a choice, a cast) and goes on inside; what is left
is a comparison of positions, a constant, or a tensor that is only known by the axes that it spans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patterns.band import band
from patterns.mask import Causal, Keep, Keys, Mask, Window
from patterns.positions import Position, never_negative, position
from patterns.site import Unreadable
from rewriter import layout
from runtime_ops.words import Expr, const, make


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that a mask demands of a key, and the tensor that says so.

    Attributes:
        mask: what it demands.
        keep: bool, arranged to broadcast to [b h s t].
    """

    mask: Mask
    keep: Expr


Parts = tuple[Part, ...]


def masks(found: Parts) -> list[Mask]:
    """Return what parts demand."""
    return [part.mask for part in found]


def to_frame(x: Expr, axes: layout.Axes, frame: layout.Axes) -> Expr:
    """Return a tensor that broadcasts against ``axes`` arranged to broadcast against the scores [b h s t].

    Raises:
        Unreadable: that cannot be expressed.
    """
    inner = layout.aligned(x, axes)
    arranged = None if inner is None else layout.arrange(x, inner, frame)
    if arranged is None:
        raise Unreadable("the shape of a bias or mask cannot be brought to [b h s t]", x)
    return arranged


def parts(keep: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool = True) -> Parts:
    """Return what must all hold for a key to be visible; nothing if every key is.

    Args:
        keep: the mask.
        axes: the layout of the scores that it broadcasts against.
        frame: the layout [b h s t] that parts are arranged to.
        yes: whether true or false is visible.

    Raises:
        Unreadable: the mask cannot be arranged to the frame.
    """
    try:
        return _parts(keep, axes, frame, yes)
    except Unreadable:  # a piece cannot be arranged alone; the whole may
        return _leaf(keep, axes, frame, yes)


def _parts(keep: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts:
    known = keep.known
    if known is not None and known.dtype == bool and bool((known == yes).all()):
        return ()
    have = layout.aligned(keep, axes)
    inner = None if have is None else layout.back(keep, have)
    if have is None or inner is None:
        row = _PEELS.get(keep.word)
        found = None if have is None or row is None else row(keep, have, frame, yes)
        return found if found is not None else _leaf(keep, axes, frame, yes)
    return _parts(*inner, frame, yes)


def zero_one(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Return what must all hold for a number to be 1 (``yes``) or 0; None unless it is proved to be one of both."""
    have = layout.aligned(expr, axes)
    if have is None or expr.dtype == bool:
        return None if have is None else _parts(expr, have, frame, yes)
    inner = layout.back(expr, have)
    if inner is not None:
        return zero_one(*inner, frame, yes)
    if expr.word == "cast":
        return zero_one(expr.args[0], have, frame, yes)
    if expr.word == "sub" and expr.args[0].number() == 1:
        return zero_one(expr.args[1], have, frame, not yes)
    if expr.word == "mul" and yes:
        return _both([zero_one(arg, have, frame, yes) for arg in expr.args])
    return None


def fill_number(expr: Expr) -> float | None:
    """Return the one number that a fill consists of."""
    while expr.word in ("expand", "reshape", "unsqueeze") and expr.number() is None:
        expr = expr.args[0]
    if expr.known is not None and expr.known.dtype != object and expr.known.size > 1:
        return float(expr.known.flat[0]) if (expr.known == expr.known.flat[0]).all() else None
    return expr.number()


def _nonzero(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Return what must all hold for a number to be anything but 0 (``yes``), or 0."""
    have = layout.aligned(expr, axes)
    inner = None if have is None else layout.back(expr, have)
    if inner is not None:
        return _nonzero(*inner, frame, yes)
    if expr.word == "where" and have is not None:
        test, first, second = expr.args
        numbers = fill_number(first), fill_number(second)
        if None not in numbers and numbers.count(0.0) == 1:
            return _parts(test, have, frame, (numbers[1] == 0.0) == yes)
    return zero_one(expr, axes, frame, yes)


def _both(found: list[Parts | None]) -> Parts | None:
    return None if any(p is None for p in found) else tuple(part for p in found if p is not None for part in p)


def _not(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    return _parts(expr.args[0], axes, frame, not yes)


def _and(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Read a and b where true is visible, a or b where false is."""
    if (expr.word == "and") != yes:
        return None
    return _both([_parts(arg, axes, frame, yes) for arg in expr.args])


def _cast(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    return _nonzero(expr.args[0], axes, frame, yes) if expr.attrs["to"] == np.dtype(bool) else None


def _equal(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Read a comparison with 0."""
    for x, zero in (expr.args, reversed(expr.args)):
        if zero.number() == 0.0:
            return _nonzero(x, axes, frame, not yes)
    return None


def _where(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Read a choice of which one side hides every key."""
    test, first, second = expr.args
    for side, other, when in ((second, first, True), (first, second, False)):
        if side.known is not None and bool((side.known != yes).all()):
            return _parts(test, axes, frame, when) + _parts(other, axes, frame, yes)
    return None


def _compared(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    small, large = expr.args if yes else reversed(expr.args)
    strict = (expr.word == "lt") == yes  # not (x <= y) is y < x
    if small.word == "max":  # how |x| <= y is read
        word = "lt" if strict else "le"
        return _both([_compared(make(word, arg, large), axes, frame, True) for arg in small.args])
    low, high = position(small, axes), position(large, axes)
    if low is None or high is None:
        return None
    room = high.plus(low.times(-1))
    if strict:
        room = room.plus(Position(s=0, t=0, rest=const(-1)))
    if room.s >= 0 and room.t >= 0 and never_negative(room.length):
        return ()
    meaning = _demanded(room)
    return None if meaning is None else (_part(meaning, expr, axes, frame, yes),)


def _demanded(room: Position) -> Mask | None:
    """Return what room >= 0 demands of a key."""
    if (room.s, room.t) == (1, -1):
        return Causal(offset=room.length, value=room.rest)
    if (room.s, room.t) == (-1, 1):
        return Window(left=room.length, right=None)
    return None


def _constant(expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts | None:
    """Read a constant, or what was cut out of one, as the band along the diagonal that it shows."""
    found = band(expr, axes, lambda array: array.astype(bool) == yes)
    return None if found is None else tuple(_part(mask, expr, axes, frame, yes) for mask in found)


def _leaf(keep: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Parts:
    """Say what is known of a tensor by the axes that it spans."""
    have = layout.aligned(keep, axes) or ()
    letters = {atom.letter for axis in have for atom in axis}
    keep = keep if yes else make("not", keep)
    arranged = to_frame(keep, axes, frame)
    valid = layout.arrange(keep, have, (frame[0], frame[3])) if "t" in letters and letters <= {"b", "t"} else None
    return (Part(mask=Keep(keep=arranged) if valid is None else Keys(valid=valid), keep=arranged),)


def _part(mask: Mask, expr: Expr, axes: layout.Axes, frame: layout.Axes, yes: bool) -> Part:
    return Part(mask=mask, keep=to_frame(expr if yes else make("not", expr), axes, frame))


_PEELS: dict[str, Callable[[Expr, layout.Axes, layout.Axes, bool], Parts | None]] = {
    "not": _not,
    "and": _and,
    "or": _and,
    "cast": _cast,
    "where": _where,
    "eq": _equal,
    "lt": _compared,
    "le": _compared,
    "const": _constant,
    "slice": _constant,
}
