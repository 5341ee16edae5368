"""The rules for feed-forward blocks: every spelling that is read is rewritten, runs, and keeps the numbers."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from blocks import BLOCKS, INNER, MODEL, Block, close, first
from compare import BACKENDS, distance, grafted, session
from sketch import Sketch, feeds

import rewriter
from rewriter.errors import GraftError

DIMS = ({"b": 2, "s": 7, "t": 9, "u": 3, "c": 8}, {"b": 1, "s": 1, "t": 3, "u": 3, "c": 2})
RULES = {"exact": "exact-feed-forward", "topk-all": f"topk-feed-forward:k={INNER},select_by=contribution"}
TAKEN = {name: b for name, b in BLOCKS.items() if not (b.quantised or b.stored or b.leaks)}
LEFT = {name: b for name, b in BLOCKS.items() if name not in TAKEN}


def sketch(name: str, block: Block, path: Path) -> Sketch:
    f = Sketch(name, m=MODEL, opset=block.opset, dtype=block.dtype)
    block.write(f)
    onnx.save(f.model(), path)
    return f


def relu(path: Path, **more: Any) -> Sketch:
    return sketch("relu", Block(write=lambda f: close(f, f.Relu(first(f))), **more), path)


def check_same(f: Sketch, before: Path, after: Path, library: bool, tolerance: float) -> None:
    original, rewritten = session(before, library=False), session(after, library)
    for dims in DIMS:
        given = feeds(f.inputs, np.random.default_rng(0), dims)
        for a, b in zip(original.run(None, given), rewritten.run(None, given), strict=True):
            assert distance(b, a) <= tolerance


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", TAKEN)
def test_block(name: str, rule: str, tmp_path: Path) -> None:
    before, after = tmp_path / "model.onnx", tmp_path / "out.onnx"
    f = sketch(name, TAKEN[name], before)
    report = rewriter.apply(before, (rule,), output=after)
    assert (report.rewritten, grafted(after)) == (1, 1), report.declined
    onnx.checker.check_model(str(after))
    for library in BACKENDS.values():
        check_same(f, before, after, library, 1e-5 if TAKEN[name].dtype == "float32" else 4e-3)


SAYS = {"quantised": "its numbers are rounded to few bits by ", "stored": "its weights are stored as u?int8",
        "leaks": "inner values are also read by"}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_declined_with_the_reason(name: str, tmp_path: Path) -> None:
    sketch(name, LEFT[name], tmp_path / "model.onnx")
    report = rewriter.apply(tmp_path / "model.onnx", ("exact-feed-forward",), output=tmp_path / "out.onnx")
    assert report.rewritten == 0
    why = next(text for field, text in SAYS.items() if getattr(LEFT[name], field))
    assert re.search(why, report.declined[0].reason), report.declined[0].reason


def test_a_gate_needs_a_stated_selection(tmp_path: Path) -> None:
    sketch("swiglu", BLOCKS["swiglu"], tmp_path / "model.onnx")
    report = rewriter.apply(tmp_path / "model.onnx", ("topk-feed-forward:k=5",), dry_run=True)
    assert "state select_by=contribution" in report.declined[0].reason
    said = rewriter.why(tmp_path / "model.onnx").stories[0].rules
    assert said["exact-feed-forward"] == "applies"
    assert "state select_by=contribution" in said["topk-feed-forward"]
    for by in ("preactivation", "magnitude", "contribution"):
        rule = f"topk-feed-forward:k=5,select_by={by}"
        assert rewriter.apply(tmp_path / "model.onnx", (rule,), dry_run=True).rewritten == 1
    with pytest.raises(GraftError, match=r"select_by .* must be one of preactivation, magnitude, contribution"):
        rewriter.apply(tmp_path / "model.onnx", ("topk-feed-forward:k=5,select_by=best",), dry_run=True)


@pytest.mark.parametrize("library", BACKENDS.values(), ids=BACKENDS)
def test_relu_is_exact_once_k_covers_the_positive_neurons(library: bool, tmp_path: Path) -> None:
    before, after = tmp_path / "model.onnx", tmp_path / "out.onnx"
    f = relu(before)
    positive = 0
    model = f.model()
    inner = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(inner))
    onnx.save(model, tmp_path / "inner.onnx")
    for dims in DIMS:
        values = session(tmp_path / "inner.onnx", False).run([inner], feeds(f.inputs, np.random.default_rng(0), dims))
        positive = max(positive, int((values[0] > 0).sum(axis=-1).max()))
    assert positive < INNER
    report = rewriter.apply(before, (f"topk-feed-forward:k={positive}",), output=after)
    assert report.verify is not None
    assert report.verify.sites[0].approximation is not None
    check_same(f, before, after, library, 1e-6)


def test_the_error_of_a_smaller_k_is_reported(tmp_path: Path) -> None:
    relu(tmp_path / "model.onnx")
    errors = []
    for k in (5, 50, INNER):
        report = rewriter.apply(tmp_path / "model.onnx", (f"topk-feed-forward:k={k}",))
        assert report.verify is not None
        errors.append(report.verify.sites[0].approximation)
        assert max(o.rel_l2 for o in report.verify.rewrite.outputs) < 1e-5
    assert errors[0] > errors[1] > errors[2] == 0.0


def test_weights_are_turned_into_the_file(tmp_path: Path) -> None:
    """The turned weight takes the place of the old one, says where it comes from, and is turned once if shared."""
    before, after = tmp_path / "model.onnx", tmp_path / "out.onnx"
    f = Sketch("shared", m=MODEL)
    w_in, w_out = f.weight("w_in", MODEL, INNER), f.weight("w_out", INNER, MODEL)
    y = f.x
    for _ in range(3):
        y = f.Tanh(f.Relu(y @ w_in) @ w_out)
    f.output(y, f"b s {MODEL}")
    onnx.save(f.model(), before)
    assert rewriter.apply(before, ("exact-feed-forward",), output=after, expect=3).rewritten == 3
    old, new = ({i.name: i for i in onnx.load(p).graph.initializer} for p in (before, after))
    added = [i for name, i in new.items() if name not in old]
    assert [list(i.dims) for i in added] == [[INNER, MODEL]]
    assert added[0].doc_string == "transpose(w_in)"
    assert "w_in" not in new
    assert abs(after.stat().st_size - before.stat().st_size) < 4000
    check_same(f, before, after, False, 1e-5)


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    wide, layers = 4000, 8
    f = Sketch("large", m=256)
    y = f.x
    for i in range(layers):
        y = f.Tanh(f.Relu(y @ f.weight(f"{i}.in", 256, wide)) @ f.weight(f"{i}.out", wide, 256))
    f.output(y, "b s 256")
    onnx.save(f.model(), tmp_path / "model.onnx", save_as_external_data=True, location="model.data")
    one = 256 * wide * 4
    tracemalloc.start()
    rewriter.apply(tmp_path / "model.onnx", ("exact-feed-forward",), output=tmp_path / "out.onnx", verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grafted(tmp_path / "out.onnx") == layers
    assert (tmp_path / "out.onnx.data").stat().st_size < 2 * layers * one * 1.01
    assert peak < 4 * one
