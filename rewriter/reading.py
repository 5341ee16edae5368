"""A model as it is read: every site by name, every decline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter import registry
from rewriter.hosts.base import Graphs
from rewriter.plan import Rule
from rewriter.quiet_gc import quiet_gc


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model as it was read: sites by name, and declines.

    Attributes:
        graphs: the expressions that were read.
        sites: by name.
        declines: what was met and not read.
        free: sites read without relying on the lengths that inputs were seen with; edits are made from these.
    """

    graphs: Graphs
    sites: Mapping[str, Any]
    declines: Sequence[Any]
    free: Mapping[str, Any] = field(default_factory=dict)

    def editable(self, name: str, rule: Rule) -> Any:
        """Return the site that the edit of a rule is made from."""
        free = self.free.get(name)
        return free if free is not None and rule.why_not(free, rule.given) is None else self.sites[name]


@dataclass(frozen=True, kw_only=True)
class State:
    """What a decoder keeps between runs: output of the file without past, input and output of that with past.

    ``later`` is None where it does not change after the first run.
    """

    first: str
    past: str
    later: str | None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a decoder keeps before and after an edit.

    ``switch`` is the input by which a file that is both, without past and with, is told which it is to be.
    """

    old: Sequence[State]
    new: Sequence[State]
    switch: str | None = None


@quiet_gc
def read(graphs: Graphs) -> Reading:
    """Return all sites and declines of a model; sites are named by kind and order."""
    sites: dict[str, Any] = {}
    declines: list[Any] = []
    counts: dict[str, int] = {}
    for found in _found(graphs, sites):
        if hasattr(found, "reason"):
            declines.append(found)
            continue
        counts[found.kind] = counts.get(found.kind, -1) + 1
        sites[f"{found.kind}.{counts[found.kind]}"] = found
    return Reading(graphs=graphs, sites=sites, declines=declines)


def _found(graphs: Graphs, sites: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what readers find, and then what those sites make up."""
    for reader in registry.readers():
        yield from reader(graphs)
    for assembler in registry.assemblers():
        yield from assembler(graphs, list(sites.values()))
