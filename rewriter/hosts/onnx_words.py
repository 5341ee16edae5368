"""What the READ rows of fused attention are made of: heads, scores, masks and caches, in words of the alphabet."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from rewriter.hosts import spelled_attention
from rewriter.hosts.base import Unfit
from rewriter.hosts.onnx_row import Args
from runtime_ops.words import Expr, const, dim, make, reshape


def refuse(node: ir.Node, args: Args, named: Sequence[tuple[int, str]]) -> None:
    """Raise Unfit if one of the inputs ``named`` (index and what it holds) is given."""
    for index, what in named:
        if optional(args, index) is not None:
            raise Unfit(f"{node.op_type} with {what}")


def optional(args: Args, index: int) -> Expr | None:
    """Return an input, None if it is left out."""
    return args[index] if len(args) > index else None


def needed(node: ir.Node, args: Args, index: int, name: str) -> Expr:
    """Return an input whose rank is known."""
    found = optional(args, index)
    if found is None or found.shape is None:
        raise Unfit(f"{node.op_type} has no {name} of known rank")
    return found


def heads(x: Expr, count: int | None) -> Expr:
    """Return [b s (h d)] as [b h s d]."""
    if x.rank == 4:
        return x
    if x.rank != 3 or count is None:
        raise Unfit("its inputs have neither 3 nor 4 axes, or the number of heads is not given")
    split = reshape(x, [dim(x, 0), dim(x, 1), count, -1])
    return make("transpose", split, perm=(0, 2, 1, 3))


def merged(out: Expr, rank: int | None = 3) -> Expr:
    """Return [b h s e] as the node's output has it."""
    if rank == 4:
        return out
    swapped = make("transpose", out, perm=(0, 2, 1, 3))
    return reshape(swapped, [dim(swapped, 0), dim(swapped, 1), -1])


def with_past(past: Expr | None, new: Expr) -> Expr:
    """Return [b g p d] and [b g s d] joined along the keys."""
    if past is None:
        return new
    if past.rank != 4:
        raise Unfit("its past keys or values do not have 4 axes")
    return make("concat", past, new, axis=2)


def part(x: Expr, start: int, stop: int, axis: int, step: int = 1) -> Expr:
    """Return ``x[start:stop:step]`` along one axis."""
    return make("slice", x, *(const([n]) for n in (start, stop, axis, step)))


def scores(q: Expr, k: Expr, scale: float | None) -> Expr:
    """Return scale · q·kᵀ; contrib operators write 0 for the default scale."""
    return spelled_attention.scores(q, k, scale or None)


def capped(x: Expr, cap: float | None) -> Expr:
    """Return cap · tanh(x / cap), or ``x`` without a cap."""
    if not cap:
        return x
    return make("mul", make("tanh", make("div", x, const(cap, x.dtype))), const(cap, x.dtype))


def turned(x: Expr, cos: Expr, sin: Expr, interleaved: bool) -> Expr:
    """Return the rotary embedding of ``x`` [… d]: its first 2r channels turned by [… r] cosines and sines."""
    half = cos.shape[-1] if cos.shape else None
    if not isinstance(half, int) or x.rank is None or x.shape is None or not isinstance(x.shape[-1], int):
        raise Unfit("rotates its heads by a width that is not known")
    last, width = x.rank - 1, 2 * half
    body = x if x.shape[-1] == width else part(x, 0, width, last)
    if interleaved:
        a, b = (part(body, i, width, last, 2) for i in (0, 1))
    else:
        a, b = part(body, 0, half, last), part(body, half, width, last)
    first = make("sub", make("mul", a, cos), make("mul", b, sin))
    second = make("add", make("mul", b, cos), make("mul", a, sin))
    if interleaved:
        pair = make("concat", *(make("unsqueeze", y, axes=(last + 1,)) for y in (first, second)), axis=last + 1)
        both = reshape(pair, [*(dim(x, i) for i in range(last)), width])
    else:
        both = make("concat", first, second, axis=last)
    return both if x.shape[-1] == width else make("concat", both, part(x, width, x.shape[-1], last), axis=last)
