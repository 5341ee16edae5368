"""Decoders whose keys and values are no longer kept: what their files with and without past become.

A decoder is two files, as exporters write it: one takes a whole beginning and gives keys and values of both attentions,
the other takes these back and one token more. Expanded, both take the encoder's hidden states, and the hidden states
of what was decoded before take the place of its keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patterns import around, memory
from patterns.memory import Memory
from patterns.rules import attention_call, expand_query
from patterns.site import AttentionSite, Operand, Unreadable
from rewriter import layout
from rewriter.errors import GraftError
from rewriter.hosts.base import Graphs
from rewriter.plan import Plan
from rewriter.reading import Kept, Reading, State
from runtime_ops.dims import Dim, Sym, product
from runtime_ops.words import Expr, const, dim, make, symbol


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One attention of the file without past.

    Attributes:
        keys, values: what they are made of.
        hidden: the hidden states [b t m].
        source: the model's input that these are; None in self-attention.
        presents: the outputs that give keys and values.
    """

    keys: Memory
    values: Memory
    hidden: Expr
    source: str | None
    presents: Sequence[str]


Expanded = tuple[Mapping[str, Plan], Mapping[str, Plan], Kept, str | None]


def expanded(first: Reading, later: Reading, force: bool) -> Expanded:
    """Return the plans for the files without past and with, by site, what is kept, and where that loses.

    ``force``: also where what is kept grows.

    Raises:
        GraftError: an attention cannot be expanded, or the files do not belong together.
    """
    firsts, laters = _attention(first), _attention(later)
    if len(firsts) != len(laters):
        raise GraftError(f"the files have {len(firsts)} and {len(laters)} attentions; they are not of one decoder")
    plans: tuple[dict[str, Plan], dict[str, Plan]] = ({}, {})
    old: list[State] = []
    new: list[State] = []
    crossing: list[tuple[AttentionSite, Layer]] = []
    for (one, site), (two, step) in zip(firsts.items(), laters.items(), strict=True):
        try:
            layer = _layer(first.graphs, site, force)
            plan, before, after = _cross(later.graphs, step, layer) if layer.source else _own(later.graphs, step, layer)
        except Unreadable as stop:
            raise GraftError(f"{one} and {two} cannot be expanded: {stop.reason}") from None
        plans[0][one] = Plan(
            values=expand_query.call(site, layer.hidden, layer.keys, layer.values, _masks(site, layer)),
            outputs={state.first: layer.hidden for state in after},
            dropped=layer.presents,
        )
        plans[1][two] = plan
        old, new = [*old, *before], [*new, *after]
        crossing += [(site, layer)] if layer.source else []
    return *plans, Kept(old=old, new=new), _loses(crossing)


_CACHE = 32  # MiB, a usual last-level cache


def _loses(crossing: Sequence[tuple[AttentionSite, Layer]]) -> str | None:
    """Return where a step takes longer than before, None if that is not known."""
    widths = [expand_query.kept(site) for site, _ in crossing]
    d = crossing[0][0].head_width if crossing else None
    m = crossing[0][1].keys.width if crossing else None
    if not isinstance(d, int) or not isinstance(m, int) or not all(isinstance(x, int) for x in widths):
        return None
    bytes_ = 4 * sum(widths)
    return (
        f"attention to the source takes {m / d:.3g} times the arithmetic, and reads {4 * m:,} bytes for each source "
        f"token and layer instead of keys and values of {bytes_:,} bytes for each token and beam of all layers: a step "
        f"is slower than the original's until these are several times the processor's last-level cache ({_CACHE} MiB "
        f"hold those of {_CACHE * 2**20 // bytes_:,} source tokens times beams times sentences); runs without past "
        "always are"
    )


def _attention(reading: Reading) -> dict[str, AttentionSite]:
    return {name: site for name, site in reading.sites.items() if site.kind == "attention"}


def _layer(graphs: Graphs, site: AttentionSite, force: bool) -> Layer:
    reason = attention_call.why_not(site, {}) or expand_query.why_not_around(site)
    if reason is not None:
        raise Unreadable(reason, site.k.value)
    keys, values = memory.read(site, "k"), memory.read(site, "v")
    reason = expand_query.why_not_memory(site, keys, values)
    reason = reason or (None if force else expand_query.why_not_smaller(site, keys))
    hidden = expand_query.arranged(site, keys)
    if reason is not None or hidden is None:
        raise Unreadable(reason or "its hidden states are not [b t m]", site.k.value)
    made = [around.root(x.value) for x in (site.k, site.v)]
    presents = [name for root in made for name, out in _outputs(graphs).items() if around.root(out) is root]
    if len(presents) != 2:
        raise Unreadable(f"the file without past gives {len(presents)} outputs for its keys and values", site.k.value)
    source = hidden.handle.name if hidden.word == "input" else None
    return Layer(keys=keys, values=values, hidden=hidden, source=source, presents=presents)


def _masks(site: AttentionSite, layer: Layer) -> dict[str, Expr | None]:
    """Return what hides keys; as a bias where beams share a memory, because the mask has a row for each beam."""
    if layer.source is None or site.keys is None:
        return {"bias": site.bias, "key_mask": site.keys}
    visible = make("unsqueeze", site.keys, axes=(1, 2))
    hides = make("where", visible, const(0.0), const(-np.inf, np.float32))
    return {"bias": hides if site.bias is None else make("add", site.bias, hides), "key_mask": None}


