"""The last layer computed only for the tokens that are read: the same values, and a reason where more is read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import dynamic, feeds, module_of
from families import Case
from sketch import Sketch, Value
from test_encoder import BY_NAME, DYNAMO, LEGACY, export, layer, replace, saved
from test_split import SEPARATOR, N, check_parts, joined, sides

import rewriter
from rewriter import files, reading
from rewriter.hosts.onnx import OnnxGraphs
from runtime_ops import kernels

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

RULE = "narrow-last-layer"
HEADS = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "albert": "AlbertForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
}
both = pytest.mark.parametrize("exporter", [LEGACY, DYNAMO], ids=lambda e: e.name)
families = pytest.mark.parametrize("name", HEADS)


def run(path: Path, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(x) for x in kernels.session(path).run(None, given)]


@both
@families
def test_classifiers_answer_alike(name: str, exporter: Any, tmp_path: Path) -> None:
    done, out = export(name, exporter, tmp_path, model=HEADS[name]), tmp_path / "out.onnx"
    report = rewriter.apply(done.path, [RULE], output=out)
    assert report.rewritten == 1, report.declined
    for batch, length in ((1, 1), (3, 13), (2, 40)):
        given = feeds(done.args, {"batch": batch, "length": length}, "right")
        right, got = run(done.path, given)[0], run(out, given)[0]
        assert np.abs(got - right).max() <= 1e-5 * max(1.0, np.abs(right).max())


@both
@families
def test_what_is_narrowed_is_split_like_any_encoder(name: str, exporter: Any, tmp_path: Path) -> None:
    done, out, folder = export(name, exporter, tmp_path, model=HEADS[name]), tmp_path / "out.onnx", tmp_path / "split"
    rewriter.apply(done.path, [RULE], output=out, verify=False)
    rewriter.split(out, 1, N, folder)
    rule = f"decompose-encoder:layers=1,separator={SEPARATOR}"
    assert rewriter.apply(done.path, [rule], output=tmp_path / "whole.onnx", verify=False).rewritten == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    for batch, length in ((1, 1), (3, 11)):
        parts = sides(manifest, batch, length)
        check_parts(folder, parts, run(tmp_path / "whole.onnx", joined(parts))[0])


@families
def test_torch_programs_answer_alike(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")
    family = replace(BY_NAME[name], model=HEADS[name])
    module, args, values = module_of(Case(family=family, exporter=DYNAMO, implementation=family.implementations[-1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, values, **dynamic("dynamo", args, 64))
    report = rewriter.apply(program, [RULE], inputs=values)
    assert report.rewritten == 1, report.declined
    given = [torch.from_numpy(x) for x in feeds(args, {"batch": 3, "length": 13}, "right").values()]
    with torch.no_grad():
        torch.testing.assert_close(report.result.module()(*given), module(*given), rtol=1e-4, atol=1e-5)


# ---- by hand ----

Read = Callable[[Sketch, Value], Sequence[Value]]


def encoder(read: Read, layers: int = 2) -> Sketch:
    """Post-norm layers whose scores have a bias for every query and key; ``read`` gives the outputs."""
    s = Sketch("narrow", opset=17)
    x = s.Gather(s.weight("words", 50, s.m, std=1.0), s.input("input_ids", "b s", "ids", "int64"))
    bias = s.input("bias", "b 1 s s", "normal")
    for n in range(layers):
        x = layer(s, x, n, bias)
        x = s.LayerNormalization(x, s.weight(f"{n}.scale", s.m), s.weight(f"{n}.shift", s.m), epsilon=0.1)
    for value in read(s, x):
        s.output(value)
    return s


def at(index: Any, more: Read = lambda s, x: ()) -> Read:
    """Read tokens by their place, and what else is asked for."""
    return lambda s, x: (s.Relu(s.Gather(x, np.asarray(index), axis=1)) @ s.weight("head", s.m, 3), *more(s, x))


@pytest.mark.parametrize("index", [0, [0], -1, [0, -1, 2], [[3, 1], [1, 1]]], ids=str)
def test_tokens_are_read_wherever_they_are(index: Any, tmp_path: Path) -> None:
    model, out = saved(encoder(at(index)), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert rewriter.apply(model, [RULE], output=out, dims={"s": 5}).rewritten == 1
    rng = np.random.default_rng(0)
    for batch, length in ((1, 4), (3, 9)):
        ids, bias = rng.integers(0, 50, (batch, length)), rng.standard_normal((batch, 1, length, length))
        bias[:, :, :, 1] = -np.inf
        given = {"input_ids": ids, "bias": bias.astype(np.float32)}
        np.testing.assert_allclose(run(out, given)[0], run(model, given)[0], rtol=1e-5, atol=1e-5)


def test_work_over_all_tokens_is_gone(tmp_path: Path) -> None:
    """Of the last layer only keys and values are left as long as the sequence."""
    rewriter.apply(saved(encoder(at(0)), tmp_path / "m.onnx"), [RULE], output=tmp_path / "out.onnx", verify=False)
    graphs = OnnxGraphs(files.open_model(tmp_path / "out.onnx"))
    reading.read(graphs)
    wide = [e for e in graphs.exprs_of("matmul") if e.rank == 3 and not isinstance((e.shape or (1, 1))[1], int)]
    assert len(wide) == 6 + 2  # q, k, v, o, up and down of the first layer


@pytest.mark.parametrize(
    ("sketch", "says"),
    [
        (encoder(lambda s, x: [s.ReduceMean(x, axes=[1], keepdims=0)]), "reads more than fixed tokens"),
        (encoder(lambda s, x: [x]), "every token of the last layer is an output of the model"),
        (encoder(at(0, lambda s, x: [x])), "every token of the last layer is an output of the model"),
        (encoder(at(0, lambda s, x: [s.ReduceMean(x, axes=[1])])), "reads more than fixed tokens"),
        (encoder(at(0, lambda s, x: [s.Gather(x, np.array(1), axis=1)])), "reads more than fixed tokens"),
        (encoder(at(0), layers=1), "does not start from a hidden state"),
        (encoder(lambda s, x: at(0)(s, s.Celu(x))), "Celu_.* reads more than fixed tokens of the last layer"),
    ],
    ids=["mean", "all", "first-and-all", "first-and-mean", "two", "one-layer", "unknown"],
)
def test_declines(sketch: Sketch, says: str, tmp_path: Path) -> None:
    report = rewriter.apply(saved(sketch, tmp_path / "m.onnx"), [RULE], dry_run=True)
    (refusal,) = report.declined
    assert re.search(says, refusal.reason)
