"""The proof of a rewrite: every site against float64, the whole model against the original."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_dtypes import finfo

from rewriter import compare, site_check
from rewriter.choice import Edit
from rewriter.errors import VerificationError
from rewriter.reading import Reading
from rewriter.report import ApplyCheck, SiteError, VerifyReport
from rewriter.site_check import Leaves
from runtime_ops.interpret import has_handle, is_float, topological
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from rewriter.host import Host

Progress = Callable[[str, int, int], None]


def _rounding(edit: Edit) -> float:
    """Return the end-to-end error that rounding may cause in the narrowest type that the rewritten sites compute in."""
    types = [
        e.dtype for plan in edit.plans.values() for expr in plan.values.values() for e in topological(expr, has_handle)
    ]
    floats = [t for t in types if t is not None and is_float(t)]
    return max([compare.TOLERANCE, *(2 * float(finfo(t).eps) for t in floats)])  # type: ignore[no-untyped-call]


class Prover(ABC):
    """Runs the original and the result of one edit; hosts say how.

    Args:
        host: the model.
        tell: called with (what, done, total) as the work goes on.
        folder: where files may be written.
    """

    def __init__(self, host: Host, tell: Progress, folder: Path) -> None:
        self.host, self.tell, self.folder = host, tell, folder

    @abstractmethod
    def capture(self, reading: Reading, wanted: Sequence[Any]) -> list[Leaves]:
        """Return the values of tensors, by their handles, in every case that the original is run on."""

    @abstractmethod
    def alone(self, site: str, expr: Expr, examples: Leaves) -> Callable[[Leaves], np.ndarray]:
        """Return what runs one plan alone, as it will run, on the tensors that it reads."""

    @abstractmethod
    def compare(self, result: Any, tolerance: float) -> VerifyReport:
        """Return how far a result is from the original in every case."""

    @abstractmethod
    def noise(self) -> float:
        """Return how far the original is from itself when it is computed in another order."""

    def sites(self, reading: Reading, edit: Edit) -> dict[str, SiteError]:
        """Return every rewritten site's own errors."""
        wanted: dict[Any, None] = {}
        for plan in edit.plans.values():
            wanted.update(dict.fromkeys(site_check.wanted(reading.graphs, plan)))
        captured = self.capture(reading, list(wanted))
        errors = {}
        for n, (site, plan) in enumerate(edit.plans.items()):
            self.tell("checking sites", n, len(edit.plans))
            error = site_check.check(reading.graphs, site, plan, edit.limits.get(site), captured, self.alone)
            errors.update({} if error is None else {site: error})
        return errors

    def whole(self, edit: Edit, result: Any, errors: Mapping[str, SiteError], rolled_back: Sequence[str]) -> ApplyCheck:
        """Return the end-to-end errors.

        Raises:
            VerificationError: with every rule at its exact limit, the result is not the original.
        """
        self.tell("comparing models", 0, 1)
        exact = self._at_limit(edit) if edit.limits else result
        report = self.compare(exact, _rounding(edit))
        if not report.passed:
            allowed = max(report.tolerance, 2 * self.noise())
            passed = all(o.rel_l2 <= allowed for o in report.outputs)
            report = dataclasses.replace(report, tolerance=allowed, passed=passed)
        if not report.passed:
            worst = max(report.outputs, key=lambda o: o.rel_l2)
            how = f"by {worst.rel_l2:.2g} (relative L2), more than {report.tolerance:.2g}"
            if not math.isfinite(worst.rel_l2):
                how = "in its shape, or in where it is NaN"
            raise VerificationError(f"output '{worst.name}' differs from the original {how}; nothing was written")
        approximation = self.compare(result, float("inf")) if edit.limits else None
        self.tell("comparing models", 1, 1)
        return ApplyCheck(
            sites=list(errors.values()),
            rewrite=report,
            approximation=approximation,
            rolled_back=list(rolled_back),
        )

    def _at_limit(self, edit: Edit) -> Any:
        """Return the model with every rule at the options at which it is exact."""
        reading = self.host.read()
        rules = {site: rule.at_limit() for site, rule in edit.rules.items()}
        plans = {site: rule.plan(reading.editable(site, rule), rule.given) for site, rule in rules.items()}
        return self.host.keep(self.host.lower(reading, plans), self.folder, "limit.onnx")
