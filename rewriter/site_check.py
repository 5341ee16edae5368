"""A site's own proof: the original region, the plan and the kernel, all against float64 on captured tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rewriter import sessions
from rewriter.compare import relative
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.inputs import Case
from rewriter.plan import Plan
from rewriter.report import SiteError
from runtime_ops import interpret
from runtime_ops.bodies import Bodies
from runtime_ops.spec import DOMAIN, VERSION
from runtime_ops.to_onnx import Writer
from runtime_ops.words import Expr

STRUCTURAL = 1e-6  # plan against region, both in float64: only constants are rounded to float32
ROUNDING = 1e-5  # kernel against float64 where the original itself is closer than half of that
NEAR_TIES = 1e-2  # selection in float32 may keep another of two nearly equal keys

_OPSET = 21  # that a site alone is written in

Leaves = dict[ir.Value, np.ndarray]


def leaves(plan: Plan) -> list[Expr]:
    """Return the tensors of the graph that a plan reads."""
    found: dict[ir.Value, Expr] = {}
    for expr in plan.values.values():
        for node in interpret.topological(expr, interpret.has_handle):
            if interpret.has_handle(node) and (node.word != "const" or node.known is None):
                found[node.handle] = node
    return list(found.values())


def frontier(region: Expr, read: Sequence[Expr]) -> list[ir.Value]:
    """Return the values besides ``read`` that are needed to compute a region: where it stops being words."""
    stop = {e.handle: None for e in read}
    found: dict[ir.Value, None] = {}
    while True:
        nodes = interpret.topological(region, lambda e: e.handle in stop or e.handle in found)
        lengths = [n.args[0] for n in nodes if n.word == "dim"]
        ends = [n for n in nodes if n.word in ("opaque", "input")]
        new = [e.handle for e in (*lengths, *ends) if e.handle is not None and e.handle not in stop | found]
        if not new:
            return list(found)
        found.update(dict.fromkeys(new))


def wanted(graphs: OnnxGraphs, plan: Plan) -> list[ir.Value]:
    """Return the values to capture for the check of a plan: what it reads, what it replaces, and the frontier."""
    read = leaves(plan)
    inner = [value for handle in plan.values for value in frontier(graphs.exprs[handle], read)]
    return [*plan.values, *(e.handle for e in read), *inner]


def capture(model: ir.Model, wanted: Sequence[ir.Value], folder: Path, found: Sequence[Case]) -> list[Leaves]:
    """Return the values of tensors of the main graph in every case, by running the model with more outputs."""
    graph = model.graph
    have = set(graph.outputs)
    inside = [v for v in wanted if v.producer() is not None and v.producer().graph is graph]  # type: ignore[union-attr]
    graph.outputs.extend(v for v in inside if v not in have)
    path = folder / "captured.onnx"
    try:
        ir.save(model, path, external_data="captured.data")
    finally:
        del graph.outputs[len(have) :]
    session = sessions.open_session(path, ours=False, optimize="none")
    names = [str(v.name) for v in inside]
    taken = []
    for case in found:
        got = sessions.run(session, case.feeds, names) if names else []
        values: Leaves = dict(zip(inside, got, strict=True))
        values.update({v: case.feeds[v.name] for v in wanted if v.name in case.feeds and v.is_graph_input()})
        values.update({v: v.const_value.numpy() for v in wanted if v.const_value is not None})
        taken.append(values)
    return taken


def check(
    graphs: OnnxGraphs, site: str, plan: Plan, limit: Plan | None, captured: Sequence[Leaves], folder: Path
) -> SiteError | None:
    """Return the worst errors of a site over all cases; None where its tensors were not captured.

    Args:
        graphs: the original.
        site: its name.
        plan: the edit that was made.
        limit: the edit at which the rule is exact, if it is not exact as it stands.
        captured: for each case, the tensors that the plan reads and the site's output.
        folder: where a model of the site alone may be written.
    """
    rows, read = [], leaves(plan)
    whole = [c for c in captured if all(v in c for v in (*plan.values, *(e.handle for e in read)))]
    for handle, expr in plan.values.items() if whole else ():
        exact = expr if limit is None else limit.values[handle]
        session = _Alone(expr, {e.handle: whole[0][e.handle] for e in read}, folder / f"{site}.onnx")
        rows += [_errors(graphs.exprs[handle], handle, expr, exact, session, values) for values in whole]
    if not rows:
        return None
    worst = [max(column) for column in zip(*rows, strict=True)]
    approximation = None if limit is None else worst[3]
    return SiteError(site=site, rewrite=worst[0], kernel=worst[1], original=worst[2], approximation=approximation)


def _errors(
    region: Expr, handle: ir.Value, expr: Expr, exact: Expr, session: _Alone, values: Leaves
) -> tuple[float, float, float, float]:
    inner = {value: array for value, array in values.items() if value is not handle}
    truth, planned = (interpret.golden(e, inner) for e in (region, expr))
    best = planned if exact is expr else interpret.golden(exact, inner)
    feeds = {f"leaf_{i}": np.ascontiguousarray(inner[v]) for i, v in enumerate(session.leaves)}
    out = sessions.run(session.session, feeds)[0]
    captured = values[handle]
    rewrite, same = relative(truth, best), relative(captured, out)
    if rewrite > STRUCTURAL and same <= ROUNDING:
        # float64 still sees scores that a huge finite mask swallows in float32: here the original is the truth
        return same, same, relative(truth, captured), relative(best, planned)
    return rewrite, relative(planned, out), relative(truth, captured), relative(best, planned)


class _Alone:
    """A session of one plan alone, with the tensors that it reads as inputs."""

    def __init__(self, expr: Expr, examples: Leaves, path: Path) -> None:
        self.leaves = list(examples)
        inputs = {value: _input(f"leaf_{i}", array) for i, (value, array) in enumerate(examples.items())}
        bodies = Bodies()
        writer = Writer(_OPSET, inputs, bodies=bodies)
        out = writer.value(expr)
        opsets = {"": _OPSET, DOMAIN: VERSION}
        graph = ir.Graph(list(inputs.values()), [out], nodes=writer.nodes, name="site", opset_imports=opsets)
        ir.save(ir.Model(graph, ir_version=10, functions=bodies.functions), path)
        self.session = sessions.open_session(path)


def _input(name: str, example: np.ndarray) -> ir.Value:
    return ir.val(name, ir.DataType.from_numpy(example.dtype), ir.Shape([None] * example.ndim))


def failure(error: SiteError) -> str | None:
    """Return why a site's errors are too large, or None."""
    if not error.rewrite <= ROUNDING:
        return f"the rewrite differs from the original by {error.rewrite:.2g} in float64"
    if error.kernel is not None and error.original is not None:
        allowed = max(2 * error.original, ROUNDING if error.approximation is None else NEAR_TIES)
        if not error.kernel <= allowed:
            return f"the operation is off by {error.kernel:.2g} from float64, the original by {error.original:.2g}"
    return None
