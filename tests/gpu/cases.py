"""Calls of TopKAttention that the CUDA kernels must get right, and what is right, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: shapes by letter, attributes, and which optional inputs of which kind it has."""

    id: str
    b: int = 1
    h: int = 2
    g: int = 2
    s: int = 5
    t: int = 7
    d: int = 64
    e: int = 64
    k_top: int = 0
    causal: bool = False
    window: int = 0
    no_key: str = "zero"
    remainder: str = "none"
    softcap: float = 0.0
    scale: float | None = None
    size: float = 1.0
    bias: str = ""  # "full", "row", "finite", "lowest", "hides": see _bias
    mask: str = ""  # "some", "none" (a batch entry without a visible key)
    past: int | tuple[int, ...] | None = None
    shared_batch: bool = False  # k and v have batch 1
    equal: bool = False  # every key is the same: all scores tie; values are one-hot, to tell which were kept
    ascending: bool = False  # scores rise with the key's number, the worst order for a running threshold


@dataclass(frozen=True, kw_only=True)
class Call:
    """Arrays and attributes of a case in one element type."""

    arrays: dict[str, Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)


def make(case: Case, dtype: str, seed: int = 0) -> Call:
    """Draw the arrays of a case."""
    rng = np.random.default_rng([seed, *case.id.encode()])
    c, kind = case, DTYPES[dtype]
    kb = 1 if c.shared_batch else c.b
    q = rng.standard_normal((c.b, c.h, c.s, c.d)) * c.size
    k = rng.standard_normal((kb, c.g, c.t, c.d)) * c.size
    v = rng.standard_normal((kb, c.g, c.t, c.e)) + 0.5
    if c.equal:
        k[:] = k[:, :, :1]
        v[:] = np.arange(c.e) == np.arange(c.t)[:, None] % c.e
    if c.ascending:
        q = np.abs(q)
        k = np.abs(k[:, :, :1]) * np.linspace(-1, 1, c.t)[:, None] + 0.01 * k
    arrays: dict[str, Array | None] = {"q": q.astype(kind), "k": k.astype(kind), "v": v.astype(kind)}
    if c.bias:
        arrays["bias"] = _bias(c, rng).astype(np.float32 if c.bias in ("lowest", "finite") else kind)
    if c.mask:
        shown = rng.random((c.b, c.t)) < 0.6
        shown[-1] &= c.mask != "none"
        arrays["key_mask"] = shown
    if c.past is not None:
        arrays["past_length"] = np.atleast_1d(np.asarray(c.past, np.int64))
    attributes = {name: getattr(c, name) for name in ("k_top", "causal", "window", "no_key", "softcap", "remainder")}
    attributes["scale"] = c.d**-0.5 if c.scale is None else c.scale
    return Call(arrays=arrays, attributes=attributes)


def _bias(c: Case, rng: np.random.Generator) -> Array:
    full = rng.standard_normal((c.b, c.h, c.s, c.t))
    if c.bias == "row":
        return full[:1, :, :1, :]
    if c.bias == "finite":
        return np.where(rng.random(full.shape) < 0.3, LOWEST, full)
    if c.bias == "lowest":
        return np.full((1, 1, 1, c.t), LOWEST)
    if c.bias == "hides":
        return np.where(rng.random(full.shape) < 0.5, -np.inf, full)
    return full


def scores64(call: Call) -> Array:
    """Return the scores [b h s t] in float64, -inf where a key is invisible."""
    a, at = call.arrays, call.attributes
    q, k = (_wide(a[name]) for name in ("q", "k"))
    group = q.shape[1] // k.shape[1]
    x = q @ np.repeat(k, group, axis=1).swapaxes(-1, -2) * at["scale"]
    if at["softcap"]:
        x = at["softcap"] * np.tanh(x / at["softcap"])
    if a.get("bias") is not None:
        bias = _wide(a["bias"])
        with np.errstate(over="ignore"):  # an fp32 sum, as the definition says: huge fills swallow the score
            x = np.where(
                np.abs(bias) > 1e30, (x.astype(np.float32) + bias.astype(np.float32)).astype(np.float64), x + bias
            )
    hidden = np.zeros(x.shape, bool)
    if a.get("key_mask") is not None:
        hidden |= ~np.asarray(a["key_mask"])[:, None, None, :]
    past = np.zeros(1, np.int64) if a.get("past_length") is None else np.asarray(a["past_length"])
    ahead = np.arange(x.shape[3]) - (np.arange(x.shape[2])[:, None] + past[:, None, None, None])
    if at["causal"]:
        hidden |= ahead > 0
    if at["window"]:
        hidden |= abs(ahead) >= at["window"]
    return np.where(hidden, -np.inf, x)


def weights64(call: Call) -> Array:
    """Return the attention weights [b h s t] in float64, zero outside the k best."""
    x, k = scores64(call), call.attributes["k_top"]
    if 0 < k < x.shape[-1]:
        order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
        kept = np.zeros(x.shape, bool)
        np.put_along_axis(kept, order, True, axis=-1)
        x = np.where(kept, x, -np.inf)
    peak = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    w = np.exp(x - np.where(np.isfinite(peak), peak, 0))
    total = w.sum(-1, keepdims=True)
    none = 1 / max(w.shape[-1], 1) if call.attributes["no_key"] == "mean" else 0
    return np.divide(w, total, out=np.full_like(w, none), where=total > 0)


