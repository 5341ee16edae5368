"""Queries, keys and values: which tensor along a chain of views an operand is best read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patterns.scores import Frame
from patterns.site import Operand, Unreadable
from rewriter import layout
from runtime_ops.dims import Dim
from runtime_ops.words import Expr


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A tensor that an operand can be read from, and what that costs."""

    operand: Operand
    factor: float
    lead: layout.Axis  # atoms of the head axis that are really there
    cost: tuple[float, ...]


def _choices(
    found: tuple[Expr, layout.Axes],
    lead: tuple[layout.Axis, layout.Axis, layout.Axis],
    through_scales: bool = True,
) -> list[Choice]:
    """Return every tensor along a chain of views that can be arranged to an operand, outermost first."""
    expr, axes = found
    out = []
    for depth, (x, have, factor) in enumerate(layout.views(expr, axes, through_scales)):
        atoms = [a for axis in have for a in axis]
        last = tuple(a for a in atoms if a.letter in "de")
        heads = tuple(a for a in atoms if a.letter == "h")
        target, other = (lead[0], heads, lead[2], last), (lead[0], lead[2], heads, last)
        if not _outer_parts(heads) or layout.arrange(x, have, target) is None:
            continue
        plain = all(len(axis) == 1 for axis in have)
        effort = 0 if have in (target, other) else 1 if plain else 2
        # fewest heads first, then without a scale left on the operand, then the least rearranging, then the deepest
        cost = (_volume(heads), float(_scales_below(x)), float(effort), float(-depth))
        out.append(Choice(operand=Operand(value=x, axes=have), factor=factor, lead=heads, cost=cost))
    return out


def _scales_below(x: Expr) -> int:
    return sum(1 for _, _, factor in layout.views(x, ((),) * (x.rank or 0)) if factor != 1.0)


def _outer_parts(heads: Sequence[layout.Atom]) -> bool:
    """Return whether only inner parts of the head axis are broadcast: query head i reads key head i // group."""
    paths = [a.name[len(a.letter) :] for a in heads]
    before = [path[:i] + str(d) for path in paths for i, digit in enumerate(path) for d in range(int(digit))]
    return all(any(path.startswith(outer) for path in paths) for outer in before)


def _volume(axis: layout.Axis) -> float:
    total = 1
    for a in axis:
        total *= a.size if isinstance(a.size, int) else 1 << 20
    return float(total)


def queries(found: tuple[Expr, layout.Axes], frame: Frame) -> Choice:
    """Return the best tensor to read the queries [b h s d] from."""
    choices = [c for c in _choices(found, (frame.b, frame.h, frame.s)) if c.lead == frame.h]
    if not choices:
        raise Unreadable("the layout of the queries cannot be brought to [b h s d]", found[0])
    return min(choices, key=lambda c: c.cost)


def keys_and_values(
    k: tuple[Expr, layout.Axes], v: tuple[Expr, layout.Axes], frame: Frame
) -> tuple[Choice, Choice, layout.Axis]:
    """Return keys and values read with the same, smallest number of heads."""
    axes = (frame.b, frame.h, frame.t)
    keys, values = _choices(k, axes), _choices(v, axes, through_scales=False)
    for heads in sorted({c.lead for c in keys}, key=_volume):
        pair = [[c for c in side if _same_heads(c.lead, heads)] for side in (keys, values)]
        if all(pair):
            best = [min(side, key=lambda c: c.cost) for side in pair]
            return best[0], best[1], heads
    raise Unreadable("keys and values cannot be brought to [b g t d] with one number of heads", v[0])


def _same_heads(a: layout.Axis, b: layout.Axis) -> bool:
    return [(x.name, x.size) for x in a] == [(x.name, x.size) for x in b]


def check_heads(softmax: Expr, heads: Dim, kv_heads: Dim) -> None:
    """Raise Unreadable unless every key head serves the same number of query heads."""
    if heads == kv_heads:
        return
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % kv_heads:
        raise Unreadable(f"{heads} query heads are not a multiple of {kv_heads} key heads", softmax)


def size(axis: layout.Axis) -> Dim:
    """Return the length of an axis."""
    total: Dim = 1
    for a in axis:
        total = total * a.size
    return total


def width(found: tuple[Expr, layout.Axes]) -> Dim | None:
    """Return the length of the axis d or e."""
    return next((a.size for axis in found[1] for a in axis if a.name in "de"), None)
