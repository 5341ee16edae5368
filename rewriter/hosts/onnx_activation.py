"""READ for activations that are one operator: spelled out again in the words of the alphabet."""

from __future__ import annotations

import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, Row, attr
from rewriter.hosts.spelled import gelu_erf, gelu_tanh, mish, number
from runtime_ops.words import Expr, make


def _biased(args: Args) -> Expr:
    x, bias = args[0], args[1] if len(args) > 1 else None
    if x is None:
        raise ValueError("an activation needs an input")
    return x if bias is None else make("add", x, bias)


def _gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args)) if attr(node, "approximate", "none") == "tanh" else gelu_erf(_biased(args))


def _fast_gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args))


def _sigmoid_times(default: float) -> Row:
    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        x = _biased(args)
        return make("mul", x, make("sigmoid", make("mul", x, number(attr(node, "alpha", default), x))))

    return row


def _mish(node: ir.Node, args: Args, opset: int) -> Expr:
    return mish(_biased(args))


ACTIVATIONS: dict[tuple[str, str], Row] = {
    ("", "Gelu"): _gelu,
    ("", "Mish"): _mish,
    ("", "Swish"): _sigmoid_times(1.0),
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): _sigmoid_times(1.702),
}
