"""``ai.graft::TopKAttention``: softmax attention over all keys, or over the k best keys of every query.

Source: Gupta, Dar, Goodman, Ciprut, Berant, "Memory-efficient Transformers via Top-k Attention" (2021), section 2;
grouped heads, masks, soft cap, the treatment of rows without a visible key and ``remainder`` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_ops.ops.pieces import count, grouped, hide, level, scores, weights
from runtime_ops.ops.remainder import NONE, REMAINDERS, spread
from runtime_ops.spec import TOKENS_FIRST, Attribute, Input, OpSpec, Sample, wrong_word
from runtime_ops.words import Expr, const, dim, make, reshape

ZERO, MEAN = NO_KEY = ("zero", "mean")  # what a query gets that sees no key


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the attention's result [b h s e] in the words of the alphabet."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if q is None or k is None or v is None:
        raise ValueError("q, k and v are not optional")
    logits = scores(q, k, attrs["scale"], attrs["softcap"])
    if inputs["bias"] is not None:
        logits = make("add", logits, inputs["bias"])
    if inputs["key_mask"] is not None:
        logits = hide(logits, make("unsqueeze", inputs["key_mask"], axes=(1, 2)))
    past_length = inputs["past_length"]
    logits = hide_far(logits, past_length, attrs)
    if not attrs["k"] or attrs["remainder"] == NONE:
        return grouped(chosen(logits, attrs), v)
    place = _places(dim(logits, 2), past_length)
    return grouped(_seen(spread(logits, _best(logits, attrs["k"]), place, attrs["remainder"]), attrs), v)


def hide_far(logits: Expr, past_length: Expr | None, attrs: Mapping[str, Any]) -> Expr:
    """Return scores [b h s t] with -inf where causality and window hide a key."""
    row, key = _places(dim(logits, 2), past_length), count(dim(logits, 3))
    if attrs["causal"]:
        logits = hide(logits, make("le", key, row))
    if attrs["window"]:
        logits = hide(logits, _near(row, key, attrs["window"], bool(attrs["causal"])))
    return logits


def chosen(logits: Expr, attrs: Mapping[str, Any]) -> Expr:
    """Return the weights of all keys, or of the best; what ``no_key`` says where a row sees none."""
    return _seen(_top(logits, attrs["k"]) if attrs["k"] else weights(logits), attrs)


def _seen(found: Expr, attrs: Mapping[str, Any]) -> Expr:
    return level(found) if attrs["no_key"] == MEAN else found


def _places(s: Expr, past_length: Expr | None) -> Expr:
    """Return the place of each query [.. s 1] among the keys."""
    row = make("unsqueeze", count(s), axes=(0, 1, 3))
    return row if past_length is None else make("add", row, reshape(past_length, [-1, 1, 1, 1]))


def _near(row: Expr, key: Expr, window: int, causal: bool) -> Expr:
    """Return which keys lie less than ``window`` from a query: before it, and behind it unless that is hidden."""
    width = const(window)
    before = make("lt", make("sub", row, width), key)
    return before if causal else make("and", before, make("lt", key, make("add", row, width)))


def _top(scores: Expr, k: int) -> Expr:
    """Return weights that are zero outside the k best scores of each row."""
    best = _best(scores, k)
    chosen = weights(make("pick", scores, best))
    return make("scatter", make("expand", const(0.0), make("dim", scores)), best, chosen)


def _best(scores: Expr, k: int) -> Expr:
    """Return the k best keys of each row."""
    return make("topk", scores, make("min", const([k]), dim(scores, 3)))


def check_choosing(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the values of ``CHOOSING``, or None."""
    if attrs["k"] < 0:
        return f"k is {attrs['k']}; it must be 0 (all keys) or more"
    if attrs["causal"] not in (0, 1):
        return f"causal is {attrs['causal']}; it must be 0 or 1"
    if attrs["window"] < 0:
        return f"window is {attrs['window']}; it must be 0 (none) or more"
    if attrs["softcap"] < 0:
        return f"softcap is {attrs['softcap']}; it must be 0 (none) or more"
    return wrong_word(attrs, "no_key", NO_KEY)


