"""The compiled kernels through their C interface, against fp64: every ISA, dtype, mask and bad input.

A sample passes if its error is at most twice that of plain fp32 numpy, both against the same fp64 numbers.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from runtime_ops import kernels

Array = np.ndarray[Any, np.dtype[Any]]
Sample = dict[str, Any]

if kernels.library_path() is None:
    pytest.skip("the kernel library is not built", allow_module_level=True)

DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ROWS = [row for row in kernels.kernels() if row["op"] == "TopKAttention"]
ISAS = [row["isa"] for row in ROWS if row["usable"]]
IN_8_BITS = [row["isa"] for row in ROWS if row["usable"] and row["limits"]["min_keys"]]  # score so first, where it pays
LOWEST = float(np.finfo(np.float32).min)
INF = float("inf")


def attention(sample: Sample, dtype: Any) -> tuple[Array, Array]:
    """Outputs and weights of top-k attention in plain numpy, computed in `dtype`."""
    q, k, v = (np.asarray(sample[name], dtype) for name in "qkv")
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    softcap, scale = sample.get("softcap", 0.0), sample.get("scale")
    with np.errstate(invalid="ignore"):  # a hidden key may hold anything
        scores = np.matmul(q, k.swapaxes(-1, -2))
    scores = scores * np.asarray(q.shape[-1] ** -0.5 if scale is None else scale, dtype)
    if softcap:
        scores = np.asarray(softcap, dtype) * np.tanh(scores / np.asarray(softcap, dtype))
    if sample.get("bias") is not None:
        scores = scores + np.asarray(sample["bias"], dtype)
    scores = np.where(visible(sample, scores.shape), scores, -INF).astype(dtype)
    top, rest = sample.get("k_top", 0), sample.get("remainder", "none")
    left = np.zeros(scores.shape, bool)
    if 0 < top < scores.shape[-1]:
        left = np.argsort(np.argsort(-scores, -1, kind="stable"), -1, kind="stable") >= top
    if rest == "none":
        scores = np.where(left, -INF, scores).astype(dtype)
    high = scores.max(-1, keepdims=True, initial=-INF)
    high = np.where(np.isfinite(high), high, 0).astype(dtype)
    weights = np.exp(scores - high)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)
    if rest != "none":
        weights = levelled(weights, left, scores >= high - 80, own_block(sample, scores.shape), rest)
    if sample.get("no_key") == "mean":
        weights = np.where(total == 0, np.asarray(1 / max(scores.shape[-1], 1), dtype), weights)
    return np.matmul(weights, v), weights


def levelled(weights: Array, left: Array, clear: Array, own: Array, rest: str) -> Array:
    """The weights with those of the keys `left` spread evenly: over them in the row, over all of each block of 64."""
    others = clear & ~own if rest == "blocks" else clear & left
    width = 64 if rest == "blocks" else max(left.shape[-1], 1)
    result, lost = (np.where(left & others, *pair) for pair in ((0, weights), (weights, 0)))
    for first in range(0, left.shape[-1], width):
        block = np.s_[..., first : first + width]
        mass, count = (x[block].sum(-1, keepdims=True) for x in (lost, others))
        result[block] += others[block] * (mass / np.maximum(count, 1).astype(weights.dtype))
    return result


def places(sample: Sample, shape: tuple[int, ...]) -> Array:
    """Where each query stands among the keys, [b 1 s 1]."""
    past = sample.get("past_length")
    offset = np.zeros(1, np.int64) if past is None else np.asarray(past).reshape(-1)
    return np.arange(shape[2])[:, None] + offset[:, None, None, None]


def own_block(sample: Sample, shape: tuple[int, ...]) -> Array:
    """Which keys lie in the block of 64 in which the query stands."""
    return np.arange(shape[3]) // 64 == places(sample, shape) // 64


def visible(sample: Sample, shape: tuple[int, ...]) -> Array:
    """Which keys each query may see, [b h s t]."""
    seen = np.ones(shape, bool)
    if sample.get("key_mask") is not None:
        seen &= sample["key_mask"][:, None, None, :]
    ahead = np.arange(shape[3]) - places(sample, shape)
    if sample.get("causal"):
        seen &= ahead <= 0
    if sample.get("window"):
        seen &= abs(ahead) < sample["window"]
    return seen


def run(sample: Sample, **more: Any) -> Array:
    return kernels.run_topk_attention(**(sample | more))


def tensors(
    b: int = 1, h: int = 2, g: int = 2, s: int = 5, t: int = 7, d: int = 8, e: int = 8, gain: float = 1.0
) -> Sample:
    """Random q, k and v of the given shape."""
    random = np.random.default_rng([b, h, g, s, t, d, e])
    shapes = {"q": (b, h, s, d), "k": (b, g, t, d), "v": (b, g, t, e)}
    sample: Sample = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    sample["q"] *= np.float32(gain)
    return sample


def noise(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def chosen(*shape: int, share: float = 0.6) -> Array:
    return np.random.default_rng(sum(shape)).random(shape) < share


def fill(t: int, live: int, value: float, *, front: bool = False) -> Array:
    """A key bias [1 1 1 t] of random numbers, with `value` on all but `live` keys."""
    bias = noise(1, 1, 1, t)
    bias[..., (slice(0, t - live) if front else slice(live, t))] = value
    return bias


def spread(sample: Sample, key: int, factor: float) -> Sample:
    """The sample with one key multiplied: what ruins a quantisation by a common scale."""
    k = sample["k"].copy()
    k[:, :, key] *= np.float32(factor)
    return sample | {"k": k}


def alike(sample: Sample) -> Sample:
    """The sample with all keys equal, so that every score ties."""
    return sample | {"k": np.repeat(sample["k"][:, :, :1], sample["k"].shape[2], axis=2)}


LONG = {"b": 1, "h": 2, "g": 1, "s": 70, "t": 600, "d": 64, "e": 64}

SAMPLES: dict[str, Sample] = {
    "small": tensors(),
    "s=1 t=1": tensors(s=1, t=1),
    "s=1 grouped": tensors(b=2, h=8, g=2, s=1, t=300, d=64, e=64),
    "s=3 one key head": tensors(h=16, g=1, s=3, t=129, d=64, e=64),
    "t=0": tensors(t=0),
    "s=0": tensors(s=0),
    "d=1 e=1": tensors(s=40, t=200, d=1, e=1),
    "odd": tensors(b=2, h=3, g=1, s=65, t=131, d=33, e=37),
    "wide": tensors(s=20, t=150, d=512, e=512),
    "two tiles and a row block": tensors(s=129, t=257, d=64, e=64),
    "scale": tensors() | {"scale": 0.5},
    "scale=0": tensors() | {"scale": 0.0},
    "softcap": tensors(s=30, t=140, gain=20) | {"softcap": 5.0},
    "softcap small scores": tensors(s=30, t=140) | {"softcap": 50.0},
    "huge logits": tensors(s=400, t=300, d=64, gain=1e4),
    "q batch 1": tensors(b=3) | {"q": noise(1, 2, 5, 8)},
    "k v batch 1": tensors(b=3) | {"k": noise(1, 2, 7, 8), "v": noise(1, 2, 7, 8)},
    "key_mask": tensors(b=2, s=70, t=300) | {"key_mask": chosen(2, 300)},
    "key_mask hides a tile": tensors(s=70, t=400) | {"key_mask": (np.arange(400) // 128 != 1)[None]},
    "key_mask hides all": tensors(b=2) | {"key_mask": np.array([[False] * 7, [True] * 7])},
    "bias [t]": tensors(s=70, t=300) | {"bias": noise(300)},
    "bias [t], best keys a little later": tensors(s=70, t=600) | {"bias": np.linspace(0, 30, 600, dtype=np.float32)},
    "bias [t], best keys much later": tensors(s=70, t=600) | {"bias": np.linspace(-300, 0, 600, dtype=np.float32)},
    "bias [s t]": tensors(s=70, t=300) | {"bias": noise(70, 300)},
    "bias [s 1]": tensors(s=70, t=300) | {"bias": noise(70, 1)},
    "bias [h 1 t]": tensors(h=4, s=70, t=300) | {"bias": noise(4, 1, 300)},
    "bias [h 1 t] grouped": tensors(h=4, g=2, s=3, t=300) | {"bias": noise(4, 1, 300)},
    "bias [b h s t]": tensors(b=2, h=4, s=33, t=200) | {"bias": noise(2, 4, 33, 200)},
    "bias, key_mask, causal": tensors(b=2, h=4, s=33, t=200)
    | {"bias": noise(2, 1, 33, 200), "key_mask": chosen(2, 200), "causal": True, "past_length": 100},
    "bias -inf": tensors(s=70, t=300) | {"bias": fill(300, 170, -INF)},
    "bias -inf everywhere": tensors(s=70, t=300) | {"bias": fill(300, 0, -INF)},
    "bias -inf by row": tensors(s=70, t=300)
    | {"bias": np.where(chosen(70, 300), noise(70, 300), -INF).astype(np.float32)},
    "bias lowest": tensors(s=70, t=300) | {"bias": fill(300, 170, LOWEST)},
    "bias lowest in front, causal": tensors(s=70, t=70) | {"bias": fill(70, 30, LOWEST, front=True), "causal": True},
    "bias lowest everywhere": tensors(s=70, t=300) | {"bias": fill(300, 0, LOWEST)},
    "bias lowest by row": tensors(s=70, t=300) | {"bias": np.where(chosen(70, 1), np.float32(LOWEST), noise(70, 300))},
    "bias low but not dead": tensors(s=70, t=300, d=64, gain=30) | {"bias": fill(300, 3, -120.0)},
    "causal": tensors(s=200, t=200) | {"causal": True},
    "causal past": tensors(b=2, s=70, t=300) | {"causal": True, "past_length": np.array([230, 11])},
    "causal past < 0": tensors(s=70, t=70) | {"causal": True, "past_length": -30},
    "causal longer queries": tensors(s=200, t=70) | {"causal": True},
    "k=1": tensors(s=70, t=300) | {"k_top": 1},
    "k=t-1": tensors() | {"k_top": 6},
    "k=t": tensors() | {"k_top": 7},
    "k>t": tensors() | {"k_top": 100},
    "k, s=1 grouped": tensors(h=8, g=2, s=1, t=700, d=64, e=64) | {"k_top": 64},
    "k, key_mask": tensors(b=2, s=70, t=300) | {"k_top": 9, "key_mask": chosen(2, 300)},
    "k > keys seen": tensors(b=2, s=70, t=300) | {"k_top": 100, "key_mask": chosen(2, 300, share=0.1)},
    "k, bias [b h s t]": tensors(b=2, h=4, s=33, t=200) | {"k_top": 8, "bias": noise(2, 4, 33, 200) * 3},
    "window": tensors(s=300, t=300) | {"causal": True, "window": 20},
    "window, tile edges": tensors(s=260, t=260, d=64, e=64) | {"causal": True, "window": 128},
    "window, both sides": tensors(h=4, s=200, t=300) | {"window": 70, "past_length": 50},
    "window, far past": tensors(b=2, s=70, t=300)
    | {"causal": True, "window": 40, "past_length": np.array([2**62, 290])},
    "window, decode": tensors(h=8, g=2, s=1, t=500, d=64, e=64) | {"causal": True, "window": 90, "past_length": 499},
    "window, bias, key_mask": tensors(b=2, h=4, s=133, t=200)
    | {"bias": noise(2, 1, 133, 200), "key_mask": chosen(2, 200), "causal": True, "window": 30, "past_length": 60},
    "window, bias lowest": tensors(s=200, t=200) | {"bias": fill(200, 90, LOWEST), "causal": True, "window": 30},
    "window, bias lowest in front": tensors(s=200, t=200)
    | {"bias": fill(200, 90, LOWEST, front=True), "causal": True, "window": 30},
    "window, k": tensors(s=300, t=300, d=40) | {"k_top": 7, "causal": True, "window": 90},
    "mean": tensors(b=2, h=4, g=2, s=70, t=300)
    | {"key_mask": np.arange(300) < np.array([[300], [0]]), "no_key": "mean"},
    "mean, left padding": tensors(b=2, s=200, t=200, e=37)
    | {"key_mask": np.arange(200) >= np.array([[150], [3]]), "causal": True, "window": 50, "no_key": "mean"},
    "mean, k": tensors(b=2, s=90, t=200)
    | {"k_top": 9, "key_mask": np.arange(200) >= np.array([[50], [3]]), "causal": True, "no_key": "mean"},
    "mean, decode": tensors(b=2, h=8, g=2, s=1, t=300, d=64, e=64)
    | {"key_mask": np.zeros((2, 300), bool), "no_key": "mean"},
    "mean, bias": tensors(s=70, t=140)
    | {"bias": np.where(chosen(1, 1, 70, 1), 0, -INF).astype(np.float32), "no_key": "mean"},
    "k, causal, softcap": tensors(s=200, t=260, d=40)
    | {"k_top": 20, "causal": True, "softcap": 3.0, "past_length": 60},
    "k, huge logits": tensors(s=400, t=300, d=64, gain=1e4) | {"k_top": 32},
    "long, k": tensors(**LONG) | {"k_top": 64},
    "long, k=300": tensors(**LONG) | {"k_top": 300},
    "long, k, huge logits": tensors(**(LONG | {"s": 400}), gain=1e4) | {"k_top": 32},
    "long, k, key_mask": tensors(**LONG) | {"k_top": 16, "key_mask": chosen(1, 600)},
    "long, k, key_mask hides all": tensors(**LONG) | {"k_top": 16, "key_mask": np.zeros((1, 600), bool)},
    "long, k, bias": tensors(**LONG) | {"k_top": 16, "bias": noise(600) * 2},
    "long, k, bias lowest": tensors(**LONG) | {"k_top": 16, "bias": fill(600, 400, LOWEST)},
    "long, k, bias lowest everywhere but 3": tensors(**LONG) | {"k_top": 16, "bias": fill(600, 3, LOWEST)},
    "long, k, causal": tensors(**LONG) | {"k_top": 16, "causal": True, "past_length": 400},
    "long, k, causal, no past": tensors(**LONG) | {"k_top": 16, "causal": True},
    "long, k, window": tensors(**LONG) | {"k_top": 16, "causal": True, "window": 90, "past_length": 400},
    "long, k, window, both sides": tensors(**LONG) | {"k_top": 16, "window": 150, "past_length": 333},
    "long, k, window below k": tensors(**LONG)
    | {"k_top": 16, "causal": True, "window": 9, "past_length": 700, "no_key": "mean"},
    "long, k, mean": tensors(**LONG)
    | {"k_top": 16, "causal": True, "key_mask": np.arange(600) >= np.array([[40]]), "no_key": "mean"},
    "long, k, outlier": spread(tensors(**LONG) | {"k_top": 16}, 17, 1e3),
    "long, k, hidden garbage": spread(
        tensors(**LONG) | {"k_top": 16, "key_mask": (np.arange(600) != 17)[None]}, 17, 1e18
    ),
    "long, k, odd d": tensors(**(LONG | {"d": 37, "e": 19})) | {"k_top": 24},
    "long, k, d=256": tensors(**(LONG | {"d": 256})) | {"k_top": 24},
}

ALIBI = (-np.abs(np.arange(300) - np.arange(230, 300)[:, None]) * 0.7).astype(np.float32)  # far keys are faint
MASKED = {"b": 2, "h": 4, "g": 2, "s": 70, "t": 300}
REMAINDERS: dict[str, Sample] = {  # each with means by row and by block
    "few keys": tensors() | {"k_top": 3},
    "k=1": tensors(s=70, t=300) | {"k_top": 1},
    "k=t-1": tensors(s=70, t=300) | {"k_top": 299},
    "k=t": tensors() | {"k_top": 7},
    "k=0": tensors(s=70, t=300),
    "most chosen": tensors(s=70, t=300) | {"k_top": 200},
    "t=0": tensors(t=0) | {"k_top": 3},
    "decode": tensors(h=8, g=2, s=1, t=700, d=64, e=64) | {"k_top": 64, "causal": True, "past_length": 699},
    "one block": tensors(s=64, t=64, d=64, e=64) | {"k_top": 5, "causal": True},
    "block edges": tensors(s=130, t=193, d=33, e=37) | {"k_top": 9},
    "huge logits": tensors(s=70, t=300, d=64, gain=1e4) | {"k_top": 32},
    "softcap": tensors(s=70, t=300, gain=20) | {"k_top": 9, "softcap": 5.0},
    "scale=0": tensors(s=70, t=300) | {"k_top": 9, "scale": 0.0},
    "causal": tensors(s=300, t=300, d=40) | {"k_top": 7, "causal": True},
    "causal past": tensors(b=2, s=70, t=300) | {"k_top": 7, "causal": True, "past_length": np.array([230, 11])},
    "causal past < 0": tensors(s=90, t=90) | {"k_top": 4, "causal": True, "past_length": -30},
    "past, nothing hidden": tensors(b=2, s=70, t=300) | {"k_top": 7, "past_length": np.array([-80, 270])},
    "far past": tensors(s=70, t=300) | {"k_top": 7, "past_length": 2**62},
    "window": tensors(s=300, t=300, d=40) | {"k_top": 7, "causal": True, "window": 90},
    "window, both sides": tensors(h=4, s=200, t=300) | {"k_top": 7, "window": 70, "past_length": 50},
    "key_mask": tensors(**MASKED) | {"k_top": 9, "key_mask": chosen(2, 300)},
    "key_mask, few": tensors(**MASKED) | {"k_top": 100, "key_mask": chosen(2, 300, share=0.4)},
    "key_mask hides all": tensors(**MASKED)
    | {"k_top": 9, "key_mask": np.arange(300) < np.array([[300], [0]]), "no_key": "mean"},
    "bias [b h s t]": tensors(b=2, h=4, s=33, t=200) | {"k_top": 8, "bias": noise(2, 4, 33, 200) * 3},
    "bias [h 1 t]": tensors(h=4, g=2, s=70, t=300) | {"k_top": 8, "bias": noise(4, 1, 300)},
    "bias -inf by head": tensors(h=4, g=2, s=70, t=300)
    | {"k_top": 8, "bias": np.where(chosen(4, 1, 300), noise(4, 1, 300), -INF).astype(np.float32)},
    "bias -inf by row": tensors(s=70, t=300)
    | {"k_top": 8, "bias": np.where(chosen(70, 300), noise(70, 300), -INF).astype(np.float32)},
    "bias falls": tensors(s=70, t=300) | {"k_top": 8, "bias": ALIBI},
    "bias lowest": tensors(s=70, t=300) | {"k_top": 8, "bias": fill(300, 170, LOWEST)},
    "bias lowest by row": tensors(s=70, t=300)
    | {"k_top": 8, "bias": np.where(chosen(70, 300), noise(70, 300), np.float32(LOWEST))},
    "bias lowest everywhere": tensors(s=70, t=300) | {"k_top": 8, "bias": np.full((1, 1, 1, 300), LOWEST, np.float32)},
    "like values": tensors(s=70, t=300) | {"k_top": 30, "v": 50 + tensors(s=70, t=300)["v"]},
    "long": tensors(**LONG) | {"k_top": 64},
    "long, k=300": tensors(**LONG) | {"k_top": 300},
    "ties": {name: np.rint(x * 2) for name, x in tensors(**LONG).items()} | {"k_top": 37},
}
SAMPLES |= {f"{rest}: {n}": s | {"remainder": rest} for n, s in REMAINDERS.items() for rest in ("mean", "blocks")}


def takes(isa: str, sample: Sample) -> bool:
    """Whether the kernel's limits, as the library states them, admit the sample."""
    limits = next(row["limits"] for row in ROWS if row["isa"] == isa)
    bias = sample.get("bias")
    row_bias = bias is not None and bias.ndim > 1 and bias.shape[-2] > 1
    per_head = bias is not None and bias.ndim > 2 and bias.shape[-3] > 1
    grouped = sample["q"].shape[2] < 32 and sample["q"].shape[1] > sample["k"].shape[1]
    exact = not 0 < sample.get("k_top", 0) < sample["k"].shape[2]
    refused = [exact and not limits["every_key"], bool(sample.get("softcap")) and not limits["softcap"]]
    refused += [sample.get("remainder", "none") != "none" and not limits["remainder"]]
    return not any([*refused, (row_bias or (per_head and grouped)) and not limits["row_bias"]])