def golden(call: Call) -> Array:
    """Return the result [b h s e] in float64."""
    v, w = _wide(call.arrays["v"]), weights64(call)
    return w @ np.repeat(v, w.shape[1] // v.shape[1], axis=1)


def wrongness(case: Case, call: Call, out: Array) -> float:
    """Return the relative distance from the golden; where all keys tie, from any k of them with equal weights."""
    if not case.equal:
        return distance(out, golden(call))
    counts = np.asarray(out).astype(np.float64) * case.k_top
    whole = np.round(counts)
    fair = np.all(whole.sum(-1) == case.k_top) and (case.t > case.e or whole.max() <= 1)
    return distance(counts, whole) if fair else float("inf")


def golden_gradients(call: Call, d_out: Array) -> dict[str, Array]:
    """Return d_q, d_k and d_v in float64, with the selection held constant. For equal batches."""
    q, k, v = (_wide(call.arrays[name]) for name in ("q", "k", "v"))
    at, w, g = call.attributes, weights64(call), d_out.astype(np.float64)
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    d_w = g @ wide_v.swapaxes(-1, -2)
    sees = scores64(call).max(-1, keepdims=True, initial=-np.inf) > -np.inf  # else no score matters
    d_x = np.where(sees, w * (d_w - (w * d_w).sum(-1, keepdims=True)), 0)
    if at["softcap"]:
        d_x *= 1 - np.tanh(q @ wide_k.swapaxes(-1, -2) * at["scale"] / at["softcap"]) ** 2

    def fold(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2)

    d_x *= at["scale"]
    return {"d_q": d_x @ wide_k, "d_k": fold(d_x.swapaxes(-1, -2) @ q), "d_v": fold(w.swapaxes(-1, -2) @ g)}


def _wide(array: Array | None) -> Array:
    assert array is not None
    return np.asarray(array).astype(np.float64)


def distance(a: Array, b: Array) -> float:
    """Relative L2 distance; infinite where something is not a number."""
    a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


def cases() -> list[Case]:
    """Return every kind of call at sizes that reach every kernel, tile edge and list cut."""
    return [
        Case(id="plain"),
        Case(id="two-tiles", s=150, t=200),
        Case(id="one-key", t=1, k_top=3),
        Case(id="one-query", s=1, t=33),
        Case(id="no-keys", t=0),
        Case(id="no-queries", s=0),
        Case(id="split", b=2, s=3, t=1100, h=4),
        Case(id="split-causal", s=2, t=1100, causal=True, past=600),
        Case(id="grouped", h=6, g=2, s=21, t=90),
        Case(id="wide", d=128, e=128, s=70, t=100),
        Case(id="widest", d=256, e=256, s=70, t=70),
        Case(id="widths", d=80, e=40, s=20, t=70),
        Case(id="odd-widths", d=7, e=5, s=20, t=70),
        Case(id="odd-widths-wide", d=131, e=33, s=20, t=70, k_top=9),
        Case(id="causal", s=130, t=130, causal=True),
        Case(id="window", s=200, t=200, causal=True, window=20),
        Case(id="window-wide", s=300, t=300, d=128, e=128, causal=True, window=130),
        Case(id="window-two-sided", b=2, s=90, t=150, window=33, past=(60, -40)),
        Case(id="window-split", s=2, t=1100, causal=True, window=300, past=900),
        Case(id="window-nothing", b=2, s=70, t=100, causal=True, window=9, past=(150, 2**62), no_key="mean"),
        Case(id="mean", b=2, s=70, t=90, e=40, mask="none", no_key="mean"),
        Case(id="mean-causal", h=4, s=150, t=150, mask="none", b=2, causal=True, past=-30, no_key="mean"),
        Case(id="mean-split", b=2, s=2, t=1100, mask="none", no_key="mean"),
        Case(id="mean-no-keys", t=0, no_key="mean"),
        Case(id="top-window", s=150, t=150, k_top=8, causal=True, window=40),
        Case(id="top-window-two-sided", s=200, t=300, k_top=8, window=40, past=20),
        Case(id="top-mean", b=2, s=150, t=150, k_top=8, causal=True, past=-9, mask="none", no_key="mean"),
        Case(id="decode-window", h=4, g=2, s=3, t=600, k_top=20, causal=True, window=100, past=590),
        Case(id="decode-mean", b=2, h=4, g=2, s=2, t=600, k_top=20, mask="none", no_key="mean"),
        Case(id="causal-past", b=2, s=65, t=100, causal=True, past=(35, 10)),
        Case(id="causal-past-negative", s=9, t=12, causal=True, past=-3),
        Case(id="causal-shared-past", b=2, s=70, t=99, causal=True, past=3, k_top=8),
        Case(id="shared-batch", b=3, s=17, t=40, shared_batch=True),
        Case(id="softcap", s=70, t=80, softcap=4.0, size=2.0),
        Case(id="scale-negative", s=20, t=80, scale=-0.3),
        Case(id="scale-zero", s=20, t=80, scale=0.0),
        Case(id="huge", s=20, t=80, size=100.0),
        Case(id="mask", b=2, s=70, t=90, mask="some"),
        Case(id="mask-none", b=2, s=70, t=90, mask="none"),
        Case(id="mask-none-split", b=2, s=2, t=1100, mask="none"),
        Case(id="bias", b=2, s=70, t=90, bias="full"),
        Case(id="bias-row", b=2, s=70, t=90, bias="row"),
        Case(id="bias-finite", b=2, s=70, t=90, bias="finite"),
        Case(id="bias-lowest", b=2, s=70, t=90, bias="lowest"),
        Case(id="bias-lowest-split", s=2, t=1100, bias="lowest"),
        Case(id="bias-hides", b=2, s=70, t=90, bias="hides"),
        Case(id="top-1", s=70, t=90, k_top=1),
        Case(id="top-tiles", s=70, t=700, k_top=16),
        Case(id="top-tiles-64", h=1, g=1, s=64, t=1500, k_top=64),
        Case(id="top-causal", s=150, t=150, k_top=8, causal=True),
        Case(id="top-causal-long", h=1, g=1, s=320, t=320, k_top=24, causal=True),
        Case(id="top-grouped", h=6, g=2, s=40, t=300, k_top=10),
        Case(id="top-mask", b=2, s=70, t=190, k_top=10, mask="none"),
        Case(id="top-mask-few", b=2, s=70, t=20, k_top=18, mask="some"),
        Case(id="top-bias", b=2, s=70, t=190, k_top=10, bias="full"),
        Case(id="top-bias-hides", b=2, s=70, t=190, k_top=10, bias="hides"),
        Case(id="top-bias-finite", b=2, s=70, t=190, k_top=10, bias="finite"),
        Case(id="top-bias-lowest", s=70, t=190, k_top=190, bias="lowest"),
        Case(id="top-softcap", s=70, t=190, k_top=10, softcap=3.0, size=2.0),
        Case(id="top-equal", s=40, t=200, e=200, k_top=10, equal=True),
        Case(id="top-ascending", h=1, g=1, s=40, t=900, k_top=20, ascending=True),
        Case(id="top-wide", h=1, g=1, d=128, e=128, s=40, t=300, k_top=10),
        Case(id="top-widest", h=1, g=1, d=256, e=256, s=40, t=300, k_top=10),
        Case(id="top-widths", d=80, e=24, s=40, t=300, k_top=10),
        Case(id="top-many", h=1, g=1, s=40, t=1000, k_top=500),
        Case(id="top-scale-negative", s=40, t=200, k_top=9, scale=-0.3),
        Case(id="decode", b=2, h=4, g=4, s=1, t=1500, k_top=32),
        Case(id="decode-grouped", b=2, h=8, g=2, s=1, t=600, k_top=32),
        Case(id="decode-few-rows", h=4, g=2, s=3, t=600, k_top=20, causal=True, past=590),
        Case(id="decode-mask", b=2, s=1, t=1500, k_top=32, mask="none"),
        Case(id="decode-bias", b=2, s=2, t=600, k_top=32, bias="full"),
        Case(id="decode-bias-finite", b=2, s=1, t=600, k_top=32, bias="finite"),
        Case(id="decode-softcap", s=1, t=600, k_top=32, softcap=2.0),
        Case(id="decode-equal", s=1, t=2500, k_top=40, equal=True),
        Case(id="decode-ascending", s=1, t=3000, k_top=40, ascending=True),
        Case(id="decode-k-large", h=1, g=1, s=1, t=4000, k_top=1500),
        Case(id="decode-k-middle", h=1, g=1, s=1, t=4000, k_top=900),
        Case(id="decode-short", s=1, t=40, k_top=39),
        Case(id="decode-wide", d=128, e=128, s=1, t=300, k_top=30),
        Case(id="decode-widest", d=256, e=200, s=1, t=300, k_top=30),
        Case(id="decode-odd", d=33, e=17, s=1, t=300, k_top=30),
    ]


def training_cases() -> list[Case]:
    """Return calls whose gradients are checked."""
    return [
        Case(id="train", s=40, t=90, k_top=12),
        Case(id="train-window", b=2, s=70, t=70, k_top=12, causal=True, window=20),
        Case(id="train-causal", b=2, s=70, t=70, k_top=12, causal=True),
        Case(id="train-grouped", h=4, g=2, s=30, t=90, k_top=12),
        Case(id="train-all", s=30, t=40, k_top=40),
        Case(id="train-softcap", s=30, t=90, k_top=12, softcap=2.0, size=2.0),
        Case(id="train-bias-mask", b=2, s=30, t=90, k_top=12, bias="full", mask="none", softcap=3.0),
        Case(id="train-wide", h=1, g=1, d=128, e=96, s=30, t=90, k_top=12),
        Case(id="train-odd", d=9, e=21, s=30, t=90, k_top=12),
        Case(id="train-few", s=2, t=90, k_top=12),
    ]
