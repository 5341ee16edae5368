"""Peels the scores: from the input of the softmax inwards to q·kᵀ, collecting scale, soft cap and bias.

Every peel takes one layer off and says what it meant for what is inside:
``scores = factor · [tanh] (scale · q·kᵀ) + bias``, all in one layout that is carried through views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from patterns.fills import NEGLIGIBLE
from patterns.masking import Masking
from patterns.site import Unreadable
from patterns.visible import fill_number, parts, to_frame
from patterns.weighted import weighted
from rewriter import layout
from rewriter.report import Step
from runtime_ops import interpret
from runtime_ops.words import Expr, make


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the scores were read as.

    Attributes:
        q, k: the factors of the product with their layouts (contraction axis ``d``).
        scale: factor inside the soft cap, or of the product if there is none.
        cap: None, or the factor that multiplies tanh.
        masking: what is added, masks included.
        steps: the peels, outermost first.
    """

    q: tuple[Expr, layout.Axes]
    k: tuple[Expr, layout.Axes]
    scale: float = 1.0
    cap: float | None = None
    masking: Masking = field(default_factory=Masking)
    steps: tuple[Step, ...] = ()

    def said(self, expr: Expr, met: str, meaning: str) -> Scores:
        """Return these scores with one more step in front."""
        return dataclasses.replace(self, steps=(Step(node=place(expr), met=met, meaning=meaning), *self.steps))


