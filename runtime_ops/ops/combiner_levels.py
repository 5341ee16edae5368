"""Combiner's logsparse factorisation: the past of every query in aligned blocks of falling length, each summarised.

Query i sees itself, and for every set bit b of i the block of 2^b keys that ends where the blocks of higher bits
begin; without causality the future is split in the same way, mirrored.

Source: Ren et al. (2021), section 4.2; the mirrored half for queries that see later keys is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runtime_ops.ops.combiner_grid import Grid, filler, last, longer, summarise
from runtime_ops.ops.pieces import count, hide, steps, weights
from runtime_ops.words import Expr, const, dim, make, reshape


@dataclass(frozen=True, kw_only=True)
class Term:
    """One logit per query [b g r t] and its value [b g r t e]."""

    logit: Expr
    value: Expr


def logsparse(tokens: Grid) -> Expr:
    """Return the result [b g r t e]; the grid is one row that holds all tokens."""
    t = dim(tokens.keep, 4)
    tokens = longer(tokens, make("sub", make("max", t, const([1])), t))  # reductions of nothing go wrong in places
    terms = [_self(tokens), *_past(tokens)]
    if not tokens.causal:
        terms += [_mirrored_term(term) for term in _past(_mirrored_row(tokens))]
    return make("slice", _combined(terms), const([0]), t, const([3]), const([1]))


def _self(tokens: Grid) -> Term:
    q, k, v = (make("squeeze", x, axes=(3,)) for x in (tokens.q, tokens.k, tokens.v))
    logit = make("sum", make("mul", q, k), axes=(-1,), keepdims=False)
    return Term(logit=hide(logit, make("squeeze", tokens.keep, axes=(3,))), value=v)


def _past(tokens: Grid) -> Sequence[Term]:
    """Return one term per bit of the position."""
    return [_level(tokens, 2**bit) for bit in range(steps(make("add", dim(tokens.keep, 4), const([1]))))]


def _level(tokens: Grid, length: int) -> Term:
    """Return what queries see through blocks of one length: the block before theirs, if that number is even."""
    found = summarise(_blocks(tokens, length))
    block = make("div", count(dim(tokens.keep, 4)), const(length))  # of every token
    pairs = make("mul", make("div", block, const(2)), const(2))
    # Block 0 is hidden: for queries whose bit is not set.
    before = make("mul", block, make("sub", block, pairs))
    key, value, size = (make("gather", x, before, axis=3) for x in (found.key, found.value, found.size))
    q = make("squeeze", tokens.q, axes=(3,))
    logit = make("sum", make("mul", q, key), axes=(-1,), keepdims=False)
    if tokens.counted:
        logit = make("add", logit, make("log", make("max", size, const(1.0))))
    return Term(logit=hide(logit, make("lt", const(0.0), size)), value=value)


def _blocks(tokens: Grid, length: int) -> Grid:
    """Return a hidden block and then the whole blocks of a length, as rows; no query needs the rest at the end."""
    t = dim(tokens.keep, 4)
    rows = make("div", t, const([length]))
    end = make("mul", rows, const([length]))
    short = make("min", const([length]), make("max", t, const([1])))  # if no block is whole, the hidden one is less

    def split(x: Expr) -> Expr:
        whole = make("slice", x, const([0]), end, const([4]), const([1]))
        tail = [dim(x, 5)] if x.rank == 6 else []
        head = [dim(x, i) for i in range(3)]
        both = make("concat", filler(x, 4, short), whole, axis=4)
        return reshape(both, [*head, make("add", rows, const([1])), short, *tail])

    return replace(tokens, q=split(tokens.q), k=split(tokens.k), v=split(tokens.v), keep=split(tokens.keep))


def _mirrored_row(tokens: Grid) -> Grid:
    q, k, v, keep = (_mirrored(x, 4) for x in (tokens.q, tokens.k, tokens.v, tokens.keep))
    return replace(tokens, q=q, k=k, v=v, keep=keep)


def _mirrored_term(term: Term) -> Term:
    return Term(logit=_mirrored(term.logit, 3), value=_mirrored(term.value, 3))


def _mirrored(x: Expr, axis: int) -> Expr:
    length = dim(x, axis)
    order = make("sub", make("sub", length, const([1])), count(length))
    return make("gather", x, order, axis=axis)


def _combined(terms: Sequence[Term]) -> Expr:
    shares = weights(make("concat", *(last(term.logit) for term in terms), axis=4))
    out = None
    for i, term in enumerate(terms):
        share = make("slice", shares, const([i]), const([i + 1]), const([4]), const([1]))
        one = make("mul", share, term.value)
        out = one if out is None else make("add", out, one)
    assert out is not None
    return out