def check(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the attribute values, or None."""
    return wrong_word(attrs, "remainder", REMAINDERS) or check_choosing(attrs)


def _sample(id: str, seed: int, *, b: int = 2, s: int = 5, t: int = 7, h: int = 4, g: int = 4, d: int = 16, e: int = 16,
            size: float = 1.0, **rest: Any) -> Sample:  # fmt: skip
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    arrays: dict[str, np.ndarray | None] = {
        "q": (normal((b, h, s, d)) * size).astype(np.float32),
        "k": (normal((b, g, t, d)) * size).astype(np.float32),
        "v": normal((b, g, t, e)).astype(np.float32),
    }
    arrays.update({name: rest.pop(name) for name in ("bias", "key_mask", "past_length") if name in rest})
    return Sample(id=id, arrays=arrays, attrs=rest)


def _remainder_samples(ragged: np.ndarray, none: np.ndarray, fill: np.ndarray) -> Sequence[tuple[str, dict[str, Any]]]:
    """Return calls of 7 keys, and of several blocks of keys."""
    long = {"s": 67, "t": 150, "b": 1, "h": 2, "g": 2, "k": 9}
    past = np.array([83])
    calls: list[tuple[str, dict[str, Any]]] = [
        ("few", {"k": 3}),
        ("k-over-t", {"k": 100}),
        ("k-is-0", {}),
        ("one-key", {"t": 1, "k": 3}),
        ("no-keys", {"t": 0, "k": 2}),
        ("key-mask", {"key_mask": ragged, "k": 2}),
        ("key-mask-none", {"key_mask": none, "k": 2, "no_key": "mean"}),
        ("fill", {"bias": fill, "k": 2}),
        ("huge-logits", {"size": 100.0, "k": 2}),
        ("past-negative", {"causal": 1, "past_length": np.array([-2]), "k": 1}),
        ("all-but-one", {"k": 6}),
        ("long", long),
        ("long-most", {**long, "k": 149}),
        ("long-causal", {**long, "causal": 1, "past_length": past, "softcap": 2.0}),
        ("long-window", {**long, "window": 50, "causal": 1, "past_length": past}),
        ("long-grouped", {**long, "b": 2, "h": 4, "key_mask": np.arange(150) % 3 < np.array([[2], [1]])}),
    ]
    return [(f"{x}-{id}", {**call, "remainder": x}) for id, call in calls for x in REMAINDERS if x != NONE]


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    rng = np.random.default_rng(7)
    ragged = np.arange(7) < np.array([[7], [3]])
    none = np.arange(7) < np.array([[7], [0]])
    f = np.float32
    fill = np.where(ragged, 0, np.finfo(f).min).astype(f)[:, None, None, :]
    table: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("top-3", {"k": 3}),
        ("top-1", {"k": 1}),
        ("k-over-t", {"k": 100}),
        ("scale", {"scale": 0.5}),
        ("grouped", {"g": 2}),
        ("multi-query", {"g": 1, "k": 3}),
        ("wide-values", {"e": 24}),
        ("odd-widths", {"d": 7, "e": 5, "k": 2}),
        ("long-odd", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2}),
        ("long-odd-top", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2, "k": 9}),
        ("one-query", {"s": 1}),
        ("one-key", {"t": 1, "k": 3}),
        ("no-keys", {"t": 0}),
        ("no-queries", {"s": 0}),
        ("softcap", {"softcap": 5.0, "size": 3.0}),
        ("huge-logits", {"size": 100.0}),
        ("huge-logits-top", {"size": 100.0, "k": 2}),
        ("causal", {"s": 7, "causal": 1}),
        ("causal-top", {"s": 7, "causal": 1, "k": 2}),
        ("causal-past", {"causal": 1, "past_length": np.array([2, 1])}),
        ("causal-past-negative", {"causal": 1, "past_length": np.array([-2])}),
        ("causal-longer-queries", {"s": 9, "causal": 1}),
        ("window", {"s": 7, "causal": 1, "window": 3}),
        ("window-1", {"s": 7, "causal": 1, "window": 1}),
        ("window-top", {"s": 7, "causal": 1, "window": 4, "k": 2}),
        ("window-past", {"causal": 1, "window": 2, "past_length": np.array([2, 4])}),
        ("window-beyond", {"causal": 1, "window": 2, "past_length": np.array([6, -3])}),
        ("window-two-sided", {"s": 7, "window": 2}),
        ("window-two-sided-past", {"window": 3, "past_length": np.array([1, 9])}),
        ("window-larger", {"s": 7, "causal": 1, "window": 2**40}),
        ("window-long", {"s": 67, "t": 131, "b": 1, "h": 2, "g": 2, "causal": 1, "window": 9,
                         "past_length": np.array([64])}),
        ("window-long-top", {"s": 131, "t": 131, "b": 1, "h": 2, "g": 2, "window": 40, "k": 9}),
        ("mean-none", {"key_mask": none, "no_key": "mean"}),
        ("mean-none-top", {"key_mask": none, "no_key": "mean", "k": 2}),
        ("mean-left", {"s": 7, "causal": 1, "key_mask": ~ragged, "no_key": "mean"}),
        ("mean-past-negative", {"g": 2, "causal": 1, "past_length": np.array([-2, -9]), "no_key": "mean"}),
        ("mean-window", {"s": 9, "causal": 1, "window": 2, "key_mask": ragged, "no_key": "mean", "e": 5}),
        ("mean-bias", {"bias": np.where(none, 0, -np.inf).astype(f)[:, None, None, :], "no_key": "mean"}),
        ("mean-no-keys", {"t": 0, "no_key": "mean"}),
        ("mean-long", {"s": 67, "t": 131, "h": 2, "g": 1, "causal": 1, "window": 30, "no_key": "mean",
                       "past_length": np.array([-20, 90])}),
        ("key-mask", {"key_mask": ragged}),
        ("key-mask-top", {"key_mask": ragged, "k": 4}),
        ("key-mask-none", {"key_mask": none}),
        ("bias-full", {"bias": rng.standard_normal((2, 4, 5, 7)).astype(f), "k": 4}),
        ("bias-head", {"bias": rng.standard_normal((1, 4, 5, 7)).astype(f)}),
        ("bias-rank-2", {"bias": rng.standard_normal((5, 7)).astype(f)}),
        ("bias-rank-1", {"bias": rng.standard_normal(7).astype(f), "k": 2}),
        ("bias-column", {"bias": rng.standard_normal((2, 1, 5, 1)).astype(f)}),
        ("bias-finite-fill", {"bias": fill}),
        ("bias-all-filled", {"bias": np.full((1, 1, 1, 7), np.finfo(f).min, f)}),
        ("bias-hides-all", {"bias": np.where(none, 0, -np.inf).astype(f)[:, None, None, :]}),
        ("everything", {"g": 2, "k": 3, "causal": 1, "softcap": 8.0, "key_mask": ragged, "scale": 0.3,
                        "past_length": np.array([3, 2]), "bias": rng.standard_normal((1, 4, 5, 7)).astype(f)}),
        *_remainder_samples(ragged, none, fill),
    ]  # fmt: skip
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


NO_KEY_ATTRIBUTE = Attribute(
    name="no_key",
    kind=str,
    default=ZERO,
    doc="what a query gets that sees no key, because all are hidden or have a bias of -inf: zero; or mean, the "
    "mean of all t values, which softmax gives where one finite number hides all keys",
)

# what every attention to chosen keys has
CHOOSING = (
    Attribute(name="k", kind=int, default=0, doc="keys that each query attends to; 0: all, which is exact"),
    Attribute(name="scale", kind=float, default=None, doc="factor of q·k; default 1/sqrt(d)"),
    Attribute(name="causal", kind=int, default=0, doc="1: key j is visible to query i if j <= i + past_length"),
    Attribute(
        name="window",
        kind=int,
        default=0,
        doc="w > 0: key j is visible to query i only if it is less than w away from i + past_length, "
        "which with causal leaves it the last w keys; 0: no window",
    ),
    Attribute(name="softcap", kind=float, default=0.0, doc="c > 0: c·tanh(score/c) before the bias; 0: none"),
    NO_KEY_ATTRIBUTE,
    TOKENS_FIRST,
)

REMAINDER = Attribute(
    name="remainder",
    kind=str,
    default=NONE,
    doc="where k is not 0, what becomes of visible keys that were not chosen: none, softmax goes over the chosen keys; "
    "mean, softmax goes over all visible keys, and the mass of those not chosen goes to the mean of their values; "
    "blocks, in every block of 64 keys, counted from the first key, it goes to the mean of the block's visible values, "
    "the chosen ones among them, but in the block of key i + past_length all keys keep their weights. A score more "
    "than 80 below the row's best has no weight and no part in a mean",
)

TOPK_ATTENTION = OpSpec(
    name="TopKAttention",
    doc=__doc__ or "",
    inputs=(
        Input(name="q", layout="b h s d"),
        Input(name="k", layout="b g t d"),
        Input(name="v", layout="b g t e"),
        Input(name="bias", layout="b h s t", optional=True),
        Input(name="key_mask", layout="b t", kind="bool", optional=True),
        Input(name="past_length", layout="b", kind="int64", optional=True),
    ),
    attributes=(*CHOOSING, REMAINDER),
    output="b h s e",
    fixed="h g",
    by_heads=("q", "k", "v", "out"),
    reference=reference,
    check=check,
    samples=samples,
)
