"""Inputs and outputs that plans add to a model and take from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes import common as passes

from rewriter.errors import GraftError
from rewriter.plan import Plan
from runtime_ops.to_onnx import Writer
from runtime_ops.words import Expr


def signature(model: ir.Model) -> dict[str, dict[str, str]]:
    """Return the inputs and outputs of a model by name, each with its element type and axes."""
    both = {"inputs": model.graph.inputs, "outputs": model.graph.outputs}
    return {part: {str(value.name): _axes(value) for value in values} for part, values in both.items()}


def _axes(value: ir.Value) -> str:
    kind = "?" if value.dtype is None else str(value.dtype).lower()
    return kind if value.shape is None else f"{kind}[{', '.join('?' if d is None else str(d) for d in value.shape)}]"


def add_inputs(graph: ir.Graph, plans: Iterable[Plan]) -> Iterator[tuple[str, ir.Value]]:
    """Add the inputs that plans ask for, once each, and yield them by name."""
    for plan in plans:
        for name, expr in plan.inputs.items():
            if all(value.name != name for value in graph.inputs):
                graph.inputs.append(_typed(ir.val(name), expr))
    yield from ((str(value.name), value) for value in graph.inputs)


def _typed(value: ir.Value, expr: Expr) -> ir.Value:
    if expr.dtype is not None:
        value.dtype = ir.DataType.from_numpy(expr.dtype)
    value.shape = None if expr.shape is None else ir.Shape([d if isinstance(d, int) else str(d) for d in expr.shape])
    return value


def add_outputs(graph: ir.Graph, plan: Plan, writer: Writer) -> None:
    """Add the outputs of a plan, worked out behind everything else."""
    for name, expr in plan.outputs.items():
        value = writer.op("Identity", writer.value(expr))
        value.name = name
        graph.outputs.append(_typed(value, expr))
    graph.extend(writer.nodes)


def drop(model: ir.Model, plans: Iterable[Plan], writer: Writer) -> None:
    """Take inputs and outputs away; what reads the shape of something that goes reads it elsewhere.

    Raises:
        GraftError: an input that goes is still read.
    """
    names, lengths = set[str](), dict[str, Expr]()
    for plan in plans:
        names.update(plan.dropped)
        lengths.update(plan.lengths)
    if not names:
        return
    graph = model.graph
    measured = [(node, node.inputs[0]) for node in graph if node.op_type == "Shape"]
    for node, value in measured:
        if value is not None and value.name in lengths:
            _measure(node, lengths[value.name], writer)
    graph.extend(writer.nodes)
    graph.outputs[:] = [value for value in graph.outputs if value.name not in names]
    passes.RemoveUnusedNodesPass()(model)
    for value in (value for value in graph.inputs if value.name in names and value.uses()):
        reader = next(use.node for use in value.uses())
        raise GraftError(f"'{value.name}' cannot go: {reader.name or reader.op_type} reads it too")
    graph.inputs[:] = [value for value in graph.inputs if value.name not in names]
    graph.sort()


def _measure(node: ir.Node, shape: Expr, writer: Writer) -> None:
    """Let what reads a Shape node read a vector of lengths instead."""
    whole = writer.value(shape)
    start, end = (node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end"))
    if start is not None or end is not None:
        rank = shape.shape[0] if shape.shape and isinstance(shape.shape[0], int) else 0
        first, last, _ = slice(start, end).indices(rank)
        whole = writer.op("Slice", whole, writer.ints(first), writer.ints(last))
    node.outputs[0].replace_all_uses_with(whole)
