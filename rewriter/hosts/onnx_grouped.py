"""READ for com.microsoft GroupQueryAttention: grouped heads, a cache of right-padded sequences, rotary inside."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from rewriter.hosts import onnx_words as w
from rewriter.hosts import spelled
from rewriter.hosts import spelled_attention as spell
from rewriter.hosts.base import Unfit
from rewriter.hosts.onnx_row import Args, attr
from runtime_ops.ops import pieces
from runtime_ops.words import Expr, const, dim, make, reshape

_WHOLE = np.dtype(np.int64)
_UNREAD_INPUTS = (
    (11, "a sink in its softmax, for which our operations have no input"),
    (12, "a cache in 8 or 4 bits; a rewrite would change its arithmetic"),
    (14, "norms of its queries and keys inside is not read yet"),
)


def grouped(node: ir.Node, args: Args, opset: int) -> Sequence[Expr]:
    """Read a GroupQueryAttention as attention over its present keys and values.

    Sequence b holds L[b] tokens after this call (its ``seqlens_k`` plus one), of which pl[b] = L[b] - s are past:
    query i stands at pl[b] + i and sees keys up to there.
    """
    w.refuse(node, args, _UNREAD_INPUTS)
    if attr(node, "smooth_softmax", 0) == 1:
        raise Unfit(f"{node.op_type} with {_UNREAD_INPUTS[0][1]}")
    if attr(node, "sliding_window_cache", 0) or not attr(node, "causal", 1):
        raise Unfit(f"{node.op_type} with a cache that rolls over, or that is not causal, is not read yet")
    q, k, v = _heads(node, args)
    past_k, past_v = (w.optional(args, i) for i in (3, 4))
    _check_buffer(node, past_k)
    at = _Places(args, q, past_k)
    if attr(node, "do_rotary", 0):
        q, k = (_rotated(node, args, x, at) for x in (q, k))
    keys, values = at.present(past_k, k), at.present(past_v, v)
    scores = w.capped(w.scores(q, spell.repeated(keys, q), attr(node, "scale")), attr(node, "softcap", 0.0))
    bias = w.optional(args, 10)
    if bias is not None:
        scores = make("add", scores, bias)
    scores = at.hide(scores, keys, attr(node, "local_window_size", -1))
    return w.merged(spell.weighted(scores, spell.repeated(values, q))), keys, values


def _heads(node: ir.Node, args: Args) -> list[Expr]:
    x, h, g = w.needed(node, args, 0, "query"), attr(node, "num_heads"), attr(node, "kv_num_heads")
    if args[1] is not None:
        others = (w.needed(node, args, i, n) for i, n in ((1, "key"), (2, "value")))
        return [w.heads(x, h), *(w.heads(y, g) for y in others)]
    total = x.shape[-1] if x.shape else None
    if not isinstance(total, int):
        raise Unfit(f"{node.op_type} has packed queries, keys and values of unknown width")
    width = total // (h + 2 * g)
    bounds = (0, h * width, (h + g) * width, total)
    pieces = [w.part(x, a, b, 2) for a, b in pairwise(bounds)]
    return [w.heads(y, n) for y, n in zip(pieces, (h, g, g), strict=True)]


def _check_buffer(node: ir.Node, past: Expr | None) -> None:
    """Raise Unfit if past and present are declared equally long: then they are one buffer, written in place."""
    present = node.outputs[1].shape if len(node.outputs) > 1 else None
    if past is None or past.shape is None or present is None or past.shape[2] == 0:
        return
    length = present[2]
    if str(past.shape[2]) == str(length if isinstance(length, int) else length.value):
        raise Unfit(f"{node.op_type} writes new keys into its past in place: past and present are equally long")


class _Places:
    """Where the tokens of a call stand in their sequences.

    Attributes:
        past: how many tokens each sequence has from before, [b 1 1 1]; None if none has any.
        ends: L as [b 1 1 1]; None if it is proved that every sequence is as long as the longest.
        length: how many keys there are, [1].
    """

    def __init__(self, args: Args, q: Expr, past: Expr | None) -> None:
        given, total = w.optional(args, 5), w.optional(args, 6)
        if given is None or total is None:
            raise Unfit("GroupQueryAttention without lengths of its sequences")
        self.s, whole = dim(q, 2), reshape(_int64(total), [1])
        first = past is None or (past.shape is not None and past.shape[2] == 0)
        full = _same(make("add", _int64(_source(given)), const([1])), whole)
        lengths = make("add", reshape(_int64(given), [-1, 1, 1, 1]), const([1]))
        self.ends = None if full else lengths
        self.length = self.s if first else make("max", whole, dim(past, 2))  # type: ignore[arg-type]
        self.past = None
        if not first and not _same(whole, self.s):
            none_yet = make("le", whole, self.s)  # a prompt: as many queries as tokens in all
            self.past = make("where", none_yet, const(0), make("sub", lengths, self.s))

    def queries(self) -> Expr:
        """Return the positions of the queries, [s] or, where sequences have a past, [b s]."""
        count = pieces.count(self.s)
        return count if self.past is None else make("add", count, make("squeeze", self.past, axes=(2, 3)))

    def present(self, past: Expr | None, new: Expr) -> Expr:
        """Return new keys or values [b g s d] put behind the past of each sequence, zeros behind them."""
        if past is None or self.length is self.s:
            return new
        zero = const(np.zeros((1, 1, 1), np.int64))
        starts = zero if self.past is None else make("squeeze", self.past, axes=(3,))
        memory, slots = make("concat", past, new, axis=2), pieces.count(self.length)
        behind = make("add", make("sub", slots, starts), dim(past, 2))
        last = make("sub", dim(memory, 2), const([1]))
        source = make("min", make("where", make("lt", slots, starts), slots, behind), last)  # [b 1 t]
        filled = make("lt", slots, make("add", starts, self.s))
        return make("where", make("unsqueeze", filled, axes=(3,)), _rows(memory, source), const(0.0, memory.dtype))

    def hide(self, scores: Expr, keys: Expr, window: int) -> Expr:
        """Return scores with the keys hidden that a query does not see."""
        places, queries = pieces.count(dim(keys, 2)), self.queries()
        rows = spelled.column(queries) if self.past is None else make("unsqueeze", queries, axes=(1, 3))
        keep = make("le", places, rows)
        if window > 0:
            keep = make("and", keep, make("lt", make("sub", rows, const([window])), places))
        if self.ends is not None:
            keep = make("and", keep, make("lt", places, self.ends))
        return pieces.hide(scores, keep)


def _rows(memory: Expr, source: Expr) -> Expr:
    """Return rows [b g t d] of ``memory`` [b g n d], for each sequence those that ``source`` [b 1 t] names."""
    b, g, n = (dim(memory, i) for i in range(3))
    lists = make("range", const(0), make("squeeze", make("mul", b, g), axes=(0,)), const(1))
    base = make("mul", reshape(lists, [b, g, 1]), n)
    flat = reshape(memory, [-1, dim(memory, 3)])
    return make("gather", flat, make("add", base, source), axis=0)


def _rotated(node: ir.Node, args: Args, x: Expr, at: _Places) -> Expr:
    given = w.optional(args, 9)
    positions = at.queries() if given is None else _int64(given)
    tables = [make("gather", w.needed(node, args, i, n), positions, axis=0) for i, n in ((7, "cosines"), (8, "sines"))]
    cos, sin = (y if positions.rank == 1 else make("unsqueeze", y, axes=(1,)) for y in tables)
    return w.turned(x, cos, sin, bool(attr(node, "rotary_interleaved", 0)))


def _int64(x: Expr) -> Expr:
    return x if x.dtype == _WHOLE else make("cast", x, to=_WHOLE)


def _source(x: Expr) -> Expr:
    """Return what a tensor repeats."""
    while x.known is None and x.word in ("expand", "cast", "reshape", "unsqueeze", "squeeze"):
        x = x.args[0]
    return x


def _same(a: Expr, b: Expr) -> bool:
    """Return whether two tensors are known, perhaps as symbolic lengths, and equal."""
    if a.known is None or b.known is None or b.known.size != 1:
        return False
    return all(x == b.known.flat[0] for x in a.known.flat)
