"""Cuts an encoder's graph in two at a hidden state: what leads to it, and what follows from two of its parts.

What depends on the tokens themselves runs on a part as it is. What depends on places in the sequence only (position
ids, relative biases, masks) is, for a part that stands behind another, computed for both together and sliced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from rewriter.errors import GraftError
from rewriter.hosts.onnx import OnnxGraphs
from runtime_ops.dims import Dim, Sym
from runtime_ops.words import Expr

_END = 2**63 - 1
HIDDEN = "hidden"


def first_part(stream: Stream, name: str) -> None:
    """Leave only what leads to the hidden state, which becomes the output ``hidden`` of the part called ``name``."""
    model = stream.graphs.model
    result = _add(model.graph, "Identity", stream.cut.handle)
    result.name, result.type, result.shape = HIDDEN, _type(stream.cut), _shape(name, stream.cut)
    model.graph.outputs[:] = [result]
    _sweep(model)


def _type(x: Expr) -> ir.TensorType:
    if x.dtype is None:
        raise GraftError(f"the element type of {x.handle.name} is not known")
    return ir.TensorType(ir.DataType.from_numpy(x.dtype))


def _shape(part: str, x: Expr) -> ir.Shape:
    """Return the shape [b t] or [b t m] of what a part holds of ``x``."""
    lengths = ("batch", f"{part}_length", *(x.shape or ())[2:])
    return ir.Shape([length if isinstance(length, (int, str)) else None for length in lengths])


def _sweep(model: ir.Model) -> None:
    """Remove what nothing reads: nodes, weights and inputs."""
    graph = model.graph
    graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    kept = [value for value in graph.inputs if value.uses() or value in graph.outputs]
    graph.inputs[:] = kept
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in graph.outputs:
            del graph.initializers[name]


class Stream:
    """What depends on the tokens themselves, from the nodes that look them up; uses of its shape do not count.

    Args:
        graphs: the model as it was read.
        lookups: the embeddings that are looked up by what the model is given.
        cut: the hidden state [b t m].

    Raises:
        GraftError: the length is fixed, or the encoder is not in the main graph.
    """

    def __init__(self, graphs: OnnxGraphs, lookups: Sequence[Expr], cut: Expr) -> None:
        self.graphs, self.graph, self.cut = graphs, graphs.model.graph, cut
        shape = cut.shape or ()
        if len(shape) != 3 or not isinstance(shape[1], Sym):
            raise GraftError(f"the model's sequence length is fixed at {shape[1] if len(shape) > 1 else 'an unknown'}")
        self.batch, self.length = shape[0], shape[1]
        self.values: set[ir.Value] = set()
        self._follow([graphs.node(lookup) for lookup in lookups])
        producer = cut.handle.producer()
        if producer is None or producer.graph is not self.graph:
            raise GraftError("the encoder lies inside a function of the model; inline the model's functions first")

    def _follow(self, roots: Sequence[ir.Node]) -> None:
        pending = list(roots)
        while pending:
            node = pending.pop()
            fresh = [value for value in node.outputs if value not in self.values]
            self.values.update(fresh)
            pending += [
                use.node for value in fresh for use in value.uses() if use.node.op_type not in ("Shape", "Size")
            ]

    def nodes(self) -> Iterator[ir.Node]:
        """Yield its nodes that lead to the cut."""
        seen: set[ir.Node] = set()
        pending = [self.cut.handle.producer()]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if any(value in self.values for value in node.outputs):
                yield node
            pending += [value.producer() for value in node.inputs if value is not None]

    def axes(self, value: ir.Value) -> list[int]:
        """Return which axes of a value are as long as the sequence.

        Raises:
            GraftError: it has another length made from that of the sequence, or its shape is not known.
        """
        shape = self.graphs.exprs[value].shape
        if shape is None:
            raise GraftError(f"the shape of {value.name} is not known, so it cannot be split")
        known = {name for x in (self.batch, self.length) for name in _names(x)}
        for length in shape:
            if length != self.length and (_names(length) & _names(self.length) or not _names(length) <= known):
                said = "not known" if "?" in str(length) else str(length)
                raise GraftError(f"a length of {value.name} is {said}, so it cannot be split")
        return [axis for axis, length in enumerate(shape) if length == self.length]


def _names(length: Dim) -> set[str]:
    return {name for monomial, _ in length.terms for name in monomial} if isinstance(length, Sym) else set()


def move_behind(stream: Stream, ahead: int, fill: Mapping[str, int]) -> None:
    """Let the tokens of a model stand behind ``ahead`` others: what depends on places is computed for all of them.

    Args:
        stream: of the model that is changed.
        ahead: how many tokens stand before.
        fill: what an input holds there, by its name.

    Raises:
        GraftError: something that depends on places cannot be split.
    """
    longer = _Longer(stream, ahead, fill)
    for node in list(stream.nodes()):
        for i, value in enumerate(node.inputs):
            if value is None or value in stream.values or value.producer() is None:
                continue
            axes = stream.axes(value)
            if axes:
                node.replace_input_with(i, longer.end(value, axes))


class _Longer:
    """Copies of what depends on places, for a sequence with tokens before it."""

    def __init__(self, stream: Stream, ahead: int, fill: Mapping[str, int]) -> None:
        self.stream, self.ahead, self.fill = stream, ahead, fill
        self.copies: dict[ir.Value, ir.Value] = {}
        self.ends: dict[ir.Value, ir.Value] = {}

    def end(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Return what belongs to the last tokens of the longer sequence."""
        if value not in self.ends:
            starts, ends = [self.ahead] * len(axes), [_END] * len(axes)
            rest = (_const(self.stream.graph, numbers) for numbers in (starts, ends, list(axes)))
            self.ends[value] = _add(self.stream.graph, "Slice", self._copy(value), *rest)
        return self.ends[value]

    def _copy(self, value: ir.Value) -> ir.Value:
        """Return a value as it is for the longer sequence."""
        if value in self.copies:
            return self.copies[value]
        node = value.producer()
        if node is None:
            made = self._input(value) if value in self.stream.graph.inputs else value
        elif node.op_type == "Shape" and node.inputs[0] in self.stream.values:
            made = self._shape(node)
        elif any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise GraftError(f"{value.name} depends on places in the sequence through the branches of {node.op_type}")
        else:
            inputs = [None if x is None else self._copy(x) for x in node.inputs]
            copy = ir.node(node.op_type, inputs, domain=node.domain, overload=node.overload,
                           num_outputs=len(node.outputs))  # fmt: skip
            copy.attributes.update(node.attributes)
            self.stream.graph.append(copy)
            made = copy.outputs[list(node.outputs).index(value)]
        self.copies[value] = made
        return made

    def _input(self, value: ir.Value) -> ir.Value:
        axes = self.stream.axes(value)
        if not axes:
            return value
        if axes != [1] or value.shape is None or len(value.shape) != 2 or value.dtype is None:
            raise GraftError(f"the input {value.name} is not of the form [b t], so it cannot be split")
        graph = self.stream.graph
        rows = _add(graph, "Slice", _add(graph, "Shape", value), *(_const(graph, [n]) for n in (0, 1, 0)))
        one = _const(graph, np.array(self.fill.get(value.name or "", 1), value.dtype.numpy()))
        before = _add(graph, "Expand", one, _add(graph, "Concat", rows, _const(graph, [self.ahead]), axis=0))
        return _add(graph, "Concat", before, value, axis=1)

    def _shape(self, node: ir.Node) -> ir.Value:
        """Return the shape of something in the stream, for the longer sequence."""
        value = node.inputs[0]
        assert value is not None
        axes = self.stream.axes(value)
        rank = len(self.stream.graphs.exprs[value].shape or ())
        more = [self.ahead if axis in axes else 0 for axis in range(rank)][_span(node, rank)]
        return _add(self.stream.graph, "Add", node.outputs[0], _const(self.stream.graph, more))


