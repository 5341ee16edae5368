"""``ai.graft::CombinerAttention``: every query reads near keys itself and all others through summaries of regions.

Source: Ren et al., "Combiner: Full Attention Transformer with Sparse Computation Cost" (2021), sections 3 and 4.
Masks, any length, mean pooling, ``counted`` and the two-sided ``logsparse`` are ours: the paper's form gives a region
one logit however many keys it stands for, which suits models that are trained with it; on other weights choose
``pooling="mean", region_logit="counted"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runtime_ops.ops.combiner_grid import FACTORISATIONS, Grid, combine, longer, number, swap
from runtime_ops.ops.combiner_levels import logsparse
from runtime_ops.ops.pieces import ceiling, count
from runtime_ops.ops.topk_attention import MEAN, NO_KEY, NO_KEY_ATTRIBUTE
from runtime_ops.spec import TOKENS_FIRST, Attribute, Input, OpSpec, Sample, wrong_word
from runtime_ops.words import Expr, const, dim, make, reshape

MIXTURE = ("fixed", "axial-vertical")  # the paper averages factorisations and finds two enough
VARIANTS = (*FACTORISATIONS, "logsparse", "mixture")
POOLINGS = ("max", "mean")
REGION_LOGITS = ("paper", "counted")


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the attention's result [b h t e] in the words of the alphabet."""
    q, k, v, mask = inputs["q"], inputs["k"], inputs["v"], inputs["key_mask"]
    if q is None or k is None or v is None:
        raise ValueError("q, k and v are not optional")
    tokens = _tokens(q, k, v, mask, attrs)
    variant = attrs["variant"]
    names = MIXTURE if variant == "mixture" else (variant,)
    results = [logsparse(tokens) if name == "logsparse" else _on_grid(tokens, name, attrs["span"]) for name in names]
    found = results[0] if len(results) == 1 else make("mul", make("add", *results), const(1 / len(results)))
    if mask is not None and attrs["no_key"] == MEAN:
        found = make("where", _unseeing(tokens), _mean(tokens.v), found)
    return reshape(found, [dim(tokens.keep, 0), dim(q, 1), -1, dim(v, 3)])


def _tokens(q: Expr, k: Expr, v: Expr, mask: Expr | None, attrs: Mapping[str, Any]) -> Grid:
    """Return all tokens as one row, heads split into groups that share keys and values."""
    b, t = make("max", make("max", dim(q, 0), dim(k, 0)), dim(v, 0)), dim(q, 2)
    if attrs["scale"] is None:
        factor = make("div", const(1.0), make("sqrt", make("cast", dim(q, 3), to=np.dtype(np.float32))))
    else:
        factor = const(float(attrs["scale"]))
    group = make("div", dim(q, 1), dim(k, 1))
    # a mask whose type is not known to the caller would leave that of everything made from it open
    visible = const(True) if mask is None else make("cast", mask, to=np.dtype(np.bool_))
    keep = make("expand", visible, make("concat", b, t, axis=0))
    split = reshape(make("mul", q, factor), [dim(q, 0), dim(k, 1), group, -1, dim(q, 3)])
    return Grid(
        q=make("unsqueeze", split, axes=(3,)),
        k=make("unsqueeze", k, axes=(2, 3)),
        v=make("unsqueeze", v, axes=(2, 3)),
        keep=make("unsqueeze", keep, axes=(1, 2, 3)),
        pooling=attrs["pooling"],
        counted=attrs["region_logit"] == "counted",
        causal=bool(attrs["causal"]),
    )


def _unseeing(tokens: Grid) -> Expr:
    """Return which tokens [b 1 1 t 1] see no key, for one row of tokens; without causality all do or none."""
    padded = longer(tokens, const([1])).keep  # reductions of nothing go wrong in places
    t, place = number(dim(tokens.keep, 4)), number(count(dim(tokens.keep, 4)))
    shown = make("where", padded, make("neg", number(count(dim(padded, 4)))), make("neg", t))
    first = make("neg", make("amax", shown, axes=(4,), keepdims=True))
    return swap(make("lt", place, first) if tokens.causal else make("le", t, first), 3, 4)


def _mean(v: Expr) -> Expr:
    """Return the mean [b g 1 1 e] of the values [b g 1 1 t e]; 0 of none."""
    t = dim(v, 4)
    share = make("div", const(1.0), make("max", number(t), const([1.0])))
    shares = make("expand", share, make("concat", const([1]), t, axis=0))
    return make("squeeze", make("matmul", shares, v), axes=(3,))


def _on_grid(tokens: Grid, name: str, span: int) -> Expr:
    """Return the result [b g r t e] of one factorisation over rows of ``span`` tokens."""
    t = dim(tokens.keep, 4)
    # a row of more tokens than there are would only be filled with hidden ones
    m = make("min", const([span]), make("max", t, const([1]))) if span else _square(t, 2.0 if name == "fixed" else 1.0)
    n = make("max", ceiling(t, m), const([1]))  # a row of hidden keys where there is no token
    missing = make("sub", make("mul", n, m), t)
    full = longer(tokens, missing)
    q, k, v, keep = (_rows(x, n, m) for x in (full.q, full.k, full.v, full.keep))
    out = combine(FACTORISATIONS[name](replace(tokens, q=q, k=k, v=v, keep=keep)))
    flat = reshape(out, [*(dim(out, i) for i in range(3)), make("mul", n, m), dim(out, 5)])
    return make("slice", flat, const([0]), t, const([3]), const([1]))


