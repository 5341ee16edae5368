"""Permutations, ranks, packed projections, opsets."""

from __future__ import annotations

import numpy as np
from sketch import Sketch, Value

from spellings.base import CROSS, R8, bias, padding, plain, row, width


def dynamo_k(f: Sketch) -> Value:
    """K as torch's dynamo exporter writes it: to rank 3, transposed, back to rank 4 by computed shapes."""
    b, t = f.k.dim(0), f.k.dim(2)
    folded = f.k.reshape(-1, t, f.d).perm(0, 2, 1)
    return folded.reshape(b, f.kv, f.d, t)


def legacy_heads(f: Sketch, x: Value, n: int, w: int) -> Value:
    return x.reshape(x.dim(0), x.dim(1), n, w).perm(0, 2, 1, 3)


def legacy_shapes(f: Sketch) -> None:
    q, k, v = (legacy_heads(f, x, f.h, f.d) for x in (f.q3, f.k3, f.v3))
    context = (f.Softmax((q @ k.perm(0, 1, 3, 2)) / width(f, q), axis=-1) @ v).perm(0, 2, 1, 3)
    f.finish(context.reshape(context.dim(0), context.dim(1), f.h * f.d), f.h * f.d)


def folded(f: Sketch) -> None:
    """torch.bmm: batch and heads folded into one dimension, sequence first (nn.MultiheadAttention)."""
    n = f.x.dim(1)
    q, k, v = (x.perm(1, 0, 2).reshape(n, -1, f.d).perm(1, 0, 2) for x in (f.q3, f.k3, f.v3))
    context = f.Softmax((q * 0.3) @ k.perm(0, 2, 1), axis=-1) @ v
    f.finish(context.perm(1, 0, 2).reshape(n, -1, f.h * f.d).perm(1, 0, 2), f.h * f.d)


def folded_after_split(f: Sketch) -> None:
    """[b h s d] reshaped to [b·h s d] with an additive mask expanded to it."""
    n = f.x.dim(1)
    q, k, v = (x.reshape(-1, n, f.d) for x in (f.q, f.k, f.v))
    scores = (q @ k.perm(0, 2, 1)).reshape(-1, f.h, n, n) + bias(f)
    context = f.Softmax(scores.reshape(-1, n, n), axis=-1) @ v
    f.close(context.reshape(-1, f.h, n, f.d))


def rank_2(f: Sketch) -> None:
    x = f.input("x", f"s {f.m}")
    q, k, v = (f.project(n, x, f.d) for n in "qkv")
    f.finish(plain(f, q, k, v, 1, 0), f.d, "s 20")


def rank_2_gemm(f: Sketch) -> None:
    x = f.input("x", f"s {f.m}")
    q, k, v = (f.Gemm(x, f.weight(n, f.m, f.d), f.weight(f"{n}b", f.d)) for n in "qkv")
    f.finish(f.Gemm(f.Softmax(f.Gemm(q, k, transB=1, alpha=0.3), axis=-1), v), f.d, "s 20")


def rank_3(f: Sketch) -> None:
    f.finish(plain(f, f.q3, f.k3, f.v3, 0, 2, 1), f.d)


def rank_5(f: Sketch) -> None:
    """Two windows of four tokens: [b w h 4 d]."""
    x = f.input("x", f"b 2 4 {f.m}")
    q, k, v = (f.project(n, x, f.h * f.d).reshape(0, 2, 4, f.h, f.d).perm(0, 1, 3, 2, 4) for n in "qkv")
    f.finish(
        plain(f, q, k, v, 0, 1, 2, 4, 3).perm(0, 1, 3, 2, 4).reshape(0, 2, 4, f.h * f.d),
        f.h * f.d,
        "b 2 4 20",
    )


def packed(f: Sketch, how: str) -> None:
    """One projection for q, k and v, cut apart."""
    qkv, n = f.project("qkv", f.x, 3 * f.h * f.d), f.h * f.d
    if how == "split":
        q, k, v = (f.heads(x, f.h) for x in qkv.split([n, n, n], 2))
    elif how == "slice":
        q, k, v = (f.heads(qkv.slice(i * n, (i + 1) * n, 2), f.h) for i in range(3))
    elif how == "gather":  # ViT
        five = qkv.reshape(0, 0, 3, f.h, f.d).perm(2, 0, 3, 1, 4)
        q, k, v = (f.Gather(five, np.array(i), axis=0) for i in range(3))
    elif how == "split-heads":  # after the head split
        q, k, v = f.heads(qkv, f.h).split([f.d] * 3, 3)
    elif how == "interleaved":  # BLOOM: [b s h 3 d]
        five = qkv.reshape(0, 0, f.h, 3, f.d)
        q, k, v = (f.Gather(five, np.array(i), axis=3).perm(0, 2, 1, 3) for i in range(3))
    else:  # split a rank-5 tensor, squeeze
        five = qkv.reshape(0, 0, 3, f.h, f.d).perm(2, 0, 3, 1, 4)
        q, k, v = (x.squeeze(0) for x in five.split([1, 1, 1], 0))
    f.attend(q=q, k=k, v=v, scores=lambda s: s * 0.3)


