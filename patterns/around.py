"""What lies around an attention: the cache, rotary embedding, norms and projections that q, k and v come through.

Read from each operand inwards. Every peel takes one layer off and says what it was; ``None`` means that it was looked
for and not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from patterns import rotary
from patterns.scores import Frame, place
from patterns.site import Operand
from patterns.surroundings import Cache, Norm, Projection, Rope
from rewriter import layout
from rewriter.hosts.base import Graphs
from runtime_ops.dims import Dim
from runtime_ops.interpret import has_handle, topological
from runtime_ops.words import Expr, make

Found = tuple[Expr, layout.Axes]
_VIEWS = ("reshape", "transpose", "unsqueeze", "squeeze", "expand")
_PASSED = (*_VIEWS, "cast", "concat")


@dataclass(kw_only=True)
class _Side:
    """What one operand comes through, outside in."""

    past: Operand | None = None
    new: Operand | None = None
    present: Expr | None = None
    rope: Rope | None = None
    norm: Norm | None = None
    projection: Projection | None = None


def read(graphs: Graphs, q: Found, k: Found, v: Found, frame: Frame, beside: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the fields of a site that say what lies around it.

    Args:
        graphs: the model.
        q, k, v: factors of the two products with their layouts.
        frame: the layout of the scores.
        beside: other outputs of a fused node, which may hold the presents.
    """
    width = next((a.size for axis in q[1] for a in axis if a.name == "d"), None)
    sides = {name: _side(*found, frame.t, width) for name, found in (("q", q), ("k", k), ("v", v))}
    return {
        "rope": _both(sides["q"].rope, sides["k"].rope),
        "qk_norm": _both(sides["q"].norm, sides["k"].norm),
        "cache": _cache(graphs, sides["k"], sides["v"], beside),
        "projections": {name: side.projection for name, side in sides.items()},
    }


def _both(q: Any, k: Any) -> Any:
    """Return what is done to queries and keys alike; what is done to one alone says so."""
    if q is None or k is None:
        found = [part.on(side) for part, side in ((q, "q"), (k, "k")) if part is not None]
        return found[0] if found else None
    return q if q == k else None


def _cache(graphs: Graphs, k: _Side, v: _Side, beside: Mapping[Any, Any]) -> Cache | None:
    if k.past is None or v.past is None or k.new is None or v.new is None:
        return None
    return Cache(
        past=tuple(place(root(side.value)) for side in (k.past, v.past)),
        presents=tuple(_present(graphs, side.present, beside) for side in (k, v)),
        past_k=k.past,
        past_v=v.past,
        new_k=k.new,
        new_v=v.new,
    )


def _present(graphs: Graphs, joined: Expr | None, beside: Mapping[Any, Any]) -> str | None:
    """Return the name of the output that gives a cache, whole or as a view or part."""
    for handle, made in beside.items():
        if made is not None and any(x is joined for x in topological(made, has_handle)):
            return str(handle.name)
    found = [joined] if joined is not None else []
    while found:
        expr = found.pop()
        if id(expr) in graphs.outputs:
            return place(expr)
        found += [user for user in graphs.readers(expr) if user.word in _PASSED]
    return None


def _side(expr: Expr, axes: layout.Axes | None, t: layout.Axis, width: Dim | None) -> _Side:
    """Read inwards from one factor of a product; the layout is carried as long as views alone are met."""
    side, channels = _Side(), None
    while True:
        joined = _joined(expr, axes, t) if side.past is None and axes is not None else None
        turned = rotary.read(expr, width) if side.rope is None else None
        normed = _normed(expr) if side.norm is None else None
        inner = _inner(expr, axes)
        if joined is not None and axes is not None:
            side.past, side.new, side.present = *(Operand(value=x, axes=axes) for x in joined), expr
            expr = joined[1]
        elif turned is not None:
            side.rope, channels = turned
            expr, axes = channels.source, None
        elif normed is not None:
            form, length, expr = normed
            side.norm = Norm(form=form, over="head" if length == width else "all heads")
            axes, channels = None, None
        elif inner is not None:
            expr, axes = inner
        else:
            side.projection = _projection(expr, channels)
            return side


def _inner(expr: Expr, axes: layout.Axes | None) -> tuple[Expr, layout.Axes | None] | None:
    """Return what a view, cast or product with a number is taken of; with its layout if that is known."""
    view = None if axes is None else layout.back(expr, axes)
    scaled = layout.scalar_factor(expr)
    if view is not None:
        return view
    if expr.word == "cast":
        return expr.args[0], axes
    if scaled is not None:
        return scaled[0], axes if scaled[0].rank == expr.rank else None
    return (expr.args[0], None) if expr.word in _VIEWS else None


def _joined(expr: Expr, axes: layout.Axes, t: layout.Axis) -> tuple[Expr, Expr] | None:
    """Return (past, new) if a tensor joins what came from before, an input of the graph, with new keys or values."""
    if expr.word == "where" and expr.args[2].number() == 0.0:  # rows put behind each sequence's own past
        rows = expr.args[1]
        flat = rows.args[0] if rows.word == "gather" else rows
        expr = flat.args[0] if flat.word == "reshape" else expr
    if expr.word != "concat" or len(axes) != expr.rank or len(expr.args) != 2 or axes[expr.attrs["axis"]] != t:
        return None
    past, new = expr.args
    return (past, new) if root(past).word == "input" else None


def root(expr: Expr) -> Expr:
    """Return what a tensor is a view or a part of."""
    while expr.word in (*_VIEWS, "slice", "gather", "cast"):
        expr = expr.args[0]
    return expr


# -- norms ----------------------------------------------------------------------------------------

_NORMS = {
    "LayerNormalization": "layer",
    "RMSNormalization": "rms",
    "SimplifiedLayerNormalization": "rms",
}


