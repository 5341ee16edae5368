"""The rule `topk-attention` with a remainder, on models: what it writes, where queries stand, and with no library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import compare
import numpy as np
import onnx
import pytest
from sketch import Sketch
from spellings.fused_cache import after_past, twin

import rewriter
from runtime_ops import kernels

PAST = {"b": 2, "s": 9, "p": 150}
MODELS: dict[str, tuple[Callable[[Sketch], None], dict[str, int]]] = {
    "plain": (lambda f: f.attend(scores=lambda s: s * 0.3), {"b": 2, "s": 150}),
    "cache": (twin(), PAST),
    "cache, causal": (twin(after_past), PAST),
}


def written(name: str, folder: Path) -> Path:
    f = Sketch(name)
    MODELS[name][0](f)
    onnx.save(f.model(), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("remainder", ["none", "mean", "blocks"])
@pytest.mark.parametrize("name", MODELS)
def test_the_rule_on_models(name: str, remainder: str, tmp_path: Path) -> None:
    model, sizes = written(name, tmp_path), MODELS[name][1]
    rule = f"topk-attention:k=5,remainder={remainder}"
    report = rewriter.apply(model, [rule], output=tmp_path / "o.onnx", dims=sizes)
    assert report.verify is not None
    [site] = report.verify.sites
    assert site.rewrite < 1e-6
    assert site.kernel is None or site.kernel < 1e-6
    [node] = [n for n in onnx.load(tmp_path / "o.onnx").graph.node if n.op_type == "TopKAttention"]
    assert {a.name: a.s for a in node.attribute}["remainder"] == remainder.encode()
    assert ("past_length=" in report.plan[0]) == (name == "cache, causal" or (name, remainder) == ("cache", "blocks"))


@pytest.mark.skipif(kernels.library_path() is None, reason="the kernel library is not built")
@pytest.mark.parametrize("remainder", ["mean", "blocks"])
@pytest.mark.parametrize("name", MODELS)
def test_the_function_body_does_the_same(name: str, remainder: str, tmp_path: Path) -> None:
    model, sizes = written(name, tmp_path), MODELS[name][1]
    out = tmp_path / "out.onnx"
    rewriter.apply(model, [f"topk-attention:k=5,remainder={remainder}"], output=out, verify=False)
    plain = compare.session(out, library=False)
    rng = np.random.default_rng(0)
    shapes = {i.name: [sizes.get(n, n) for n in i.shape] for i in plain.get_inputs()}
    feeds = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    for found, expected in zip(kernels.session(out).run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cross_attention_has_no_block_of_its_own(tmp_path: Path) -> None:
    f = Sketch("cross", cross=True)
    f.attend(scores=lambda s: s * 0.3)
    onnx.save(f.model(), tmp_path / "model.onnx")
    for remainder, warned in (("mean", 0), ("blocks", 1)):
        rule = f"topk-attention:k=5,remainder={remainder}"
        report = rewriter.apply(tmp_path / "model.onnx", [rule], output=tmp_path / "out.onnx", verify=False)
        assert len(report.warnings) == warned
        assert all("no block of keys is a query's own" in caution.warning for caution in report.warnings)
