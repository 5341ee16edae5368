"""Reads attention: anchored on a softmax, outwards to the product with the values, inwards to queries and keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patterns import around, operands
from patterns.masking import Masking
from patterns.scores import Finer, Frame, peel, place, refine, same_axis
from patterns.site import AttentionSite, Decline, Operand, Unreadable
from rewriter import layout
from rewriter.hosts.base import Graphs
from rewriter.lengths import length
from rewriter.report import Step
from runtime_ops import interpret
from runtime_ops.dims import product
from runtime_ops.words import Expr, const, make


def read(graphs: Graphs) -> Iterator[AttentionSite | Decline]:
    """Yield a site or a decline for every softmax of a model."""
    for softmax in graphs.exprs_of("softmax"):
        yield _site_or_decline(graphs, softmax)
    for exps in graphs.exprs_of("exp"):
        if any(user.word == "sum" and graphs.readers(user) for user in graphs.readers(exps)):
            yield Decline(anchor=graphs.node_name(exps), kind="attention", reason=_LOOSE_EXP, at=place(exps))
    told = set()  # nodes, which may give several values
    for other in graphs.exprs_of("opaque"):
        why = other.attrs.get("why") or _OTHER_SOFTMAXES.get(other.attrs["op"])
        if why is not None and graphs.node(other) not in told:
            told.add(graphs.node(other))
            yield Decline(anchor=graphs.node_name(other), kind="attention", reason=why, at=place(other))


_LOOSE_EXP = "exponentials and their sum stand here, but not as exponentials over exactly that sum, as a softmax is"
_OTHER_SOFTMAXES = {
    "LogSoftmax": "a LogSoftmax gives logarithms of probabilities, which are no attention weights",
    "Softmax": "a Softmax that flattens several axes, or of unknown rank, runs over more than the key axis",
}


def _site_or_decline(graphs: Graphs, softmax: Expr) -> AttentionSite | Decline:
    name = graphs.node_name(softmax)
    try:
        try:
            return _read_one(graphs, name, softmax, None)
        except Finer as split:
            return _read_one(graphs, name, softmax, split)
    except Unreadable as stop:
        return Decline(anchor=name, kind="attention", reason=stop.reason, at=place(stop.at), steps=stop.steps)


def _read_one(graphs: Graphs, name: str, softmax: Expr, split: Finer | None) -> AttentionSite:
    axes, frame = _frame(softmax, split)
    product = _values(graphs, softmax, axes, frame)
    frame = _told(frame, (softmax.args[0], axes), product.v)
    try:
        scores = peel(softmax.args[0], axes, frame)
    except Unreadable as miss:
        miss.steps = (*product.steps, *miss.steps)
        raise
    for _, have, _ in layout.views(*scores.q):
        refine(have, frame)
    q = operands.queries(scores.q, frame)
    k, v, kv = operands.keys_and_values(scores.k, product.v, frame)
    heads, kv_heads = operands.size(frame.h), operands.size(kv)
    operands.check_heads(softmax, heads, kv_heads)
    beside = graphs.beside(product.out)
    out, have = _tokens_first(graphs, product, frame)
    cap, scale = scores.cap, scores.scale * q.factor * k.factor
    masking = scores.masking.finished()
    return AttentionSite(
        anchor=name,
        q=q.operand,
        k=k.operand,
        v=v.operand,
        # tanh is taken of scale · q·kᵀ; the op divides by the cap inside, so the cap goes into its scale
        scale=scale if cap is None else scale * cap,
        softcap=cap,
        **masking.fields,
        heads=heads,
        kv_heads=kv_heads,
        head_width=operands.width(scores.q),
        value_width=operands.width(product.v),
        out=Operand(value=out, axes=have),
        node=graphs.node(softmax),
        leaks=(*product.leaks, *_scores_given(beside)),
        beside={handle: expr for handle, expr in beside.items() if expr is not None},
        **around.read(graphs, scores.q, scores.k, product.v, frame, beside),
        frame={"b": frame.b, "h": frame.h, "g": kv, "s": frame.s, "t": frame.t},
        steps=(*product.steps, *scores.steps, *_mask_step(name, masking)),
    )


def _mask_step(name: str, masking: Masking) -> Sequence[Step]:
    if not masking.said:
        return ()
    return (Step(node=name, met="mask", meaning=f"{masking.mask}; {masking.verdict}"),)


def _scores_given(beside: Mapping[Any, Expr | None]) -> list[str]:
    """Return the names of a fused node's further outputs that hold scores or probabilities."""
    return [f"whoever takes {handle.name}" for handle, expr in beside.items() if expr is None]


