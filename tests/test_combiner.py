"""Combiner attention: which region every key is in, the paper's formulas, and what it costs on trained-like data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_combiner import combiner, regions

from runtime_ops.ops.combiner_attention import COMBINER_ATTENTION as SPEC
from runtime_ops.ops.combiner_attention import MIXTURE, VARIANTS
from runtime_ops.spec import Sample

SINGLE = [name for name in VARIANTS if name != "mixture"]


@pytest.mark.parametrize("variant", SINGLE)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_every_visible_key_is_in_one_region(variant: str, causal: bool) -> None:
    for t in (1, 2, 9, 17, 33, 50):
        for i in range(t):
            direct, far = regions(variant, t, 5, causal, i)
            found = sorted([*direct, *(j for region in far for j in region)])
            assert found == list(range(i + 1 if causal else t))


@pytest.mark.parametrize("sample", SPEC.samples(), ids=lambda sample: sample.id)
def test_golden_is_the_formula(sample: Sample) -> None:
    np.testing.assert_allclose(
        SPEC.golden(sample.arrays, sample.attrs), combiner(sample.arrays, sample.attrs), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), t=st.integers(0, 40), span=st.integers(0, 45), variant=st.sampled_from(VARIANTS),
    pooling=st.sampled_from(["max", "mean"]), region_logit=st.sampled_from(["paper", "counted"]),
    causal=st.integers(0, 1), shown=st.floats(0, 1),
)  # fmt: skip
def test_any_call(seed: int, t: int, shown: float, **attrs: Any) -> None:
    arrays = made(seed, t, h=2, d=3)
    arrays["key_mask"] = np.random.default_rng(seed).random((1, t)) < shown
    np.testing.assert_allclose(SPEC.golden(arrays, attrs), combiner(arrays, attrs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", SINGLE)
@pytest.mark.parametrize("causal", [0, 1], ids=["all", "causal"])
def test_counted_regions_share_evenly_between_equal_keys(variant: str, causal: int) -> None:
    """With queries of zero every visible key counts the same, however it is read."""
    arrays = made(3, 37, h=1, d=4) | {"q": np.zeros((1, 1, 37, 4), np.float32)}
    out = SPEC.golden(arrays, {"variant": variant, "span": 6, "causal": causal, "region_logit": "counted"})
    v = arrays["v"].astype(np.float64)
    mean = v.cumsum(axis=2) / np.arange(1, 38)[:, None] if causal else v.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(out, np.broadcast_to(mean, out.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["fixed", "axial-vertical", "axial-horizontal", "axial-row-major"])
@pytest.mark.parametrize("causal", [0, 1], ids=["all", "causal"])
def test_one_span_is_dense_attention(variant: str, causal: int) -> None:
    arrays = made(4, 19, h=2, d=8)
    out = SPEC.golden(arrays, {"variant": variant, "span": 19, "causal": causal})
    np.testing.assert_allclose(out, dense(arrays, bool(causal)), rtol=1e-6, atol=1e-6)


# METHODS: relative error without training, by correlation of neighbouring tokens: paper, max + log, mean + log
ZERO_SHOT = {0.0: (2.80, 2.11, 0.79), 0.9: (2.00, 0.83, 0.43), 0.99: (0.79, 0.10, 0.03)}
FORMS: Mapping[str, Mapping[str, str]] = {
    "paper": {},
    "max-counted": {"region_logit": "counted"},
    "mean-counted": {"region_logit": "counted", "pooling": "mean"},
}


@pytest.mark.parametrize("correlation", ZERO_SHOT)
@pytest.mark.parametrize("form", FORMS)
def test_error_without_training(correlation: float, form: str) -> None:
    attrs = {"variant": "fixed", "span": 32, **FORMS[form]}
    errors = []
    for seed in range(4):
        arrays = autoregressive(seed, 512, correlation)
        truth = dense(arrays, causal=False)
        errors.append(np.linalg.norm(SPEC.golden(arrays, attrs) - truth) / np.linalg.norm(truth))
    told = ZERO_SHOT[correlation][list(FORMS).index(form)]
    assert np.mean(errors) == pytest.approx(told, rel=0.1, abs=0.015)  # the table has two digits


def test_mixture_is_the_mean_of_its_factorisations() -> None:
    arrays = made(5, 21, h=2, d=4)
    each = [SPEC.golden(arrays, {"variant": name, "span": 4}) for name in MIXTURE]
    np.testing.assert_allclose(SPEC.golden(arrays, {"variant": "mixture", "span": 4}), np.mean(each, axis=0))


@pytest.mark.parametrize(
    ("attrs", "says"),
    [
        ({"variant": "routing"}, "variant is routing"),
        ({"pooling": "sum"}, "pooling is sum"),
        ({"region_logit": "none"}, "region_logit is none"),
        ({"span": -1}, "span is -1"),
        ({"causal": 2}, "causal is 2"),
    ],
)
def test_wrong_attributes_are_refused(attrs: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SPEC.attrs(attrs)


def made(seed: int, t: int, h: int, d: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((1, h, t, d)).astype(np.float32) for name in "qkv"}


def autoregressive(seed: int, t: int, correlation: float) -> dict[str, np.ndarray]:
    """Return q, k, v whose neighbouring tokens are correlated, each of variance 1."""
    arrays = made(seed, t, h=8, d=64)
    for x in arrays.values():
        for i in range(1, t):
            x[:, :, i] = correlation * x[:, :, i - 1] + np.sqrt(1 - correlation**2) * x[:, :, i]
    return arrays


def dense(arrays: Mapping[str, np.ndarray], causal: bool) -> np.ndarray:
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v)