def rounded(sample: Sample, dtype: Any) -> Sample:
    """The sample with q, k and v in `dtype`, and a bias of that type too where it stays finite."""
    with np.errstate(over="ignore"):
        typed = sample | {name: sample[name].astype(dtype) for name in "qkv"}
    bias = sample.get("bias")
    if bias is not None and np.abs(bias[np.isfinite(bias)]).max(initial=0) < 1e4:
        typed["bias"] = bias.astype(dtype)
    return typed


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_error_against_fp64(isa: str, dtype: str, name: str) -> None:
    sample = rounded(SAMPLES[name], DTYPES[dtype])
    if not takes(isa, sample):
        with pytest.raises(kernels.LibraryError, match="does not take this problem"):
            run(sample, isa=isa)
        return
    out = run(sample, isa=isa)
    golden = attention(sample, np.float64)[0]
    assert out.dtype == DTYPES[dtype]
    assert out.shape == golden.shape
    if out.size == 0:
        return
    plain = attention(sample, np.float32)[0].astype(out.dtype).astype(np.float64)
    error = np.abs(out.astype(np.float64) - golden).max()
    # The floor is one unit in the last place of the largest value of v: outputs are means of such values.
    # A remainder's mean is a sum of up to 64 values first, whose weights were a sum too, and each step rounds.
    floor = float(np.finfo(np.float32).eps) * np.abs(sample["v"].astype(np.float64)).max(initial=0)
    floor *= 4 if sample.get("remainder", "none") != "none" else 1
    assert error <= 2 * np.abs(plain - golden).max() + floor


