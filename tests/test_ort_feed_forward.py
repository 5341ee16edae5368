"""TopKFeedForward inside ONNX Runtime: types, optional inputs, attributes of all kinds, shapes and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from plain_feed_forward import feed_forward
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


@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_error_is_that_of_plain_operators_at_most(activation: str, n: int) -> None:
    random = np.random.default_rng(n)
    shapes = {"x": (n, 576), "w_in": (1536, 576), "w_out": (1536, 576)}
    given = {name: random.standard_normal(shape).astype(np.float32) / 24 for name, shape in shapes.items()}
    weights = {"w_in": given["w_in"].T.copy(), "w_out": given["w_out"]}
    nodes = [
        helper.make_node("MatMul", ["x", "w_in"], ["z"]),
        helper.make_node(activation.capitalize(), ["z"], ["a"]),
        helper.make_node("MatMul", ["a", "w_out"], ["out"]),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, (n, 576))] for name in ("x", "out")]
    constants = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "plain", *ends, constants)
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    golden = feed_forward(given, {"activation": activation})
    theirs = open_session(plain.SerializeToString()).run(None, {"x": given["x"]})[0]
    ours = kernels.run_topk_feed_forward(**given, activation=activation)
    assert np.linalg.norm(ours - golden) <= 1.1 * np.linalg.norm(theirs - golden)


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


# ---- weights that never change: a few tokens read them rounded, and nothing that is chosen changes ----


def wide(name: str) -> dict[str, Any]:
    """A call whose neurons are many, with one token or a few; the names are those of FIXED."""
    random = np.random.default_rng(len(name))
    n, m, f = (1, 5, 8)[len(name) % 3], 65, 1000
    made: dict[str, Any] = {"x": random.standard_normal((n, m)), "w_out": random.standard_normal((f, 40))}
    made |= {"w_in": random.standard_normal((f, m)) / 8, "b_in": random.standard_normal(f), "b_out": np.ones(40)}
    return {key: a.astype(np.float32) for key, a in made.items()} | FIXED[name](random, made)


def _near_ties(_random: np.random.Generator, made: dict[str, Any]) -> dict[str, Any]:
    """Neurons that differ by less than bf16 sees."""
    f, _m = made["w_in"].shape
    rows = np.tile(made["w_in"][:10], (f // 10, 1)) * (1 + 1e-5 * np.arange(f)[:, None])
    return {"w_in": rows.astype(np.float32), "b_in": np.zeros(f, np.float32)}


def _one_loud(_random: np.random.Generator, made: dict[str, Any]) -> dict[str, Any]:
    """One channel of x is a thousand times the others, one neuron a thousand times its likes."""
    x, w_in = made["x"].astype(np.float32), made["w_in"].astype(np.float32)
    x[:, 3] *= 1000
    w_in[7] *= 1000
    return {"x": x, "w_in": w_in}


def _with(**values: float) -> Any:
    def change(_random: np.random.Generator, made: dict[str, Any]) -> dict[str, Any]:
        changed = {name: made[name].astype(np.float32) for name in values}
        for name, value in values.items():
            changed[name].flat[5] = value
        return changed

    return change


def _scaled(**factors: float) -> Any:
    return lambda _random, made: {name: (made[name] * factor).astype(np.float32) for name, factor in factors.items()}


FIXED: dict[str, Any] = {
    "plain": lambda _random, _made: {},
    "near ties": _near_ties,
    "one loud": _one_loud,
    "all equal": lambda _random, made: {n: np.zeros(made[n].shape, np.float32) for n in ("w_in", "b_in")},
    "no tokens": lambda _random, made: {"x": np.zeros((0, 65), np.float32)},
    "zeros": lambda _random, made: {"x": np.zeros(made["x"].shape, np.float32)},
    "tiny": _scaled(x=1e-12, w_in=1e-20, b_in=0),
    "huge": _scaled(x=1e18, w_in=1e18),
    "x inf": _with(x=float("inf")),
    "x nan": _with(x=float("nan")),
    "w_in inf": _with(w_in=-float("inf")),
    "w_in nan": _with(w_in=float("nan")),
    "b_in inf": _with(b_in=float("inf")),
    "b_in -inf": _with(b_in=-float("inf")),
    "b_in nan": _with(b_in=float("nan")),
    "w_in 3e38": _with(w_in=3e38),
}
CALLS: dict[str, dict[str, Any]] = {
    "exact": {},
    "squared": {"activation": "relu_squared"},
    "top 1": {"k": 1},
    "top 20": {"k": 20},
    "top 20 gelu": {"k": 20, "activation": "gelu"},
    "top 250": {"k": 250, "activation": "silu"},
    "by magnitude": {"k": 20, "activation": "gelu", "select_by": "magnitude"},
}


def fixed(given: dict[str, Any], *, inputs: tuple[str, ...], **attributes: Any) -> np.ndarray[Any, Any]:
    """The call in a session where all but `inputs` are part of the model."""
    proto = onnx.load_from_string(model(1, tuple(n for n in NAMES if n in given), "no rank", **attributes))
    kept = [value for value in proto.graph.input if value.name in inputs]
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in given.items() if n not in inputs]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(tensors)
    session = open_session(proto.SerializeToString())
    feed = {n: given[n] for n in inputs}
    first = session.run(None, feed)[0]
    assert np.array_equal(first, session.run(None, feed)[0], equal_nan=True)
    return np.asarray(first)


@pytest.mark.parametrize("isa", ["", "scalar", "avx2", "avx512"])
@pytest.mark.parametrize("gate", [False, True], ids=["", "gated"])
@pytest.mark.parametrize("attributes", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", FIXED)
def test_weights_that_never_change_give_the_same(
    name: str, attributes: dict[str, Any], gate: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_ISA", isa)
    given = wide(name)
    if gate:
        up = np.random.default_rng(0).standard_normal(given["w_in"].shape).astype(np.float32)
        given |= {"w_gate": given["w_in"], "b_gate": given["b_in"], "w_in": up}
    got = fixed(given, inputs=("x",), **attributes)
    wanted = fixed(given, inputs=tuple(given), **attributes)
    size = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-30)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * size)
