"""The proof of a rewrite: every site against float64, the whole model against the original."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from ml_dtypes import finfo

from rewriter import compare, sessions, site_check
from rewriter.choice import Edit
from rewriter.errors import VerificationError
from rewriter.hosts import onnx_edit
from rewriter.inputs import Case
from rewriter.reading import ModelLike, Reading, open_any, read
from rewriter.report import ApplyCheck, SiteError, VerifyReport
from runtime_ops.interpret import has_handle, is_float, topological

Progress = Callable[[str, int, int], None]


def _rounding(edit: Edit) -> float:
    """Return the end-to-end error that rounding may cause in the narrowest type that the rewritten sites compute in."""
    types = [
        e.dtype for plan in edit.plans.values() for expr in plan.values.values() for e in topological(expr, has_handle)
    ]
    floats = [t for t in types if t is not None and is_float(t)]
    return max([compare.TOLERANCE, *(2 * float(finfo(t).eps) for t in floats)])  # type: ignore[no-untyped-call]


class Prover:
    """Runs the original and the result of one edit."""

    def __init__(
        self,
        model: ModelLike,
        file: str | os.PathLike[str] | None,
        dims: Mapping[str, int] | None,
        tell: Progress,
        folder: Path,
    ) -> None:
        self.model, self.file, self.dims, self.tell, self.folder = model, file, dims, tell, folder
        self.found: list[Case] = []
        self.original = folder / "original.onnx"

    def sites(self, reading: Reading, edit: Edit) -> dict[str, SiteError]:
        """Return every rewritten site's own errors."""
        model = reading.graphs.model
        if isinstance(self.model, ir.Model):
            ir.save(model, self.original, external_data="original.data")
        else:
            self.original = Path(self.model)
        session = sessions.open_session(self.original, ours=False)
        self.found = compare.cases(reading.graphs, session, self.file, self.dims)
        del session
        wanted: dict[ir.Value, None] = {}
        for plan in edit.plans.values():
            wanted.update(dict.fromkeys(site_check.wanted(reading.graphs, plan)))
        captured = site_check.capture(model, list(wanted), self.folder, self.found)
        errors = {}
        for n, (site, plan) in enumerate(edit.plans.items()):
            self.tell("checking sites", n, len(edit.plans))
            error = site_check.check(reading.graphs, site, plan, edit.limits.get(site), captured, self.folder)
            errors.update({} if error is None else {site: error})
        return errors

    def whole(
        self, edit: Edit, result: Path, errors: Mapping[str, SiteError], rolled_back: Sequence[str]
    ) -> ApplyCheck:
        """Return the end-to-end errors.

        Raises:
            VerificationError: with every rule at its exact limit, the result is not the original.
        """
        self.tell("comparing models", 0, 1)
        exact = self._at_limit(edit) if edit.limits else result
        report = self._compare(exact, _rounding(edit))
        if not report.passed:
            allowed = max(report.tolerance, 2 * compare.noise(self.original, self.found))
            passed = all(o.rel_l2 <= allowed for o in report.outputs)
            report = dataclasses.replace(report, tolerance=allowed, passed=passed)
        if not report.passed:
            worst = max(report.outputs, key=lambda o: o.rel_l2)
            how = f"by {worst.rel_l2:.2g} (relative L2), more than {report.tolerance:.2g}"
            if not math.isfinite(worst.rel_l2):
                how = "in its shape, or in where it is NaN"
            raise VerificationError(f"output '{worst.name}' differs from the original {how}; nothing was written")
        approximation = self._compare(result, float("inf")) if edit.limits else None
        self.tell("comparing models", 1, 1)
        return ApplyCheck(
            sites=list(errors.values()),
            rewrite=report,
            approximation=approximation,
            rolled_back=list(rolled_back),
        )

    def _at_limit(self, edit: Edit) -> Path:
        """Write the model with every rule at the options at which it is exact."""
        reading = read(open_any(self.model))
        rules = {site: rule.at_limit() for site, rule in edit.rules.items()}
        plans = {site: rule.plan(reading.sites[site], rule.given) for site, rule in rules.items()}
        onnx_edit.lower(reading.graphs, plans)
        path = self.folder / "limit.onnx"
        ir.save(reading.graphs.model, path, external_data="limit.data")
        return path

    def _compare(self, other: Path, tolerance: float) -> VerifyReport:
        first = sessions.open_session(self.original, ours=False)
        return compare.compare_sessions(first, sessions.open_session(other), self.found, tolerance)
