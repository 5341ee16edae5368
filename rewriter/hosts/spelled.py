"""What both hosts spell out in the same words: operators that say several words of the alphabet at once."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_ops.ops.pieces import count
from runtime_ops.words import Expr, const, dim, make, reshape


def number(value: float, like: Expr) -> Expr:
    """Return a constant of the type of ``like``."""
    return const(value, like.dtype)


def softplus(x: Expr) -> Expr:
    """Return max(x, 0) + log(1 + exp(-|x|)), which no x overflows."""
    low = make("min", x, make("neg", x))
    return make("add", make("relu", x), make("log", make("add", make("exp", low), number(1.0, x))))


def leaky_relu(x: Expr, slope: float) -> Expr:
    """Return x, times a slope where it is negative."""
    return make("add", make("relu", x), make("mul", _negative(x), number(slope, x)))


def elu(x: Expr, alpha: float) -> Expr:
    """Return x, or alpha · (exp(x) - 1) where it is negative."""
    grown = make("sub", make("exp", _negative(x)), number(1.0, x))
    return make("add", make("relu", x), make("mul", grown, number(alpha, x)))


def _negative(x: Expr) -> Expr:
    return make("min", x, number(0.0, x))


def clipped(x: Expr, low: Expr | None, high: Expr | None) -> Expr:
    """Return x between two bounds, each of which may be absent."""
    x = x if low is None else make("max", x, low)
    return x if high is None else make("min", x, high)


def hard_sigmoid(x: Expr, slope: float = 1 / 6, middle: float = 0.5) -> Expr:
    """Return a line through (0, middle) between 0 and 1."""
    line = make("add", make("mul", x, number(slope, x)), number(middle, x))
    return clipped(line, number(0.0, x), number(1.0, x))


def hard_swish(x: Expr) -> Expr:
    """Return x times its hard sigmoid."""
    return make("mul", x, hard_sigmoid(x))


def absolute(x: Expr) -> Expr:
    """Return |x|."""
    return make("max", x, make("neg", x))


def triangle(x: Expr, diagonal: Expr, lower: bool) -> Expr:
    """Return matrices with zeros above a diagonal (or below it): row i keeps j <= i + diagonal, or j >= i + diagonal.

    Raises:
        ValueError: the rank is not known, or less than 2.
    """
    if x.rank is None or x.rank < 2:
        raise ValueError("a triangle needs matrices")
    rows, columns = (count(dim(x, axis)) for axis in (x.rank - 2, x.rank - 1))
    edge = make("add", column(rows), diagonal)
    keep = make("le", columns, edge) if lower else make("le", edge, columns)
    return make("where", keep, x, number(0, x))


def point_convolution(x: Expr, w: Expr, bias: Expr | None) -> Expr:
    """Return a convolution over one position, of x [b m …] with w [f m 1 …]: the product w [f m] · x, plus a bias."""
    places = tuple(range(2, w.rank or 0))
    flat = x if x.rank == 3 else reshape(x, [dim(x, 0), dim(x, 1), -1])
    out = make("matmul", make("squeeze", w, axes=places), flat)
    if len(places) > 1:
        lengths = make("concat", dim(x, 0), dim(w, 0), make("dim", x, start=2), axis=0)
        out = make("reshape", out, lengths, keep_zero=True)
    return out if bias is None else make("add", out, make("unsqueeze", bias, axes=tuple(i - 1 for i in places)))


def column(x: Expr) -> Expr:
    """Return [s] as [s 1]."""
    return make("unsqueeze", x, axes=(1,))


def is_nan(x: Expr) -> Expr:
    """Return whether elements are NaN, which alone are unequal to themselves."""
    return make("not", make("eq", x, x))


def or_zero(x: Expr) -> Expr:
    """Return x with 0 for NaN."""
    return make("where", is_nan(x), number(0.0, x), x)


def quotient(x: Expr, total: Expr) -> Expr:
    """Return x / total; exponentials over their own sum are a softmax."""
    plain = make("div", x, total)
    if x.word != "exp" or total.word != "sum" or total.args[0] is not x:
        return plain
    axes, inner = total.attrs["axes"], x.args[0]
    if len(axes) != 1 or not total.attrs.get("keepdims", True):
        return plain
    shift = inner.args[1] if inner.word == "sub" else None
    if shift is not None and shift.word == "amax" and shift.args[0] is inner.args[0] and shift.attrs["axes"] == axes:
        inner = inner.args[0]
    return make("softmax", inner, axis=axes[0])


def einsum(equation: str, args: Sequence[Expr]) -> Expr | None:
    """Read an einsum of two tensors as a matrix product between permutations, with letters merged to one axis.

    An einsum of one tensor that only reorders its axes is a transposition.
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    if len(args) == 1 and sorted(terms) == sorted(set(result)):
        return _permuted(args[0], terms, list(result))
    if len(args) == 2 and "..." in terms:
        terms, result = _without_dots(args, terms, result)
    if len(args) != 2 or "." in terms or any(len(set(t)) != len(t) for t in terms.split(",")):
        return None
    left, right = terms.split(",")
    out = result or "".join(sorted(x for x in set(left + right) if (left + right).count(x) == 1))
    both = [x for x in left if x in right and x in out]
    inner = [x for x in left if x in right and x not in out]
    mine, yours = ([x for x in one if x in out and x not in other] for one, other in ((left, right), (right, left)))
    if not inner or not mine or not yours or sorted([*both, *mine, *yours]) != sorted(out):
        return None
    if len(both + mine + inner) != len(left) or len(both + inner + yours) != len(right):
        return None  # a letter that is summed within one tensor
    a = _permuted(args[0], left, [*both, *mine, *inner])
    b = _permuted(args[1], right, [*both, *inner, *yours])
    return _permuted(_product(a, b, len(both), len(mine), len(inner)), "".join([*both, *mine, *yours]), list(out))


