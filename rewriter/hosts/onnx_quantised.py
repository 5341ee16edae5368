"""READ for products of quantised tensors that are one operator: spelled out as integers, zero points and scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_product import integer_product
from rewriter.hosts.onnx_row import Args, Row, attr
from runtime_ops.dims import Dim
from runtime_ops.words import Expr, const, make

_FLOAT = np.dtype(np.float32)


def _optional(args: Args, index: int) -> Expr | None:
    return args[index] if len(args) > index else None


def _n_bits(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read x · wᵀ where w [N K] is packed in blocks of 4 or 8 bits along K, each with a scale and a zero point."""
    x, packed, scales, zeros, order = (_optional(args, i) for i in range(5))
    bits, block, n, k = (attr(node, name) for name in ("bits", "block_size", "N", "K"))
    if x is None or packed is None or scales is None or order is not None or bits not in (4, 8):
        return None
    blocks, dtype = -(-k // block), scales.dtype or _FLOAT
    q = make("reshape", _unpacked(packed, bits, dtype), const([n, blocks, block]))
    low: Expr = const(float(1 << (bits - 1)), dtype)
    if zeros is not None and zeros.dtype == np.uint8:
        low = make("reshape", _unpacked(make("reshape", zeros, const([n, -1])), bits, dtype), const([n, -1, 1]))
        low = make("slice", low, const([0]), const([blocks]), const([1]), const([1]))
    elif zeros is not None:
        low = make("reshape", zeros, const([n, blocks, 1]))
    w = make("mul", make("sub", q, low), make("reshape", scales, const([n, blocks, 1])))
    w = make("reshape", w, const([n, blocks * block]))
    if blocks * block > k:
        w = make("slice", w, const([0]), const([k]), const([1]), const([1]))
    out = make("matmul", x, make("transpose", w, perm=(1, 0)))
    bias = _optional(args, 5)
    return out if bias is None else make("add", out, bias)


def _unpacked(x: Expr, bits: int, dtype: np.dtype[np.generic]) -> Expr:
    """Return numbers of 8 bits, or pairs of 4 bits (the lower first) side by side on a last axis, as floats."""
    x = make("cast", x, to=dtype)
    if bits == 8:
        return x
    high = make("floor", make("mul", x, const(1 / 16, dtype)))
    low = make("sub", x, make("mul", high, const(16.0, dtype)))
    rank = x.rank or 0
    return make("concat", *(make("unsqueeze", half, axes=(rank,)) for half in (low, high)), axis=rank)


def _to_float(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read MatMulIntegerToFloat: (a - za) · (b - zb) · scale(a) · scale(b) + bias."""
    a, b, scale_a, scale_b = args[:4]
    whole = make("cast", integer_product(node, (a, b, _optional(args, 4), _optional(args, 5)), opset), to=_FLOAT)
    out = make("mul", whole, make("mul", scale_a, scale_b))  # type: ignore[arg-type]
    bias = _optional(args, 6)
    return out if bias is None else make("add", out, bias)


def _dynamic(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read DynamicQuantizeMatMul: its first factor is quantised as DynamicQuantizeLinear does."""
    x, b, scale_b = args[:3]
    if x is None:
        return None
    q, scale, zero = (_made("DynamicQuantizeLinear", (x,), shape, dtype) for shape, dtype in (
        (x.shape, np.dtype(np.uint8)), ((), _FLOAT), ((), np.dtype(np.uint8)),
    ))  # fmt: skip
    return _to_float(node, (q, b, scale, scale_b, zero, _optional(args, 3), _optional(args, 4)), opset)


def _linear(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read QLinearMatMul: a product between dequantisations of its factors and a quantisation."""
    x, scale, zero, w, w_scale, w_zero, y_scale, y_zero = args
    if x is None or w is None or y_zero is None:
        return None
    bare = (make("cast", part, to=_FLOAT) for part in (w, w_zero))  # type: ignore[arg-type]
    weights = make("mul", make("sub", *bare), w_scale)  # type: ignore[arg-type]
    out = make("matmul", _made("DequantizeLinear", (x, scale, zero), x.shape, _FLOAT), weights)
    return _made("QuantizeLinear", (out, y_scale, y_zero), out.shape, y_zero.dtype)


def _made(op: str, args: Args, shape: tuple[Dim, ...] | None, dtype: np.dtype[np.generic] | None) -> Expr:
    return Expr("opaque", tuple(a for a in args if a is not None), {"op": op, "why": None}, shape, dtype)


QUANTISED: dict[tuple[str, str], Row] = {
    ("com.microsoft", "MatMulNBits"): _n_bits,
    ("com.microsoft", "MatMulIntegerToFloat"): _to_float,
    ("com.microsoft", "DynamicQuantizeMatMul"): _dynamic,
    ("", "QLinearMatMul"): _linear,
}
