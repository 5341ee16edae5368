"""The pipeline: open, read, plan, edit, prove, publish."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from ml_dtypes import finfo

from rewriter import compare, files, registry, sessions, site_check
from rewriter.errors import DeclinedError, GraftError, VerificationError
from rewriter.hosts import onnx_edit
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.inputs import Case
from rewriter.plan import Keeps, Plan, Rule
from rewriter.report import ApplyCheck, ApplyReport, Refusal, SiteError, VerifyReport
from runtime_ops import kernels
from runtime_ops.interpret import is_float, topological

ModelLike = str | os.PathLike[str] | ir.Model
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model as it was read: sites by name, and declines."""

    graphs: OnnxGraphs
    sites: Mapping[str, Any]
    declines: Sequence[Any]


def open_any(model: ModelLike) -> ir.Model:
    """Return a model that may be edited: from a file, or a copy of one in memory."""
    if not isinstance(model, ir.Model):
        return files.open_model(model)
    files.check_opset(model, "the model")
    return model.clone()


def read(model: ir.Model) -> Reading:
    """Return all sites and declines of a model; sites are named by kind and order."""
    graphs = OnnxGraphs(model)
    sites: dict[str, Any] = {}
    declines, counts = [], {}
    for reader in registry.readers():
        for found in reader(graphs):
            if hasattr(found, "reason"):
                declines.append(found)
                continue
            counts[found.kind] = counts.get(found.kind, -1) + 1
            sites[f"{found.kind}.{counts[found.kind]}"] = found
    return Reading(graphs=graphs, sites=sites, declines=declines)


@dataclass(kw_only=True)
class _Edit:
    """Which rule takes which site, and which declined."""

    plans: dict[str, Plan] = field(default_factory=dict)
    limits: dict[str, Plan] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


def _choose(reading: Reading, rules: Sequence[Rule], selected: set[str], barred: Mapping[str, str]) -> _Edit:
    edit = _Edit()
    for name in sorted(selected, key=list(reading.sites).index):
        site = reading.sites[name]
        for rule in (r for r in rules if r.on == site.kind):
            why = barred.get(name) or rule.why_not(site, rule.given)
            if why is not None:
                edit.refused.append(Refusal(site=name, rule=rule.name, reason=why))
                continue
            edit.rules[name], edit.plans[name] = rule, rule.plan(site, rule.given)
            if rule.keeps is Keeps.LIMIT:
                edit.limits[name] = rule.plan(site, rule.at_limit().given)
            break
    edit.refused = [r for r in edit.refused if r.site not in edit.plans]
    return edit


def _select(reading: Reading, patterns: Sequence[str] | str | None) -> set[str]:
    """Return the sites that ``--sites`` names: names or wildcards, separated by commas."""
    if patterns is None:
        return set(reading.sites)
    wanted = patterns.split(",") if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in wanted:
        hits = fnmatch.filter(reading.sites, pattern.strip())
        if not hits:
            names = ", ".join(reading.sites) or "none"
            raise GraftError(f"no site is called '{pattern.strip()}'; the sites are {names}")
        chosen.update(hits)
    return chosen


@contextmanager
def _workplace(output: Path | None) -> Iterator[Path]:
    """Give a folder for files that are not published yet: beside the output, so that a rename publishes them."""
    if output is not None:
        with files.staging(output) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="graft-") as name:
            yield Path(name)