def _product(a: Expr, b: Expr, both: int, mine: int, inner: int) -> Expr:
    """Return the product of [both mine inner] and [both inner yours], each of these one axis or several."""
    rank_a, rank_b = both + mine + inner, b.rank or 0
    rows, lead = range(both, both + mine), [dim(a, i) for i in range(both)]
    columns = range(both + inner, rank_b)
    several = both > 0 and mine > 1  # without leading axes of its own, a product keeps any number of rows
    left, right = a, b
    if several or inner > 1:
        kept = [_length(a, rows)] if several else [dim(a, i) for i in rows]
        left = reshape(a, [*lead, *kept, _length(a, range(both + mine, rank_a))])
    if len(columns) > 1 or inner > 1:
        right = reshape(b, [*lead, _length(b, range(both, both + inner)), _length(b, columns)])
    out = make("matmul", left, right)
    if not several and len(columns) == 1:
        return out
    return reshape(out, [*lead, *(dim(a, i) for i in rows), *(dim(b, i) for i in columns)])


def _length(x: Expr, axes: Sequence[int]) -> Expr:
    """Return the product of the lengths of some axes."""
    total = dim(x, axes[0])
    for axis in axes[1:]:
        total = make("mul", total, dim(x, axis))
    return total


def _without_dots(args: Sequence[Expr], terms: str, result: str) -> tuple[str, str]:
    """Return an equation with letters for its "...", which stands for the leading axes of both tensors alike."""
    parts = terms.split(",")
    ranks = [None if x.rank is None else x.rank - len(p.replace("...", "")) for x, p in zip(args, parts, strict=True)]
    if len(parts) != 2 or ranks[0] != ranks[1] or ranks[0] is None or not all("..." in p for p in (*parts, result)):
        return terms, result
    letters = "".join([c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in terms][: ranks[0]])
    return terms.replace("...", letters), result.replace("...", letters)


def _permuted(x: Expr, have: str, want: Sequence[str]) -> Expr:
    perm = tuple(have.index(letter) for letter in want)
    return x if perm == tuple(range(len(have))) else make("transpose", x, perm=perm)
