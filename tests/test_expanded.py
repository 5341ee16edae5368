"""Expanded queries are ordinary attention: what the operation means, and how far its rounding may go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_attention import attention, expanded_attention, per_row, rows_read
from test_ops import allowed, isas, needs_library, present

from runtime_ops import kernels
from runtime_ops.ops import OPS
from runtime_ops.spec import Sample

SPEC = OPS["ExpandedAttention"]


def projected(sample: Sample, kind: Any = np.float64) -> np.ndarray:
    """Return the same attention with keys and values made, as models have it."""
    arrays = sample.arrays
    memory, w_k, w_v = (np.asarray(arrays[name], kind) for name in ("memory", "w_k", "w_v"))
    keys, values = (memory[:, None] @ w.swapaxes(-1, -2) for w in (w_k, w_v))
    if arrays.get("b_v") is not None:
        values = values + np.asarray(arrays["b_v"], kind)[:, None]
    index = rows_read(arrays)
    given = {"q": arrays["q"], "k": keys[index], "v": values[index], **per_row(arrays)}
    return attention(given, sample.attrs, kind)


@pytest.mark.parametrize("sample", SPEC.samples(), ids=lambda sample: sample.id)
def test_it_is_attention_to_projected_keys_and_values(sample: Sample) -> None:
    # 1e-7: the default scale is rounded to float32, as kernels take it
    golden = SPEC.golden(sample.arrays, sample.attrs)
    np.testing.assert_allclose(golden, projected(sample), rtol=1e-6, atol=1e-6)


def test_a_key_bias_changes_nothing() -> None:
    """It adds the same to all scores of a row; not under a soft cap, where the rule declines it."""
    sample = next(row for row in SPEC.samples() if row.id == "grouped")
    memory, w_k, w_v = (np.asarray(sample.arrays[name], np.float64) for name in ("memory", "w_k", "w_v"))
    keys, values = (memory[:, None] @ w.swapaxes(-1, -2) for w in (w_k, w_v))
    keys = keys + 3 * np.random.default_rng(0).standard_normal((w_k.shape[0], 1, w_k.shape[1]))
    index = rows_read(sample.arrays)
    value_bias = np.asarray(sample.arrays["b_v"])[:, None]
    given = {"q": sample.arrays["q"], "k": keys[index], "v": (values + value_bias)[index]}
    golden = SPEC.golden(sample.arrays, sample.attrs)
    np.testing.assert_allclose(golden, attention(given, {}), rtol=1e-6, atol=1e-6)
    assert np.abs(attention(given, {"softcap": 1.0}) - SPEC.golden(sample.arrays, {"softcap": 1.0})).max() > 0.01


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_sums_over_the_width_of_the_memory_cost_few_digits(width: int) -> None:
    """In float32, scores are sums of m products instead of d: 1e-5 of the largest value bounds what that costs."""
    rng, heads = np.random.default_rng(width), width // 64
    shapes = {"q": (4, heads, 1, 64), "memory": (1, 200, width), "w_k": (heads, 64, width), "w_v": (heads, 64, width)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("w_k", "w_v"):
        arrays[name] *= np.float32(width**-0.5)
    golden = SPEC.golden(arrays, {})
    error = np.abs(expanded_attention(arrays, {}, np.float32) - golden).max() / np.abs(golden).max()
    assert error < 1e-5


def call(**more: Any) -> dict[str, Any]:
    """Return a call with two sentences, three beams each, and what is to be different."""
    rng = np.random.default_rng(3)
    shapes = {"q": (6, 4, 2, 8), "memory": (2, 9, 20), "w_k": (2, 8, 20), "w_v": (2, 5, 20)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} | more


Q = call()["q"]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"memory": Q}, r"memory, w_k, w_v got rank 4, allowed 3: memory \[b t m\], w_k \[g d m\]"),
    "ranks": ({"q": Q[0]}, "q and w_v have ranks 3 and 3; allowed are 4 and 3"),
    "type": ({"w_k": call()["w_k"].astype(np.float16)}, "w_k got element type 10, allowed the type of q, 1"),
    "type of q": ({"q": Q.astype(np.int64)}, "q got element type 7, allowed 1"),
    "widths": ({"w_v": np.zeros((2, 5, 19), np.float32)}, r"w_v got shape \[2 5 19\], allowed \[g e m\] = \[2 5 20\]"),
    "heads": ({"q": Q[:, :3]}, "heads got 3 and 2, allowed h a multiple of g"),
    "rows": ({"q": Q[:5]}, "q got 5 rows, allowed a multiple of the 2 of memory"),
    "index": ({"beam_index": np.array([0, 1, 2, 0, 0, 0])}, "beam_index got 2, allowed 0 to 1, a row of memory"),
    "index length": ({"beam_index": np.zeros(5, np.int64)}, r"beam_index got shape \[5\], allowed \[n\] = \[6\]"),
    "mask": ({"key_mask": np.ones((6, 9), bool)}, r"key_mask got shape \[6 9\], allowed \[b t\] = \[2 9\], or 1"),
    "bias": ({"bias": np.zeros((3, 1, 1, 9), np.float32)}, r"bias got shape \[3 1 1 9\], allowed \[n h s t\]"),
    "bias of rows": (
        {"bias": np.zeros((2, 1, 1, 9), np.float32), "beam_index": np.zeros(6, np.int64)},
        r"bias got shape \[2 1 1 9\], allowed \[n h s t\] = \[6 4 2 9\]",
    ),
    "bias of values": ({"b_v": np.zeros((4, 5), np.float32)}, r"b_v got shape \[4 5\], allowed \[g e\] = \[2 5\]"),
    "k": ({"k_top": -1}, "k got -1, allowed 0"),
    "softcap": ({"softcap": -1.0}, "softcap got -1"),
    "scale": ({"scale": float("nan")}, "scale got -?nan, allowed a finite number"),
    "isa": ({"isa": "mmx"}, "isa got mmx, allowed scalar, avx2"),
}


@needs_library
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_allowed(name: str) -> None:
    more, sentence = REFUSED[name]
    with pytest.raises(kernels.LibraryError, match=sentence):
        kernels.run_expanded_attention(**call(**more))


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("sample", SPEC.samples(), ids=lambda sample: sample.id)
def test_threads_change_nothing(sample: Sample, threads: int) -> None:
    given = {"k_top" if name == "k" else name: value for name, value in {**sample.arrays, **sample.attrs}.items()}
    alone = kernels.run_expanded_attention(**given)
    np.testing.assert_allclose(kernels.run_expanded_attention(**given, threads=threads), alone, rtol=1e-4, atol=1e-5)


def small(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return random arrays of these shapes, of numbers so small that sums over a wide memory stay near 1."""
    return {name: (rng.standard_normal(shape) * 0.1).astype(np.float32) for name, shape in shapes.items()}


