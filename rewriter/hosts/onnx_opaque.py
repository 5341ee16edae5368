"""ONNX operators that say no word of the alphabet: what is plain about their results all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args
from runtime_ops.dims import Dim, Sym

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


def opaque_shape(node: ir.Node, args: Args, index: int) -> tuple[Dim, ...] | None:
    """Return the shape of an opaque operator's output where it is plain."""
    if index > 0:
        return () if node.op_type == "DynamicQuantizeLinear" else None
    if node.op_type == "Tile":
        return _tiled(args)
    if node.op_type == "Conv":
        return _convolved(node, args)
    which = SHAPE_OF_INPUT.get(node.op_type)
    source = args[which] if which is not None and which < len(args) else None
    return None if source is None else source.shape


def opaque_type(node: ir.Node, args: Args) -> np.dtype[Any] | None:
    """Return the element type of an opaque operator's first output where it is that of its data input."""
    plain = node.op_type in SHAPE_OF_INPUT or node.op_type in ("Tile", "Conv", "GatherND", "Pad", "Resize")
    changes = node.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "IsInf",
        "CastLike",
    )
    return args[0].dtype if plain and not changes and args and args[0] is not None else None


def _tiled(args: Args) -> tuple[Dim, ...] | None:
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
