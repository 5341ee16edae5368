"""The graphs that `feed_forward.py` compares: a feed-forward block in ONNX Runtime's own operators, and in graft's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One block: n tokens, widths m and f; about the share `active` of the neurons is positive."""

    name: str
    n: int
    m: int
    f: int
    activation: str = "relu"
    gated: bool = False
    active: float = 0.5

    @cached_property
    def weights(self) -> dict[str, Array]:
        """w_in, w_out and w_gate [f m]. One direction, which every x has, carries the shift that silences neurons."""
        random, shift = np.random.default_rng(0), NormalDist().inv_cdf(self.active)
        names = ["w_in", "w_out", *(["w_gate"] if self.gated else [])]
        made = {name: random.standard_normal((self.f, self.m), np.float32) for name in names}
        for name in names:
            made[name] *= np.float32((self.f if name == "w_out" else self.m) ** -0.5)
        first = made["w_gate" if self.gated else "w_in"]
        first[:, 0] = shift
        return made

    def x(self) -> Array:
        """Tokens [n m], standard normal but for the direction above."""
        x = np.random.default_rng(1).standard_normal((self.n, self.m), np.float32)
        x[:, 0] = 1.0
        return x


def _model(nodes: list[onnx.NodeProto], weights: dict[str, Array], p: Problem) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", p.m])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", p.m])]
    initializers = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "block", inputs, outputs, initializers)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("ai.graft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def graft(p: Problem, **attributes: Any) -> onnx.ModelProto:
    """One TopKFeedForward."""
    names = ["x", "w_in", "w_out", *(["", "", "w_gate"] if p.gated else [])]
    node = helper.make_node("TopKFeedForward", names, ["out"], domain="ai.graft", activation=p.activation, **attributes)
    return _model([node], p.weights, p)


def plain(p: Problem, top_k: int = 0) -> onnx.ModelProto:
    """MatMul, activation, MatMul; with top_k, TopK and ScatterElements between them."""
    weights = {name: w if name == "w_out" else np.ascontiguousarray(w.T) for name, w in p.weights.items()}
    nodes = [helper.make_node("MatMul", ["x", "w_gate" if p.gated else "w_in"], ["z"]), *_activation(p.activation)]
    inner = "a"
    if p.gated:
        nodes += [helper.make_node("MatMul", ["x", "w_in"], ["u"]), helper.make_node("Mul", ["a", "u"], ["c"])]
        inner = "c"
    if top_k:
        weights["k"] = np.array([top_k])
        nodes += [
            helper.make_node("TopK", ["z", "k"], ["best", "which"], axis=-1, sorted=0),
            helper.make_node("GatherElements", [inner, "which"], ["kept"], axis=-1),
            helper.make_node("Shape", [inner], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            helper.make_node("ScatterElements", ["zeros", "which", "kept"], ["chosen"], axis=-1),
        ]
        inner = "chosen"
    return _model([*nodes, helper.make_node("MatMul", [inner, "w_out"], ["out"])], weights, p)


def _activation(name: str) -> list[onnx.NodeProto]:
    if name == "silu":
        return [helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["z", "s"], ["a"])]
    return [helper.make_node({"relu": "Relu", "gelu": "Gelu"}[name], ["z"], ["a"])]
