"""``ai.graft::TopKAttention``: softmax attention over all keys, or over the k best keys of every query.

Source: Gupta, Dar, Goodman, Ciprut, Berant, "Memory-efficient Transformers via Top-k Attention" (2021), section 2;
grouped heads, masks, soft cap and the treatment of rows without a visible key are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_ops.ops.pieces import causal, check_attributes, grouped, hide, scores, top, weights
from runtime_ops.spec import Attribute, Input, OpSpec, Sample
from runtime_ops.words import Expr, dim, make


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the attention's result [b h s e] in the words of the alphabet."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if q is None or k is None or v is None:
        raise ValueError("q, k and v are not optional")
    logits = scores(q, k, attrs["scale"], attrs["softcap"])
    if inputs["bias"] is not None:
        logits = make("add", logits, inputs["bias"])
    if inputs["key_mask"] is not None:
        logits = hide(logits, make("unsqueeze", inputs["key_mask"], axes=(1, 2)))
    if attrs["causal"]:
        logits = hide(logits, causal(dim(q, 2), dim(k, 2), inputs["past_length"]))
    return grouped(top(logits, attrs["k"]) if attrs["k"] else weights(logits), v)


def _sample(id: str, seed: int, *, b: int = 2, s: int = 5, t: int = 7, h: int = 4, g: int = 4, d: int = 16, e: int = 16,
            size: float = 1.0, **rest: Any) -> Sample:  # fmt: skip
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    arrays: dict[str, np.ndarray | None] = {
        "q": (normal((b, h, s, d)) * size).astype(np.float32),
        "k": (normal((b, g, t, d)) * size).astype(np.float32),
        "v": normal((b, g, t, e)).astype(np.float32),
    }
    arrays.update({name: rest.pop(name) for name in ("bias", "key_mask", "past_length") if name in rest})
    return Sample(id=id, arrays=arrays, attrs=rest)


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    rng = np.random.default_rng(7)
    ragged = np.arange(7) < np.array([[7], [3]])
    none = np.arange(7) < np.array([[7], [0]])
    f = np.float32
    fill = np.where(ragged, 0, np.finfo(f).min).astype(f)[:, None, None, :]
    table: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("top-3", {"k": 3}),
        ("top-1", {"k": 1}),
        ("k-over-t", {"k": 100}),
        ("scale", {"scale": 0.5}),
        ("grouped", {"g": 2}),
        ("multi-query", {"g": 1, "k": 3}),
        ("wide-values", {"e": 24}),
        ("odd-widths", {"d": 7, "e": 5, "k": 2}),
        ("long-odd", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2}),
        ("long-odd-top", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2, "k": 9}),
        ("one-query", {"s": 1}),
        ("one-key", {"t": 1, "k": 3}),
        ("no-keys", {"t": 0}),
        ("no-queries", {"s": 0}),
        ("softcap", {"softcap": 5.0, "size": 3.0}),
        ("huge-logits", {"size": 100.0}),
        ("huge-logits-top", {"size": 100.0, "k": 2}),
        ("causal", {"s": 7, "causal": 1}),
        ("causal-top", {"s": 7, "causal": 1, "k": 2}),
        ("causal-past", {"causal": 1, "past_length": np.array([2, 1])}),
        ("causal-past-negative", {"causal": 1, "past_length": np.array([-2])}),
        ("key-mask", {"key_mask": ragged}),
        ("key-mask-top", {"key_mask": ragged, "k": 4}),
        ("key-mask-none", {"key_mask": none}),
        ("bias-full", {"bias": rng.standard_normal((2, 4, 5, 7)).astype(f), "k": 4}),
        ("bias-head", {"bias": rng.standard_normal((1, 4, 5, 7)).astype(f)}),
        ("bias-rank-2", {"bias": rng.standard_normal((5, 7)).astype(f)}),
        ("bias-rank-1", {"bias": rng.standard_normal(7).astype(f), "k": 2}),
        ("bias-column", {"bias": rng.standard_normal((2, 1, 5, 1)).astype(f)}),
        ("bias-finite-fill", {"bias": fill}),
        ("bias-all-filled", {"bias": np.full((1, 1, 1, 7), np.finfo(f).min, f)}),
        ("bias-hides-all", {"bias": np.where(none, 0, -np.inf).astype(f)[:, None, None, :]}),
        ("everything", {"g": 2, "k": 3, "causal": 1, "softcap": 8.0, "key_mask": ragged, "scale": 0.3,
                        "past_length": np.array([3, 2]), "bias": rng.standard_normal((1, 4, 5, 7)).astype(f)}),
    ]  # fmt: skip
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


TOPK_ATTENTION = OpSpec(
    name="TopKAttention",
    doc=__doc__ or "",
    inputs=(
        Input(name="q", layout="b h s d"),
        Input(name="k", layout="b g t d"),
        Input(name="v", layout="b g t e"),
        Input(name="bias", layout="b h s t", optional=True),
        Input(name="key_mask", layout="b t", kind="bool", optional=True),
        Input(name="past_length", layout="b", kind="int64", optional=True),
    ),
    attributes=(
        Attribute(name="k", kind=int, default=0, doc="keys that each query attends to; 0: all, which is exact"),
        Attribute(name="scale", kind=float, default=None, doc="factor of q·k; default 1/sqrt(d)"),
        Attribute(name="causal", kind=int, default=0, doc="1: key j is visible to query i if j <= i + past_length"),
        Attribute(name="softcap", kind=float, default=0.0, doc="c > 0: c·tanh(score/c) before the bias; 0: none"),
    ),
    output="b h s e",
    fixed="h g",
    reference=reference,
    check=check_attributes,
    samples=samples,
)
