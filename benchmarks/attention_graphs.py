"""The graphs that `attention.py` compares: the same attention as graft's operator, as ONNX Runtime's, and unfused.

Every graph takes q, k, v as [1 s h*d], as projections leave them, and returns that layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
Feeds = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One size: batch 1, t keys and as many queries, unless s says otherwise; what hides keys, and how many survive."""

    t: int
    h: int = 12
    d: int = 64
    s: int = 0  # queries, the last of the t tokens; 0: t
    g: int = 0  # key heads; 0: h
    top_k: int = 0
    causal: int = 0
    window: int = 0
    padding: float = 0.0  # the share of the keys, from the end, that a mask hides

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", self.s or self.t)
        object.__setattr__(self, "g", self.g or self.h)

    def shapes(self, heads_first: bool = False) -> dict[str, tuple[int, ...]]:
        """Return those of q, k and v: [1 s h*d], [1 t g*d], or [1 h s d], [1 g t d]."""
        sizes = {"q": (self.s, self.h), "k": (self.t, self.g), "v": (self.t, self.g)}
        if heads_first:
            return {name: (1, heads, n, self.d) for name, (n, heads) in sizes.items()}
        return {name: (1, n, heads * self.d) for name, (n, heads) in sizes.items()}

    def feeds(self, heads_first: bool = False) -> Feeds:
        """Return q, k and v, standard normal."""
        random = np.random.default_rng(0)
        made = {name: random.standard_normal(shape, np.float32) for name, shape in self.shapes().items()}
        return {name: split_heads(x, self.d) for name, x in made.items()} if heads_first else made

    @property
    def live(self) -> int:
        """Keys that the padding mask leaves visible."""
        return self.t - int(self.t * self.padding)

    def visible(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Whether each of some queries sees each key [rows t]."""
        keys, places = np.arange(self.t), rows[:, None] + self.t - self.s
        seen = np.broadcast_to(keys < self.live, (len(rows), self.t))
        if self.causal or self.window:
            seen = seen & (keys <= places)
        return seen & (keys > places - self.window) if self.window else seen


def split_heads(x: np.ndarray[Any, Any], d: int) -> np.ndarray[Any, Any]:
    """[1 t h*d] as [1 h t d]."""
    return np.ascontiguousarray(x.reshape(1, x.shape[1], -1, d).transpose(0, 2, 1, 3))


class Graph:
    """Collects nodes; methods return the name of what they add."""

    def __init__(self, problem: Problem) -> None:
        self.p = problem
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """Add a node; returns its first output."""
        names = [f"{op}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def const(self, value: Any, dtype: Any) -> str:
        """Add a constant."""
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), f"c{len(self.weights)}"))
        return self.weights[-1].name

    def heads(self, name: str) -> str:
        """[1 t h*d] as [1 t h d]."""
        shape = self.const([1, -1, self.p.h if name == "q" else self.p.g, self.p.d], np.int64)
        return self.add("Reshape", name, shape)

    def split(self, name: str) -> str:
        """[1 t h*d] as [1 h t d]."""
        return self.add("Transpose", self.heads(name), perm=[0, 2, 1, 3])

    def join(self, name: str) -> str:
        """[1 t h d] as [1 t h*d]."""
        return self.add("Reshape", name, self.const([1, -1, self.p.h * self.p.d], np.int64))

    def merge(self, name: str) -> str:
        """Turn [1 h t d] into [1 t h*d]."""
        return self.join(self.add("Transpose", name, perm=[0, 2, 1, 3]))

    def key_bias(self) -> str:
        """Add the usual padding mask of exporters: [1 1 1 t], a huge negative number where hidden."""
        bias = np.zeros((1, 1, 1, self.p.t), np.float32)
        bias[..., self.p.live :] = np.finfo(np.float32).min
        return self.const(bias, np.float32)

    def model(self, out: str, heads_first: bool = False) -> onnx.ModelProto:
        """Finish the graph with `out` as its output."""
        shapes = self.p.shapes(heads_first).items()
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
        self.nodes.append(helper.make_node("Identity", [out], ["out"]))
        output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "attention", inputs, [output], self.weights)
        domains = [
            helper.make_opsetid("", 23),
            helper.make_opsetid(MICROSOFT, 1),
            helper.make_opsetid("ai.graft", 1),
        ]
        return helper.make_model(graph, opset_imports=domains, ir_version=11)


def graft(
    p: Problem, *, bias: bool = False, mask: bool = False, heads_first: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """TopKAttention as `graft apply` writes it, tokens first, or alone on heads first."""
    g = Graph(p)
    q, k, v = "qkv" if heads_first else tuple(map(g.heads, "qkv"))
    if not heads_first:
        attributes["tokens_first"] = "q k v out"
    inputs = [q, k, v, g.key_bias() if bias else ""]
    if mask:
        inputs.append(g.const([[j < p.live for j in range(p.t)]], np.bool_))
    out = g.add("TopKAttention", *inputs, domain="ai.graft", **attributes)
    return g.model(out if heads_first else g.join(out), heads_first)


def multi_head(p: Problem, *, masked: bool = False, causal: int = 0) -> onnx.ModelProto:
    """com.microsoft MultiHeadAttention."""
    g = Graph(p)
    inputs = ["q", "k", "v", "", g.const([[j < p.live for j in range(p.t)]], np.int32)] if masked else ["q", "k", "v"]
    return g.model(g.add("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=p.h, unidirectional=causal))


def attention23(p: Problem, *, masked: bool = False, causal: int = 0) -> onnx.ModelProto:
    """ai.onnx Attention of opset 23."""
    g = Graph(p)
    inputs = ["q", "k", "v"]
    if masked:  # the runtime wants a row per query; it folds this once, when the session is made
        inputs.append(g.add("Expand", g.key_bias(), g.const([1, 1, p.t, p.t], np.int64)))
    return g.model(g.add("Attention", *inputs, q_num_heads=p.h, kv_num_heads=p.h, is_causal=causal))


def group_query(p: Problem) -> onnx.ModelProto:
    """com.microsoft GroupQueryAttention, which is always causal."""
    g = Graph(p)
    return g.model(_group_query(g, "q", "k", "v", "", ""))


def _group_query(g: Graph, *inputs: str) -> str:
    lengths = [g.const([g.p.t - 1], np.int32), g.const(g.p.t, np.int32)]
    form = {"num_heads": g.p.h, "kv_num_heads": g.p.g, "local_window_size": g.p.window or -1}
    return g.add("GroupQueryAttention", *inputs, *lengths, domain=MICROSOFT, outputs=3, **form)


def group_query_step(p: Problem) -> onnx.ModelProto:
    """Return a decoding step: q, and k and v of one token, which go into caches [1 g t d] that hold all others."""
    g = Graph(p)
    out = _group_query(g, "q", "k", "v", "past_k", "past_v")
    node = g.nodes[-1]
    node.output[1:] = ["present_k", "present_v"]
    model = g.model(out)
    cache = (1, p.g, p.t, p.d)
    for name in "kv":
        shape = next(x for x in model.graph.input if x.name == name).type.tensor_type.shape
        shape.dim[1].dim_value = 1
        model.graph.input.append(helper.make_tensor_value_info(f"past_{name}", TensorProto.FLOAT, cache))
        model.graph.output.append(helper.make_tensor_value_info(f"present_{name}", TensorProto.FLOAT, cache))
    return model


def unfused(p: Problem, *, masked: bool = False, top_k: int = 0) -> onnx.ModelProto:
    """MatMul, Softmax, MatMul."""
    g = Graph(p)
    q, k, v = map(g.split, "qkv")
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.add("Mul", scores, g.const(p.d**-0.5, np.float32))
    if masked:
        scores = g.add("Add", scores, g.key_bias())
    if top_k:
        best = g.add("TopK", scores, g.const([top_k], np.int64), outputs=2, axis=-1, sorted=0)
        least = g.add("ReduceMin", best, g.const([-1], np.int64), keepdims=1)
        scores = g.add("Where", g.add("Less", scores, least), g.const(-np.inf, np.float32), scores)
    return g.model(g.merge(g.add("MatMul", g.add("Softmax", scores, axis=-1), v)))
