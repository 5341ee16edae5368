"""An encoder of BERT's shape with random weights, as an ONNX graph; a score of two classes from the first token."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, PLACES, HEAD = 30522, 512, 64


class Graph:
    """Nodes and weights being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Write a node and return its result."""
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def const(self, array: Any) -> str:
        """Keep a weight and return its name."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        """Make a random weight, of BERT's usual spread."""
        return self.const(self.random.standard_normal(shape, np.float32) * np.float32(0.02))

    def linear(self, x: str, m: int, n: int) -> str:
        """Write a product and a bias."""
        return self.add("Add", self.add("MatMul", x, self.weight(m, n)), self.weight(n))

    def norm(self, x: str, m: int) -> str:
        """Write a layer norm."""
        return self.add("LayerNormalization", x, self.const(np.ones(m, np.float32)), self.weight(m), axis=-1)

    def gelu(self, x: str) -> str:
        """Write the exact activation."""
        erf = self.add("Erf", self.add("Div", x, self.const(np.float32(2**0.5))))
        both = self.add("Mul", x, self.add("Add", erf, self.const(np.float32(1))))
        return self.add("Mul", both, self.const(np.float32(0.5)))


def bert(layers: int, m: int) -> onnx.ModelProto:
    """Return the model: input_ids, attention_mask and token_type_ids [b t] to scores [b 2]."""
    g = Graph()
    mask = g.add("Cast", g.add("Unsqueeze", "attention_mask", g.const([1, 2])), to=TensorProto.FLOAT)
    gap = g.add("Sub", g.const(np.float32(1)), mask)
    hidden = g.add("Mul", gap, g.const(np.float32(np.finfo(np.float32).min)))
    x = _embedded(g, m)
    for _ in range(layers):
        x = g.norm(g.add("Add", x, _attention(g, x, hidden, m)), m)
        x = g.norm(g.add("Add", x, g.linear(g.gelu(g.linear(x, m, 4 * m)), 4 * m, m)), m)
    g.nodes.append(helper.make_node("Identity", [g.linear(g.add("Gather", x, g.const(0), axis=1), m, 2)], ["scores"]))
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(g.nodes, "bert", inputs, [output], g.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _embedded(g: Graph, m: int) -> str:
    length = g.add("Slice", g.add("Shape", "input_ids"), g.const([1]), g.const([2]))
    places = g.add("Slice", g.const(np.arange(PLACES)[None]), g.const([0]), length, g.const([1]))
    x = g.add("Gather", g.weight(VOCABULARY, m), "input_ids")
    x = g.add("Add", x, g.add("Gather", g.weight(2, m), "token_type_ids"))
    return g.norm(g.add("Add", x, g.add("Gather", g.weight(PLACES, m), places)), m)


def _attention(g: Graph, x: str, hidden: str, m: int) -> str:
    split, perms = g.const([0, 0, m // HEAD, HEAD]), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    q, k, v = (g.add("Transpose", g.add("Reshape", g.linear(x, m, m), split), perm=perm) for perm in perms)
    scores = g.add("Div", g.add("MatMul", q, k), g.const(np.float32(HEAD**0.5)))
    mixed = g.add("MatMul", g.add("Softmax", g.add("Add", scores, hidden), axis=-1), v)
    merged = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), g.const([0, 0, m]))
    return g.linear(merged, m, m)
