"""Combiner attention: which region every key is in, the paper's formulas, and what it costs on trained-like data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_combiner import combiner, regions
from test_ops import isas, needs_library

from runtime_ops import kernels
from runtime_ops.ops.combiner_attention import COMBINER_ATTENTION as SPEC
from runtime_ops.ops.combiner_attention import MIXTURE, VARIANTS
from runtime_ops.ops.topk_attention import NO_KEY

SINGLE = [name for name in VARIANTS if name != "mixture"]


@pytest.mark.parametrize("variant", SINGLE)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_every_visible_key_is_in_one_region(variant: str, causal: bool) -> None:
    for t in (1, 2, 9, 17, 33, 50):
        for i in range(t):
            direct, far = regions(variant, t, 5, causal, i)
            found = sorted([*direct, *(j for region in far for j in region)])
            assert found == list(range(i + 1 if causal else t))


any_call = given(
    seed=st.integers(0, 1 << 30), t=st.integers(0, 40), span=st.one_of(st.integers(0, 45), st.just(1 << 30)),
    variant=st.sampled_from(VARIANTS), pooling=st.sampled_from(["max", "mean"]), causal=st.integers(0, 1),
    region_logit=st.sampled_from(["paper", "counted"]), shown=st.floats(0, 1), no_key=st.sampled_from(NO_KEY),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@any_call
def test_any_call(seed: int, t: int, shown: float, **attrs: Any) -> None:
    arrays = made(seed, t, h=2, d=3)
    arrays["key_mask"] = np.random.default_rng(seed).random((1, t)) < shown
    np.testing.assert_allclose(SPEC.golden(arrays, attrs), combiner(arrays, attrs), rtol=1e-6, atol=1e-6)


@needs_library
@settings(max_examples=150, deadline=None)
@any_call
@pytest.mark.parametrize("isa", isas() or ["scalar"])
def test_any_call_in_kernels(isa: str, seed: int, t: int, shown: float, **attrs: Any) -> None:
    arrays = made(seed, t, h=2, d=17)
    arrays["key_mask"] = np.random.default_rng(seed).random((1, t)) < shown
    expected = combiner(arrays, attrs)
    error = float(np.abs(combiner(arrays, attrs, np.float32) - expected).max(initial=0.0))
    out = kernels.run_combiner_attention(**arrays, **attrs, isa=isa, threads=1 + seed % 2)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2 * error + 1e-5)


@needs_library
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [0, 1], ids=["all", "causal"])
def test_long_lines_in_kernels(variant: str, causal: int) -> None:
    """Lines of more queries than a panel has and more keys than a tile, and heads that share keys."""
    arrays = {"q": made(7, 420, h=2, d=70)["q"], **{name: made(8, 420, h=1, d=70)[name] for name in "kv"}}
    arrays["key_mask"] = np.random.default_rng(9).random((1, 420)) < 0.9
    attrs = {"variant": variant, "span": 200, "causal": causal, "region_logit": "counted", "pooling": "mean"}
    expected = SPEC.golden(arrays, attrs)
    for isa in isas():
        out = kernels.run_combiner_attention(**arrays, **attrs, isa=isa)
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


@needs_library
@pytest.mark.parametrize("isa", isas() or ["scalar"])
@pytest.mark.parametrize("causal", [0, 1], ids=["all", "causal"])
def test_many_levels_in_kernels(isa: str, causal: int) -> None:
    """More levels of blocks than a panel of any instruction set is wide, and ends on which no block ends."""
    arrays = made(10, 9001, h=1, d=5)
    arrays["key_mask"] = np.random.default_rng(11).random((1, 9001)) < 0.9
    attrs = {"variant": "logsparse", "causal": causal, "region_logit": "counted", "pooling": "mean"}
    out = kernels.run_combiner_attention(**arrays, **attrs, isa=isa)
    np.testing.assert_allclose(out, SPEC.golden(arrays, attrs), rtol=0, atol=2e-5)


@needs_library
def test_hidden_keys_may_be_anything() -> None:
    for variant in [name for name in VARIANTS if name != "axial-row-major"]:  # its keys are also what is averaged
        arrays = made(6, 23, h=1, d=8) | {"key_mask": np.arange(23)[None] < 17}
        attrs = {"variant": variant, "span": 4}
        expected = kernels.run_combiner_attention(**arrays, **attrs)
        arrays["k"][:, :, 17:] = np.inf
        np.testing.assert_array_equal(kernels.run_combiner_attention(**arrays, **attrs), expected)


@needs_library
@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_change_nothing(variant: str) -> None:
    arrays = made(5, 61, h=5, d=16)
    one, three = (kernels.run_combiner_attention(**arrays, variant=variant, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


Q = np.zeros((2, 4, 7, 8), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"q": Q[0]}, "ranks 3, 4 and 4; allowed is 4"),
    "length": ({"k": Q[:, :, :5]}, r"k got shape \[2 4 5 8\], allowed \[b g t d\] = \[2 4 7 8\]"),
    "width": ({"k": Q[..., :5]}, r"k got shape \[2 4 7 5\]"),
    "batch": ({"v": np.zeros((3, 4, 7, 8), np.float32)}, r"v got shape \[3 4 7 8\]"),
    "heads": ({"k": Q[:, :3], "v": Q[:, :3]}, "heads got 4 and 3, allowed h a multiple of g"),
    "type": ({"v": Q.astype(np.float16)}, "v got element type 10, allowed the type of q, 1"),
    "mask-type": ({"key_mask": np.zeros((2, 7), np.float32)}, "key_mask got element type 1, allowed 9"),
    "mask-shape": ({"key_mask": np.zeros((2, 6), bool)}, r"key_mask got shape \[2 6\], allowed \[b t\] = \[2 7\]"),
    "variant": ({"variant": "routing"}, "variant got routing, allowed fixed, axial-vertical"),
    "pooling": ({"pooling": "sum"}, "pooling got sum, allowed max, mean"),
    "region_logit": ({"region_logit": ""}, "region_logit got , allowed paper, counted"),
    "span": ({"span": -1}, "span got -1, allowed 0"),
    "causal": ({"causal": 2}, "causal got 2, allowed 0 or 1"),
    "scale": ({"scale": float("nan")}, "scale got nan, allowed a finite number"),
    "isa": ({"isa": "mmx"}, "isa got mmx, allowed scalar, avx2"),
}


@needs_library
@pytest.mark.parametrize("name", REFUSED)
def test_kernels_say_what_is_allowed(name: str) -> None:
    wrong, sentence = REFUSED[name]
    with pytest.raises(kernels.LibraryError, match=sentence):
        kernels.run_combiner_attention(**({"q": Q, "k": Q, "v": Q} | wrong))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str) -> None:
    torch = pytest.importorskip("torch")
    from runtime_ops import torch_ops

    inputs = [torch.from_numpy(made(2, 7, h=1, d=3)[name]).double().requires_grad_() for name in "qkv"]
    run = torch_ops.op(SPEC)
    assert torch.autograd.gradcheck(lambda *x: run(*x, variant=variant, span=3, pooling="mean"), inputs)


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


# METHODS: relative error without training, by correlation of neighbouring tokens: paper, max + log, mean + log,
# and the own span alone
ZERO_SHOT = {0.0: (2.80, 2.11, 0.79, 3.63), 0.9: (2.00, 0.83, 0.43, 2.86), 0.99: (0.79, 0.10, 0.03, 1.28)}
FORMS: Mapping[str, Mapping[str, str]] = {
    "paper": {},
    "max-counted": {"region_logit": "counted"},
    "mean-counted": {"region_logit": "counted", "pooling": "mean"},
}


@pytest.mark.parametrize("correlation", ZERO_SHOT)
def test_error_without_training(correlation: float) -> None:
    found = zero_shot_errors(correlation)
    told = dict(zip((*FORMS, "own span"), ZERO_SHOT[correlation], strict=True))
    assert found == pytest.approx(told, rel=0.1, abs=0.015)  # the table has two digits


def zero_shot_errors(correlation: float) -> dict[str, float]:
    """The mean relative error by form, on sequences of which four are drawn."""
    errors: dict[str, list[float]] = {name: [] for name in (*FORMS, "own span")}
    for seed in range(4):
        arrays = autoregressive(seed, 512, correlation)
        truth = dense(arrays, causal=False)
        made = {name: SPEC.golden(arrays, {"variant": "fixed", "span": 32, **form}) for name, form in FORMS.items()}
        made["own span"] = own_span(arrays, 32)
        for name, values in made.items():
            errors[name].append(float(np.linalg.norm(values - truth) / np.linalg.norm(truth)))
    return {name: float(np.mean(some)) for name, some in errors.items()}


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


def own_span(arrays: Mapping[str, np.ndarray], span: int) -> np.ndarray:
    """Every query attends to its own span alone."""
    b, h, t, _ = arrays["v"].shape
    cut = {name: x.reshape(b, h, t // span, span, -1) for name, x in arrays.items()}
    return dense(cut, causal=False).reshape(b, h, t, -1)


def dense(arrays: Mapping[str, np.ndarray], causal: bool) -> np.ndarray:
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v)
