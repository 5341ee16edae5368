"""READ for rotary embedding that is one operator: spelled out in the words of the alphabet."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from rewriter.hosts import onnx_words as w
from rewriter.hosts.base import Unfit
from rewriter.hosts.onnx_row import Args, Row, attr
from runtime_ops.ops import pieces
from runtime_ops.words import Expr, dim, make, reshape


def _row(angles: Callable[[ir.Node, Args, Expr], tuple[Expr, Expr] | None]) -> Row:
    """Return the row of an operator whose cosines and sines [s r] or [b s r] are ``angles``."""

    def row(node: ir.Node, args: Args, opset: int) -> Expr | None:
        x, turned = args[0], None
        try:
            found = None if x is None or x.rank not in (3, 4) else angles(node, args, x)
            if x is not None and found is not None:
                turned = _turned(node, x, *found)
        except Unfit:
            return None  # not read, but no attention either: nothing to decline
        return turned

    return row


def _turned(node: ir.Node, x: Expr, cos: Expr, sin: Expr) -> Expr:
    heads = attr(node, "num_heads", 0)
    if x.rank == 3 and not heads:
        width, half = x.shape[-1] if x.shape else None, cos.shape[-1] if cos.shape else None
        if not isinstance(width, int) or not isinstance(half, int) or attr(node, "rotary_embedding_dim", 0):
            raise Unfit("the number of heads is not given")
        heads = width // (2 * half)
    cos, sin = (y if y.rank == 2 else make("unsqueeze", y, axes=(1,)) for y in (cos, sin))
    out = w.turned(w.heads(x, heads), cos, sin, bool(attr(node, "interleaved", 0)))
    return w.merged(out, x.rank)


def _contrib(node: ir.Node, args: Args, x: Expr) -> tuple[Expr, Expr] | None:
    """Return the angles of com.microsoft RotaryEmbedding: tables by position, or from one position on."""
    positions, cos, sin = args[1:4]
    if positions is None or cos is None or sin is None or attr(node, "is_packed_batching", 0):
        return None
    if attr(node, "scale", 1.0) != 1.0 or positions.rank not in (1, 2):
        return None
    if positions.rank == 1:
        positions = make("add", reshape(positions, [1]), pieces.count(dim(x, x.rank - 2)))  # type: ignore[operator]
    return make("gather", cos, positions, axis=0), make("gather", sin, positions, axis=0)


def _standard(node: ir.Node, args: Args, x: Expr) -> tuple[Expr, Expr] | None:
    """Return the angles of ai.onnx RotaryEmbedding: tables by position, or one row for every token."""
    cos, sin, positions = (args[i] if len(args) > i else None for i in (1, 2, 3))
    if cos is None or sin is None:
        return None
    if positions is None:
        return (cos, sin) if cos.rank == 3 else None
    return make("gather", cos, positions, axis=0), make("gather", sin, positions, axis=0)


ROTARY: dict[tuple[str, str], Row] = {
    ("", "RotaryEmbedding"): _row(_standard),
    ("com.microsoft", "RotaryEmbedding"): _row(_contrib),
}
