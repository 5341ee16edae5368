"""Reads feed-forward blocks: anchored on the second product, inwards through a pointwise region to the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from patterns import activation, linear, near_miss
from patterns.linear import Linear, Weights
from patterns.region import Region, walk
from patterns.scores import place
from patterns.site import Decline, FeedForwardSite, Operand
from rewriter import layout
from rewriter.hosts.base import Graphs
from rewriter.layout import Atom, Axes, Axis
from rewriter.report import Step
from runtime_ops.dims import Sym, product
from runtime_ops.words import Expr, symbol

ANY_ROWS: Axis = (Atom("…", Sym.named("…")),)  # the rows of tensors of unknown rank


def read(graphs: Graphs) -> Iterator[FeedForwardSite | Decline]:
    """Yield every block linear → activation (gated or not) → linear of a model, and why near misses are none."""
    weights = Weights()
    for matmul in graphs.exprs_of("matmul"):
        site = _block(graphs, matmul, weights)
        if site is not None:
            yield site
    yield from near_miss.fused(graphs)
    yield from near_miss.grouped(graphs, weights)


def _block(graphs: Graphs, matmul: Expr, weights: Weights) -> FeedForwardSite | Decline | None:
    found = _second(graphs, matmul, weights)
    if found is None:
        return near_miss.experts(graphs, matmul, weights)
    out, second = found
    region = walk(second.x.value, second.x.axes, weights)
    whole = not region.stops and not region.between and region.inner not in region.sources
    meaning = _activation(region) if whole else None
    if meaning is None:
        return near_miss.decline(graphs, second, region, weights)
    return _site(graphs, out, second, region, meaning)


def _second(graphs: Graphs, product: Expr, weights: Weights) -> tuple[Operand, Linear] | None:
    """Return the result of a product with constant weights, with its bias where one directly follows, and its parts."""
    axes = _named(product, weights)
    if axes is None:
        return None
    for out in reversed(list(_ends(graphs, product, axes, weights))):
        second = linear.read(out.value, out.axes, weights, to="m", over="f")
        if second is not None:
            return out, second
    return None


def _ends(graphs: Graphs, product: Expr, axes: Axes, weights: Weights) -> Iterator[Operand]:
    """Yield values of the graph where a product can be said to end: with its scales, with a bias, behind views."""
    node, begun = product, False
    while True:
        if node.handle is not None and not begun and linear.is_float(node):
            yield Operand(value=node, axes=axes)
            begun = True
        users = graphs.readers(node)
        if len(users) != 1 or id(node) in graphs.outputs:
            return
        [user] = users
        bias = user.word == "add" and any(a in weights for a in user.args) and user.rank == node.rank
        scaled = linear.of_integers(node) or linear.scaled_inside(node)
        scale = scaled and user.word in ("cast", "mul") and user.rank == node.rank
        rounds = user.word == "opaque" and activation.is_view(user)
        onward = axes if bias or scale or rounds else layout.forward(user, axes)
        if onward is None:
            return
        node, axes, begun = user, onward, begun and not (bias or scale)
        if bias:
            if node.handle is not None:
                yield Operand(value=node, axes=axes)
            return


def _named(product: Expr, weights: Weights) -> Axes | None:
    """Return the layout of a second product: rows b … s, and m where the weights have it."""
    if product.shape is None:
        width = product.args[1].shape[-1:] if product.args[1] in weights and product.args[1].shape else ()
        return (ANY_ROWS, (Atom("m", width[0]),)) if width else None
    if len(product.shape) < 2:
        return None
    at = -1 if product.args[1] in weights else -2
    lengths = list(product.shape)
    model = lengths.pop(at)
    names = [*("b" * (i + 1) for i in range(len(lengths) - 1)), "s"] if len(lengths) > 1 else ["b"]
    rows = [layout.atom(name, length) for name, length in zip(names, lengths, strict=True)]
    rows.insert(len(rows) + 1 + at, (Atom("m", model),))
    return tuple(rows)


def _activation(region: Region) -> tuple[str, Linear | None, Linear] | None:
    """Return (activation, gate, in): which it is, and which of two sources it is applied to."""
    if not 1 <= len(region.sources) <= 2:
        return None
    first, *rest = region.sources
    if not rest:
        single = activation.name(region.inner, first)
        return None if single is None else (single, None, region.sources[first])
    found = activation.gated(region.inner, first, rest[0])
    return None if found is None else (found[0], region.sources[found[1]], region.sources[found[2]])


def _site(
    graphs: Graphs, out: Operand, second: Linear, region: Region, meaning: tuple[str, Linear | None, Linear]
) -> FeedForwardSite | Decline:
    name, gate, up = meaning
    made = [one for one in (gate, up) if one is not None]
    pair = next((pair for x in _shared_inputs(made) if (pair := _same_rows(x, out))), None)
    if pair is None or len({one.inner_width for one in (second, *made)}) > 1:
        return near_miss.say(graphs, second, region, _unlike(second, made), region.inner)
    rounded = region.rounded.union(second.rounded, *(one.rounded for one in made))
    stored = [one.stored for one in (second, *made) if one.stored]
    return FeedForwardSite(
        anchor=graphs.node_name(second.product),
        activation=name,
        x=pair[0],
        w_in=up.w,
        b_in=up.bias,
        w_gate=gate.w if gate else None,
        b_gate=gate.bias if gate else None,
        w_out=second.w,
        b_out=second.bias,
        out=pair[1],
        quantised=", ".join(sorted(rounded)) or None,
        stored=stored[0] if stored else None,
        inner=_kept(second.x),
        node=graphs.node(second.product),
        leaks=tuple(_leaks(graphs, region, second)),
        steps=_steps(region, meaning),
    )


def _shared_inputs(made: Sequence[Linear]) -> Iterator[Operand]:
    """Yield the values of the graph that all first products read, perhaps through views of their own."""
    first, *rest = [list(_inputs(one.x)) for one in made]
    for x in first:
        same = [next((y for y in other if y.value is x.value), None) for other in rest]
        if all(y is not None and y.axes == x.axes for y in same):
            yield x


def _unlike(second: Linear, made: Sequence[Linear]) -> str:
    """Return why products do not belong together."""
    for one in made:
        if one.inner_width != second.inner_width:
            return f"one of its products has {one.inner_width} neurons, the second product takes {second.inner_width}"
    if len(made) > 1 and not list(_shared_inputs(made)):
        return "its gate and its other product read different tensors"
    return "the rows of its input cannot be brought to those of its result"


def _kept(x: Operand) -> Operand:
    """Return the value of the graph that a tensor is a view of, or the tensor itself if it is of none."""
    seen = layout.views(x.value, x.axes, through_scales=False)
    return next((Operand(value=value, axes=axes) for value, axes, _ in seen if value.handle is not None), x)


def _inputs(x: Operand) -> Iterator[Operand]:
    """Yield the values of the graph that an input is a view of, outermost first, and those before a cast."""
    for value, axes, _ in layout.views(x.value, x.axes, through_scales=False):
        if value.handle is not None and all(len(axis) == 1 for axis in axes if any(a.letter == "m" for a in axis)):
            yield Operand(value=value, axes=axes)
    if value.word == "cast" and activation.is_view(value):
        yield from _inputs(Operand(value=value.args[0], axes=axes))


def _same_rows(x: Operand, out: Operand) -> tuple[Operand, Operand] | None:
    """Return input and result in the same atoms, None if they have other rows or cannot be brought to each other."""
    atoms = {a.name: a for one in (x, out) for axis in one.axes for a in axis if a.letter != "m"}
    ends = {name: a for name, a in atoms.items() if not any(_is_part(other, name) for other in atoms)}
    x, out = (replace(one, axes=tuple(_finest(axis, ends) for axis in one.axes)) for one in (x, out))
    rows = tuple(axis for axis in x.axes if all(a.letter != "m" for a in axis))
    have = {a for axis in rows for a in axis}
    if have != {a for axis in out.axes for a in axis if a.letter != "m"}:
        return None
    m_in, m_out = (tuple(a for axis in one.axes for a in axis if a.letter == "m") for one in (x, out))
    result = symbol("result", (*(product(a.size for a in axis) for axis in rows), m_out[0].size), x.value.dtype)
    ways = (x.arranged((*rows, m_in)), layout.arrange(result, (*rows, m_out), out.axes))
    return None if None in ways else (x, out)


def _is_part(name: str, of: str) -> bool:
    return name != of and name.startswith(of) and name[len(of) :].isdigit()


def _finest(axis: Axis, ends: Mapping[str, Atom]) -> Axis:
    out: list[Atom] = []
    for a in axis:
        parts = sorted(name for name in ends if _is_part(name, a.name))
        out += [ends[name] for name in parts] or [a]
    return tuple(out)


def _leaks(graphs: Graphs, region: Region, second: Linear) -> Iterator[str]:
    """Yield who else reads the inner tensor."""
    inside = {*region.nodes, id(second.product)}
    for node in region.nodes.values():
        if node.word != "const" and id(node) in graphs.outputs:
            yield f"graph output {place(node)}"
        for user in graphs.readers(node):
            if node.word != "const" and id(user) not in inside and not _on_the_way(graphs, user, inside):
                yield f"{place(user)} ({user.word})"


def _on_the_way(graphs: Graphs, node: Expr, inside: set[int]) -> bool:
    """Return whether a node only quantises what the block itself reads on."""
    if node.word == "opaque" and activation.is_view(node) and node.rank == 0:
        return True  # the scale or the zero point of a dynamic quantisation
    quantises = activation.is_view(node) or node.word in ("cast", "sub")
    return quantises and all(id(u) in inside or _on_the_way(graphs, u, inside) for u in graphs.readers(node))


def _steps(region: Region, meaning: tuple[str, Linear | None, Linear]) -> tuple[Step, ...]:
    name, gate, _ = meaning
    said = f"{name} of one product, times the other" if gate else name
    return (Step(node=place(region.inner), met="activation", meaning=said), *near_miss.steps(region.sources))
