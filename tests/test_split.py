"""A split encoder: its three models together give what the one-graph form gives, and share their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare
import numpy as np
import onnx
import pytest
from models import EXPORTS, MODELS, SENTENCE, Export, Model, exported, located, unrounded
from sweep import sampled
from test_encoder import DYNAMO, LEGACY, Exported, encoder, export, saved

import rewriter
from rewriter.errors import GraftError
from runtime_ops import kernels

pytest.importorskip("transformers")

N, SEPARATOR = 6, 90  # no other token of these tests has this id
Feeds = dict[str, np.ndarray]
both = pytest.mark.parametrize("exporter", [LEGACY, DYNAMO], ids=lambda e: e.name)


def run(model: Path, given: Feeds) -> np.ndarray:
    """Return the last output of a model."""
    session = compare.session(model, library=False)
    return np.asarray(session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[-1])


def sides(
    manifest: dict[str, Any], batch: int, length: int, separator: int = SEPARATOR, words: int = 80
) -> tuple[Feeds, Feeds]:
    """Return questions that end in a separator, padded to N, and passages padded to ``length``."""
    rng = np.random.default_rng(length)
    asked, told = rng.integers(3, words, (batch, N)), rng.integers(3, words, (batch, length))  # 0 to 2 are special
    ends = np.array([N, *rng.integers(1, N + 1, batch - 1)])[:, None]
    lengths = np.array([length, *rng.integers(1, length + 1, batch - 1)])[:, None]
    asked[np.arange(N) == ends - 1] = separator
    asked[np.arange(N) >= ends] = manifest["filler"]["input_ids"]
    masks = (np.arange(N) < ends).astype(np.int64), (np.arange(length) < lengths).astype(np.int64)
    first, second = ({"input_ids": x, "attention_mask": m} for x, m in zip((asked, told), masks, strict=True))
    return first, second


def check_parts(folder: Path, parts: tuple[Feeds, Feeds], expected: np.ndarray) -> None:
    """Compare the three models with what one gives; what padding gives is nobody's business."""
    seen = np.concatenate([part["attention_mask"] for part in parts], axis=1).astype(bool)
    got = in_parts(folder, json.loads((folder / "manifest.json").read_text()), parts)
    got, expected = (x[seen] if x.shape[:2] == seen.shape else x for x in (got, expected))
    assert np.abs(got - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def joined(parts: tuple[Feeds, Feeds]) -> Feeds:
    return {kind: np.concatenate([part[kind] for part in parts], axis=1) for kind in parts[0]}


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
@pytest.mark.parametrize("layers", sampled([1, 2], 2))
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
        parts = sides(manifest, batch, length)
        check_parts(folder, parts, np.asarray(session.run(None, joined(parts))[0]))


FIRST = {"roberta": 1, "mpnet": 2}  # the place of a first token, where it is not 0


@both
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "mpnet", "albert"])
def test_split_with_restarted_positions_is_the_one_graph_form(name: str, exporter: Any, tmp_path: Path) -> None:
    """The one graph is exported with its positions as an input, which is given those of each segment.

    Rotary positions (ModernBERT) restart below the cut alone; an input of the one graph would reach the layers above.
    """
    folder, whole = tmp_path / "split", tmp_path / "whole.onnx"
    rewriter.split(export(name, exporter, tmp_path).path, 1, N, folder, positions="restart")
    rule = f"decompose-encoder:layers=1,separator={SEPARATOR}"
    placed = export(name, exporter, tmp_path, inputs="text+places").path
    assert rewriter.apply(placed, [rule], output=whole, verify=False).rewritten == 1
    session = kernels.session(whole)
    for batch, length in ((1, 1), (1, 17), (3, 11), (2, 30)):
        parts = sides(json.loads((folder / "manifest.json").read_text()), batch, length)
        places = np.concatenate([np.arange(N), np.arange(length)]) + FIRST.get(name, 0)
        given = {**joined(parts), "position_ids": np.tile(places, (batch, 1))}
        check_parts(folder, parts, np.asarray(session.run(None, given)[0]))


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