def _square(t: Expr, factor: float) -> Expr:
    """Return the largest whole number whose square is at most ``factor`` · t, at least 1."""
    root = make("sqrt", make("mul", make("cast", t, to=np.dtype(np.float32)), const(factor)))
    return make("max", make("cast", make("floor", root), to=np.dtype(np.int64)), const([1]))


def _rows(x: Expr, n: Expr, m: Expr) -> Expr:
    """Return [… 1 n·m …] as [… n m …]."""
    tail = [dim(x, 5)] if x.rank == 6 else []
    return reshape(x, [*(dim(x, i) for i in range(3)), n, m, *tail])


def check(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the attribute values, or None."""
    words = {"variant": VARIANTS, "pooling": POOLINGS, "region_logit": REGION_LOGITS}
    wrong = next(filter(None, (wrong_word(attrs, name, allowed) for name, allowed in words.items())), None)
    if wrong:
        return wrong
    if attrs["span"] < 0:
        return f"span is {attrs['span']}; it must be 0 (chosen by length) or more"
    if attrs["causal"] not in (0, 1):
        return f"causal is {attrs['causal']}; it must be 0 or 1"
    return wrong_word(attrs, "no_key", NO_KEY)


def _sample(id: str, seed: int, *, b: int = 2, t: int = 13, h: int = 4, g: int = 2, d: int = 8, e: int = 8,
            size: float = 1.0, memories: int | None = None, key_mask: np.ndarray | None = None,
            **attrs: Any) -> Sample:  # fmt: skip
    normal = np.random.default_rng(seed).standard_normal
    arrays: dict[str, np.ndarray | None] = {
        "q": (normal((b, h, t, d)) * size).astype(np.float32),
        "k": (normal((memories or b, g, t, d)) * size).astype(np.float32),
        "v": normal((memories or b, g, t, e)).astype(np.float32),
    }
    return Sample(id=id, arrays={**arrays, "key_mask": key_mask}, attrs=attrs)


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    ragged = np.arange(13) < np.array([[13], [6]])
    left = ragged[:, ::-1].copy()
    none = np.arange(13) < np.array([[13], [0]])
    trained = {"pooling": "mean", "region_logit": "counted"}
    table: list[tuple[str, dict[str, Any]]] = [("fixed", {"span": 4})]
    for variant in VARIANTS:
        table += [
            (f"{variant}-padded", {"variant": variant, "span": 4, "key_mask": ragged}),
            (f"{variant}-counted-causal", {"variant": variant, "span": 3, "causal": 1, "key_mask": left, **trained}),
        ]
    table += [
        ("default-span", {"t": 50, "b": 1}),
        ("one-span", {"span": 64}),
        ("span-1", {"span": 1, "t": 6, "causal": 1}),
        ("one-token", {"t": 1, "variant": "axial-vertical"}),
        ("no-tokens", {"t": 0, "variant": "mixture", "span": 4}),
        ("huge-logits", {"span": 4, "size": 100.0, "causal": 1}),
        ("none-visible", {"variant": "axial-horizontal", "span": 4, "key_mask": none, **trained}),
        ("wide-values", {"variant": "axial-row-major", "span": 4, "e": 12, "scale": 0.5}),
        ("multi-head", {"span": 5, "g": 4, "variant": "axial-vertical"}),
        ("multi-query", {"span": 5, "g": 1, "variant": "axial-horizontal"}),
        ("one-memory", {"span": 4, "key_mask": ragged[1:], "memories": 1}),
        ("mean-none", {"variant": "fixed", "span": 4, "key_mask": none, "no_key": "mean"}),
        ("mean-left", {"variant": "mixture", "span": 4, "key_mask": left, "causal": 1, "no_key": "mean", "e": 5}),
        ("mean-left-logsparse", {"variant": "logsparse", "key_mask": left[1:], "causal": 1, "no_key": "mean"}),
        ("mean-no-mask", {"span": 3, "causal": 1, "no_key": "mean"}),
        ("mean-no-tokens", {"t": 0, "key_mask": none[:, :0], "no_key": "mean"}),
        ("powers-of-two", {"variant": "logsparse", "t": 33, "b": 1, "causal": 1}),
    ]
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


COMBINER_ATTENTION = OpSpec(
    name="CombinerAttention",
    doc=__doc__ or "",
    inputs=(
        Input(name="q", layout="b h t d"),
        Input(name="k", layout="b g t d"),
        Input(name="v", layout="b g t e"),
        Input(name="key_mask", layout="b t", kind="bool", optional=True),
    ),
    attributes=(
        Attribute(name="variant", kind=str, default="fixed", doc=f"how keys are split: {', '.join(VARIANTS)}"),
        Attribute(name="span", kind=int, default=0, doc="tokens per row of the grid; 0: √(2t) for fixed, else √t"),
        Attribute(name="pooling", kind=str, default="max", doc="how a region's keys become one: max or mean"),
        Attribute(name="region_logit", kind=str, default="paper", doc="counted: plus log of the region's keys"),
        Attribute(name="causal", kind=int, default=0, doc="1: no query sees a later key"),
        Attribute(name="scale", kind=float, default=None, doc="factor of q·k; default 1/sqrt(d)"),
        NO_KEY_ATTRIBUTE,
        TOKENS_FIRST,
    ),
    output="b h t e",
    fixed="h g",
    by_heads=("q", "k", "v", "out"),
    reference=reference,
    check=check,
    samples=samples,
)
