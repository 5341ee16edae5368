"""What readers return: sites that rules can rewrite, and declines that say why not. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patterns.mask import Causal, Mask
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
        bias: what is added to the scores, masks included, arranged to broadcast to [b h s t].
        causal: None, or that query i sees key j only if j <= i + offset; proved, and not in ``bias``.
        keys: None, or bool [b t] of the keys that are visible; proved, and not in ``bias``.
        mask: all that was read of the mask, wherever it is passed; in words as text.
        out: the tensor that holds the result, and its layout.
        node: the node of the softmax, or of the operation that holds it.
        leaks: readers of the probabilities besides the product with v.
        frame: the layout that the operands are arranged to: letter to atoms.
        steps: how it was read.
    """

    anchor: str
    q: Operand
    k: Operand
    v: Operand
    scale: float
    softcap: float | None
    bias: Expr | None = field(compare=False)
    causal: Causal | None
    keys: Expr | None = field(compare=False)
    mask: Mask
    heads: Dim
    kv_heads: Dim
    head_width: Dim | None
    value_width: Dim | None
    out: Operand
    node: Any = field(compare=False)
    leaks: Sequence[str] = ()
    frame: dict[str, Axis] = field(compare=False, default_factory=dict)
    steps: Sequence[Step] = field(compare=False, default=())

    kind = "attention"

    @property
    def reads_as(self) -> str:
        """The site as a formula."""
        score = "q·kᵀ" if self.scale == 1.0 else f"{self.scale:.6g} q·kᵀ"
        if self.softcap:
            score = f"{self.softcap:g} tanh({score} / {self.softcap:g})"
        score += " + bias" if self.bias is not None else ""
        flags = ", causal" * (self.causal is not None) + ", keys" * (self.keys is not None)
        return f"softmax({score}{flags}) v"


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

    anchor: str
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
class EncoderSite:
    """The attention layers of an encoder, in order along its residual stream.

    Attributes:
        layers: its attention sites, lowest first.
        cuts: the hidden states [b t m] after layer 1, 2, …, as far as tokens are proved to meet in attention only.
        stopped: why there are fewer cuts than layers.
        lookups: the embeddings that are looked up by what the model is given.
        given: integer inputs [b t] of the model by name.
        node: the node of the first layer's result.
        steps: how it was read.
    """

    anchor: str
    layers: Sequence[AttentionSite]
    cuts: Sequence[Operand]
    stopped: str | None
    model_width: Dim | None
    lookups: Sequence[Expr] = field(compare=False)
    given: Mapping[str, Expr] = field(compare=False)
    node: Any = field(compare=False)
    steps: Sequence[Step] = field(compare=False, default=())

    kind = "encoder"

    @property
    def reads_as(self) -> str:
        """The encoder in words."""
        proved = "" if len(self.cuts) == len(self.layers) else f", {len(self.cuts)} of them token by token"
        return f"{len(self.layers)} layers over [b t m]{proved}"


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
