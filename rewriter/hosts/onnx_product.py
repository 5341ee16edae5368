"""READ for ONNX operators that are products in disguise: Gemm, Einsum, and quotients that are a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.words import Expr, const, dim, make, reshape


def gemm(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read a Gemm as a product and a sum."""
    a, b = args[0], args[1]
    if attr(node, "transA", 0):
        a = make("transpose", a, perm=(1, 0))  # type: ignore[arg-type]
    if attr(node, "transB", 0):
        b = make("transpose", b, perm=(1, 0))  # type: ignore[arg-type]
    out = make("matmul", a, b)  # type: ignore[arg-type]
    alpha, beta = attr(node, "alpha", 1.0), attr(node, "beta", 1.0)
    if alpha != 1.0:
        out = make("mul", out, const(alpha, out.dtype))
    bias = args[2] if len(args) > 2 else None
    if bias is None:
        return out
    return make("add", out, bias if beta == 1.0 else make("mul", bias, const(beta, bias.dtype)))


def integer_product(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read a MatMulInteger: a product of integers, each less its zero point."""
    whole = np.dtype(np.int32)
    sides = [make("cast", x, to=whole) for x in args[:2] if x is not None]
    for i, zero in enumerate(args[2:4]):
        if zero is not None:
            sides[i] = make("sub", sides[i], make("cast", zero, to=whole))
    return make("matmul", *sides)


def quotient(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read a quotient; exponentials over their own sum are a softmax."""
    x, total = args
    plain = make("div", x, total)  # type: ignore[arg-type]
    if x is None or total is None or x.word != "exp" or total.word != "sum" or total.args[0] is not x:
        return plain
    axes, inner = total.attrs["axes"], x.args[0]
    if len(axes) != 1 or not total.attrs.get("keepdims", True):
        return plain
    shift = inner.args[1] if inner.word == "sub" else None
    if shift is not None and shift.word == "amax" and shift.args[0] is inner.args[0] and shift.attrs["axes"] == axes:
        inner = inner.args[0]
    return make("softmax", inner, axis=axes[0])


def einsum(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read an Einsum of two tensors as a matrix product between permutations, with letters merged to one axis.

    An Einsum of one tensor that only reorders its axes is a transposition.
    """
    terms, _, result = attr(node, "equation").replace(" ", "").partition("->")
    if len(args) == 1 and sorted(terms) == sorted(set(result)) and args[0] is not None:
        return _permuted(args[0], terms, list(result))
    if len(args) == 2 and "..." in terms:
        terms, result = _spelled_out(args, terms, result)
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
    a = _permuted(args[0], left, [*both, *mine, *inner])  # type: ignore[arg-type]
    b = _permuted(args[1], right, [*both, *inner, *yours])  # type: ignore[arg-type]
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


def _spelled_out(args: Args, terms: str, result: str) -> tuple[str, str]:
    """Return an equation with letters for its "...", which stands for the leading axes of both tensors alike."""
    parts = terms.split(",")
    ranks = [
        None if x is None or x.rank is None else x.rank - len(p.replace("...", ""))
        for x, p in zip(args, parts, strict=True)
    ]
    if len(parts) != 2 or ranks[0] != ranks[1] or ranks[0] is None or not all("..." in p for p in (*parts, result)):
        return terms, result
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in terms][: ranks[0]]
    letters = "".join(free)
    return terms.replace("...", letters), result.replace("...", letters)


def _permuted(x: Expr, have: str, want: Sequence[str]) -> Expr:
    perm = tuple(have.index(letter) for letter in want)
    return x if perm == tuple(range(len(have))) else make("transpose", x, perm=perm)
