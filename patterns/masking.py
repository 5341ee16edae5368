"""All masks of one attention together: what they say, and which of it may leave the bias for flags of the operation.

The operation hides a key wholly: its weight is 0, and a row without a visible key gives 0 or the mean of all values.
A mask may become such a flag only where the original does the same, so:

* a fill of -inf may (a row that it hides whole is NaN in the original, or 0 behind a guard; here it is 0);
* finite fills may if they are even (``patterns.even``), so that a row that is hidden whole averages over all keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patterns import fills
from patterns.even import Even, added_up, one_type
from patterns.fills import Fill
from patterns.mask import Bias, Causal, Keys, Mask, Window, together
from patterns.site import Unreadable
from patterns.visible import Part, Parts, masks, to_frame
from rewriter import layout
from runtime_ops.words import Expr, const, make

LOWEST = float(np.finfo(np.float32).min)
_SWALLOWS_SCORES = -1e8  # added in float32, a fill at or below this leaves nothing of a score of usual size


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What has been added to the scores so far, innermost first.

    Attributes:
        said: every mask and bias that was met.
        causal: proved and passed as a flag; not in ``bias``.
        window: how many keys back from the last one that is not ahead are visible; 0: all; likewise.
        keys: bool [b t] of the visible keys, passed as a mask of keys; likewise.
        averages: whether a row without a visible key averages over all keys.
        hidden: what flags say as a bias of 0 and -inf, for what needs it as one.
        bias: what is added, arranged to the frame.
        whole: everything as one bias, once nothing more is met.
        even: finite masks that may leave the bias if nothing else is met.
        kept: why what was proved stays in the bias.
        weak: why no bias says what a row gets that is hidden whole; empty if one does.
    """

    said: tuple[Mask, ...] = ()
    causal: Causal | None = None
    window: int = 0
    keys: Expr | None = None
    averages: bool = False
    hidden: Expr | None = None
    bias: Expr | None = None
    whole: Expr | None = None
    even: Even = field(default_factory=Even)
    kept: str = ""
    weak: str = ""

    @property
    def mask(self) -> Mask:
        """Everything that was met, as one mask."""
        return together(self.said)

    @property
    def fields(self) -> dict[str, Any]:
        """What a site says of its masks."""
        flags = {"causal": self.causal, "window": self.window, "keys": self.keys, "averages": self.averages}
        return {"bias": self.bias, "whole": self.whole, "mask": self.mask, **flags}

    @property
    def verdict(self) -> str:
        """How the operation gets the mask, and why no better."""
        given = {"causal": self.causal, "window": self.window or None, "key_mask": self.keys}
        flags = [name for name, value in given.items() if value is not None]
        passed = [f"passed as {' and '.join(flags)}"] * bool(flags) + ["added as a bias"] * (self.bias is not None)
        averages = "; rows without a key average over all keys" * self.averages
        return " and ".join(passed) + averages + (f": {self.kept}" if self.kept else "")

    def scaled(self, factor: float) -> Masking:
        """Return this when the scores and all that was added are multiplied by a number."""
        if factor == 1.0:
            return self
        now = self if factor > 0 else self.softened()  # else -inf becomes something that hides nothing
        bias = None if now.bias is None else make("mul", now.bias, const(factor, now.bias.dtype))
        return dataclasses.replace(now, bias=bias, even=now.even.scaled(factor))

    def cast(self, dtype: np.dtype[Any]) -> Masking:
        """Return this when the scores and all that was added are cast to another type of floats."""
        return dataclasses.replace(self, even=self.even.cast(dtype))

    def softened(self) -> Masking:
        """Return this with every flag turned into a bias: what follows turns -inf into something else."""
        if self.hidden is None:
            return self
        reason, bias = "the scores are changed again after it", added_up(self.bias, self.hidden)
        return dataclasses.replace(self, causal=None, window=0, keys=None, hidden=None, bias=bias, kept=reason)

    def clamped(self, floor: float) -> Masking:
        """Return this when the scores are clamped from below at a number that leaves no weight."""
        soft = self.softened()
        if soft.bias is None:
            return soft
        bias = make("max", soft.bias, const(floor, soft.bias.dtype))
        return dataclasses.replace(soft, bias=bias, even=soft.even.clamped(floor))

    def added(self, term: Expr, axes: layout.Axes, frame: layout.Axes) -> Masking:
        """Return this with a term added to the scores."""
        found = _taken_apart(term, axes, frame)
        fills_met = [fill for _, fill in found if fill is not None]
        now = self
        if len(found) == 1 or any(fill.number == -np.inf for fill in fills_met):
            for x, fill in found:
                now = now._soft([Bias(value=x)], x) if fill is None else now._filled(fill, x)
            return now._still_even(found)
        met = [m for x, fill in found for m in (masks(fill.parts) if fill else [Bias(value=x)])]
        return self._soft(met, to_frame(term, axes, frame))._still_even(found)

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
        small = _smaller(found)
        masked = any(not isinstance(mask, Bias) for mask in self.said)
        fill = number if masked else LOWEST  # added to it, only the lowest swallows every score, as replacing it does
        bias = _masked(test, soft.bias, fill, yes=yes) if small is None else _masked(small, soft.bias, fill)
        said, even = (*self.said, *masks(found)), soft.even.replaced(found, number)
        weak = _WEAK.format(number) if masked and number > _SWALLOWS_SCORES else soft.weak
        return dataclasses.replace(soft, said=said, bias=bias, even=even, weak=weak)

    def finished(self) -> Masking:
        """Return this when nothing more is met: even masks become flags.

        Raises:
            Unreadable: neither flags nor a bias say what a row gets that is hidden whole.
        """
        now = dataclasses.replace(self, whole=self.softened().bias)
        has_flags = any(isinstance(part.mask, Causal | Keys) for part in self.even.parts)
        if self.weak and (self.even.why_not or not has_flags):
            raise Unreadable(self.weak, self.bias)
        if not has_flags:
            return now
        if self.even.why_not:
            return dataclasses.replace(now, kept=self.even.why_not)
        bare = Masking(bias=self.even.beside)._hard(self.even.parts, _masked(_all(self.even.parts), None, -np.inf))
        averages = not self.even.leaves_a_key
        return dataclasses.replace(bare, said=self.said, averages=averages, hidden=None, whole=now.whole)

    def _still_even(self, found: Sequence[tuple[Expr, Fill | None]]) -> Masking:
        """Return this with what is even after several terms were added."""
        even = self.even
        for term, fill in found:
            even = even.beside_it(term) if fill is None else even.added(fill)
        return dataclasses.replace(self, even=even)

    def _filled(self, fill: Fill, term: Expr) -> Masking:
        if not fill.parts:
            return self
        if fill.number == -np.inf:
            return self._hard(fill.parts, term)
        small = _smaller(fill.parts)
        bias = term if small is None or small.shape == term.shape else _masked(small, None, fill.number, term.dtype)
        return self._soft(masks(fill.parts), bias)

    def _soft(self, met: Sequence[Mask], term: Expr) -> Masking:
        return dataclasses.replace(self, said=(*self.said, *met), bias=added_up(self.bias, term))

    def _hard(self, found: Parts, hidden: Expr) -> Masking:
        """Return this with a mask that hides by -inf: what flags can say becomes one, the rest a bias of -inf."""
        said, even = (*self.said, *masks(found)), self.even.beside_hard()
        now = dataclasses.replace(self, said=said, even=even, hidden=added_up(self.hidden, hidden))
        rest: list[Part] = []
        for part in sorted(found, key=lambda p: not isinstance(p.mask, Causal)):  # a window is said beside it
            with_flag = now._flagged(part.mask)
            rest += [part] if with_flag is None else []
            now = with_flag or now
        bias = added_up(now.bias, _masked(_all(rest), None, -np.inf)) if rest else now.bias
        kept = _WINDOW if any(isinstance(p.mask, Window) for p in rest) else now.kept
        return dataclasses.replace(now, bias=bias, kept=kept)

    def _flagged(self, mask: Mask) -> Masking | None:
        """Return this with a mask as a flag; None where no flag says it."""
        if isinstance(mask, Causal) and self.causal in (None, mask):
            return dataclasses.replace(self, causal=mask)
        if isinstance(mask, Keys):
            keys = mask.valid if self.keys is None else make("and", self.keys, mask.valid)
            return dataclasses.replace(self, keys=keys)
        if isinstance(mask, Window) and mask.right is None and self.causal is not None:
            width = mask.left + self.causal.offset + 1
            if isinstance(width, int) and width > 0 and self.window in (0, width):
                return dataclasses.replace(self, window=width)
        return None


_WEAK = (
    "its fill {:g} is set in place of scores that are masked already, and added as a bias it would let them show in a "
    "row that is hidden whole; a fill of -1e9 or lower would be read"
)
_WINDOW = "the operation has windows of a fixed number of keys, up to the query or as many on both sides of it"


def _taken_apart(term: Expr, axes: layout.Axes, frame: layout.Axes) -> list[tuple[Expr, Fill | None]]:
    """Return the additive masks in a term and what else it adds, arranged; the term itself if no mask is found."""
    whole = fills.read(term, axes, frame)
    if whole is not None:
        return [(to_frame(term, axes, frame), whole)]
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


def _masked(test: Expr, inner: Expr | None, fill: float, dtype: np.dtype[Any] | None = None, yes: bool = True) -> Expr:
    """Return the bias that gives every hidden key ``fill`` instead of its score."""
    base = const(0.0, dtype) if inner is None else one_type(inner, const(0.0))[0]
    hidden = const(fill, dtype)
    return make("where", test, *((base, hidden) if yes else (hidden, base)))
