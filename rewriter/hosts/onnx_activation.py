"""READ for activations that are one operator: spelled out again in the words of the alphabet."""

from __future__ import annotations

import math

import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, Row, attr
from runtime_ops.words import Expr, const, make


def _number(value: float, like: Expr) -> Expr:
    return const(value, like.dtype)


def _biased(args: Args) -> Expr:
    x, bias = args[0], args[1] if len(args) > 1 else None
    if x is None:
        raise ValueError("an activation needs an input")
    return x if bias is None else make("add", x, bias)


def gelu_erf(x: Expr) -> Expr:
    """Return x/2 · (1 + erf(x/√2))."""
    inner = make("erf", make("div", x, _number(math.sqrt(2.0), x)))
    return make("mul", make("mul", x, _number(0.5, x)), make("add", inner, _number(1.0, x)))


def gelu_tanh(x: Expr) -> Expr:
    """Return x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    cube = make("mul", make("mul", make("mul", x, x), x), _number(0.044715, x))
    inner = make("tanh", make("mul", make("add", x, cube), _number(math.sqrt(2.0 / math.pi), x)))
    return make("mul", make("mul", x, _number(0.5, x)), make("add", inner, _number(1.0, x)))


def softplus(x: Expr) -> Expr:
    """Return max(x, 0) + log(1 + exp(-|x|)), which no x overflows."""
    low = make("min", x, make("neg", x))
    return make("add", make("relu", x), make("log", make("add", make("exp", low), _number(1.0, x))))


def _gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args)) if attr(node, "approximate", "none") == "tanh" else gelu_erf(_biased(args))


def _fast_gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args))


def _sigmoid_times(default: float) -> Row:
    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        x = _biased(args)
        return make("mul", x, make("sigmoid", make("mul", x, _number(attr(node, "alpha", default), x))))

    return row


def _mish(node: ir.Node, args: Args, opset: int) -> Expr:
    x = _biased(args)
    return make("mul", x, make("tanh", softplus(x)))


def _softplus(node: ir.Node, args: Args, opset: int) -> Expr:
    return softplus(_biased(args))


ACTIVATIONS: dict[tuple[str, str], Row] = {
    ("", "Gelu"): _gelu,
    ("", "Mish"): _mish,
    ("", "Softplus"): _softplus,
    ("", "Swish"): _sigmoid_times(1.0),
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): _sigmoid_times(1.702),
}
