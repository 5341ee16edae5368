"""What readers return: sites that rules can rewrite, and declines that say why not. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter.layout import Axes, Axis, arrange, text
from rewriter.report import Step
from runtime_ops.dims import Dim
from runtime_ops.words import Expr


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A tensor of the graph and what each of its axes means.

    Attributes:
        value: the tensor; a handle into the graph, so two operands are equal if their layouts are.
        axes: its layout; permutations and broadcasts are undone.
    """

    value: Expr = field(compare=False)
    axes: Axes = field(compare=False)

    @property
    def layout(self) -> str:
        """Layout as text, e.g. ``b t g d``."""
        return text(self.axes)

    def arranged(self, target: Axes) -> Expr | None:
        """Return the tensor brought to another layout, None if that cannot be expressed."""
        return arrange(self.value, self.axes, target)


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """One softmax(QKᵀ)V of a graph.

    ``out = softmax(cap(scale · q·kᵀ) + bias) · v``, with q [b h s d], k [b g t d], v [b g t e] after arranging.

    Attributes:
        q, k, v: the operands, with the layout that they have in the graph.
        bias: everything that is added to the scores, masks included, arranged to broadcast to [b h s t].
        causal: None, or c where it is proved that query i sees key j only if j <= i + c; then not in ``bias``.
        mask: causality and bias in words.
        out: the tensor that holds the result, and its layout.
        node: the node of the softmax, or of the operation that holds it.
        leaks: readers of the probabilities besides the product with v.
        frame: the layout that the operands are arranged to: letter to atoms.
        steps: how it was read.
    """

    anchor: str = field(compare=False)
    q: Operand
    k: Operand
    v: Operand
    scale: float = field(compare=False)
    softcap: float | None
    bias: Expr | None = field(compare=False)
    causal: int | None
    mask: str
    heads: Dim
    kv_heads: Dim
    head_width: Dim | None
    value_width: Dim | None
    out: Operand
    node: Any = field(compare=False)
    leaks: Sequence[str] = field(compare=False, default=())
    frame: dict[str, Axis] = field(compare=False, default_factory=dict)
    steps: Sequence[Step] = field(compare=False, default=())
    scale_digits: str = field(init=False)  # what of the scale is compared: exporters split it into float32 factors

    kind = "attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale_digits", f"{self.scale:.6g}")

    @property
    def reads_as(self) -> str:
        """The site as a formula."""
        score = "q·kᵀ" if self.scale == 1.0 else f"{self.scale:.6g} q·kᵀ"
        if self.softcap:
            score = f"{self.softcap:g} tanh({score} / {self.softcap:g})"
        score += " + bias" if self.bias is not None else ""
        return f"softmax({score}{', causal' if self.causal is not None else ''}) v"


@dataclass(frozen=True, kw_only=True)
class FeedForwardSite:
    """One feed-forward block of a graph: ``out = (activation(x·w_in + b_in) [· (x·w_up + b_up)]) · w_out``.

    Attributes:
        activation: which, decided by its numbers.
        gated: whether a second projection multiplies the activation.
        model_width, inner_width: lengths m and f.
        bias_in: whether the first product has a bias.
        x, out: the tensors between which the block lies; ``out`` before the second bias.
        node: the node of the second product.
        steps: how it was read.
    """

    anchor: str = field(compare=False)
    activation: str
    gated: bool
    model_width: Dim | None
    inner_width: Dim | None
    bias_in: bool
    x: Expr = field(compare=False)
    out: Expr = field(compare=False)
    node: Any = field(compare=False)
    steps: Sequence[Step] = field(compare=False, default=())

    kind = "feed-forward"

    @property
    def reads_as(self) -> str:
        """The block as a formula."""
        inner = f"{self.activation}(x·w{' + b' if self.bias_in else ''})"
        return f"({inner} ⊙ x·u)·w_out" if self.gated else f"{inner}·w_out"


@dataclass(frozen=True, kw_only=True)
class Decline:
    """Why an anchor was not read as a site: a sentence, the node, and how far the reader got."""

    anchor: str
    kind: str
    reason: str
    at: str
    steps: Sequence[Step] = field(compare=False, default=())


class Unreadable(Exception):  # noqa: N818 - control flow inside readers, never seen by users
    """Reading stopped; readers turn it into a Decline. ``steps`` is how far they had come, outermost first."""

    def __init__(self, reason: str, at: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at = at
        self.steps: tuple[Step, ...] = ()
