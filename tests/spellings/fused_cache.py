"""Nodes that are an attention with its own cache: their presents are part of what a rewrite must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sketch import Sketch, Value

from spellings.base import CROSS, GQA, INF, PAST, Spelling, repeat, row

MS = "com.microsoft"
FILL = -10000.0


def past(f: Sketch, name: str) -> Value:
    return f.input(f"past_{name}", f"b {f.kv} p {f.d if name == 'key' else f.e}")


def cached(f: Sketch, out: Value, key: Value, value: Value) -> None:
    """The result and both presents as outputs of the model."""
    f.finish(out, f.h * f.e)
    f.output(key, f"b {f.kv} total {f.d}")
    f.output(value, f"b {f.kv} total {f.e}")


def joined(f: Sketch) -> tuple[Value, Value]:
    return f.Concat(past(f, "key"), f.k, axis=2), f.Concat(past(f, "value"), f.v, axis=2)


def plain(f: Sketch, q: Value, key: Value, value: Value, scores: Callable[[Value], Value], scale: float) -> Value:
    """Attention over all of a cache in plain operators, heads merged; rows without a key give 0."""
    k, v = (x if f.kv == f.h else repeat(f, x, "expand") for x in (key, value))
    p = f.Softmax(scores(q @ k.perm(0, 1, 3, 2) * scale), axis=-1)
    return (f.Where(f.IsNaN(p), 0.0, p) @ v).perm(0, 2, 1, 3).reshape(0, 0, f.h * f.e)


def twin(scores: Callable[[Sketch, Value], Value] = lambda f, s: s, scale: float = 0.3) -> Callable[[Sketch], None]:
    def write(f: Sketch) -> None:
        key, value = joined(f)
        cached(f, plain(f, f.q, key, value, lambda s: scores(f, s), scale), key, value)

    return write


def after_past(f: Sketch, s: Value) -> Value:
    """Causal with the past counted: key j is seen by query i if j <= i + p."""
    p, n = past(f, "key").dim(2), f.x.dim(1)
    rows = f.Range(p, f.Add(p, n), np.array(1)).unsqueeze(1)
    columns = f.Range(np.array(0), f.Add(p, n), np.array(1)).unsqueeze(0)
    return f.Where(f.LessOrEqual(columns, rows), s, -INF)


def onnx_attention(f: Sketch, mask: Value | None = None, rank: int = 4, **attrs: Any) -> None:
    q, k, v = (f.q, f.k, f.v) if rank == 4 else (f.q3, f.k3, f.v3)
    heads = {} if rank == 4 else {"q_num_heads": f.h, "kv_num_heads": f.kv}
    out, key, value = f.Attention(
        q, k, v, mask, past(f, "key"), past(f, "value"), scale=0.3, outputs=3, **heads, **attrs
    )
    cached(f, out if rank == 3 else out.perm(0, 2, 1, 3).reshape(0, 0, f.h * f.e), key, value)


def valid_lengths(f: Sketch) -> Value:
    return f.axes_op("ReduceSum", f.input("attention_mask", "b t", "lengths", "int64"), [1], keepdims=0)


def valid(f: Sketch, s: Value, is_causal: bool) -> Value:
    n = f.x.dim(1)
    keys = f.Range(np.array(0), n, np.array(1))
    ends = valid_lengths(f).unsqueeze(1, 2, 3)
    keep = f.Less(keys, ends)
    if is_causal:
        keep = f.And(keep, f.LessOrEqual(keys, f.Add(keys.unsqueeze(1), f.Sub(ends, n))))
    return f.Where(keep, s, -INF)


def onnx_valid(f: Sketch, **attrs: Any) -> None:
    f.close(f.Attention(f.q, f.k, f.v, None, None, None, valid_lengths(f), scale=0.3, **attrs))


def valid_twin(is_causal: bool) -> Callable[[Sketch], None]:
    return lambda f: f.finish(plain(f, f.q, f.k, f.v, lambda s: valid(f, s, is_causal), 0.3), f.h * f.e)


def masked_rows(f: Sketch, s: Value) -> Value:
    return f.Where(f.input("keep", "b 1 s t", "keep", "bool"), s, -INF)


def mha(f: Sketch, keys: Value | None = None, mask: Value | None = None, **attrs: Any) -> None:
    inputs = (f.q3, f.k3, f.v3, None, keys, mask, past(f, "key"), past(f, "value"))
    cached(f, *f.node("MultiHeadAttention", *inputs, num_heads=f.h, scale=0.3, outputs=3, domain=MS, **attrs))


def whole(f: Sketch, name: str, dims: str, fill: str, dtype: str | None = None) -> Value:
    """A tensor whose last axis is that of all keys: a part for the past beside one for the new."""
    parts = (f.input(f"{name}_{axis}", f"{dims} {axis}", fill, dtype) for axis in "ps")
    return f.Concat(*parts, axis=-1)


def mha_packed(f: Sketch, what: str) -> None:
    """Queries, keys and values (or keys and values) of every head side by side in one tensor."""
    q, k, v = (x.perm(0, 2, 1, 3).unsqueeze(3) for x in (f.q, f.k, f.v))
    inputs = (f.Concat(q, k, v, axis=3),) if what == "qkv" else (f.q3, f.Concat(k, v, axis=3))
    f.finish(f.node("MultiHeadAttention", *inputs, num_heads=f.h, scale=0.3, domain=MS), f.h * f.d)


def mha_heads(f: Sketch, op: str = "MultiHeadAttention") -> None:
    """Keys and values of another sequence that are split into heads already; a bias is for the queries alone."""
    bias = f.weight("qkv.bias", 3 * f.h * f.d) if op == "MultiHeadAttention" else None
    q = f.q3 if bias else f.q3 + f.weight("qkv.bias", 3 * f.h * f.d).slice(0, f.h * f.d, 0)
    f.finish(f.node(op, q, f.k, f.v, bias, num_heads=f.h, scale=0.3, domain=MS), f.h * f.d)


def mha_biased(f: Sketch) -> None:
    bias = f.weight("qkv.bias", 3 * f.h * f.d)
    f.finish(f.node("MultiHeadAttention", f.q3, f.k3, f.v3, bias, num_heads=f.h, scale=0.3, domain=MS), f.h * f.d)


def mha_again(f: Sketch) -> None:
    """The presents of one attention are the keys and values of another."""
    inputs = (f.q3, f.k3, f.v3, None, None, None, past(f, "key"), past(f, "value"))
    out, key, value = f.node("MultiHeadAttention", *inputs, num_heads=f.h, scale=0.3, outputs=3, domain=MS)
    q = f.x @ f.weight("q2", f.m, f.h * f.d)
    again = f.node("MultiHeadAttention", q, key, value, num_heads=f.h, scale=0.3, domain=MS)
    cached(f, out + again, key, value)


def twice(f: Sketch) -> None:
    key, value = joined(f)
    first = plain(f, f.q, key, value, lambda s: s, 0.3)
    q = f.heads(f.x @ f.weight("q2", f.m, f.h * f.d), f.h)
    cached(f, first + plain(f, q, key, value, lambda s: s, 0.3), key, value)


def biased(f: Sketch, sides: int) -> None:
    bias, width = f.weight("qkv.bias", 3 * f.h * f.d), f.h * f.d
    q, k, v = (
        f.heads(x + bias.slice(i * width, (i + 1) * width, 0), f.h) if i < sides else f.heads(x, f.h)
        for i, x in enumerate((f.q3, f.k3, f.v3))
    )
    f.finish(plain(f, q, k, v, lambda s: s, 0.3), width)


def separate(f: Sketch) -> None:
    f.finish(plain(f, f.q, f.k, f.v, lambda s: s, 0.3), f.h * f.d)


def token_mask(f: Sketch) -> Value:
    return whole(f, "attention_mask", "b", "lengths", "int64")


def unseen(f: Sketch, keep: Value) -> Value:
    return (1.0 - keep.to("float32")) * FILL


def count(f: Sketch, keepdims: int = 0) -> Value:
    return f.axes_op("ReduceSum", token_mask(f), [1], keepdims=keepdims)


def lengths(f: Sketch) -> Value:
    return count(f).to("int32")


def ends_and_starts(f: Sketch) -> Value:
    """Keys from the second up to the length of each sequence."""
    ones = f.Sub(lengths(f), lengths(f) - np.array(1, np.int32))
    return f.Concat(lengths(f), ones, axis=0)


def up_to_length(f: Sketch, first: int = 0) -> Value:
    keys = f.Range(np.array(0), token_mask(f).dim(1), np.array(1))
    return f.And(f.Less(keys, count(f, 1)), f.LessOrEqual(np.array(first), keys)).unsqueeze(1, 2)


def ms_attention(f: Sketch, mask: Value | None = None, **attrs: Any) -> None:
    w, b = f.weight("qkv.weight", f.m, 3 * f.h * f.d), f.weight("qkv.bias", 3 * f.h * f.d)
    before = f.input("past", f"2 b {f.h} p {f.d}")
    inputs = (f.x, w, b, mask, before)
    out, present = f.node("Attention", *inputs, num_heads=f.h, scale=0.3, outputs=2, domain=MS, **attrs)
    f.finish(out, f.h * f.d)
    f.output(present, f"2 b {f.h} total {f.d}")


def ms_twin(scores: Callable[[Sketch, Value], Value] = lambda f, s: s) -> Callable[[Sketch], None]:
    def write(f: Sketch) -> None:
        q, k, v = (f.heads(x, f.h) for x in f.project("qkv", f.x, 3 * f.h * f.d).split([f.h * f.d] * 3, 2))
        before = f.input("past", f"2 b {f.h} p {f.d}")
        key, value = (f.Concat(before.slice(i, i + 1, 0).squeeze(0), x, axis=2) for i, x in enumerate((k, v)))
        f.finish(plain(f, q, key, value, lambda s: scores(f, s), 0.3), f.h * f.d)
        f.output(f.Concat(key.unsqueeze(0), value.unsqueeze(0), axis=0), f"2 b {f.h} total {f.d}")

    return write


def embedded(f: Sketch) -> None:
    """As ONNX Runtime's optimiser leaves BERT: embeddings that give the lengths of their sequences, then attention."""
    tables = (
        f.weight("words", 7, f.m),
        f.weight("positions", 16, f.m),
        None,
        f.weight("gain", f.m),
        f.weight("shift", f.m),
    )
    keep = f.input("attention_mask", "b s", "lengths", "int64").to("int32")
    x, lengths = f.node("EmbedLayerNormalization", ids(f), None, *tables, keep, outputs=2, domain=MS)
    w, b = f.weight("qkv.weight", f.m, 3 * f.h * f.d), f.weight("qkv.bias", 3 * f.h * f.d)
    f.finish(f.node("Attention", x, w, b, lengths, num_heads=f.h, scale=0.3, domain=MS), f.h * f.d)


