"""Symbolic lengths: integers and exact polynomials over named dimensions.

Shapes of exported models are full of ``batch * 12`` and ``(past + sequence) // 1``. A length is a plain ``int``
where it is known and a :class:`Sym` where it is not; both support ``+ - * //`` and compare by meaning. What has
no polynomial form becomes a new symbol named after its expression, so that equal expressions stay equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Union

Monomial = tuple[str, ...]
Dim = Union[int, "Sym"]


@dataclass(frozen=True, slots=True)
class Sym:
    """A length that is not a number: a sum of coefficient times product of names."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def named(name: str) -> Sym:
        """Return the length called ``name``."""
        return Sym((((name,), 1),))

    def __str__(self) -> str:
        return "+".join(_term_text(m, c) for m, c in self.terms).replace("+-", "-")

    def __add__(self, other: Dim) -> Dim:
        return _collect([*self.terms, *_terms(other)])

    def __mul__(self, other: Dim) -> Dim:
        pairs = [(tuple(sorted(m + n)), c * e) for m, c in self.terms for n, e in _terms(other)]
        return _collect(pairs)

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __floordiv__(self, other: Dim) -> Dim:
        return divide(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return divide(other, self)

    __radd__ = __add__
    __rmul__ = __mul__


def _term_text(monomial: Monomial, coefficient: int) -> str:
    factors = ([] if coefficient == 1 and monomial else [str(coefficient)]) + list(monomial)
    return "*".join(factors)


def _terms(dim: Dim) -> Iterable[tuple[Monomial, int]]:
    return dim.terms if isinstance(dim, Sym) else (((), int(dim)),)


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = sorted((m, c) for m, c in total.items() if c)
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Sym(tuple(kept))


def divide(a: Dim, b: Dim) -> Dim:
    """Return ``a // b``: exact where the division is, else a new symbol named after it."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else 0
    quotient = exact_quotient(a, b)
    return quotient if quotient is not None else Sym.named(f"({a})//({b})")


def exact_quotient(a: Dim, b: Dim) -> Dim | None:
    """Return ``a / b`` if ``b`` divides ``a`` as polynomials, else None."""
    if isinstance(b, int) and b == 0:
        return None
    lead_m, lead_c = max(_terms(b), key=_rank)
    quotient: Dim = 0
    rest = a
    while rest != 0:
        m, c = max(_terms(rest), key=_rank)
        left = _without(m, lead_m)
        if left is None or c % lead_c:
            return None
        step = _collect([(left, c // lead_c)])
        quotient, rest = quotient + step, rest - step * b
    return quotient


def _rank(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    return len(term[0]), term[0]


def _without(monomial: Monomial, factor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for name in factor:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


def declared(name: str) -> Dim:
    """Return the length that a model calls ``name``: "past + length" is a sum, and equal to that sum elsewhere."""
    total: Dim = 0
    for term in name.split("+"):
        factors = [factor.strip() for factor in term.split("*")]
        if not all(factor.isidentifier() or factor.isdecimal() for factor in factors):
            return Sym.named(name)
        total = total + product(int(f) if f.isdecimal() else Sym.named(f) for f in factors)
    return total


def vague(dim: Dim) -> bool:
    """Return whether a length is a placeholder: made up here ("?") or by ONNX's own shape inference ("unk__")."""
    return isinstance(dim, Sym) and any(n[:1] == "?" or n[:5] == "unk__" or "(" in n for m, _ in dim.terms for n in m)


def product(dims: Iterable[Dim]) -> Dim:
    """Return the product of lengths (1 for none)."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def bind(dim: Dim, values: Mapping[str, int]) -> int:
    """Return the number that ``dim`` is under ``values``.

    Raises:
        KeyError: a name of ``dim`` has no value.
    """
    total = 0
    for monomial, coefficient in _terms(dim):
        term = coefficient
        for name in monomial:
            term *= values[name]
        total += term
    return total
