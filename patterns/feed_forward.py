"""Reads feed-forward blocks: anchored on the second product, inwards through a pointwise region to the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patterns import activation
from patterns.scores import place
from patterns.site import FeedForwardSite
from rewriter.hosts.base import Graphs
from rewriter.report import Step
from runtime_ops.dims import Dim
from runtime_ops.words import Expr

_REGION = 40  # nodes; activations are at most about a dozen


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product with constant weights: ``out = x · w (+ bias)``."""

    x: Expr
    out: Expr
    width: Dim | None  # length of the result's last axis
    bias: bool


def read(graphs: Graphs) -> Iterator[FeedForwardSite]:
    """Yield every block linear → activation (gated or not) → linear of a model."""
    constants: dict[int, bool] = {}
    for product in graphs.exprs_of("matmul"):
        if is_constant(product.args[1], constants) and not is_constant(product.args[0], constants):
            site = _block(graphs, product, constants)
            if site is not None:
                yield site


def is_constant(expr: Expr, memo: dict[int, bool]) -> bool:
    """Return whether a tensor depends on weights alone (weights read through casts, scales, dequantisation)."""
    stack = [expr]
    while stack:
        node = stack[-1]
        if id(node) in memo:
            stack.pop()
            continue
        open_args = [a for a in node.args if id(a) not in memo]
        if open_args and node.word not in ("const", "input"):
            stack.extend(open_args)
            continue
        memo[id(node)] = node.word == "const" or (bool(node.args) and all(memo[id(a)] for a in node.args))
        stack.pop()
    return memo[id(expr)]


def _block(graphs: Graphs, product: Expr, constants: dict[int, bool]) -> FeedForwardSite | None:
    inner = unquantised(product.args[0])
    sources = _sources(inner, constants)
    if sources is None or not 1 <= len(sources) <= 2:
        return None
    first, *rest = sources
    if rest:
        found = activation.gated(inner, first[0], rest[0][0])
        if found is None:
            return None
        name, gate = found[0], True
    else:
        single = activation.name(inner, first[0])
        if single is None:
            return None
        name, gate = single, False
    linear = first[1]
    steps = (Step(node=place(first[0]), met="linear", meaning=f"inner width {first[0].shape and first[0].shape[-1]}"),)
    return FeedForwardSite(
        anchor=graphs.node_name(product),
        activation=name,
        gated=gate,
        model_width=product.shape[-1] if product.shape else None,
        inner_width=inner.shape[-1] if inner.shape else None,
        bias_in=linear.bias,
        x=linear.x,
        out=product,
        node=graphs.node(product),
        steps=steps,
    )


def unquantised(x: Expr) -> Expr:
    """Return the tensor behind its quantisation, dynamic (less a zero point) or QDQ."""
    while True:
        if x.word == "sub" and x.args[0].word == "cast" and x.args[0].dtype != np.float32:
            x = x.args[0].args[0]
        elif x.word == "opaque" and x.attrs["op"] in _QUANTISERS:
            x = x.args[0]
        else:
            return x


_QUANTISERS = ("DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear")


def _sources(inner: Expr, constants: dict[int, bool]) -> list[tuple[Expr, Linear]] | None:
    """Return the linear results that a pointwise region starts from; None if it starts from anything else."""
    found: dict[int, tuple[Expr, Linear]] = {}
    seen: set[int] = set()
    stack = [inner]
    while stack:
        node = unquantised(stack.pop())
        if id(node) in seen or node.number() is not None:
            continue
        seen.add(id(node))
        linear = _linear(node, constants)
        if linear is not None:
            found[id(node)] = (node, linear)
        elif len(seen) > _REGION or not _pointwise(node):
            return None
        else:
            stack.extend(node.args[:1] if node.word in activation.VIEWS else node.args)
    return [] if id(inner) in found else list(found.values())


def _pointwise(node: Expr) -> bool:
    known = node.word in activation.POINTWISE or node.word in activation.VIEWS
    return known or (node.word == "opaque" and node.attrs["op"] in activation.POINTWISE_OPS)


def _linear(expr: Expr, constants: dict[int, bool]) -> Linear | None:
    """Read a product with constant weights, its bias, and the scales of a quantised one."""
    bias, node = False, expr
    while True:
        if node.word == "matmul":
            x, w = node.args
            plain = is_constant(w, constants) and not is_constant(x, constants)
            return Linear(x=x, out=expr, width=expr.shape[-1] if expr.shape else None, bias=bias) if plain else None
        inner = _inside(node, constants)
        if inner is None:
            return None
        bias, node = bias or node.word == "add", inner


def _inside(node: Expr, constants: dict[int, bool]) -> Expr | None:
    """Return what a bias, a scale, a slice (packed gate and up) or a view is applied to."""
    if unquantised(node) is not node:
        return unquantised(node)
    if node.word in ("add", "mul"):
        x, y = node.args
        if is_constant(x, constants) or (node.word == "mul" and _one_element(x)):
            x, y = y, x
        vector = is_constant(y, constants) and y.number() is None and (y.rank or 0) <= 1
        return x if vector or (node.word == "mul" and _one_element(y) and y.number() is None) else None
    return node.args[0] if node.word in (*activation.VIEWS, "slice") else None


def _one_element(x: Expr) -> bool:
    return x.shape is not None and all(d == 1 for d in x.shape)
