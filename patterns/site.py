"""What readers return: sites that rules can rewrite, and declines that say why not. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from patterns.mask import Causal, Mask
from patterns.surroundings import Cache, Norm, Projection, Rope
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
        window: 0, or that of those it sees the last so many only; proved, and not in ``bias``.
        keys: None, or bool [b t] of the keys that are visible; proved, and not in ``bias``.
        averages: whether a query that sees no key averages over all of them; else it gives 0.
        whole: the bias with all that the flags say in it, for operations that lack some of them.
        mask: all that was read of the mask, wherever it is passed; in words as text.
        out: the tensor that holds the result, and its layout.
        node: the node of the softmax, or of the operation that holds it.
        leaks: readers of the probabilities besides the product with v.
        beside: what else the node of ``out`` gives (its present keys and values), by handle; a rewrite makes it too.
        rope, qk_norm, cache: what queries and keys come through; None: looked for and not found.
        projections: by "q", "k" and "v" the constant weights that they come from; None likewise.
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
    causal: Causal | None = field(compare=False)  # what ``mask`` says; ONNX exports lose the guard that lets it out
    window: int = field(compare=False)
    keys: Expr | None = field(compare=False)
    averages: bool = field(compare=False)
    whole: Expr | None = field(compare=False)
    mask: Mask
    heads: Dim
    kv_heads: Dim
    head_width: Dim | None
    value_width: Dim | None
    out: Operand
    node: Any = field(compare=False)
    leaks: Sequence[str] = field(compare=False, default=())
    beside: Mapping[Any, Expr] = field(compare=False, default_factory=dict)
    rope: Rope | None
    qk_norm: Norm | None
    cache: Cache | None
    projections: Mapping[str, Projection | None]
    frame: dict[str, Axis] = field(compare=False, default_factory=dict)
    steps: Sequence[Step] = field(compare=False, default=())
    scale_digits: str = field(init=False)  # what of the scale is compared: exporters split it into float32 factors

    kind = "attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale_digits", f"{self.scale:.6g}")

    @property
    def around(self) -> Sequence[str]:
        """What queries, keys and values come through, in words."""
        return [part.said for part in (self.rope, self.qk_norm, self.cache) if part is not None]

    @property
    def surroundings(self) -> Mapping[str, str]:
        """The same at length, each with what was not found."""
        parts = {"rope": self.rope, "qk norm": self.qk_norm, "cache": self.cache, **self.projections}
        return {name: "none found" if part is None else part.sentence for name, part in parts.items()}

    @property
    def reads_as(self) -> str:
        """The site as a formula."""
        score = "q·kᵀ" if self.scale == 1.0 else f"{self.scale:.6g} q·kᵀ"
        if self.softcap:
            score = f"{self.softcap:g} tanh({score} / {self.softcap:g})"
        score += " + bias" if self.bias is not None else ""
        flags = ", causal" * (self.causal is not None) + f", window {self.window}" * bool(self.window)
        flags += ", keys" * (self.keys is not None)
        return f"softmax({score}{flags}) v"


@dataclass(frozen=True, kw_only=True)
class FeedForwardSite:
    """One feed-forward block of a graph.

    Plain ``out = act(x·w_inᵀ + b_in)·w_outᵀ + b_out``; gated
    ``out = (act(x·w_gateᵀ + b_gate) ⊙ (x·w_inᵀ + b_in))·w_outᵀ + b_out``.

    Attributes:
        activation: which, decided by its numbers; a key of ``activation.ACTIVATIONS``.
        x: the input; one axis is m, the others are rows.
        w_in, w_gate: weights of axes f and m; w_gate is None in a plain block.
        w_out: weights of axes m and f; the m of the output may be another length than that of the input.
        b_in, b_gate: vectors [f], or None.
        b_out: a vector [m], or None where no bias directly follows the second product; then it is not in ``out``.
        out: the result, after ``b_out``; the same rows as x, perhaps in another order.
        quantised: None, or the operators that round its numbers to few bits: the formula holds up to that rounding.
        stored: None, or the element type that weights are worked out from if that is none of floats.
        inner: the tensor [… f] that the second product reads.
        node: the node of the second product.
        leaks: readers of the inner tensor besides the second product.
        steps: how it was read.
    """

    anchor: str = field(compare=False)
    activation: str
    x: Operand
    w_in: Operand
    b_in: Expr | None = field(compare=False)
    w_gate: Operand | None
    b_gate: Expr | None = field(compare=False)
    w_out: Operand
    b_out: Expr | None = field(compare=False)
    out: Operand
    quantised: str | None
    stored: str | None
    inner: Operand = field(compare=False)
    node: Any = field(compare=False)
    leaks: Sequence[str] = field(compare=False, default=())
    steps: Sequence[Step] = field(compare=False, default=())

    kind = "feed-forward"

    @property
    def gated(self) -> bool:
        """Whether a second projection multiplies the activation."""
        return self.w_gate is not None

    @property
    def rows(self) -> Axes:
        """The axes of the tokens, in the order of x: x is ``arranged((*rows, m))``."""
        return tuple(axis for axis in self.x.axes if not _lettered(axis, "m"))

    @property
    def model_width(self) -> Dim:
        """Length m of the input."""
        return next(a.size for axis in self.x.axes for a in axis if a.name == "m")

    @property
    def inner_width(self) -> Dim:
        """Length f."""
        return next(a.size for axis in self.w_out.axes for a in axis if a.name == "f")

    @property
    def biases(self) -> tuple[str, ...]:
        """Which of its products have a bias: "in", "gate", "out"."""
        given = {"in": self.b_in, "gate": self.b_gate, "out": self.b_out}
        return tuple(name for name, bias in given.items() if bias is not None)

    @property
    def around(self) -> Sequence[str]:
        """What its numbers are besides floats, in words."""
        return (*((f"{self.stored} weights",) if self.stored else ()), *((self.quantised,) if self.quantised else ()))

    @property
    def reads_as(self) -> str:
        """The block as a formula."""
        first = self.b_gate if self.gated else self.b_in
        inner, up = (f"x·{w}{'' if b is None else ' + b'}" for w, b in (("w", first), ("u", self.b_in)))
        up = up if self.b_in is None else f"({up})"
        block = f"({self.activation}({inner}) ⊙ {up})·w_out" if self.gated else f"{self.activation}({inner})·w_out"
        return block if self.b_out is None else f"{block} + b_out"


def _lettered(axis: Axis, letter: str) -> bool:
    return any(a.letter == letter for a in axis)


@dataclass(frozen=True, kw_only=True)
class EncoderSite:
    """The attention layers of an encoder, in order along its residual stream.

    Attributes:
        layers: its attention sites, lowest first.
        cuts: the hidden states [b t m] after layer 1, 2, …, as far as tokens are proved to meet in attention only.
        stopped: why there are fewer cuts than layers.
        lookups: the embeddings that are looked up by what the model is given.
        tables: the inputs that choose embeddings themselves, by name, with the rows of the largest table of each.
        given: integer inputs [b t] of the model by name.
        node: the node of the first layer's result.
        chosen: the gather of fixed tokens that alone reads what the last layer gives, or why there is none.
        steps: how it was read.
    """

    anchor: str
    layers: Sequence[AttentionSite]
    cuts: Sequence[Operand]
    stopped: str | None
    model_width: Dim | None
    lookups: Sequence[Expr] = field(compare=False)
    tables: Mapping[str, int] = field(compare=False)
    given: Mapping[str, Expr] = field(compare=False)
    node: Any = field(compare=False)
    chosen: Expr | str = field(compare=False)
    steps: Sequence[Step] = field(compare=False, default=())

    kind = "encoder"

    @property
    def reads_as(self) -> str:
        """The encoder in words."""
        proved = "" if len(self.cuts) == len(self.layers) else f", {len(self.cuts)} of them token by token"
        return f"{len(self.layers)} layers over [b t m]{proved}"

    @property
    def words(self) -> str | None:
        """The input that chooses from the largest table: the words."""
        return max(self.tables, key=lambda name: self.tables[name], default=None)


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
