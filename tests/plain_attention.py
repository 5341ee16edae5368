"""Attention written down a second time, row by row in plain numpy: what the specs are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def attention(arrays: Mapping[str, Any], attrs: Mapping[str, Any], kind: type = np.float64) -> np.ndarray:
    """Return the result [b h s e] computed in floating type ``kind``."""
    q, k, v = (arrays[n].astype(kind) for n in "qkv")
    (b, h, s, d), (g, t) = q.shape, k.shape[1:3]
    b = max(b, k.shape[0], v.shape[0]) if b else 0
    k, v = (np.repeat(x, h // g, axis=1) for x in (k, v))
    scale = attrs.get("scale") or d**-0.5
    scores = (q @ k.swapaxes(-1, -2)) * kind(np.float32(scale))
    cap = attrs.get("softcap")
    if cap:
        scores = kind(cap) * np.tanh(scores / kind(cap))
    if arrays.get("bias") is not None:
        scores = scores + arrays["bias"].astype(kind)
    scores = np.where(visible(arrays, attrs, s, t), scores, kind(-np.inf))
    scores = np.broadcast_to(scores, (b, h, s, t))
    v = np.broadcast_to(v, (b, *v.shape[1:]))
    out = np.zeros((b, h, s, v.shape[-1]), kind)
    shared = attrs.get("remainder") == "blocks"
    for row in np.ndindex(b, h, s):
        none = v[row[:2]].mean(0) if attrs.get("no_key") == "mean" and t else np.zeros(v.shape[-1], kind)
        out[row] = attend(scores[row], v[row[:2]], attrs.get("k") or t, none, blocks(arrays, attrs, t, row), shared)
    return out


def blocks(arrays: Mapping[str, Any], attrs: Mapping[str, Any], t: int, row: tuple[int, ...]) -> np.ndarray | None:
    """Return the block of each key in which the attribute ``remainder`` takes means; -1 for the row's own block."""
    if attrs.get("remainder", "none") == "none":
        return None
    if attrs["remainder"] == "mean":
        return np.zeros(t, int)
    past = np.reshape(arrays["past_length"], -1) if arrays.get("past_length") is not None else np.zeros(1, int)
    place, block = row[2] + past[row[0] % len(past)], np.arange(t) // 64
    return np.where(block == place // 64, -1, block)


def segment_attention(arrays: Mapping[str, Any], attrs: Mapping[str, Any], kind: type = np.float64) -> np.ndarray:
    """Return attention [b h t e] under the block mask that segment ids [b t] say."""
    ids = arrays["segments"]
    hidden = np.where(ids[:, None, :, None] == ids[:, None, None, :], 0.0, -np.inf)
    bias = arrays.get("bias")
    return attention({**arrays, "bias": hidden if bias is None else hidden + bias}, attrs, kind)


def visible(arrays: Mapping[str, Any], attrs: Mapping[str, Any], s: int, t: int) -> np.ndarray:
    """Return which key each query may see, to broadcast to [b h s t]."""
    keep = np.ones((1, 1, s, t), bool)
    if arrays.get("key_mask") is not None:
        keep = keep & arrays["key_mask"][:, None, None, :]
    past = arrays.get("past_length")
    shift = np.zeros(1, np.int64) if past is None else np.reshape(past, -1)
    away = np.arange(t) - (np.arange(s)[:, None] + shift[:, None, None, None])
    if attrs.get("causal"):
        keep = keep & (away <= 0)
    if attrs.get("window"):
        keep = keep & (abs(away) < attrs["window"])
    return keep


def attend(
    scores: np.ndarray, v: np.ndarray, k: int, none: np.ndarray, blocks: np.ndarray | None = None, shared: bool = False
) -> np.ndarray:
    """Return one row's softmax over its ``k`` best scores times the values; ``none`` if it sees no key.

    With ``blocks``, the block of each key, softmax goes over all keys, and those of a block that are not among the
    ``k`` share their weight equally, if ``shared`` with those that are; -1 is the block of which every key counts as
    chosen.
    """
    order = np.argsort(-scores, kind="stable")
    best, others = order[:k], order[k:]
    if not best.size or scores[best[0]] == -np.inf:
        return none
    if blocks is None:
        others = others[:0]
    others = others[scores[others] >= scores[best[0]] - 80]
    weights, other = (np.exp(scores[keys] - scores[best[0]]) for keys in (best, others))
    out = weights @ v[best]
    for n in set() if blocks is None else set(blocks[others]):
        keys, mass = others[blocks[others] == n], other[blocks[others] == n]
        sharing = np.append(keys, best[blocks[best] == n]) if shared else keys
        out += mass @ v[keys] if n == -1 else mass.sum() * v[sharing].mean(0)
    return np.asarray(out / (weights.sum() + other.sum()))


def expanded_attention(arrays: Mapping[str, Any], attrs: Mapping[str, Any], kind: type = np.float64) -> np.ndarray:
    """Return attention [n h s e] to a memory [b t m], through w_k [g d m] and w_v [g e m] on the queries' side."""
    q, memory, w_k, w_v = (arrays[name].astype(kind) for name in ("q", "memory", "w_k", "w_v"))
    group = q.shape[1] // len(w_k)
    w_k, w_v = np.repeat(w_k, group, axis=0), np.repeat(w_v, group, axis=0)
    same = {**per_row(arrays), "q": q @ w_k}
    given = {**attrs, "scale": attrs.get("scale") or q.shape[3] ** -0.5}
    keys = memory[rows_read(arrays)][:, None]
    out = attention({**same, "k": keys, "v": keys}, given, kind) @ w_v.swapaxes(-1, -2)
    if arrays.get("b_v") is None:
        return out
    seen = attention({**same, "k": keys, "v": np.ones((*keys.shape[:3], 1))}, given, kind)  # 1, or 0 without a key
    return np.asarray(out + np.round(seen) * np.repeat(arrays["b_v"].astype(kind), group, axis=0)[:, None])


def per_row(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bias, and what hides keys of the memory, for every row of the queries."""
    b, index = len(arrays["memory"]), rows_read(arrays)
    given = {name: arrays[name] for name in ("key_mask", "past_length") if arrays.get(name) is not None}
    found = {name: np.broadcast_to(x, (b, *x.shape[1:]))[index] for name, x in given.items()}
    bias, n = arrays.get("bias"), len(arrays["q"])
    shared = bias is not None and bias.ndim == 4 and len(bias) not in (1, n)
    return {**found, "bias": np.repeat(bias, n // b, axis=0) if shared else bias}


def rows_read(arrays: Mapping[str, Any]) -> np.ndarray:
    """Return which row of the memory each row of the queries reads."""
    if arrays.get("beam_index") is not None:
        return np.asarray(arrays["beam_index"])
    n, b = len(arrays["q"]), len(arrays["memory"])
    return np.arange(n) // max(n // max(b, 1), 1)
