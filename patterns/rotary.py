"""Rotary embedding, found by what it does: which channels of which tensor every channel of the result is made of.

A channel turned by an angle is ``x_i cos - x_j sin`` and its partner ``x_j cos + x_i sin``. Whatever slices, stacks,
negations and permutations a model writes that with, following the channels through them gives the same two terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patterns.surroundings import Rope
from runtime_ops import interpret
from runtime_ops.dims import Dim, bind
from runtime_ops.words import Expr

_VIEWS = ("reshape", "unsqueeze", "squeeze", "transpose", "expand", "cast")
_DEPTH = 32  # expressions that are followed inwards
_LIMIT = 1 << 22  # elements that are followed; unknown lengths count as 1


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Which elements of a tensor another one holds: flat indices, signs, and the factor of each (0: none)."""

    source: Expr
    index: np.ndarray
    sign: np.ndarray
    factor: np.ndarray

    def each(self, word: str, expr: Expr) -> Channels:
        """Return what a view, a slice or a gather of the tensor holds."""
        index, sign, factor = (viewed(word, expr, a) for a in (self.index, self.sign, self.factor))
        return Channels(source=self.source, index=index, sign=sign, factor=factor)


class _Least(dict[str, int]):
    """The least lengths: 1, but more for a quotient, of which windows over a signal take something off."""

    def __missing__(self, name: str) -> int:
        return 16 if "//" in name else 1


def lengths(shape: Sequence[Dim] | None) -> tuple[int, ...]:
    """Return a shape with 1 for what is not known."""
    if shape is None:
        raise ValueError("rank unknown")
    found = tuple(_least(d) for d in shape)
    if np.prod(found) > _LIMIT:
        raise ValueError("too long to follow")
    return found


def _least(d: Dim) -> int:
    return d if isinstance(d, int) else max(1, bind(d, _Least()))


def viewed(word: str, expr: Expr, array: np.ndarray) -> np.ndarray:
    """Return what a view, a slice or a gather of a tensor holds of one that is shaped alike."""
    if word in ("reshape", "unsqueeze", "squeeze"):
        return array.reshape(lengths(expr.shape))
    if word == "expand":
        return np.broadcast_to(array, lengths(expr.shape))
    if word == "cast":
        return array
    known = [a.known for a in expr.args[1:]]
    if any(k is None or k.dtype == object for k in known):
        raise ValueError("bounds unknown")
    return np.asarray(interpret.EVAL[word]([array, *known], expr.attrs))  # type: ignore[list-item]


def followed(expr: Expr, known: dict[int, Channels] | None = None, depth: int = 0) -> Channels:
    """Return which elements of the tensor that it is a selection of ``expr`` holds; ``known`` is filled on the way."""
    known = {} if known is None else known
    if id(expr) not in known:
        try:
            known[id(expr)] = _selection(expr, known, depth) if depth < _DEPTH else _whole(expr)
        except (ValueError, IndexError, TypeError):
            known[id(expr)] = _whole(expr)  # not a selection that can be followed: the selection of itself
    return known[id(expr)]


def _selection(expr: Expr, known: dict[int, Channels], depth: int) -> Channels:
    if expr.word in (*_VIEWS, "slice", "gather"):
        return followed(expr.args[0], known, depth + 1).each(expr.word, expr)
    if expr.word == "neg":
        return _negative(followed(expr.args[0], known, depth + 1))
    if expr.word == "concat":
        return _side_by_side([followed(a, known, depth + 1) for a in expr.args], expr.attrs["axis"])
    return _whole(expr)


def _whole(expr: Expr) -> Channels:
    try:
        shape = lengths(expr.shape)
    except ValueError:
        shape = ()
    index = np.arange(int(np.prod(shape))).reshape(shape)
    return Channels(source=expr, index=index, sign=np.ones(shape, np.int8), factor=np.zeros(shape, np.int8))


def _side_by_side(parts: Sequence[Channels], axis: int) -> Channels:
    if any(p.source is not parts[0].source for p in parts):
        raise ValueError("parts of different tensors")
    index, sign, factor = (np.concatenate([getattr(p, n) for p in parts], axis) for n in ("index", "sign", "factor"))
    return Channels(source=parts[0].source, index=index, sign=sign, factor=factor)


Terms = dict[int, list[Channels]]  # by id of the source: what is added up


class _Sums:
    """Follows channels through sums of products; one object per reading, which numbers the factors."""

    def __init__(self) -> None:
        self.factors: dict[int, Expr] = {}
        self._selections: dict[int, Channels] = {}
        self._terms: dict[int, Terms] = {}

    def terms(self, expr: Expr, depth: int = 0) -> Terms:
        """Return every way to read an expression as channels of one tensor; itself is always one."""
        if id(expr) not in self._terms:
            one = self._followed(expr)
            self._terms[id(expr)] = {id(one.source): [one], **(self._found(expr, depth) if depth < _DEPTH else {})}
        return self._terms[id(expr)]

    def _found(self, expr: Expr, depth: int) -> Terms:
        if expr.word == "mul":
            return {**self._scaled(expr, 0), **self._scaled(expr, 1)}
        if expr.word not in ("add", "sub", "concat", "slice", "gather", *_VIEWS):
            return {}
        inner = [
            self.terms(a, depth + 1) for a in (expr.args if expr.word in ("add", "sub", "concat") else expr.args[:1])
        ]
        if expr.word in ("add", "sub"):
            return self._added(expr, *inner)
        if expr.word == "concat":
            shared = set.intersection(*(set(p) for p in inner))
            return {key: _padded([p[key] for p in inner], expr.attrs["axis"]) for key in shared}
        return {key: [c.each(expr.word, expr) for c in sides] for key, sides in inner[0].items()}

    def _followed(self, expr: Expr) -> Channels:
        return followed(expr, self._selections)

    def _added(self, expr: Expr, left: Terms, right: Terms) -> Terms:
        if expr.word == "sub":
            right = {key: [_negative(c) for c in sides] for key, sides in right.items()}
        both = {key: [*left[key], *right[key]] for key in left if key in right}
        return {key: [_spread(c, expr) for c in sides] for key, sides in both.items() if len(sides) == 2}

    def _scaled(self, expr: Expr, which: int) -> Terms:
        data, factor = self._followed(expr.args[which]), _bare(expr.args[1 - which])
        tag = next((n for n, known in self.factors.items() if known is factor), len(self.factors) + 1)
        self.factors[tag] = factor
        return {id(data.source): [_spread(_tagged(data, tag), expr)]}


