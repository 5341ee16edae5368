"""A split encoder: its three models together give what the one-graph form gives, and share their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_encoder import DYNAMO, LEGACY, Exported, encoder, export, saved

import rewriter
from rewriter.errors import GraftError
from runtime_ops import kernels

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

N, SEPARATOR = 6, 90  # no other token of these tests has this id
Feeds = dict[str, np.ndarray]
both = pytest.mark.parametrize("exporter", [LEGACY, DYNAMO], ids=lambda e: e.name)


def run(model: Path, given: Feeds) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[0])


def sides(manifest: dict[str, Any], batch: int, length: int) -> tuple[Feeds, Feeds]:
    """Return questions that end in a separator, padded to N, and passages padded to ``length``."""
    rng = np.random.default_rng(length)
    asked, told = rng.integers(1, 80, (batch, N)), rng.integers(1, 80, (batch, length))
    ends = np.array([N, *rng.integers(1, N + 1, batch - 1)])[:, None]
    lengths = np.array([length, *rng.integers(1, length + 1, batch - 1)])[:, None]
    asked[np.arange(N) == ends - 1] = SEPARATOR
    asked[np.arange(N) >= ends] = manifest["filler"]["input_ids"]
    masks = (np.arange(N) < ends).astype(np.int64), (np.arange(length) < lengths).astype(np.int64)
    return ({"input_ids": x, "attention_mask": m} for x, m in zip((asked, told), masks, strict=True))  # type: ignore


def in_parts(folder: Path, manifest: dict[str, Any], parts: tuple[Feeds, Feeds]) -> np.ndarray:
    joint: Feeds = {}
    for name, given in zip(("question", "passage"), parts, strict=True):
        place = ("question", "passage").index(name)
        joint[manifest["joint"]["hidden"][place]] = run(folder / f"{name}.onnx", given)
        for kind, values in given.items():
            if kind in manifest["joint"]:
                joint[manifest["joint"][kind][place]] = values
    return run(folder / "joint.onnx", joint)


@both
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "mpnet", "albert", "modernbert"])
def test_split_is_the_one_graph_form(name: str, layers: int, exporter: Any, tmp_path: Path) -> None:
    done: Exported = export(name, exporter, tmp_path)
    folder, whole = tmp_path / "split", tmp_path / "whole.onnx"
    rewriter.split(done.path, layers, N, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    rule = f"decompose-encoder:layers={layers},separator={SEPARATOR}"
    assert rewriter.apply(done.path, [rule], output=whole, verify=False).rewritten == 1
    session = kernels.session(whole)
    for batch, length in ((1, 1), (1, 17), (3, 11), (2, 30)):
        parts = tuple(sides(manifest, batch, length))
        given = {kind: np.concatenate([part[kind] for part in parts], axis=1) for kind in parts[0]}
        expected = np.asarray(session.run(None, given)[0])
        seen = given["attention_mask"].astype(bool)
        got = in_parts(folder, manifest, parts)  # type: ignore[arg-type]
        assert np.abs(got - expected)[seen].max() <= 1e-5 * max(1.0, np.abs(expected)[seen].max())


@both
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
def test_restarted_passages_are_encoded_as_questions(name: str, exporter: Any, tmp_path: Path) -> None:
    kept, fresh = tmp_path / "keep", tmp_path / "restart"
    done: Exported = export(name, exporter, tmp_path)
    rewriter.split(done.path, 1, N, kept)
    rewriter.split(done.path, 1, N, fresh, positions="restart")
    passage = list(sides(json.loads((fresh / "manifest.json").read_text()), 3, 13))[1]
    seen = passage["attention_mask"].astype(bool)
    asked = run(fresh / "question.onnx", passage)[seen]
    np.testing.assert_array_equal(run(fresh / "passage.onnx", passage)[seen], asked)
    assert np.abs(run(kept / "passage.onnx", passage)[seen] - asked).max() > 0.01  # there positions go on


def test_token_types_are_fed_to_each_part(tmp_path: Path) -> None:
    """And to the joint model only what it reads: nothing but the hidden states."""
    model, folder, whole = saved(encoder(), tmp_path / "m.onnx"), tmp_path / "split", tmp_path / "whole.onnx"
    rewriter.split(model, 2, N, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"] == {part: ["input_ids", "token_type_ids"] for part in ("question", "passage")}
    assert manifest["joint"] == {"hidden": ["question_hidden", "passage_hidden"]}
    rewriter.apply(model, ["decompose-encoder:layers=2"], output=whole, verify=False)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, (2, n)) for n in (N, 9)]
    parts = tuple({"input_ids": x, "token_type_ids": np.full(x.shape, n)} for n, x in enumerate(ids))
    given = {kind: np.concatenate([part[kind] for part in parts], axis=1) for kind in parts[0]}
    expected = np.asarray(kernels.session(whole).run(None, given)[0])
    np.testing.assert_allclose(in_parts(folder, manifest, parts), expected, rtol=1e-5, atol=1e-5)  # type: ignore


@both
def test_weights_are_written_once(exporter: Any, tmp_path: Path) -> None:
    folder = tmp_path / "split"
    report = rewriter.split(export("bert", exporter, tmp_path).path, 1, N, folder)
    spans: dict[str, set[tuple[int, int]]] = {}
    for part in ("question", "passage", "joint"):
        for tensor in onnx.load(folder / f"{part}.onnx", load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if not entries:
                assert len(tensor.raw_data) < 1024
                continue
            assert entries["location"] == "weights.data"
            spans.setdefault(tensor.name, set()).add((int(entries["offset"]), int(entries["length"])))
    assert all(len(places) == 1 for places in spans.values())  # of one name: one place
    held = sum(length for places in spans.values() for _, length in places)
    assert held <= report.files["weights.data"] < held + 64 * len(spans)
    assert sorted(report.files) == ["joint.onnx", "manifest.json", "passage.onnx", "question.onnx", "weights.data"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 4}, "can be split after layer 1 to 3, not after 4"),
        ({"layers": 0}, "can be split after layer 1 to 3, not after 0"),
        ({"question_length": 0}, "the question's length must be at least 1, got 0"),
        ({"positions": "else"}, "positions are keep or restart, not 'else'"),
        ({"output": "full"}, "is a folder that is not empty"),
        ({"output": "none/there"}, "does not exist"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    model = saved(encoder(), tmp_path / "m.onnx")
    before = sorted(tmp_path.iterdir())
    given = {"layers": 1, "question_length": N, **options}
    with pytest.raises(GraftError, match=says):
        rewriter.split(model, **{**given, "output": tmp_path / given.get("output", "split")})
    assert sorted(tmp_path.iterdir()) == before  # nothing is left behind


@pytest.mark.parametrize(
    ("name", "says"), [("deberta", "besides q·kᵀ depends on the tokens"), ("gpt2", "no encoder over looked-up tokens")]
)
def test_what_is_no_encoder_is_not_split(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=says):
        rewriter.split(export(name, DYNAMO, tmp_path).path, 1, N, tmp_path / "split")


def test_a_fixed_length_is_not_split(tmp_path: Path) -> None:
    sketch = encoder().model()
    for value in (*sketch.graph.input, *sketch.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 24
    onnx.save(sketch, tmp_path / "m.onnx")
    with pytest.raises(GraftError, match="sequence length is fixed at 24"):
        rewriter.split(tmp_path / "m.onnx", 1, N, tmp_path / "split")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # the runners of parallel tests set it, and lines fold there
    from rewriter import console
    from rewriter.cli import app

    model = saved(encoder(), tmp_path / "m.onnx")
    words = ["split", str(model), "--layers", "2", "--question-length", "4", "-o", str(tmp_path / "split")]
    assert console.run(app, [*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 2
    assert console.run(app, words) == 2  # the folder is not empty now
    assert capsys.readouterr().err.count("\n") == 1
    assert console.run(app, [*words[:-1], str(tmp_path / "other")]) == 0
    assert "weights.data" in capsys.readouterr().out
