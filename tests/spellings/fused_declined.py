"""Fused nodes whose meaning is another one, or that write in place: declined, each for its own reason.

ONNX Runtime on CPU has no kernel for most of them, so only the reading is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sketch import Sketch, Value

from spellings.base import GQA, Spelling, declined
from spellings.fused_cache import MS, cached, past
from spellings.fused_grouped import gqa


def node(op: str, *inputs: Callable[[Sketch], Any], **attrs: Any) -> Callable[[Sketch], None]:
    return lambda f: f.finish(f.node(op, *(make(f) for make in inputs), num_heads=f.h, domain=MS, **attrs), f.h * f.d)


def x(f: Sketch) -> Value:
    return f.x


def weights(f: Sketch) -> Value:
    return f.weight("qkv.weight", f.m, 3 * f.h * f.d)


def ints(*dims: str) -> Callable[[Sketch], Value]:
    return lambda f: f.input(f"ints_{len(f.inputs)}", " ".join(dims), "ids", "int32")


def shared_buffer(f: Sketch) -> None:
    """Past and present of one declared length: the runtime may bind them to one buffer."""
    before = [f.input(f"past_{n}", f"b {f.kv} room {f.d}") for n in ("key", "value")]
    one = f.const(np.array(1, np.int32))
    inputs = (f.q3, f.k3, f.v3, *before, f.input("seqlens_k", "b", "ids", "int32"), one)
    attrs = {"num_heads": f.h, "kv_num_heads": f.kv, "outputs": 3, "domain": MS}
    out, *presents = f.node("GroupQueryAttention", *inputs, **attrs)
    f.finish(out, f.h * f.d)
    for value in presents:
        f.expose(value, f"b {f.kv} room {f.d}")


def weights_read(f: Sketch) -> None:
    out, _, _, weights = f.Attention(f.q, f.k, f.v, scale=0.3, qk_matmul_output_mode=3, outputs=4)
    f.close(out)
    f.output(weights, f"b {f.h} s s")


def past_length(f: Sketch) -> None:
    inputs = (f.q3, f.k3, f.v3, None, None, None, past(f, "key"), past(f, "value"), np.zeros(1, np.int32))
    cached(f, *f.node("MultiHeadAttention", *inputs, num_heads=f.h, outputs=3, domain=MS))


def cross_causal(f: Sketch) -> None:
    f.finish(f.node("MultiHeadAttention", f.q3, f.k3, f.v3, num_heads=f.h, unidirectional=1, domain=MS), f.h * f.d)


def sink(f: Sketch) -> None:
    gqa(f, extra=(None,) * 4 + (f.weight("sink", f.h),))


def beams(f: Sketch) -> None:
    inputs = (f.q3, f.k3, f.v3, None, None, past(f, "key"), past(f, "value"), np.ones(1, np.int32))
    cached(f, *f.node("DecoderMaskedMultiHeadAttention", *inputs, num_heads=f.h, outputs=3, domain=MS))


UNRUN = {"runs": False}
READ = {"sites": 1, "scale": 0.3}
FUSED_DECLINED: tuple[Spelling, ...] = (
    declined("attention-23-weights-read", weights_read, "also read by", {"opset": 23}, **READ),
    declined("mha-past-length", past_length, "in place", **UNRUN),
    declined("mha-causal-cross", cross_causal, "number of keys that may differ", {"cross": True}, **UNRUN),
    declined("gqa-node-shared-buffer", shared_buffer, "in place.*equally long", GQA, **UNRUN),
    declined("gqa-node-sink", sink, "sink in its softmax", GQA, **UNRUN),
    declined("gqa-node-smooth-softmax", lambda f: gqa(f, smooth_softmax=1), "sink in its softmax", GQA, **UNRUN),
    declined("decoder-masked", beams, "in place", **UNRUN),
    declined(
        "packed-mha",
        node(
            "PackedMultiHeadAttention",
            lambda f: f.q3,
            lambda f: f.k3,
            lambda f: f.v3,
            lambda f: None,
            ints("b", "s"),
            ints("n"),
        ),
        "without padding",
        **UNRUN,
    ),
    declined(
        "packed-attention",
        node("PackedAttention", x, weights, lambda f: f.weight("bias", 3 * f.h * f.d), ints("b", "s"), ints("n")),
        "without padding",
        **UNRUN,
    ),
    declined(
        "q-attention", node("QAttention", x, weights, lambda f: f.weight("bias", 3 * f.h * f.d)), "8-bit", **UNRUN
    ),
    declined("longformer", node("LongformerAttention", x, weights), "marked global", **UNRUN),
    declined("linear-attention", node("LinearAttention", x, weights), "no softmax", **UNRUN),
    declined("sparse-attention", node("SparseAttention", x, weights), "blocks", **UNRUN),
    declined("paged-attention", node("PagedAttention", x, weights), "pages", **UNRUN),
)