def ids(f: Sketch) -> Value:
    return f.input("input_ids", "b s", "ids", "int32")


def embedded_twin(f: Sketch) -> None:
    keep = f.input("attention_mask", "b s", "lengths", "int64")
    at = f.Range(np.array(0), keep.dim(1), np.array(1))
    both = f.Gather(f.weight("words", 7, f.m), ids(f), axis=0) + f.Gather(f.weight("positions", 16, f.m), at, axis=0)
    x = f.LayerNormalization(both, f.weight("gain", f.m), f.weight("shift", f.m), axis=-1, epsilon=1e-12)
    q, k, v = (f.heads(y, f.h) for y in f.project("qkv", x, 3 * f.h * f.d).split([f.h * f.d] * 3, 2))
    f.finish(plain(f, q, k, v, lambda s: s + unseen(f, keep.unsqueeze(1, 2)), 0.3), f.h * f.d)


def past_rows(f: Sketch, s: Value) -> Value:
    p, n = f.input("past", f"2 b {f.h} p {f.d}").dim(3), f.x.dim(1)
    rows = f.Range(p, f.Add(p, n), np.array(1)).unsqueeze(1)
    return f.Where(f.LessOrEqual(f.Range(np.array(0), f.Add(p, n), np.array(1)), rows), s, -INF)


