"""Looking without touching: what a model contains, and the story of each site and decline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewriter import activity, registry
from rewriter.errors import GraftError
from rewriter.host import InputsLike, ModelLike, open_host
from rewriter.plan import Rule
from rewriter.reading import Reading
from rewriter.report import Activity, DeclineRow, ShowReport, SiteRow, Story, WhyReport
from runtime_ops.dims import Dim, vague


def show(model: ModelLike, inputs: InputsLike = None) -> ShowReport:
    """List the sites of a model, and for each softmax that is none the reason.

    Args:
        model: an ONNX file, an ``onnx_ir.Model``, a ``torch.fx.GraphModule`` or a ``torch.export.ExportedProgram``.
        inputs: what to run it on, to measure how many neurons of its feed-forward blocks are at work: an .npz file;
            for torch example inputs, a tuple or a mapping by name, which also tell the shapes of a traced graph.

    Raises:
        GraftError: the model cannot be opened, or does not run on the inputs.
    """
    host = open_host(model, inputs)
    reading = host.read()
    measured = {} if inputs is None else activity.measure(host, reading)
    return ShowReport(
        model=host.name,
        host=host.kind,
        opset=host.opset,
        sites=[_row(name, site, measured) for name, site in reading.sites.items()],
        declines=[DeclineRow(kind=d.kind, anchor=d.anchor, reason=d.reason, at=d.at) for d in reading.declines],
    )


def _row(name: str, site: Any, measured: Mapping[str, Activity]) -> SiteRow:
    """Return the row of a site; what its kind does not have is None."""
    return SiteRow(
        id=name,
        kind=site.kind,
        reads_as=site.reads_as,
        heads=_number(getattr(site, "heads", None)),
        kv_heads=_number(getattr(site, "kv_heads", None)),
        head_width=_number(getattr(site, "head_width", None)),
        value_width=_number(getattr(site, "value_width", None)),
        scale=getattr(site, "scale", None),
        mask=str(site.mask) if hasattr(site, "mask") else None,
        softcap=getattr(site, "softcap", None),
        model_width=_number(getattr(site, "model_width", None)),
        inner_width=_number(getattr(site, "inner_width", None)),
        anchor=site.anchor,
        activity=measured.get(name),
        **{name: getattr(site, name) for name in _OF_ITS_KIND if hasattr(site, name)},
    )


_OF_ITS_KIND = (
    "around", "rope", "qk_norm", "cache", "projections",
    "activation", "gated", "biases", "quantised", "stored",
)  # fmt: skip
_SIMPLE = 24  # characters of a length that fit a table


def _number(length: Dim | None) -> int | str | None:
    """Return a length: as a number, as text where it is a simple expression of names, else None."""
    if length is None or isinstance(length, int):
        return length
    return None if vague(length) or len(str(length)) > _SIMPLE else str(length)


def why(model: ModelLike, site: str | None = None, inputs: InputsLike = None) -> WhyReport:
    """Tell how every site was read and what rules say of it, and why each other softmax was not.

    Args:
        model: as in ``show``.
        site: tell of this site or anchor only.
        inputs: example inputs of a traced graph whose shapes are not known yet.

    Raises:
        GraftError: the model cannot be opened, or there is no such site.
    """
    host = open_host(model, inputs)
    reading = host.read()
    stories = [*_declines(reading), *_sites(reading)]
    if site is not None:
        chosen = [s for s in stories if site in (s.id, s.anchor)]
        if not chosen:
            raise GraftError(f"no site or decline is called '{site}'; there are {', '.join(s.id for s in stories)}")
        stories = chosen
    return WhyReport(model=host.name, stories=stories)


def _declines(reading: Reading) -> list[Story]:
    """Return the stories of declines; the one that got furthest is the nearest miss and comes first."""
    nearest = sorted(enumerate(reading.declines), key=lambda pair: -len(pair[1].steps))
    return [
        Story(id=f"decline.{n}", anchor=d.anchor, outcome=f"{d.reason} (at {d.at})", steps=d.steps, rules={})
        for n, d in nearest
    ]


def _answer(rule: Rule, site: Any) -> str:
    """Return why a rule does not apply to a site, or that it does and what it warns of."""
    reason = rule.why_not(site, rule.given)
    if reason is not None:
        return reason
    warning = rule.warns(site, rule.given)
    return "applies" if warning is None else f"applies; {warning}"


def _sites(reading: Reading) -> list[Story]:
    rules = [rule.tried() for rule in registry.rules().values()]
    stories = []
    for name, site in reading.sites.items():
        said = {rule.name: _answer(rule, site) for rule in rules if rule.on == site.kind}
        stories.append(
            Story(
                id=name,
                anchor=site.anchor,
                outcome=site.reads_as,
                steps=site.steps,
                around=getattr(site, "surroundings", {}),
                rules=said,
            )
        )
    return stories
