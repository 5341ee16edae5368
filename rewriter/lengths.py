"""Lengths of axes as tensors, read where that costs nothing, and tensors repeated by them."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_ops.words import Expr, const, dim, make


def length(x: Expr, axis: int) -> Expr:
    """Return the length of an axis as a tensor of one element.

    It is read from as deep a tensor as tells it, so that a rewritten model computes nothing for its shape alone.
    """
    while True:
        deeper = _deeper(x, axis)
        if deeper is None:
            return dim(x, axis)
        x, axis = deeper


def _deeper(x: Expr, axis: int) -> tuple[Expr, int] | None:
    """Return an argument of ``x`` and its axis of the same length; None if there is none that tells."""
    if x.shape is None:
        return None
    if x.word == "transpose":
        return x.args[0], x.attrs["perm"][axis]
    back = len(x.shape) - axis
    if x.word == "matmul" and back <= 2:
        side = x.args[2 - back]
        return (side, len(side.shape) - back) if side.shape is not None and len(side.shape) >= 2 else None
    if x.word not in _ALIGNED:
        return None
    for arg in x.args:
        if arg.shape is not None and len(arg.shape) >= back and arg.shape[-back] == x.shape[axis]:
            return arg, len(arg.shape) - back
    return None


_ALIGNED = frozenset(("matmul", "add", "sub", "mul", "div", "where", "max", "min", "tanh", "cast", "softmax", "neg"))


def repeated(x: Expr, lengths: Sequence[Expr | None]) -> Expr | None:
    """Return ``x`` with new axes of these lengths in front, along which it is repeated; None if one is not known."""
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    wide = make("unsqueeze", x, axes=tuple(range(len(known))))
    return make("expand", wide, make("concat", *known, const([1] * (x.rank or 0)), axis=0))
