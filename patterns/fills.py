"""Fills: additive masks, which add 0 to the score of a visible key and one huge negative number to any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patterns.band import band
from patterns.site import Unreadable
from patterns.visible import Part, Parts, fill_number, parts, to_frame, zero_one
from rewriter import layout
from runtime_ops import interpret
from runtime_ops.words import Expr, const, make

NEGLIGIBLE = -1e4  # a fill at or below this leaves a masked key no weight beside any visible one


@dataclass(frozen=True, kw_only=True)
class Fill:
    """An additive mask.

    Attributes:
        parts: what a key must satisfy to be visible.
        number: what is added to the score of any other key.
    """

    parts: Parts
    number: float


def addends(term: Expr, axes: layout.Axes) -> Iterator[tuple[Expr, layout.Axes]]:
    """Yield the tensors whose sum a term is, each with the layout that it broadcasts against."""
    split = term.args if term.word == "add" else _biased(term)
    if split:
        for arg in split:
            yield from addends(arg, axes)
        return
    have = layout.aligned(term, axes)
    inner = None if have is None else layout.back(term, have)
    deeper = [] if inner is None else list(addends(*inner))
    yield from deeper if len(deeper) > 1 and all(_whole(*part) for part in deeper) else [(term, axes)]


def _whole(x: Expr, axes: layout.Axes) -> bool:
    """Return whether a tensor spans b, h, s and t each whole or not at all; half of one could not be added alone."""
    spans = {a for axis in layout.aligned(x, axes) or () for a in axis}
    letters = [{a for axis in axes for a in axis if a.letter == letter} for letter in "bhst"]
    return all(not atoms & spans or atoms <= spans for atoms in letters)


def _biased(term: Expr) -> tuple[Expr, ...]:
    """Return a choice between a tensor and a fill as the sum of the tensor and an additive mask."""
    if term.word != "where":
        return ()
    test, first, second = term.args
    for x, fill, kept in ((first, second, True), (second, first, False)):
        number = fill_number(fill)
        if number is None or number > NEGLIGIBLE or fill_number(x) is not None or _zero_where(x, test, kept):
            continue
        zero, full = const(0.0, term.dtype), const(number, term.dtype)
        return x, make("where", test, *((zero, full) if kept else (full, zero)))
    return ()


def read(term: Expr, axes: layout.Axes, frame: layout.Axes) -> Fill | None:
    """Return an additive mask taken apart, None if a term is anything else."""
    have = layout.aligned(term, axes)
    try:
        found = None if have is None else _read(term, have, frame)
    except Unreadable:
        return None
    return found if found is not None and found.number <= NEGLIGIBLE else None


def _read(term: Expr, have: layout.Axes, frame: layout.Axes) -> Fill | None:
    inner = layout.back(term, have)
    if inner is not None:
        return _read(*inner, frame)
    if term.word in ("cast", "neg"):
        within = _read(term.args[0], have, frame) if layout.aligned(term.args[0], have) is not None else None
        number = 0.0 if within is None else within.number
        with np.errstate(over="ignore", invalid="ignore"):
            number = -number if term.word == "neg" else float(np.asarray(number).astype(term.attrs["to"]))
        return None if within is None else dataclasses.replace(within, number=number)
    if term.word == "where":
        return _chosen(term, have, frame)
    if term.word == "mul":
        return _product(term, have, frame)
    return _constant(term, have, frame) if term.word in ("const", "slice") else None


def _chosen(term: Expr, have: layout.Axes, frame: layout.Axes) -> Fill | None:
    test, first, second = term.args
    for fill, other, yes in ((second, first, True), (first, second, False)):
        number = fill_number(fill)
        if not number:
            continue
        if fill_number(other) == 0.0 or _zero_where(other, test, yes):
            return Fill(parts=parts(test, have, frame, yes), number=number)
        inside = layout.aligned(other, have)
        within = None if inside is None else _read(other, inside, frame)
        if within is not None and within.number == number:
            return dataclasses.replace(within, parts=(*parts(test, have, frame, yes), *within.parts))
    return None


def _zero_where(x: Expr, test: Expr, kept: bool) -> bool:
    """Return whether a test is x itself as a truth value, so that x is 0 wherever the test keeps it."""
    return not kept and test.word == "cast" and test.args[0] is x


def _product(term: Expr, have: layout.Axes, frame: layout.Axes) -> Fill | None:
    """Read (1 - kept) · fill, where kept is proved to be 0 or 1."""
    for drop, fill in (term.args, reversed(term.args)):
        number = fill_number(fill)
        if number is not None and np.isfinite(number):
            found = zero_one(drop, have, frame, False)
            return None if found is None else Fill(parts=found, number=number)
    return None


def _constant(term: Expr, have: layout.Axes, frame: layout.Axes) -> Fill | None:
    """Read a stored additive mask, or what was cut out of one."""
    source = term
    while source.word in ("slice", "reshape", "unsqueeze", "squeeze", "transpose", "expand"):
        source = source.args[0]
    values = interpret.constant(source)
    fills = np.unique(values[values != 0]) if values is not None and interpret.is_float(values.dtype) else np.empty(0)
    if fills.size != 1:
        return None
    zero = make("eq", term, const(0.0, term.dtype))
    found = band(term, have, lambda array: array == 0)
    keep = to_frame(zero, have, frame)
    within = parts(zero, have, frame) if found is None else tuple(Part(mask=mask, keep=keep) for mask in found)
    return Fill(parts=within, number=float(fills[0]))
