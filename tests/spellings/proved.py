"""Masks that are proved: what must be read of them in words, and which of it the operation gets as a flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper
from sketch import LOWEST, Sketch, Value

from spellings.base import CROSS, INF, PAST, Spelling, causal, kept, masked, other, row, scored
from spellings.forms import distance

TRUE = np.array(True)
KEYS = "keys (padding)"


def keys(f: Sketch, fill: str = "lengths") -> Value:
    """[b 1 1 t] bool from a padding mask of whole numbers."""
    return f.input("attention_mask", "b t", fill, "int64").to("bool").unsqueeze(1).unsqueeze(2)


def gathered(f: Sketch) -> Value:
    """transformers' create_causal_mask, legacy exporter: a flattened mask gathered at j + b · t, expanded."""
    mask = f.input("attention_mask", "b t", "lengths", "int64").to("bool")
    b, n = f.x.dim(0), f.x.dim(1)
    rows, columns = (f.Range(np.array(0), count, np.array(1)) for count in (b, n))
    at = columns.unsqueeze(0, 1, 2) + rows.unsqueeze(1, 2, 3) * n
    return f.Gather(f.Flatten(mask, axis=2), at, axis=0).reshape(b, 1, 1, n).expand(b, 1, n, n)


def gathered_nd(f: Sketch) -> Value:
    """The same from the dynamo exporter: GatherND at pairs of (b, j)."""
    mask = f.input("attention_mask", "b t", "lengths", "int64").to("bool")
    b, n = f.x.dim(0), f.x.dim(1)
    rows, columns = (f.Range(np.array(0), count, np.array(1)) for count in (b, n))
    pair = [x.expand(b, 1, 1, n).unsqueeze(4) for x in (rows.unsqueeze(1, 2, 3), columns.unsqueeze(0, 1, 2))]
    return f.GatherND(mask, f.Concat(*pair, axis=-1)).reshape(b, 1, 1, n)


def stacked(f: Sketch, seen: Value) -> Value:
    """And on And on a constant, as functions that build masks from masks leave it."""
    return f.And(f.And(TRUE, f.And(TRUE, causal(f).unsqueeze(0, 1))), seen)


def full(f: Sketch, fill: float) -> Value:
    shape = f.shape(f.x.dim(1), f.x.dim(1))
    return f.ConstantOfShape(shape, value=helper.make_tensor("v", 1, [1], [fill]))


def ahead(f: Sketch, offset: int) -> Value:
    return f.LessOrEqual(distance(f), np.array(offset))


def back(f: Sketch, width: int) -> Value:
    return f.Less(np.array(-width), distance(f))


def near(f: Sketch, width: int) -> Value:
    return f.LessOrEqual(f.Abs(distance(f)), np.array(width))


def chosen(f: Sketch, first: Value, second: Value) -> Value:
    """first and second, by Where."""
    return f.Where(first, second, np.array(False))


def either(f: Sketch, first: Value, second: Value) -> Value:
    """not (not first or not second)."""
    return f.Not(f.Or(f.Not(first), f.Not(second)))


def triangle(f: Sketch) -> Value:
    """torch.tril of ones, compared with 0."""
    return f.Not(f.Equal(f.Trilu(full(f, 1.0), np.array(0), upper=0), 0.0))


def buffer(f: Sketch, past: int = 0) -> Value:
    """Rows past … past + s of a stored triangle, its first s columns."""
    stored = f.const(np.tril(np.ones((1, 1, 64, 64), bool)), "triangle")
    n = f.x.dim(1).unsqueeze(0)
    return stored.slice(f.value([past]), n + np.array([past]), 2).slice(0, n, 3)


def inverted(f: Sketch) -> Value:
    """transformers' old expand_mask: 1 - mask, filled wherever that is not 0."""
    rest = 1.0 - keys(f).to("float32")
    return f.Where(rest.to("bool"), LOWEST, rest)


def proved(
    name: str, scores: Callable[[Sketch, Value], Value], words: str, passed: str, frame: Any = None, **more: Any
) -> Spelling:
    return masked(f"proved-{name}", scores, frame, **{"mask": words, "passed": set(passed.split()), **more})


def hidden(name: str, keep: Callable[[Sketch], Value], words: str, passed: str, **more: Any) -> list[Spelling]:
    """One mask chosen by Where, chosen negated, and added; each with a fill of -inf and with a finite one."""
    ways: dict[str, Callable[[Sketch, Value, float], Value]] = {
        "where": lambda f, s, fill: f.Where(keep(f), s, fill),
        "drop": lambda f, s, fill: f.Where(f.Not(keep(f)), fill, s),
        "added": lambda f, s, fill: s + f.Where(keep(f), 0.0, fill),
    }
    return [
        proved(f"{name}-{way}-{label}", lambda f, s, w=write, x=fill: w(f, s, x), words, passed, **more)
        for way, write in ways.items()
        for label, fill in (("inf", -INF), ("lowest", LOWEST))
    ]


