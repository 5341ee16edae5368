"""Reads encoders: attention layers in order along one residual stream, and the tensors between them.

A cut is a tensor that everything the upper layers learn of the tokens passes through. Below a cut, tokens are proved
to meet in attention only (``patterns.tokens``), so that the lower layers can run on parts of a sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patterns.mask import All, Causal, Mask, Window
from patterns.narrow import chosen
from patterns.scores import place
from patterns.site import AttentionSite, Decline, EncoderSite, Operand, Unreadable
from patterns.tokens import Tokens
from rewriter.hosts.base import Graphs
from rewriter.report import Step
from runtime_ops.interpret import topological
from runtime_ops.words import Expr

_VIEWS = ("cast", "reshape", "squeeze", "unsqueeze")


def assemble(graphs: Graphs, sites: Sequence[Any]) -> Iterator[EncoderSite | Decline]:
    """Yield the encoder that a model's attention sites make up, or why they make none; nothing if it has no tokens."""
    attention = {id(site.out.value): site for site in sites if site.kind == "attention"}
    lookups = _lookups(graphs)
    if not attention or not lookups or any(_one_way(site.mask) for site in attention.values()):
        return
    first = next(iter(attention.values()))
    try:
        yield _read(graphs, attention, lookups)
    except Unreadable as stop:
        yield Decline(anchor=first.anchor, kind="encoder", reason=stop.reason, at=place(stop.at))


def _one_way(mask: Mask) -> bool:
    """Return whether a mask lets no query see later keys: decoders are decomposed by caching what came before."""
    if isinstance(mask, All):
        return any(_one_way(part) for part in mask.parts)
    return isinstance(mask, Causal) or (isinstance(mask, Window) and mask.right == 0)


def _lookups(graphs: Graphs) -> list[Expr]:
    """Return the embeddings that are looked up by what the model is given: rows of stored tables."""
    rows = [e for e in graphs.exprs_of("gather") if e.attrs["axis"] == 0 and e.args[0].rank == 2 and e.rank == 3]
    return [e for e in rows if _given(e.args[1]) and not _given(e.args[0])]  # a table may be stored in few bits


def _given(x: Expr) -> bool:
    """Return whether a tensor depends on elements of the model's inputs, not on their lengths alone."""
    return any(e.word == "input" for e in topological(x, lambda e: e.word == "dim"))


