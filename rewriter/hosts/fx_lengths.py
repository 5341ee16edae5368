"""Lengths in torch graphs: the shapes that metadata tells, as polynomials of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch._guards import detect_fake_mode

from rewriter.hosts.fx_row import numpy_type
from runtime_ops.dims import Dim, Sym, divide

Told = tuple[tuple[Dim, ...] | None, "np.dtype[Any] | None"]


class Lengths:
    """Reads lengths off the metadata of one graph's nodes.

    Args:
        graph: the graph.
        free: take the lengths that were seen as examples: only ranks, and lengths of 1, are relied on.
    """

    def __init__(self, graph: torch.fx.Graph, free: bool) -> None:
        self._free = free
        mode = detect_fake_mode([t for n in graph.nodes if isinstance(t := n.meta.get("val"), torch.Tensor)])
        env = None if mode is None else mode.shape_env
        # a program runs only where these hold; torch writes some of them as guards, and leaves the symbols apart
        self._same = {} if env is None else equal(guard.expr for guard in env.guards)

    def shape(self, told: Any, name: str) -> Told:
        """Return shape and type that a node's metadata tells; free lengths are named after ``name``."""
        if not hasattr(told, "shape") or not hasattr(told, "dtype"):
            return None, None
        shape = tuple(self.length(d) for d in told.shape)
        if self._free:
            shape = tuple(d if d == 1 else Sym.named(f"?{name}.{i}") for i, d in enumerate(shape))
        return shape, numpy_type(told.dtype)

    def length(self, value: Any) -> Dim:
        """Return a length of torch, a number or a symbolic one."""
        return int(value) if isinstance(value, int) else _polynomial(value.node.expr, self._same)


def _polynomial(expr: Any, same: Mapping[str, str]) -> Dim:
    """Return a sympy expression as a polynomial; what has no polynomial form becomes a symbol of its own."""
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        return Sym.named(same.get(str(expr), str(expr)))
    if expr.is_Add or expr.is_Mul:
        parts = [_polynomial(arg, same) for arg in expr.args]
        total: Dim = 0 if expr.is_Add else 1
        for part in parts:
            total = total + part if expr.is_Add else total * part
        return total
    if type(expr).__name__ in ("FloorDiv", "CleanDiv"):
        return divide(*(_polynomial(arg, same) for arg in expr.args))
    return Sym.named(f"({expr})")


def equal(guards: Iterable[Any]) -> dict[str, str]:
    """Return what stands for symbols that guards of the form x + … = y + … say are one, by the symbol."""
    stands: dict[str, str] = {}

    def root(name: str) -> str:
        return root(stands[name]) if name in stands else name

    for guard in guards:
        terms = (guard.lhs - guard.rhs).as_coefficients_dict() if type(guard).__name__ == "Equality" else {}
        if len(terms) == 2 and all(term.is_Symbol for term in terms) and set(terms.values()) == {1, -1}:
            first, second = sorted(root(str(term)) for term in terms)
            if first != second:
                stands[second] = first
    return {name: root(name) for name in stands}
