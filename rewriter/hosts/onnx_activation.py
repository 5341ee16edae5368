"""READ for activations that are one operator: spelled out again in the words of the alphabet."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from rewriter.hosts import spelled
from rewriter.hosts.onnx_row import Args, Row, attr
from rewriter.hosts.spelled import number
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


def _plain(spell: Callable[[Expr], Expr]) -> Row:
    return lambda node, args, opset: spell(_biased(args))


def _clip(node: ir.Node, args: Args, opset: int) -> Expr:
    out = _biased(args[:1])
    bounds: list[Expr | None] = []
    for index, name in ((1, "min"), (2, "max")):  # inputs, or attributes in old opsets
        bound, old = args[index] if len(args) > index else None, attr(node, name)
        bounds.append(number(old, out) if bound is None and old is not None else bound)
    return spelled.clipped(out, *bounds)


def _leaky_relu(node: ir.Node, args: Args, opset: int) -> Expr:
    return spelled.leaky_relu(_biased(args), attr(node, "alpha", 0.01))


def _elu(node: ir.Node, args: Args, opset: int) -> Expr:
    return spelled.elu(_biased(args), attr(node, "alpha", 1.0))


def _hard_sigmoid(node: ir.Node, args: Args, opset: int) -> Expr:
    return spelled.hard_sigmoid(_biased(args), attr(node, "alpha", 0.2), attr(node, "beta", 0.5))


ACTIVATIONS: dict[tuple[str, str], Row] = {
    ("", "Gelu"): _gelu,
    ("", "Mish"): _plain(mish),
    ("", "Softplus"): _plain(spelled.softplus),
    ("", "Clip"): _clip,
    ("", "LeakyRelu"): _leaky_relu,
    ("", "Elu"): _elu,
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "HardSwish"): _plain(spelled.hard_swish),
    ("", "Swish"): _sigmoid_times(1.0),
    ("com.microsoft", "Gelu"): _gelu,
    ("com.microsoft", "BiasGelu"): _gelu,
    ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): _sigmoid_times(1.702),
}
