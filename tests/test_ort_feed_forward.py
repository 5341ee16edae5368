"""TopKFeedForward inside ONNX Runtime: types, optional inputs, attributes of all kinds, shapes and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from test_ort_abi import FLOATS, INFERS, as_array, as_value, open_session

from runtime_ops import kernels

NAMES = ("x", "w_in", "w_out", "b_in", "b_out", "w_gate", "b_gate")
SHAPES = {"x": (2, 5, 8), "w_in": (12, 8), "w_out": (12, 6), "b_in": (12,), "b_out": (6,), "w_gate": (12, 8),
          "b_gate": (12,)}  # fmt: skip
INPUTS = {
    "bare": NAMES[:3],
    "biases": NAMES[:5],
    "gate alone": ("x", "w_in", "w_out", "w_gate"),
    "b_out alone": ("x", "w_in", "w_out", "b_out"),
    "all": NAMES,
}
DECLARED: dict[str, dict[str, list[Any]]] = {
    "known": {name: list(shape) for name, shape in SHAPES.items()},
    "named": {"x": ["b", "s", 8], "w_in": ["f", 8], "w_out": ["f", "e"]},
    "unknown": {"x": [None, None, 8], "w_in": [None, None], "w_out": [None, None]},
    "no rank": {},
}


def model(dtype: int, present: tuple[str, ...], declared: str = "known", **attributes: Any) -> bytes:
    """One TopKFeedForward node, with an Identity behind it that takes type and shape from inference."""
    inputs = [helper.make_tensor_value_info(name, dtype, DECLARED[declared].get(name)) for name in present]
    last = max(NAMES.index(name) for name in present)
    names = [name if name in present else "" for name in NAMES[: last + 1]]
    nodes = [helper.make_node("TopKFeedForward", names, ["y"], domain="ai.graft", **attributes)]
    nodes.append(helper.make_node("Identity", ["y"], ["out"]))
    graph = helper.make_graph(nodes, "one", inputs, [helper.make_tensor_value_info("out", dtype, None)])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graft", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=9)
    return made.SerializeToString()


def feeds(dtype: int, present: tuple[str, ...]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(SHAPES[name]).astype(FLOATS[dtype]) for name in present}


@pytest.mark.parametrize("present", INPUTS)
@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_type_and_every_choice_of_inputs_runs(dtype: int, declared: str, present: str) -> None:
    given = feeds(dtype, INPUTS[present])
    attributes = {"activation": "gelu_tanh", "select_by": "contribution", "chunk": 3}
    session = open_session(model(dtype, INPUTS[present], declared, k=4, **attributes))
    out = as_array(session.run_with_ort_values(["out"], {name: as_value(a) for name, a in given.items()})[0])
    assert np.array_equal(out, kernels.run_topk_feed_forward(**given, k_top=4, **attributes))
    expected = {"known": [2, 5, 6], "named": ["b", "s", "e"]}
    if declared in expected and INFERS:
        assert session.get_outputs()[0].shape == expected[declared]


def test_missing_attributes_take_their_defaults() -> None:
    given = feeds(1, NAMES)
    out = open_session(model(1, NAMES)).run(None, given)[0]
    assert np.array_equal(out, kernels.run_topk_feed_forward(**given))


REFUSED = {
    "k": ({"k": -1}, "k got -1, allowed 0"),
    "k float": ({"k": 1.5}, "attribute k got a float, allowed an int"),
    "k string": ({"k": "4"}, "attribute k got a string, allowed an int"),
    "chunk": ({"chunk": -1}, "chunk got -1, allowed 0"),
    "activation": ({"activation": "tanh"}, "activation got tanh, allowed relu, gelu"),
    "activation empty": ({"activation": ""}, "activation got , allowed relu, gelu"),
    "activation int": ({"activation": 1}, "attribute activation got an int, allowed a string"),
    "select_by": ({"select_by": "best"}, "select_by got best, allowed preactivation"),
    "select_by float": ({"select_by": 0.5}, "attribute select_by got a float, allowed a string"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_attributes_are_refused_when_the_session_is_made(name: str) -> None:
    attributes, sentence = REFUSED[name]
    with pytest.raises(Exception, match=sentence):
        open_session(model(1, INPUTS["bare"], **attributes))


BAD_SHAPES = {
    "x scalar": ({"x": np.zeros((), np.float32)}, "x got rank 0, allowed 1 or more"),
    "x": ({"x": np.zeros((2, 5, 7), np.float32)}, r"w_in got shape \[12 8\], allowed \[f m\] = \[12 7\]"),
    "w_in": ({"w_in": np.zeros((2, 12, 8), np.float32)}, "ranks 2, 3, 2, allowed 2"),
    "w_out": ({"w_out": np.zeros((11, 6), np.float32)}, r"w_out got shape \[11 6\], allowed \[f e\] = \[12 6\]"),
    "w_out rank": ({"w_out": np.zeros(6, np.float32)}, "ranks 2, 2, 1, allowed 2"),
    "b_in": ({"b_in": np.zeros((1, 12), np.float32)}, r"b_in got rank 2, allowed 1: \[f\]"),
    "b_out": ({"b_out": np.zeros(8, np.float32)}, r"b_out got shape \[8\], allowed \[e\] = \[6\]"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_shapes_are_refused_when_the_model_runs(name: str) -> None:
    changed, sentence = BAD_SHAPES[name]
    session = open_session(model(1, NAMES, "no rank"))
    with pytest.raises(Exception, match=sentence):
        session.run(None, feeds(1, NAMES) | changed)


def test_any_number_of_axes() -> None:
    given = feeds(1, INPUTS["biases"])
    session = open_session(model(1, INPUTS["biases"], "no rank", k=4))
    for shape in ((8,), (10, 8), (1, 2, 1, 5, 1, 1, 8), (0, 3, 8)):
        x = np.resize(given["x"], shape)
        out = session.run(None, given | {"x": x})[0]
        assert np.array_equal(out, kernels.run_topk_feed_forward(**(given | {"x": x}), k_top=4))
