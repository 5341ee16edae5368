"""Which activation a pointwise subgraph is: decided by its numbers, not by its spelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from patterns.linear import QUANTISERS
from runtime_ops import activations, interpret
from runtime_ops.words import Expr, symbol

_LINE = np.linspace(-8.0, 8.0, 161)
_FAR = np.array([10.0, 20.0, 50.0, 100.0, 1e3, 1e4])  # where a limit would show
_GRID = np.concatenate([_LINE, np.linspace(-0.5, 0.5, 21), _FAR, -_FAR])
_FACTORS = np.concatenate([np.linspace(-8.0, 8.0, 9), [-0.3, 0.3], _FAR, -_FAR])
_CLOSE = 2e-6  # constants of exporters have float32 digits; tanh-GELU and erf-GELU differ by 4e-4


def _numbers(function: Callable[[Expr], Expr]) -> Callable[[np.ndarray], np.ndarray]:
    result = function(symbol("z", None, np.float32))
    return lambda z: interpret.golden(result, {"z": z})


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))  # overflows nowhere


ACTIVATIONS = {name: _numbers(function) for name, function in activations.ACTIVATIONS.items()}


# What is met between products and is no activation of feed-forward blocks: named, so that a decline can say so.
OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "a sigmoid": _sigmoid,
    "a softplus": lambda z: np.logaddexp(0, z),
    "a ReLU cut off at 6": lambda z: np.clip(z, 0, 6),
    "a hard swish": lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
    "an ELU": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "a leaky ReLU of slope 0.01": lambda z: np.where(z > 0, z, 0.01 * z),
    "a square": np.square,
}


def other(result: Expr, z: Expr) -> str | None:
    """Return the name of a function that is known but no activation of feed-forward blocks."""
    values = _evaluate(result, {z: _GRID})
    return None if values is None else _match(values, OTHERS)


def is_straight(result: Expr, z: Expr) -> bool:
    """Return whether a pointwise subgraph is linear in ``z`` after all."""
    values = _evaluate(result, {z: _LINE})
    return values is not None and np.allclose(np.diff(values, n=2), 0, atol=_CLOSE)


def name(result: Expr, z: Expr) -> str | None:
    """Return the activation that computes ``result`` from ``z``, None if it is none of ``ACTIVATIONS``."""
    values = _evaluate(result, {z: _GRID})
    return None if values is None else _match(values)


def gated(result: Expr, first: Expr, second: Expr) -> tuple[str, Expr, Expr] | None:
    """Return (activation, gate, up) if ``result`` is activation(gate) · up for the two tensors in some order."""
    z, u = (grid.ravel() for grid in np.meshgrid(_GRID, _FACTORS, indexing="ij"))
    for gate, up in ((first, second), (second, first)):
        values = _evaluate(result, {gate: z, up: u})
        if values is None:
            return None
        found = _match(values.reshape(len(_GRID), -1)[:, list(_FACTORS).index(2.0)] / 2)
        if found is not None and np.allclose(values, ACTIVATIONS[found](z) * u, rtol=_CLOSE, atol=_CLOSE):
            return found, gate, up
    return None


def _match(values: np.ndarray, known: Mapping[str, Callable[[np.ndarray], np.ndarray]] = ACTIVATIONS) -> str | None:
    return next((n for n, f in known.items() if np.allclose(values, f(_GRID), rtol=_CLOSE, atol=_CLOSE)), None)


def _evaluate(node: Expr, given: Mapping[Expr, np.ndarray]) -> np.ndarray | None:
    """Return a pointwise expression on a grid, None if it is none; views are followed as if they had its shape."""
    done: dict[int, np.ndarray] = {}
    with np.errstate(all="ignore"):
        for one in interpret.topological(node, lambda e: e in given or e.number() is not None):
            value = _value(one, given, done)
            if value is not None:
                done[id(one)] = value
    return done.get(id(node))


def _value(node: Expr, given: Mapping[Expr, np.ndarray], done: Mapping[int, np.ndarray]) -> np.ndarray | None:
    number = node.number()
    if node in given or number is not None:
        return given[node] if node in given else np.asarray(number)
    values = [done[id(a)] for a in operands(node) if id(a) in done]
    if len(values) != len(operands(node)) or not values:
        return None
    if is_view(node):
        return values[0]
    return np.asarray(interpret.EVAL[node.word](values, node.attrs)) if node.word in POINTWISE else None


def operands(node: Expr) -> tuple[Expr, ...]:
    """Return the arguments whose elements a pointwise operation takes: of a view or a quantisation the first."""
    return node.args[:1] if is_view(node) else node.args


def is_view(node: Expr) -> bool:
    """Return whether a node only turns, rounds or renames the elements of its first argument."""
    if node.word == "cast":
        return interpret.is_float(node.attrs["to"])
    return node.word in VIEWS or (node.word == "opaque" and node.attrs["op"] in QUANTISERS)


def is_pointwise(node: Expr) -> bool:
    """Return whether each element of a node comes from the elements at the same place."""
    return node.word in POINTWISE or is_view(node)


def bends(node: Expr) -> bool:
    """Return whether a pointwise operation is not linear in its operands."""
    if node.word == "div":
        return node.args[1].word != "const"
    if node.word == "mul":
        return all(a.word != "const" for a in node.args)
    return node.word in POINTWISE and node.word not in ("add", "sub", "neg")


def values_at(result: Expr, z: Expr, points: np.ndarray) -> np.ndarray | None:
    """Return what a pointwise subgraph makes of some values of ``z``, None if it is not made of ``z`` alone."""
    return _evaluate(result, {z: points})


VIEWS = ("reshape", "transpose", "unsqueeze", "squeeze", "cast")
_ARITHMETIC = ("add", "sub", "mul", "div", "pow", "max", "min", "neg", "exp", "log", "sqrt")
POINTWISE = frozenset((*_ARITHMETIC, "tanh", "erf", "sigmoid", "relu", "where", "lt", "le"))