def fixed(name: str, mask: np.ndarray, words: str, passed: str) -> Spelling:
    """A model of seven tokens, whose mask the exporter has folded to a constant."""

    def write(f: Sketch) -> None:
        f.input("x", f"b 7 {f.m}")
        whole = f.const(mask, "folded")
        f.attend(scores=lambda s: f.Where(whole, s, -INF) if mask.dtype == bool else s + whole)

    return row(f"proved-folded-{name}", write, mask=words, passed=set(passed.split()), dims=({"b": 2}, {"b": 1}))


def past(f: Sketch, padded: bool, fill: float) -> None:
    """Keys of the past before those of now; the causal mask counts from the past's length."""
    before = [f.input(f"past_{n}", f"b {f.h} p {f.d}") for n in "kv"]
    k, v = (f.Concat(p, new, axis=2) for p, new in zip(before, (f.k, f.v), strict=True))
    start = before[0].dim(2)
    rows = (f.Range(np.array(0), f.x.dim(1), np.array(1)) + start).unsqueeze(1)
    seen = f.LessOrEqual(f.Range(np.array(0), k.dim(2), np.array(1)).unsqueeze(0), rows)
    if padded:
        seen = f.And(seen, f.Cast(f.input("valid", "b p+s", "lengths", "int64"), to=9).unsqueeze(1, 2))
    f.attend(k=k, v=v, scores=lambda s: f.Where(seen, s, fill))


SEVEN = np.tri(7, dtype=bool)
BAND = SEVEN & ~np.tri(7, 7, -3, dtype=bool)
HOLDS = "(only at s=7 t=7)"
ADDED = np.where(SEVEN, 0, -INF).astype(np.float32)

