"""Rules and readers, found through the entry-point group ``graft.patterns``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

from rewriter.errors import GraftError
from rewriter.plan import Rule

GROUP = "graft.patterns"


@functools.cache
def _modules() -> tuple[Any, ...]:
    found = {point.value: point for point in entry_points(group=GROUP)}
    if not found:
        raise GraftError("no patterns are installed; install attn-graft with pip so that its entry points exist")
    return tuple(point.load() for point in found.values())


def rules() -> dict[str, Rule]:
    """Return every rule by name."""
    return {rule.name: rule for module in _modules() for rule in module.RULES}


def readers() -> Sequence[Callable[[Any], Iterator[Any]]]:
    """Return every reader: a function from a host's graphs to sites and declines."""
    return [reader for module in _modules() for reader in module.READERS]


def assemblers() -> Sequence[Callable[[Any, Sequence[Any]], Iterator[Any]]]:
    """Return every assembler: a function from a host's graphs and the sites in them to sites made up of those."""
    return [assembler for module in _modules() for assembler in getattr(module, "ASSEMBLERS", ())]


def decoders() -> Sequence[Callable[[Any, Any, bool], Any]]:
    """Return what changes decoders: functions from readings of its two files, and force, to plans for both."""
    return [change for module in _modules() for change in getattr(module, "DECODERS", ())]


def parse(rule: str | Rule) -> Rule:
    """Return the rule that ``NAME[:key=value,…]`` says.

    Raises:
        GraftError: the rule is unknown or its options are wrong.
    """
    if isinstance(rule, Rule):
        return rule
    name, colon, rest = rule.partition(":")
    known = rules()
    if name not in known:
        raise GraftError(f"there is no rule '{name}'; the rules are {', '.join(known)}")
    if colon and not rest:
        raise GraftError(f"rule '{rule}' ends in a colon without options; write {name} or {name}:key=value")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise GraftError(f"'{part}' in rule '{rule}' is not of the form key=value")
        if key.strip() in given:
            raise GraftError(f"option {key.strip()} is given twice in rule '{rule}'")
        given[key.strip()] = value.strip()
    return known[name].bound(given)
