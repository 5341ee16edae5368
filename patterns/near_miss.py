"""Why a region between two products is no feed-forward block: declines for what nearly is one, silence for the rest.

There is something to say only where an activation stands between two products with constant weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from patterns import activation
from patterns.linear import Linear, Weights
from patterns.region import Region, is_depthwise, walk
from patterns.scores import place
from patterns.site import Decline
from rewriter.hosts.base import Graphs
from rewriter.report import Step
from runtime_ops.dims import Dim
from runtime_ops.words import Expr

_POINTS = np.array([-100.0, -2.0, -1.0, 0.0, 1.0, 2.0, 100.0])


def decline(graphs: Graphs, second: Linear, region: Region, weights: Weights) -> Decline | None:
    """Return why the region is no block, None if it does not look like one."""
    bends = region.bends
    if region.stops or not bends or not (region.sources or _products(region)):
        return None
    if second.product.args[0] in weights:
        return None  # a 1×1 convolution: convolutional networks are full of them, and nobody looks for blocks there
    if region.between:
        return _between(graphs, second, region)
    count = len(region.sources)
    if count == 1:
        return _one(graphs, second, region)
    if count == 2:
        reason = "two linear results meet between its products, but not as activation(gate) · up by their numbers"
    else:
        reason = f"{count} linear results meet between its products; a block has one, or two if gated"
    return say(graphs, second, region, reason, bends[0])


def _one(graphs: Graphs, second: Linear, region: Region) -> Decline | None:
    [source] = region.sources
    if activation.is_straight(region.inner, source):
        return None
    values = activation.values_at(region.inner, source, _POINTS)
    if values is None:
        reason = "what stands between its products is another function for each neuron, so it is no single activation"
        return say(graphs, second, region, reason, region.bends[0])
    known = activation.other(region.inner, source)
    what = f"{known} stands between its products" if known else f"what stands between its products {_table(values)}"
    reason = f"{what}, which is none of the activations {', '.join(activation.ACTIVATIONS)}"
    return say(graphs, second, region, reason, region.bends[0])


def _table(values: np.ndarray) -> str:
    took, gave = (", ".join(f"{v:.3g}" for v in row) for row in (_POINTS, values))
    return f"takes {took} to {gave}"


def _between(graphs: Graphs, second: Linear, region: Region) -> Decline:
    node = next((node for node in region.between if node.word == "opaque"), region.between[0])
    if node.word == "opaque":
        mixes = "neighbouring tokens" if is_depthwise(node) else _MIXES.get(node.attrs["op"], "")
        kind = "depthwise Conv" if is_depthwise(node) else node.attrs["op"]
        reason = f"a {kind} stands between its products" + (f" and mixes {mixes}" if mixes else "")
    else:
        reason = "between its products the tensor is cut so that neurons of one are rows of the other"
    return say(graphs, second, region, reason, node)


_MIXES = dict.fromkeys(
    ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"),
    "the neurons of a row",
)


def say(graphs: Graphs, second: Linear, region: Region, reason: str, at: Expr) -> Decline:
    """Return a decline that tells how far the reader came: second product, region, first products."""
    return Decline(
        anchor=graphs.node_name(second.product),
        kind="feed-forward",
        reason=reason,
        at=graphs.node_name(at),
        steps=(
            Step(node=graphs.node_name(second.product), met="linear", meaning="second product"),
            *(Step(node=graphs.node_name(node), met=node.word, meaning="pointwise") for node in region.bends),
            *steps(region.sources),
        ),
    )


def steps(sources: Mapping[Expr, Linear]) -> Iterator[Step]:
    """Yield how the first products were read."""
    for node, one in sources.items():
        sizes = {a.name: a.size for axis in one.w.axes for a in axis}
        bias = "" if one.bias is None else ", with a bias"
        yield Step(node=place(node), met="linear", meaning=f"model width {sizes['m']}, inner width {sizes['f']}{bias}")


def experts(graphs: Graphs, product: Expr, weights: Weights) -> Decline | None:
    """Return why a second product that has one matrix for each expert is no block, None if it is none of these."""
    x, w = product.args
    if x in weights or _experts(x, weights)[0] is not None:
        x, w = w, x
    count, chosen = _experts(w, weights)
    if count is None or x in weights:
        return None
    region = walk(x, None, weights)
    firsts = [side for node in _behind_cuts(region) for side in node.args]
    if not region.bends or all(_experts(side, weights)[0] != count for side in firsts):
        return None
    how = "of which the model chooses while it runs" if chosen else "one for each slice of the batch"
    return Decline(
        anchor=graphs.node_name(product),
        kind="feed-forward",
        reason=f"its weights are {count} matrices, {how}: a mixture of experts, which is not read as one block",
        at=graphs.node_name(product),
        steps=(Step(node=graphs.node_name(product), met="matmul", meaning=f"{count} matrices"),),
    )


def grouped(graphs: Graphs, weights: Weights) -> Iterator[Decline]:
    """Yield a decline for every convolution over one position, in groups, behind an activation and another like it."""
    for node in graphs.exprs_of("opaque"):
        count = _groups(node, weights)
        if count == 1:
            continue
        region = walk(node.args[0], None, weights)
        if region.bends and any(_groups(stop, weights) > 1 for stop in region.stops):
            name = graphs.node_name(node)
            reason = f"its products are convolutions in {count} groups; a block's neurons are made of all features"
            yield Decline(anchor=name, kind="feed-forward", reason=reason, at=name)


def _groups(node: Expr, weights: Weights) -> int:
    """Return in how many groups a convolution over one position takes its channels; 1 for all else."""
    if node.word != "opaque" or node.attrs["op"] != "Conv" or len(node.args) < 2 or node.args[1] not in weights:
        return 1
    x, w = (arg.shape or () for arg in node.args[:2])
    if len(w) < 3 or len(x) != len(w) or any(n != 1 for n in w[2:]):
        return 1
    taken, given = w[1], x[1]
    return given // taken if isinstance(taken, int) and isinstance(given, int) and taken else 1


def _products(region: Region) -> list[Expr]:
    return [node for node in (*region.stops, *region.between) if node.word == "matmul"]


def _behind_cuts(region: Region) -> Iterator[Expr]:
    """Yield the products that a region starts from, also where gate and up are cut out of one, biased or not."""
    seen, stack = set(), [*region.stops, *region.between]
    while stack:
        node = stack.pop()
        if node.word == "matmul":
            yield node
        elif id(node) not in seen and node.word in ("slice", "add", *activation.VIEWS):
            stack.extend(node.args if node.word == "add" else node.args[:1])
        seen.add(id(node))


def _experts(w: Expr, weights: Weights) -> tuple[Dim | None, bool]:
    """Return how many matrices weights hold, and whether they are gathered at run time."""
    while w.word in (*activation.VIEWS, "gather") and w not in weights:
        if w.word == "gather" and w.args[0] in weights and w.args[0].rank == 3:
            return (w.args[0].shape or (None,))[0], True
        w = w.args[0]
    several = w in weights and w.rank == 3 and w.shape is not None and w.shape[0] != 1
    return (w.shape or (None,))[0] if several else None, False


FUSED = {
    "MoE": "a MoE operator holds several experts and their router, which is not read as one block",
    "QMoE": "a QMoE operator holds several quantised experts and their router, which is not read as one block",
}


def fused(graphs: Graphs) -> Iterator[Decline]:
    """Yield a decline for every operator that is a mixture of experts."""
    for node in graphs.exprs_of("opaque"):
        if node.attrs["op"] in FUSED:
            name = graphs.node_name(node)
            yield Decline(anchor=name, kind="feed-forward", reason=FUSED[node.attrs["op"]], at=name)
