"""The rule ``combiner-attention``: what it takes stays right where one span holds all keys, the rest it declines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from spellings import Spelling
from test_spellings import EXACT_ROWS, check_refused, check_rule, written

import rewriter
from rewriter.errors import GraftError
from rewriter.render import text

EXACT = "combiner-attention:variant=fixed,span=1073741824"
REASONS = (
    "not proved to be one sequence",
    "scores are capped at",
    "causal mask is moved by",
    "not proved to hide every key alike",
    "window, which cuts through regions",
    "a region has one logit for many keys",
    "probabilities are also read by",
)


@pytest.mark.parametrize("spelling", EXACT_ROWS[::3], ids=lambda spelling: spelling.id)
def test_spelling(spelling: Spelling, tmp_path: Path) -> None:
    check_rule(spelling, EXACT, REASONS, tmp_path)


TAKES = ("no-scale", "proved-causal-where-lowest", "proved-keys-where-inf", "rotary-halves", "gqa-rank-5",
         "proved-keys-where-lowest")  # fmt: skip


@pytest.mark.parametrize("variant", ["logsparse", "mixture"])
@pytest.mark.parametrize("id", TAKES)
def test_takes(id: str, variant: str, tmp_path: Path) -> None:
    onnx.save(written(id), tmp_path / "original.onnx")
    report = rewriter.apply(tmp_path / "original.onnx", (f"combiner-attention:variant={variant}",), verify=True)
    assert report.rewritten == 1
    assert report.verify is not None
    assert report.verify.rewrite.passed  # at the limit, where it is exact
    assert report.verify.approximation is not None


@pytest.mark.parametrize("id", TAKES)
def test_rotary_keys_are_taken_with_a_warning(id: str, tmp_path: Path) -> None:
    onnx.save(written(id), tmp_path / "original.onnx")
    rotary = id == "rotary-halves"
    report = rewriter.apply(tmp_path / "original.onnx", ("combiner-attention", "exact-attention"), dry_run=True)
    assert [(row.sites, row.rule) for row in report.warnings] == [(["attention.0"], "combiner-attention")] * rotary
    assert ("\nwarnings:\n  attention.0: combiner-attention: its keys carry rotary" in text(report)) == rotary
    assert ("applies; its keys carry rotary" in text(rewriter.why(tmp_path / "original.onnx"))) == rotary
    exact = rewriter.apply(tmp_path / "original.onnx", ("exact-attention",), dry_run=True)
    assert exact.warnings == []


def test_a_causal_mask_of_fixed_length_is_taken() -> None:
    torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")

    class Causal(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    inputs = tuple(torch.randn(2, 3, 40, 8) for _ in range(3))  # 40 · 40: too many for a mask that is known
    for graph in (torch.fx.symbolic_trace(Causal()), torch.export.export(Causal(), inputs)):
        report = rewriter.apply(graph, [EXACT], inputs=inputs)
        assert report.rewritten == 1, report.declined
        assert "causal=1" in report.plan[0]


REFUSES = {
    "cross": "its s queries and t keys are not proved to be one sequence",
    "past": "not proved to be one sequence",
    "learned-query": "its 5 queries and s keys",
    "softcap": "scores are capped at 5",
    "proved-triu-2": "causal mask is moved by 2",
    "proved-two-fills": "not proved to hide every key alike",
    "proved-one-minus-1e4": "not proved to hide every key alike",
    "proved-window-where-inf": "window, which cuts through regions",
    "t5-bias": "a region has one logit for many keys",
    "alibi": "a region has one logit for many keys",
}


@pytest.mark.parametrize("id", REFUSES)
def test_refuses(id: str, tmp_path: Path) -> None:
    check_refused(id, EXACT, REFUSES[id], tmp_path)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(GraftError, match=r"option variant of rule combiner-attention must be one of fixed, .*routing"):
        rewriter.rules()["combiner-attention"].bound({"variant": "routing"})
