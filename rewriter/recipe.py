"""The pipeline: open, read, plan, edit, prove, publish."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter import choice, files, registry, site_check
from rewriter.choice import Edit
from rewriter.host import Host, InputsLike, ModelLike, open_host
from rewriter.plan import Rule
from rewriter.proof import Progress
from rewriter.reading import Reading
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
    inputs: InputsLike = None,
    dims: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> ApplyReport:
    """Rewrite a model and prove the result.

    Args:
        model: an ONNX file, an ``onnx_ir.Model``, a ``torch.fx.GraphModule`` or a ``torch.export.ExportedProgram``;
            it is left as it is. A rewritten graph module shares its weights.
        rules: names as on the command line, or rule objects; for every site the first that applies is used.
        output: file to write (ONNX only); None writes nothing, the result is in the report's ``result``.
        sites: names or wildcards of the sites to rewrite; None means all.
        dry_run: plan only; nothing is written or run.
        strict: raise if a rule declines a selected site.
        expect: raise if fewer sites than this are rewritten.
        verify: check every site against float64, and the whole model against the original.
        inputs: what to verify on instead of made-up inputs: an .npz file; for torch example inputs, a tuple or a
            mapping by name, which also tell the shapes of a traced graph.
        dims: sizes of free dimensions to verify on, by name.
        progress: called with (what, done, total) as the work goes on.

    Returns:
        The report; ``report.result`` is the rewritten model, of the kind that was given (an ``onnx_ir.Model`` for
        a file; None after a dry run).

    Raises:
        DeclinedError: see ``strict`` and ``expect``.
        VerificationError: the result does not give the original's numbers; no output is left.
        GraftError: bad input, or the output cannot be written.
    """
    host = open_host(model, inputs)
    job = _Job(
        host=host,
        rules=[registry.parse(rule) for rule in rules],
        output=None if output is None else host.checked_output(output),
        sites=sites,
        dims=dims,
        tell=progress or (lambda what, done, total: None),
    )
    if dry_run:
        reading = host.read()
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

    host: Host
    rules: Sequence[Rule]
    output: Path | None
    sites: Sequence[str] | str | None
    dims: Mapping[str, int] | None
    tell: Progress

    def run(self, folder: Path, check: bool, strict: bool, expect: int | None) -> ApplyReport:
        """Edit and prove until every rewritten site passes; files of the result are left in ``folder``."""
        barred: dict[tuple[str, str], str] = {}
        rolled_back: list[str] = []
        while True:
            reading = self.host.read()
            edit = choice.choose(reading, self.rules, choice.select(reading, self.sites), barred)
            choice.demand(reading, edit, strict, expect)
            with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
                proving = check and bool(edit.plans)
                prover = self.host.prover(self.dims, self.tell, Path(scratch)) if proving else None
                errors = prover.sites(reading, edit) if prover else {}
                bad = {site: why for site, e in errors.items() if (why := site_check.failure(e)) is not None}
                if not bad:
                    result = self.host.lower(reading, edit.plans)
                    bad = choice.still_computed(reading, edit)
                if bad:
                    barred.update({(site, edit.rules[site].name): why for site, why in bad.items()})
                    rolled_back += bad
                    continue
                name = self.output.name if self.output is not None else "result.onnx"
                kept = self.host.keep(result, folder, name) if self.output or prover else None
                proof = prover.whole(edit, kept, errors, rolled_back) if prover else None
            return self.report(reading, edit, proof, result)

    def report(self, reading: Reading, edit: Edit, check: ApplyCheck | None, result: Any) -> ApplyReport:
        """Return what was done."""
        return ApplyReport(
            model=self.host.name,
            sites=sum(any(rule.on == site.kind for rule in self.rules) for site in reading.sites.values()),
            rewritten=len(edit.plans),
            declined=edit.refused,
            kernels={site: choice.kernel(plan) for site, plan in edit.plans.items()},
            output=None if self.output is None or result is None else str(self.output),
            verify=check,
            warnings=edit.cautions(reading),
            plan=[f"{site}: {edit.rules[site]}: {plan}" for site, plan in edit.plans.items()],
            result=result,
        )
