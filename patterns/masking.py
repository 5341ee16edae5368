"""All masks of one attention together: what they say, and which of it may leave the bias for flags of the operation.

The operation hides a key wholly: its weight is 0, and a row without a visible key gives 0. A mask may become such a
flag only where the original does the same, so:

* a fill of -inf may (a row that it hides whole is NaN in the original, or 0 behind a guard; here it is 0);
* a finite fill may only if it is the only mask and provably leaves every row a key, as a causal mask does. Any other
  row that is hidden whole averages over *all* keys in the original, which no flag does. It stays a bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patterns import fills
from patterns.fills import NEGLIGIBLE, Fill
from patterns.mask import Bias, Causal, Keys, Mask, Window, together
from patterns.positions import never_negative
from patterns.site import Unreadable
from patterns.visible import Part, Parts, to_frame
from rewriter import layout
from runtime_ops.words import Expr, const, make

LOWEST = float(np.finfo(np.float32).min)
SWALLOWS = -1e30  # added to a score, a fill at or below this leaves nothing of it in float32


@dataclass(frozen=True, kw_only=True)
class Lone:
    """The only mask so far: causal, with a finite fill that replaces or swallows every hidden score."""

    causal: Causal
    fill: float
    enough: float  # the fill must stay at or below this, whatever the scores are multiplied by


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What has been added to the scores so far, innermost first.

    Attributes:
        said: every mask and bias that was met.
        causal: proved and passed as a flag; not in ``bias``.
        keys: bool [b t] of the visible keys, passed as a mask of keys; not in ``bias``.
        hidden: the same as a bias of 0 and -inf, for what needs it as one.
        bias: what is added, arranged to the frame.
        lone: a causal mask that may leave the bias if nothing else is met.
        kept: why what was proved stays in the bias.
    """

    said: tuple[Mask, ...] = ()
    causal: Causal | None = None
    keys: Expr | None = None
    hidden: Expr | None = None
    bias: Expr | None = None
    lone: Lone | None = None
    kept: str = ""

    @property
    def mask(self) -> Mask:
        """Everything that was met, as one mask."""
        return together(self.said)

    @property
    def fields(self) -> dict[str, Any]:
        """What a site says of its masks."""
        return {"bias": self.bias, "causal": self.causal, "keys": self.keys, "mask": self.mask}

    @property
    def verdict(self) -> str:
        """How the operation gets the mask, and why no better."""
        flags = ["causal"] * (self.causal is not None) + ["key_mask"] * (self.keys is not None)
        passed = [f"passed as {' and '.join(flags)}"] * bool(flags) + ["added as a bias"] * (self.bias is not None)
        return " and ".join(passed) + (f": {self.kept}" if self.kept else "")

    def scaled(self, factor: float) -> Masking:
        """Return this when the scores and all that was added are multiplied by a number."""
        if factor == 1.0:
            return self
        now = self if factor > 0 else self.softened()  # else -inf becomes something that hides nothing
        bias = None if now.bias is None else make("mul", now.bias, const(factor, now.bias.dtype))
        lone = None if now.lone is None else dataclasses.replace(now.lone, fill=now.lone.fill * factor)
        return dataclasses.replace(now, bias=bias, lone=lone)

    def softened(self) -> Masking:
        """Return this with every flag turned into a bias: what follows turns -inf into something else."""
        reason = "the scores are changed again after it" if self.hidden is not None or self.lone else self.kept
        if self.hidden is None:
            return dataclasses.replace(self, lone=None, kept=reason)
        bias = _sum(self.bias, self.hidden)
        return dataclasses.replace(self, causal=None, keys=None, hidden=None, lone=None, bias=bias, kept=reason)

    def clamped(self, floor: float) -> Masking:
        """Return this when the scores are clamped from below at a number that leaves no weight."""
        soft = self.softened()
        if soft.bias is None:
            return soft
        return dataclasses.replace(soft, bias=make("max", soft.bias, const(floor, soft.bias.dtype)))

    def added(self, term: Expr, axes: layout.Axes, frame: layout.Axes) -> Masking:
        """Return this with a term added to the scores."""
        found = _taken_apart(term, axes, frame)
        masks = [fill for _, fill in found if fill is not None]
        if len(found) == 1 or any(fill.number == -np.inf for fill in masks):
            now = self
            for x, fill in found:
                now = now._soft([Bias(value=x)], x, now.kept) if fill is None else now._filled(fill, x)
            return now
        met = [m for x, fill in found for m in (_masks(fill.parts) if fill else [Bias(value=x)])]
        kept = self._why([p for fill in masks for p in fill.parts], masks[0].number)
        return self._soft(met, to_frame(term, axes, frame), kept)

    def replaced(self, test: Expr, yes: bool, found: Parts, number: float) -> Masking:
        """Return this where hidden scores are set to a fill.

        Args:
            test: the mask, arranged to the frame.
            yes: whether true or false of it is visible.
            found: the same taken apart.
            number: the fill.
        """
        if not found:
            return self
        if number == -np.inf:
            return self._hard(found, _masked(test, None, -np.inf, yes=yes))
        soft = self.softened()
        lone = _lone(soft, found, number, NEGLIGIBLE)
        small = _smaller(found)
        bias = _masked(test, soft.bias, number, yes=yes) if small is None else _masked(small, soft.bias, number)
        kept = "" if lone else soft._why(found, number)
        return dataclasses.replace(soft, said=(*self.said, *_masks(found)), bias=bias, lone=lone, kept=kept)

    def finished(self) -> Masking:
        """Return this when nothing more is met: a lone causal mask that hides no row whole becomes a flag."""
        if self.lone is None:
            return self
        if self.lone.fill > self.lone.enough:
            return dataclasses.replace(self, kept=f"its fill {self.lone.fill:g} might leave a hidden key some weight")
        return dataclasses.replace(self, causal=self.lone.causal, bias=None, lone=None, kept="")

    def _filled(self, fill: Fill, term: Expr) -> Masking:
        if not fill.parts:
            return self
        if fill.number == -np.inf:
            return self._hard(fill.parts, term)
        lone = _lone(self, fill.parts, fill.number, SWALLOWS)
        small = _smaller(fill.parts)
        bias = term if small is None or small.shape == term.shape else _masked(small, None, fill.number, term.dtype)
        kept = "" if lone else self._why(fill.parts, fill.number)
        soft = self._soft(_masks(fill.parts), bias, kept)
        return dataclasses.replace(soft, lone=lone)

    def _soft(self, met: Sequence[Mask], term: Expr, kept: str) -> Masking:
        said, kept = (*self.said, *met), kept or (_BESIDE if self.lone else "")
        return dataclasses.replace(self, said=said, bias=_sum(self.bias, term), lone=None, kept=kept)

    def _hard(self, found: Parts, hidden: Expr) -> Masking:
        """Return this with a mask that hides by -inf: what flags can say becomes one, the rest a bias of -inf."""
        said, causal, keys = (*self.said, *_masks(found)), self.causal, self.keys
        rest: list[Part] = []
        for part in found:
            if isinstance(part.mask, Causal) and causal in (None, part.mask):
                causal = part.mask
            elif isinstance(part.mask, Keys):
                keys = part.mask.valid if keys is None else make("and", keys, part.mask.valid)
            else:
                rest.append(part)
        bias = _sum(self.bias, _masked(_all(rest), None, -np.inf)) if rest else self.bias
        kept = _WINDOW if any(isinstance(p.mask, Window) for p in rest) else self.kept
        now = dataclasses.replace(self, said=said, causal=causal, keys=keys, bias=bias, lone=None, kept=kept)
        return dataclasses.replace(now, hidden=_sum(self.hidden, hidden))

    def _why(self, found: Sequence[Part], number: float) -> str:
        """Return why a finite fill keeps a mask in the bias; nothing where no flag could say it anyway."""
        if not any(isinstance(p.mask, (Causal, Keys)) for p in found):
            return self.kept
        return (
            f"its fill {number:g} is finite, so a row whose keys are all hidden still averages over keys, "
            "where causal and key_mask give 0; a fill of -inf would allow them"
        )


