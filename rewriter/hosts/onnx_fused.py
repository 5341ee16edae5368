"""READ for attention that another tool has already fused: spelled out again in the words of the alphabet.

So a fused node is read by the same readers as a spelled-out one. A row gives the result and, where the node keeps
a cache, the presents; outputs that it does not give (scores) stay opaque. It raises ``Unfit`` with the reason where
a node's meaning is not plain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rewriter.hosts import onnx_words as w
from rewriter.hosts import spelled
from rewriter.hosts import spelled_attention as spell
from rewriter.hosts.base import Unfit
from rewriter.hosts.onnx_grouped import grouped
from rewriter.hosts.onnx_row import Args, Row, attr
from runtime_ops.ops import pieces
from runtime_ops.words import Expr, const, dim, make

_FILL = -10000.0  # default of mask_filter_value


def _attention(node: ir.Node, args: Args, opset: int) -> Sequence[Expr]:
    """Read ai.onnx Attention 23 and 24."""
    if opset > 24 and any(attr(node, f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        raise Unfit("Attention with a sliding window is not read yet")
    q3, k3, v3 = (w.needed(node, args, i, n) for i, n in enumerate(("Q", "K", "V")))
    mask, past_k, past_v, valid = (w.optional(args, i) for i in (3, 4, 5, 6))
    q = w.heads(q3, attr(node, "q_num_heads"))
    k, v = (w.with_past(past, w.heads(x, attr(node, "kv_num_heads"))) for past, x in ((past_k, k3), (past_v, v3)))
    scores = w.capped(w.scores(q, spell.repeated(k, q), attr(node, "scale")), attr(node, "softcap", 0.0))
    if mask is not None:
        scores = pieces.hide(scores, mask) if mask.dtype == bool else make("add", scores, mask)
    if valid is not None:
        scores = _valid(scores, q, k, valid, bool(attr(node, "is_causal", 0)))
    elif attr(node, "is_causal", 0):
        scores = spell.causal(scores, q, k, past_k)
    out = spell.weighted(scores, spell.repeated(v, q), empty_rows=mask is not None or valid is not None)
    return w.merged(out, q3.rank), k, v


def _valid(scores: Expr, q: Expr, k: Expr, lengths: Expr, causal: bool) -> Expr:
    """Return scores with keys after each sequence's length hidden; causal then counts back from that length."""
    ends, keys = make("unsqueeze", lengths, axes=(1, 2, 3)), pieces.count(dim(k, 2))
    scores = pieces.hide(scores, make("lt", keys, ends))
    if not causal:
        return scores
    rows = make("add", spelled.column(pieces.count(dim(q, 2))), make("sub", ends, dim(q, 2)))
    return pieces.hide(scores, make("le", keys, rows))


def _multi_head(node: ir.Node, args: Args, opset: int) -> Sequence[Expr]:
    """Read com.microsoft MultiHeadAttention: separate, packed, or with keys and values of another sequence."""
    w.refuse(node, args, ((8, "a past length writes its keys into the past in place"), (9, _BEAMS)))
    q, k, v = _operands(node, args, w.optional(args, 3))
    past_k, past_v = w.optional(args, 6), w.optional(args, 7)
    uni = bool(attr(node, "unidirectional", 0))
    if uni and (q.shape is None or k.shape is None or q.shape[2] != k.shape[2]):
        raise Unfit(_UNEVEN)
    keys, values = w.with_past(past_k, k), w.with_past(past_v, v)
    scores = w.scores(q, keys, attr(node, "scale"))
    scores = _contrib_masks(node, scores, keys, w.optional(args, 4), w.optional(args, 5))
    scores = spell.causal(scores, q, keys, past_k) if uni else scores
    return w.merged(spell.weighted(scores, values)), keys, values


# ONNX Runtime 1.31 on CPU lets the last query see every key then, and only the others their own
_UNEVEN = "MultiHeadAttention is causal over a number of keys that may differ from that of its queries"
_BEAMS = "cache indirection mixes the caches of beams"


