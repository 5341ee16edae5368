"""What a feed-forward site's fields say, computed in float64 from the formula alone, to compare with the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patterns.activation import ACTIVATIONS
from patterns.site import FeedForwardSite, Operand
from rewriter import layout
from rewriter.layout import Axis
from runtime_ops.interpret import golden
from runtime_ops.words import Expr

Leaves = Mapping[Any, np.ndarray]


def formula(site: FeedForwardSite, leaves: Leaves) -> np.ndarray:
    """Return act(x·w_inᵀ + b_in) [⊙ …]·w_outᵀ + b_out with rows in the order of x and m last."""
    x = _value(site.x, (*site.rows, _axis(site.x, "m")), leaves)
    up, act = _linear(x, site.w_in, site.b_in, "f", "m", leaves), ACTIVATIONS[site.activation]
    gate = None if site.w_gate is None else _linear(x, site.w_gate, site.b_gate, "f", "m", leaves)
    inner = act(up) if gate is None else act(gate) * up
    return _linear(inner, site.w_out, site.b_out, "m", "f", leaves)


def truth(site: FeedForwardSite, leaves: Leaves) -> np.ndarray:
    """Return what the graph itself computes for the block, arranged alike."""
    return _value(site.out, (*site.rows, _axis(site.out, "m")), leaves)


def _linear(x: np.ndarray, w: Operand, b: Expr | None, to: str, over: str, leaves: Leaves) -> np.ndarray:
    y = x @ _value(w, (_axis(w, to), _axis(w, over)), leaves).T
    return y if b is None else y + golden(b, leaves)


def _axis(operand: Operand, letter: str) -> Axis:
    return tuple(a for axis in operand.axes for a in axis if a.letter == letter)


def _value(operand: Operand, target: layout.Axes, leaves: Leaves) -> np.ndarray:
    arranged = operand.arranged(target)
    assert arranged is not None
    return golden(arranged, leaves)
