"""Layouts: which meaning each axis of a tensor has, carried through every reshape and permutation.

An axis is a tuple of atoms, outermost first; ``()`` is an axis of length 1. ``back`` undoes one view operation,
``arrange`` builds the operations that bring a tensor from one layout to another. Text form: ``"b t (g d)"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rewriter.lengths import repeated
from runtime_ops.dims import Dim, exact_quotient, product
from runtime_ops.words import Expr, const, dim, make, reshape


@dataclass(frozen=True, slots=True)
class Atom:
    """An indivisible axis: a letter (with digits for parts of a letter, outermost first) and its length.

    ``length`` is the same as a tensor of one element, where one is known.
    """

    name: str
    size: Dim
    length: Expr | None = field(default=None, compare=False, repr=False)

    @property
    def letter(self) -> str:
        """The letter that this atom is, or is a part of."""
        return self.name.rstrip("0123456789")

    def cut(self, lengths: Sequence[Dim]) -> list[Atom]:
        """Return this atom split into parts of the given lengths."""
        return [Atom(f"{self.name}{i}", length) for i, length in enumerate(lengths)]


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def text(axes: Axes) -> str:
    """Return the layout as text, e.g. ``"b t (g d)"``."""
    names = [[a.name for a in axis] for axis in axes]
    return " ".join("1" if not n else n[0] if len(n) == 1 else f"({' '.join(n)})" for n in names)


def atom(name: str, size: Dim) -> Axis:
    """Return an axis of one atom, or the axis of length 1."""
    return () if size == 1 else (Atom(name, size),)


def back(expr: Expr, axes: Axes) -> tuple[Expr, Axes] | None:
    """Return the argument of a view operation with its layout, given the layout of the result; None if not a view.

    Axes that an expand creates vanish from the layout: they are broadcast.
    """
    x = expr.args[0] if expr.args else None
    if x is None or x.shape is None or expr.shape is None or expr.word not in _BACK:
        return None
    inner = _BACK[expr.word](expr, x, axes)
    return None if inner is None else (x, inner)


def forward(expr: Expr, axes: Axes) -> Axes | None:
    """Return the layout of a view operation's result, given that of its argument; None if not a view."""
    x = expr.args[0] if expr.args else None
    if x is None or x.shape is None or expr.shape is None:
        return None
    if expr.word == "transpose":
        return tuple(axes[p] for p in expr.attrs["perm"])
    if expr.word in ("reshape", "unsqueeze", "squeeze"):
        return regroup(x.shape, axes, expr.shape)
    return None


def _back_transpose(expr: Expr, x: Expr, axes: Axes) -> Axes | None:
    perm = expr.attrs["perm"]
    return tuple(axes[perm.index(i)] for i in range(len(perm)))


def _back_reshape(expr: Expr, x: Expr, axes: Axes) -> Axes | None:
    return regroup(expr.shape or (), axes, x.shape or ())


def _back_expand(expr: Expr, x: Expr, axes: Axes) -> Axes | None:
    assert x.shape is not None  # ``back`` looked
    inner = axes[len(axes) - len(x.shape) :]
    return tuple(() if length == 1 else axis for axis, length in zip(inner, x.shape, strict=True))


_BACK = {
    "transpose": _back_transpose,
    "expand": _back_expand,
    **dict.fromkeys(("reshape", "unsqueeze", "squeeze"), _back_reshape),
}


def regroup(source: Sequence[Dim], axes: Axes, target: Sequence[Dim]) -> Axes | None:
    """Return the layout after reshaping ``source`` (laid out as ``axes``) to ``target``; None if atoms break."""
    pairs = _groups(source, target)
    if pairs is None:
        return None
    out: list[Axis] = [()] * len(target)
    for left, right in pairs:
        atoms = [a for i in left for a in axes[i]]
        shared = _share(atoms, [target[j] for j in right])
        if shared is None:
            return None
        for j, axis in zip(right, shared, strict=True):
            out[j] = axis
    return tuple(out)


