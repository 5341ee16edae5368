"""READ for ONNX operators that are products in disguise: Gemm, Einsum, and quotients that are a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.words import Expr, const, make


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
    """Read an Einsum of two tensors that contracts one letter as a matrix product between permutations.

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
    if not len(inner) == len(mine) == len(yours) == 1 or len(both) + 2 != len(out):
        return None
    a = _permuted(args[0], left, [*both, *mine, *inner])  # type: ignore[arg-type]
    b = _permuted(args[1], right, [*both, *inner, *yours])  # type: ignore[arg-type]
    return _permuted(make("matmul", a, b), "".join([*both, *mine, *yours]), list(out))


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
