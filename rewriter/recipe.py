"""The pipeline: open, read, plan, edit, prove, publish."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from rewriter import choice, files, registry, site_check
from rewriter.choice import Edit
from rewriter.hosts import onnx_edit
from rewriter.plan import Rule
from rewriter.proof import Progress, Prover
from rewriter.reading import ModelLike, Reading, name_of, open_any, read
from rewriter.report import ApplyCheck, ApplyReport


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
        edit = choice.choose(reading, job.rules, choice.select(reading, sites), {})
        choice.demand(reading, edit, strict, expect)
        return job.report(reading, edit, None, None)
    with _workplace(job.output) as folder:
        report = job.run(folder, verify, strict, expect)
        if job.output is not None:
            files.publish(folder, job.output)
    return report


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
        barred: dict[tuple[str, str], str] = {}
        rolled_back: list[str] = []
        while True:
            reading = read(open_any(self.model))
            edit = choice.choose(reading, self.rules, choice.select(reading, self.sites), barred)
            choice.demand(reading, edit, strict, expect)
            with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
                prover = (
                    Prover(self.model, self.inputs, self.dims, self.tell, Path(scratch))
                    if check and edit.plans
                    else None
                )
                errors = prover.sites(reading, edit) if prover else {}
                bad = {site: why for site, e in errors.items() if (why := site_check.failure(e)) is not None}
                if not bad:
                    onnx_edit.lower(reading.graphs, edit.plans)
                    bad = choice.still_computed(reading, edit)
                if bad:
                    barred.update({(site, edit.rules[site].name): why for site, why in bad.items()})
                    rolled_back += bad
                    continue
                name = self.output.name if self.output is not None else "result.onnx"
                path = files.save_into(reading.graphs.model, folder, name) if self.output or prover else None
                proof = prover.whole(edit, path, errors, rolled_back) if prover and path else None
            return self.report(reading, edit, proof, reading.graphs.model)

    def report(self, reading: Reading, edit: Edit, check: ApplyCheck | None, result: ir.Model | None) -> ApplyReport:
        """Return what was done."""
        return ApplyReport(
            model=name_of(self.model),
            sites=sum(any(rule.on == site.kind for rule in self.rules) for site in reading.sites.values()),
            rewritten=len(edit.plans),
            declined=edit.refused,
            kernels={site: choice.kernel(plan) for site, plan in edit.plans.items()},
            output=None if self.output is None or result is None else str(self.output),
            verify=check,
            plan=[f"{site}: {edit.rules[site]}: {plan}" for site, plan in edit.plans.items()],
            result=result,
        )
