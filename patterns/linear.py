"""Reads linear layers: a product with constant weights, with what is done to it neuron by neuron on its way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from patterns.site import Operand
from rewriter import layout
from rewriter.layout import Atom, Axes, Axis
from runtime_ops import interpret
from runtime_ops.dims import Dim
from runtime_ops.dims import product as length
from runtime_ops.words import Expr, const, make

QUANTISERS = ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """``x · wᵀ + bias``: what a tensor was made of.

    Attributes:
        x: the tensor that is multiplied, and its layout.
        w: the weights; their axes are the feature axis of the result and the contracted one.
        bias: a vector over the feature axis, or None.
        product: the matmul.
        rounded: operators that round to few bits on the way.
        stored: how the weights are kept if they are no plain floats.
    """

    x: Operand
    w: Operand
    bias: Expr | None
    product: Expr
    rounded: frozenset[str]
    stored: str | None

    @property
    def inner_width(self) -> Dim:
        """Length f of the weights."""
        return next(a.size for axis in self.w.axes for a in axis if a.letter == "f")


@dataclass
class Weights:
    """Which tensors depend on weights alone (read through casts, scales, dequantisation); remembers its answers."""

    memo: dict[int, bool] = field(default_factory=dict)

    def __contains__(self, expr: Expr) -> bool:
        stack = [expr]
        while stack:
            node = stack[-1]
            open_args = [a for a in node.args if id(a) not in self.memo]
            if id(node) not in self.memo and open_args and node.word not in ("const", "input"):
                stack.extend(open_args)
                continue
            stack.pop()
            self.memo[id(node)] = node.word == "const" or (bool(node.args) and all(self.memo[id(a)] for a in node.args))
        return self.memo[id(expr)]


def unquantised(x: Expr) -> tuple[Expr, frozenset[str]]:
    """Return the tensor behind its quantisation, dynamic (less a zero point) or QDQ, and the operators met."""
    met: set[str] = set()
    while True:
        if x.word == "sub" and x.args[0].word == "cast" and not is_float(x.args[0]):
            x = x.args[0].args[0]
        elif x.word == "opaque" and x.attrs["op"] in QUANTISERS:
            met.add(x.attrs["op"])
            x = x.args[0]
        else:
            return x, frozenset(met)


def is_float(x: Expr) -> bool:
    """Return whether a tensor holds floats, as far as is known."""
    return x.dtype is None or interpret.is_float(x.dtype)


def read(expr: Expr, axes: Axes, weights: Weights, *, to: str, over: str) -> Linear | None:
    """Return how a tensor was made by a product with constant weights, None if it was not.

    Args:
        expr: the tensor.
        axes: its layout.
        weights: knows which tensors are constant.
        to, over: letters of its feature axis and of the contracted axis.
    """
    walk = _Walk(node=expr, axes=axes, to=to, weights=weights)
    while walk.node.word != "matmul":
        if walk.node in weights or not walk.step():
            return None
    pair = product(walk.node, walk.axes, weights, to=to, over=over)
    if pair is None:
        return None
    x, w = pair
    if not is_float(w.value):
        walk.rounded.add("MatMulInteger")
        w = replace(w, value=make("cast", w.value, to=np.dtype(np.float32)))
    at = next(i for i, axis in enumerate(w.axes) if any(a.letter == to for a in axis))
    out = walk.outward(w.value, at)
    feature = (Atom(to, out.shape[at] if out.shape else 0),)
    bare, met = unquantised(x.value)
    return Linear(
        x=Operand(value=bare, axes=x.axes),
        w=Operand(value=out, axes=tuple(feature if i == at else axis for i, axis in enumerate(w.axes))),
        bias=walk.bias,
        product=walk.node,
        rounded=frozenset(walk.rounded) | met,
        stored=_stored(w.value),
    )


@dataclass
class _Walk:
    """One tensor read inwards to the product: what was met on the way."""

    node: Expr
    axes: Axes
    to: str
    weights: Weights
    bias: Expr | None = None
    outer: list[Callable[[Expr, int], Expr]] = field(default_factory=list)  # outermost first
    rounded: set[str] = field(default_factory=set)

    def step(self) -> bool:
        """Go one operation inwards; return whether there was one to undo."""
        node = self.node
        if node.word == "opaque":
            self.node, met = unquantised(node)
            self.rounded |= met
            return bool(met)
        if node.word == "cast" and is_float(node):
            self.node = node.args[0]
            return True
        if node.word in ("add", "mul"):
            return self._constant_side()
        if node.word == "slice":
            return self._slice()
        inner = layout.back(node, self.axes)
        if inner is not None:
            self.node, self.axes = inner
        return inner is not None

    def _constant_side(self) -> bool:
        x, y = self.node.args
        if x in self.weights or (self.node.word == "mul" and _one_element(x)):
            x, y = y, x
        if x in self.weights or x.rank != self.node.rank:
            return False
        taken = self._bias(y) if self.node.word == "add" else self._scale(x, y)
        self.node = x if taken else self.node
        return taken

    def _bias(self, y: Expr) -> bool:
        vector = vector_over(y, self.axes, self.to, self.weights)
        if vector is not None:
            more = self.outward(vector, 0)
            self.bias = more if self.bias is None else make("add", more, self.bias)
        return vector is not None

    def _scale(self, x: Expr, y: Expr) -> bool:
        """Take off a scale: one for each neuron, or the one that turns a product of integers into floats."""
        factors = (y, *y.args) if y.word == "mul" else (y,)
        for part in factors:
            vector = vector_over(part, self.axes, self.to, self.weights)
            if vector is None and part in self.weights and _one_element(part) and (part is not y or scaled_inside(x)):
                vector = part
            if vector is not None and (part is y or of_integers(x)):  # the scale of x goes with its quantisation
                self.outer.append(partial(_times, vector))
                return True
        return _one_element(y) and y not in self.weights and of_integers(x)

    def _slice(self) -> bool:
        x, *bounds = self.node.args
        start, end, axis, step = (b.known for b in bounds)
        if x.shape is None or start is None or end is None or axis is None or step is None or axis.size != 1:
            return False
        at = int(axis.flat[0]) % len(x.shape)
        if [i for i, one in enumerate(self.axes) if any(a.letter == self.to for a in one)] != [at]:
            return False
        self.outer.append(partial(_sliced, (start, end, step)))
        self.node = x
        self.axes = tuple((Atom(self.to, x.shape[at]),) if i == at else one for i, one in enumerate(self.axes))
        return True

    def outward(self, value: Expr, axis: int) -> Expr:
        """Return what happens to the product's neurons on its way out, done to one axis of another tensor."""
        for apply in reversed(self.outer):
            value = apply(value, axis)
        return value


