"""The memory that keys or values are made of: constant weights, and which columns of them each channel of a head is.

Followed from the operand inwards, in two ways at once: where the first token's channels lie, by numbers, and what the
other axes mean, by layout. So whatever cuts packed projections apart, the weights of each head are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from patterns import around, rotary
from patterns.site import AttentionSite, Operand, Unreadable
from rewriter import layout
from runtime_ops.dims import Dim
from runtime_ops.interpret import is_float
from runtime_ops.words import Expr, const, make, reshape

_CUTS = ("slice", "gather")
_VIEWS = ("reshape", "transpose", "unsqueeze", "squeeze", "expand")
_CHANNELS = ("h", "d", "e", "c")  # c: what heads are cut out of
Bias = tuple[Expr, np.ndarray, float]  # a constant, which of its elements each channel gets, and their factor


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Keys or values as ``factor · x·weightᵀ + bias``.

    Attributes:
        x: the hidden states; their last axis is m.
        columns: [g d], which column of the weights each channel is.
        weights: [m columns], constant.
        factor: number that the products are multiplied by.
        biases: constants that are added.
    """

    x: Operand
    weights: Expr
    columns: np.ndarray
    factor: float
    biases: Sequence[Bias]

    @property
    def width(self) -> Dim:
        """Length m."""
        return self.weights.shape[0] if self.weights.shape else 0

    def heads(self, factor: float = 1.0) -> Expr:
        """Return the weights [g d m], multiplied by a number."""
        rows = make("transpose", self.weights, perm=(1, 0))
        order = self.columns.reshape(-1)
        if not np.array_equal(order, np.arange(rotary.lengths(rows.shape)[0])):
            rows = make("gather", rows, const(order), axis=0)
        return _times(reshape(rows, [*self.columns.shape, -1]), factor)

    def bias(self) -> Expr | None:
        """Return what is added [g d], None if nothing is."""
        total: Expr | None = None
        for value, index, factor in self.biases:
            part = make("gather", reshape(value, [-1]), const(index.reshape(-1)), axis=0)
            part = _times(reshape(part, list(index.shape)), factor)
            total = part if total is None else make("add", total, part)
        return total


def _times(x: Expr, factor: float) -> Expr:
    return x if factor == 1.0 else make("mul", x, const(factor, x.dtype))


@dataclass(frozen=True)
class _Walk:
    """A tensor on the way inwards, its layout, and where in it the channels [g d] of the first token lie."""

    expr: Expr
    axes: layout.Axes
    index: np.ndarray
    factor: float = 1.0
    biases: tuple[Bias, ...] = ()


def read(site: AttentionSite, name: str, operand: Operand | None = None) -> Memory:
    """Return what the keys ("k") or values ("v") of a site are made of; or a part of them, which ``operand`` is.

    Raises:
        Unreadable: they are not hidden states times constant weights.
    """
    operand = operand or (site.k if name == "k" else site.v)
    walk: _Walk | None = _start(operand, site.frame["g"], "d" if name == "k" else "e")
    last = operand.value
    while walk is not None:
        if walk.expr.word == "matmul":
            return _product(walk, name)
        last, walk = walk.expr, _step(walk)
    raise Unreadable(_said(name), last)


def _said(name: str) -> str:
    whose = "keys" if name == "k" else "values"
    return f"its {whose} cannot be followed to one product of hidden states with constant weights"


def _start(operand: Operand, heads: layout.Axis, letter: str) -> _Walk | None:
    """Return where to begin; None where heads or their width are no known numbers."""
    atoms = [a for axis in operand.axes for a in axis]
    channels = [*heads, *(a for a in atoms if a.letter == letter)]
    if any(not isinstance(a.size, int) for a in channels) or operand.value.shape is None:
        return None
    # a part of all keys has a length of its own
    own = zip(operand.axes, operand.value.shape, strict=True)
    sizes = rotary.lengths([size for axis, d in own for size in ([d] if len(axis) == 1 else [a.size for a in axis])])
    flat = np.arange(int(np.prod(sizes))).reshape(sizes)
    names = [a.name for a in atoms]
    if not {a.name for a in channels} <= set(names):
        return None
    order = [names.index(a.name) for a in channels]
    others = [i for i in range(len(atoms)) if i not in order]
    first = flat.transpose([*others, *order])[(0,) * len(others)]
    count = int(np.prod(rotary.lengths([a.size for a in heads]), dtype=int))
    return _Walk(operand.value, operand.axes, first.reshape(count, -1))