DISENTANGLED = "a part of the scores besides q·kᵀ depends on the tokens"
NO_ENCODER = "no encoder over looked-up tokens"


@both
@pytest.mark.parametrize(
    ("name", "says"), [("deberta", DISENTANGLED), ("deberta-v2", DISENTANGLED), ("gpt2", NO_ENCODER)]
)
def test_what_is_no_encoder_is_not_split(name: str, says: str, exporter: Any, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=says):
        rewriter.split(export(name, exporter, tmp_path).path, 1, N, tmp_path / "split")


SEP, WORDS = 102, 30522  # of BERT's words, which the models below share
READ = {"minilm-int8": (SEP, WORDS), "paraphrase-minilm": (SEP, WORDS), "t5-encoder": (1, 32000)}
NOT_READ = {"deberta-nli": DISENTANGLED}


def check_model(path: Path, layers: int, separator: int, words: int, folder: Path) -> None:
    """Compare a split that keeps positions with the one-graph form, several batches and lengths."""
    rewriter.split(path, layers, N, folder / "split")
    manifest = json.loads((folder / "split" / "manifest.json").read_text())
    assert manifest["ids"] == "input_ids"
    rule = f"decompose-encoder:layers={layers},separator={separator}"
    assert rewriter.apply(path, [rule], output=folder / "whole.onnx", verify=False).rewritten == 1
    session = kernels.session(folder / "whole.onnx")
    for batch, length in ((1, 1), (1, 40), (3, 23)):
        parts = sides(manifest, batch, length, separator, words)
        for n, part in enumerate(parts):
            part.update({name: np.full_like(part["input_ids"], n) for name in manifest["filler"] if name not in part})
        check_parts(folder / "split", parts, np.asarray(session.run(None, joined(parts))[-1]))


@pytest.mark.models
@pytest.mark.parametrize(
    "export", sampled([e for e in EXPORTS if e.weights is SENTENCE], 2), ids=lambda export: export.name
)
def test_a_real_export_is_split(export: Export, tmp_path: Path) -> None:
    check_model(exported(export, tmp_path), 4, SEP, WORDS, tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("model", [m for m in MODELS if m.name in READ], ids=lambda model: model.name)
def test_a_real_model_is_split(model: Model, tmp_path: Path) -> None:
    path = unrounded(model.path(), tmp_path) if model.rounded else model.path()
    check_model(path, 2, *READ[model.name], tmp_path)


@pytest.mark.models
@pytest.mark.parametrize("model", [m for m in MODELS if m.name in NOT_READ], ids=lambda model: model.name)
def test_a_real_model_with_disentangled_attention_is_not_split(model: Model, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=NOT_READ[model.name]):
        rewriter.split(model.path(), 1, N, tmp_path / "split")


@pytest.mark.models
def test_restarted_positions_are_those_of_the_paper(tmp_path: Path) -> None:
    """The paper's algorithm in torch: each segment alone through the lower layers, then both through the upper ones."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rewriter.split(exported(EXPORTS[0], tmp_path), 4, N, tmp_path / "split", positions="restart")
    folder = located(SENTENCE.package, SENTENCE.file).parent
    bert = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    for batch, length in ((1, 1), (3, 23)):
        manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
        parts = sides(manifest, batch, length, SEP, WORDS)
        with torch.no_grad():
            given = [{name: torch.from_numpy(x) for name, x in part.items()} for part in parts]
            masks = [(1.0 - part["attention_mask"][:, None, None, :].float()) * -1e30 for part in given]
            states = [bert.embeddings(input_ids=part["input_ids"]) for part in given]
            for n, layer in enumerate(bert.encoder.layer):
                if n == 4:
                    states, masks = [torch.cat(states, 1)], [torch.cat(masks, 3)]
                states = [layer(x, mask) for x, mask in zip(states, masks, strict=True)]
        check_parts(tmp_path / "split", parts, states[0].numpy())


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
