"""READ for ONNX operators that are products in disguise: Gemm, Einsum, and quotients that are a softmax."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from rewriter.hosts import spelled
from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.words import Expr, const, make


def gemm(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read a Gemm as a product and a sum."""
    a, b = args[0], args[1]
    if attr(node, "transA", 0):
        a = make("transpose", a, perm=(1, 0))  # type: ignore[arg-type]
    if attr(node, "transB", 0):
        b = make("transpose", b, perm=(1, 0))  # type: ignore[arg-type]
    out = make("matmul", a, b)  # type: ignore[arg-type]
    alpha, beta = attr(node, "alpha", 1.0), attr(node, "beta", 1.0)
    if alpha != 1.0:
        out = make("mul", out, const(alpha, out.dtype))
    bias = args[2] if len(args) > 2 else None
    if bias is None:
        return out
    return make("add", out, bias if beta == 1.0 else make("mul", bias, const(beta, bias.dtype)))


def integer_product(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read a MatMulInteger: a product of integers, each less its zero point."""
    whole = np.dtype(np.int32)
    sides = [make("cast", x, to=whole) for x in args[:2] if x is not None]
    for i, zero in enumerate(args[2:4]):
        if zero is not None:
            sides[i] = make("sub", sides[i], make("cast", zero, to=whole))
    return make("matmul", *sides)


def quotient(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read a Div."""
    x, total = args
    return None if x is None or total is None else spelled.quotient(x, total)


def einsum(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read an Einsum."""
    return spelled.einsum(attr(node, "equation"), [a for a in args if a is not None])
