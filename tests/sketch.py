"""Write small ONNX graphs by hand: every operator and method call on a value adds one node.

``Sketch`` also draws the frame that an attention stands in (projections, head split, output projection),
so that a row of ``spellings`` shows only what is particular about it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = dict[str, int]
LOWEST = float(np.finfo(np.float32).min)
LIMITS = {"float16": (-65504.0, 65504.0)}
ELEMENT = {
    "float32": (np.dtype(np.float32), TensorProto.FLOAT),
    "float64": (np.dtype(np.float64), TensorProto.DOUBLE),
    "float16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
    "int64": (np.dtype(np.int64), TensorProto.INT64),
    "int32": (np.dtype(np.int32), TensorProto.INT32),
    "bool": (np.dtype(np.bool_), TensorProto.BOOL),
}


@dataclass(frozen=True)
class Value:
    """The output of a node, by name; arithmetic on it writes nodes into its sketch."""

    sketch: Sketch
    name: str

    def __add__(self, other: Any) -> Value:
        return self.sketch.Add(self, other)

    def __radd__(self, other: Any) -> Value:
        return self.sketch.Add(other, self)

    def __sub__(self, other: Any) -> Value:
        return self.sketch.Sub(self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.sketch.Sub(other, self)

    def __mul__(self, other: Any) -> Value:
        return self.sketch.Mul(self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.sketch.Mul(other, self)

    def __truediv__(self, other: Any) -> Value:
        return self.sketch.Div(self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self.sketch.Div(other, self)

    def __matmul__(self, other: Value) -> Value:
        return self.sketch.MatMul(self, other)

    def perm(self, *axes: int) -> Value:
        return self.sketch.Transpose(self, perm=list(axes))

    def to(self, dtype: str) -> Value:
        return self.sketch.Cast(self, to=ELEMENT[dtype][1])

    def dim(self, axis: int) -> Value:
        """Its length along axis as a run-time scalar, as the legacy exporter writes it."""
        return self.sketch.Gather(self.sketch.Shape(self), np.array(axis), axis=0)

    def reshape(self, *parts: int | Value) -> Value:
        return self.sketch.Reshape(self, self.sketch.shape(*parts))

    def expand(self, *parts: int | Value) -> Value:
        return self.sketch.Expand(self, self.sketch.shape(*parts))

    def unsqueeze(self, *axes: int) -> Value:
        return self.sketch.axes_op("Unsqueeze", self, axes)

    def squeeze(self, *axes: int) -> Value:
        return self.sketch.axes_op("Squeeze", self, axes)

    def slice(self, start: int | Value, stop: int | Value, axis: int) -> Value:
        ends = (part if isinstance(part, Value) else [part] for part in (start, stop))
        return self.sketch.Slice(self, *ends, [axis])

    def split(self, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
        if self.sketch.opset < 13:
            return self.sketch.node("Split", self, outputs=len(sizes), axis=axis, split=list(sizes))
        return self.sketch.node("Split", self, list(sizes), outputs=len(sizes), axis=axis)


@dataclass(frozen=True)
class Input:
    """A graph input: dims in letters or numbers ("b s 20") and how it is filled."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    fill: str


