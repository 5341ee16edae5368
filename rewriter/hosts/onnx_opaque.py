"""ONNX operators that say no word of the alphabet: what is plain about their results all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args
from runtime_ops.dims import Dim

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
            "Abs",
            "Ceil",
            "Round",
            "Sign",
            "CumSum",
            "Trilu",
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
_SUM = 3  # output of these that gives what was normed
_SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def opaque_shape(node: ir.Node, args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return the shape of an opaque operator's output where it is plain."""
    if index == _SUM and node.op_type in _SKIPS and args[0] is not None:
        return args[0].shape
    if node.op_type == "EmbedLayerNormalization":
        return _embedded(args, index)
    if index > 0:
        return () if node.op_type == "DynamicQuantizeLinear" else None
    if node.op_type == "Tile":
        return _tiled(args)
    which = SHAPE_OF_INPUT.get(node.op_type)
    source = args[which] if which is not None and which < len(args) else None
    return None if source is None else source.shape


def opaque_type(node: ir.Node, args: Args, index: int) -> np.dtype[Any] | None:
    """Return the element type of an opaque operator's output where it is that of its data input."""
    which = 2 if node.op_type == "EmbedLayerNormalization" else 0
    source = args[which] if len(args) > which else None
    if index > 0 and not (index == _SUM and node.op_type in _SKIPS):
        return None
    plain = node.op_type in SHAPE_OF_INPUT or node.op_type in _DATA_TYPE
    return source.dtype if plain and node.op_type not in _OTHER_TYPE and source is not None else None


_DATA_TYPE = ("Tile", "Conv", "GatherND", "Pad", "Resize", "EmbedLayerNormalization")
_OTHER_TYPE = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "IsInf", "CastLike")


def _embedded(args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return [b s m], or for the lengths of the sequences [b], of token numbers [b s] and a table [words m]."""
    tokens, table = args[0], args[2]
    if tokens is None or table is None or tokens.shape is None or not table.shape:
        return None
    return tokens.shape[:1] if index == 1 else (*tokens.shape, table.shape[-1])


def _tiled(args: Args) -> tuple[Dim, ...] | None:
    x, repeats = args[0], args[1]
    if x is None or x.shape is None or repeats is None or repeats.known is None:
        return None
    return tuple(length * times for length, times in zip(x.shape, repeats.known.reshape(-1).tolist(), strict=True))
