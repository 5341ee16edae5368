"""Nodes that are an attention already. Each has a twin in plain operators that fp64 can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sketch import LOWEST, Sketch, Value

from spellings.base import CROSS, GQA, INF, bias, causal, later, other, padding, repeat

MS = "com.microsoft"


def onnx_attention(f: Sketch, mask: Value | None = None, **attrs: Any) -> None:
    f.close(f.Attention(f.q, f.k, f.v, mask, scale=0.3, **attrs))


def onnx_attention_3d(f: Sketch) -> None:
    out = f.Attention(f.q3, f.k3, f.v3, scale=0.3, q_num_heads=f.h, kv_num_heads=f.kv)
    f.finish(out, f.h * f.e)


def mha(f: Sketch, mask: Value | None = None, keys: Value | None = None, **attrs: Any) -> None:
    out = f.node("MultiHeadAttention", f.q3, f.k3, f.v3, None, keys, mask, num_heads=f.h, scale=0.3, domain=MS, **attrs)
    f.finish(out, f.h * f.e)


def gqa(f: Sketch) -> None:
    """GroupQueryAttention over full-length sequences: causal, no past."""
    n = f.x.dim(1).to("int32")
    last = (n - np.int32(1)).expand(f.x.dim(0))
    cache = [
        f.const(np.zeros((1, f.kv, 0, f.d), np.float32), f"empty_{n}").expand(f.x.dim(0), f.kv, 0, f.d) for n in "kv"
    ]
    out = f.node(
        "GroupQueryAttention",
        f.q3,
        f.k3,
        f.v3,
        *cache,
        last,
        n,
        num_heads=f.h,
        kv_num_heads=f.kv,
        scale=0.3,
        outputs=3,
        domain=MS,
    )
    f.finish(out[0], f.h * f.d)


def ms_attention(f: Sketch) -> None:
    """com.microsoft.Attention: projections inside, mask [b t] of 0 and 1."""
    keep = f.input("attention_mask", "b t", "lengths", "int64").to("int32")
    w, b = f.weight("qkv.weight", f.m, 3 * f.h * f.d), f.weight("qkv.bias", 3 * f.h * f.d)
    f.finish(
        f.node("Attention", f.x, w, b, keep, num_heads=f.h, scale=0.3, mask_filter_value=LOWEST, domain=MS),
        f.h * f.d,
    )


def ms_attention_twin(f: Sketch) -> None:
    qkv = f.project("qkv", f.x, 3 * f.h * f.d)
    q, k, v = (f.heads(x, f.h) for x in qkv.split([f.h * f.d] * 3, 2))
    f.attend(q=q, k=k, v=v, scores=lambda s: s * 0.3 + padding(f))


def scaled(f: Sketch, mask: Callable[[Sketch, Value], Value] = lambda f, s: s) -> None:
    k, v = ((x if f.kv == f.h else repeat(f, x, "expand")) for x in (f.k, f.v))
    f.attend(k=k, v=v, scores=lambda s: mask(f, s * 0.3))


def filled(f: Sketch, s: Value) -> Value:
    return f.Where(causal(f), s, -INF)


NEW = {"opset": 23}
FUSED = (
    later("attention-23", onnx_attention, NEW, scale=0.3, twin=scaled),
    later("attention-24", onnx_attention, {"opset": 24}, scale=0.3, twin=scaled),
    later("attention-23-rank-3", onnx_attention_3d, NEW, scale=0.3, twin=scaled),
    later(
        "attention-23-causal",
        lambda f: onnx_attention(f, is_causal=1),
        NEW,
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, filled),
    ),
    later(
        "attention-23-additive",
        lambda f: onnx_attention(f, other(f)),
        NEW,
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, lambda f, s: s + other(f)),
    ),
    later(
        "attention-23-bool",
        lambda f: onnx_attention(f, causal(f)),
        NEW,
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, filled),
    ),
    later(
        "attention-23-softcap",
        lambda f: onnx_attention(f, softcap=2.0),
        NEW,
        scale=0.3,
        softcap=2.0,
        twin=lambda f: scaled(f, lambda f, s: f.Tanh(s / 2.0) * 2.0),
    ),
    later("attention-23-grouped", onnx_attention, {"opset": 23, **GQA}, scale=0.3, twin=scaled),
    later("mha", mha, scale=0.3, twin=scaled),
    later(
        "mha-bias",
        lambda f: mha(f, bias(f)),
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, lambda f, s: s + bias(f)),
    ),
    later(
        "mha-unidirectional",
        lambda f: mha(f, unidirectional=1),
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, filled),
    ),
    later("mha-cross", mha, {"cross": True, "e": 12}, scale=0.3, dims=CROSS, twin=scaled),
    later(
        "group-query-attention",
        gqa,
        {"h": 6, "kv": 2},
        scale=0.3,
        mask=True,
        twin=lambda f: scaled(f, filled),
    ),
    later("ms-attention", ms_attention, scale=0.3, mask=True, twin=ms_attention_twin),
)
