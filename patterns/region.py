"""The region between two products: walked inwards from the second, through pointwise operations, to the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from patterns import activation, linear
from patterns.linear import Linear, Weights
from rewriter import layout
from rewriter.layout import Axes
from runtime_ops.words import Expr

_LARGEST = 40  # nodes; activations are at most about a dozen

# What a near miss may have between its products: one tensor in, one of the same meaning out.
_BETWEEN = frozenset({
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization",
    "BatchNormalization", "InstanceNormalization", "PRelu", "Softsign", "Sin", "Cos", "Dropout",
})  # fmt: skip


@dataclass
class Region:
    """What stands before the second product.

    Attributes:
        inner: the tensor that the second product reads.
        nodes: all pointwise operations and sources, by id.
        sources: the linear results that it starts from.
        between: operations that are not pointwise, or views that mix neurons and rows, with linear results behind.
        stops: whatever else it starts from.
        rounded: operators that round to few bits.
    """

    inner: Expr
    nodes: dict[int, Expr] = field(default_factory=dict)
    sources: dict[Expr, Linear] = field(default_factory=dict)
    between: list[Expr] = field(default_factory=list)
    stops: list[Expr] = field(default_factory=list)
    rounded: set[str] = field(default_factory=set)

    @property
    def bends(self) -> list[Expr]:
        """The operations that make it more than linear, outermost first."""
        return [node for node in self.nodes.values() if node not in self.sources and activation.bends(node)]


def walk(inner: Expr, axes: Axes | None, weights: Weights) -> Region:
    """Return the region from the input of a second product inwards; without a layout no source is read."""
    region = Region(inner=inner)
    stack: list[tuple[Expr, Axes | None]] = [(inner, axes)]
    while stack and len(region.nodes) <= _LARGEST:
        node, axes = stack.pop()
        if id(node) in region.nodes or node in weights:
            continue
        region.nodes[id(node)] = node
        stack.extend(_further(region, node, axes, weights))
    region.stops += [node for node, _ in stack]
    return region


def _further(region: Region, node: Expr, axes: Axes | None, weights: Weights) -> Iterator[tuple[Expr, Axes | None]]:
    """Yield what a node is made of, unless the region starts from it."""
    source = axes and linear.read(node, axes, weights, to="f", over="m")
    if source:
        region.sources[node] = source
    elif activation.is_pointwise(node):
        region.rounded |= {node.attrs["op"]} if node.word == "opaque" else set()
        for arg in activation.operands(node):
            have = _axes_of(arg, node, axes)
            if axes is not None and have is None:
                region.between.append(node)
            yield arg, have
    elif is_between(node):
        region.between.append(node)
        yield node.args[0], linear.aligned(node.args[0], axes) if axes else None
    else:
        constant = node.word == "matmul" and any(a in weights for a in node.args)
        (region.between if constant else region.stops).append(node)


def _axes_of(arg: Expr, node: Expr, axes: Axes | None) -> Axes | None:
    """Return the layout of an argument of a pointwise operation or a view."""
    if axes is None or not activation.is_view(node) or node.word in ("cast", "opaque"):
        return axes and linear.aligned(arg, axes)
    inner = layout.back(node, axes)
    return None if inner is None else inner[1]


def is_between(node: Expr) -> bool:
    """Return whether a node is a norm, a depthwise convolution or an activation that says no word."""
    return node.word == "opaque" and bool(node.args) and (node.attrs["op"] in _BETWEEN or is_depthwise(node))


def is_depthwise(node: Expr) -> bool:
    """Return whether a node is a convolution with one channel for each filter."""
    shape = node.args[1].shape if node.attrs.get("op") == "Conv" and len(node.args) > 1 else None
    return shape is not None and len(shape) > 2 and shape[1] == 1