_BESIDE = "something else is added beside it that might hide what it leaves visible"
_WINDOW = "the operation has no flag for a window"


def _lone(before: Masking, found: Parts, number: float, enough: float) -> Lone | None:
    """Return a mask that may become a flag: the first one, causal, and every row sees the first key."""
    masks = _masks(found)
    if before.said or len(masks) != 1 or not isinstance(masks[0], Causal) or not never_negative(masks[0].offset):
        return None
    return Lone(causal=masks[0], fill=number, enough=enough)


def _masks(found: Parts) -> Sequence[Mask]:
    return [part.mask for part in found]


def _taken_apart(term: Expr, axes: layout.Axes, frame: layout.Axes) -> list[tuple[Expr, Fill | None]]:
    """Return the additive masks in a term and what else it adds, arranged; the term itself if no mask is found."""
    found = [(x, have, fills.read(x, have, frame)) for x, have in fills.addends(term, axes)]
    try:
        if any(fill is not None for *_, fill in found):
            return [(to_frame(x, have, frame), fill) for x, have, fill in found]
    except Unreadable:
        pass  # what cannot be arranged alone may be arranged together
    return [(to_frame(term, axes, frame), None)]


def _smaller(found: Parts) -> Expr | None:
    """Return a mask that spans no queries if none of its parts does."""
    return _all(found) if all(p.keep.shape is not None and p.keep.shape[-2] == 1 for p in found) else None


def _all(found: Sequence[Part]) -> Expr:
    """Return what says that all parts let a key through; parts of one tensor name it once."""
    tensors = list({id(p.keep): p.keep for p in found}.values())
    keep = tensors[0]
    for other in tensors[1:]:
        keep = make("and", keep, other)
    return keep


def _sum(a: Expr | None, b: Expr) -> Expr:
    return b if a is None else make("add", *one_type(a, b))


def one_type(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """Return both in float32 if their types differ, so that they can be added."""
    if a.dtype == b.dtype:
        return a, b
    wide = np.dtype(np.float32)
    return tuple(x if x.dtype == wide else make("cast", x, to=wide) for x in (a, b))  # type: ignore[return-value]


def _masked(test: Expr, inner: Expr | None, fill: float, dtype: np.dtype[Any] | None = None, yes: bool = True) -> Expr:
    """Return the bias that gives every hidden key ``fill`` instead of its score."""
    # A finite fill replaces the score. Added to it, only the lowest float32 swallows every score, so that a row
    # in which all is masked averages uniformly, as it does in the original.
    number = LOWEST if inner is None and np.isfinite(fill) and dtype is None else fill
    base = const(0.0, dtype) if inner is None else one_type(inner, const(0.0))[0]
    hidden = const(number, dtype)
    return make("where", test, *((base, hidden) if yes else (hidden, base)))
