"""What an operation is: its schema and its meaning, said once; everything else is derived from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime_ops import bodies, interpret
from runtime_ops.dims import Dim, Sym
from runtime_ops.shapes import broadcast, broadcast_dim
from runtime_ops.words import Expr, make, symbol

DOMAIN, VERSION = "ai.graft", 1


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of an op: axes by letter (``...``: any axes in front), and which element types it takes."""

    name: str
    layout: str
    kind: str = "float"  # "float" | "bool" | "int64"
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute of an op; ``default`` None means that it is worked out when absent."""

    name: str
    kind: type
    default: int | float | str | None
    doc: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A call to test with: arrays by input name (None: absent) and attributes."""

    id: str
    arrays: Mapping[str, np.ndarray | None]
    attrs: Mapping[str, int | float | str] = field(default_factory=dict)


TOKENS_FIRST = Attribute(
    name="tokens_first",
    kind=str,
    default="",
    doc='operands whose tokens come before their heads, as projections leave them, out among them: "q k v out" has '
    "axes 1 and 2 of all four exchanged; none of them needs a transposed copy then",
)
OUT = "out"  # what the result is called there

Signature = Mapping[str, tuple[Sequence[Dim] | None, np.dtype[Any]]]
Reference = Callable[[Mapping[str, Expr | None], Mapping[str, Any]], Expr]


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """An operation of the domain ``ai.graft``.

    Attributes:
        name: op type.
        doc: first line a sentence for users, then semantics and source.
        inputs: in order, optional ones last.
        attributes: with their defaults.
        output: axes of the result by letter.
        fixed: letters of the axes whose lengths a function body may rely on; it holds for every length of others.
        by_heads: the operands [. heads tokens .] that ``TOKENS_FIRST`` may name, for operations that have it.
        reference: the meaning, in the words of the alphabet; floating inputs arrive in float32, heads first.
        check: returns what is wrong with attribute values, or None.
        samples: the calls that every back end is tested on.
    """

    name: str
    doc: str
    inputs: Sequence[Input]
    attributes: Sequence[Attribute]
    output: str
    reference: Reference
    check: Callable[[Mapping[str, Any]], str | None]
    samples: Callable[[], Sequence[Sample]]
    fixed: str = ""
    by_heads: Sequence[str] = ()

    domain = DOMAIN

    def call(self, inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
        """Return an expression that calls this operation; absent inputs are None.

        Raises:
            ValueError: an attribute is unknown or has a value that is not allowed.
        """
        given = {i.name: inputs[i.name] for i in self.inputs if inputs.get(i.name) is not None}
        args = [e for e in given.values() if e is not None]
        return make("call", *args, spec=self, names=tuple(given), values=self.attrs(attrs))

    def letters(self, name: str, layout: str, attrs: Mapping[str, Any]) -> list[str]:
        """Return the axes that an operand has in a call."""
        found = layout.split()
        if name in turned(attrs):
            found[1], found[2] = found[2], found[1]
        return found

    def shape(
        self, inputs: Mapping[str, Expr], attrs: Mapping[str, Any], join: Callable[[Dim, Dim], Dim] = broadcast_dim
    ) -> tuple[Dim, ...] | None:
        """Return the shape of the result: every letter has the length that it has in the inputs.

        Args:
            inputs: by name; optional ones do not matter.
            attrs: the call's attributes.
            join: gives the length of two axes after broadcasting, for hosts with lengths of their own.
        """
        lengths: dict[str, tuple[Dim, ...]] = {}
        for i in self.inputs:
            expr = inputs.get(i.name)
            if not i.optional and expr is not None and expr.shape is not None:
                for letter, axes in _by_letter(self.letters(i.name, i.layout, attrs), expr.shape).items():
                    lengths[letter] = broadcast(lengths.get(letter, ()), axes, join=join)
        letters = self.letters(OUT, self.output, attrs)
        return tuple(d for x in letters for d in lengths[x]) if set(letters) <= set(lengths) else None

    def told(self, signature: Signature, attrs: Mapping[str, Any]) -> Signature:
        """Return what of a call's signature its function body may rely on: ranks, and lengths of ``fixed`` axes."""
        layouts = {i.name: self.letters(i.name, i.layout, attrs) for i in self.inputs}
        return {name: (self._told(layouts[name], shape), dtype) for name, (shape, dtype) in signature.items()}

    def _told(self, letters: Sequence[str], shape: Sequence[Dim] | None) -> tuple[Dim, ...] | None:
        if shape is not None and letters[0] == "...":
            letters = ["..."] * (len(shape) - len(letters) + 1) + list(letters[1:])
        if shape is None or len(shape) != len(letters):
            return None
        fixed = [letter in self.fixed.split() for letter in letters]
        return tuple(d if keep else Sym.named(str(i)) for i, (d, keep) in enumerate(zip(shape, fixed, strict=True)))

    def attrs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all attributes: those given, and defaults for the rest.

        Raises:
            ValueError: an unknown attribute or a value that is not allowed.
        """
        defaults = {a.name: a.default for a in self.attributes}
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            raise ValueError(f"{self.name} has no attribute {unknown[0]}; it has {', '.join(defaults)}")
        merged = {**defaults, **given}
        wrong = self.check(merged) or self._wrong_order(merged)
        if wrong:
            raise ValueError(f"{self.name}: {wrong}")
        return merged

    def _wrong_order(self, attrs: Mapping[str, Any]) -> str | None:
        given = turned(attrs)
        if set(given) <= set(self.by_heads) and len(given) == len(set(given)):
            return None
        return f"tokens_first is {attrs[TOKENS_FIRST.name]}; it must be some of {' '.join(self.by_heads)}"

    def golden(self, arrays: Mapping[str, np.ndarray | None], attrs: Mapping[str, Any]) -> np.ndarray:
        """Return the result in float64."""
        present = {name: a for name, a in arrays.items() if a is not None}
        inputs = self._symbols({name: (a.shape, np.dtype(np.float32)) for name, a in present.items()})
        return interpret.golden(self._body(inputs, attrs), present)

    def body(self, present: Signature, attrs: Mapping[str, Any], opset: int, overload: str) -> ir.Function:
        """Return the model-local function of a call.

        Args:
            present: shape and element type of the inputs that the call has. Where lengths are numbers the body
                may rely on them. The result has the type of the first input; the arithmetic is float32.
            attrs: the call's attributes.
            opset: version of the default domain to write for.
            overload: tells bodies of this op apart.
        """
        inputs = self._symbols(present)
        while inputs and inputs[-1] is None:
            inputs.pop()
        result = self._narrow(self._body(inputs, attrs), present)
        names = [a.name for a in self.attributes if attrs.get(a.name) is not None]
        return bodies.function(DOMAIN, self.name, overload, inputs, result, names, opset)

    def expression(self, present: Signature, attrs: Mapping[str, Any]) -> Expr:
        """Return the result of a call as an expression over inputs of the spec's names; types as in ``body``."""
        return self._narrow(self._body(self._symbols(present), attrs), present)

    def _narrow(self, result: Expr, present: Signature) -> Expr:
        dtype = present[self.inputs[0].name][1]
        return result if dtype == np.float32 else make("cast", result, to=dtype)

    def _symbols(self, present: Signature) -> list[Expr | None]:
        return [symbol(i.name, *present[i.name]) if i.name in present else None for i in self.inputs]

    def _body(self, inputs: Sequence[Expr | None], attrs: Mapping[str, Any]) -> Expr:
        values = self.attrs(attrs)
        wide = {i.name: _float32(e) for i, e in zip(self.inputs, inputs, strict=False)}
        first = {i.name: heads_first(wide.get(i.name), i.name, values) for i in self.inputs}
        result = heads_first(self.reference(first, values), OUT, values)
        assert result is not None  # there is one for every call
        return result


def wrong_word(attrs: Mapping[str, Any], name: str, words: Iterable[str]) -> str | None:
    """Return what is wrong with an attribute that must be one of some words, or None."""
    allowed = list(words)
    return None if attrs[name] in allowed else f"{name} is {attrs[name]}; it must be one of {', '.join(allowed)}"


def turned(attrs: Mapping[str, Any]) -> list[str]:
    """Return the operands of a call that have tokens first."""
    return str(attrs.get(TOKENS_FIRST.name, "")).split()


def heads_first(x: Expr | None, name: str, attrs: Mapping[str, Any]) -> Expr | None:
    """Return an operand with heads first; or the result as a call gives it, which is the same exchange."""
    return x if x is None or name not in turned(attrs) else make("transpose", x, perm=(0, 2, 1, 3))


def _by_letter(letters: Sequence[str], shape: Sequence[Dim]) -> dict[str, tuple[Dim, ...]]:
    """Return the lengths that each letter of a layout stands for: one, or for ``...`` all that are left in front."""
    front = len(shape) - len(letters) + 1 if letters[0] == "..." else 1
    return {letters[0]: tuple(shape[:front])} | {
        letter: (length,) for letter, length in zip(letters[1:], shape[front:], strict=True)
    }


def _float32(expr: Expr | None) -> Expr | None:
    if expr is None or expr.dtype is None or not interpret.is_float(expr.dtype) or expr.dtype == np.float32:
        return expr
    return make("cast", expr, to=np.dtype(np.float32))