@needs_library
def test_many_queries_go_through_in_parts() -> None:
    """More rows than are expanded at one time: the parts see what the whole would."""
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, 700, 16), "memory": (1, 300, 1024), "w_k": (4, 16, 1024), "w_v": (4, 16, 1024)}
    arrays = small(rng, shapes)
    arrays |= {"bias": rng.standard_normal((1, 4, 700, 300)).astype(np.float32), "past_length": np.array([-350])}
    golden = SPEC.golden(arrays, {"causal": 1})
    out = kernels.run_expanded_attention(**arrays, causal=True)
    assert np.abs(out - golden).max() < 1e-5 * np.abs(golden).max()


@needs_library
def test_many_sentences_go_through_in_parts() -> None:
    """As above, where there are many rows of few queries: each part finds its own memory, bias and mask."""
    rng = np.random.default_rng(0)
    shapes = {"q": (260, 16, 1, 4), "memory": (130, 5, 1024), "w_k": (16, 4, 1024), "w_v": (16, 4, 1024)}
    arrays = small(rng, shapes)
    arrays |= {"bias": rng.standard_normal((260, 1, 1, 5)).astype(np.float32), "key_mask": rng.random((130, 5)) < 0.7}
    golden = SPEC.golden(arrays, {})
    out = kernels.run_expanded_attention(**arrays)
    assert np.abs(out - golden).max() < 1e-5 * np.abs(golden).max()