def apply(
    model: ModelLike,
    rules: Sequence[str | Rule] = ("exact-attention",),
    output: str | os.PathLike[str] | None = None,
    sites: Sequence[str] | str | None = None,
    dry_run: bool = False,
    strict: bool = False,
    expect: int | None = None,
    verify: bool = True,
    inputs: str | os.PathLike[str] | None = None,
    dims: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> ApplyReport:
    """Rewrite a model and prove the result.

    Args:
        model: a file or a model in memory (which is left as it is).
        rules: names as on the command line, or rule objects; for every site the first that applies is used.
        output: file to write; None writes nothing, the result is in the report's ``result``.
        sites: names or wildcards of the sites to rewrite; None means all.
        dry_run: plan only; nothing is written or run.
        strict: raise if a rule declines a selected site.
        expect: raise if fewer sites than this are rewritten.
        verify: check every site against float64, and the whole model against the original.
        inputs: an .npz file to verify on instead of made-up inputs.
        dims: sizes of free dimensions to verify on, by name.
        progress: called with (what, done, total) as the work goes on.

    Returns:
        The report; ``report.result`` is the rewritten ``onnx_ir.Model`` (None after a dry run).

    Raises:
        DeclinedError: see ``strict`` and ``expect``.
        VerificationError: the result does not give the original's numbers; no output is left.
        GraftError: bad input, or the output cannot be written.
    """
    job = _Job(
        model=model,
        rules=[registry.parse(rule) for rule in rules],
        output=None if output is None else files.check_output(output, None if isinstance(model, ir.Model) else model),
        sites=sites,
        dims=dims,
        inputs=inputs,
        tell=progress or (lambda what, done, total: None),
    )
    if dry_run:
        reading = read(open_any(model))
        edit = _choose(reading, job.rules, _select(reading, sites), {})
        _demand(edit, strict, expect)
        return job.report(reading, edit, None, None)
    with _workplace(job.output) as folder:
        report = job.run(folder, verify, strict, expect)
        if job.output is not None:
            files.publish(folder, job.output)
    return report


def _demand(edit: _Edit, strict: bool, expect: int | None) -> None:
    if strict and edit.refused:
        first = edit.refused[0]
        raise DeclinedError(f"{len(edit.refused)} declined under --strict; {first.site}, {first.rule}: {first.reason}")
    if expect is not None and len(edit.plans) < expect:
        raise DeclinedError(f"{len(edit.plans)} sites rewritten, {expect} expected")


@dataclass(kw_only=True)
class _Job:
    """One call of ``apply``."""

    model: ModelLike
    rules: Sequence[Rule]
    output: Path | None
    sites: Sequence[str] | str | None
    dims: Mapping[str, int] | None
    inputs: str | os.PathLike[str] | None
    tell: Progress

    def run(self, folder: Path, check: bool, strict: bool, expect: int | None) -> ApplyReport:
        """Edit and prove until every rewritten site passes; files of the result are left in ``folder``."""
        barred: dict[str, str] = {}
        rolled_back: list[str] = []
        while True:
            reading = read(open_any(self.model))
            edit = _choose(reading, self.rules, _select(reading, self.sites), barred)
            _demand(edit, strict, expect)
            with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
                prover = _Prover(self, Path(scratch)) if check and edit.plans else None
                errors = prover.sites(reading, edit) if prover else {}
                bad = {site: why for site, e in errors.items() if (why := site_check.failure(e)) is not None}
                if not bad:
                    onnx_edit.lower(reading.graphs, edit.plans)
                    bad = _still_computed(reading, edit)
                if bad:
                    barred.update(bad)
                    rolled_back += bad
                    continue
                name = self.output.name if self.output is not None else "result.onnx"
                path = files.save_into(reading.graphs.model, folder, name) if self.output or prover else None
                proof = prover.whole(edit, path, errors, rolled_back) if prover and path else None
            return self.report(reading, edit, proof, reading.graphs.model)

    def report(self, reading: Reading, edit: _Edit, check: ApplyCheck | None, result: ir.Model | None) -> ApplyReport:
        """Return what was done."""
        return ApplyReport(
            model=name_of(self.model),
            sites=len(reading.sites),
            rewritten=len(edit.plans),
            declined=edit.refused,
            kernels={site: _kernel(plan) for site, plan in edit.plans.items()},
            output=None if self.output is None or result is None else str(self.output),
            verify=check,
            plan=[f"{site}: {edit.rules[site]}: {plan}" for site, plan in edit.plans.items()],
            result=result,
        )


def _still_computed(reading: Reading, edit: _Edit) -> dict[str, str]:
    """Return the rewritten sites whose softmax is still there, because something else reads inner tensors."""
    left = {}
    for site in edit.plans:
        softmax = reading.sites[site].softmax.handle
        if softmax.producer().graph is not None:
            reader = next((use.node.name for use in softmax.uses()), None)
            left[site] = f"its probabilities are still read by {reader}, so nothing would be saved"
    return left


def name_of(model: ModelLike) -> str:
    """Return how reports call a model."""
    return str(model.graph.name or "model in memory") if isinstance(model, ir.Model) else str(model)


def _kernel(plan: Plan) -> str:
    """Return the kernel that will run the call of a plan here, or "function body"."""
    calls = [n for e in plan.values.values() for n in topological(e, {}) if n.word == "call"]
    if not calls or not sessions.have_kernels():
        return "function body"
    name, dtype = calls[0].attrs["spec"].name, str(calls[0].args[0].dtype)
    rows = [row for row in kernels.kernels() if row["op"] == name and _takes(row, dtype)]
    return str(max(rows, key=lambda row: row["rank"])["name"]) if rows else "function body"


def _takes(row: Mapping[str, Any], dtype: str) -> bool:
    """Return whether a kernel runs here and takes calls of a type whatever their lengths."""
    return bool(row["usable"]) and dtype in row["dtypes"] and not row["limits"].get("min_keys")


def _rounding(edit: _Edit) -> float:
    """Return the end-to-end error that rounding may cause in the narrowest type that the rewritten sites compute in."""
    types = [e.dtype for plan in edit.plans.values() for expr in plan.values.values() for e in topological(expr, {})]
    floats = [t for t in types if t is not None and is_float(t)]
    return max([compare.TOLERANCE, *(2 * float(finfo(t).eps) for t in floats)])


class _Prover:
    """Runs the original and the result of one edit."""

    def __init__(self, job: _Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.found: list[Case] = []
        self.original = folder / "original.onnx"

    def sites(self, reading: Reading, edit: _Edit) -> dict[str, SiteError]:
        """Return every rewritten site's own errors."""
        model = reading.graphs.model
        if isinstance(self.job.model, ir.Model):
            ir.save(model, self.original, external_data="original.data")
        else:
            self.original = Path(self.job.model)
        session = sessions.open_session(self.original, ours=False)
        self.found = compare.cases(reading.graphs, session, self.job.inputs, self.job.dims)
        del session
        wanted: dict[ir.Value, None] = {}
        for plan in edit.plans.values():
            wanted.update(dict.fromkeys(site_check.wanted(reading.graphs, plan)))
        captured = site_check.capture(model, list(wanted), self.folder, self.found)
        errors = {}
        for n, (site, plan) in enumerate(edit.plans.items()):
            self.job.tell("checking sites", n, len(edit.plans))
            error = site_check.check(reading.graphs, site, plan, edit.limits.get(site), captured, self.folder)
            errors.update({} if error is None else {site: error})
        return errors

    def whole(self, edit: _Edit, result: Path, errors: Mapping[str, SiteError], rolled_back: Sequence[str]) -> ApplyCheck:
        """Return the end-to-end errors.

        Raises:
            VerificationError: with every rule at its exact limit, the result is not the original.
        """
        self.job.tell("comparing models", 0, 1)
        exact = self._at_limit(edit) if edit.limits else result
        report = self._compare(exact, _rounding(edit))
        if not report.passed:
            allowed = max(report.tolerance, 2 * compare.noise(self.original, self.found))
            passed = all(o.rel_l2 <= allowed for o in report.outputs)
            report = dataclasses.replace(report, tolerance=allowed, passed=passed)
        if not report.passed:
            worst = max(report.outputs, key=lambda o: o.rel_l2)
            raise VerificationError(
                f"output '{worst.name}' differs from the original by {worst.rel_l2:.2g} (relative L2), "
                f"more than {report.tolerance:.2g}; nothing was written"
            )
        approximation = self._compare(result, float("inf")) if edit.limits else None
        self.job.tell("comparing models", 1, 1)
        return ApplyCheck(
            sites=list(errors.values()), rewrite=report, approximation=approximation, rolled_back=list(rolled_back)
        )

    def _at_limit(self, edit: _Edit) -> Path:
        """Write the model with every rule at the options at which it is exact."""
        reading = read(open_any(self.job.model))
        rules = {site: rule.at_limit() for site, rule in edit.rules.items()}
        plans = {site: rule.plan(reading.sites[site], rule.given) for site, rule in rules.items()}
        onnx_edit.lower(reading.graphs, plans)
        path = self.folder / "limit.onnx"
        ir.save(reading.graphs.model, path, external_data="limit.data")
        return path

    def _compare(self, other: Path, tolerance: float) -> VerifyReport:
        first = sessions.open_session(self.original, ours=False)
        return compare.compare_sessions(first, sessions.open_session(other), self.found, tolerance)