def _operands(node: ir.Node, args: Args, bias: Expr | None) -> list[Expr]:
    """Return q, k and v as [b h s d]."""
    h, x = attr(node, "num_heads"), w.needed(node, args, 0, "query")
    if x.rank == 5 or (args[1] is not None and args[1].rank == 5):
        if bias is not None:
            raise Unfit(f"{node.op_type} with a bias on packed keys and values is not read: no CPU runtime defines it")
        return _packed(node, args, x, h)
    parts = [x, *(w.needed(node, args, i, n) for i, n in ((1, "key"), (2, "value")))]
    if bias is not None:
        parts = _with_biases(parts, bias)
    return [w.heads(p, h) for p in parts]


def _packed(node: ir.Node, args: Args, x: Expr, h: int) -> list[Expr]:
    """Return the parts of queries, keys and values in one tensor [b s h 3 d], or keys and values [b t h 2 d]."""
    if x.rank == 5:
        return [_slot(x, i) for i in range(3)]
    both = w.needed(node, args, 1, "key")
    return [w.heads(x, h), _slot(both, 0), _slot(both, 1)]


def _slot(x: Expr, index: int) -> Expr:
    one = make("squeeze", w.part(x, index, index + 1, 3), axes=(3,))
    return make("transpose", one, perm=(0, 2, 1, 3))


def _with_biases(parts: Sequence[Expr], bias: Expr) -> list[Expr]:
    """Return inputs plus their parts of a bias; keys and values that come as heads have theirs already."""
    out, start = [], 0
    for x in parts:
        if x.rank == 4:
            out.append(x)
            continue
        width = x.shape[-1] if x.shape else None
        if not isinstance(width, int):
            raise Unfit("MultiHeadAttention adds a bias to inputs whose width is not known")
        out.append(make("add", x, w.part(bias, start, start + width, 0)))
        start += width
    return out


def _contrib_masks(node: ir.Node, scores: Expr, k: Expr, padding: Expr | None, extra: Expr | None) -> Expr:
    """Return scores with the bias and padding mask of a com.microsoft operator."""
    if extra is not None:
        scores = make("add", scores, extra)
    if padding is None:
        return scores
    keep = _visible(node, padding, k)
    hidden = make("where", keep, const(0.0, scores.dtype), const(attr(node, "mask_filter_value", _FILL), scores.dtype))
    return make("add", scores, hidden)


def _visible(node: ir.Node, padding: Expr, k: Expr) -> Expr:
    """Return a padding mask as booleans [b 1 s t] or [b 1 1 t].

    It is [b t] or [b s t] of 0 and 1; or [b] lengths, [2 b] ends and then starts, or [3 b + 2] of lengths,
    then offsets that follow from them.
    """
    if padding.rank in (2, 3):
        axes = (1, 2) if padding.rank == 2 else (1,)
        return make("cast", make("unsqueeze", padding, axes=axes), to=np.dtype(bool))
    b = k.shape[0] if k.shape else None
    if padding.shape is None or b is None:
        raise Unfit(f"{node.op_type} has a padding mask of unknown rank")
    if padding.rank != 1:
        raise Unfit(f"{node.op_type} has a padding mask of rank {padding.rank}, which only some GPU runtimes take")
    if padding.shape[0] not in (b, b + b, 3 * b + 2):
        raise Unfit(f"{node.op_type} has a padding mask of one axis, and its length against the batch is not known")
    ends, keys = _batch_part(padding, k, 0), pieces.count(dim(k, 2))
    keep = make("lt", keys, ends)
    if padding.shape[0] != b + b:
        return keep
    return make("and", keep, make("le", _batch_part(padding, k, 1), keys))


def _batch_part(x: Expr, k: Expr, index: int) -> Expr:
    """Return ``x[index · b : (index + 1) · b]`` as [b 1 1 1], int64."""
    b = dim(k, 0)
    bounds = [make("mul", b, const([n])) for n in (index, index + 1)]
    piece = make("slice", x, *bounds, const([0]), const([1]))
    return make("cast", make("unsqueeze", piece, axes=(1, 2, 3)), to=np.dtype(np.int64))


