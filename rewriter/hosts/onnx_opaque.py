"""ONNX operators that say no word of the alphabet: what is plain about their results all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.dims import Dim

# Opaque operators whose first output has the shape of the input of this index.
SHAPE_OF_INPUT: dict[str, int] = {
    **dict.fromkeys(
        [
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
            "BatchNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "Clip",
            "HardSwish",
            "HardSigmoid",
            "LeakyRelu",
            "PRelu",
            "Elu",
            "Gelu",
            "FastGelu",
            "QuickGelu",
            "BiasGelu",
            "Mish",
            "Swish",
            "Softplus",
            "Softsign",
            "Sin",
            "Cos",
            "Ceil",
            "Round",
            "Sign",
            "CumSum",
            "LogSoftmax",
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "ScatterND",
            "ScatterElements",
            "IsInf",
            "CastLike",
            "RotaryEmbedding",
            "BitwiseNot",
            "EyeLike",
        ],
        0,
    ),
    "GatherElements": 1,
}


def opaque_shape(node: ir.Node, args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return the shape of an opaque operator's output where it is plain."""
    if index > 0 and node.op_type != "TopK":
        return () if node.op_type == "DynamicQuantizeLinear" else None
    row = _SHAPES.get(node.op_type)
    if row is not None:
        return row(node, args)
    which = SHAPE_OF_INPUT.get(node.op_type)
    source = args[which] if which is not None and which < len(args) else None
    return None if source is None else source.shape


def opaque_type(node: ir.Node, args: Args) -> np.dtype[Any] | None:
    """Return the element type of an opaque operator's first output where it is that of its data input."""
    plain = node.op_type in SHAPE_OF_INPUT or node.op_type in _SHAPES or node.op_type in ("Conv", "GatherND", "Resize")
    changes = node.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "IsInf",
        "CastLike",
    )
    return args[0].dtype if plain and not changes and args and args[0] is not None else None


def _tiled(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    x, repeats = args[0], args[1]
    if x is None or x.shape is None or repeats is None or repeats.known is None:
        return None
    return tuple(length * times for length, times in zip(x.shape, repeats.known.reshape(-1).tolist(), strict=True))


def _padded(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    """Return lengths with what is added at both ends; pads are an input since opset 11."""
    x, pads = args[0], args[1] if len(args) > 1 else None
    some_axes = len(args) > 3 and args[3] is not None
    if x is None or x.shape is None or pads is None or pads.known is None or some_axes:
        return None
    if pads.known.size != 2 * len(x.shape):
        return None
    before, after = np.split(pads.known.reshape(-1), 2)
    return tuple(length + a + b for length, a, b in zip(x.shape, before.tolist(), after.tolist(), strict=True))


def _summed(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    """Return the length of every letter that an Einsum's equation leaves."""
    terms, _, result = attr(node, "equation").replace(" ", "").partition("->")
    if not result or "." in terms or len(terms.split(",")) != len(args):
        return None
    lengths: dict[str, Dim] = {}
    for term, x in zip(terms.split(","), args, strict=True):
        if x is None or x.shape is None or len(x.shape) != len(term):
            return None
        lengths |= {letter: length for letter, length in zip(term, x.shape, strict=True) if length != 1}
    return tuple(lengths.get(letter, 1) for letter in result)


def _chosen(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    """Return the shape of both outputs of a TopK; k is an input since opset 10."""
    x, count = args[0], args[1] if len(args) > 1 else None
    if x is None or not x.shape or count is None or count.known is None or count.known.size != 1:
        return None
    axis = attr(node, "axis", -1) % len(x.shape)
    return (*x.shape[:axis], count.known.reshape(-1).tolist()[0], *x.shape[axis + 1 :])


_SHAPES: dict[str, Callable[[ir.Node, Args], tuple[Dim, ...] | None]] = {
    "Einsum": _summed,
    "Pad": _padded,
    "Tile": _tiled,
    "TopK": _chosen,
}
