"""Decoders whose file is both, without past and with: taken apart, and put together again.

Such a file is one ``If``, as optimum writes it: its condition is an input, weights that both branches read lie outside,
and what the branch with past does not give, it says with empty constants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes

from rewriter.errors import GraftError
from rewriter.hosts import onnx_edit
from rewriter.hosts.onnx_sharing import SMALL
from runtime_ops.spec import DOMAIN

_LATER, _FIRST = "then_branch", "else_branch"  # with past, and without


def switch(model: ir.Model) -> str:
    """Return the name of the input that chooses a branch.

    Raises:
        GraftError: the model is not one ``If`` whose condition is an input.
    """
    nodes = list(model.graph)
    condition = nodes[0].inputs[0] if len(nodes) == 1 and nodes[0].op_type == "If" else None
    if condition is None or not condition.is_graph_input():
        raise GraftError(
            "one file was given, and it does not choose between a decoder without past and one with (it is not one If "
            "whose condition is an input); give the file with past too"
        )
    return str(condition.name)


def split(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """Return the decoder without past and that with past as models of their own; weights are shared."""
    return _alone(model.clone(), _FIRST, _LATER), _alone(model.clone(), _LATER, _FIRST)


def _alone(model: ir.Model, branch: str, other: str) -> ir.Model:
    graph = model.graph
    (choice,) = graph
    body, gone = (choice.attributes[name].as_graph() for name in (branch, other))
    gone.outputs.clear()
    gone.remove(list(gone), safe=True)  # so that nothing is in use for it
    results = list(body.outputs)
    body.outputs.clear()
    for value in list(body.initializers.values()):
        del body.initializers[str(value.name)]
        graph.register_initializer(value)
    nodes = list(body)
    body.remove(nodes)
    graph.insert_before(choice, nodes)
    names = [value.name for value in choice.outputs]
    graph.outputs[:] = results
    graph.remove(choice, safe=True)
    for name, value in zip(names, results, strict=True):
        value.name = name
    graph.outputs[:] = [value for value in results if not _empty(value)]
    passes.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    return model


def _empty(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or "value" not in producer.attributes:
        return False
    return producer.attributes["value"].as_tensor().size == 0


def merge(first: ir.Model, later: ir.Model, condition: str) -> ir.Model:
    """Return one model that is both, by an input [1] of booleans."""
    outer = _Outer()
    names = [value.name for value in first.graph.outputs]
    branches = [_branch(model, names, outer) for model in (first, later)]
    told = ir.val(condition, ir.DataType.BOOL, ir.Shape([1]))
    results = [ir.val(str(v.name), v.dtype, v.shape) for v in branches[1].outputs]
    choice = ir.node("If", [told], {_LATER: branches[1], _FIRST: branches[0]}, outputs=results, name=condition)
    graph = ir.Graph(
        [*outer.inputs.values(), told], results, nodes=[choice], initializers=list(outer.weights.values()),
        opset_imports={**later.opset_imports, **first.opset_imports}, name=first.graph.name,
    )  # fmt: skip
    functions = {key: f for model in (later, first) for key, f in model.functions.items() if f.domain != DOMAIN}
    merged = ir.Model(
        graph, ir_version=max(first.ir_version, later.ir_version), functions=list(functions.values()),
        producer_name=first.producer_name, metadata_props=dict(first.metadata_props),
    )  # fmt: skip
    onnx_edit.complete(merged)
    return merged


class _Outer:
    """What both branches read: inputs by name, and weights, each once."""

    def __init__(self) -> None:
        self.inputs: dict[str, ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self._known: dict[tuple[object, ...], ir.Value] = {}

    def input(self, value: ir.Value) -> ir.Value:
        """Return an input; what the later branch says of its lengths holds in the other too."""
        mine = self.inputs.setdefault(str(value.name), ir.val(str(value.name), value.dtype, value.shape))
        mine.shape = value.shape
        return mine

    def weight(self, value: ir.Value) -> ir.Value:
        """Return a weight that has the same elements."""
        tensor = value.const_value
        assert tensor is not None  # an initializer
        key = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
        if key not in self._known:
            name = next(n for n in _numbered(str(value.name)) if n not in self.weights)
            made = ir.val(name, value.dtype, value.shape, const_value=tensor)
            self._known[key] = self.weights[name] = made
        return self._known[key]


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{n}" for n in range(1, 1 << 30))


def _branch(model: ir.Model, names: Sequence[str | None], outer: _Outer) -> ir.Graph:
    """Return a model as a branch, its outputs in this order."""
    graph = model.graph
    for value in graph.inputs:
        value.replace_all_uses_with(outer.input(value))
    own = []
    for value in list(graph.initializers.values()):
        del graph.initializers[str(value.name)]
        # of small numbers ONNX Runtime works out shapes, which it does not across the border of a branch
        if value.const_value is not None and value.const_value.nbytes >= SMALL:
            value.replace_all_uses_with(outer.weight(value))
        else:
            own.append(value)
    given = {value.name: value for value in graph.outputs}
    outputs, nodes = [given[name] for name in names], list(graph)
    graph.outputs.clear()
    graph.inputs.clear()
    graph.remove(nodes)
    return ir.Graph([], outputs, nodes=nodes, initializers=own, name=graph.name)
