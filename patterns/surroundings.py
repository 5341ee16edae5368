"""What queries, keys and values of a site come through: data, printed by ``graft show`` and used by rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rewriter.report import Report
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from patterns.site import Operand


_HIDDEN = {"json": False}  # handles into the graph are no data


@dataclass(frozen=True, kw_only=True)
class Rope(Report):
    """Rotary embedding of queries and keys.

    Attributes:
        form: "halves" turns channel i against channel i + width/2, "pairs" channel 2i against 2i + 1.
        width, of: how many channels of how many are turned.
        sides: "q k", or the one of them that is turned.
    """

    form: str
    width: int
    of: int
    sides: str = "q k"

    def on(self, side: str) -> Rope:
        """Return the same for one side alone."""
        return replace(self, sides=side)

    @property
    def said(self) -> str:
        """Two or three words for tables."""
        part = "" if self.width == self.of else f" {self.width}/{self.of}"
        return f"rope{part}{'' if self.sides == 'q k' else f' of {self.sides}'}"

    @property
    def sentence(self) -> str:
        """A line for the story of a site."""
        how = "the first half against the second" if self.form == "halves" else "neighbours in pairs"
        return f"of {' and '.join(self.sides.split())}, {self.width} of {self.of} channels, {how}"


@dataclass(frozen=True, kw_only=True)
class Norm(Report):
    """Norm of queries and keys: "rms", "layer" or "l2", over one head's channels ("head") or those of "all heads"."""

    form: str
    over: str  # "head" | "all heads"
    sides: str = "q k"

    def on(self, side: str) -> Norm:
        """Return the same for one side alone."""
        return replace(self, sides=side)

    @property
    def said(self) -> str:
        """Two or three words for tables."""
        return "qk-norm" if self.sides == "q k" else f"{self.sides}-norm"

    @property
    def sentence(self) -> str:
        """A line for the story of a site."""
        return f"{self.form} norm of {' and '.join(self.sides.split())}, over {self.over}"


@dataclass(frozen=True, kw_only=True)
class Cache(Report):
    """Keys and values that come from before, joined with new ones along t.

    Attributes:
        past: names of the past keys and values in the graph.
        presents: names of the outputs that hold past and new together; None where none does.
        past_k, past_v, new_k, new_v: the tensors, in the layout of what joins them.
    """

    past: Sequence[str] = field(compare=False)
    presents: Sequence[str | None] = field(compare=False)
    past_k: Operand = field(compare=False, repr=False, metadata=_HIDDEN)
    past_v: Operand = field(compare=False, repr=False, metadata=_HIDDEN)
    new_k: Operand = field(compare=False, repr=False, metadata=_HIDDEN)
    new_v: Operand = field(compare=False, repr=False, metadata=_HIDDEN)

    @property
    def said(self) -> str:
        """One word for tables."""
        return "cache"

    @property
    def sentence(self) -> str:
        """A line for the story of a site."""
        given = ", ".join(p or "no output" for p in self.presents)
        return f"{', '.join(self.past)} joined with new keys and values → {given}"


@dataclass(frozen=True, kw_only=True)
class Projection(Report):
    """The product with constant weights that queries, keys or values come from: columns of ``x · weight [+ bias]``.

    Attributes:
        width: how many columns of the weights are used.
        columns: (first, one past the last) where they lie side by side, else None.
        packed: whether the weights make other operands too.
        biased: whether a constant is added.
        x, weight, bias: the tensors.
    """

    width: int
    columns: tuple[int, int] | None
    packed: bool
    biased: bool
    x: Expr = field(compare=False, repr=False, metadata=_HIDDEN)
    weight: Expr = field(compare=False, repr=False, metadata=_HIDDEN)
    bias: Expr | None = field(compare=False, repr=False, metadata=_HIDDEN)

    @property
    def sentence(self) -> str:
        """A line for the story of a site."""
        where = "" if not self.packed else f" of {self.weight.shape[-1] if self.weight.shape else '?'} (packed)"
        name = getattr(self.weight.handle, "name", None) or "weights"
        return f"{self.width} columns{where} of {name}{', plus a bias' if self.biased else ''}"