def aligned(x: Expr, axes: Axes) -> Axes | None:
    """Return the layout of a tensor that broadcasts against ``axes``; one of unknown rank has the same."""
    return axes if x.shape is None else layout.aligned(x, axes)


def vector_over(y: Expr, axes: Axes, letter: str, weights: Weights) -> Expr | None:
    """Return a constant that broadcasts against ``axes`` as a vector over one letter, None if it is none."""
    have = aligned(y, axes) if y in weights else None
    if have is None:
        return None
    atoms = tuple(a for axis in have for a in axis)
    whole = [a for axis in axes for a in axis if a.letter == letter]
    return layout.arrange(y, have, (atoms,)) if list(atoms) == whole and whole else None


def _times(factor: Expr, value: Expr, axis: int) -> Expr:
    if factor.number() is None:
        factor = make("unsqueeze", factor, axes=tuple(i for i in range(value.rank or 1) if i != axis))
    return make("mul", value, factor)


def _sliced(bounds: Sequence[np.ndarray], value: Expr, axis: int) -> Expr:
    start, end, step = (const(b.reshape(-1)) for b in bounds)
    return make("slice", value, start, end, const([axis]), step)


def scaled_inside(x: Expr) -> bool:
    """Return whether a number times ``x`` belongs to the product: integers made floats, or the alpha of a Gemm."""
    return (x.word == "cast" and of_integers(x)) or (x.word == "matmul" and x.handle is None)


def of_integers(x: Expr) -> bool:
    """Return whether a tensor is a product of integers, perhaps scaled."""
    while x.word in ("cast", "mul"):
        x = next((a for a in x.args if not _one_element(a)), x.args[0])
    return x.word == "matmul" and not is_float(x)


def _one_element(x: Expr) -> bool:
    return x.shape is not None and all(d == 1 for d in x.shape)


def _stored(w: Expr) -> str | None:
    """Return the element type that weights are kept in if they are worked out from matrices that are no floats."""
    kept = [node for node in interpret.topological(w, lambda e: False) if node.word == "const" and (node.rank or 0) > 1]
    return next((str(node.dtype) for node in kept if not is_float(node)), None)


def product(node: Expr, axes: Axes, weights: Weights, *, to: str, over: str) -> tuple[Operand, Operand] | None:
    """Return (x, w) of a matmul with constant weights on either side, laid out; None if it is none.

    Args:
        node: the matmul.
        axes: layout of its result.
        weights: knows which tensors are constant.
        to, over: letters of the result's feature axis and of the contracted axis.
    """
    left, right = node.args
    if (left in weights) == (right in weights):
        return None
    x, w, mine = (left, right, -1) if right in weights else (right, left, -2)
    rank = len(axes) if x.shape is None and mine == -1 else x.rank or 0
    if w.shape is None or min(rank, len(w.shape)) < 2 or (x.rank, node.rank).count(None) == 1:
        return None
    if any(d != 1 for d in w.shape[:-2]):
        return None  # one matrix for each head or expert
    pair = [w.shape[-2], w.shape[-1]] if mine == -1 else [w.shape[-1], w.shape[-2]]
    inner: Axis = (Atom(over, pair[0]),)
    feature: Axis = (Atom(to, pair[1]),)
    if any((a.letter == to) != (axis is axes[mine]) for axis in axes for a in axis):
        return None  # neurons and rows are mixed
    if length(a.size for a in axes[mine]) != pair[1]:
        return None  # one neuron is repeated
    at = len(axes) + mine
    have = tuple(inner if i == at else axis for i, axis in enumerate(axes))[len(axes) - rank :]
    blank: Axes = ((),) * (len(w.shape) - 2)
    w_axes = (*blank, inner, feature) if mine == -1 else (*blank, feature, inner)
    return Operand(value=x, axes=have), _deepest(w, w_axes)


def _deepest(w: Expr, axes: Axes) -> Operand:
    """Return the weights before what only turns them."""
    turned = [(x, have) for x, have, _ in layout.views(w, axes, through_scales=False) if all(map(_plain, have))]
    return Operand(value=turned[-1][0], axes=turned[-1][1])


def _plain(axis: Axis) -> bool:
    return len(axis) <= 1
