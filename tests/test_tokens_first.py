"""Which tensors a rewrite passes with tokens first, and that no transposed copy is left where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from test_spellings import written

import rewriter

RULES = ("exact-attention", "topk-attention:k=3", "combiner-attention")
PLAIN = "q k v out"
# by spelling: the attribute, and how many Transposes the model keeps
ORDERS = {
    "no-scale": (PLAIN, 0),
    "scale-on-q": (PLAIN, 0),
    "scale-on-q-before-split": (PLAIN, 0),
    "k-one-transpose": (PLAIN, 0),
    "k-three-transposes": (PLAIN, 0),
    "k-dynamo-reshape": (PLAIN, 0),
    "q-through-permutations": (PLAIN, 0),
    "legacy-shapes": (PLAIN, 0),
    "packed-slice": (PLAIN, 0),
    "packed-interleaved": (PLAIN, 0),
    "packed-split-after-heads": ("out", 1),
    "k-transposed-before-split": ("q v out", 2),  # [b (h d) t] needs one to be transposed back
    "rotary-halves": ("v out", 2),
    "rank-3-one-head": ("", 0),  # of one head both orders are the same
}


def attributes(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The attributes of our calls."""
    nodes = [node for node in model.graph.node if node.domain == "ai.graft"]
    return [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]


def rewrite(original: onnx.ModelProto, rule: str, folder: Path) -> onnx.ModelProto:
    onnx.save(original, folder / "original.onnx")
    report = rewriter.apply(folder / "original.onnx", (rule,), output=folder / "rewritten.onnx", verify=False)
    assert report.rewritten == 1, report.declined
    return onnx.load(folder / "rewritten.onnx")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("id", ORDERS)
def test_what_has_tokens_first_in_the_graph_stays_so(id: str, rule: str, tmp_path: Path) -> None:
    order, transposes = ORDERS[id]
    model = rewrite(written(id), rule, tmp_path)
    assert [attrs["tokens_first"].decode() for attrs in attributes(model)] == [order]
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == transposes


def test_a_result_that_is_also_read_with_heads_first_is_given_so(tmp_path: Path) -> None:
    original = written("no-scale")
    product = [node.output[0] for node in original.graph.node if node.op_type == "MatMul"][-2]
    heads = onnx.helper.make_tensor_value_info(product, onnx.TensorProto.FLOAT, None)
    original.graph.output.append(heads)
    model = rewrite(original, "exact-attention", tmp_path)
    assert attributes(model)[0]["tokens_first"] == b"q k v"
    assert [out.name for out in model.graph.output][-1] == product


def test_keys_that_are_joined_with_past_ones_have_heads_first(tmp_path: Path) -> None:
    model = rewrite(written("cache-not-given-back"), "exact-attention", tmp_path)
    assert attributes(model)[0]["tokens_first"] == b"q out"
