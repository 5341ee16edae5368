"""Masks: what is proved of a mask is what the mask evaluates to, at every length, offset, window and padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patterns import fills
from patterns.mask import All, Causal, Keep, Keys, Mask, NoMask, Window, together
from patterns.masking import LOWEST, Masking
from patterns.positions import never_negative
from patterns.visible import Parts, parts
from rewriter.layout import atom
from runtime_ops.dims import Dim, Sym, bind, declared
from runtime_ops.interpret import golden
from runtime_ops.words import Expr, const, dim, make, symbol

SIZES = {name: Sym.named(name) for name in ("b", "s", "p")}
SIZES["t"] = SIZES["s"] + SIZES["p"]  # type: ignore[assignment]
FRAME = tuple(
    atom(letter, size) for letter, size in (("b", SIZES["b"]), ("h", 2), ("s", SIZES["s"]), ("t", SIZES["t"]))
)
Q = symbol("q", [SIZES["b"], 2, SIZES["s"], 4], np.float32)
K = symbol("k", [SIZES["b"], 2, SIZES["t"], 4], np.float32)
VALID = symbol("valid", [SIZES["b"], SIZES["t"]], np.int64)
ODD = symbol("odd", [SIZES["b"], 1, SIZES["s"], SIZES["t"]], bool)
BOOL = np.dtype(bool)


def scalar(x: Expr, axis: int) -> Expr:
    return make("squeeze", dim(x, axis), axes=(0,))


def count(x: Expr) -> Expr:
    return make("range", const(0), scalar(x, 2), const(1))


ROWS, COLUMNS = make("unsqueeze", count(Q), axes=(1,)), count(K)
PAST = make("sub", scalar(K, 2), scalar(Q, 2))
offsets = st.one_of(st.integers(-3, 5).map(const), st.just(PAST))


@st.composite
def compared(draw: st.DrawFn) -> Expr:
    """j against i + c, in every order and both strictnesses, moved from side to side."""
    low, high = COLUMNS, make("add", ROWS, draw(offsets))
    if draw(st.booleans()):
        low, high = make("sub", COLUMNS, ROWS), draw(offsets)
    if draw(st.booleans()):
        low, high = make("neg", high), make("neg", low)
    sides = (low, high) if draw(st.booleans()) else (high, low)
    return make(draw(st.sampled_from(["le", "lt"])), *sides)


def near(width: int) -> Expr:
    away = make("sub", ROWS, COLUMNS)
    return make("le", make("max", away, make("neg", away)), const(width))


def wide(x: Expr) -> Expr:
    """A padding mask expanded to all queries."""
    shape = make("concat", dim(Q, 0), const([1]), dim(Q, 2), dim(K, 2), axis=0)
    return make("expand", make("unsqueeze", make("cast", x, to=BOOL), axes=(1, 2)), shape)


leaves = st.one_of(
    compared(),
    st.integers(0, 4).map(near),
    st.sampled_from([wide(VALID), ODD, const(True), make("unsqueeze", make("le", COLUMNS, ROWS), axes=(0, 1))]),
)


def grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    two = st.tuples(inner, inner)
    number = np.dtype(np.float32)
    return st.one_of(
        two.map(lambda p: make("and", *p)),
        two.map(lambda p: make("or", *p)),
        inner.map(lambda x: make("not", x)),
        two.map(lambda p: make("where", p[0], p[1], const(False))),
        two.map(lambda p: make("where", p[0], const(True), p[1])),
        two.map(lambda p: make("mul", *(make("cast", x, to=number) for x in p))).map(
            lambda x: make("cast", x, to=BOOL)
        ),
        inner.map(lambda x: make("eq", make("where", x, const(0.0), const(-7.0)), const(0.0))),
        inner.map(lambda x: make("cast", make("sub", const(1.0), make("cast", x, to=number)), to=BOOL)),
    )


masks = st.recursive(leaves, grown, max_leaves=6)


@dataclass(frozen=True)
class Case:
    """Lengths and padding."""

    b: int
    s: int
    p: int
    seed: int

    def feeds(self) -> dict[str, np.ndarray]:
        rng, t = np.random.default_rng(self.seed), self.s + self.p
        first, last = np.sort(rng.integers(0, t + 1, (2, self.b, 1)), axis=0)
        padded = (first <= np.arange(t)) & (np.arange(t) < last)  # left and right; now and then no key at all
        return {
            "q": np.zeros((self.b, 2, self.s, 4)),
            "k": np.zeros((self.b, 2, t, 4)),
            "valid": padded.astype(np.int64),
            "odd": rng.random((self.b, 1, self.s, t)) < 0.5,
        }

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(self.s)[:, None], np.arange(self.s + self.p)

    def number(self, length: Dim) -> int:
        return bind(length, {"b": self.b, "s": self.s, "p": self.p})


cases = st.builds(Case, st.integers(1, 3), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))


def shown(mask: Mask, case: Case) -> Any:
    """Which keys [b h s t] a mask lets through, by what it claims."""
    i, j = case.grid()
    if isinstance(mask, All):
        return np.logical_and.reduce(np.broadcast_arrays(*(shown(part, case) for part in mask.parts)))
    if isinstance(mask, Causal):
        assert case.number(mask.offset) == golden(mask.value, case.feeds())
        return j <= i + case.number(mask.offset)
    if isinstance(mask, Window):
        middle = i + case.number(mask.offset)
        ahead = True if mask.right is None else j <= middle + case.number(mask.right)
        return ahead & (j >= middle - case.number(mask.left))
    if isinstance(mask, Keys):
        return golden(mask.valid, case.feeds())[:, None, None, :]
    assert isinstance(mask, Keep | NoMask)
    return golden(mask.keep, case.feeds()) if isinstance(mask, Keep) else np.bool_(True)


def agrees(found: Parts, truth: np.ndarray, case: Case) -> bool:
    """Both what is claimed and the tensors that are named say what the mask evaluates to."""
    whole = (case.b, 2, case.s, case.s + case.p)
    claimed = shown(together(part.mask for part in found), case)
    named = np.bool_(True)
    for part in found:
        named = named & golden(part.keep, case.feeds())
    return all(np.array_equal(np.broadcast_to(x, whole), np.broadcast_to(truth, whole)) for x in (claimed, named))


@settings(max_examples=400, deadline=None)
@given(masks, cases, st.booleans())
def test_what_is_proved_is_what_the_mask_evaluates_to(mask: Expr, case: Case, yes: bool) -> None:
    assert agrees(parts(mask, FRAME, FRAME, yes), golden(mask, case.feeds()) == yes, case)


@settings(max_examples=200, deadline=None)
@given(masks, cases, st.sampled_from([-np.inf, -1e9, float(np.finfo(np.float32).min)]), st.integers(0, 3))
def test_fills_are_zero_where_a_key_is_visible(mask: Expr, case: Case, number: float, how: int) -> None:
    term = make("where", mask, const(0.0), const(number))
    if how == 1:
        term = make("neg", make("where", mask, const(0.0), const(-number)))
    elif how == 2 and np.isfinite(number):
        term = make("mul", make("sub", const(1.0), make("cast", mask, to=np.dtype(np.float32))), const(number))
    elif how == 3:
        term = make("where", make("not", mask), const(number), const(0.0))
    fill, values = fills.read(term, FRAME, FRAME), golden(term, case.feeds())
    if fill is None:  # an unread product, or a mask that is known to hide nothing or all
        assert how == 2 or term.word == "const"
        return
    assert agrees(fill.parts, values == 0, case)
    assert set(np.unique(values)) <= {0.0, float(np.float32(fill.number))}


TABLE = const(np.linspace(-2, 2, 7, dtype=np.float32))  # a bias by distance, as T5 has it
FILLS = (-np.inf, LOWEST)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, Expr, float]:
    """One thing that is done to scores on their way to the softmax."""
    how = draw(st.sampled_from(["replaced", "added", "both", "bias", "scaled", "clamped", "unknown"]))
    return how, draw(masks), draw(st.sampled_from(FILLS if how != "clamped" else FILLS[1:]))


def by_distance() -> Expr:
    away = make("min", make("max", make("sub", ROWS, COLUMNS), const(0)), const(6))
    return make("gather", TABLE, away, axis=0)


def apply(masking: Masking, scores: np.ndarray, layer: tuple[str, Expr, float], feeds: Any) -> Any:
    """The reading of a layer, and the scores in float32 that it leaves."""
    how, mask, number = layer
    fill, f32 = make("where", mask, const(0.0), const(number)), np.float32
    if how == "replaced":
        found = parts(mask, FRAME, FRAME)
        return masking.replaced(mask, True, found, number), np.where(golden(mask, feeds), scores, f32(number))
    if how == "clamped":
        return masking.clamped(number), np.maximum(scores, f32(number))
    if how == "scaled":
        return masking.scaled(0.5), scores * f32(0.5)
    if how == "both":  # a mask where another already hides
        fill = make("where", make("le", COLUMNS, ROWS), fill, const(number))
    term = {"bias": by_distance(), "unknown": symbol("bias", ODD.shape, f32)}.get(how, fill)
    return masking.added(term, FRAME, FRAME), scores + golden(term, feeds).astype(f32)


def weights(scores: np.ndarray, averages: bool) -> np.ndarray:
    """Softmax over keys, and what is said of rows without any."""
    peak = scores.max(-1, keepdims=True)
    exps = np.exp(scores - np.where(np.isfinite(peak), peak, 0))
    total = exps.sum(-1, keepdims=True)
    none = np.float32(averages / scores.shape[-1])
    return np.where(total == 0, none, exps / np.where(total == 0, 1, total))


@settings(max_examples=600, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=4), cases)
def test_flags_and_bias_give_the_weights_of_the_original(stack: list[tuple[str, Expr, float]], case: Case) -> None:
    """Also of rows that are hidden whole, by one mask or by several together."""
    feeds, whole = case.feeds(), (case.b, 2, case.s, case.s + case.p)
    feeds["bias"] = np.random.default_rng(case.seed).choice([0.0, 1.0, LOWEST], (case.b, 1, *whole[2:]))
    start = np.random.default_rng(case.seed).standard_normal(whole).astype(np.float32)
    masking, scores, factor = Masking(), start, np.float32(1)
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in stack:
            masking, scores = apply(masking, scores, layer, feeds)
            factor *= np.float32(0.5) if layer[0] == "scaled" else np.float32(1)
        found = masking.finished()
        for bias, flags in ((found.bias, True), (found.whole, False)):
            ours = start * factor
            ours = ours if bias is None else ours + golden(bias, feeds).astype(np.float32)
            ours = np.where(seen(found, case, feeds), ours, np.float32(-np.inf)) if flags else ours
            given_weights = weights(ours, found.averages and flags)
            right = weights(scores, False)
            known = (scores.max(-1) > -np.inf)[..., None]  # else NaN in the original
            assert np.allclose(np.where(known, given_weights - right, 0), 0, atol=5e-3)


def seen(found: Masking, case: Case, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Which keys the flags leave visible."""
    (i, j), shown = case.grid(), np.ones((case.b, 1, case.s, case.s + case.p), bool)
    if found.causal is not None:
        last = i + golden(found.causal.value, feeds)
        shown = shown & (j <= last)
        shown = shown & (j > last - found.window) if found.window else shown
    return shown if found.keys is None else shown & golden(found.keys, feeds).astype(bool)[:, None, None]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(-3, 9), st.one_of(st.none(), st.integers(-1, 9)), st.booleans()
)
def test_folded_bands(s: int, t: int, ahead: int, back: int | None, yes: bool) -> None:
    away = np.arange(t) - np.arange(s)[:, None]
    stored = (away <= ahead) & (back is None or -away <= back)
    frame = tuple(atom(letter, size) for letter, size in (("b", 1), ("h", 2))) + tuple(
        atom(letter, size) for letter, size in (("s", s), ("t", t))
    )
    found = parts(const(stored == yes), frame, frame, yes)
    assert agrees(found, stored, Case(1, s, t - s, 0))
    assert all(part.mask.holds == f"only at s={s} t={t}" for part in found if isinstance(part.mask, Causal | Window))