PROVED = (
    *hidden("causal", causal, "causal", "causal"),
    *hidden("keys", keys, KEYS, "keys"),
    *hidden("keys-left", lambda f: keys(f, "left"), KEYS, "keys"),
    *hidden("stacked", lambda f: stacked(f, keys(f)), f"causal, {KEYS}", "causal keys"),
    *hidden("stacked-left", lambda f: stacked(f, keys(f, "left")), f"causal, {KEYS}", "causal keys"),
    *hidden("by-where", lambda f: chosen(f, causal(f), keys(f)), f"causal, {KEYS}", "causal keys", runs=False),
    *hidden("by-or", lambda f: either(f, causal(f), keys(f)), f"causal, {KEYS}", "causal keys"),
    *hidden("gathered", lambda f: stacked(f, gathered(f)), f"causal, {KEYS}", "causal keys"),
    *hidden("gathered-nd", lambda f: stacked(f, gathered_nd(f)), f"causal, {KEYS}", "causal keys"),
    *hidden("window", lambda f: f.And(causal(f), back(f, 3)), "window 3 causal", "causal window"),
    *hidden("window-padded", lambda f: f.And(f.And(ahead(f, 0), back(f, 3)), keys(f)), f"window 3 causal, {KEYS}",
            "causal window keys"),
    *hidden("window-two-sided", lambda f: near(f, 2), "window 2 back, 2 ahead", "causal window"),
    *hidden("window-by-two", lambda f: f.And(back(f, 3), ahead(f, 1)), "window 2 back, 1 ahead", "causal window"),
    *hidden("ahead", lambda f: ahead(f, 2), "causal (offset 2)", "causal"),
    *hidden("behind", lambda f: ahead(f, -1), "causal (offset -1)", "causal"),
    *hidden("tril", triangle, "causal", "causal"),
    *hidden("buffer", buffer, "causal", "causal"),
    *hidden("buffer-past", lambda f: buffer(f, 2), "causal (offset 2)", "causal"),
    *hidden("unread", lambda f: f.And(causal(f), kept(f)), "causal, mask [b 1 s t]", "causal bias"),
    proved("triu", lambda f, s: s + f.Trilu(full(f, -INF), np.array(1)), "causal", "causal"),
    proved("triu-lowest", lambda f, s: s + f.Trilu(full(f, LOWEST), np.array(1)), "causal", "causal"),
    proved("triu-2", lambda f, s: s + f.Trilu(full(f, -INF), np.array(3)), "causal (offset 2)", "causal"),
    proved("tril-fill", lambda f, s: s + f.Trilu(full(f, LOWEST), np.array(-2), upper=0),
           "no key more than 1 back", "bias"),
    proved("one-minus", lambda f, s: s + (1.0 - keys(f).to("float32")) * LOWEST, KEYS, "keys"),
    proved("one-minus-1e4", lambda f, s: s + (1.0 - keys(f).to("float32")) * -1e4, KEYS, "bias"),
    proved("one-minus-product", lambda f, s: s + (1.0 - causal(f).to("float32") * keys(f).to("float32")) * LOWEST,
           f"causal, {KEYS}", "causal keys"),
    proved("one-minus-numbers", lambda f, s: s + (1.0 - f.input("m", "b t", "lengths").unsqueeze(1, 2)) * LOWEST,
           "bias [b 1 1 t]", "bias"),
    proved("inverted", lambda f, s: s + inverted(f), KEYS, "keys"),
    proved("sub", lambda f, s: s - f.Where(causal(f), 0.0, INF), "causal", "causal"),
    proved("summed", lambda f, s: s + (f.Where(causal(f), 0.0, -INF) + f.Where(keys(f), 0.0, -INF)),
           f"causal, {KEYS}", "causal keys"),
    proved("summed-lowest", lambda f, s: s + (f.Where(causal(f), 0.0, LOWEST) + f.Where(keys(f), 0.0, LOWEST)),
           f"causal, {KEYS}", "bias"),
    proved("two-fills", lambda f, s: f.Where(causal(f), s, -INF) + f.Where(keys(f), 0.0, LOWEST),
           f"causal, {KEYS}", "causal bias"),
    proved("two-fills-other-way", lambda f, s: f.Where(keys(f), f.Where(causal(f), s, -INF), LOWEST),
           f"causal, {KEYS}", "bias"),
    proved("causal-and-bias", lambda f, s: f.Where(causal(f), s + other(f), LOWEST),
           "causal, bias [1 1 s t]", "bias"),
    proved("causal-and-bias-inf", lambda f, s: f.Where(causal(f), s + other(f), -INF),
           "causal, bias [1 1 s t]", "causal bias"),
    proved("bias-or-fill", lambda f, s: s + f.Where(keys(f), other(f), -INF), f"{KEYS}, bias [1 1 s t]", "keys bias"),
    proved("bias-or-fill-lowest", lambda f, s: s + f.Where(keys(f), other(f), LOWEST),
           f"{KEYS}, bias [1 1 s t]", "bias"),
    proved("clamped", lambda f, s: f.Max(f.Where(causal(f), s, -INF), LOWEST), "causal", "bias"),
    proved("weak-fill", lambda f, s: s + f.Where(causal(f), 0.0, -1e4), "causal", "bias"),
    masked("weak-fill-over-another", lambda f, s: f.Where(keys(f), f.Where(causal(f), s, -1e9), -1e4), mask=None,
           scale=None, sites=0, declines="^its fill -10000 is set in place of scores that are masked already"),
    masked("weak-fill-over-bias", lambda f, s: f.Where(keys(f), s + other(f), -1e4)),
    scored("proved-before-scale", lambda f, s: f.Where(causal(f), s, LOWEST) * 0.3, scale=0.3, mask="causal",
           passed={"causal"}),
    proved("half", lambda f, s: s + f.Where(causal(f), np.float16(0), np.float16(-65504)), "causal", "bias",
           {"dtype": "float16"}, scale=float(np.float16(0.3))),
    proved("cross", lambda f, s: f.Where(f.input("valid", "b t", "lengths", "int64").to("bool").unsqueeze(1, 2), s,
           -INF), KEYS, "keys", {"cross": True}, dims=CROSS),
    row("proved-past", lambda f: past(f, False, LOWEST), mask="causal (offset p)", passed={"causal"}, dims=PAST),
    row("proved-past-padded", lambda f: past(f, True, -INF), mask=f"causal (offset p), {KEYS}",
        passed={"causal", "keys"}, dims=[{**d, "p+s": d["s"] + d["p"]} for d in PAST]),
    row("proved-past-padded-lowest", lambda f: past(f, True, LOWEST), mask=f"causal (offset p), {KEYS}",
        passed={"causal", "keys"}, dims=[{**d, "p+s": d["s"] + d["p"]} for d in PAST]),
    fixed("bool", SEVEN, f"causal {HOLDS}", "causal"),
    fixed("window", BAND, f"window 3 causal {HOLDS}", "causal window"),
    fixed("added", ADDED, f"causal {HOLDS}", "causal"),
    fixed("added-lowest", np.maximum(ADDED, np.float32(LOWEST)), f"causal {HOLDS}", "causal"),
    fixed("ahead", np.tri(7, 7, 2, dtype=bool), "causal (offset 2, only at s=7 t=7)", "causal"),
    fixed("all", np.ones((7, 7), bool), "none", ""),
    fixed("keys", np.arange(7)[None] < 5, KEYS, "keys"),
    fixed("holes", np.eye(7, dtype=bool) | np.eye(7, k=-2, dtype=bool), "mask [1 1 s t]", "bias"),
)  # fmt: skip