def wide(n: int, h: int, s: int) -> Sample:
    """Return a call of n·h·s rows through two heads of weights: too many weights for one task to pack at one time."""
    shapes = {"q": (n, h, s, 301), "memory": (1, 40, 1045), "w_k": (2, 301, 1045), "w_v": (2, 301, 1045)}
    return Sample(id=f"wide-{n}-{h}-{s}", arrays=small(np.random.default_rng(0), shapes))


# Up to eight rows a head use the weights where they lie, more pack them.
WIDE = [wide(*lengths) for lengths in ((1, 2, 1), (1, 4, 1), (1, 2, 3), (2, 4, 2), (2, 4, 20))]


@needs_library
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("sample", WIDE, ids=lambda sample: sample.id)
@pytest.mark.parametrize("isa", isas())
def test_wide_weights_go_through_in_parts(isa: str, sample: Sample, kind: Any) -> None:
    """More weights of a head than are packed, or summed, at one time, the last of them no whole panel."""
    arrays = present(sample, kind)
    golden = SPEC.golden(arrays, {})
    out = kernels.run_expanded_attention(**arrays, isa=isa)
    assert np.abs(out - golden).max() <= allowed(SPEC, golden, arrays, {})


@needs_library
@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), b=st.integers(1, 3), beams=st.integers(1, 5), g=st.integers(1, 3),
    group=st.integers(1, 3), s=st.integers(1, 40), t=st.integers(0, 200), d=st.integers(1, 40), e=st.integers(1, 40),
    m=st.integers(1, 90), k=st.integers(0, 40), causal=st.booleans(), mask=st.booleans(), index=st.booleans(),
    bias=st.sampled_from(["", "1 1 1 t", "b 1 1 t", "n 1 s t", "1 h s t", "n h s 1"]), value_bias=st.booleans(),
    isa=st.sampled_from(isas() or ["scalar"]), threads=st.sampled_from([1, 2]),
)  # fmt: skip
@example(
    seed=0, b=2, beams=1, g=1, group=1, s=1, t=0, d=1, e=1, m=1, k=0, causal=False, mask=True, index=True, bias="",
    value_bias=False, isa="scalar", threads=1,
)  # fmt: skip
@example(
    seed=0, b=1, beams=2, g=1, group=2, s=1, t=0, d=1, e=1, m=1, k=0, causal=False, mask=False, index=False,
    bias="1 h s t", value_bias=False, isa="scalar", threads=1,
)  # fmt: skip
def test_any_call(
    seed: int, b: int, beams: int, g: int, group: int, s: int, t: int, d: int, e: int, m: int, k: int, causal: bool,
    mask: bool, index: bool, bias: str, value_bias: bool, isa: str, threads: int,
) -> None:  # fmt: skip
    rng, n, h = np.random.default_rng(seed), b * beams, g * group
    shapes = {"q": (n, h, s, d), "memory": (b, t, m), "w_k": (g, d, m), "w_v": (g, e, m)}
    arrays: dict[str, Any] = {x: rng.standard_normal(shape).astype(np.float32) for x, shape in shapes.items()}
    arrays["w_k"] *= np.float32(m**-0.5)
    if mask:
        arrays["key_mask"] = rng.random((b, t)) < 0.7
    if index and bias != "b 1 1 t":
        arrays["beam_index"] = rng.integers(0, b, n)
    if value_bias:
        arrays["b_v"] = rng.standard_normal((g, e)).astype(np.float32)
    if bias:
        by_letter = {"b": b, "n": n, "h": h, "s": s, "t": t, "1": 1}
        arrays["bias"] = rng.standard_normal([by_letter[x] for x in bias.split()]).astype(np.float32)
    attrs = {"k": k, "causal": int(causal)}
    golden = SPEC.golden(arrays, attrs)
    out = kernels.run_expanded_attention(**arrays, k_top=k, causal=causal, isa=isa, threads=threads)
    error = np.abs(out - golden).max(initial=0.0)
    near_tie = 1e-3 if k else 0.0  # may be resolved the other way in float32
    assert error <= allowed(SPEC, golden, arrays, attrs) + 2e-5 + near_tie