def _span(node: ir.Node, rank: int) -> slice:
    """Return which lengths a Shape node gives."""
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    return slice(start.as_int() if start else 0, end.as_int() if end else rank)


def second_part(stream: Stream, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Leave only what follows from the hidden state, which is joined from the parts called ``names``.

    Returns:
        The inputs of each part by what they were in the model; the hidden state by ``hidden``.

    Raises:
        GraftError: something besides the hidden state and the model's inputs is used after the cut.
    """
    graph, model, cut = stream.graph, stream.graphs.model, stream.cut.handle
    parts = {HIDDEN: _parts(graph, names, HIDDEN, stream.cut)}
    hidden = _add(graph, "Concat", *parts[HIDDEN], axis=1)
    cut.replace_all_uses_with(hidden, replace_graph_outputs=True)
    _sweep(model)
    _measure_anew(stream, hidden)
    _sweep(model)
    for value in [x for x in graph.inputs if x not in parts[HIDDEN] and stream.axes(x)]:
        if stream.axes(value) != [1]:
            raise GraftError(f"the input {value.name} is not of the form [b t], so it cannot be split")
        parts[value.name or ""] = _parts(graph, names, value.name or "", stream.graphs.exprs[value])
        value.replace_all_uses_with(_add(graph, "Concat", *parts[value.name or ""], axis=1))
    _sweep(model)
    return {name: [value.name or "" for value in values] for name, values in parts.items()}


def _parts(graph: ir.Graph, names: Sequence[str], kind: str, like: Expr) -> list[ir.Value]:
    """Return new inputs [b t] or [b t m], one for each part."""
    made = [ir.Value(name=f"{part}_{kind}", shape=_shape(part, like), type=_type(like)) for part in names]
    graph.inputs.extend(made)
    return made


def _measure_anew(stream: Stream, hidden: ir.Value) -> None:
    """Take shapes of what lies below the cut, and of the model's inputs, from the hidden state."""
    graph = stream.graph
    whole = _add(graph, "Shape", hidden)
    for node in [n for n in graph if n.op_type == "Shape" and n is not whole.producer()]:
        value = node.inputs[0]
        if (
            value is None
            or (value not in stream.values and value not in graph.inputs)
            or value not in stream.graphs.exprs
        ):
            continue
        shape = stream.graphs.exprs[value].shape or ()
        stream.axes(value)
        pieces = [_length(stream, whole, length) for length in shape[_span(node, len(shape))]]
        made = _add(graph, "Concat", *pieces, axis=0)
        node.outputs[0].replace_all_uses_with(made)


def _length(stream: Stream, whole: ir.Value, length: Dim) -> ir.Value:
    if isinstance(length, int):
        return _const(stream.graph, [length])
    if length not in (stream.batch, stream.length):
        raise GraftError(f"the length {length} is used after the cut, and the hidden state does not have it")
    at = 0 if length == stream.batch else 1
    return _add(stream.graph, "Slice", whole, *(_const(stream.graph, [n]) for n in (at, at + 1, 0)))


def _add(graph: ir.Graph, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    node = ir.node(op, inputs, attributes)
    graph.append(node)
    return node.outputs[0]


def _const(graph: ir.Graph, numbers: Sequence[int] | np.ndarray) -> ir.Value:
    return _add_tensor(graph, ir.tensor(np.asarray(numbers, None if isinstance(numbers, np.ndarray) else np.int64)))


def _add_tensor(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    node = ir.node("Constant", [], {"value": tensor})
    graph.append(node)
    return node.outputs[0]
