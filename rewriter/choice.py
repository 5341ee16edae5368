"""Which rule takes which site: the first of the rules asked for that does not decline."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter import sessions
from rewriter.errors import DeclinedError, GraftError
from rewriter.plan import Keeps, Plan, Rule
from rewriter.reading import Reading
from rewriter.report import Caution, Refusal
from runtime_ops import kernels
from runtime_ops.interpret import has_handle, topological


@dataclass(kw_only=True)
class Edit:
    """Which rule takes which site, and which declined."""

    plans: dict[str, Plan] = field(default_factory=dict)
    limits: dict[str, Plan] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def cautions(self, reading: Reading) -> list[Caution]:
        """Return what rules warn of, each sentence once with all its sites."""
        sites: dict[tuple[str, str], list[str]] = {}
        for name, rule in self.rules.items():
            warning = rule.warns(reading.sites[name], rule.given)
            if warning is not None:
                sites.setdefault((rule.name, warning), []).append(name)
        return [Caution(sites=names, rule=rule, warning=warning) for (rule, warning), names in sites.items()]


def choose(reading: Reading, rules: Sequence[Rule], selected: set[str], barred: Mapping[tuple[str, str], str]) -> Edit:
    """Return the first rule of those asked for that takes each selected site.

    ``barred`` holds the sites and rules that failed their proof, and why.
    """
    edit = Edit()
    for name in (n for n in reading.sites if n in selected):
        site = reading.sites[name]
        for rule in (r for r in rules if r.on == site.kind):
            why = barred.get((name, rule.name)) or rule.why_not(site, rule.given)
            if why is not None:
                edit.refused.append(Refusal(site=name, rule=rule.name, reason=why))
                continue
            editable = reading.editable(name, rule)
            edit.rules[name], edit.plans[name] = rule, rule.plan(editable, rule.given)
            if rule.keeps is Keeps.LIMIT:
                edit.limits[name] = rule.plan(editable, rule.at_limit().given)
            break
    edit.refused = [r for r in edit.refused if r.site not in edit.plans]
    return edit


def select(reading: Reading, patterns: Sequence[str] | str | None) -> set[str]:
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


def demand(reading: Reading, edit: Edit, strict: bool, expect: int | None) -> None:
    """Raise DeclinedError if anything was declined under ``strict``, or less than ``expect`` sites are rewritten."""
    reasons = [f"{r.site}, {r.rule}: {r.reason}" for r in edit.refused]
    reasons += [f"{d.anchor}: {d.reason}" for d in reading.declines]
    if strict and reasons:
        raise DeclinedError(f"{len(reasons)} declined under --strict; the first is {reasons[0]}")
    if expect is not None and len(edit.plans) < expect:
        raise DeclinedError(f"{len(edit.plans)} sites rewritten, {expect} expected")


def still_computed(reading: Reading, edit: Edit) -> dict[str, str]:
    """Return the rewritten sites whose inner values are still computed, because something else reads inner tensors."""
    left = {}
    for site, plan in edit.plans.items():
        reader = reading.graphs.survivor(plan.gone or reading.sites[site].node)
        if reader is not None:
            left[site] = f"its inner values are still read by {reader}, so nothing would be saved"
    return left


def kernel(plan: Plan) -> str:
    """Return the kernel that will run the call of a plan here, "function body", or "standard operators" for no call."""
    calls = [n for e in plan.values.values() for n in topological(e, has_handle) if n.word == "call"]
    if not calls:
        return "standard operators"
    if not sessions.have_kernels():
        return "function body"
    name, dtype = calls[0].attrs["spec"].name, str(calls[0].args[0].dtype)
    rows = [row for row in kernels.kernels() if row["op"] == name and _takes(row, dtype)]
    return str(max(rows, key=lambda row: row["rank"])["name"]) if rows else "function body"


def _takes(row: Mapping[str, Any], dtype: str) -> bool:
    """Return whether a kernel runs here and takes calls of a type whatever their lengths."""
    return bool(row["usable"]) and dtype in row["dtypes"] and not row["limits"].get("min_keys")
