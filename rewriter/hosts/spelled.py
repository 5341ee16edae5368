"""What both hosts spell out in the same words: operators that say several words of the alphabet at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime_ops.words import Expr, const, dim, make


def number(value: float, like: Expr) -> Expr:
    """Return a constant of the type of ``like``."""
    return const(value, like.dtype)


def gelu_erf(x: Expr) -> Expr:
    """Return x/2 · (1 + erf(x/√2))."""
    inner = make("erf", make("div", x, number(math.sqrt(2.0), x)))
    return make("mul", make("mul", x, number(0.5, x)), make("add", inner, number(1.0, x)))


def gelu_tanh(x: Expr) -> Expr:
    """Return x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    cube = make("mul", make("mul", make("mul", x, x), x), number(0.044715, x))
    inner = make("tanh", make("mul", make("add", x, cube), number(math.sqrt(2.0 / math.pi), x)))
    return make("mul", make("mul", x, number(0.5, x)), make("add", inner, number(1.0, x)))


def softplus(x: Expr) -> Expr:
    """Return log(1 + eˣ)."""
    return make("log", make("add", make("exp", x), number(1.0, x)))


def mish(x: Expr) -> Expr:
    """Return x · tanh(log(1 + eˣ))."""
    return make("mul", x, make("tanh", softplus(x)))


def causal(scores: Expr, q: Expr, k: Expr) -> Expr:
    """Return scores with every key after its query hidden, rows and columns aligned at the top left."""
    rows, columns = (make("range", const(0), make("squeeze", dim(x, 2), axes=(0,)), const(1)) for x in (q, k))
    keep = make("le", columns, make("unsqueeze", rows, axes=(1,)))
    return make("where", keep, scores, const(-np.inf, scores.dtype))


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
    """Read an einsum of two tensors that contracts one letter as a matrix product between permutations.

    An einsum of one tensor that only reorders its axes is a transposition.
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    if len(args) == 1 and sorted(terms) == sorted(set(result)):
        return _permuted(args[0], terms, list(result))
    if len(args) != 2 or "." in terms or any(len(set(t)) != len(t) for t in terms.split(",")):
        return None
    left, right = terms.split(",")
    out = result or "".join(sorted(x for x in set(left + right) if (left + right).count(x) == 1))
    both = [x for x in left if x in right and x in out]
    inner = [x for x in left if x in right and x not in out]
    mine, yours = ([x for x in one if x in out and x not in other] for one, other in ((left, right), (right, left)))
    if not len(inner) == len(mine) == len(yours) == 1 or len(both) + 2 != len(out):
        return None
    a = _permuted(args[0], left, [*both, *mine, *inner])
    b = _permuted(args[1], right, [*both, *inner, *yours])
    return _permuted(make("matmul", a, b), "".join([*both, *mine, *yours]), list(out))


def _permuted(x: Expr, have: str, want: Sequence[str]) -> Expr:
    perm = tuple(have.index(letter) for letter in want)
    return x if perm == tuple(range(len(have))) else make("transpose", x, perm=perm)
