"""Reports as text for people: numbers with units, reasons in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.doctor import Check, DoctorReport, KernelRow
from rewriter.report import (
    Activity,
    ApplyCheck,
    ApplyReport,
    BenchCase,
    BenchReport,
    CacheReport,
    DeclineRow,
    DistillReport,
    ExpandReport,
    OutputError,
    Report,
    ShowReport,
    SiteError,
    SiteRow,
    SplitReport,
    Story,
    Timing,
    VerifyReport,
    WhyReport,
)
from rewriter.tables import Page, counted, indented, lay_out, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def text(report: Report, page: Page | None = None) -> str:
    """Return the report as text for this page, by default that of standard output."""
    return lay_out(FORMS[type(report)](report), page)


def _show(report: ShowReport) -> Iterable[RenderableType]:
    opset = f", opset {report.opset}" if report.opset is not None else ""
    found = f"{counted(len(report.sites), 'site')}, {len(report.declines)} not read"
    yield f"{report.model} ({report.host}{opset}): {found}"
    if report.sites:
        yield ""
        heads = ("site", "reads as", ">heads", ">width", "mask or format", "around", "anchor")
        yield table(heads, map(_site, report.sites))
    yield from _activity(report.sites)
    if report.declines:
        yield "\nnot read:"
    for row in report.declines:
        yield from _decline(row)


def _site(row: SiteRow) -> Sequence[str]:
    heads, width = _pair(row.heads, row.kv_heads), _pair(row.head_width, row.value_width)
    if row.kind != "attention":
        inner = row.model_width if row.inner_width is None else row.inner_width
        heads, width = "", _pair(row.model_width, inner)
    stored = row.stored and f"{row.stored} weights"
    told = row.mask or row.quantised or stored or ""
    return (row.id, row.reads_as, heads, width, told, ", ".join(row.around), row.anchor)


def _activity(rows: Sequence[SiteRow]) -> Iterable[RenderableType]:
    """Yield how many neurons are at work, where that was measured."""
    measured = {row.id: row.activity for row in rows if row.activity}
    if not measured:
        return
    shares = [f">{100 * share:g} %" for share in next(iter(measured.values())).largest]
    yield "\nneurons at work: how many are positive (mean), not zero, and hold so much of the sum of squares of a token"
    yield "(median/most of all tokens); with select_by=contribution a k of the most not zero changes nothing here\n"
    heads = ("site", ">tokens", ">positive", ">not zero", *shares)
    yield table(heads, ((name, *_neurons(activity)) for name, activity in measured.items()))


def _neurons(activity: Activity) -> Sequence[str]:
    counts = (activity.nonzero, *activity.largest.values())
    positive = "–" if activity.positive is None else f"{100 * activity.positive:.1f} %"
    return (str(activity.tokens), positive, *(f"{n.median}/{n.most}" for n in counts))


def _pair(one: int | str | None, other: int | str | None) -> str:
    """Return both numbers, or one where they agree; ? is for what the graph does not say."""
    first, second = ("?" if n is None else str(n) for n in (one, other))
    return first if first == second else f"{first}/{second}"


def _decline(row: DeclineRow) -> Iterable[RenderableType]:
    yield indented(f"{row.anchor} ({row.kind})", 2)
    yield indented(row.reason + (f" [at {row.at}]" if row.at and row.at != row.anchor else ""), 4)


def _why(report: WhyReport) -> Iterable[RenderableType]:
    yield report.model + (", nearest miss first" if len(report.stories) > 1 else "")
    for story in report.stories:
        yield ""
        yield from _story(story)


def _story(story: Story) -> Iterable[RenderableType]:
    yield f"{story.id}  {story.anchor}: {story.outcome}"
    if story.steps:
        yield ""
        yield table(
            (">step", "node", "met", "meaning"),
            ((str(n), s.node, s.met, s.meaning) for n, s in enumerate(story.steps, 1)),
        )
    for name, found in story.around.items():
        yield indented(f"{name}: {found}", 2)
    for name, answer in story.rules.items():
        yield indented(f"rule {name}: {answer}", 2)


def _apply(report: ApplyReport) -> Iterable[RenderableType]:
    where = f" → {report.output}" if report.output else ", nothing written"
    yield f"{report.model}: {report.rewritten} of {counted(report.sites, 'site')} rewritten{where}"
    if report.plan and report.output is None and report.verify is None:
        yield ""
        yield from (indented(line, 2) for line in report.plan)
    if report.kernels:
        yield ""
        yield _sites(report.kernels, report.verify)
    if report.verify:
        yield from _check(report.verify)
    warned = [f"{', '.join(row.sites)}: {row.rule}: {row.warning}" for row in report.warnings]
    left = [f"{row.site}, {row.rule}: {row.reason}" for row in report.declined]
    for head, lines in (("warnings", warned), ("not rewritten", left)):
        yield from [f"\n{head}:"] * bool(lines) + [indented(line, 2) for line in lines]


def _sites(kernels: Mapping[str, str], check: ApplyCheck | None) -> Table:
    """Return one row per rewritten site: what runs it, and its relative L2 errors where measured."""
    errors = {row.site: row for row in check.sites} if check else {}
    heads = ["site", "runs on"]
    if errors:
        heads += [">rewrite", ">kernel", ">original", ">approximation"]
    rows = ((site, kernel, *_errors(errors.get(site))) for site, kernel in kernels.items())
    return table(heads, (row[: len(heads)] for row in rows))


def _errors(row: SiteError | None) -> Sequence[str]:
    if row is None:
        return ("", "", "", "")
    return tuple(_error(x) for x in (row.rewrite, row.kernel, row.original, row.approximation))


def _check(check: ApplyCheck) -> Iterable[RenderableType]:
    exact = " at the setting where it is exact (of top-k: k = all)" if check.approximation else ""
    yield f"relative L2 error of each site alone, against fp64: of the rewrite{exact},"
    yield "of what will run, of the original as it ran, and of the approximation asked for"
    yield f"\nend to end, the rewrite itself{exact}:"
    yield from _verify(check.rewrite)
    if check.approximation:
        yield "\nend to end, with the approximation asked for:"
        yield _outputs(check.approximation.outputs)
    if check.rolled_back:
        yield f"\nrolled back: {', '.join(check.rolled_back)}"


def _verify(report: VerifyReport) -> Iterable[RenderableType]:
    yield _outputs(report.outputs)
    verdict = "passed" if report.passed else "FAILED"
    cases = f"; worst of: {', '.join(report.cases)}" if report.cases else ""
    yield f"{verdict} (tolerance: relative L2 {report.tolerance:.0e}{cases})"


def _outputs(rows: Sequence[OutputError]) -> Table:
    return table(("output", ">max abs", ">rel L2", ">cosine", ">same argmax"), map(_output, rows))


def _output(row: OutputError) -> Sequence[str]:
    same = f"{100 * row.argmax_agreement:.1f} %"
    return (row.name, _error(row.max_abs), _error(row.rel_l2), f"{row.cosine:.6f}", same)


def _bench(report: BenchReport) -> Iterable[RenderableType]:
    yield f"a = {report.a}\nb = {report.b}\n"
    heads = ("case", ">threads", ">a ms", ">a min", ">a MB", ">b ms", ">b min", ">b MB", ">a/b")
    yield table(heads, map(_case, report.cases))
    yield "ms: median, min: fastest, MB: peak memory above the idle session; a/b above 1: b is faster"


def _case(case: BenchCase) -> Sequence[str]:
    dims = " ".join(f"{name}={n}" for name, n in case.dims.items())
    return (dims, str(case.threads), *_timing(case.a), *_timing(case.b), f"{case.ratio:.2f}")


def _timing(timing: Timing) -> Sequence[str]:
    return (f"{timing.median_ms:.2f}", f"{timing.min_ms:.2f}", f"{timing.peak_mb:.1f}")


def _doctor(report: DoctorReport) -> Iterable[RenderableType]:
    yield f"Python {report.python} on {report.platform}\n"
    yield table(("package", "version"), ((n, v or "not installed") for n, v in report.versions.items()))
    yield f"\nkernel library: {report.library or 'none'}"
    if report.kernels:
        heads = ("op", "kernel", "isa", "types", "usable here")
        yield table(heads, map(_kernel, report.kernels))
    yield ""
    yield _checks(report.checks)


def _checks(checks: Sequence[Check]) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for check in checks:
        grid.add_row("ok" if check.passed else "FAIL", f"{check.name}: {check.found}")
        if check.advice:
            grid.add_row("", check.advice)
    return grid


def _kernel(row: KernelRow) -> Sequence[str]:
    return (row.op, row.name, row.isa, " ".join(row.dtypes), "yes" if row.usable else f"no: {row.reason}")


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _split(report: SplitReport) -> Iterable[RenderableType]:
    yield (
        f"{report.model}: {counted(report.layers, 'layer')} apart, questions of {report.question_length} tokens, "
        f"positions {report.positions}; a cached passage has {report.bytes_per_token} bytes a token in fp32"
    )
    yield table(("file", ">bytes"), ((f"{report.output}/{name}", f"{n:,}") for name, n in report.files.items()))


def _cache(report: CacheReport) -> Iterable[RenderableType]:
    size = report.bytes / max(report.kept, 1)
    yield (
        f"{report.store}: {report.new} of {counted(report.passages, 'passage')} encoded, {report.kept} kept in "
        f"{report.kind}, {report.bytes:,} bytes ({size:,.0f} each)"
    )


def _expand(report: ExpandReport) -> Iterable[RenderableType]:
    proof = "" if report.error is None else f"; over several steps outputs are at most {_error(report.error)} apart"
    sources = ", ".join(filter(None, (report.decoder, report.with_past)))
    yield f"{sources}: {counted(report.attentions, 'attention')} expanded{proof}"
    yield from (f"  {line}" for line in (report.caution,) if line)
    for file, old in report.old.items():
        new = report.new[file]
        rows = (
            (part, name, old[part].get(name, "-"), new[part].get(name, "-"))
            for part in ("inputs", "outputs")
            for name in dict.fromkeys((*old[part], *new[part]))
        )
        yield table((file, "name", "before", "now"), rows)
    yield table(("file", ">bytes"), ((f"{report.output}/{name}", f"{n:,}") for name, n in report.files.items()))


def _distill(report: DistillReport) -> Iterable[RenderableType]:
    rows = ((when, *map(_error, report.losses[n].values())) for when, n in (("first", 0), ("last", -1)))
    yield table((f"{report.teacher}, {counted(report.steps, 'step')}", *(f">{n}" for n in report.losses[0])), rows)


FORMS: Mapping[type[Report], Callable[[Any], Iterable[RenderableType]]] = {
    ShowReport: _show,
    WhyReport: _why,
    ApplyReport: _apply,
    SplitReport: _split,
    CacheReport: _cache,
    DistillReport: _distill,
    ExpandReport: _expand,
    VerifyReport: _verify,
    BenchReport: _bench,
    DoctorReport: _doctor,
}