CACHED: tuple[Spelling, ...] = (
    *(
        row(f"attention-{opset}-past", onnx_attention, {"opset": opset, **GQA}, scale=0.3, dims=PAST, twin=twin())
        for opset in (23, 24)
    ),
    row(
        "attention-23-past-causal",
        lambda f: onnx_attention(f, is_causal=1),
        {"opset": 23},
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(after_past),
    ),
    row(
        "attention-23-past-rank-3-causal",
        lambda f: onnx_attention(f, rank=3, is_causal=1),
        {"opset": 23, **GQA},
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(after_past),
    ),
    row(
        "attention-23-past-softcap-and-mask",
        lambda f: onnx_attention(f, whole(f, "other", "1 1 s", "normal"), softcap=2.0),
        {"opset": 23},
        scale=0.3,
        softcap=2.0,
        mask=True,
        dims=PAST,
        twin=twin(lambda f, s: f.Tanh(s / 2.0) * 2.0 + whole(f, "other", "1 1 s", "normal")),
    ),
    row(
        "attention-23-rows-without-a-key",
        lambda f: f.close(f.Attention(f.q, f.k, f.v, f.input("keep", "b 1 s t", "keep", "bool"), scale=0.3)),
        {"opset": 23},
        scale=0.3,
        mask=True,
        twin=lambda f: f.finish(plain(f, f.q, f.k, f.v, lambda s: masked_rows(f, s), 0.3), f.h * f.e),
    ),
    row("attention-24-lengths", onnx_valid, {"opset": 24}, scale=0.3, mask=True, twin=valid_twin(False)),
    row(
        "attention-24-lengths-causal",
        lambda f: onnx_valid(f, is_causal=1),
        {"opset": 24},
        scale=0.3,
        mask=True,
        twin=valid_twin(True),
    ),
    row("mha-past", mha, scale=0.3, dims=PAST, twin=twin()),
    row(
        "mha-past-unidirectional",
        lambda f: mha(f, unidirectional=1),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(after_past),
    ),
    row(
        "mha-past-bias",
        lambda f: mha(f, mask=whole(f, "bias", f"b {f.h} s", "normal")),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(lambda f, s: s + whole(f, "bias", f"b {f.h} s", "normal")),
    ),
    row(
        "mha-padding",
        lambda f: mha(f, token_mask(f).to("int32")),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(lambda f, s: s + unseen(f, token_mask(f).unsqueeze(1, 2))),
    ),
    row(
        "mha-padding-rank-3",
        lambda f: mha(f, whole(f, "keep", "b s", "keep", "bool").to("int32")),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(lambda f, s: s + unseen(f, whole(f, "keep", "b s", "keep", "bool").unsqueeze(1))),
    ),
    row(
        "mha-padding-lengths",
        lambda f: mha(f, lengths(f)),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=twin(lambda f, s: s + unseen(f, up_to_length(f))),
    ),
    # ONNX Runtime on CPU takes no packed inputs: the rewrite runs against the same in plain operators
    *(
        row(f"mha-packed-{what}", lambda f, what=what: mha_packed(f, what), scale=0.3, runs=False, twin=separate)
        for what in ("qkv", "kv")
    ),
    row("mha-present-used-again", mha_again, scale=0.3, dims=PAST, sites=2, twin=twice),
    row("mha-biases", mha_biased, scale=0.3, twin=lambda f: biased(f, 3)),
    row("mha-keys-as-heads", mha_heads, {"cross": True}, scale=0.3, dims=CROSS, twin=lambda f: biased(f, 1)),
    row(
        "decoder-masked-cross",
        lambda f: mha_heads(f, "DecoderMaskedMultiHeadAttention"),
        {"cross": True},
        scale=0.3,
        dims=({"b": 2, "s": 1, "t": 5}, {"b": 1, "s": 1, "t": 1}),
        proves=False,
        twin=lambda f: biased(f, 1),
    ),
    row(
        "ms-attention-past",
        ms_attention,
        scale=0.3,
        dims=PAST,
        twin=ms_twin(),
        around={"cache": {"past": ["past", "past"]}},
    ),
    row(
        "ms-attention-past-unidirectional",
        lambda f: ms_attention(f, unidirectional=1),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=ms_twin(past_rows),
    ),
    row("ms-attention-after-embedding", embedded, scale=0.3, mask=True, twin=embedded_twin),
    row(
        "ms-attention-lengths",
        lambda f: ms_attention(f, lengths(f)),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=ms_twin(lambda f, s: s + unseen(f, up_to_length(f))),
    ),
    row(
        "ms-attention-ends-and-starts",
        lambda f: ms_attention(f, ends_and_starts(f)),
        scale=0.3,
        mask=True,
        dims=PAST,
        twin=ms_twin(lambda f, s: s + unseen(f, up_to_length(f, 1))),
    ),
)