def selection_of(sample: Sample, isa: str | None) -> tuple[Array, Array]:
    """Weights that a kernel gave to each key, read through v = identity, and fp64 scores (-inf: hidden)."""
    t = sample["k"].shape[2]
    v = np.broadcast_to(np.eye(t, dtype=np.float32), (*sample["k"].shape[:2], t, t))
    weights = run(sample | {"v": v}, isa=isa)
    q, k = (sample[name].astype(np.float64) for name in "qk")
    scores = q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(-1, -2) * q.shape[-1] ** -0.5
    return weights, np.where(visible(sample, scores.shape), scores, -INF)


TIES = {
    "all alike": alike(tensors(**LONG)) | {"k_top": 10, "v": None},
    "two kinds": tensors(**LONG) | {"k": np.tile(tensors(**LONG)["k"][:, :, :2], (1, 1, 300, 1)), "k_top": 310},
    "zero queries": tensors(**LONG) | {"q": np.zeros((1, 2, 70, 64), np.float32), "k_top": 33},
    "integers": {name: np.rint(x * 2) for name, x in tensors(**LONG).items()} | {"k_top": 64},
    "no ties": tensors(**LONG) | {"k_top": 64},
    "rising": tensors(**LONG) | {"k": np.sort(tensors(**LONG)["k"], axis=2), "k_top": 64},
}


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("isa", ISAS)
def test_exactly_the_k_best_are_kept(isa: str, name: str) -> None:
    weights, scores = selection_of(TIES[name], isa)
    kept = weights > 0
    assert (kept.sum(-1) == TIES[name]["k_top"]).all()
    worst_kept = np.where(kept, scores, INF).min(-1)
    best_left = np.where(kept, -INF, scores).max(-1)
    assert (worst_kept >= best_left - 1e-5 * np.abs(best_left).max()).all()
    assert np.abs(weights.sum(-1) - 1).max() < 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_scores_the_first_keys_are_kept_however_often_rows_are_cut(isa: str) -> None:
    # Equal scores fill the buffer and are cut; fewer higher ones than k come later, so that some equal ones stay.
    level = np.where(np.arange(6000) % 200 == 199, np.arange(6000) // 1000, 1)
    q, k, v = np.ones((1, 1, 70, 1), np.float32), level[None, None, :, None].astype(np.float32), noise(1, 1, 6000, 3)
    out = kernels.run_topk_attention(q, k, v, k_top=100, scale=0.5, isa=isa)
    best = np.argsort(-level, kind="stable")[:100]
    weights = np.exp(0.5 * (level[best] - level.max()))
    assert np.allclose(out, weights / weights.sum() @ v[0, 0, best].astype(np.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_scores_the_first_keys_are_kept(isa: str) -> None:
    sample = TIES["integers"] | {"k_top": 37}
    weights, scores = selection_of(sample, isa)
    rank = np.argsort(np.argsort(-scores, -1, kind="stable"), -1, kind="stable")
    seen = scores >= scores.max(-1, keepdims=True) - 80  # further off, a weight is 0
    assert np.array_equal(weights[seen] > 0, (rank < 37)[seen])


def clustered(t: int) -> Sample:
    """Queries and keys near few centres: scores within a cluster nearly tie."""
    random = np.random.default_rng(t)
    centres, sample = random.standard_normal((24, 64)), tensors(h=1, g=1, s=96, t=t, d=64, e=64)
    near = {x: centres[random.integers(24, size=sample[x].shape[2])] + 0.2 * sample[x] for x in "qk"}
    return sample | {name: x.astype(np.float32) for name, x in near.items()}


def with_channels(sample: Sample, **factors: Array) -> Sample:
    """The sample with the channels of q or k multiplied."""
    return sample | {name: (sample[name] * factor).astype(np.float32) for name, factor in factors.items()}


WIDE = {"h": 1, "g": 1, "s": 96, "t": 1500, "d": 64, "e": 64}
CHANNELS = np.where(np.arange(64) == 5, 50.0, 1.0)
MANY = {"h": 1, "g": 1, "s": 3200, "t": 700, "d": 16, "e": 8}  # enough for levels that are guessed
HARD: dict[str, Sample] = {
    "normal": tensors(**WIDE),
    "clusters": clustered(1500),
    "one wide channel": with_channels(tensors(**WIDE), k=CHANNELS),
    "wide in q and k": with_channels(tensors(**WIDE), k=CHANNELS, q=CHANNELS),
    "channels of all widths": with_channels(tensors(**WIDE), k=np.exp2(np.arange(64) % 13 - 6.0)),
    "one silent channel": with_channels(tensors(**WIDE), k=np.where(np.arange(64) == 5, 0.0, 1.0)),
    "a far mean": tensors(**WIDE) | {"k": tensors(**WIDE)["k"] + 30 * CHANNELS.astype(np.float32)},
    "a sink and a wide channel": spread(with_channels(tensors(**WIDE), k=CHANNELS, q=1 / CHANNELS), 0, 12.0),
    "heavy tails": with_channels(tensors(**WIDE), k=np.abs(noise(1, 1, 1500, 1)) ** 3),
    "every key twice": tensors(**WIDE) | {"k": np.repeat(tensors(**WIDE)["k"][:, :, :750], 2, axis=2)},
    "most scores are zero": tensors(**WIDE) | {"k": tensors(**WIDE)["k"] * (np.arange(1500) % 40 == 0)[:, None]},
    "several tiles": tensors(h=1, g=1, s=13, t=70000, d=8, e=8),
    "several tiles, rising": tensors(h=1, g=1, s=7, t=70000, d=8, e=8)
    | {"k": np.sort(tensors(h=1, g=1, s=7, t=70000, d=8, e=8)["k"], axis=2)},
    "several tiles, causal": tensors(h=1, g=1, s=20, t=40000, d=8, e=8) | {"causal": True, "past_length": 32758},
    "several tiles, window": tensors(h=1, g=1, s=20, t=40000, d=8, e=8)
    | {"causal": True, "window": 9000, "past_length": 32758},
    "many queries": tensors(**MANY),
    "many queries, blocks of eight": tensors(h=1, g=1, s=12400, t=350, d=8, e=8),
    "many queries, every other one far": with_channels(
        tensors(**MANY), q=np.where(np.arange(3200) % 2, 1, 40)[:, None]
    ),
    "many queries, no two blocks alike": tensors(**MANY)
    | {"q": tensors(**MANY)["q"] + 4 * np.float32((np.arange(3200) // 48 % 3 == 0)[:, None])},
    "many queries, causal": tensors(**MANY) | {"causal": True, "past_length": 350},
    "many queries, window": tensors(**MANY | {"t": 3500}) | {"causal": True, "window": 400, "past_length": 300},
    "many queries, bias": tensors(**MANY) | {"bias": noise(700)},
    "many queries, most keys next to nothing": with_channels(  # whose mean is 0
        tensors(**MANY) | {"k": tensors(**MANY)["k"][..., np.r_[0:32, 0:32, 64:700], :]},
        k=np.repeat([1.0, -1.0, 1e-7], [32, 32, 636])[:, None],
    ),
    "several tiles, mask": tensors(h=1, g=1, s=13, t=70000, d=8, e=8) | {"key_mask": chosen(1, 70000, share=0.01)},
}


@pytest.mark.parametrize("k_top", [1, 64, 300])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("isa", ISAS)
def test_selection_on_hard_data(isa: str, name: str, k_top: int) -> None:
    sample = HARD[name] | {"k_top": k_top}
    q, k = sample["q"].astype(np.float64), sample["k"].astype(np.float64)
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores = np.where(visible(sample, scores.shape), scores, -INF)
    around = np.partition(scores, (-k_top - 1, -k_top), -1)[..., -k_top - 1 : scores.shape[-1] - k_top + 1]
    clear = around[..., 1] - around[..., 0] > 1e-6 * np.abs(around).max()  # else fp32 may choose either
    clear |= around[..., 0] == around[..., 1]
    out, golden = run(sample, isa=isa), attention(sample, np.float64)[0]
    assert clear.mean() > 0.5
    plain = attention(sample, np.float32)[0]
    allowed = 1e-5 * np.abs(golden).max() + 2 * np.abs(plain - golden)[clear].max()
    assert np.abs(out - golden)[clear].max() <= allowed


@pytest.mark.parametrize("isa", IN_8_BITS)
def test_guesses_hold_where_rows_are_alike(isa: str) -> None:
    before = kernels.topk_proofs()
    run(HARD["many queries, blocks of eight"] | {"k_top": 16}, isa=isa)
    after = kernels.topk_proofs()
    assert after["blocks"] - before["blocks"] == 207
    assert after["widened"] - before["widened"] < 10  # single rows of 12,400
    assert after["in_fp32"] == before["in_fp32"]


@pytest.mark.parametrize("isa", IN_8_BITS)
def test_proofs_are_counted(isa: str) -> None:
    blocks = kernels.topk_proofs()
    run(tensors(**WIDE) | {"k_top": 64}, isa=isa)
    proved = kernels.topk_proofs()
    sample = tensors(**WIDE) | {"k_top": 64}
    sample["k"][0, 0, 7, 7] = INF  # no error bound is finite
    run(sample, isa=isa)
    unproved = kernels.topk_proofs()
    assert proved["blocks"] - blocks["blocks"] == 2  # of 48 rows
    assert proved["in_fp32"] == blocks["in_fp32"]
    assert unproved["in_fp32"] - proved["in_fp32"] == 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [INF, float("nan"), 3e38])
@pytest.mark.parametrize("where", ["q", "k", "v", "bias"])
@pytest.mark.parametrize(("k_top", "rest"), [(0, "none"), (16, "none"), (16, "mean"), (16, "blocks")])
def test_infinite_inputs_do_not_crash(isa: str, value: float, where: str, k_top: int, rest: str) -> None:
    sample = tensors(**LONG) | {"bias": noise(600), "k_top": k_top, "remainder": rest}
    sample[where].reshape(-1)[100] = value
    if takes(isa, sample):
        assert run(sample, isa=isa).shape == (1, 2, 70, 64)


@pytest.mark.parametrize(
    "name", ["two tiles and a row block", "k, key_mask", "long, k, causal", "bias lowest", "blocks: key_mask"]
)
def test_threads_change_nothing(name: str) -> None:
    assert np.array_equal(run(SAMPLES[name], threads=1), run(SAMPLES[name], threads=3))


@pytest.mark.parametrize("name", ["many queries, blocks of eight", "many queries, no two blocks alike"])
def test_threads_do_not_change_what_is_guessed(name: str) -> None:
    sample = HARD[name] | {"k_top": 16}
    assert np.array_equal(run(sample, threads=1), run(sample, threads=3))


@pytest.mark.parametrize(
    "sample",
    [
        tensors(b=2, h=3, g=3, s=50, t=140, d=16, e=16),
        # where 8-bit scores are there, rows are copied: more heads than at one time
        tensors(b=2, h=24, g=24, s=600, t=1100, d=16, e=24) | {"k_top": 8, "threads": 2},
        tensors(b=2, h=4, g=2, s=600, t=8200, d=16, e=24) | {"threads": 2, "causal": True, "past_length": 7700},
    ],
    ids=["every key", "top-k", "every key, long"],
)
def test_rows_may_lie_apart(sample: Sample) -> None:
    strided = {"q": np.asfortranarray(sample["q"].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)}
    strided |= {name: np.ascontiguousarray(sample[name].transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for name in "kv"}
    assert np.array_equal(run(sample), run(sample | strided))


Q, K = noise(1, 4, 5, 8), noise(1, 2, 7, 8)
REFUSED: dict[str, tuple[Callable[[], Array], str]] = {
    "rank": (lambda: run({"q": Q[0], "k": K, "v": K}), "ranks 3, 4 and 4; allowed is 4"),
    "dtype": (
        lambda: run({"q": Q, "k": K.astype(np.float16), "v": K}),
        "k got element type 10, allowed the type of q, 1",
    ),
    "float64": (
        lambda: run({"q": Q.astype(np.float64), "k": K, "v": K}),
        "float64 is not supported; allowed are float32",
    ),
    "d": (lambda: run({"q": Q, "k": K[..., :4], "v": K}), "k got q .1 4 5 8., .* allowed the d of q"),
    "t": (lambda: run({"q": Q, "k": K, "v": K[:, :, :4]}), "v got .* allowed the g and t of k"),
    "heads": (lambda: run({"q": Q[:, :3], "k": K, "v": K}), "heads got .* allowed h a multiple of g"),
    "batch": (
        lambda: run({"q": np.tile(Q, (2, 1, 1, 1)), "k": np.tile(K, (3, 1, 1, 1)), "v": K}),
        "batch axis got .* allowed equal",
    ),
    "k": (lambda: run({"q": Q, "k": K, "v": K, "k_top": -1}), r"k got -1, allowed 0 \(every key\) or more"),
    "window": (lambda: run({"q": Q, "k": K, "v": K, "window": -1}), r"window got -1, allowed 0 \(none\) or more"),
    "no_key": (lambda: run({"q": Q, "k": K, "v": K, "no_key": "nan"}), "no_key is nan; allowed are zero, mean"),
    "remainder": (
        lambda: run({"q": Q, "k": K, "v": K, "remainder": "all"}),
        "remainder is all; allowed are none, mean, blocks",
    ),
    "softcap": (lambda: run({"q": Q, "k": K, "v": K, "softcap": -1.0}), "softcap got -1.0*, allowed 0"),
    "scale": (lambda: run({"q": Q, "k": K, "v": K, "scale": INF}), "scale got inf, allowed a finite number"),
    "bias": (
        lambda: run({"q": Q, "k": K, "v": K, "bias": noise(6)}),
        r"bias got shape \[1 1 1 6\], allowed \[b h s t\] = \[1 4 5 7\]",
    ),
    "bias type": (
        lambda: run({"q": Q, "k": K, "v": K, "bias": np.zeros(7, bool)}),
        "bias got element type 9, allowed 1",
    ),
    "key_mask": (
        lambda: run({"q": Q, "k": K, "v": K, "key_mask": np.ones((1, 5), bool)}),
        r"key_mask got shape \[1 5\]",
    ),
    "key_mask type": (
        lambda: run({"q": Q, "k": K, "v": K, "key_mask": noise(1, 7)}),
        "key_mask got element type 1, allowed 9",
    ),
    "past_length": (
        lambda: run({"q": Q, "k": K, "v": K, "past_length": np.zeros(4)}),
        r"past_length got shape \[4\]",
    ),
    "isa": (lambda: run({"q": Q, "k": K, "v": K, "isa": "mmx"}), "isa got mmx, allowed scalar, avx2"),
    "isa of another processor": (
        lambda: run({"q": Q, "k": K, "v": K, "isa": "neon" if platform.machine() == "x86_64" else "avx2"}),
        "isa got .*, allowed scalar.* on this processor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_allowed(name: str) -> None:
    call, sentence = REFUSED[name]
    with pytest.raises(kernels.LibraryError, match=sentence):
        call()


def test_rows_are_complete_and_ranked() -> None:
    rows = kernels.kernels()
    assert {"op", "name", "isa", "dtypes", "limits", "rank", "usable", "reason"} <= set(rows[0])
    operations = {"TopKAttention", "TopKFeedForward", "CombinerAttention", "SegmentAttention", "ExpandedAttention"}
    assert {row["op"] for row in rows} == operations
    assert len({(row["op"], row["rank"]) for row in rows}) == len(rows)
    for op in {row["op"] for row in rows}:
        assert any(row["op"] == op and row["isa"] == "scalar" and row["usable"] for row in rows)
    assert all(row["usable"] or row["reason"] for row in rows)


@pytest.mark.parametrize(
    ("cap", "message"), [("scalar", ""), ("avx2", ""), ("avxvnni", ""), ("mmx", "GRAFT_ISA: got mmx, allowed scalar")]
)
def test_environment_caps_the_instruction_set(cap: str, message: str) -> None:
    code = "import numpy as np; from runtime_ops import kernels as k; x = np.ones((1, 1, 2, 4), np.float32)\n"
    code += "assert (k.run_topk_attention(x, x, x) == 1).all()"
    environment = os.environ | {"GRAFT_ISA": cap}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert message in done.stderr
    assert (done.returncode == 0) == (not message)


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_LIBRARY", "/nowhere/lib.so")
    with pytest.raises(kernels.LibraryError, match=r"GRAFT_LIBRARY names /nowhere/lib\.so, which is no file"):
        kernels.load()
