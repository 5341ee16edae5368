"""WRITE for ONNX: plans lowered into the graph, and what nothing reads any more swept away."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from rewriter.hosts import onnx_signature
from rewriter.hosts.onnx import OnnxGraphs, declared, element
from rewriter.hosts.onnx_row import attr
from rewriter.hosts.onnx_weights import Weights
from rewriter.plan import Plan
from rewriter.quiet_gc import quiet_gc
from runtime_ops.bodies import Bodies
from runtime_ops.ops import OPS
from runtime_ops.spec import DOMAIN, VERSION
from runtime_ops.to_onnx import Writer

_FUNCTIONS_SINCE, _OVERLOADS_SINCE = 8, 10  # IR versions


@quiet_gc
def lower(graphs: OnnxGraphs, plans: Mapping[str, Plan]) -> None:
    """Make the edits of ``plans`` (by site) in the model that was read as ``graphs``, which is then out of date."""
    model = graphs.model
    bodies = _bodies(model)
    stem = _free_stem(graphs.names())
    # what a later site reads of an earlier one's results, and new inputs by name
    replaced: dict[Any, ir.Value] = dict(onnx_signature.add_inputs(model.graph, plans.values()))
    weights = Weights(model.graph, stem)
    for site, plan in plans.items():
        writers: dict[ir.Node | None, Writer] = {}  # one per node, whose outputs share what they are made of
        for i, (value, expr) in enumerate(plan.values.items()):
            owner, opset = graphs.owner(value)
            prefix = f"{stem}_{site}_{i}_" if i else f"{stem}_{site}_"
            writer = writers.setdefault(value.producer(), Writer(opset, replaced, prefix, bodies))
            written = len(writer.nodes)
            new = writer.value(expr if isinstance(owner, ir.Function) else weights.folded(expr))
            if new.producer() not in writer.nodes:  # a value of the model keeps its own name
                new = writer.op("Identity", new)
            _replace(value, new, writer.nodes[written:])
            replaced[value] = new
            owner.opset_imports[DOMAIN] = VERSION
        onnx_signature.add_outputs(model.graph, plan, Writer(model.opset_imports[""], replaced, f"{stem}_{site}_out_"))
    _add(model, bodies)
    onnx_signature.drop(model, plans.values(), Writer(model.opset_imports[""], replaced, f"{stem}_lengths_"))
    passes.RemoveUnusedNodesPass()(model)


def complete(model: ir.Model) -> None:
    """Give every call of our operations in a model its function body."""
    bodies, opset = _bodies(model), model.opset_imports[""]
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN:
            spec = OPS[node.op_type]
            given = zip(spec.inputs, node.inputs, strict=False)
            told = {i.name: (declared(v), element(v) or np.dtype(np.float32)) for i, v in given if v is not None}
            attrs = {a.name: attr(node, a.name, a.default) for a in spec.attributes}
            node.overload = bodies.overload(spec, told, attrs, opset)
    if bodies.functions:
        _add(model, bodies)


def _bodies(model: ir.Model) -> Bodies:
    return Bodies({(name, overload) for domain, name, overload in model.functions if domain == DOMAIN})


def _add(model: ir.Model, bodies: Bodies) -> None:
    for function in bodies.functions:
        model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    overloaded = any(function.overload for function in bodies.functions)
    model.ir_version = max(model.ir_version, _OVERLOADS_SINCE if overloaded else _FUNCTIONS_SINCE)


def _replace(old: ir.Value, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
    producer = old.producer()
    if producer is None or producer.graph is None:
        raise ValueError(f"{old.name} is not computed by a node of a graph")
    producer.graph.insert_before(producer, nodes)
    new.shape = old.shape
    if old.dtype is not None:
        new.dtype = old.dtype
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}_before", name


def _free_stem(names: Iterable[str]) -> str:
    """Return a beginning that no node name of the model has yet."""
    taken = {name.split("_", 1)[0] for name in names if name.startswith("graft")}
    return next(stem for n in itertools.count() if (stem := f"graft{n or ''}") not in taken)
