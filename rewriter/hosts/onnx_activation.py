"""READ for activations that are one operator: spelled out again in the words of the alphabet."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, Row, attr
from rewriter.hosts.spelled import number, softplus
from runtime_ops.activations import gelu, gelu_tanh, mish
from runtime_ops.words import Expr, make


def _biased(args: Args) -> Expr:
    x, bias = args[0], args[1] if len(args) > 1 else None
    if x is None:
        raise ValueError("an activation needs an input")
    return x if bias is None else make("add", x, bias)


def _gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args)) if attr(node, "approximate", "none") == "tanh" else gelu(_biased(args))


def _fast_gelu(node: ir.Node, args: Args, opset: int) -> Expr:
    return gelu_tanh(_biased(args))


def _sigmoid_times(default: float) -> Row:
    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        x = _biased(args)
        return make("mul", x, make("sigmoid", make("mul", x, number(attr(node, "alpha", default), x))))

    return row


def _mish(node: ir.Node, args: Args, opset: int) -> Expr:
    return mish(_biased(args))


def _softplus(node: ir.Node, args: Args, opset: int) -> Expr:
    return softplus(_biased(args))


def _clip(node: ir.Node, args: Args, opset: int) -> Expr:
    out = _biased(args[:1])
    for index, name, word in ((1, "min", "max"), (2, "max", "min")):
        bound, old = args[index] if len(args) > index else None, attr(node, name)
        if bound is None and old is not None:
            bound = number(old, out)
        out = out if bound is None else make(word, out, bound)
    return out


def _positive_and(negative: Callable[[Expr, ir.Node], Expr]) -> Row:
    """Return max(x, 0) plus something of min(x, 0)."""

    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        x = _biased(args)
        return make("add", make("relu", x), negative(make("min", x, number(0.0, x)), node))

    return row


def _leaky(low: Expr, node: ir.Node) -> Expr:
    return make("mul", low, number(attr(node, "alpha", 0.01), low))


def _elu(low: Expr, node: ir.Node) -> Expr:
    return make("mul", make("sub", make("exp", low), number(1.0, low)), number(attr(node, "alpha", 1.0), low))


def _hard_sigmoid(x: Expr, slope: float, middle: float) -> Expr:
    line = make("add", make("mul", x, number(slope, x)), number(middle, x))
    return make("min", make("max", line, number(0.0, x)), number(1.0, x))


def _hard(node: ir.Node, args: Args, opset: int) -> Expr:
    x = _biased(args)
    if node.op_type == "HardSwish":
        return make("mul", x, _hard_sigmoid(x, 1 / 6, 0.5))
    return _hard_sigmoid(x, attr(node, "alpha", 0.2), attr(node, "beta", 0.5))


ACTIVATIONS: dict[tuple[str, str], Row] = {
    ("", "Gelu"): _gelu,
    ("", "Mish"): _mish,
    ("", "Softplus"): _softplus,
    ("", "Clip"): _clip,
    ("", "LeakyRelu"): _positive_and(_leaky),
    ("", "Elu"): _positive_and(_elu),
    ("", "HardSigmoid"): _hard,
    ("", "HardSwish"): _hard,
    ("", "Swish"): _sigmoid_times(1.0),
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): _sigmoid_times(1.702),
}
