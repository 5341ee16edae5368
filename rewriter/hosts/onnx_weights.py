"""Weights in another layout: what a plan makes of constants alone becomes a new initializer, written with the model.

Nothing is computed before the model is saved, and then one tensor at a time: memory does not grow with the weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.plan import text
from runtime_ops import interpret
from runtime_ops.words import Expr


class Weights:
    """The initializers that plans add to a graph; what is made twice of the same tensors is added once."""

    def __init__(self, graph: ir.Graph, stem: str) -> None:
        self._graph = graph
        self._stem = stem
        self._made: dict[Any, Expr] = {}

    def folded(self, expr: Expr) -> Expr:
        """Return ``expr`` with initializers in the place of what is made of constants alone."""
        done: dict[int, Expr] = {}
        for node in interpret.topological(expr, lambda e: e.handle is not None or _is_constant(e)):
            if node.handle is None and node.word != "const" and _is_constant(node):
                done[id(node)] = self._initializer(node)
            elif any(done.get(id(a), a) is not a for a in node.args) and node.handle is None:
                done[id(node)] = dataclasses.replace(node, args=tuple(done.get(id(a), a) for a in node.args))
        return done.get(id(expr), expr)

    def _initializer(self, expr: Expr) -> Expr:
        key = _key(expr)
        if key not in self._made:
            told = text(expr)
            tensor = ir.LazyTensor(
                lambda: ir.tensor(np.ascontiguousarray(evaluate(expr))),
                dtype=ir.DataType.from_numpy(np.dtype(expr.dtype)),
                shape=ir.Shape([int(d) for d in expr.shape or ()]),  # type: ignore[arg-type]
                doc_string=told,
            )
            value = ir.val(self._free_name(told), tensor.dtype, tensor.shape, const_value=tensor)
            tensor.name = value.name
            self._graph.register_initializer(value)
            self._made[key] = Expr("const", (), {}, expr.shape, expr.dtype, None, value)
        return self._made[key]

    def _free_name(self, told: str) -> str:
        name = f"{self._stem}_{told}"
        return name if name not in self._graph.initializers else f"{name}_{len(self._made)}"


def _is_constant(expr: Expr) -> bool:
    """Return whether a tensor of known shape and type depends on constants alone, looking through the graph."""
    if expr.shape is None or expr.dtype is None or not all(isinstance(d, int) for d in expr.shape):
        return False
    return all(e.word == "const" or (e.word in interpret.EVAL and e.args) for e in _nodes(expr))


def _nodes(expr: Expr) -> list[Expr]:
    return interpret.topological(expr, lambda e: e.word == "const")


def evaluate(expr: Expr) -> np.ndarray:
    """Return the value of an expression of constants, in their own types."""
    done: dict[int, np.ndarray] = {}
    for node in _nodes(expr):
        if node.word != "const":
            done[id(node)] = np.asarray(interpret.EVAL[node.word]([done[id(a)] for a in node.args], node.attrs))
        else:
            done[id(node)] = node.known if node.known is not None else node.handle.const_value.numpy()
    return done[id(expr)]


def _key(expr: Expr) -> Any:
    """Return what two expressions share exactly if they have the same value."""
    if expr.word == "const":
        return expr.handle if expr.handle is not None else (expr.known.tobytes() if expr.known is not None else None)
    return (expr.word, repr(sorted(expr.attrs.items())), *(_key(a) for a in expr.args))
