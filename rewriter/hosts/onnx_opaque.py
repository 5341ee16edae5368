"""ONNX operators that say no word of the alphabet: what is plain about their results all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.dims import Dim, Sym

# Opaque operators whose first output has the shape of the input of this index.
SHAPE_OF_INPUT: dict[str, int] = {
    **dict.fromkeys(
        [
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "BatchNormalization",
            "InstanceNormalization",
            "GroupNormalization",
            "PRelu",
            "Gelu",
            "FastGelu",
            "QuickGelu",
            "BiasGelu",
            "Mish",
            "Swish",
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
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SUM = 3  # output of these that gives what was normed
_SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def attributes(node: ir.Node) -> dict[str, float]:
    """Return what else is told of an opaque operator: how a norm keeps from dividing by zero."""
    return {"epsilon": attr(node, "epsilon", 1e-5)} if node.op_type in _NORMS else {}


def opaque_shape(node: ir.Node, args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return the shape of an opaque operator's output where it is plain."""
    if index == _SUM and node.op_type in _SKIPS and args[0] is not None:
        return args[0].shape
    if node.op_type == "EmbedLayerNormalization":
        return _embedded(args, index)
    if index > 0 and node.op_type != "TopK":
        return () if node.op_type == "DynamicQuantizeLinear" else None
    row = _SHAPES.get(node.op_type)
    if row is not None:
        return row(node, args)
    which = SHAPE_OF_INPUT.get(node.op_type)
    source = args[which] if which is not None and which < len(args) else None
    return None if source is None else source.shape


def opaque_type(node: ir.Node, args: Args, index: int) -> np.dtype[Any] | None:
    """Return the element type of an opaque operator's output where it is that of its data input."""
    which = 2 if node.op_type == "EmbedLayerNormalization" else 0
    source = args[which] if len(args) > which else None
    if index > 0 and not (index == _SUM and node.op_type in _SKIPS):
        return None
    plain = any(node.op_type in names for names in (SHAPE_OF_INPUT, _SHAPES, _DATA_TYPE))
    return source.dtype if plain and node.op_type not in _OTHER_TYPE and source is not None else None


_DATA_TYPE = ("GatherND", "Resize", "EmbedLayerNormalization")
_OTHER_TYPE = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "IsInf", "CastLike")


def _embedded(args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return [b s m], or for the lengths of the sequences [b], of token numbers [b s] and a table [words m]."""
    tokens, table = args[0], args[2]
    if tokens is None or table is None or tokens.shape is None or not table.shape:
        return None
    return tokens.shape[:1] if index == 1 else (*tokens.shape, table.shape[-1])


def _tiled(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    x, repeats = args[0], args[1]
    if x is None or x.shape is None or repeats is None or repeats.known is None:
        return None
    return tuple(length * times for length, times in zip(x.shape, repeats.known.reshape(-1).tolist(), strict=True))


def _convolved(node: ir.Node, args: Args) -> tuple[Dim, ...] | None:
    """Return batch and channels of a convolution; the lengths after them are not worked out."""
    x, w = args[0], args[1]
    if x is None or w is None or w.shape is None:
        return None
    fresh = [Sym.named(f"?{node.outputs[0].name}.{i}") for i in range(len(w.shape))]
    return (x.shape[0] if x.shape else fresh[0], w.shape[0], *fresh[2:])


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
    "Conv": _convolved,
    "Einsum": _summed,
    "Pad": _padded,
    "Tile": _tiled,
    "TopK": _chosen,
}
