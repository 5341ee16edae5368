"""READ for convolutions over one position: products with the same matrix at every place."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from rewriter.hosts.spelled import point_convolution
from runtime_ops.words import Expr


def conv(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read a Conv with kernel 1 over [b m t] or [b m h w]; None for any other."""
    x, w, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if x is None or w is None or x.shape is None or w.shape is None or not _one_position(node, w):
        return None
    return point_convolution(x, w, bias)


def _one_position(node: ir.Node, w: Expr) -> bool:
    kernel = (w.shape or ())[2:]
    apart = [*attr(node, "strides", ()), attr(node, "group", 1)]
    return bool(kernel) and all(n == 1 for n in (*kernel, *apart)) and not any(attr(node, "pads", ()))
