"""A site's own proof: the original region, the plan and the kernel, all against float64 on captured tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.compare import relative
from rewriter.hosts.base import Graphs
from rewriter.plan import Plan
from rewriter.report import SiteError
from runtime_ops import interpret
from runtime_ops.words import Expr

STRUCTURAL = 1e-6  # plan against region, both in float64: only constants are rounded to float32
ROUNDING = 1e-5  # kernel against float64 where the original itself is closer than half of that
NEAR_TIES = 1e-2  # selection in float32 may keep another of two nearly equal keys

Leaves = dict[Any, np.ndarray]  # tensors by their handles
Run = Callable[[Leaves], np.ndarray]


def leaves(plan: Plan) -> list[Expr]:
    """Return the tensors of the graph that a plan reads."""
    found: dict[Any, Expr] = {}
    for expr in plan.values.values():
        for node in interpret.topological(expr, interpret.has_handle):
            if interpret.has_handle(node) and (node.word != "const" or node.known is None):
                found[node.handle] = node
    return list(found.values())


def frontier(region: Expr, read: Sequence[Expr]) -> list[Any]:
    """Return the values besides ``read`` that are needed to compute a region: where it stops being words."""
    stop = {e.handle: None for e in read}
    found: dict[Any, None] = {}
    while True:
        nodes = interpret.topological(region, lambda e: e.handle in stop or e.handle in found)
        lengths = [n.args[0] for n in nodes if n.word == "dim"]
        ends = [n for n in nodes if n.word in ("opaque", "input")]
        new = [e.handle for e in (*lengths, *ends) if e.handle is not None and e.handle not in stop | found]
        if not new:
            return list(found)
        found.update(dict.fromkeys(new))


def wanted(graphs: Graphs, plan: Plan) -> list[Any]:
    """Return the values to capture for the check of a plan: what it reads, what it replaces, and the frontier."""
    read = leaves(plan)
    inner = [value for handle in plan.values for value in frontier(graphs.exprs[handle], read)]
    return [*plan.values, *(e.handle for e in read), *inner]


def check(
    graphs: Graphs,
    site: str,
    plan: Plan,
    limit: Plan | None,
    captured: Sequence[Leaves],
    alone: Callable[[str, Expr, Leaves], Run],
) -> SiteError | None:
    """Return the worst errors of a site over all cases; None where its tensors were not captured.

    Args:
        graphs: the original.
        site: its name.
        plan: the edit that was made.
        limit: the edit at which the rule is exact, if it is not exact as it stands.
        captured: for each case, the tensors that the plan reads and the site's output.
        alone: returns what runs a plan by itself, given the site's name, the plan and examples of what it reads.
    """
    rows, read = [], leaves(plan)
    whole = [c for c in captured if all(v in c for v in (*plan.values, *(e.handle for e in read)))]
    for handle, expr in plan.values.items() if whole else ():
        exact = expr if limit is None else limit.values[handle]
        run = alone(site, expr, {e.handle: whole[0][e.handle] for e in read})
        rows += [_errors(graphs.exprs[handle], handle, expr, exact, run, values) for values in whole]
    if not rows:
        return None
    worst = [max(column) for column in zip(*rows, strict=True)]
    approximation = None if limit is None else worst[3]
    return SiteError(site=site, rewrite=worst[0], kernel=worst[1], original=worst[2], approximation=approximation)


def _errors(
    region: Expr, handle: Any, expr: Expr, exact: Expr, run: Run, values: Leaves
) -> tuple[float, float, float, float]:
    inner = {value: array for value, array in values.items() if value is not handle}
    truth, planned = (interpret.golden(e, inner) for e in (region, expr))
    best = planned if exact is expr else interpret.golden(exact, inner)
    out, captured = run(inner), values[handle]
    rewrite, same = relative(truth, best), relative(captured, out)
    if rewrite > STRUCTURAL and same <= ROUNDING:
        # float64 still sees scores that a huge finite mask swallows in float32: here the original is the truth
        return same, same, relative(truth, captured), relative(best, planned)
    return rewrite, relative(planned, out), relative(truth, captured), relative(best, planned)


def failure(error: SiteError) -> str | None:
    """Return why a site's errors are too large, or None."""
    if not error.rewrite <= ROUNDING:
        return f"the rewrite differs from the original by {error.rewrite:.2g} in float64"
    if error.kernel is not None and error.original is not None:
        allowed = max(2 * error.original, ROUNDING if error.approximation is None else NEAR_TIES)
        if not error.kernel <= allowed:
            return f"the operation is off by {error.kernel:.2g} from float64, the original by {error.original:.2g}"
    return None
