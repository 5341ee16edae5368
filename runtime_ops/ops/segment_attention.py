"""``ai.graft::SegmentAttention``: softmax attention in which every token sees the tokens of its own segment only.

Source: Cao et al., "DeFormer: Decomposing Pre-trained Transformers for Faster Question Answering" (2020): the lower
layers of a decomposed encoder. Segments that need not be contiguous, grouped heads, masks and soft cap are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_ops.ops.pieces import grouped, hide, scores, weights
from runtime_ops.spec import TOKENS_FIRST, Attribute, Input, OpSpec, Sample
from runtime_ops.words import Expr, make


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the attention's result [b h t e] in the words of the alphabet."""
    q, k, v, segments = inputs["q"], inputs["k"], inputs["v"], inputs["segments"]
    if q is None or k is None or v is None or segments is None:
        raise ValueError("q, k, v and segments are not optional")
    logits = scores(q, k, attrs["scale"], attrs["softcap"])
    if inputs["bias"] is not None:
        logits = make("add", logits, inputs["bias"])
    same = make("eq", make("unsqueeze", segments, axes=(1, 2)), make("unsqueeze", segments, axes=(1, 3)))
    if inputs["key_mask"] is not None:
        same = make("and", same, make("unsqueeze", inputs["key_mask"], axes=(1, 2)))
    return grouped(weights(hide(logits, same)), v)


def check(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the attribute values, or None."""
    if attrs["softcap"] < 0:
        return f"softcap is {attrs['softcap']}; it must be 0 (none) or more"
    return None


def _sample(id: str, seed: int, *, segments: Any, b: int = 2, h: int = 4, g: int = 4, d: int = 16, e: int = 16,
            size: float = 1.0, **rest: Any) -> Sample:  # fmt: skip
    normal, ids = np.random.default_rng(seed).standard_normal, np.asarray(segments, np.int64)
    t = ids.shape[1]
    arrays: dict[str, np.ndarray | None] = {
        "q": (normal((b, h, t, d)) * size).astype(np.float32),
        "k": (normal((b, g, t, d)) * size).astype(np.float32),
        "v": normal((b, g, t, e)).astype(np.float32),
        "segments": ids,
    }
    arrays.update({name: rest.pop(name) for name in ("bias", "key_mask") if name in rest})
    return Sample(id=id, arrays=arrays, attrs=rest)


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    two = [[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]]
    ragged = np.arange(7) < np.array([[6], [4]])
    none = np.arange(7) < np.array([[3], [0]])  # hides one segment whole, and then everything
    normal = np.random.default_rng(5).standard_normal
    f = np.float32
    table: list[tuple[str, dict[str, Any]]] = [
        ("two", {"segments": two}),
        ("padding-between", {"segments": two, "key_mask": np.array([[1, 1, 0, 1, 1, 1, 0]] * 2, bool)}),
        ("padding", {"segments": two, "key_mask": ragged}),
        ("nothing-visible", {"segments": two, "key_mask": none}),
        ("one", {"segments": [[0] * 7] * 2}),
        ("each-alone", {"segments": [range(7)] * 2}),
        ("scattered", {"segments": [[2, 0, 2, -1, 0, 2, 0], [9, 9, 1, 9, 1, 1, 9]]}),
        ("shared-by-the-batch", {"segments": two[:1]}),
        ("long", {"segments": [[0] * 67 + [1] * 131], "b": 1, "h": 2, "g": 2}),
        ("grouped", {"segments": two, "g": 2}),
        ("odd-widths", {"segments": two, "d": 7, "e": 5}),
        ("scale-and-cap", {"segments": two, "scale": 0.5, "softcap": 5.0, "size": 3.0}),
        ("huge-logits", {"segments": two, "size": 100.0}),
        ("bias", {"segments": two, "bias": normal((2, 1, 7, 7)).astype(f)}),
        ("bias-finite-fill", {"segments": two, "bias": np.where(ragged, 0, np.finfo(f).min).astype(f)[:, None, None]}),
        ("one-token", {"segments": [[3]] * 2}),
        ("no-token", {"segments": np.zeros((2, 0))}),
    ]
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


SEGMENT_ATTENTION = OpSpec(
    name="SegmentAttention",
    doc=__doc__ or "",
    inputs=(
        Input(name="q", layout="b h t d"),
        Input(name="k", layout="b g t d"),
        Input(name="v", layout="b g t e"),
        Input(name="segments", layout="b t", kind="int64"),
        Input(name="bias", layout="b h t t", optional=True),
        Input(name="key_mask", layout="b t", kind="bool", optional=True),
    ),
    attributes=(
        Attribute(name="scale", kind=float, default=None, doc="factor of q·k; default 1/sqrt(d)"),
        Attribute(name="softcap", kind=float, default=0.0, doc="c > 0: c·tanh(score/c) before the bias; 0: none"),
        TOKENS_FIRST,
    ),
    output="b h t e",
    fixed="h g",
    by_heads=("q", "k", "v", "out"),
    reference=reference,
    check=check,
    samples=samples,
)