def _fused_projections(node: ir.Node, args: Args, opset: int) -> Sequence[Expr]:
    """Read com.microsoft Attention, which holds its projections."""
    w.refuse(node, args, ((6, "a past length writes its keys into the past in place"),))
    if attr(node, "do_rotary", 0):
        raise Unfit("Attention rotates its heads inside, by angles that only GPU runtimes define")
    x, weight = w.needed(node, args, 0, "input"), w.needed(node, args, 1, "weight")
    sizes, total = attr(node, "qkv_hidden_sizes"), weight.shape[1] if weight.shape else None
    if not isinstance(total, int):
        raise Unfit("Attention has weights of unknown width")
    qkv, bias = make("matmul", x, weight), w.optional(args, 2)
    if bias is not None:
        qkv = make("add", qkv, bias)
    ends = np.cumsum(list(sizes) if sizes else [total // 3] * 3)
    q, k, v = (
        w.heads(w.part(qkv, int(start), int(end), 2), attr(node, "num_heads"))
        for start, end in zip((0, *ends), ends, strict=False)
    )
    past = w.optional(args, 4)
    past_k, past_v = (None, None) if past is None else (_half(past, i) for i in (0, 1))
    keys, values = w.with_past(past_k, k), w.with_past(past_v, v)
    scores = _contrib_masks(
        node, w.scores(q, keys, attr(node, "scale")), keys, w.optional(args, 3), w.optional(args, 5)
    )
    scores = spell.causal(scores, q, keys, past_k) if attr(node, "unidirectional", 0) else scores
    present = make("concat", *(make("unsqueeze", y, axes=(0,)) for y in (keys, values)), axis=0)
    return w.merged(spell.weighted(scores, values)), present


def _half(past: Expr, index: int) -> Expr:
    return make("squeeze", w.part(past, index, index + 1, 0), axes=(0,))


def _masked_decoder(node: ir.Node, args: Args, opset: int) -> Sequence[Expr]:
    """Read com.microsoft DecoderMaskedMultiHeadAttention over the keys of another sequence."""
    w.refuse(node, args, ((5, _IN_PLACE), (6, _IN_PLACE), (9, _BEAMS), (10, "a bias on its inputs is not read yet")))
    q, k, v = _operands(node, args, None)
    scores = w.scores(q, k, attr(node, "scale"))
    return [w.merged(spell.weighted(_contrib_masks(node, scores, k, w.optional(args, 3), w.optional(args, 4)), v))]


_IN_PLACE = "past keys writes new ones into the past in place; a rewrite would need a second buffer"


def _unread(reason: str) -> Row:
    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        raise Unfit(f"{node.op_type} {reason}")

    return row


_TOKENS = "works on tokens without padding, laid end to end; its sequences are no axis of its tensors"
_BITS = "computes in 8-bit integers; a rewrite would change its arithmetic"
_BLOCKS = "attends to blocks chosen by tables and writes its cache in place"
_PAGES = "keeps keys and values in pages, written in place"
_LINEAR = "has no softmax over keys: it is no attention over a memory of tokens"
_LONG = "attends to a window and to tokens marked global, whose projections differ"

FUSED: dict[tuple[str, str], Row] = {
    ("", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "Attention"): _fused_projections,
    ("com.microsoft", "GroupQueryAttention"): grouped,
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): _masked_decoder,
    ("com.microsoft", "DecoderMaskedSelfAttention"): _unread("writes new keys into its past in place"),
    ("com.microsoft", "DecoderAttention"): _unread("switches between caches by inputs that are known when it runs"),
    ("com.microsoft", "PackedAttention"): _unread(_TOKENS),
    ("com.microsoft", "PackedMultiHeadAttention"): _unread(_TOKENS),
    ("com.microsoft", "SparseAttention"): _unread(_BLOCKS),
    ("com.microsoft", "DynamicSparseAttention"): _unread(_BLOCKS),
    ("com.microsoft", "SparsePagedAttention"): _unread(_PAGES),
    ("com.microsoft", "PagedAttention"): _unread(_PAGES),
    ("com.microsoft", "LinearAttention"): _unread(_LINEAR),
    ("com.microsoft", "LongformerAttention"): _unread(_LONG),
    ("com.microsoft", "QOrderedLongformerAttention"): _unread(_BITS),
    ("com.microsoft", "QOrderedAttention"): _unread(_BITS),
    ("com.microsoft", "QAttention"): _unread(_BITS),
}
