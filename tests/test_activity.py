"""``show`` with inputs: how many neurons are at work, against counts made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from blocks import BLOCKS, INNER, MODEL, Block, close, first
from compare import distance, session
from sketch import Sketch, feeds

import rewriter
from rewriter import render
from rewriter.console import run
from rewriter.errors import GraftError
from rewriter.report import Activity
from rewriter.tables import UNBOUNDED, Page

DIMS = {"b": 2, "s": 7, "t": 9, "u": 3, "c": 8}
RELU = Block(write=lambda f: close(f, f.Relu(first(f))))


def written(block: Block, folder: Path) -> tuple[Path, Path, Mapping[str, np.ndarray]]:
    """Write a model and inputs for it; return both files and the inputs."""
    f = Sketch("activity", m=MODEL, opset=block.opset, dtype=block.dtype)
    block.write(f)
    onnx.save(f.model(), folder / "model.onnx")
    given = feeds(f.inputs, np.random.default_rng(0), DIMS)
    np.savez(folder / "batch.npz", **given)
    return folder / "model.onnx", folder / "batch.npz", given


def relu_by_hand(model: Path, x: np.ndarray) -> np.ndarray:
    """Return the inner values [n f] of the block RELU."""
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer}
    return np.maximum(x.reshape(-1, MODEL) @ weights["in.w"] + weights["in.b"], 0)


def check_counts(activity: Activity, inner: np.ndarray) -> None:
    """Compare with counts token by token."""
    assert activity.tokens == len(inner)
    assert activity.positive == pytest.approx((inner > 0).mean())
    assert (activity.nonzero.median, activity.nonzero.most) == counts([int((row != 0).sum()) for row in inner])
    for share, told in activity.largest.items():
        assert (told.median, told.most) == counts([holding(row, share) for row in inner])


def counts(several: list[int]) -> tuple[int, int]:
    return int(np.median(several)), max(several)


def holding(row: np.ndarray, share: float) -> int:
    """The fewest neurons that hold a share of the sum of squares."""
    squares = sorted((float(x) ** 2 for x in row), reverse=True)
    return next(k for k in range(len(squares) + 1) if sum(squares[:k]) >= share * sum(squares) * (1 - 1e-12))


def measured(model: object, inputs: object) -> Activity:
    [row] = [row for row in rewriter.show(model, inputs).sites if row.kind == "feed-forward"]
    assert row.activity is not None
    return row.activity


def test_counts(tmp_path: Path) -> None:
    model, batch, given = written(RELU, tmp_path)
    check_counts(measured(model, batch), relu_by_hand(model, given["x"]))


def test_a_k_of_the_most_not_zero_changes_nothing(tmp_path: Path) -> None:
    model, batch, given = written(RELU, tmp_path)
    most = measured(model, batch).nonzero.most
    assert 0 < most < INNER
    wanted = session(model, library=False).run(None, given)[0]
    errors = []
    for k in (most, most - 1):
        rewriter.apply(model, (f"topk-feed-forward:k={k},select_by=contribution",), tmp_path / "out.onnx", verify=False)
        errors.append(distance(session(tmp_path / "out.onnx", library=True).run(None, given)[0], wanted))
    assert errors[0] <= 1e-6 < errors[1]


@pytest.mark.parametrize("name", BLOCKS)
def test_every_spelling(name: str, tmp_path: Path) -> None:
    """Tokens and neurons are told apart whatever the layout: GELU and SiLU leave no neuron at zero."""
    model, batch, given = written(BLOCKS[name], tmp_path)
    activity = measured(model, batch)
    m, f = BLOCKS[name].widths
    assert activity.tokens == sum(x.size for x in given.values()) // m
    assert (activity.positive is None) == BLOCKS[name].gated
    assert activity.positive is None or 0 < activity.positive < 1
    assert activity.nonzero.most <= f
    if BLOCKS[name].activation in ("gelu", "gelu_tanh", "silu") and BLOCKS[name].dtype == "float32":
        assert activity.nonzero.median > 0.9 * f


def test_in_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the fx host needs the extra `torch`")
    block = torch.nn.Sequential(torch.nn.Linear(MODEL, INNER), torch.nn.ReLU(), torch.nn.Linear(INNER, MODEL))
    x = torch.randn(3, 5, MODEL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = block[:2](x).flatten(0, 1).numpy()
    for graph in (torch.fx.symbolic_trace(block), torch.export.export(block, (x,))):
        check_counts(measured(graph, (x,)), inner)


def test_tokens_without_neurons_or_numbers(tmp_path: Path) -> None:
    """A token whose neurons are all zero needs none of them; one that is not a number is left out."""

    def shifted(f: Sketch) -> None:
        close(f, f.Relu(f.x @ f.weight("in.w", MODEL, INNER)))

    model, batch, given = written(Block(write=shifted), tmp_path)
    x = given["x"].copy()
    x[:] = 0
    x[0, 0] = np.nan
    np.savez(batch, **{**given, "x": x})
    activity = measured(model, batch)
    assert activity.tokens == DIMS["b"] * DIMS["s"] - 1
    assert [activity.nonzero.most, *(count.most for count in activity.largest.values())] == [0, 0, 0]
    np.savez(batch, **{**given, "x": np.full_like(x, np.nan)})
    assert [row.activity for row in rewriter.show(model, batch).sites] == [None]


def test_without_inputs_nothing_is_measured(tmp_path: Path) -> None:
    model, _, _ = written(RELU, tmp_path)
    report = rewriter.show(model)
    assert [row.activity for row in report.sites] == [None]
    assert "neurons at work" not in render.text(report)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rewriter.cli import app

    model, batch, _ = written(RELU, tmp_path)
    activity = measured(model, batch)
    assert run(app, ["show", str(model), "--inputs", str(batch), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"][0]["activity"] == activity.to_dict()
    assert activity.positive is not None
    page = render.text(rewriter.show(model, batch), Page(width=UNBOUNDED, color=False))
    assert f"{activity.nonzero.median}/{activity.nonzero.most}" in page
    assert f"{100 * activity.positive:.1f} %" in page


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    model, batch, _ = written(RELU, tmp_path)
    np.savez(batch, y=np.zeros(3, np.float32))
    with pytest.raises(GraftError, match="has no array 'x' but y"):
        rewriter.show(model, batch)
