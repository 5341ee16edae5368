"""Combiner attention query by query and region by region, straight from the paper's formulas; slow and plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Regions = Sequence[Sequence[int]]
Arrays = Mapping[str, np.ndarray | None]


def regions(variant: str, t: int, span: int, causal: bool, i: int) -> tuple[Sequence[int], Regions]:
    """Return which keys query i reads itself, and the regions that it reads through summaries."""
    if variant == "logsparse":
        left = [*_bits(i)]
        right = [] if causal else [[t - 1 - j for j in block] for block in _bits(t - 1 - i)]
        return [i], [*left, *right]
    span = width(variant, t, span)
    seen = [j for j in range(t) if not causal or j <= i]
    row, column = i // span, i % span
    rows = [[j for j in seen if j // span == r] for r in range(-(-t // span))]
    others = [found for r, found in enumerate(rows) if r != row]
    if variant in ("fixed", "axial-row-major"):
        return rows[row], others
    direct = [j for j in seen if j // span == row or j % span == column]
    if variant == "axial-horizontal":
        return direct, [[j for j in found if j % span != column] for found in others]
    columns = [[j for j in seen if j % span == c and j // span != row] for c in range(span) if c != column]
    above = [[j for j in found if j // span < row] for found in columns]
    return direct, [*above, *([j for j in found if j // span > row] for found in columns)]


def width(variant: str, t: int, span: int) -> int:
    """Return how many tokens a row of the grid has."""
    return min(span or max(int(np.sqrt(t * (2 if variant == "fixed" else 1))), 1), max(t, 1))


def _bits(i: int) -> Regions:
    """Return the aligned blocks that tile the keys before i, one for every set bit."""
    blocks, end = [], i
    for bit in range(i.bit_length()):
        if i >> bit & 1:
            blocks.append(range(end - 2**bit, end))
            end -= 2**bit
    return blocks


def combiner(arrays: Arrays, attrs: Mapping[str, Any], kind: Any = np.float64) -> np.ndarray:
    """Return the result [b h t e], worked out in a type."""
    variant = attrs.get("variant", "fixed")
    if variant == "mixture":
        names = ("fixed", "axial-vertical")
        return np.mean([combiner(arrays, {**attrs, "variant": name}, kind) for name in names], axis=0)
    q, k, v = (np.asarray(arrays[name]).astype(kind) for name in "qkv")
    mask = arrays.get("key_mask")
    b, (_, h, t, d) = max(len(x) for x in (q, k, v)), q.shape
    q, k, v = (np.broadcast_to(x, (b, *x.shape[1:])) for x in (q, k, v))
    q = q * kind(attrs.get("scale") or d**-0.5)
    out = np.zeros((b, h, t, v.shape[-1]), kind)
    for n, head, i in np.ndindex(b, h, t):
        group = head // (h // k.shape[1])
        keep = np.ones(t, bool) if mask is None else np.broadcast_to(mask, (b, t))[n]
        out[n, head, i] = _one(q[n, head], k[n, group], v[n, group], keep, i, {**attrs, "variant": variant})
    return out


def _one(q: np.ndarray, k: np.ndarray, v: np.ndarray, keep: np.ndarray, i: int, attrs: Mapping[str, Any]) -> np.ndarray:
    variant, span = attrs["variant"], attrs.get("span", 0)
    direct, far = regions(variant, len(q), span, bool(attrs.get("causal")), i)
    direct = [j for j in direct if keep[j]]
    logits, values = [q[i] @ k[j] for j in direct], [v[j] for j in direct]
    for region in far:
        shown = [j for j in region if keep[j]]
        if not shown:
            continue
        key, value = _summary(q, k, v, region, shown, i, keep, attrs)
        logits.append(q[i] @ key + (q.dtype.type(np.log(len(shown))) if attrs.get("region_logit") == "counted" else 0))
        values.append(value)
    if not logits:
        return v.mean(0) if attrs.get("no_key") == "mean" else np.zeros(v.shape[-1])
    return _softmax(logits) @ np.asarray(values)


def _summary(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, region: Sequence[int], shown: Sequence[int],
    i: int, keep: np.ndarray, attrs: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    pool = np.max if attrs.get("pooling", "max") == "max" else np.mean
    if attrs["variant"] != "axial-row-major":
        inner = _softmax(k[shown] @ pool(q[shown], axis=0))
        return pool(k[shown], axis=0), inner @ v[shown]
    span = width(attrs["variant"], len(q), attrs.get("span", 0))
    place = region[0] // span * span + i % span  # the token of the reader's column in that row
    query = q[place] if place < len(q) and keep[place] else np.zeros(q.shape[-1])
    inner = _softmax(k[shown] @ query)
    return inner @ k[shown], inner @ v[shown]


def _softmax(x: Any) -> np.ndarray:
    exps = np.exp(np.asarray(x) - np.max(x))
    return np.asarray(exps / exps.sum())
