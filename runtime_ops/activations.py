"""The pointwise activations by name, said in the alphabet; readers recognise them and operations apply them."""

from __future__ import annotations

import math
from collections.abc import Callable

from runtime_ops.words import Expr, const, make


def _like(z: Expr, value: float) -> Expr:
    """Return a constant of the type of ``z``."""
    return const(value, z.dtype)


def relu(z: Expr) -> Expr:
    """Return max(z, 0)."""
    return make("relu", z)


def gelu(z: Expr) -> Expr:
    """Return z/2 · (1 + erf(z/√2))."""
    share = make("add", make("erf", make("mul", z, _like(z, math.sqrt(0.5)))), _like(z, 1.0))
    return make("mul", make("mul", z, _like(z, 0.5)), share)


def gelu_tanh(z: Expr) -> Expr:
    """Return z/2 · (1 + tanh(√(2/π) (z + 0.044715 z³)))."""
    cubed = make("mul", make("mul", z, z), z)
    inner = make("add", z, make("mul", cubed, _like(z, 0.044715)))
    share = make("add", make("tanh", make("mul", inner, _like(z, math.sqrt(2 / math.pi)))), _like(z, 1.0))
    return make("mul", make("mul", z, _like(z, 0.5)), share)


def gelu_quick(z: Expr) -> Expr:
    """Return z · sigmoid(1.702 z)."""
    return make("mul", z, make("sigmoid", make("mul", z, _like(z, 1.702))))


def silu(z: Expr) -> Expr:
    """Return z · sigmoid(z)."""
    return make("mul", z, make("sigmoid", z))


def relu_squared(z: Expr) -> Expr:
    """Return max(z, 0)²."""
    positive = make("relu", z)
    return make("mul", positive, positive)


def mish(z: Expr) -> Expr:
    """Return z · tanh(log(1 + eᶻ))."""
    # z·tanh(log(1 + w)) with w = e^z; from z = 20 on the factor is 1 in float64 too, and w² must not overflow
    w = make("exp", make("min", z, _like(z, 20.0)))
    n = make("mul", w, make("add", w, _like(z, 2.0)))
    return make("mul", z, make("div", n, make("add", n, _like(z, 2.0))))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_quick": gelu_quick,
    "silu": silu,
    "relu_squared": relu_squared,
    "mish": mish,
}