class Sketch:
    """A model being written. h, kv, d, e and m: the geometry, in the letters of the design."""

    def __init__(
        self,
        seed: str,
        *,
        opset: int = 17,
        dtype: str = "float32",
        h: int = 3,
        kv: int | None = None,
        d: int = 8,
        e: int | None = None,
        m: int = 20,
        cross: bool = False,
        constants: str = "initializer",
    ) -> None:
        self.seed, self.opset, self.dtype, self.cross, self.constants = seed, opset, dtype, cross, constants
        self.h, self.kv, self.d, self.e, self.m = h, kv or h, d, e or d, m
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[Input] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains = {"": opset}
        self.serial = 0
        self.named: set[str] = set()

    # -- nodes -------------------------------------------------------------------------------------

    def __getattr__(self, op: str) -> Callable[..., Any]:
        if not op[:1].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attrs: self.node(op, *inputs, **attrs)

    def node(self, op: str, *inputs: Any, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        """Add one node; numbers become floats of the model's type, lists int64 vectors, None is left out."""
        if domain:
            self.domains.setdefault(domain, 1)
        names = ["" if item is None else self.value(item).name for item in inputs]
        self.serial += 1
        label = f"{op}_{self.serial}"
        outs = [f"{label}_out{i}" if i else f"{label}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, outs, name=label, domain=domain, **attrs))
        values = tuple(Value(self, out) for out in outs)
        return values if outputs > 1 else values[0]

    def value(self, item: Any) -> Value:
        if isinstance(item, Value):
            return item
        if isinstance(item, (int, float)):
            return self.const(np.array(item, ELEMENT[self.dtype][0]))
        return self.const(np.asarray(item))

    def const(self, array: np.ndarray, name: str | None = None) -> Value:
        self.serial += 1
        name = name or f"c{self.serial}"
        if name in self.named:
            return Value(self, name)
        self.named.add(name)
        if self.constants == "node":
            tensor = numpy_helper.from_array(array, name + "_value")
            self.nodes.append(helper.make_node("Constant", [], [name], name=name + "_node", value=tensor))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return Value(self, name)

    def weight(self, name: str, *shape: int, std: float | None = None) -> Value:
        """Random non-zero weights, the same for the same seed, name and shape whoever asks first."""
        rng = np.random.default_rng(zlib.crc32(f"{self.seed} {name}".encode()))
        std = std or (0.3 if len(shape) == 1 else shape[0] ** -0.5)
        return self.const((rng.standard_normal(shape) * std).astype(ELEMENT[self.dtype][0]), name)

    def shape(self, *parts: int | Value) -> Value:
        """A shape: one constant if all parts are numbers, else Unsqueeze and Concat (legacy exporter)."""
        if not any(isinstance(part, Value) for part in parts):
            return self.value(list(parts))
        pieces = [p.unsqueeze(0) if isinstance(p, Value) else self.value([p]) for p in parts]
        return self.Concat(*pieces, axis=0)

    def axes_op(self, op: str, x: Value, axes: Sequence[int], since: int = 13, **attrs: Any) -> Value:
        """Unsqueeze, Squeeze or a reduction: axes are an attribute before opset ``since``, then an input."""
        if self.opset < since:
            return self.node(op, x, axes=list(axes), **attrs)
        return self.node(op, x, list(axes), **attrs)

    def total(self, x: Value, axis: int = -1) -> Value:
        return self.axes_op("ReduceSum", x, [axis], keepdims=1)

    def peak(self, x: Value, axis: int = -1) -> Value:
        return self.axes_op("ReduceMax", x, [axis], since=18, keepdims=1)

    def branch(self, write: Callable[[], Value]) -> onnx.GraphProto:
        """A subgraph that sees the outer values, for If."""
        outer, self.nodes = self.nodes, []
        out = write()
        inner, self.nodes = self.nodes, outer
        info = helper.make_tensor_value_info(out.name, ELEMENT[self.dtype][1], None)
        return helper.make_graph(inner, f"branch_{out.name}", [], [info])

    # -- inputs, outputs, model --------------------------------------------------------------------

    def input(self, name: str, dims: str, fill: str = "normal", dtype: str | None = None) -> Value:
        letters = dims if self.cross else dims.replace("t", "s")
        if all(name != other.name for other in self.inputs):
            self.inputs.append(Input(name, tuple(letters.split()), dtype or self.dtype, fill))
        return Value(self, name)

    def output(self, value: Value, dims: str | None = None) -> None:
        """Make value a model output; dims default to [b s m], unknown letters are free dimensions."""
        name = f"y{len(self.outputs)}"
        self.nodes.append(helper.make_node("Identity", [value.name], [name], name=f"{name}_node"))
        self.expose(Value(self, name), dims)

    def expose(self, value: Value, dims: str | None = None) -> None:
        """Make value itself a model output, under its own name."""
        shape = _shape((dims or f"b s {self.m}").split())
        self.outputs.append(helper.make_tensor_value_info(value.name, ELEMENT[self.dtype][1], shape))

    def model(self) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(i.name, ELEMENT[i.dtype][1], _shape(i.dims)) for i in self.inputs]
        graph = helper.make_graph(self.nodes, "sketch", infos, self.outputs, self.initializers)
        imports = [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(graph, opset_imports=imports, functions=self.functions)
        model.ir_version = 10 if self.opset < 24 else 11
        return model

    # -- the frame of an attention -----------------------------------------------------------------

    @cached_property
    def x(self) -> Value:
        return self.input("x", f"b s {self.m}")

    @cached_property
    def source(self) -> Value:
        """Where keys and values come from: x itself, or a second sequence."""
        return self.input("memory", f"b t {self.m}") if self.cross else self.x

    def project(self, name: str, x: Value, width: int) -> Value:
        return x @ self.weight(f"{name}.weight", self.m, width) + self.weight(f"{name}.bias", width)

    def heads(self, x: Value, n: int, *perm: int) -> Value:
        """[b s n·w] → [b n s w] (or another permutation of b s n w)."""
        split = x.reshape(0, 0, n, -1)
        return split.perm(*(perm or (0, 2, 1, 3)))

    @cached_property
    def q3(self) -> Value:
        return self.project("q", self.x, self.h * self.d)

    @cached_property
    def k3(self) -> Value:
        return self.project("k", self.source, self.kv * self.d)

    @cached_property
    def v3(self) -> Value:
        return self.project("v", self.source, self.kv * self.e)

    @cached_property
    def q(self) -> Value:
        return self.heads(self.q3, self.h)

    @cached_property
    def k(self) -> Value:
        return self.heads(self.k3, self.kv)

    @cached_property
    def v(self) -> Value:
        return self.heads(self.v3, self.kv)

    def attend(
        self,
        *,
        q: Value | None = None,
        k: Value | None = None,
        kt: Value | None = None,
        v: Value | None = None,
        scores: Callable[[Value], Value] = lambda s: s,
        softmax: Callable[[Value], Value] | None = None,
        probs: Callable[[Value], Value] = lambda p: p,
        context: Callable[[Value], Value] = lambda c: c,
    ) -> None:
        """The plain spelling, with one or more of its parts replaced."""
        kt = kt or (k or self.k).perm(0, 1, 3, 2)
        weights = (softmax or (lambda s: self.Softmax(s, axis=-1)))(scores((q or self.q) @ kt))
        self.close(context(probs(weights) @ (v or self.v)))

    def close(self, context: Value) -> None:
        """[b h s e] → [b s h·e] → output projection → model output."""
        self.finish(context.perm(0, 2, 1, 3).reshape(0, 0, self.h * self.e), self.h * self.e)

    def finish(self, merged: Value, width: int, dims: str | None = None) -> None:
        self.output(merged @ self.weight("o.weight", width, self.m) + self.weight("o.bias", self.m), dims)


def _shape(dims: Sequence[str]) -> list[int | str]:
    return [int(n) if n.isdigit() else n for n in dims]


# -- feeds -----------------------------------------------------------------------------------------


def feeds(inputs: Sequence[Input], rng: np.random.Generator, dims: Dims) -> dict[str, np.ndarray]:
    """One input for every graph input; in a batch of three the last sequence is masked out wholly."""
    made = {}
    for item in inputs:
        shape = tuple(dims[n] if n in dims else int(n) for n in item.dims)
        filled = FILL[item.fill](rng, shape)
        limited = np.clip(filled, *LIMITS[item.dtype]) if item.dtype in LIMITS else filled
        made[item.name] = np.asarray(limited, ELEMENT[item.dtype][0])
    return made


def _lengths(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    keep = np.zeros(shape, np.int64)
    for i in range(shape[0]):
        keep[i, ..., : rng.integers(1, shape[-1] + 1)] = 1
    return _last_of_three(keep, 0)


def _nearly(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Sequences that are full, or lack the last token."""
    lengths = np.maximum(shape[-1] - rng.integers(0, 2, shape[0]), 1)
    return (np.arange(shape[-1]) < lengths[:, None]).astype(np.int64)


def _left(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _last_of_three(_lengths(rng, shape)[..., ::-1].copy(), 0)


def _keep(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    keep = rng.random(shape) < 0.7
    keep[..., 0] = True
    return _last_of_three(keep, False)


def _last_of_three(keep: np.ndarray, nothing: Any) -> np.ndarray:
    if keep.shape[0] == 3:
        keep[2] = nothing
    return keep


FILL: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "lengths": _lengths,
    "nearly": _nearly,
    "left": _left,
    "keep": _keep,
    "drop": lambda rng, shape: ~_keep(rng, shape),
    "additive": lambda rng, shape: np.where(_keep(rng, shape), 0.0, LOWEST),
    "ids": lambda rng, shape: rng.integers(0, 7, shape),
    "ones": lambda rng, shape: np.ones(shape),
    "zeros": lambda rng, shape: np.zeros(shape),
    "true": lambda rng, shape: np.ones(shape, bool),
}
