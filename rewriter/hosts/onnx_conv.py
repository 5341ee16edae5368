"""READ for convolutions over one position: products with the same matrix at every place."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.words import Expr, const, dim, make, reshape


def conv(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read a Conv with kernel 1 over [b m t] or [b m h w] as w [f m] · x, plus a bias; None for any other."""
    x, w, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if x is None or w is None or x.shape is None or w.shape is None or not _one_position(node, w):
        return None
    places = tuple(range(2, len(w.shape)))
    out = make("matmul", make("squeeze", w, axes=places), _flat(x))
    if len(places) > 1:
        lengths = make("concat", dim(x, 0), const([w.shape[0]]), make("dim", x, start=2), axis=0)
        out = make("reshape", out, lengths, keep_zero=True)
    if bias is None:
        return out
    return make("add", out, make("unsqueeze", bias, axes=tuple(i - 1 for i in places)))


def _flat(x: Expr) -> Expr:
    """Return [b m t], with t for all places."""
    return x if x.rank == 3 else reshape(x, [dim(x, 0), dim(x, 1), -1])


def _one_position(node: ir.Node, w: Expr) -> bool:
    kernel = (w.shape or ())[2:]
    apart = [*attr(node, "strides", ()), attr(node, "group", 1)]
    return bool(kernel) and all(n == 1 for n in (*kernel, *apart)) and not any(attr(node, "pads", ()))
