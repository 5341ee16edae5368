"""Plans and rules: an edit as data, and when it is to be made."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewriter.errors import GraftError
from runtime_ops.words import Expr


class Keeps(enum.Enum):
    """What a rewrite keeps of the original's values."""

    EXACT = "exact"
    LIMIT = "exact in a limit"
    APPROXIMATE = "approximate"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An edit: for each value of the graph (by its handle) the expression that takes its place.

    Attributes:
        values: those expressions.
        inputs: new inputs of the model by name, as symbols that the expressions mention.
        outputs: new outputs by name.
        dropped: names of inputs and outputs that go.
        lengths: what gives the shape of tensors that go, by name, for nodes that read it.
        gone: a node that nothing may read after the edit, or else nothing is saved; None: the site's.
    """

    values: Mapping[Any, Expr]
    inputs: Mapping[str, Expr] = field(default_factory=dict)
    outputs: Mapping[str, Expr] = field(default_factory=dict)
    dropped: Sequence[str] = ()
    lengths: Mapping[str, Expr] = field(default_factory=dict)
    gone: Any = None

    def __str__(self) -> str:
        return "; ".join(f"{getattr(handle, 'name', handle)} := {text(expr)}" for handle, expr in self.values.items())


def text(expr: Expr) -> str:
    """Return an expression as one line; leaves by name, constants by value."""
    if expr.handle is not None:
        return str(getattr(expr.handle, "name", expr.handle))
    if expr.word == "const":
        return str(expr.known.tolist()) if expr.known is not None else "const"
    args = [text(a) for a in expr.args]
    if expr.word == "call":
        named = [f"{name}={arg}" for name, arg in zip(expr.attrs["names"], args, strict=True)]
        values = {k: v for k, v in expr.attrs["values"].items() if v is not None}
        attrs = [f"{k}={v}" if isinstance(v, str) else f"{k}={v:g}" for k, v in values.items()]
        return f"{expr.attrs['spec'].name}({', '.join(named + attrs)})"
    return f"{expr.word}({', '.join(args)})"


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a rule, as in ``topk-attention:k=64``."""

    kind: type
    doc: str
    required: bool = False
    default: Any = None
    at_least: float | None = None
    one_of: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When to rewrite a site, and to which call; what the call means is said by its operation.

    Attributes:
        name: as on the command line.
        summary: one sentence for users.
        on: kind of site.
        keeps: whether the values of the original are kept.
        options: by name.
        why_not: returns why the rule does not apply to a site, or None.
        plan: returns the edit.
        limit: option values at which the rewrite is exact; for LIMIT rules.
        given: the option values of this instance.
        warns: returns what a user should know of a site that the rule applies to, or None.
    """

    name: str
    summary: str
    on: str
    keeps: Keeps
    why_not: Callable[[Any, Mapping[str, Any]], str | None]
    plan: Callable[[Any, Mapping[str, Any]], Plan]
    options: Mapping[str, Option] = field(default_factory=dict)
    limit: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    warns: Callable[[Any, Mapping[str, Any]], str | None] = lambda site, given: None

    def bound(self, given: Mapping[str, str]) -> Rule:
        """Return this rule with option values read from text.

        Raises:
            GraftError: an option is unknown, missing or malformed.
        """
        unknown = sorted(set(given) - set(self.options))
        if unknown:
            has = f"it has {', '.join(self.options)}" if self.options else "it has none"
            raise GraftError(f"rule {self.name} has no option {unknown[0]}; {has}")
        missing = [name for name, o in self.options.items() if o.required and name not in given]
        if missing:
            raise GraftError(f"rule {self.name} needs the option {missing[0]}, as in {self.name}:{missing[0]}=64")
        values = {name: o.default for name, o in self.options.items() if name not in given}
        values.update({name: self._value(name, said) for name, said in given.items()})
        return replace(self, given=values)

    def _value(self, name: str, said: str) -> Any:
        option = self.options[name]
        try:
            value = option.kind(said)
        except ValueError:
            kind = {"int": "a whole number", "float": "a number"}.get(option.kind.__name__, option.kind.__name__)
            raise GraftError(f"option {name} of rule {self.name} takes {kind}, got '{said}'") from None
        if option.at_least is not None and value < option.at_least:
            raise GraftError(f"option {name} of rule {self.name} must be at least {option.at_least:g}, got {said}")
        if option.one_of and value not in option.one_of:
            allowed = ", ".join(option.one_of)
            raise GraftError(f"option {name} of rule {self.name} must be one of {allowed}; got '{said}'")
        return value

    def tried(self) -> Rule:
        """Return this rule with options that nobody chose: defaults, and 1 where one is required."""
        return replace(self, given={name: 1 if o.required else o.default for name, o in self.options.items()})

    def at_limit(self) -> Rule:
        """Return this rule with the options at which it is exact."""
        return replace(self, given={**self.given, **self.limit})

    def __str__(self) -> str:
        given = ",".join(f"{k}={v}" for k, v in self.given.items() if v is not None)
        return f"{self.name}:{given}" if given else self.name