def _step(walk: _Walk) -> _Walk | None:
    """Return the walk one expression further in; None if there is no such step."""
    expr = walk.expr
    scaled = layout.scalar_factor(expr)
    if scaled is not None and scaled[0].shape == expr.shape:
        return replace(walk, expr=scaled[0], factor=walk.factor * scaled[1])
    if expr.word == "cast" and is_float(expr.attrs["to"]):
        return replace(walk, expr=expr.args[0])
    if expr.word == "add":
        return _unbiased(walk)
    if expr.word not in (*_VIEWS, *_CUTS):
        return None
    x = expr.args[0]
    axes = _uncut(walk) if expr.word in _CUTS else (layout.back(expr, walk.axes) or (x, None))[1]
    try:
        index = rotary.viewed(expr.word, expr, _numbered(x.shape)).reshape(-1)[walk.index]
    except (ValueError, IndexError, TypeError):
        return None
    return None if axes is None else replace(walk, expr=x, axes=axes, index=index)


def _numbered(shape: Sequence[Dim] | None) -> np.ndarray:
    """Return the elements of a tensor by number; lengths that are not known count as 1."""
    found = rotary.lengths(shape)
    return np.arange(int(np.prod(found))).reshape(found)


def _uncut(walk: _Walk) -> layout.Axes | None:
    """Return the layout of what channels are cut out of; None unless what is cut holds nothing but channels."""
    expr, x = walk.expr, walk.expr.args[0]
    if x.shape is None or expr.shape is None:
        return None
    whole: list[layout.Axis]
    if expr.word == "slice":
        cut = [i for i, (a, b) in enumerate(zip(x.shape, expr.shape, strict=True)) if a != b]
        gone = [walk.axes[i] for i in cut]
        whole = list(walk.axes)
    else:
        at, left = expr.attrs["axis"] % len(x.shape), len(expr.shape) - len(x.shape) + 1
        cut, gone = [at], list(walk.axes[at : at + left])
        whole = [*walk.axes[:at], (), *walk.axes[at + left :]]
    if any(a.letter not in _CHANNELS for axis in gone for a in axis):
        return None
    for i in cut:
        whole[i] = layout.atom(f"c{i}", x.shape[i])
    return tuple(whole)


def _unbiased(walk: _Walk) -> _Walk | None:
    """Return the walk without a constant that is added to every token alike."""
    for x, value in (walk.expr.args, reversed(walk.expr.args)):
        if x.shape != walk.expr.shape or value.shape is None or around.root(value).word != "const":
            continue
        axes = layout.aligned(value, walk.axes)
        if axes is None or any(a.letter in "bt" for axis in axes for a in axis):
            return None
        index = np.broadcast_to(_numbered(value.shape), rotary.lengths(walk.expr.shape)).reshape(-1)[walk.index]
        return replace(walk, expr=x, biases=(*walk.biases, (value, index, walk.factor)))
    return None


def _product(walk: _Walk, name: str) -> Memory:
    x, weights = walk.expr.args
    shape, rows = weights.shape or (), walk.axes[:-1]
    known = around.root(weights).word == "const" and len(shape) == 2 and all(isinstance(d, int) for d in shape)
    tokens = all(a.letter in "bt" for axis in rows for a in axis) and x.rank == walk.expr.rank
    if not known or not tokens or any(a.letter not in _CHANNELS for a in walk.axes[-1]):
        raise Unreadable(_said(name), walk.expr)
    assert isinstance(shape[1], int)  # looked at above
    return Memory(
        x=Operand(value=x, axes=(*rows, (layout.Atom("m", shape[0]),))),
        weights=weights,
        columns=walk.index % shape[1],
        factor=walk.factor,
        biases=walk.biases,
    )
