"""The pages of rules and operations, for ``graft rules``, ``graft ops`` and the documentation.

Everything on them comes from the rules and the op specifications themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rewriter.errors import GraftError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rewriter.plan import Option, Rule
    from rewriter.tables import Page
    from runtime_ops.spec import Attribute, OpSpec

Entry = TypeVar("Entry")


def rules(known: Mapping[str, Rule], name: str | None = None, page: Page | None = None) -> str:
    """Return the list of rules, or the page of one."""
    from rewriter.tables import lay_out, table

    if name is not None:
        return lay_out(rule_page(_pick("rule", known, name)), page)
    rows = ((rule.name, _keeps(rule), rule.summary) for rule in known.values())
    return lay_out([table(("rule", "keeps", "what it does"), rows)], page)


def ops(known: Mapping[str, OpSpec], name: str | None = None, page: Page | None = None) -> str:
    """Return the list of operations, or the page of one."""
    from rewriter.tables import lay_out, table

    if name is not None:
        return lay_out(op_page(_pick("operation", known, name)), page)
    rows = ((spec.name, _meaning(spec)[0]) for spec in known.values())
    return lay_out([table(("operation", "what it computes"), rows)], page)


def _pick(kind: str, known: Mapping[str, Entry], name: str) -> Entry:
    if name not in known:
        raise GraftError(f"there is no {kind} {name}; there is {', '.join(sorted(known)) or 'none at all'}")
    return known[name]


def rule_page(rule: Rule) -> Iterable[RenderableType]:
    """Return the parts of a rule's page: what it does, what it keeps, its options."""
    yield f"{rule.name}\n\n{rule.summary}\n\nrewrites: {rule.on}\nkeeps: {_keeps(rule)}"
    if rule.options:
        yield ""
        yield _table(("option", "type", "default", "meaning"), (_option(*item) for item in rule.options.items()))


def _keeps(rule: Rule) -> str:
    limit = ", ".join(f"{name} = {value}" for name, value in rule.limit.items())
    return f"{rule.keeps}: {limit}" if limit else str(rule.keeps)


def _option(name: str, option: Option) -> Sequence[str]:
    default = "required" if option.required else "none" if option.default is None else str(option.default)
    return (name, option.kind.__name__, default, option.doc)


def op_page(spec: OpSpec) -> Iterable[RenderableType]:
    """Return the parts of an operation's page: meaning, inputs, attributes."""
    inputs = [(i.name, _layout(i.layout), i.kind + (", optional" if i.optional else "")) for i in spec.inputs]
    yield f"ai.graft::{spec.name}\n"
    yield "\n\n".join(_meaning(spec))
    yield ""
    yield _table(("input", "axes", "type"), inputs)
    yield f"\nresult {_layout(spec.output)}\n"
    yield _table(("attribute", "type", "default", "meaning"), map(_attribute, spec.attributes))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    from rewriter.tables import table

    return table(heads, rows)


def _attribute(attribute: Attribute) -> Sequence[str]:
    default = "worked out" if attribute.default is None else str(attribute.default)
    return (attribute.name, attribute.kind.__name__, default, attribute.doc)


def _layout(letters: str) -> str:
    return f"[{letters}]"


def _meaning(spec: OpSpec) -> Sequence[str]:
    """Return the docstring's paragraphs, each on one line, without markup or the op's own name in front."""
    paragraphs = inspect.cleandoc(spec.doc).replace("``", "").split("\n\n")
    lines = [" ".join(p.split()) for p in paragraphs if p.strip()]
    first = lines[0].removeprefix(f"ai.graft::{spec.name}: ")
    return [first[:1].upper() + first[1:], *lines[1:]]
