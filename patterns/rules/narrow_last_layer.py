"""``narrow-last-layer``: the last layer of an encoder computes only the tokens that its head reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patterns.narrow import narrowed
from patterns.site import EncoderSite, Unreadable
from rewriter.plan import Keeps, Plan, Rule
from runtime_ops.words import Expr


def _why_not(site: EncoderSite, given: Mapping[str, Any]) -> str | None:
    if isinstance(site.chosen, str):
        return site.chosen
    if site.layers[-1].leaks:
        return f"the last layer's probabilities are also read by {site.layers[-1].leaks[0]}"
    try:
        _narrow(site)
    except Unreadable as stop:
        return stop.reason
    return None


def _narrow(site: EncoderSite) -> tuple[Expr, Expr]:
    """Return what chooses tokens, and what takes its place."""
    assert not isinstance(site.chosen, str)
    return site.chosen, narrowed(site.chosen, site.cuts[len(site.layers) - 2].value, site.layers[-1])


def _plan(site: EncoderSite, given: Mapping[str, Any]) -> Plan:
    chosen, instead = _narrow(site)
    return Plan(values={chosen.handle: instead}, gone=site.layers[-1].node)


RULE = Rule(
    name="narrow-last-layer",
    summary="Lets the last layer of an encoder compute only those tokens that its head reads, as classifiers do.",
    on="encoder",
    keeps=Keeps.EXACT,
    why_not=_why_not,
    plan=_plan,
)