def _frame(softmax: Expr, split: Finer | None) -> tuple[layout.Axes, Frame]:
    """Return the layout of the scores: the softmax runs over t, the other of the last two axes is s."""
    x = softmax.args[0]
    if x.shape is None or len(x.shape) < 2:
        raise Unreadable("the rank of the scores is unknown or below 2", softmax)
    rank, axis = len(x.shape), softmax.attrs["axis"] % len(x.shape)
    if axis < rank - 2:
        raise Unreadable(f"the softmax runs over axis {axis} of {rank}, not over one of the last two", softmax)
    lead = [layout.atom("b" * (i + 1), d) for i, d in enumerate(x.shape[:-2])]
    heads = lead.pop() if rank > 3 else ()
    heads = tuple(layout.Atom("h", a.size) for a in heads)
    batch = tuple(a for one in lead for a in one)
    first = (*lead, heads) if rank > 3 else tuple(lead)
    if split is not None:  # one axis that holds several
        batch = tuple(layout.Atom("b" * (i + 1), a.size) for i, a in enumerate(split.batch) if a.size != 1)
        heads = tuple(layout.Atom("h", a.size) for a in split.heads if a.size != 1)
        first = () if split.rows else (batch, heads) if rank > 3 else ((*batch, *heads),)
    # s and t stay atoms even at length 1, so that both axes can be told apart
    places = (-2, -1) if axis == rank - 1 else (-1, -2)
    s, t = ((layout.Atom(letter, x.shape[i]),) for letter, i in zip("st", places, strict=True))
    if split is not None and split.rows:
        s = (layout.Atom("s", split.rows[0].size),)
    rows = (*batch, *heads, *s) if split is not None and split.rows else s
    return (*first, *((rows, t) if axis == rank - 1 else (t, rows))), Frame(b=batch, h=heads, s=s, t=t, top=x)


def _told(frame: Frame, *tensors: tuple[Expr, layout.Axes]) -> Frame:
    """Return the frame with the lengths of its batch axes as tensors, as the last of some tensors tells them."""
    found: dict[str, Expr] = {}
    for x, axes in tensors:
        for i, axis in enumerate(axes):
            free = [a for a in axis if not isinstance(a.size, int)]
            if len(free) == 1:
                rest = product(a.size for a in axis if isinstance(a.size, int))
                whole = length(x, i)
                found[free[0].name] = whole if rest == 1 else make("div", whole, const([rest]))
    return dataclasses.replace(frame, b=tuple(dataclasses.replace(a, length=found.get(a.name)) for a in frame.b))


@dataclass(frozen=True, kw_only=True)
class _Values:
    v: tuple[Expr, layout.Axes]
    out: Expr
    axes: layout.Axes
    leaks: Sequence[str]
    steps: Sequence[Step]


def _values(graphs: Graphs, softmax: Expr, axes: layout.Axes, frame: Frame) -> _Values:
    """Follow the probabilities forward to their product with the values."""
    current, leaks, steps = softmax, [], []
    while True:
        if id(current) in graphs.outputs:
            leaks.append(f"graph output {place(current)}")
        users = graphs.readers(current)
        guard = _nan_guard(graphs, current, users)
        if guard is not None:
            steps.append(Step(node=place(guard), met="where(isnan)", meaning="rows without a key give 0"))
            current = guard
            continue
        onward = [u for u in users if _leads_on(u, current, axes, frame)]
        leaks += [f"{place(u)} ({u.word})" for u in users if u not in onward[:1]]
        if not onward:
            raise Unreadable(_no_values(users), users[0] if users else current)
        user = onward[0]
        if user.word == "matmul":
            return _product(graphs, user, current, axes, frame, leaks, steps)
        steps.append(Step(node=place(user), met=user.word, meaning="followed"))
        axes = layout.forward(user, axes) or axes
        current = user


