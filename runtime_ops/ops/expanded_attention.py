"""``ai.graft::ExpandedAttention``: attention to hidden states, with queries expanded instead of keys and values made.

Keys ``memory·w_kᵀ`` and values ``memory·w_vᵀ`` are never made: queries go through ``w_k`` to the width of the memory,
are compared with it, and what they gather goes through ``w_v``. So the memory alone is kept, once for all heads and
for all beams of a sentence. Row i of q reads row ``beam_index[i]`` of the memory, or ``i·b/n``: n/b beams side by side.
A key bias would add the same to every score of a row, which softmax cancels; a value bias ``b_v`` is added behind.
Below opset 14 the function body needs a query and a key at least: Reshape takes a length of 0 for another one there.

Source: Yan et al., "EL-Attention: Memory Efficient Lossless Attention for Generation" (2021), section 3; grouped heads,
soft cap, selection of the k best keys and the treatment of rows without a visible key are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_ops.ops.pieces import grouped, hide, scaled
from runtime_ops.ops.topk_attention import CHOOSING, check_choosing, chosen, hide_far
from runtime_ops.spec import Input, OpSpec, Sample
from runtime_ops.words import Expr, const, dim, make, reshape


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the attention's result [n h s e] in the words of the alphabet."""
    q, memory, w_k, w_v = inputs["q"], inputs["memory"], inputs["w_k"], inputs["w_v"]
    if q is None or memory is None or w_k is None or w_v is None:
        raise ValueError("q, memory, w_k and w_v are not optional")
    read = _Reading(q, memory, inputs["beam_index"])
    expanded = grouped(q, make("unsqueeze", w_k, axes=(0,)))
    products = read.times(expanded, make("transpose", read.memory, perm=(0, 2, 1)))
    logits = scaled(products, dim(q, 3), attrs["scale"], attrs["softcap"])
    if inputs["bias"] is not None:
        logits = _biased(logits, inputs["bias"])
    if inputs["key_mask"] is not None:
        logits = hide(logits, make("unsqueeze", read.rows(inputs["key_mask"], [dim(memory, 1)]), axes=(1, 2)))
    past = inputs["past_length"]
    found = chosen(hide_far(logits, None if past is None else read.rows(past, []), attrs), attrs)
    gathered = read.times(found, read.memory)
    out = grouped(gathered, make("unsqueeze", make("transpose", w_v, perm=(0, 2, 1)), axes=(0,)))
    return out if inputs["b_v"] is None else make("add", out, _value_bias(read, q, inputs["b_v"], found))


def _biased(logits: Expr, bias: Expr) -> Expr:
    """Return scores [n h s t] plus a bias, whose first axis may be that of the memory: then beams share it."""
    if bias.rank != 4:
        return make("add", logits, bias)
    rows = dim(bias, 0)
    beams = make("div", dim(logits, 0), make("max", rows, const([1])))
    split = reshape(logits, [rows, beams, *(dim(logits, i) for i in (1, 2, 3))])
    return reshape(make("add", split, make("unsqueeze", bias, axes=(1,))), [dim(logits, i) for i in range(4)])


class _Reading:
    """Which row of the memory each row of the queries reads."""

    def __init__(self, q: Expr, memory: Expr, index: Expr | None) -> None:
        self._n, self._b, self._index = dim(q, 0), dim(memory, 0), index
        self.memory = memory if index is None else make("gather", memory, index, axis=0)

    def times(self, x: Expr, y: Expr) -> Expr:
        """Return x [n h s .] times y, which has one matrix for each row of the memory that is read."""
        b, h, s = dim(y, 0), dim(x, 1), dim(x, 2)
        count = make("mul", make("mul", self._beams(b), h), s)
        out = make("matmul", reshape(x, [b, count, dim(x, 3)]), y)
        return reshape(out, [self._n, h, s, dim(y, 2)])

    def rows(self, x: Expr, rest: Sequence[Expr]) -> Expr:
        """Return x [b or 1, rest] for every row of the queries."""
        whole = make("expand", x, make("concat", self._b, *rest, axis=0) if rest else self._b)
        if self._index is not None:
            return make("gather", whole, self._index, axis=0)
        beams = self._beams(self._b)
        lengths = make("concat", self._b, beams, *rest, axis=0)
        return reshape(make("expand", make("unsqueeze", whole, axes=(1,)), lengths), [self._n, *rest])

    def _beams(self, b: Expr) -> Expr:
        return make("div", self._n, make("max", b, const([1])))


