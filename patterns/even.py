"""Even masks: finite fills that leave every hidden key one and the same score, and what else is added beside them.

A row that such masks hide whole averages over all keys, which an operation can say. So a fill must be set in place of
the score, or be so low that it swallows the score; two of them must not be added up, or keys that both hide would
have a lower score than others; and nothing added beside them may reach as far as the fill does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from patterns.bound import bound
from patterns.fills import NEGLIGIBLE, Fill
from patterns.mask import Causal
from patterns.positions import never_negative
from patterns.visible import Parts
from runtime_ops.words import Expr, const, make

SWALLOWS = -1e30  # added to a score, a fill at or below this leaves nothing of it in float32
SWALLOWED = 1e20  # nor of a bias up to this


@dataclass(frozen=True, kw_only=True)
class Even:
    """All that was added to the scores so far, as even masks and a bias.

    Attributes:
        parts: what a key must satisfy to be visible; empty: there are no masks.
        fill: the score of any other key.
        highest: no hidden key has a higher score.
        beside: what else is added.
        reach: how far that can change a score.
        broken: why hidden keys have no such score in common; empty if they have.
    """

    parts: Parts = ()
    fill: float = 0.0
    highest: float = -np.inf
    beside: Expr | None = None
    reach: float = 0.0
    broken: str = ""

    @property
    def why_not(self) -> str:
        """Why flags cannot say the same; nothing if they can."""
        if self.broken or self.fill > NEGLIGIBLE:
            return self.broken or f"its fill {self.fill:g} might leave a hidden key some weight"
        if self.fill == -np.inf and not self.leaves_a_key:
            return "its fill becomes -inf in a narrower type, so a row whose keys are all hidden is undefined"
        return "" if self.reach <= min(SWALLOWED, -self.fill / 100) else _BESIDE

    @property
    def leaves_a_key(self) -> bool:
        """Whether every row provably sees a key, as under a causal mask it sees the first one."""
        only = self.parts[0].mask if len(self.parts) == 1 else None
        return isinstance(only, Causal) and never_negative(only.offset)

    def beside_hard(self) -> Even:
        """Return this beside a mask of -inf."""
        return dataclasses.replace(self, broken=self.broken or _MIXED)

    def added(self, fill: Fill) -> Even:
        """Return this with a mask added."""
        if not fill.parts or fill.number == -np.inf:
            return self
        why = self.broken or (_PILED if self.parts else "")
        if not why and fill.number > SWALLOWS:
            why = _ADDED.format(fill.number)
        parts, highest = (*self.parts, *fill.parts), max(self.highest, fill.number)
        return dataclasses.replace(self, parts=parts, fill=fill.number, highest=highest, broken=why)

    def replaced(self, found: Parts, number: float) -> Even:
        """Return this with the scores of hidden keys set to a number."""
        why = self.broken or (_PILED if self.parts and number != self.fill else "")
        parts, highest = (*self.parts, *found), max(self.highest, number)
        return dataclasses.replace(self, parts=parts, fill=number, highest=highest, broken=why)

    def beside_it(self, term: Expr) -> Even:
        """Return this with a bias added."""
        return dataclasses.replace(self, beside=added_up(self.beside, term), reach=self.reach + bound(term))

    def scaled(self, factor: float) -> Even:
        """Return this when the scores and all that was added are multiplied by a number."""
        beside = None if self.beside is None else make("mul", self.beside, const(factor, self.beside.dtype))
        fill, highest = self.fill * factor, self.highest * factor
        broken = self.broken if factor > 0 else _TURNED
        return dataclasses.replace(self, beside=beside, reach=self.reach * abs(factor), fill=fill, highest=highest,
                                   broken=broken)  # fmt: skip

    def cast(self, dtype: np.dtype[Any]) -> Even:
        """Return this when the scores and all that was added are cast to another type of floats."""
        with np.errstate(over="ignore"):
            fill, highest = (float(np.asarray(x).astype(dtype)) for x in (self.fill, self.highest))
        return dataclasses.replace(self, fill=fill, highest=highest)

    def clamped(self, floor: float) -> Even:
        """Return this when the scores are clamped from below: piled fills become one again."""
        if self.broken == _PILED and floor >= self.highest:
            return dataclasses.replace(self, fill=floor, highest=floor, broken="")
        return dataclasses.replace(self, fill=max(self.fill, floor), highest=max(self.highest, floor))


_ADDED = (
    "its fill {:g} is added, so a row whose keys are all hidden still weighs them by their scores; a fill of -inf, "
    "or one that is set in place of the score, would allow flags"
)
_PILED = "fills are added up, so a row whose keys are all hidden averages over those that the fewest masks hide"
_MIXED = "a finite fill beside one of -inf makes a row whose keys are all hidden average over some of them"
_BESIDE = "something else is added beside it that might hide what it leaves visible"
_TURNED = "the scores are turned around after it"


def added_up(a: Expr | None, b: Expr) -> Expr:
    """Return the sum of two biases, of which there may be one only."""
    return b if a is None else make("add", *one_type(a, b))


def one_type(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """Return both in float32 if their types differ, so that they can be added."""
    if a.dtype == b.dtype:
        return a, b
    wide = np.dtype(np.float32)
    return tuple(x if x.dtype == wide else make("cast", x, to=wide) for x in (a, b))  # type: ignore[return-value]
