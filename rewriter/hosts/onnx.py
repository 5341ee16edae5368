"""The ONNX host: a model seen as expressions of the alphabet, and edited through plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from rewriter.hosts import onnx_opaque, onnx_read
from rewriter.hosts.base import Graphs, Unfit
from rewriter.hosts.onnx_activation import ACTIVATIONS
from rewriter.hosts.onnx_fused import FUSED
from rewriter.hosts.onnx_quantised import QUANTISED
from rewriter.hosts.onnx_rotary import ROTARY
from rewriter.hosts.onnx_row import numpy_type
from rewriter.quiet_gc import quiet_gc
from runtime_ops.dims import Dim, Sym, vague
from runtime_ops.dims import declared as declared_length
from runtime_ops.words import WORDS, Expr, symbol

_SPELLED = {**FUSED, **ACTIVATIONS, **QUANTISED, **ROTARY}  # operators that say several words at once
_KNOWN_LIMIT = 1024  # elements; larger tensors stay on disk and are never looked into


class OnnxGraphs(Graphs):
    """Every graph of a model (main, functions, bodies of If and Loop) read into expressions.

    Attributes:
        model: the model that was read.
    """

    @quiet_gc
    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.model = model
        self._made: dict[ir.Value, Expr] = {}
        self._owners: dict[ir.Graph, ir.Graph | ir.Function] = {}
        model.graph.sort()  # some tools write nodes before what they read
        self._read(model.graph, model.graph)
        for function in model.functions.values():
            self._read_function(function, ())

    def _read_function(self, function: ir.Function, args: Sequence[Expr | None]) -> None:
        """Read a function once; its inputs have the shapes and types of its first call's arguments."""
        if function.graph in self._owners:
            return
        function.sort()
        for value, arg in zip(function.inputs, args, strict=False):
            if arg is not None:
                self._bind(value, symbol(value.name or "", arg.shape, arg.dtype, value))
        self._read(function.graph, function)

    def owner(self, value: ir.Value) -> tuple[ir.Graph | ir.Function, int]:
        """Return the main graph or function around a value, and the default opset in force there."""
        producer = value.producer()
        if producer is None or producer.graph is None:
            raise ValueError(f"{value.name} is not computed by a node of this model")
        graph = producer.graph
        owner = self._owners[graph if isinstance(graph, ir.Graph) else graph.graph]
        return owner, self._opset(owner)

    def _opset(self, owner: ir.Graph | ir.Function) -> int:
        imports = owner.opset_imports
        return imports.get("", imports.get("ai.onnx", self.model.opset_imports.get("", 1)))

    def _read(self, graph: ir.Graph, owner: ir.Graph | ir.Function) -> None:
        self._owners[graph] = owner
        for value in graph.initializers.values():
            self._bind(value, _initializer(value))
        for value in graph.inputs:
            if value not in self.exprs:
                self._bind(value, symbol(value.name or "", declared(value), element(value), value))
        for node in graph:
            self._read_node(node, owner)
        self.outputs |= {id(self.exprs[value]) for value in graph.outputs if value in self.exprs}

    def _read_node(self, node: ir.Node, owner: ir.Graph | ir.Function) -> None:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                self._read(attribute.value, owner)
        args = [None if value is None else self.exprs[value] for value in node.inputs]
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            self._read_function(function, args)
        why = None
        try:
            read = self._words(node, args, self._opset(owner))
        except Unfit as reason:
            read, why = [], str(reason)
        self._at = node
        for i, value in enumerate(node.outputs):
            expr = read[i] if i < len(read) else _opaque(node, args, value, i, why)
            self._made[value] = expr
            self._bind(value, expr)

    def _words(self, node: ir.Node, args: Sequence[Expr | None], opset: int) -> Sequence[Expr]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type == "Constant" and not domain:
            return [_constant(node)]
        key = (domain, node.op_type)
        row = _SPELLED.get(key) or (None if domain else onnx_read.READ.get(node.op_type))
        if row is None or any(a is None for a in args[: _needed(node.op_type)]):
            return []
        try:
            read = row(node, args, opset)
        except (ValueError, IndexError, TypeError, ZeroDivisionError):
            return []  # malformed or stranger than the row expects: opaque
        return [] if read is None else [read] if isinstance(read, Expr) else list(read)

    def _bind(self, value: ir.Value, expr: Expr) -> Expr:
        if expr.handle is None:
            expr = dataclasses.replace(expr, handle=value, shape=_refine(expr.shape, value))
        self.exprs[value] = expr
        self._link(expr)
        return expr

    def title(self, node: ir.Node) -> str:
        """Return a node's name, or that of its first output."""
        return node.name or node.outputs[0].name or ""

    def inputs(self) -> list[Expr]:
        """Return the inputs of the main graph that have no default."""
        graph = self.model.graph
        return [self.exprs[value] for value in graph.inputs if value.name not in graph.initializers]

    def survivor(self, node: ir.Node) -> str | None:
        """Return the name of a node that still reads ``node``, None if that was removed."""
        if node.graph is None:
            return None
        return next((use.node.name or "" for output in node.outputs for use in output.uses()), "an output")

    def beside(self, expr: Expr) -> dict[ir.Value, Expr | None]:
        """Return the other outputs in use of the node that gives ``expr``: how they are made, None if not in words."""
        producer = expr.handle.producer() if isinstance(expr.handle, ir.Value) else None
        used = [v for v in producer.outputs if v.uses() or v.is_graph_output()] if producer is not None else []
        others = {v: self._made[v] for v in used if v is not expr.handle}
        return {v: None if made.word == "opaque" and made.handle is v else made for v, made in others.items()}