def _negative(c: Channels) -> Channels:
    return Channels(source=c.source, index=c.index, sign=-c.sign, factor=c.factor)


def _tagged(c: Channels, tag: int) -> Channels:
    return Channels(source=c.source, index=c.index, sign=c.sign, factor=np.full(c.index.shape, tag))


def _spread(c: Channels, expr: Expr) -> Channels:
    shape = lengths(expr.shape)
    index, sign, factor = (np.broadcast_to(a, shape) for a in (c.index, c.sign, c.factor))
    return Channels(source=c.source, index=index, sign=sign, factor=factor)


def _padded(parts: Sequence[Sequence[Channels]], axis: int) -> list[Channels]:
    """Return terms side by side; where a part has fewer terms than others, index -1."""
    most = max(len(p) for p in parts)
    full = [[*p, *[_nothing(p[0])] * (most - len(p))] for p in parts]
    return [_side_by_side(list(row), axis) for row in zip(*full, strict=True)]


def _nothing(like: Channels) -> Channels:
    index = np.full(like.index.shape, -1)
    return Channels(source=like.source, index=index, sign=like.sign, factor=like.factor)


def _bare(expr: Expr) -> Expr:
    while expr.word in _VIEWS:
        expr = expr.args[0]
    return expr


def read(expr: Expr, width: Dim | None) -> tuple[Rope, Channels] | None:
    """Return the rotary embedding of heads ``width`` wide that ``expr`` is, and the channels that it turns, or None."""
    if not expr.shape or (isinstance(width, int) and expr.shape[-1] != width):
        return None
    sums = _Sums()
    try:
        found = sums.terms(expr)
    except (ValueError, IndexError, TypeError):
        return None
    for sides in found.values():
        if len(sides) == 2 and sides[0].index.ndim:
            rope = _turned(sides, sums.factors)
            if rope is not None:
                return rope, sides[0]
    return None


def _turned(sides: Sequence[Channels], factors: dict[int, Expr]) -> Rope | None:
    """Return which rotary embedding the terms of one row of channels say."""
    rows = [
        np.stack([getattr(c, n).reshape(-1, c.index.shape[-1])[0] for c in sides]) for n in ("index", "sign", "factor")
    ]
    index, sign, factor = rows
    turned = np.flatnonzero((index >= 0).all(axis=0))
    width, total = len(turned), index.shape[-1]
    if not width or width % 2 or turned[-1] - turned[0] + 1 != width or factor[:, index.min(axis=0) < 0][0].any():
        return None
    block = slice(turned[0], turned[0] + width)
    index, sign, factor = index[:, block], sign[:, block], factor[:, block]
    for form, order in (("halves", np.arange(width).reshape(2, -1)), ("pairs", np.arange(width).reshape(-1, 2).T)):
        tags = _angles(index, sign, factor, *order)
        if tags is not None and _function(factors[tags[0]]) != "Sin" and _function(factors[tags[1]]) != "Cos":
            return Rope(form=form, width=width, of=total)
    return None


def _angles(
    index: np.ndarray, sign: np.ndarray, factor: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[int, int] | None:
    """Return the factors (cos, sin) if channels ``first`` and ``second`` are turned against each other."""
    minus = sign[:, first].argmin(axis=0)
    own, other = (index[row, first] for row in (1 - minus, minus))
    cos, sin = (factor[row, first] for row in (1 - minus, minus))
    at_other = (index[:, second] == other).argmax(axis=0)
    fits = (
        (sign[minus, first] < 0).all()
        and (sign[1 - minus, first] > 0).all()
        and (sign[:, second] > 0).all()
        and (index[at_other, second] == other).all()
        and (index[1 - at_other, second] == own).all()
        and (factor[at_other, second] == cos).all()
        and (factor[1 - at_other, second] == sin).all()
        and len({*cos}) == len({*sin}) == 1
        and cos[0] != sin[0]
    )
    return (int(cos[0]), int(sin[0])) if fits else None


def _function(expr: Expr) -> str | None:
    """Return "Cos" or "Sin" if a factor is a cosine or sine, None if it is looked up."""
    while expr.word in (*_VIEWS, "concat", "slice", "gather", "mul"):
        expr = expr.args[1] if expr.word == "mul" and expr.args[0].number() is not None else expr.args[0]
    return str(expr.attrs["op"]) if expr.word == "opaque" else None
