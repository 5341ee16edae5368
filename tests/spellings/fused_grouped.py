"""com.microsoft GroupQueryAttention: right-padded sequences, rotary embedding inside, packed inputs, a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sketch import Sketch, Value

from spellings.base import GQA, INF, Spelling, row
from spellings.fused_cache import MS, cached, past, plain, whole

# ONNX Runtime takes several queries over a past for one sequence only, and no sequence shorter than its queries
RAGGED = ({"b": 2, "s": 1, "p": 6}, {"b": 1, "s": 5, "p": 3}, {"b": 3, "s": 1, "p": 1})
PROMPT = ({"b": 2, "s": 7}, {"b": 1, "s": 1}, {"b": 3, "s": 5})
Scores = Callable[[Value], Value]


def mask(f: Sketch, prompt: bool) -> Value:
    """[b n] of 0 and 1, ones first; over a past only the past may lack tokens."""
    if prompt:
        return f.input("attention_mask", "b s", "nearly", "int64")
    parts = (
        f.input(f"attention_mask_{axis}", f"b {axis}", fill, "int64") for axis, fill in (("p", "nearly"), ("s", "ones"))
    )
    return f.Concat(*parts, axis=1)


def empty(f: Sketch, name: str) -> Value:
    return f.const(np.zeros((1, f.kv, 0, f.d), np.float32), f"empty_{name}").expand(f.x.dim(0), f.kv, 0, f.d)


def gqa(
    f: Sketch, prompt: bool = False, packed: bool = False, rotary: bool = False, extra: Any = (), **attrs: Any
) -> None:
    keep = mask(f, prompt)
    total = keep.dim(1).to("int32")
    last = (f.axes_op("ReduceSum", keep, [1], keepdims=0) - np.int64(1)).to("int32")
    before = [empty(f, n) if prompt else past(f, n) for n in ("key", "value")]
    qkv = (f.Concat(f.q3, f.k3, f.v3, axis=-1), None, None) if packed else (f.q3, f.k3, f.v3)
    tables = angles(f) if rotary else ()
    inputs = [*qkv, *before, last, total, *tables, *extra]
    attrs = {"num_heads": f.h, "kv_num_heads": f.kv, "scale": 0.3, **({"do_rotary": 1} if rotary else {}), **attrs}
    out, key, value = f.node("GroupQueryAttention", *inputs, outputs=3, domain=MS, **attrs)
    cached(f, out, key, value)


def angles(f: Sketch) -> tuple[Value, Value]:
    """Cosines and sines [position r], r half of the width that turns."""
    turned = f.d // 2 if f.d <= 16 else f.d // 4
    at = np.arange(24)[:, None] / 10 ** (np.arange(turned) / turned)
    return f.const(np.cos(at).astype(np.float32), "cos_cache"), f.const(np.sin(at).astype(np.float32), "sin_cache")


def starts(f: Sketch, prompt: bool) -> Value:
    """How many tokens every sequence has from before, [b 1]."""
    length = f.axes_op("ReduceSum", mask(f, prompt), [1], keepdims=1)
    return f.Sub(length, length) if prompt else f.Sub(length, f.x.dim(1))


def turn(f: Sketch, x: Value, at: Value, interleaved: bool) -> Value:
    """Rotary embedding as complex numbers are multiplied, [b n s d] at positions [b s]."""
    cos, sin = (f.Gather(table, at, axis=0).unsqueeze(1) for table in angles(f))
    width = 2 * (f.d // 2 if f.d <= 16 else f.d // 4)
    half = width // 2
    if interleaved:
        pairs = x.slice(0, width, 3).reshape(0, 0, 0, half, 2)
        a, b = (pairs.slice(i, i + 1, 4).squeeze(4) for i in (0, 1))
    else:
        a, b = x.slice(0, half, 3), x.slice(half, width, 3)
    first, second = a * cos - b * sin, b * cos + a * sin
    if interleaved:
        both = f.Concat(first.unsqueeze(4), second.unsqueeze(4), axis=4).reshape(0, 0, 0, width)
    else:
        both = f.Concat(first, second, axis=3)
    return f.Concat(both, x.slice(width, f.d, 3), axis=3) if width < f.d else both


def present(f: Sketch, before: Value, new: Value, start: Value) -> Value:
    """New rows put behind those of each sequence by ScatterElements, zeros behind them."""
    b, n, width = f.x.dim(0), f.x.dim(1), f.d
    count = f.axes_op("Unsqueeze", f.Add(before.dim(2), n), [0])
    old = f.Range(np.array(0), before.dim(2), np.array(1))
    clean = f.Where(f.Less(old, start).unsqueeze(1, 3), before, 0.0)
    zeros = f.const(np.zeros((1, 1, 1, 1), np.float32), "zero").expand(b, f.kv, n, width)
    at = f.Add(start, f.Range(np.array(0), n, np.array(1))).unsqueeze(1, 3)
    del count
    return f.ScatterElements(f.Concat(clean, zeros, axis=2), f.Expand(at, f.Shape(new)), new, axis=2)


def twin(
    prompt: bool = False, interleaved: bool | None = None, window: int = 0, scores: Any = lambda f, s: s
) -> Callable[[Sketch], None]:
    def write(f: Sketch) -> None:
        start = starts(f, prompt)
        rows = f.Add(start, f.Range(np.array(0), f.x.dim(1), np.array(1)))  # [b s]
        q, k, v = f.q, f.k, f.v
        if interleaved is not None:
            q, k = (turn(f, x, rows, interleaved) for x in (q, k))
        key, value = (k, v) if prompt else (present(f, past(f, n), x, start) for n, x in (("key", k), ("value", v)))
        columns = f.Range(np.array(0), mask(f, prompt).dim(1), np.array(1))
        queries = rows.unsqueeze(1, 3)
        keep = f.And(f.LessOrEqual(columns, queries), f.Less(columns, f.Add(start, real(f, prompt)).unsqueeze(1, 2)))
        if window:
            keep = f.And(keep, f.Less(f.Sub(queries, np.array(window)), columns))
        cached(f, plain(f, q, key, value, lambda s: f.Where(keep, scores(f, s), -INF), 0.3), key, value)

    return write


def real(f: Sketch, prompt: bool) -> Value:
    """How many of the new tokens of each sequence are no padding, [b 1]."""
    return f.Sub(f.axes_op("ReduceSum", mask(f, prompt), [1], keepdims=1), starts(f, prompt))


def extra_bias(f: Sketch) -> Value:
    return whole(f, "other", "1 1 s", "normal")


def grouped(name: str, write: Callable[[Sketch], None], made: Callable[[Sketch], None], **more: Any) -> Spelling:
    return row(
        f"gqa-node-{name}",
        write,
        {**GQA, **more.pop("frame", {})},
        **{"scale": 0.3, "mask": True, "dims": RAGGED, "proves": False, "twin": made, **more},
    )


GROUPED: tuple[Spelling, ...] = (
    grouped("padded-prompt", lambda f: gqa(f, prompt=True), twin(prompt=True), dims=PROMPT),
    grouped("past", gqa, twin()),
    grouped("packed", lambda f: gqa(f, packed=True), twin()),
    grouped("window", lambda f: gqa(f, local_window_size=2), twin(window=2)),
    grouped("softcap", lambda f: gqa(f, softcap=2.0), twin(scores=lambda f, s: f.Tanh(s / 2.0) * 2.0), softcap=2.0),
    grouped(
        "bias",
        lambda f: gqa(f, extra=(None, None, None, extra_bias(f))),
        twin(scores=lambda f, s: s + extra_bias(f)),
    ),
    *(
        grouped(
            f"rotary-{'pairs' if pairs else 'halves'}-{d}",
            lambda f, pairs=pairs: gqa(f, rotary=True, rotary_interleaved=pairs),
            twin(interleaved=bool(pairs)),
            frame={"d": d},
            around={
                "rope": {"form": "pairs" if pairs else "halves", "width": 16, "of": d},
                "cache": {
                    "past": ["past_key", "past_value"],
                    "presents": ["GroupQueryAttention_25_out1", "GroupQueryAttention_25_out2"],
                },
            },
        )
        for pairs in (0, 1)
        for d in (16, 32)
    ),
    grouped(
        "rotary-prompt",
        lambda f: gqa(f, prompt=True, rotary=True),
        twin(prompt=True, interleaved=False),
        frame={"d": 16},
        dims=PROMPT,
    ),
)
