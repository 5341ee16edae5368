"""What may stand between the products: softcap, casts, dropout, guards."""

from __future__ import annotations

import numpy as np
from sketch import Sketch, Value

from spellings.base import INF, bias, both_kept, kept, other, padding, row, scored


def nop(f: Sketch, x: Value) -> Value:
    return f.Dropout(f.Identity(f.Dropout(x)))


def wrapped(f: Sketch, s: Value, into: str = "float32") -> Value:
    return f.Softmax(s.to(into), axis=-1).to(f.dtype)


F16 = float(np.float16(0.3))  # what the constant is in the model
BF16 = 0.30078125

BETWEEN = (
    scored("softcap", lambda f, s: f.Tanh(s / 5.0) * 5.0, softcap=5.0),
    scored("softcap-mul", lambda f, s: 5.0 * f.Tanh(s * 0.2), softcap=5.0),
    scored("softcap-scale", lambda f, s: f.Tanh((s * 0.3) / 2.0) * 2.0, scale=0.3, softcap=2.0),
    scored(
        "softcap-mask",
        lambda f, s: f.Tanh((s * 0.3) / 2.0) * 2.0 + padding(f),
        scale=0.3,
        softcap=2.0,
        mask=True,
    ),
    scored("softcap-where", lambda f, s: f.Where(kept(f), f.Tanh(s / 5.0) * 5.0, -1e9), softcap=5.0, mask=True),
    scored(
        "mask-inside-softcap",
        lambda f, s: f.Tanh((s + other(f)) / 5.0) * 5.0,
        mask=None,
        softcap=5.0,
        may_decline=True,
    ),
    scored("softcap-unequal", lambda f, s: f.Tanh(s / 5.0) * 3.0, softcap=3.0, scale=0.6),
    row("dropout", lambda f: f.attend(probs=lambda p: nop(f, p)), {"opset": 14}),
    row(
        "dropout-training-mode-false",
        lambda f: f.attend(probs=lambda p: f.Dropout(p, np.array(0.1, np.float32), np.array(False))),
    ),
    row("dropout-opset-11", lambda f: f.attend(probs=lambda p: f.Dropout(p, ratio=0.1)), {"opset": 11}),
    row(
        "identity-everywhere",
        lambda f: f.attend(
            q=nop(f, f.q),
            kt=nop(f, f.k.perm(0, 1, 3, 2)),
            v=nop(f, f.v),
            scores=lambda s: nop(f, nop(f, s) * 0.3),
            context=lambda c: nop(f, c),
        ),
        scale=0.3,
    ),
    row("cast-to-same-type", lambda f: f.attend(softmax=lambda s: wrapped(f, s))),
    row("fp16", lambda f: f.attend(scores=lambda s: s * 0.3), {"dtype": "float16"}, scale=F16),
    row(
        "fp16-mask",
        lambda f: f.attend(scores=lambda s: s * 0.3 + bias(f)),
        {"dtype": "float16"},
        scale=F16,
        mask=True,
    ),
    row(
        "fp16-softmax-fp32",
        lambda f: f.attend(softmax=lambda s: wrapped(f, s * 0.3)),
        {"dtype": "float16"},
        scale=F16,
    ),
    row(
        "fp16-scores-fp32",
        lambda f: f.attend(
            softmax=lambda s: wrapped(
                f, s.to("float32") * np.float32(0.3) + f.input("bias", "b 1 s t", "additive", "float32")
            )
        ),
        {"dtype": "float16"},
        scale=0.3,
        mask=True,
    ),
    row(
        "fp16-where-inf",
        lambda f: f.attend(scores=lambda s: f.Where(kept(f), s * 0.3, -INF)),
        {"dtype": "float16"},
        scale=F16,
        mask=True,
    ),
    row("bf16", lambda f: f.attend(scores=lambda s: s * 0.3), {"dtype": "bfloat16"}, scale=BF16, runs=False),
    row("softmax-fp64", lambda f: f.attend(softmax=lambda s: wrapped(f, s, "float64")), may_decline=True),
    row(
        "nan-guard",
        lambda f: f.attend(scores=lambda s: f.Where(kept(f), s, -INF), probs=lambda p: f.Where(f.IsNaN(p), 0.0, p)),
        mask=True,
    ),
    row(
        "nan-guard-causal",
        lambda f: f.attend(
            scores=lambda s: f.Where(both_kept(f), s, -INF), probs=lambda p: f.Where(f.IsNaN(p), 0.0, p)
        ),
        mask=True,
    ),
    row("softmax-axis-3", lambda f: f.attend(softmax=lambda s: f.Softmax(s, axis=3))),
    row("softmax-default-axis", lambda f: f.attend(softmax=f.Softmax)),
)
