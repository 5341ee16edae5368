"""READ for attention that another tool has already fused: spelled out again in the words of the alphabet.

So a fused node is read by the same readers as a spelled-out one. A row raises ``Unfit`` with the reason where a
node's meaning is not plain, or where its other outputs (presents, scores) are in use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rewriter.hosts.base import Unfit
from rewriter.hosts.onnx_row import Args, Row, attr
from rewriter.hosts.spelled import causal
from runtime_ops.dims import divide
from runtime_ops.words import Expr, const, dim, make, reshape

_HIDDEN = -np.inf


def _refuse(node: ir.Node, args: Args, named: Sequence[tuple[int, str]]) -> None:
    for index, what in named:
        if len(args) > index and args[index] is not None:
            raise Unfit(f"{node.op_type} with {what} is not read yet")
    for output in node.outputs[1:]:
        if output.uses() or output.is_graph_output():
            raise Unfit(f"{node.op_type} gives '{output.name}' as well, which something reads")


def _input(node: ir.Node, args: Args, index: int, name: str) -> Expr:
    found = args[index] if len(args) > index else None
    if found is None or found.shape is None:
        raise Unfit(f"{node.op_type} has no {name} of known rank")
    return found


def _optional(args: Args, index: int) -> Expr | None:
    return args[index] if len(args) > index else None


def _heads(x: Expr, count: int | None) -> Expr:
    """Return [b s (h d)] as [b h s d]."""
    if x.rank == 4:
        return x
    if x.rank != 3 or count is None:
        raise Unfit("its inputs have neither 3 nor 4 axes, or the number of heads is not given")
    split = reshape(x, [dim(x, 0), dim(x, 1), count, -1])
    return make("transpose", split, perm=(0, 2, 1, 3))


def _merged(out: Expr, rank: int | None) -> Expr:
    """Return [b h s e] as the node's output has it."""
    if rank == 4:
        return out
    swapped = make("transpose", out, perm=(0, 2, 1, 3))
    return reshape(swapped, [dim(swapped, 0), dim(swapped, 1), -1])


def _repeated(x: Expr, q: Expr) -> Expr:
    """Return key or value heads repeated to the number of query heads."""
    if x.shape is None or q.shape is None or x.shape[1] == q.shape[1]:
        return x
    group, wide = divide(q.shape[1], x.shape[1]), make("unsqueeze", x, axes=(2,))
    if not isinstance(group, int):
        raise Unfit("the numbers of query and key heads are not known")
    shape = make("concat", dim(x, 0), dim(x, 1), const([group]), dim(x, 2), dim(x, 3), axis=0)
    return reshape(make("expand", wide, shape), [dim(x, 0), dim(q, 1), dim(x, 2), dim(x, 3)])


def _scores(q: Expr, k: Expr, scale: float | None) -> Expr:
    if scale is None or scale == 0.0:  # contrib ops write 0 for "the default"
        width = q.shape[3] if q.shape is not None else None
        if not isinstance(width, int):
            raise Unfit("its head width, which gives the scale, is not known")
        scale = width**-0.5
    product = make("matmul", q, make("transpose", k, perm=(0, 1, 3, 2)))
    return make("mul", product, const(scale, product.dtype))


def _softmax(scores: Expr, v: Expr) -> Expr:
    return make("matmul", make("softmax", scores, axis=3), v)