_Found = tuple[Plan, Sequence[State], Sequence[State]]  # with the states before and after


def _own(graphs: Graphs, step: AttentionSite, layer: Layer) -> _Found:
    """Return the plan of self-attention: past hidden states joined with new ones, which it gives back."""
    cache = step.cache
    if cache is None:
        raise Unreadable("the file with past joins its keys and values with none from before", step.k.value)
    joined = [_viewed(x) for x in (step.k, step.v)]
    if any(x.word != "concat" for x in joined):
        raise Unreadable("its keys and values are changed after they were joined with past ones", step.k.value)
    keys, values = memory.read(step, "k", cache.new_k), memory.read(step, "v", cache.new_v)
    reason = expand_query.why_not_memory(step, keys, values)
    new = expand_query.arranged(step, keys)
    if reason is not None or new is None or None in cache.presents:
        raise Unreadable(reason or "its present keys and values are not given back", step.k.value)
    name, given = (_hidden(str(x)) for x in (cache.past[0], cache.presents[0]))
    lengths = _lengths(cache.past_k)
    past = symbol(name, (*lengths, keys.width), new.dtype)
    hidden, whole = make("concat", past, new, axis=1), make("add", dim(past, 1), dim(new, 1))
    plan = Plan(
        values=expand_query.call(step, hidden, keys, values, {"bias": step.bias, "key_mask": step.keys}),
        inputs={name: past},
        outputs={given: hidden},
        dropped=[*cache.past, *(str(x) for x in cache.presents)],
        lengths={
            name: _shape(dim(past, 0), t, like)
            for x, y, like in zip((cache.past_k.value, cache.past_v.value), joined, (step.k, step.v), strict=True)
            for one, t in ((x, dim(past, 1)), (y, whole))
            for name in _called(graphs, one)
        },
    )
    names = zip(layer.presents, cache.past, cache.presents, strict=True)
    old = [State(first=one, past=past, later=present) for one, past, present in names]
    return plan, old, [State(first=_hidden(layer.presents[0]), past=name, later=given)]


def _cross(graphs: Graphs, step: AttentionSite, layer: Layer) -> _Found:
    """Return the plan of cross-attention: to the encoder's hidden states, through the weights of the first file."""
    given = [_viewed(x) for x in (step.k, step.v)]
    if any(x.word != "input" for x in given):
        raise Unreadable("the file with past does not take its keys and values as inputs", step.k.value)
    assert layer.source is not None  # the caller looked
    own = next((x for x in graphs.inputs() if x.handle.name == layer.source), None)
    batch, t = (Sym.named(x) for x in ("encoder_batch_size", "encoder_sequence_length"))
    hidden = own or symbol(layer.source, (batch, t, layer.keys.width), layer.hidden.dtype)
    names = [str(x.handle.name) for x in given]
    again = [name for name, out in _outputs(graphs).items() if around.root(out) in given]
    plan = Plan(
        values=expand_query.call(step, hidden, layer.keys, layer.values, _masks(step, layer)),
        inputs={} if own is not None else {layer.source: hidden},
        dropped=[*names, *(name for name in again if name not in names)],
        lengths={
            name: _shape(_rows(graphs, step) or dim(hidden, 0), dim(hidden, 1), like)
            for x, like in zip(given, (step.k, step.v), strict=True)
            for name in _called(graphs, x)
        },
    )
    old = [State(first=one, past=two, later=None) for one, two in zip(layer.presents, names, strict=True)]
    return plan, old, []


def _outputs(graphs: Graphs) -> dict[str, Expr]:
    """Return what the model gives, by name."""
    return {str(value.name): expr for value, expr in graphs.exprs.items() if value.is_graph_output()}


def _called(graphs: Graphs, expr: Expr) -> list[str]:
    """Return the names of the values that are a tensor."""
    return [str(value.name) for value, found in graphs.exprs.items() if found is expr]


def _viewed(operand: Operand) -> Expr:
    """Return the innermost tensor that an operand is a view of."""
    *_, (expr, _, _) = layout.views(operand.value, operand.axes, through_scales=False)
    return expr


def _lengths(past: Operand) -> tuple[Dim, Dim]:
    """Return the lengths of the batch and of the past."""
    shape = past.value.shape or ()
    letters = {a.letter: i for i, axis in enumerate(past.axes) for a in axis}
    return shape[letters["b"]], shape[letters["t"]]


def _rows(graphs: Graphs, step: AttentionSite) -> Expr | None:
    """Return how many rows are decoded, told by token ids; sentences may be fewer, where beams share them."""
    rows = product(a.size for a in step.frame["b"])
    ids = (
        x for x in graphs.inputs() if x.shape and x.shape[0] == rows and x.dtype is not None and x.dtype.kind in "iu"
    )
    found = next(ids, None)
    return None if found is None else dim(found, 0)


def _shape(rows: Expr, t: Expr, like: Operand) -> Expr:
    """Return the shape of keys or values [b g t d] that hidden states [b t m] take the place of."""
    widths = [a.size for letter in ("h", "de") for axis in like.axes for a in axis if a.letter in letter]
    heads, width = (const([int(w)]) for w in widths)  # type: ignore[arg-type]
    return make("concat", rows, heads, t, width, axis=0)


def _hidden(name: str) -> str:
    """Return the name of hidden states that take the place of keys."""
    return name.removesuffix(".key") + ".hidden"