def test_a_range_of_another_length_proves_nothing() -> None:
    """It might have length 1 when the model runs, and then be broadcast."""
    other = make(
        "range", const(0), make("squeeze", dim(symbol("x", [Sym.named("n")], np.float32), 0), axes=(0,)), const(1)
    )
    [part] = parts(make("le", other, ROWS), FRAME, FRAME)
    assert isinstance(part.mask, Keep)


def test_lengths_that_may_be_negative_prove_nothing() -> None:
    assert never_negative(SIZES["s"] + SIZES["p"])
    assert not never_negative(SIZES["p"] - SIZES["s"])
    assert not never_negative(Sym.named("(s-t)//(2)"))


def test_a_negative_factor_turns_a_flag_back_into_a_bias() -> None:
    """-inf times -1 hides nothing, so what was hidden must be multiplied too."""
    keep = make("le", COLUMNS, ROWS)
    masking = Masking().replaced(keep, True, parts(keep, FRAME, FRAME), -np.inf)
    assert masking.causal is not None
    assert masking.bias is None
    assert masking.scaled(0.5).causal == masking.causal
    turned = masking.scaled(-1.0)
    assert turned.causal is None
    assert turned.bias is not None
    bias = golden(turned.bias, Case(1, 3, 0, 0).feeds())
    assert np.array_equal(bias, np.where(np.tri(3, dtype=bool), 0, np.inf))


def test_numbers_that_are_no_positions() -> None:
    for number in (np.inf, np.nan, 2.5):
        [part] = parts(make("le", make("cast", COLUMNS, to=np.dtype(np.float32)), const(number)), FRAME, FRAME)
        assert isinstance(part.mask, Keys)


def test_declared_lengths() -> None:
    assert declared("past + length") == Sym.named("length") + Sym.named("past")
    assert declared("2*s + 1") == Sym.named("s") * 2 + 1
    assert declared("floor(s/2)") == Sym.named("floor(s/2)")
    assert declared("7") == 7