def _attention(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read ai.onnx Attention 23 and 24."""
    _refuse(node, args, ((4, "past keys"), (5, "past values"), (6, "lengths of the valid keys")))
    q3, k3, v3 = (_input(node, args, i, n) for i, n in enumerate(("Q", "K", "V")))
    q = _heads(q3, attr(node, "q_num_heads"))
    k, v = (_repeated(_heads(x, attr(node, "kv_num_heads")), q) for x in (k3, v3))
    scores, mask, cap = _scores(q, k, attr(node, "scale")), _optional(args, 3), attr(node, "softcap", 0.0)
    if mask is not None and cap:
        raise Unfit("Attention with both a mask and a soft cap is defined differently by opsets 23 and 24")
    if cap:
        scores = make("mul", make("tanh", make("div", scores, const(cap, scores.dtype))), const(cap, scores.dtype))
    if mask is not None and mask.dtype == bool:
        scores = make("where", mask, scores, const(_HIDDEN, scores.dtype))
    elif mask is not None:
        scores = make("add", scores, mask)
    if attr(node, "is_causal", 0):
        scores = causal(scores, q, k)
    return _merged(_softmax(scores, v), q3.rank)


def _multi_head(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read com.microsoft MultiHeadAttention with separate queries, keys and values."""
    _refuse(node, args, ((6, "past keys"), (7, "past values"), (8, "a past length"), (9, "cache indirection")))
    h = attr(node, "num_heads")
    q3, k3, v3 = (_input(node, args, i, n) for i, n in enumerate(("query", "key", "value")))
    if q3.rank != 3:
        raise Unfit("MultiHeadAttention with packed queries, keys and values is not read yet")
    bias, padding, extra = (_optional(args, i) for i in (3, 4, 5))
    if bias is not None:
        q3, k3, v3 = _with_biases((q3, k3, v3), bias)
    q, k, v = (_heads(x, h) for x in (q3, k3, v3))
    scores = _scores(q, k, attr(node, "scale"))
    scores = _contrib_masks(node, scores, q, k, padding, extra)
    return _merged(_softmax(scores, v), 3)


def _with_biases(parts: Sequence[Expr], bias: Expr) -> list[Expr]:
    out, start = [], 0
    for x in parts:
        width = x.shape[-1] if x.shape else None
        if x.rank != 3 or not isinstance(width, int):
            raise Unfit("MultiHeadAttention adds a bias to inputs whose width is not known")
        bounds = (const([start]), const([start + width]), const([0]), const([1]))
        out.append(make("add", x, make("slice", bias, *bounds)))
        start += width
    return out


def _contrib_masks(node: ir.Node, scores: Expr, q: Expr, k: Expr, padding: Expr | None, extra: Expr | None) -> Expr:
    """Return scores with the bias, padding mask and direction of a com.microsoft operator."""
    if extra is not None:
        scores = make("add", scores, extra)
    if padding is not None:
        scores = _padded(scores, padding, attr(node, "mask_filter_value", -10000.0))
    return causal(scores, q, k) if attr(node, "unidirectional", 0) else scores


def _padded(scores: Expr, padding: Expr, fill: float) -> Expr:
    """Return scores plus ``fill`` where a [b t] mask of 0 and 1 is 0."""
    if padding.rank != 2:
        raise Unfit("its padding mask is not of the form [b t]")
    keep = make("cast", make("unsqueeze", padding, axes=(1, 2)), to=np.dtype(bool))
    hidden = make("where", keep, const(0.0, scores.dtype), const(fill, scores.dtype))
    return make("add", scores, hidden)


def _fused_projections(node: ir.Node, args: Args, opset: int) -> Expr:
    """Read com.microsoft Attention, which holds its projections."""
    _refuse(node, args, ((4, "past keys"), (6, "a past length")))
    x, w = _input(node, args, 0, "input"), _input(node, args, 1, "weight")
    h, rotary, sizes = attr(node, "num_heads"), attr(node, "do_rotary", 0), attr(node, "qkv_hidden_sizes")
    total = w.shape[1] if w.shape else None
    if rotary or not isinstance(total, int):
        raise Unfit("Attention with rotary embedding or weights of unknown width is not read yet")
    qkv, bias = make("matmul", x, w), _optional(args, 2)
    if bias is not None:
        qkv = make("add", qkv, bias)
    q, k, v = (_heads(part, h) for part in _thirds(qkv, list(sizes) if sizes else [total // 3] * 3))
    scores, padding, extra = _scores(q, k, attr(node, "scale")), _optional(args, 3), _optional(args, 5)
    scores = _contrib_masks(node, scores, q, k, padding, extra)
    return _merged(_softmax(scores, v), 3)


def _thirds(x: Expr, widths: Sequence[int]) -> list[Expr]:
    ends = np.cumsum(widths)
    bounds = [(const([int(e - n)]), const([int(e)]), const([2]), const([1])) for e, n in zip(ends, widths, strict=True)]
    return [make("slice", x, *b) for b in bounds]


def _unread(reason: str) -> Row:
    def row(node: ir.Node, args: Args, opset: int) -> Expr:
        raise Unfit(f"{node.op_type} {reason}")

    return row


_CACHED = "keeps its own key and value cache, so its other outputs are part of its meaning; not read yet"
FUSED: dict[tuple[str, str], Row] = {
    ("", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "Attention"): _fused_projections,
    ("com.microsoft", "GroupQueryAttention"): _unread(_CACHED),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): _unread(_CACHED),
    ("com.microsoft", "PackedAttention"): _unread("works on tokens without padding, whose layout is not read yet"),
    ("com.microsoft", "PackedMultiHeadAttention"): _unread("works on tokens without padding; not read yet"),
    ("com.microsoft", "SparseAttention"): _unread("attends to fixed blocks and keeps its own cache; not read yet"),
    ("com.microsoft", "QAttention"): _unread("computes in 8-bit integers; a rewrite would change its arithmetic"),
}
