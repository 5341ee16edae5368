"""Rewrites that are wrong on purpose: a site's own check rolls it back, the end-to-end check lets nothing out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from sketch import Sketch

import rewriter
from rewriter import site_check
from rewriter.errors import FAILED, VerificationError
from rewriter.plan import Rule


def wrong(rule: Rule) -> Rule:
    """Return a rule that makes every site twice as steep."""

    def plan(site: Any, given: Any) -> Any:
        return rule.plan(dataclasses.replace(site, scale=2 * site.scale), given)

    return dataclasses.replace(rule, name="wrong", plan=plan)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    f = Sketch("proof")
    f.attend(scores=lambda s: s * 0.3)
    onnx.save(f.model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_wrong_site_is_rolled_back(model: Path) -> None:
    rule = wrong(rewriter.rules()["exact-attention"])
    report = rewriter.apply(model, [rule], output=model.with_name("out.onnx"))
    assert report.rewritten == 0
    [refusal] = report.declined
    assert "differs from the original" in refusal.reason
    assert rewriter.verify(model, model.with_name("out.onnx")).passed


def test_the_next_rule_takes_over_a_site_that_was_rolled_back(model: Path) -> None:
    rules = rewriter.rules()
    report = rewriter.apply(model, [wrong(rules["exact-attention"]), "exact-attention"], output=None)
    assert report.rewritten == 1
    assert report.verify is not None
    assert list(report.verify.rolled_back) == ["attention.0"]


def test_a_wrong_model_is_not_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model.with_name("out.onnx")
    out.write_bytes(b"what was there before")
    monkeypatch.setattr(site_check, "failure", lambda error: None)
    with pytest.raises(VerificationError, match="differs from the original") as raised:
        rewriter.apply(model, [wrong(rewriter.rules()["exact-attention"])], output=out)
    assert raised.value.exit_code == FAILED
    assert out.read_bytes() == b"what was there before"
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.onnx", "out.onnx"]


def test_an_output_whose_length_depends_on_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    f = Sketch("proof")
    context = f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1) @ f.v
    f.output(f.NonZero(f.Greater(context, 0.02)).to("float32"), "4 n")
    f.close(context)
    onnx.save(f.model(), tmp_path / "model.onnx")
    monkeypatch.setattr(site_check, "failure", lambda error: None)
    with pytest.raises(VerificationError, match="differs from the original in its shape"):
        rewriter.apply(tmp_path / "model.onnx", [wrong(rewriter.rules()["exact-attention"])], dims={"b": 3, "s": 19})


def test_two_errors_are_told_apart(model: Path) -> None:
    report = rewriter.apply(model, ["topk-attention:k=2"], dims={"s": 9})
    assert report.verify is not None
    assert report.verify.approximation is not None
    [site] = report.verify.sites
    assert site.rewrite < 1e-6
    assert site.approximation is not None
    assert site.approximation > 1e-3
    assert max(o.rel_l2 for o in report.verify.rewrite.outputs) < 1e-6
    assert max(o.rel_l2 for o in report.verify.approximation.outputs) > 1e-3


def test_a_model_in_memory_is_left_as_it_is(model: Path) -> None:
    loaded = ir.load(model)
    before = [node.op_type for node in loaded.graph]
    report = rewriter.apply(loaded)
    assert [node.op_type for node in loaded.graph] == before
    assert isinstance(report.result, ir.Model)
    assert "TopKAttention" in [node.op_type for node in report.result.graph]


def test_a_rewritten_model_is_rewritten_again(model: Path) -> None:
    """A second pass finds nothing left, and the first pass's function body survives it."""
    once, twice = (model.with_name(n) for n in ("once.onnx", "twice.onnx"))
    rewriter.apply(model, output=once)
    report = rewriter.apply(once, ["topk-attention:k=3"], output=twice)
    assert report.rewritten == 0
    outputs = rewriter.verify(model, twice).outputs
    assert all(o.rel_l2 < 1e-5 and np.isfinite(o.max_abs) for o in outputs)