def _groups(source: Sequence[Dim], target: Sequence[Dim]) -> list[tuple[list[int], list[int]]] | None:
    """Pair up runs of axes that hold the same elements; axes of length 1 are left out."""
    left = [i for i, d in enumerate(source) if d != 1]
    right = [j for j, d in enumerate(target) if d != 1]
    head = []
    while left and right and source[left[0]] == target[right[0]]:
        head.append(([left.pop(0)], [right.pop(0)]))
    tail = []
    while left and right and source[left[-1]] == target[right[-1]]:
        tail.append(([left.pop()], [right.pop()]))
    if not left and not right:
        return head + tail
    middle = _runs(source, left, target, right)
    if middle is None and left and right and min(len(left), len(right)) == 1:
        middle = [(left, right)]  # all that is left on one side is one axis, so it is all of the other side
    return None if middle is None else head + middle + tail


def _runs(
    source: Sequence[Dim], left: Sequence[int], target: Sequence[Dim], right: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    runs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        a, b = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (pa := product(source[n] for n in a)) != (pb := product(target[n] for n in b)):
            if exact_quotient(pb, pa) is not None and i < len(left):
                a.append(left[i])
                i += 1
            elif exact_quotient(pa, pb) is not None and j < len(right):
                b.append(right[j])
                j += 1
            else:
                return None
        runs.append((a, b))
    return runs if i == len(left) and j == len(right) else None


def _share(atoms: Sequence[Atom], lengths: Sequence[Dim]) -> list[Axis] | None:
    """Deal atoms out to axes of the given lengths, splitting atoms where needed; None if that breaks."""
    if not atoms:  # a broadcast axis stays broadcast however it is cut
        return [()] * len(lengths)
    if len(lengths) == 1:
        return [tuple(atoms)]
    if len(atoms) == 1:
        return [(part,) for part in atoms[0].cut(lengths)]
    first, rest = lengths[0], list(atoms)
    taken: list[Atom] = []
    while product(a.size for a in taken) != first:
        need = exact_quotient(first, product(a.size for a in taken))
        if need is None or not rest:
            return None
        if exact_quotient(need, rest[0].size) is None:
            left = exact_quotient(rest[0].size, need)
            if left is None:
                return None
            rest[0:1] = rest[0].cut([need, left])
        taken.append(rest.pop(0))
    others = _share(rest, lengths[1:]) if rest else None
    return None if others is None else [tuple(taken), *others]


def views(expr: Expr, axes: Axes, through_scales: bool = True) -> Iterator[tuple[Expr, Axes, float]]:
    """Yield ``expr`` and what it is a view of, outside in, with layouts and the factor that was taken off.

    Without ``through_scales`` it stops at a product with a number.
    """
    factor = 1.0
    while True:
        yield expr, axes, factor
        inner = back(expr, axes)
        if inner is not None:
            expr, axes = inner
            continue
        scaled = scalar_factor(expr) if through_scales else None
        if scaled is None or scaled[0].shape is None or len(scaled[0].shape) != len(axes):
            return
        expr, factor = scaled[0], factor * scaled[1]


def scalar_factor(expr: Expr) -> tuple[Expr, float] | None:
    """Return (x, c) if ``expr`` is x times or over a known number."""
    if expr.word not in ("mul", "div"):
        return None
    x, y = expr.args
    number = y.number()
    if number is None and expr.word == "mul":
        x, y, number = y, x, x.number()
    if number is None or x.number() is not None or (y.rank or 0) > (x.rank or 0):
        return None
    if expr.word == "div":
        return (x, 1.0 / number) if number else None
    return x, number


def aligned(expr: Expr, axes: Axes) -> Axes | None:
    """Return the layout of a tensor that broadcasts (right-aligned) against one laid out as ``axes``."""
    if expr.shape is None or len(expr.shape) > len(axes):
        return None
    inner = axes[len(axes) - len(expr.shape) :]
    return tuple(() if length == 1 else axis for axis, length in zip(inner, expr.shape, strict=True))


def arrange(expr: Expr, axes: Axes, target: Axes) -> Expr | None:
    """Return ``expr`` brought from one layout to another; None if a length cannot be worked out.

    ``target`` may lack no atom of ``axes``; axes that only ``target`` has get length 1. Of an axis of several atoms,
    those that ``expr`` lacks are repeated: merged with the others, they would not broadcast.
    """
    names = {a.name for axis in axes for a in axis}
    lacking = [a for axis in target if not names.isdisjoint(a.name for a in axis) for a in axis if a.name not in names]
    if lacking:
        wide = repeated(expr, [const([a.size]) if isinstance(a.size, int) else a.length for a in lacking])
        return None if wide is None else arrange(wide, (*((a,) for a in lacking), *axes), target)
    goal = tuple(tuple(a for a in axis if a.name in names) for axis in target)
    if sum(len(axis) for axis in goal) != len(names):
        return None
    if goal == axes:
        return expr
    order = [a for axis in goal for a in axis]
    split = _split(expr, axes)
    if split is None:
        return None
    flat, have = split
    perm = [next(i for i, a in enumerate(have) if a.name == b.name) for b in order]
    if perm != sorted(perm):
        flat = make("transpose", flat, perm=tuple(perm))
    return _merge(flat, goal)


def _split(expr: Expr, axes: Axes) -> tuple[Expr, list[Atom]] | None:
    """Return the tensor with one axis per atom."""
    atoms = [a for axis in axes for a in axis]
    if all(len(axis) == 1 for axis in axes):
        return expr, atoms
    if all(len(axis) <= 1 for axis in axes):
        return make("squeeze", expr, axes=tuple(i for i, axis in enumerate(axes) if not axis)), atoms
    unknown = [a for a in atoms if not isinstance(a.size, int)]
    if len(unknown) <= 1:
        return reshape(expr, [a.size if isinstance(a.size, int) else -1 for a in atoms]), atoms
    lengths = [_lengths(expr, i, axis) for i, axis in enumerate(axes)]
    if any(part is None for part in lengths):
        return None
    return reshape(expr, [length for part in lengths if part for length in part]), atoms


def _lengths(expr: Expr, index: int, axis: Axis) -> list[int | Expr] | None:
    """Return the lengths of an axis's atoms; at most one of them may be unknown."""
    unknown = [a for a in axis if not isinstance(a.size, int)]
    if len(unknown) > 1:
        return None
    rest = product(a.size for a in axis if isinstance(a.size, int))
    whole = dim(expr, index)
    open_length = whole if rest == 1 else make("div", whole, const([rest]))
    return [a.size if isinstance(a.size, int) else open_length for a in axis]


def _merge(flat: Expr, goal: Axes) -> Expr:
    """Return the tensor of one axis per atom with atoms merged and axes of length 1 put in, as ``goal`` says."""
    if all(len(axis) == 1 for axis in goal):
        return flat
    if all(len(axis) <= 1 for axis in goal):
        return make("unsqueeze", flat, axes=tuple(i for i, axis in enumerate(goal) if not axis))
    lengths: list[int | Expr] = []
    position = 0
    for axis in goal:
        sizes = [a.size if isinstance(a.size, int) else dim(flat, position + i) for i, a in enumerate(axis)]
        position += len(axis)
        lengths.append(_times(sizes))
    if sum(isinstance(n, Expr) for n in lengths) == 1:
        lengths = [-1 if isinstance(n, Expr) else n for n in lengths]
    return reshape(flat, lengths)


def _times(sizes: Sequence[int | Expr]) -> int | Expr:
    number, result = 1, None
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            result = size if result is None else make("mul", result, size)
    if result is None:
        return number
    return result if number == 1 else make("mul", result, const([number]))
