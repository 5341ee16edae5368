"""Numbers instead of trust: two models on the same inputs, and every rewritten site against float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import files, inputs, sessions
from rewriter.errors import GraftError
from rewriter.hosts.base import Graphs
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.inputs import Case
from rewriter.report import OutputError, VerifyReport
from runtime_ops import interpret

TOLERANCE = 1e-5  # relative L2 error that float32 rounding may cause end to end


def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    inputs: str | os.PathLike[str] | None = None,
    dims: Mapping[str, int] | None = None,
    tolerance: float = TOLERANCE,
) -> VerifyReport:
    """Compare two model files on the same inputs: plain, padded, one row fully masked, length 1.

    Args:
        a: the reference.
        b: the model that is checked.
        inputs: an .npz file to use instead of made-up inputs.
        dims: sizes of free dimensions by name.
        tolerance: largest relative L2 error of an output that passes.

    Raises:
        GraftError: a model cannot be opened or run, or the inputs do not fit.
    """
    graphs = OnnxGraphs(files.open_model(a))
    files.open_model(b)
    first, second = sessions.open_session(a), sessions.open_session(b)
    missing = [o.name for o in first.get_outputs() if o.name not in {p.name for p in second.get_outputs()}]
    if missing:
        raise GraftError(f"{b}: has no output '{missing[0]}', which {a} has")
    found = cases(graphs, partial(sessions.run, first), inputs, dims)
    return compare_sessions(first, second, found, tolerance)


def cases(
    graphs: Graphs,
    run: Callable[[inputs.Feeds], object],
    file: str | os.PathLike[str] | None,
    dims: Mapping[str, int] | None,
) -> list[Case]:
    """Return the inputs to compare on; made-up lengths are tried until the model runs on them.

    Raises:
        GraftError: the model runs on none of them.
    """
    signature = inputs.Signature(graphs)
    if file is not None:
        return [Case(name=Path(file).name, feeds=inputs.load(file, signature))]
    problem: GraftError | None = None
    for batch, length in inputs.SIZES:
        made = list(signature.cases(dims or {}, batch, length))
        try:
            run(made[0].feeds)
        except GraftError as error:
            problem = problem or error
            if not set(signature.dims) - set(dims or {}):
                break
            continue
        return [case for case in made if _runs(run, case)]
    raise GraftError(f"{problem}; name sizes with --dim NAME=N or pass inputs with --inputs FILE.npz")


def _runs(run: Callable[[inputs.Feeds], object], case: Case) -> bool:
    """Return whether the original takes a case; models made for longer inputs fail at length 1 by themselves."""
    try:
        run(case.feeds)
    except GraftError:
        return False
    return True


def compare_sessions(a: Any, b: Any, found: Iterable[Case], tolerance: float) -> VerifyReport:
    """Return the worst error of every output over all cases."""
    names = [o.name for o in a.get_outputs()]
    worst: dict[str, OutputError] = {}
    ran = []
    for case in found:
        ran.append(case.name)
        left, right = sessions.run(a, case.feeds, names), sessions.run(b, case.feeds, names)
        for name, x, y in zip(names, left, right, strict=True):
            error = distance(name, x, y)
            if name not in worst or not error.rel_l2 <= worst[name].rel_l2:
                worst[name] = error
    passed = all(o.rel_l2 <= tolerance for o in worst.values())
    return VerifyReport(outputs=list(worst.values()), tolerance=tolerance, passed=passed, cases=ran)


def noise(path: str | os.PathLike[str], found: Sequence[Case]) -> float:
    """Return how far the original is from itself when ONNX Runtime computes it in another order.

    Quantised models turn one rounding into a step; no rewrite can be closer than the model is to itself.
    """
    usual = sessions.open_session(path, ours=False)
    others = [sessions.open_session(path, optimize=level, ours=False) for level in sessions.LESS_OPTIMIZED]
    reports = [compare_sessions(usual, other, found, 0.0) for other in others]
    return max((o.rel_l2 for report in reports for o in report.outputs), default=0.0)


def distance(name: str, a: np.ndarray, b: np.ndarray) -> OutputError:
    """Return how far ``b`` is from ``a``; where ``a`` is NaN nothing is demanded of ``b``."""
    if a.shape != b.shape:
        return OutputError(name=name, max_abs=np.inf, rel_l2=np.inf, cosine=0.0, argmax_agreement=0.0)
    agreement = _argmax_agreement(a, b)
    x, y = interpret.widen(a).astype(np.float64).ravel(), interpret.widen(b).astype(np.float64).ravel()
    asked = ~np.isnan(x) & ~((x == y) & np.isinf(x))
    x, y = x[asked], y[asked]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(np.isnan(y), np.inf, np.abs(y - x))
        max_abs, size = float(difference.max(initial=0.0)), float(np.linalg.norm(x))
        rel_l2 = float(np.linalg.norm(difference)) / size if size else max_abs
        other = float(np.linalg.norm(y))
        cosine = float(x @ y) / (size * other) if size and other else float(size == other)
    return OutputError(name=name, max_abs=max_abs, rel_l2=rel_l2, cosine=cosine, argmax_agreement=agreement)


def _argmax_agreement(a: np.ndarray, b: np.ndarray) -> float:
    if not a.size or a.ndim == 0:
        return 1.0
    same = np.argmax(np.nan_to_num(a), axis=-1) == np.argmax(np.nan_to_num(b), axis=-1)
    return float(np.mean(same))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Return the relative L2 error of ``b`` against ``a``."""
    return distance("", a, b).rel_l2
