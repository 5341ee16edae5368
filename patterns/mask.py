"""What a mask says: a small closed family of meanings, in words and as data.

A part is proved from the mask's own subgraph (``patterns.visible``); what is not proved is kept as a tensor
(``Keep``, ``Bias``). Letters: query i of s, key j of t.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from runtime_ops.dims import Dim
from runtime_ops.words import Expr

ALWAYS = "always"


@dataclass(frozen=True, kw_only=True)
class NoMask:
    """Every query sees every key."""

    holds: str = ALWAYS

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Key j is visible to query i if j <= i + offset.

    Attributes:
        offset: a number, or a length of the graph such as that of the past.
        value: the offset as a scalar integer tensor.
        holds: "always", or the only lengths at which it was seen.
    """

    offset: Dim
    value: Expr = field(compare=False)
    holds: str = ALWAYS

    def __str__(self) -> str:
        return f"causal{_where(self)}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """Key j is visible to query i if i + offset - left <= j <= i + offset + right.

    Attributes:
        left, right: how many keys before and after; right None: any number.
        offset: where the window stands beside its query.
        holds: "always", or the only lengths at which it was seen.
    """

    left: Dim
    right: Dim | None
    offset: Dim = 0
    holds: str = ALWAYS

    def __str__(self) -> str:
        if self.right is None:
            said = f"no key more than {self.left} back"
        elif self.right == 0:
            said = f"window {self.left + 1} causal"
        else:
            said = f"window {self.left} back, {self.right} ahead"
        return said + _where(self)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Key j of a sequence is visible to all of its queries or to none, as padding is.

    Attributes:
        valid: bool [b t], true where the key is visible; an axis may have length 1.
    """

    valid: Expr = field(compare=False)
    holds: str = ALWAYS

    def __str__(self) -> str:
        return "keys (padding)"


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A key is visible where a tensor says so that is not understood further.

    Attributes:
        keep: bool, broadcasts to [b h s t].
    """

    keep: Expr = field(compare=False)
    holds: str = ALWAYS

    def __str__(self) -> str:
        return f"mask{_axes(self.keep)}"


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A tensor is added to the scores that is not understood further.

    Attributes:
        value: broadcasts to [b h s t].
    """

    value: Expr = field(compare=False)
    holds: str = ALWAYS

    def __str__(self) -> str:
        return f"bias{_axes(self.value)}"


@dataclass(frozen=True, kw_only=True)
class All:
    """Every part must let a key through."""

    parts: Sequence[Mask]

    @property
    def holds(self) -> str:
        """What holds for all parts: "always", or where the first part that does not was seen."""
        return next((part.holds for part in self.parts if part.holds != ALWAYS), ALWAYS)

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(str(part) for part in self.parts))


Mask = NoMask | Causal | Window | Keys | Keep | Bias | All
_ORDER = (Causal, Window, Keys, Keep, Bias)


def together(parts: Iterable[Mask]) -> Mask:
    """Return one mask for several that hold at once: a causal one and a limit backwards become a window."""
    left = sorted(_distinct(parts), key=lambda part: _ORDER.index(type(part)))
    ahead = [p for p in left if isinstance(p, Causal)]
    back = [p for p in left if isinstance(p, Window) and p.right is None]
    if ahead and back:
        left.remove(ahead[0])
        left.remove(back[0])
        left.insert(0, _window(ahead[0], back[0]))
    if len(left) == 1:
        return left[0]
    return All(parts=tuple(left)) if left else NoMask()


def _distinct(parts: Iterable[Mask]) -> Iterator[Mask]:
    """Leave out what says no more than a part before it."""
    found: list[Mask] = []
    for part in parts:
        if part not in found or not isinstance(part, Causal | Window):
            found.append(part)
            yield part


def _window(ahead: Causal, back: Window) -> Window:
    """Return j <= i + ahead and j >= i - back as one window around the query, or around what the offset says."""
    holds = next((p.holds for p in (ahead, back) if p.holds != ALWAYS), ALWAYS)
    right = ahead.offset
    if isinstance(right, int) and right >= 0 and isinstance(back.left, int) and back.left >= 0:
        return Window(left=back.left, right=right, holds=holds)
    return Window(left=back.left + right, right=0, offset=right, holds=holds)


def _where(mask: Causal | Window) -> str:
    """Return what else is to be said of a mask, e.g. " (offset past)"."""
    said = [f"offset {mask.offset}"] * (mask.offset != 0) + [mask.holds] * (mask.holds != ALWAYS)
    return f" ({', '.join(said)})" if said else ""


def _axes(x: Expr) -> str:
    """Return which axes a tensor spans, e.g. " [b 1 s t]"."""
    if x.shape is None or len(x.shape) > 4:
        return ""
    letters = "bhst"[4 - len(x.shape) :]
    return f" [{' '.join('1' if n == 1 else letter for letter, n in zip(letters, x.shape, strict=True))}]"