Normed = tuple[str, "Dim | None", Expr]  # form, length of the axis, what is normed


def _normed(expr: Expr) -> Normed | None:
    """Return the norm over the last axis that ``expr`` is, with a weight or without."""
    if expr.word == "opaque" and expr.attrs["op"] in _NORMS and len(expr.args) > 1:
        width = expr.args[1].shape[-1] if expr.args[1].shape else None
        return _NORMS[expr.attrs["op"]], width, expr.args[0]
    if expr.word == "add" and any(_weight(a) for a in expr.args):  # the shift of a layer norm
        inner = next(a for a in expr.args if not _weight(a)) if not all(map(_weight, expr.args)) else None
        found = None if inner is None else _normed(inner)
        return found if found is not None and found[0] == "layer" else None
    if expr.word == "cast":
        return _normed(expr.args[0])
    if expr.word == "mul" and any(_weight(a) for a in expr.args):
        inner = next((a for a in expr.args if not _weight(a)), None)
        return None if inner is None else _normed(inner)
    return _unit(expr)


def _weight(expr: Expr) -> bool:
    """Return whether a tensor is a constant, or a number more than one."""
    while expr.word in ("cast", "unsqueeze", "reshape", "slice", "add"):
        expr = expr.args[1 if expr.word == "add" and expr.args[0].number() is not None else 0]
    return expr.word == "const"


def _unit(expr: Expr) -> Normed | None:
    """Read x / √(mean(x²) + ε) however the root is written; mean 0 first is a layer norm, a sum an L2 norm."""
    if expr.word not in ("mul", "div"):
        return None
    for side, root in (expr.args, tuple(reversed(expr.args))):
        square, x = _under_root(root, inverse=expr.word == "mul"), _uncast(side)
        total = None if square is None else _reduced(square)
        squared = None if total is None else _squared(total.args[0])
        if total is None or squared is None or x.shape is None or not _alike(squared, x):
            continue
        if total.attrs["axes"][0] not in (-1, len(x.shape) - 1):
            return None
        if total.word == "sum":
            return "l2", x.shape[-1], x
        return ("layer", x.shape[-1], x.args[0]) if _centred(x) else ("rms", x.shape[-1], x)
    return None


def _alike(a: Expr, b: Expr) -> bool:
    """Return whether two expressions are one, or one that a graph computes twice."""
    if a.word in ("opaque", "input", "const") or (a.word, a.attrs, len(a.args)) != (b.word, b.attrs, len(b.args)):
        return a is b
    return a is b or all(x is y for x, y in zip(a.args, b.args, strict=True))


def _centred(x: Expr) -> bool:
    """Return whether a tensor is another less its mean."""
    mean = _uncast(x.args[1]) if x.word == "sub" else x
    return mean.word == "mean" and _uncast(mean.args[0]) is _uncast(x.args[0])


def _under_root(expr: Expr, inverse: bool) -> Expr | None:
    """Return y where ``expr`` is √y, or 1/√y if ``inverse``."""
    expr = _uncast(expr)
    if inverse and expr.word == "div" and expr.args[0].number() == 1.0:
        expr, inverse = _uncast(expr.args[1]), False
    if expr.word == "pow" and expr.args[1].number() == (-0.5 if inverse else 0.5):
        return expr.args[0]
    if inverse and expr.word == "sqrt" and expr.args[0].word == "div" and expr.args[0].args[0].number() == 1.0:
        return expr.args[0].args[1]
    return expr.args[0] if not inverse and expr.word == "sqrt" else None


def _reduced(expr: Expr) -> Expr | None:
    """Return the mean or sum over one axis that is kept away from zero by a small number."""
    while expr.word in ("add", "max", "cast", "expand"):
        number = expr.word in ("add", "max") and expr.args[0].number() is not None
        expr = expr.args[1] if number else expr.args[0]
    return expr if expr.word in ("mean", "sum") and len(expr.attrs["axes"]) == 1 else None


def _squared(expr: Expr) -> Expr | None:
    expr = _uncast(expr)
    twice = expr.word == "mul" and expr.args[0] is expr.args[1]
    return _uncast(expr.args[0]) if twice or (expr.word == "pow" and expr.args[1].number() == 2.0) else None


def _uncast(expr: Expr) -> Expr:
    while expr.word == "cast":
        expr = expr.args[0]
    return expr


# -- projections ----------------------------------------------------------------------------------


def _projection(expr: Expr, channels: rotary.Channels | None) -> Projection | None:
    """Return the product with constant weights that a tensor holds channels of."""
    taken = rotary.followed(expr)
    if channels is None or taken.source is not channels.source:
        channels = taken
    x, bias = _unbiased(channels.source)
    weight = x.args[1] if x.word == "matmul" else None
    if weight is None or root(weight).word != "const" or not weight.shape or not isinstance(weight.shape[-1], int):
        return None
    total, used = weight.shape[-1], np.unique(channels.index[channels.index >= 0] % weight.shape[-1])
    start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return Projection(
        x=x.args[0],
        weight=weight,
        bias=bias,
        biased=bias is not None,
        width=len(used),
        columns=(start, stop) if stop - start == len(used) else None,
        packed=len(used) < total,
    )


def _unbiased(x: Expr) -> tuple[Expr, Expr | None]:
    """Return a tensor without the constants that are added to it, and those."""
    bias: Expr | None = None
    while x.word == "add" and (where := next((i for i in (0, 1) if root(x.args[i]).word == "const"), None)) is not None:
        more = x.args[where]
        bias = more if bias is None else make("add", bias, more)
        x = x.args[1 - where]
        while x.word in (*_VIEWS, "cast"):
            x = x.args[0]
    return x, bias