def _needed(op: str) -> int:
    word = onnx_read._WORDS.get(op)
    return (WORDS[word][0] or 1) if word else 1


def declared(value: ir.Value) -> tuple[Dim, ...] | None:
    """Return the shape that a model declares for a value, with symbols for unknown lengths."""
    if value.shape is None:
        return None
    return tuple(_declared_dim(value, i, d) for i, d in enumerate(value.shape))


def _declared_dim(value: ir.Value, axis: int, length: int | ir.SymbolicDim) -> Dim:
    if isinstance(length, int):
        return length
    return declared_length(length.value) if length.value else Sym.named(f"?{value.name}.{axis}")


def element(value: ir.Value) -> np.dtype[Any] | None:
    """Return the element type that a model declares for a value."""
    return numpy_type(value.dtype)


def _refine(shape: tuple[Dim, ...] | None, value: ir.Value) -> tuple[Dim, ...] | None:
    """Return the shape that was worked out, with declared lengths where those say more."""
    told = declared(value)
    if shape is None or told is None or len(told) != len(shape):
        return told if shape is None else shape
    return tuple(t if vague(s) and not vague(t) else s for s, t in zip(shape, told, strict=True))


def _initializer(value: ir.Value) -> Expr:
    tensor = value.const_value
    if tensor is None:
        return symbol(value.name or "", declared(value), element(value), value)
    return _tensor(tensor, value)


def _tensor(tensor: ir.TensorProtocol, handle: ir.Value) -> Expr:
    shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
    dtype = numpy_type(tensor.dtype)
    small = dtype is not None and tensor.size <= _KNOWN_LIMIT
    return Expr("const", (), {}, shape, dtype, tensor.numpy() if small else None, handle)


def _constant(node: ir.Node) -> Expr:
    name, attribute = next(iter(node.attributes.items()))
    value = node.outputs[0]
    if name == "value":
        if value.const_value is None:
            value.const_value = attribute.value
        return _tensor(attribute.value, value)
    kind = np.float32 if "float" in name else np.int64
    if "string" in name:
        return Expr("opaque", (), {"op": "Constant"}, None, None, None, value)
    known = np.asarray(attribute.value, kind)
    return Expr("const", (), {}, known.shape, known.dtype, known, value)


def _opaque(node: ir.Node, args: Sequence[Expr | None], value: ir.Value, index: int, why: str | None) -> Expr:
    shape = onnx_opaque.opaque_shape(node, args, index)
    given = tuple(a for a in args if a is not None)
    dtype = element(value) or onnx_opaque.opaque_type(node, args, index)
    attrs = {"op": node.op_type, "why": why, **onnx_opaque.attributes(node)}
    return Expr("opaque", given, attrs, _refine(shape, value), dtype, None, value)