def _tables(lookups: Sequence[Expr]) -> Mapping[str, int]:
    """Return the inputs that are an index themselves, with the rows of the largest table of each."""
    found: dict[str, int] = {}
    for lookup in lookups:
        index, rows = lookup.args[1], (lookup.args[0].shape or (0,))[0]
        while index.word in _VIEWS:
            index = index.args[0]
        if index.word == "input" and isinstance(rows, int):
            found[index.attrs["name"]] = max(rows, found.get(index.attrs["name"], 0))
    return found


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What depends on the tokens, in order: from the embeddings to the outputs."""

    order: Sequence[Expr]
    at: Mapping[int, int]
    cuts: Sequence[int]  # places in ``order`` that every way to an output passes


def _read(graphs: Graphs, attention: Mapping[int, AttentionSite], lookups: Sequence[Expr]) -> EncoderSite:
    stream = _stream(graphs, attention, lookups)
    layers = sorted(
        (site for key, site in attention.items() if key in stream.at), key=lambda site: stream.at[id(site.out.value)]
    )
    if not layers:
        raise Unreadable("no attention depends on the embeddings of the tokens", lookups[0])
    between, around = _between(stream, layers)
    tokens, stopped = _proved(stream, attention, lookups)
    stopped = stopped or around
    cuts = []
    for cut in between:
        axis = tokens.axis(cut)
        if axis != 1 or cut.rank != 3:
            break
        cuts.append(Operand(value=cut, axes=tokens.axes[id(cut)]))
    if not cuts:
        raise stopped or Unreadable("the first layer's result is not of the form [b t m]", between[0])
    why = None if len(cuts) == len(layers) or stopped is None else f"{stopped.reason} (at {place(stopped.at)})"
    return EncoderSite(
        anchor=layers[0].anchor,
        layers=tuple(layers),
        cuts=tuple(cuts),
        stopped=why,
        model_width=cuts[0].value.shape[-1] if cuts[0].value.shape else None,
        lookups=tuple(lookups),
        tables=_tables(lookups),
        given={e.attrs["name"]: e for e in graphs.exprs_of("input") if _is_ids(e)},
        node=graphs.node(layers[0].out.value),
        chosen=_chosen(graphs, stream, tokens, layers, len(cuts)),
        steps=tuple(Step(node=place(c.value), met="cut", meaning=f"after layer {n}") for n, c in enumerate(cuts, 1)),
    )


def _chosen(graphs: Graphs, stream: _Stream, tokens: Tokens, layers: Sequence[AttentionSite], cuts: int) -> Expr | str:
    """Return what chooses tokens of the last layer, if that layer starts from a cut, or why nothing does."""
    if cuts < len(layers) - 1 or len(layers) == 1:
        return "the last layer does not start from a hidden state that is known to carry tokens apart"
    try:
        return chosen(graphs, tokens, stream.order[stream.at[id(layers[-1].out.value)] :])
    except Unreadable as stop:
        return stop.reason


def _is_ids(expr: Expr) -> bool:
    return expr.handle is not None and expr.rank == 2 and expr.dtype is not None and expr.dtype.kind == "i"


def _stream(graphs: Graphs, attention: Mapping[int, AttentionSite], lookups: Sequence[Expr]) -> _Stream:
    alive: set[int] = {id(x) for x in lookups}
    order = []
    for expr in _upwards(graphs, attention):
        if id(expr) in alive or any(id(a) in alive for a in _made_of(expr, attention)):
            alive.add(id(expr))
            order.append(expr)
    at = {id(expr): n for n, expr in enumerate(order)}
    reach = [at[id(x)] for x in lookups if id(x) in at]
    if not reach:
        raise Unreadable("the embeddings of the tokens do not reach an output", lookups[0])
    last = [len(order) if id(expr) in graphs.outputs else 0 for expr in order]
    for n, expr in enumerate(order):
        for a in _made_of(expr, attention):
            if id(a) in at:
                last[at[id(a)]] = max(last[at[id(a)]], n)
    furthest, cuts = max(reach), []
    for n in range(len(order)):
        if furthest <= n:
            cuts.append(n)
        furthest = max(furthest, last[n])
    return _Stream(order=order, at=at, cuts=cuts)


def _made_of(expr: Expr, attention: Mapping[int, AttentionSite]) -> Sequence[Expr]:
    """Return what an expression is computed from, attention as one step; masks and lengths are no tokens."""
    site = attention.get(id(expr))
    if site is not None:
        return site.q.value, site.k.value, site.v.value
    return () if expr.word == "dim" else expr.args


def _upwards(graphs: Graphs, attention: Mapping[int, AttentionSite]) -> Iterator[Expr]:
    """Yield what the outputs are made of, arguments first."""
    done: set[int] = set()
    stack = [(expr, False) for expr in graphs.exprs.values() if id(expr) in graphs.outputs]
    while stack:
        expr, ready = stack.pop()
        if ready:
            yield expr
        elif id(expr) not in done:
            done.add(id(expr))
            stack.append((expr, True))
            stack.extend((a, False) for a in _made_of(expr, attention))


def _between(stream: _Stream, layers: Sequence[AttentionSite]) -> tuple[Sequence[Expr], Unreadable | None]:
    """Return the last cut after each layer and before the next one's attention, and why not after all layers.

    Raises:
        Unreadable: there is none after the first layer; some tensor goes around it.
    """
    places = [stream.at[id(site.out.value)] for site in layers]
    found: list[Expr] = []
    for n, (start, end) in enumerate(zip(places, [*places[1:], len(stream.order)], strict=True), 1):
        inside = [c for c in stream.cuts if start < c < end and len(stream.order[c].shape or ()) == 3]
        if not inside:
            why = f"nothing after layer {n} carries all that later layers know of the tokens"
            around = Unreadable(why, layers[n - 1].out.value)
            if not found:
                raise around
            return found, around
        found.append(stream.order[inside[-1]])
    return found, None


def _proved(
    stream: _Stream, attention: Mapping[int, AttentionSite], lookups: Sequence[Expr]
) -> tuple[Tokens, Unreadable | None]:
    """Carry the token axis upwards as far as it goes; return what stopped it."""
    tokens, first = Tokens(), {id(x) for x in lookups}
    try:
        for expr in stream.order:
            if id(expr) in first:
                tokens.start(expr, 1)
            elif id(expr) in attention:
                _same_everywhere(attention[id(expr)], stream)
                tokens.attention(attention[id(expr)])
            else:
                tokens.carry(expr)
    except Unreadable as stop:
        return tokens, stop
    return tokens, None


def _same_everywhere(site: AttentionSite, stream: _Stream) -> None:
    """Raise Unreadable if what is added to the scores depends on the tokens, as disentangled scores do."""
    for expr in topological(site.whole, lambda e: e.word == "dim" or id(e) in stream.at) if site.whole else ():
        if id(expr) in stream.at:
            raise Unreadable("a part of the scores besides q·kᵀ depends on the tokens", expr)