def place(expr: Expr) -> str:
    """Return the name under which a user finds ``expr`` in the model."""
    return str(getattr(expr.handle, "name", None) or expr.attrs.get("name") or expr.word)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What everything is arranged to: leading axes b and h, then s and t."""

    b: layout.Axis
    h: layout.Axis
    s: layout.Axis
    t: layout.Axis
    top: Expr  # the input of the softmax

    @property
    def scores(self) -> layout.Axes:
        """Layout [b h s t]."""
        return (self.b, self.h, self.s, self.t)


class Finer(Exception):  # noqa: N818 - starts the reader over, never seen by users
    """One axis of the scores turned out to hold several: batch and heads, or these and the queries."""

    def __init__(self, batch: layout.Axis, heads: layout.Axis, rows: layout.Axis) -> None:
        super().__init__()
        self.batch, self.heads, self.rows = batch, heads, rows


def refine(axes: layout.Axes, frame: Frame) -> None:
    """Raise Finer if ``axes`` shows the only leading axis of the frame, or its rows, split into several."""
    parts = {letter: tuple(a for axis in axes for a in axis if a.letter == letter) for letter in "bs"}
    if not frame.h and len(frame.b) == 1 and len(parts["b"]) > 1:
        raise Finer(parts["b"][:-1], parts["b"][-1:], ())
    if not frame.h and not frame.b and len(parts["s"]) > 1:
        raise Finer(parts["s"][:-2], parts["s"][-2:-1], parts["s"][-1:])


def peel(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    """Return what the scores ``expr``, laid out as ``axes``, are made of.

    Raises:
        Unreadable: no product of queries and keys was found.
    """
    row = _PEELS.get(expr.word)
    if row is None:
        raise Unreadable(f"{_spelling(expr)} stands between the softmax and a product of queries and keys", expr)
    try:
        return row(expr, axes, frame)
    except Unreadable as miss:
        if miss.at is not expr:
            miss.steps = (Step(node=place(expr), met=expr.word, meaning="followed"), *miss.steps)
        raise


def _spelling(expr: Expr) -> str:
    return (
        str(expr.attrs["op"]) if expr.word == "opaque" else f"an input ({place(expr)})" if not expr.args else expr.word
    )


def _matmul(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    a, b = expr.args
    if a.shape is None or b.shape is None or min(len(a.shape), len(b.shape)) < 2:
        raise Unreadable("the rank of a factor of the product is unknown or below 2", expr)
    width = a.shape[-1] if isinstance(a.shape[-1], int) else b.shape[-2]
    d = (layout.Atom("d", width),)
    if same_axis(axes[-1], frame.t) and same_axis(axes[-2], frame.s):
        q, k = (a, (*_lead(a, axes), frame.s, d)), (b, (*_lead(b, axes), d, frame.t))
    elif same_axis(axes[-1], frame.s) and same_axis(axes[-2], frame.t):
        q, k = (b, (*_lead(b, axes), d, frame.s)), (a, (*_lead(a, axes), frame.t, d))
    else:
        raise Unreadable(f"a product with axes {layout.text(axes)} does not end in queries by keys", expr)
    return Scores(q=q, k=k).said(expr, "matmul", f"q·kᵀ, width {width}")


def same_axis(axis: layout.Axis, other: layout.Axis) -> bool:
    """Return whether two axes are the same; an axis of length 1 may have lost its atom in a reshape."""
    return axis == other or (not axis and all(a.size == 1 for a in other))


def _lead(x: Expr, axes: layout.Axes) -> layout.Axes:
    """Return the layout of the leading axes of a factor of a product laid out as ``axes``."""
    assert x.shape is not None  # ``_matmul`` looked
    inner = layout.aligned(dataclasses.replace(x, shape=(*x.shape[:-2], 1, 1)), axes)
    return () if inner is None else inner[:-2]


def _times(scores: Scores, factor: float) -> Scores:
    """Return ``scores`` multiplied by a number."""
    masking = scores.masking.scaled(factor)
    if scores.cap is not None:
        return dataclasses.replace(scores, cap=scores.cap * factor, masking=masking)
    return dataclasses.replace(scores, scale=scores.scale * factor, masking=masking)


def _scaled(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    found = layout.scalar_factor(expr)
    if found is None:
        return weighted(expr, axes, frame, peel)
    inner, factor = found
    return _times(peel(inner, axes, frame), factor).said(expr, expr.word, f"scale × {factor:.6g}")


def _added(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    """Try either side for the product; the other is a bias."""
    misses = []
    sides = [expr.args, (expr.args[1], expr.args[0])] if expr.word == "add" else [expr.args]
    for inner, bias in sides:
        if inner.shape is None or len(inner.shape) != len(axes):
            continue
        try:
            scores = peel(inner, axes, frame)
        except Unreadable as miss:
            misses.append(miss)
            continue
        return _with_bias(scores, expr, bias, axes, frame)
    raise misses[0] if misses else Unreadable("neither side of the addition has the rank of the scores", expr)


def _with_bias(scores: Scores, expr: Expr, bias: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    number = bias.number()
    if number == 0.0:
        return scores.said(expr, expr.word, "adds zero")
    term = make("neg", bias) if expr.word == "sub" else bias
    scores = dataclasses.replace(scores, masking=scores.masking.added(term, axes, frame.scores))
    shape = [str(d) for d in bias.shape or ()]
    return scores.said(expr, expr.word, f"bias [{' '.join(shape)}] from {place(bias)}")


def _where(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    keep, yes, no = expr.args
    for inner, fill, kept in ((yes, no, True), (no, yes, False)):
        number = fill_number(fill)
        if number is None or inner.shape is None or len(inner.shape) != len(axes):
            continue
        if number > NEGLIGIBLE:
            raise Unreadable(
                f"masked scores are set to {number:g}, which leaves them weight; a mask sets {NEGLIGIBLE:g} or less",
                expr,
            )
        scores = peel(inner, axes, frame)
        test, found = to_frame(keep, axes, frame.scores), parts(keep, axes, frame.scores, kept)
        scores = dataclasses.replace(scores, masking=scores.masking.replaced(test, kept, found, number))
        return scores.said(expr, "where", f"{'keeps' if kept else 'drops'} where {place(keep)}, fill {number:g}")
    raise Unreadable("a where whose fill is not a known number stands above the product", expr)


def _tanh(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    scores = peel(expr.args[0], axes, frame)
    if scores.masking.said or scores.cap is not None:
        raise Unreadable("a tanh is taken of scores that already have a bias or a soft cap", expr)
    return dataclasses.replace(scores, cap=1.0).said(expr, "tanh", "soft cap")


def _cast(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    if not interpret.is_float(expr.attrs["to"]):
        raise Unreadable(f"the scores are cast to {expr.attrs['to']}", expr)
    scores = peel(expr.args[0], axes, frame)
    scores = dataclasses.replace(scores, masking=scores.masking.cast(expr.attrs["to"]))
    return scores.said(expr, "cast", f"scores in {expr.attrs['to']}")


def _view(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    inner = layout.back(expr, axes)
    if inner is None:
        raise Unreadable(f"a {expr.word} of the scores cannot be followed from {layout.text(axes)}", expr)
    refine(inner[1], frame)
    batch = tuple(a for axis in inner[1] for a in axis if a.letter == "b")
    if frame.h and len(frame.b) == 1 and len(batch) > 1:  # images and windows, beside the heads
        raise Finer(batch, frame.h, ())
    scores = peel(*inner, frame)
    return scores.said(expr, expr.word, f"{layout.text(inner[1])} → {layout.text(axes)}")


def _clamped(expr: Expr, axes: layout.Axes, frame: Frame) -> Scores:
    """Read max(scores, lowest), which keeps stacked masks finite."""
    x, y = expr.args
    inner, floor = (x, y.number()) if y.number() is not None else (y, x.number())
    if floor is None or floor > NEGLIGIBLE:
        raise Unreadable("the scores are clamped from below at a number that leaves weight", expr)
    scores = peel(inner, axes, frame)
    scores = dataclasses.replace(scores, masking=scores.masking.clamped(floor))
    return scores.said(expr, "max", f"mask clamped at {floor:g}")


_PEELS: dict[str, Callable[[Expr, layout.Axes, Frame], Scores]] = {
    "matmul": _matmul,
    "mul": _scaled,
    "div": _scaled,
    "add": _added,
    "sub": _added,
    "where": _where,
    "tanh": _tanh,
    "cast": _cast,
    "max": _clamped,
    **dict.fromkeys(("reshape", "transpose", "unsqueeze", "squeeze"), _view),
}
