"""The rule ``combiner-attention``: what it takes stays right where one span holds all keys, the rest it declines."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from spellings import SPELLINGS, Spelling
from test_spellings import check_numbers

import rewriter
from rewriter.errors import GraftError

EXACT = "combiner-attention:variant=fixed,span=1073741824"
DECLINES = (
    "not proved to be one sequence",
    "which hidden keys cannot",
    "a region has one logit for many keys",
    "scores are capped at",
    "window, which cuts through regions",
    "probabilities are also read",
    "causal mask is moved by",
)
ROWS = [row for row in SPELLINGS if row.runs and row.proves and not row.declines and not row.may_decline and row.sites]


@pytest.mark.parametrize("spelling", ROWS[::3], ids=lambda spelling: spelling.id)
def test_spelling(spelling: Spelling, tmp_path: Path) -> None:
    original, combined = tmp_path / "original.onnx", tmp_path / "combined.onnx"
    onnx.save(spelling.build(), original)
    report = rewriter.apply(original, (EXACT,), output=combined)
    if report.rewritten:
        check_numbers(spelling, original, [combined])
        return
    said = [row.reason for row in report.declined]
    assert said
    assert all(any(re.search(reason, one) for reason in DECLINES) for one in said), said


@pytest.mark.parametrize(
    ("id", "takes"),
    [
        ("no-scale", ""),
        ("proved-triu", ""),
        ("softcap", "capped"),
    ],
)
def test_takes(id: str, takes: str, tmp_path: Path) -> None:
    spelling = next(row for row in SPELLINGS if row.id == id)
    onnx.save(spelling.build(), tmp_path / "original.onnx")
    report = rewriter.apply(tmp_path / "original.onnx", ("combiner-attention:variant=logsparse",), verify=True)
    assert report.rewritten == (0 if takes else 1)
    assert all(takes in row.reason for row in report.declined)
    if not takes:
        assert report.verify is not None
        assert report.verify.rewrite.passed  # at the limit, where it is exact


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(GraftError, match=r"option variant of rule combiner-attention must be one of fixed, .*routing"):
        rewriter.rules()["combiner-attention"].bound({"variant": "routing"})
