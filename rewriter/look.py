"""Looking without touching: what a model contains, and the story of each site and decline."""

from __future__ import annotations

from typing import Any

from rewriter import registry
from rewriter.errors import GraftError
from rewriter.reading import ModelLike, Reading, name_of, open_any, read
from rewriter.report import DeclineRow, ShowReport, SiteRow, Story, WhyReport
from runtime_ops.dims import Dim, vague


def show(model: ModelLike) -> ShowReport:
    """List the sites of a model, and for each softmax that is none the reason.

    Raises:
        GraftError: the model cannot be opened.
    """
    reading = read(open_any(model))
    opsets = reading.graphs.model.opset_imports
    return ShowReport(
        model=name_of(model),
        host="onnx",
        opset=opsets.get("", opsets.get("ai.onnx")),
        sites=[_row(name, site) for name, site in reading.sites.items()],
        declines=[DeclineRow(kind=d.kind, anchor=d.anchor, reason=d.reason, at=d.at) for d in reading.declines],
    )


def _row(name: str, site: Any) -> SiteRow:
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
        **{name: getattr(site, name) for name in (*_AROUND, *_BLOCK) if hasattr(site, name)},
    )


_AROUND = ("around", "rope", "qk_norm", "cache", "projections")
_BLOCK = ("activation", "gated", "biases", "quantised", "stored")
_SIMPLE = 24  # characters of a length that fit a table


def _number(length: Dim | None) -> int | str | None:
    """Return a length: as a number, as text where it is a simple expression of names, else None."""
    if length is None or isinstance(length, int):
        return length
    return None if vague(length) or len(str(length)) > _SIMPLE else str(length)


def why(model: ModelLike, site: str | None = None) -> WhyReport:
    """Tell how every site was read and what rules say of it, and why each other softmax was not.

    Args:
        model: a file or a model in memory.
        site: tell of this site or anchor only.

    Raises:
        GraftError: the model cannot be opened, or there is no such site.
    """
    reading = read(open_any(model))
    stories = [*_declines(reading), *_sites(reading)]
    if site is not None:
        chosen = [s for s in stories if site in (s.id, s.anchor)]
        if not chosen:
            raise GraftError(f"no site or decline is called '{site}'; there are {', '.join(s.id for s in stories)}")
        stories = chosen
    return WhyReport(model=name_of(model), stories=stories)


def _declines(reading: Reading) -> list[Story]:
    """Return the stories of declines; the one that got furthest is the nearest miss and comes first."""
    nearest = sorted(enumerate(reading.declines), key=lambda pair: -len(pair[1].steps))
    return [
        Story(id=f"decline.{n}", anchor=d.anchor, outcome=f"{d.reason} (at {d.at})", steps=d.steps, around={}, rules={})
        for n, d in nearest
    ]


def _sites(reading: Reading) -> list[Story]:
    rules = registry.rules()
    stories = []
    for name, site in reading.sites.items():
        said = {
            rule.name: rule.why_not(site, rule.given) or "applies" for rule in rules.values() if rule.on == site.kind
        }
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