def _value_bias(read: _Reading, q: Expr, b_v: Expr, found: Expr) -> Expr:
    """Return the bias [g e] for every head, times the sum of a row's weights: 1, or 0 where it sees no key."""
    g, e = dim(b_v, 0), dim(b_v, 1)
    group = make("concat", g, make("div", dim(q, 1), g), e, axis=0)
    heads = reshape(make("expand", make("unsqueeze", b_v, axes=(1,)), group), [dim(q, 1), 1, e])
    ones = make("expand", const(1.0), make("concat", dim(read.memory, 0), dim(read.memory, 1), const([1]), axis=0))
    # a product, because ONNX Runtime sums nothing to nothing, not to 0
    return make("mul", read.times(found, ones), heads)


def _sample(id: str, seed: int, *, b: int = 2, beams: int = 1, s: int = 3, t: int = 7, h: int = 4, g: int = 4,
            d: int = 8, e: int = 8, m: int = 32, size: float = 1.0, value_bias: bool = False,
            **rest: Any) -> Sample:  # fmt: skip
    normal = np.random.default_rng(seed).standard_normal
    arrays: dict[str, np.ndarray | None] = {
        "q": (normal((b * beams, h, s, d)) * size).astype(np.float32),
        "memory": normal((b, t, m)).astype(np.float32),
        "w_k": (normal((g, d, m)) * m**-0.5).astype(np.float32),
        "w_v": (normal((g, e, m)) * m**-0.5).astype(np.float32),
    }
    if value_bias:
        arrays["b_v"] = normal((g, e)).astype(np.float32)
    given = ("bias", "key_mask", "past_length", "beam_index")
    arrays.update({name: np.asarray(rest.pop(name)) for name in given if name in rest})
    return Sample(id=id, arrays=arrays, attrs=rest)


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    ragged = np.arange(7) < np.array([[7], [3]])
    none = np.arange(7) < np.array([[7], [0]])
    normal, f = np.random.default_rng(11).standard_normal, np.float32
    fill = np.where(np.repeat(ragged, 2, axis=0), 0, np.finfo(f).min).astype(f)[:, None, None, :]
    hides = np.where(none, 0, -np.inf).astype(f)[:, None, None, :]
    table: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("value-bias", {"value_bias": True}),
        ("beams", {"beams": 4, "s": 1}),
        ("beams-of-several-tokens", {"beams": 3, "value_bias": True}),
        ("one-memory", {"b": 1, "beams": 5, "s": 1}),
        ("beam-index", {"beams": 2, "s": 1, "beam_index": [1, 0, 0, 1]}),
        ("beam-index-of-more", {"b": 3, "beam_index": [2, 2, 0], "key_mask": np.arange(7) < [[7], [0], [3]],
                                "value_bias": True, "causal": 1, "past_length": [4, 1, 2]}),
        ("grouped", {"g": 2, "beams": 2, "value_bias": True}),
        ("multi-query", {"g": 1, "k": 3}),
        ("odd-widths", {"d": 7, "e": 5, "m": 13, "value_bias": True}),
        ("wide-memory", {"d": 16, "e": 16, "m": 200, "t": 140, "s": 2, "beams": 4}),
        ("long-odd", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2}),
        ("long-odd-top", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2, "k": 9}),
        ("long-grouped-causal", {"s": 40, "t": 50, "g": 2, "causal": 1, "past_length": [10, -3], "value_bias": True}),
        ("many-beams", {"b": 1, "beams": 20, "s": 2, "h": 2, "g": 1, "m": 70, "value_bias": True}),
        ("one-query-one-head", {"s": 1, "h": 1, "g": 1, "b": 1}),
        ("one-key", {"t": 1, "k": 3}),
        ("no-keys", {"t": 0, "value_bias": True}),
        ("no-queries", {"s": 0}),
        ("scale-and-cap", {"scale": 0.5, "softcap": 5.0, "size": 3.0}),
        ("huge-logits", {"size": 30.0, "s": 16, "t": 33, "b": 3}),
        ("top-2-large-logits", {"size": 10.0, "k": 2, "value_bias": True}),
        ("k-over-t", {"k": 100, "beams": 2}),
        ("causal", {"s": 7, "causal": 1}),
        ("causal-past", {"causal": 1, "beams": 2, "past_length": [2, 1]}),
        ("causal-past-negative", {"causal": 1, "past_length": [-2], "value_bias": True}),
        ("key-mask", {"key_mask": ragged, "beams": 2}),
        ("key-mask-shared", {"key_mask": ragged[1:], "beams": 2, "k": 2}),
        ("key-mask-none", {"key_mask": none, "beams": 2, "value_bias": True}),
        ("window", {"s": 7, "causal": 1, "window": 3, "beams": 2}),
        ("window-both-sides-past", {"window": 2, "past_length": [2, 9], "value_bias": True}),
        ("no-key-mean", {"key_mask": none, "beams": 2, "value_bias": True, "no_key": "mean"}),
        ("no-key-mean-top", {"causal": 1, "past_length": [-2], "value_bias": True, "no_key": "mean", "k": 2}),
        ("bias-full", {"bias": normal((4, 4, 3, 7)).astype(f), "beams": 2, "k": 4}),
        ("bias-head", {"bias": normal((1, 4, 3, 7)).astype(f), "beams": 2}),
        ("bias-shared-by-beams", {"bias": normal((2, 1, 1, 7)).astype(f), "beams": 2}),
        ("bias-shared-by-beams-head", {"bias": normal((2, 4, 1, 7)).astype(f), "beams": 3}),
        ("bias-same-for-beams", {"bias": np.repeat(normal((2, 1, 1, 7)), 3, axis=0).astype(f), "beams": 3}),
        ("bias-beam-index", {"bias": normal((4, 1, 3, 7)).astype(f), "beams": 2, "beam_index": [1, 1, 0, 1]}),
        ("bias-row", {"bias": normal((4, 1, 1, 7)).astype(f), "beams": 2}),
        ("bias-rank-1", {"bias": normal(7).astype(f), "k": 2}),
        ("bias-finite-fill", {"bias": fill, "beams": 2}),
        ("bias-hides-all", {"bias": hides, "value_bias": True}),
        ("everything", {"g": 2, "beams": 2, "k": 3, "causal": 1, "softcap": 8.0, "key_mask": ragged, "scale": 0.3,
                        "past_length": [3, 2], "bias": normal((1, 4, 3, 7)).astype(f), "value_bias": True}),
    ]  # fmt: skip
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


EXPANDED_ATTENTION = OpSpec(
    name="ExpandedAttention",
    doc=__doc__ or "",
    inputs=(
        Input(name="q", layout="n h s d"),
        Input(name="memory", layout="b t m"),
        Input(name="w_k", layout="g d m"),
        Input(name="w_v", layout="g e m"),
        Input(name="b_v", layout="g e", optional=True),
        Input(name="bias", layout="n h s t", optional=True),
        Input(name="key_mask", layout="b t", kind="bool", optional=True),
        Input(name="past_length", layout="b", kind="int64", optional=True),
        Input(name="beam_index", layout="n", kind="int64", optional=True),
    ),
    attributes=CHOOSING,
    output="n h s e",
    fixed="h g",
    by_heads=("q", "out"),
    reference=reference,
    check=check_choosing,
    samples=samples,
)
