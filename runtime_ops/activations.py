"""The pointwise activations by name, said in the alphabet; readers recognise them and operations apply them."""

from __future__ import annotations

import math
from collections.abc import Callable

from runtime_ops.words import Expr, const, make


def _relu(z: Expr) -> Expr:
    return make("relu", z)


def _gelu(z: Expr) -> Expr:
    share = make("add", make("erf", make("mul", z, const(math.sqrt(0.5)))), const(1.0))
    return make("mul", make("mul", z, const(0.5)), share)


def _gelu_tanh(z: Expr) -> Expr:
    cubed = make("mul", make("mul", z, z), z)
    inner = make("add", z, make("mul", cubed, const(0.044715)))
    share = make("add", make("tanh", make("mul", inner, const(math.sqrt(2 / math.pi)))), const(1.0))
    return make("mul", make("mul", z, const(0.5)), share)


def _gelu_quick(z: Expr) -> Expr:
    return make("mul", z, make("sigmoid", make("mul", z, const(1.702))))


def _silu(z: Expr) -> Expr:
    return make("mul", z, make("sigmoid", z))


def _relu_squared(z: Expr) -> Expr:
    positive = make("relu", z)
    return make("mul", positive, positive)


def _mish(z: Expr) -> Expr:
    # z·tanh(log(1 + w)) with w = e^z; from z = 20 on the factor is 1 in float64 too, and w² must not overflow
    w = make("exp", make("min", z, const(20.0)))
    n = make("mul", w, make("add", w, const(2.0)))
    return make("mul", z, make("div", n, make("add", n, const(2.0))))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "gelu_quick": _gelu_quick,
    "silu": _silu,
    "relu_squared": _relu_squared,
    "mish": _mish,
}