def scores_transposed(f: Sketch) -> None:
    s = (f.k @ f.q.perm(0, 1, 3, 2)).perm(0, 1, 3, 2)
    f.close(f.Softmax(s * 0.3, axis=-1) @ f.v)


def value_first(f: Sketch) -> None:
    p = f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1)
    f.close((f.v.perm(0, 1, 3, 2) @ p.perm(0, 1, 3, 2)).perm(0, 1, 3, 2))


LAYOUTS = (
    row("k-one-transpose", lambda f: f.attend(kt=f.heads(f.k3, f.h, 0, 2, 3, 1))),
    row(
        "k-three-transposes",
        lambda f: f.attend(kt=f.heads(f.k3, f.h, 1, 3, 0, 2).perm(3, 1, 2, 0).perm(2, 0, 1, 3)),
    ),
    row("k-transposed-before-split", lambda f: f.attend(kt=f.k3.perm(0, 2, 1).reshape(0, f.h, f.d, -1))),
    row("k-dynamo-reshape", lambda f: f.attend(kt=dynamo_k(f), scores=lambda s: s * 0.3), scale=0.3),
    row("k-dynamo-reshape-scaled", lambda f: f.attend(q=f.q * 0.5, kt=dynamo_k(f) * 0.5), scale=0.25),
    row("q-through-permutations", lambda f: f.attend(q=f.heads(f.q3, f.h, 3, 0, 2, 1).perm(1, 2, 3, 0))),
    row(
        "v-transposed-before-split",
        lambda f: f.attend(v=f.v3.perm(0, 2, 1).reshape(0, f.h, f.e, -1).perm(0, 1, 3, 2)),
    ),
    row("legacy-shapes", legacy_shapes, scale=R8),
    row("legacy-shapes-nodes", legacy_shapes, {"constants": "node"}, scale=R8),
    row("rank-2", rank_2, scale=0.3, heads=1, kv_heads=1),
    row("rank-2-gemm", rank_2_gemm, scale=0.3, heads=1, kv_heads=1, issue=3),
    row("rank-3-one-head", rank_3, {"h": 1}, scale=0.3),
    row("rank-3-folded", folded, scale=0.3, heads=(1, 3), kv_heads=(1, 3)),
    row("rank-3-folded-after-split", folded_after_split, mask=True, heads=(1, 3), kv_heads=(1, 3)),
    row("rank-5", rank_5, scale=0.3),
    row("packed-split", lambda f: packed(f, "split"), scale=0.3),
    row("packed-split-opset-12", lambda f: packed(f, "split"), {"opset": 12}, scale=0.3),
    row("packed-slice", lambda f: packed(f, "slice"), scale=0.3),
    row("packed-gather", lambda f: packed(f, "gather"), scale=0.3),
    row("packed-split-after-heads", lambda f: packed(f, "split-heads"), scale=0.3),
    row("packed-interleaved", lambda f: packed(f, "interleaved"), scale=0.3),
    row("packed-split-squeeze", lambda f: packed(f, "split-squeeze"), scale=0.3),
    row("cross", lambda f: f.attend(scores=lambda s: s * 0.3), {"cross": True}, scale=0.3, dims=CROSS),
    row(
        "cross-padded",
        lambda f: f.attend(scores=lambda s: s + padding(f)),
        {"cross": True},
        mask=True,
        dims=CROSS,
    ),
    row("value-wider", lambda f: f.attend(), {"e": 12}),
    row("value-narrower-cross", lambda f: f.attend(), {"e": 5, "cross": True}, dims=CROSS),
    row("odd-head-width", lambda f: f.attend(), {"d": 7, "h": 5}),
    row("scores-transposed", scores_transposed, scale=0.3, issue=3),
    row("value-first", value_first, scale=0.3, issue=3),
    *(
        row(
            f"opset-{n}",
            lambda f: f.attend(scores=lambda s: s * 0.3 + padding(f)),
            {"opset": n},
            scale=0.3,
            mask=True,
        )
        for n in (11, 12, 13, 14, 17, 18, 21, 23, 24)
    ),
)
