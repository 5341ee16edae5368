"""The pipeline over a split encoder: right answers from the store, whatever its inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sketch import Sketch, Value
from test_encoder import DYNAMO, LEGACY, encoder, export, saved

import rewriter
from rewriter import console
from rewriter.cli import app
from rewriter.decomposed import Pipeline
from rewriter.errors import GraftError
from runtime_ops import kernels

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")
pytest.importorskip("lmdb")

N = 6
QUESTION = [7, 9, 11, 90]


def passages(count: int, longest: int = 20) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [[int(x) for x in rng.integers(1, 80, rng.integers(1, longest + 1))] for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("decomposed")
    rewriter.split(export("bert", DYNAMO, where).path, 1, N, where / "split")
    return where / "split"


def one_graph(path: Path, question: list[int], passage: list[int], filler: int) -> np.ndarray:
    """Return what the one-graph form gives for the question's and the passage's own tokens."""
    pad = N - len(question)
    ids = np.array([[*question, *[filler] * pad, *passage]])
    mask = np.array([[1] * len(question) + [0] * pad + [1] * len(passage)])
    return np.asarray(kernels.session(path).run(None, {"input_ids": ids, "attention_mask": mask})[0])[0]


@pytest.mark.parametrize(("kind", "error"), [("float16", 2e-3), ("int8", 5e-2)])
@pytest.mark.parametrize(("name", "exporter"), [("bert", LEGACY), ("roberta", DYNAMO), ("electra", DYNAMO)])
def test_scores_are_those_of_the_one_graph_form(
    name: str, exporter: Any, kind: str, error: float, tmp_path: Path
) -> None:
    source, whole = export(name, exporter, tmp_path).path, tmp_path / "whole.onnx"
    rewriter.split(source, 1, N, tmp_path / "split")
    rewriter.apply(source, ["decompose-encoder:layers=1,separator=90"], output=whole, verify=False)
    told = passages(40)
    pipeline = Pipeline(tmp_path / "split", tmp_path / "store", kind)
    got = pipeline.score(QUESTION, told)
    filler = pipeline.manifest["filler"]["input_ids"]
    for one, passage in zip(got, told, strict=True):
        expected = one_graph(whole, QUESTION, passage, filler)
        seen = [*range(len(QUESTION)), *range(N, N + len(passage))]
        assert np.linalg.norm(one[seen] - expected[seen]) <= error * np.linalg.norm(expected[seen])


def test_passages_are_encoded_once(folder: Path, tmp_path: Path) -> None:
    told = passages(50)
    first = Pipeline(folder, tmp_path / "store")
    assert first.add([*told, *told[:3]]) == 50
    expected = first.score(QUESTION, told[:9])
    first.store.close()
    second = Pipeline(folder, tmp_path / "store")
    assert second.add(told) == 0
    np.testing.assert_array_equal(second.score(QUESTION, told[:9]), expected)
    second.score(QUESTION, [*told[:2], [5, 5, 5]])
    assert (second.hits, second.misses, len(second.store)) == (11, 1, 51)
    assert second.store.used >= sum(len(x) for x in told) * 64 * 2


def test_long_questions(folder: Path, tmp_path: Path) -> None:
    pipeline, told = Pipeline(folder, tmp_path / "store"), passages(2)
    with pytest.raises(GraftError, match="the question has 9 tokens, more than the 6"):
        pipeline.score([3] * 9, told)
    np.testing.assert_array_equal(pipeline.score([3] * 9, told, cut=True), pipeline.score([3] * 6, told))


def answering() -> Sketch:
    """An encoder that also says of every token how likely it starts and ends the answer."""
    sketch = encoder()
    (hidden,) = sketch.outputs
    for name in ("start", "end"):
        sketch.output((Value(sketch, hidden.name) @ sketch.weight(name, sketch.m, 1)).squeeze(2))
    return sketch


def test_every_output_is_there_by_name(tmp_path: Path) -> None:
    model, whole = saved(answering(), tmp_path / "m.onnx"), tmp_path / "whole.onnx"
    rewriter.split(model, 2, 2, tmp_path / "split")
    rewriter.apply(model, ["decompose-encoder:layers=2"], output=whole, verify=False)
    pipeline, told = Pipeline(tmp_path / "split", tmp_path / "store"), [[3, 4, 5], [6, 7, 8]]
    found = pipeline.outputs([1, 2], told)
    ids = np.array([[1, 2, *passage] for passage in told])
    expected = kernels.session(whole).run(
        None, {"input_ids": ids, "token_type_ids": (np.arange(5) > 1)[None] * [[1], [1]]}
    )
    assert list(found) == pipeline.manifest["outputs"]
    for one, right in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(one, right, atol=2e-3 * np.abs(right).max())
    first, second, third = found
    np.testing.assert_array_equal(pipeline.score([1, 2], told), found[first])
    assert list(pipeline.outputs([1, 2], told, names=[third])) == [third]
    with pytest.raises(GraftError, match=f"the model has no output scores; it has {first}, {second}, {third}"):
        pipeline.outputs([1, 2], told, names=["scores"])


def test_without_a_mask_nothing_is_padded(tmp_path: Path) -> None:
    rewriter.split(saved(encoder(), tmp_path / "m.onnx"), 2, 2, tmp_path / "split")
    pipeline = Pipeline(tmp_path / "split", tmp_path / "store")
    assert pipeline.score([1, 2], [[3, 4, 5], [6, 7, 8]]).shape == (2, 5, 20)
    with pytest.raises(GraftError, match="takes no mask"):
        pipeline.score([1, 2], [[3, 4, 5], [6, 7]])
    with pytest.raises(GraftError, match="the model does not run on these inputs"):
        pipeline.score([1, 2], [[3, 4, 500]])  # no word has this id


def test_inputs_that_nobody_can_fill_are_refused(tmp_path: Path) -> None:
    placed = export("bert", DYNAMO, tmp_path, inputs="text+places").path
    rewriter.split(placed, 1, N, tmp_path / "split")
    with pytest.raises(GraftError, match="look up embeddings by position_ids too"):
        Pipeline(tmp_path / "split", tmp_path / "store")


def test_stale_and_foreign_stores_are_refused(folder: Path, tmp_path: Path) -> None:
    Pipeline(folder, tmp_path / "store").store.close()
    rewriter.split(export("bert", DYNAMO, tmp_path).path, 1, N + 1, tmp_path / "other")
    with pytest.raises(GraftError, match="was made for another split: its model is"):
        Pipeline(tmp_path / "other", tmp_path / "store")
    with pytest.raises(GraftError, match="its kind is float16, not int8"):
        Pipeline(folder, tmp_path / "store", "int8")
    with pytest.raises(GraftError, match="a store is of kind float16 or int8, not 'int4'"):
        Pipeline(folder, tmp_path / "new", "int4")
    with pytest.raises(GraftError, match="is no store of passages"):
        Pipeline(folder, folder)
    with pytest.raises(GraftError, match="is no folder that graft split wrote"):
        Pipeline(tmp_path, tmp_path / "new")


def tokenizer(pair: str) -> Any:
    """Return a tokenizer of ten words; ``pair``: the special tokens around a pair of texts."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({x: n for n, x in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=special
    )
    made.enable_truncation(4)
    made.enable_padding(length=9)
    return made


