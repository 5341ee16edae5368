"""The rule ``expand-query``: what it takes keeps its numbers, the rest it declines with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from compare import BACKENDS, session
from exports import SIZES, exported, folder
from families import SWEEP, Case
from spellings import Spelling
from test_families import attempt, inputs, largest
from test_spellings import EXACT_ROWS, check_refused, check_rule, written

import rewriter
from rewriter.errors import GraftError

FORCED = "expand-query:force=yes"
REASONS = (
    "turned by their position",
    "normed after their projection",
    "joined with past ones",
    "cannot be followed to one product of hidden states with constant weights",
    "projections of different tensors",
    "softmax does not cancel it",
    "cannot be brought to [b t m]",
    "probabilities are also read by",
)


@pytest.mark.parametrize("spelling", EXACT_ROWS[::3], ids=lambda spelling: spelling.id)
def test_spelling(spelling: Spelling, tmp_path: Path) -> None:
    check_rule(spelling, FORCED, REASONS, tmp_path)


TAKES = (
    "no-scale", "cross", "value-narrower-cross", "gqa-expand", "gqa-tile", "packed-interleaved", "packed-split-squeeze",
    "packed-gather", "rank-3-folded", "proved-causal-where-lowest", "t5-bias", "alibi",
)  # fmt: skip


@pytest.mark.parametrize("id", TAKES)
def test_takes(id: str, tmp_path: Path) -> None:
    onnx.save(written(id), tmp_path / "original.onnx")
    report = rewriter.apply(tmp_path / "original.onnx", (FORCED,))
    assert report.rewritten == 1
    assert report.verify is not None
    assert report.verify.rewrite.passed


REFUSES = {
    "rotary-halves": "turned by their position",
    "qk-norm-rms": "normed after their projection",
    "past": "joined with past ones",
    "softcap": "softmax does not cancel it",
}


@pytest.mark.parametrize("id", REFUSES)
def test_refuses(id: str, tmp_path: Path) -> None:
    check_refused(id, FORCED, REFUSES[id], tmp_path)


def test_what_would_grow_is_declined_unless_forced(tmp_path: Path) -> None:
    """One key head of 8 channels and one of values: 16 numbers for each token, against hidden states of 20."""
    onnx.save(written("mqa-broadcast"), tmp_path / "original.onnx")
    report = rewriter.apply(tmp_path / "original.onnx", ("expand-query",), verify=False)
    assert report.rewritten == 0
    assert "16 numbers for each token and hidden states are 20" in report.declined[0].reason
    assert rewriter.apply(tmp_path / "original.onnx", (FORCED,)).rewritten == 1


def test_force_is_yes_or_no() -> None:
    with pytest.raises(GraftError, match="option force of rule expand-query must be one of no, yes"):
        rewriter.rules()["expand-query"].bound({"force": "1"})


WHOLE = ("t5", "bart", "whisper")
CASES = [
    next(case for case in SWEEP if case.family.name == name and case.exporter.name == exporter)
    for name in WHOLE
    for exporter in ("torchscript", "dynamo")
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_models(case: Case, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Every attention of an encoder-decoder: six of them, outputs within 1e-5."""
    pytest.importorskip("torch", reason="exporting families needs the extra `torch`")
    pytest.importorskip("transformers", reason="exporting families needs transformers")
    file = exported(case, folder(tmp_path_factory.mktemp("families")))
    assert file.error is None
    report = rewriter.apply(file.path, ("expand-query",), output=tmp_path / "expanded.onnx", verify=False)
    assert report.rewritten == 6, report.declined
    original, ran = session(file.path, library=False), 0
    for library in BACKENDS.values():
        ours = session(tmp_path / "expanded.onnx", library)
        assert [one.name for one in ours.get_inputs()] == [one.name for one in original.get_inputs()]
        for sizes, pad in SIZES:
            given = inputs(original, file.args, sizes, pad)
            truth = attempt(original, given)
            if not isinstance(truth, str):
                ran += 1
                assert largest(truth, ours.run(None, given)) <= 1e-5
    assert ran


def test_torch_modules() -> None:
    """The same rule on an exported program: cross-attention with biases and a mask."""
    torch = pytest.importorskip("torch")

    class Cross(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (torch.nn.Linear(64, 64) for _ in range(4))

        def forward(self, x: Any, memory: Any, mask: Any) -> Any:
            q, k, v = (y.unflatten(-1, (4, 16)).transpose(1, 2) for y in (self.q(x), self.k(memory), self.v(memory)))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return self.o(out.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 64), torch.randn(2, 9, 64), torch.randn(2, 1, 3, 9))
    program = torch.export.export(Cross().eval(), inputs)
    report = rewriter.apply(program, ("expand-query",), inputs=inputs)
    assert report.rewritten == 1
    assert report.verify is not None
    assert report.verify.rewrite.passed
    assert "times the arithmetic" in report.warnings[0].warning
    torch.testing.assert_close(report.result.module()(*inputs), program.module()(*inputs), rtol=1e-5, atol=1e-5)
