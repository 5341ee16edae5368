"""Encoders: where their layers can be cut, what stops the proof, and lower layers that see their own segment only."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare
import numpy as np
import onnx
import pytest
from exports import Exported, dynamic, exported, feeds, folder, module_of
from families import FAMILIES, SWEEP, Case
from sketch import Sketch, Value

import rewriter
from patterns.site import Decline, EncoderSite
from rewriter import files, reading
from rewriter.hosts.onnx import OnnxGraphs
from runtime_ops import kernels

pytest.importorskip("transformers")

BY_NAME = {family.name: family for family in FAMILIES}
EXPORTERS = {(e.name, e.opset): e for e in (case.exporter for case in SWEEP)}
LEGACY, DYNAMO = EXPORTERS["torchscript", 14], EXPORTERS["dynamo", 18]
READ = ("bert", "roberta", "distilbert", "electra", "mpnet", "albert", "modernbert")
DISENTANGLED = "a part of the scores besides q·kᵀ depends on the tokens"


def export(name: str, exporter: Any, into: Path, **other: Any) -> Exported:
    """Return a family as an exporter writes it, with ``other`` fields of its row."""
    family = replace(BY_NAME[name], **other)
    case = Case(family=family, exporter=exporter, implementation=family.implementations[-1])
    done = exported(case, folder(into / "exports"))
    assert done.error is None
    return done


def encoders(path: Path) -> list[EncoderSite | Decline]:
    """Return the encoders of a model, read or not."""
    read = reading.read(OnnxGraphs(files.open_model(path)))
    return [found for found in (*read.sites.values(), *read.declines) if found.kind == "encoder"]


both = pytest.mark.parametrize("exporter", [LEGACY, DYNAMO], ids=lambda e: e.name)


@both
@pytest.mark.parametrize("name", READ)
def test_every_layer_has_a_cut(name: str, exporter: Any, tmp_path: Path) -> None:
    (site,) = encoders(export(name, exporter, tmp_path).path)
    assert isinstance(site, EncoderSite)
    assert len(site.cuts) == len(site.layers) == BY_NAME[name].config["num_hidden_layers"]
    assert site.stopped is None
    assert site.model_width == 64


@both
@pytest.mark.parametrize("name", ["deberta", "deberta-v2"])
def test_disentangled_scores_are_declined(name: str, exporter: Any, tmp_path: Path) -> None:
    (decline,) = encoders(export(name, exporter, tmp_path).path)
    assert isinstance(decline, Decline)
    assert decline.reason == DISENTANGLED


@both
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_other_models_are_no_encoders_of_tokens(name: str, exporter: Any, tmp_path: Path) -> None:
    assert encoders(export(name, exporter, tmp_path).path) == []


# ---- by hand ----


def layer(s: Sketch, x: Value, n: int, hidden: Value | None = None) -> Value:
    """One post-norm layer without the norm; ``hidden`` is added to its scores."""
    q, k, v = (s.heads(s.project(f"{n}.{name}", x, s.h * s.d), s.h) for name in "qkv")
    scores = (q @ k.perm(0, 1, 3, 2)) * s.d**-0.5
    probs = s.Softmax(scores if hidden is None else scores + hidden, axis=-1)
    merged = (probs @ v).perm(0, 2, 1, 3).reshape(0, 0, s.h * s.d)
    x = x + merged @ s.weight(f"{n}.o", s.h * s.d, s.m)
    return x + s.Relu(x @ s.weight(f"{n}.up", s.m, 31)) @ s.weight(f"{n}.down", 31, s.m)


def mean(s: Sketch, x: Value) -> Value:
    return x + s.ReduceMean(x, axes=[1], keepdims=1)


def conv(s: Sketch, x: Value) -> Value:
    return s.Conv(x.perm(0, 2, 1), s.weight("conv", s.m, s.m, 3), pads=[1, 1]).perm(0, 2, 1)


def reordered(s: Sketch, x: Value) -> Value:
    flat = x.reshape(-1, s.m)
    order = s.input("order", "n", "ids", "int64")
    return s.Gather(flat, order, axis=0).reshape(-1, 7, s.m)


def pairs(s: Sketch, x: Value) -> Value:
    return s.Relu(x.reshape(0, -1, 2 * s.m) @ s.weight("pairs", 2 * s.m, 2 * s.m)).reshape(0, -1, s.m)


def shifted(s: Sketch, x: Value) -> Value:
    return x + s.Concat(x.slice(1, 1 << 40, 1), x.slice(0, 1, 1), axis=1)


def weighed(s: Sketch, x: Value) -> Value:
    return x + s.Softmax(x, axis=1)


def leaving(s: Sketch, x: Value) -> Value:
    s.output(x)
    return x


def encoder(between: Callable[[Sketch, Value], Value] | None = None, after: int = 2, lower: int = 0) -> Sketch:
    """Three layers; ``between`` stands after one of them, and the ``lower`` ones have a block mask by token types."""
    s = Sketch("encoder", opset=17)
    words, types = s.input("input_ids", "b s", "ids", "int64"), s.input("token_type_ids", "b s", "ids", "int64")
    x = s.Gather(s.weight("words", 50, s.m, std=1.0), words) + s.Gather(s.weight("types", 7, s.m, std=1.0), types)
    same = s.Equal(types.unsqueeze(1, 2), types.unsqueeze(1, 3)) if lower else None
    for n in range(3):
        x = layer(s, x, n, s.Where(same, 0.0, -np.inf) if same is not None and n < lower else None)
        if between is not None and n + 1 == after:
            x = between(s, x)
    s.output(x)
    return s


def saved(sketch: Sketch, path: Path) -> Path:
    onnx.save(sketch.model(), path)
    return path


def test_by_hand_every_layer_has_a_cut(tmp_path: Path) -> None:
    (site,) = encoders(saved(encoder(), tmp_path / "m.onnx"))
    assert isinstance(site, EncoderSite)
    assert len(site.cuts) == 3


@pytest.mark.parametrize(
    ("between", "op"),
    [
        (mean, "mean"),
        (conv, "Conv"),
        (reordered, "gather"),
        (pairs, "reshape"),
        (shifted, "slice"),
        (weighed, "softmax"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_tokens_that_meet_outside_attention_stop_the_proof(between: Any, op: str, tmp_path: Path) -> None:
    """Layers below still have their cuts; where there are none, the encoder is declined with the same reason."""
    (site,) = encoders(saved(encoder(between), tmp_path / "m.onnx"))
    assert isinstance(site, EncoderSite)
    assert len(site.cuts) == 1
    assert str(site.stopped).startswith(f"{op} may let tokens meet outside attention")
    (decline,) = encoders(saved(encoder(between, after=1), tmp_path / "first.onnx"))
    assert isinstance(decline, Decline)
    assert decline.reason == f"{op} may let tokens meet outside attention"


def test_nothing_cuts_below_a_hidden_state_that_leaves_the_graph(tmp_path: Path) -> None:
    (site,) = encoders(saved(encoder(leaving), tmp_path / "m.onnx"))
    assert isinstance(site, EncoderSite)
    assert len(site.cuts) == 2
    assert str(site.stopped).startswith("nothing after layer 3 carries all that later layers know of the tokens")


# ---- decomposed ----


def run(model: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(kernels.session(model).run(None, given)[0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_decomposed_is_a_block_mask(layers: int, tmp_path: Path) -> None:
    model = saved(encoder(), tmp_path / "m.onnx")
    masked = saved(encoder(lower=layers), tmp_path / "masked.onnx")
    out = tmp_path / "out.onnx"
    report = rewriter.apply(model, [f"decompose-encoder:layers={layers}"], output=out)
    assert report.rewritten == 1
    rng = np.random.default_rng(0)
    for types in ([[0, 0, 0, 1, 1, 1, 1]], [[0] * 7, [1] * 7], [[0, 1, 0, 2, 2, 1, 0], [3, 3, 3, 3, 1, 1, 5]], [[4]]):
        given = {"token_type_ids": np.array(types)}
        given["input_ids"] = rng.integers(0, 50, given["token_type_ids"].shape)
        np.testing.assert_allclose(run(out, given), run(masked, given), rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_one_segment_changes_nothing(name: str, exporter: Any, tmp_path: Path) -> None:
    done, out = export(name, exporter, tmp_path), tmp_path / "out.onnx"
    rewriter.apply(done.path, ["decompose-encoder:layers=2,segments=whole"], output=out)
    given = feeds(done.args, {"batch": 3, "length": 13}, "right")
    whole = np.asarray(compare.session(done.path, library=False).run(None, given)[0])
    seen = given["attention_mask"].astype(bool)  # what padding gives is nobody's business
    np.testing.assert_allclose(run(out, given)[seen], whole[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_torch_programs_are_decomposed_alike(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")
    family, rule = BY_NAME[name], "decompose-encoder:layers=1,separator=90"
    case = Case(family=family, exporter=DYNAMO, implementation=family.implementations[-1])
    module, args, values = module_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, values, **dynamic("dynamo", args, 64))
    report = rewriter.apply(program, [rule], inputs=values)
    assert report.rewritten == 1, report.declined
    rewriter.apply(export(name, DYNAMO, tmp_path).path, [rule], output=tmp_path / "out.onnx", verify=False)
    given = feeds(args, {"batch": 3, "length": 13}, "right")
    given["input_ids"][:, 4] = 90
    seen, right = given["attention_mask"].astype(bool), run(tmp_path / "out.onnx", given)
    with torch.no_grad():
        ours = report.result.module()(*(torch.from_numpy(given[arg.name]) for arg in args))
    np.testing.assert_allclose(ours.numpy()[seen], right[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("layers=9", "the encoder has 3 layers, fewer than the 9 asked for"),
        ("layers=1,segments=other", "the model has no integer input [b t] called other"),
    ],
)
def test_declines(options: str, says: str, tmp_path: Path) -> None:
    report = rewriter.apply(saved(encoder(), tmp_path / "m.onnx"), [f"decompose-encoder:{options}"], dry_run=True)
    assert report.rewritten == 0
    assert any(says in str(why) for why in report.declined)