PAIRS = {
    "bert": ("[CLS] $A [SEP] $B:1 [SEP]:1", [2, 5, 6, 3], [7, 8, 9, 10, 3]),
    "roberta": ("[CLS] $A [SEP] [SEP] $B [SEP]", [2, 5, 6, 3, 3], [7, 8, 9, 10, 3]),
    "bare": ("$A $B:1", [5, 6], [7, 8, 9, 10]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_texts_are_read_by_the_tokenizer_beside_the_model(name: str, tmp_path: Path) -> None:
    """Whole, as halves of a pair: truncation and padding of the tokenizer are left out."""
    pair, question, passage = PAIRS[name]
    source = shutil.copy(export("bert", DYNAMO, tmp_path).path, tmp_path)
    tokenizer(pair).save(str(tmp_path / "tokenizer.json"))
    assert "tokenizer.json" in rewriter.split(source, 1, N, tmp_path / "split").files
    pipeline = Pipeline(tmp_path / "split", tmp_path / "store")
    expected = pipeline.score(question, [passage, [4, *passage[-1:]] if name != "bare" else [4]])
    np.testing.assert_array_equal(pipeline.score("b c", ["d e f g", "a"]), expected)
    assert pipeline.hits == 2
    with pytest.raises(GraftError, match="the passage ' ' has no tokens"):
        pipeline.add([" "])


def test_texts_without_a_tokenizer_for_pairs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=r"has no tokenizer.json, without which questions and passages are token ids"):
        Pipeline(folder, tmp_path / "store").add(["a text"])
    copy = tmp_path / "split"
    shutil.copytree(folder, copy)
    for text, says in (("{}", "is no tokenizer"), (tokenizer("$B:1 $A").to_str(), "makes no pair of a question and")):
        (copy / "tokenizer.json").write_text(text)
        with pytest.raises(GraftError, match=says):
            Pipeline(copy, tmp_path / "store").add(["a text"])


def test_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # the runners of parallel tests set it, and lines fold there
    file = tmp_path / "passages.jsonl"
    file.write_text("\n".join(json.dumps(x) for x in passages(70)))
    words = ["cache", str(folder), str(file), "--store", str(tmp_path / "store"), "--int8"]
    assert console.run(app, [*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passages"], report["new"], report["kind"]) == (70, report["kept"], "int8")
    assert console.run(app, words) == 0
    assert "0 of 70 passages encoded" in capsys.readouterr().out
    file.write_text('[1, 2]\n{"words": "no ids"}\n')
    assert console.run(app, words) == 2
    assert "passages.jsonl:2: is no JSON list of token ids and no string" in capsys.readouterr().err
    file.write_text('[1, 2]\n{"text": "no ids"}\n')
    assert console.run(app, words) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    assert console.run(app, [*words[:2], str(tmp_path / "none"), *words[3:]]) == 2
