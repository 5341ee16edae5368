"""The feed-forward block written down a second time, token by token in plain numpy: the spec is checked against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_ROOT = np.sqrt(2 / np.pi)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-z)))


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))))


FORMULAS = {
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z * ((1 + _erf(z / np.sqrt(2))) / 2).astype(z.dtype),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(_ROOT.astype(z.dtype) * (z + z**3 * z.dtype.type(0.044715)))),
    "gelu_quick": lambda z: z * _sigmoid(z.dtype.type(1.702) * z),
    "silu": lambda z: z * _sigmoid(z),
    "relu_squared": lambda z: np.maximum(z, 0) ** 2,
    "mish": lambda z: z * np.tanh(_softplus(z)),
}


def feed_forward(arrays: Mapping[str, Any], attrs: Mapping[str, Any], kind: type = np.float64) -> np.ndarray:
    """Return the result [… e] computed in floating type ``kind``."""
    given = {n: a.astype(kind) for n, a in arrays.items() if a is not None}
    x = given["x"].reshape(-1, given["w_in"].shape[1])
    y = np.stack([one(row, given, attrs) for row in x]) if len(x) else np.zeros((0, given["w_out"].shape[1]), kind)
    return y.reshape(*given["x"].shape[:-1], given["w_out"].shape[1])


def one(x: np.ndarray, given: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> np.ndarray:
    """Return the result [e] of one token."""
    up = given["w_in"] @ x + given.get("b_in", 0)
    z = given["w_gate"] @ x + given.get("b_gate", 0) if "w_gate" in given else up
    with np.errstate(over="ignore"):
        active = FORMULAS[attrs.get("activation", "relu")](z)
    terms = active * up if "w_gate" in given else active
    by = attrs.get("select_by", "preactivation")
    scores = {"preactivation": z, "magnitude": np.abs(active), "contribution": np.abs(terms)}[by]
    chosen = np.argsort(-scores, kind="stable")[: attrs.get("k") or None]
    return np.asarray(terms[chosen] @ given["w_out"][chosen] + given.get("b_out", 0))