def _no_values(users: Sequence[Expr]) -> str:
    if not users:
        return "the probabilities are not multiplied by values"
    first = users[0]
    if first.word == "matmul":
        return "the product after the softmax does not contract the key axis t of the probabilities"
    whole = first.args[0].shape if first.word == "slice" else None
    if whole and first.shape and whole[-1] != first.shape[-1]:
        return (
            "the probabilities are cut by a Slice before their product with the values: the softmax runs over more "
            "than the keys, as with attention sinks, which no operation of graft has yet"
        )
    met = first.attrs["op"] if first.word == "opaque" else first.word.capitalize()
    return f"the probabilities go into {met} instead of a product with values"


def _leads_on(user: Expr, current: Expr, axes: layout.Axes, frame: Frame) -> bool:
    if user.word == "cast":
        return interpret.is_float(user.attrs["to"])
    if user.word == "matmul":
        left = user.args[0] is current and user.args[1] is not current
        return same_axis(axes[-1 if left else -2], frame.t) and (left or user.args[1] is current)
    return layout.forward(user, axes) is not None


def _nan_guard(graphs: Graphs, current: Expr, users: Sequence[Expr]) -> Expr | None:
    """Return where(isnan(p), 0, p) if that is all that reads p."""
    for user in users:
        if user.word == "where" and user.args[2] is current and user.args[1].number() == 0.0:
            test = user.args[0].args[0] if user.args[0].word == "not" else user.args[0]
            if test.word == "eq" and test.args == (current, current):
                return user if all(u in (user, test) for u in users) else None
    return None


def _handled(graphs: Graphs, out: Expr, axes: layout.Axes) -> tuple[Expr, layout.Axes]:
    """Return the result as a value of the graph; inside a fused node that comes a few views later."""
    while out.handle is None:
        users = graphs.readers(out)
        onward = layout.forward(users[0], axes) if len(users) == 1 else None
        if onward is None:
            raise Unreadable("the product with the values is no value of the graph", out)
        out, axes = users[0], onward
    return out, axes


def _tokens_first(graphs: Graphs, product: _Values, frame: Frame) -> tuple[Expr, layout.Axes]:
    """Return the result behind the views that bring its tokens before its heads, if nothing else reads it."""
    out, axes = product.out, product.axes
    wanted = [*frame.b, *frame.s, *frame.h]
    while [a for axis in axes for a in axis][:-1] != wanted:
        users = graphs.users.get(id(out), [])  # who asks for its shape keeps it, too
        onward = layout.forward(users[0], axes) if len(users) == 1 and id(out) not in graphs.outputs else None
        if onward is None or users[0].handle is None:
            return product.out, product.axes
        out, axes = users[0], onward
    return out, axes


def _product(
    graphs: Graphs,
    user: Expr,
    current: Expr,
    axes: layout.Axes,
    frame: Frame,
    leaks: Sequence[str],
    steps: Sequence[Step],
) -> _Values:
    left = user.args[0] is current
    v = user.args[1 if left else 0]
    if v.shape is None or len(v.shape) < 2 or user.shape is None:
        raise Unreadable("the rank of the values is unknown or below 2", user)
    e = (layout.Atom("e", v.shape[-1 if left else -2]),)
    lead = layout.aligned(v, (*axes[:-2], (), ())) or ()
    lead = tuple(() if d == 1 else axis for axis, d in zip(lead[:-2], v.shape[:-2], strict=True))
    out = (*axes[:-2], frame.s, e) if left else (*axes[:-2], e, frame.s)
    if len(user.shape) != len(out):
        raise Unreadable("the values have more axes than the probabilities", user)
    user, out = _handled(graphs, user, out)
    steps = [*steps, Step(node=place(user), met="matmul", meaning=f"p·v, value width {v.shape[-1]}")]
    return _Values(
        v=(v, (*lead, frame.t, e) if left else (*lead, e, frame.t)),
        out=user,
        axes=out,
        leaks=leaks,
        steps=steps,
    )
