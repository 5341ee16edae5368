"""Expanded queries are ordinary attention: what the operation means, and how far its rounding may go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_attention import attention, expanded_attention, per_row, rows_read

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
    given = {"q": arrays["q"], "k": keys[index], "v": values[index], "bias": arrays.get("bias"), **per_row(arrays)}
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
