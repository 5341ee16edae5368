"""``expand-query``: queries are expanded to the width of the hidden states that keys and values are made of (Yan 2021).

The key bias goes, which softmax cancels; the value bias is added behind. What remains to be kept between the steps of
a decoder is the hidden states: once for all heads and beams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patterns import memory
from patterns.memory import Memory
from patterns.rules import attention_call
from patterns.site import AttentionSite, Unreadable
from rewriter import layout
from rewriter.plan import Keeps, Option, Plan, Rule
from runtime_ops.dims import Dim
from runtime_ops.ops import OPS
from runtime_ops.words import Expr, dim, make

_OP = OPS["ExpandedAttention"]


def _why_not(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    reason = attention_call.why_not(site, given) or why_not_around(site)
    if reason is not None:
        return reason
    try:
        keys, values = memory.read(site, "k"), memory.read(site, "v")
    except Unreadable as stop:
        return stop.reason
    return why_not_memory(site, keys, values) or (None if given["force"] == "yes" else why_not_smaller(site, keys))


def why_not_around(site: AttentionSite) -> str | None:
    """Return why keys are more than a product of hidden states."""
    if site.rope is not None and "k" in site.rope.sides:
        return "its keys are turned by their position (rotary embedding), so no expansion of a query serves all of them"
    if site.qk_norm is not None and "k" in site.qk_norm.sides:
        return "its keys are normed after their projection, which no expansion of the queries can do"
    if site.cache is not None:
        return "its keys and values are joined with past ones, which are not hidden states"
    return None


def why_not_memory(site: AttentionSite, keys: Memory, values: Memory) -> str | None:
    """Return why keys and values are not made of one memory that the operation can read."""
    if keys.x.value is not values.x.value or keys.x.axes != values.x.axes:
        return "its keys and values are projections of different tensors, so there is no one memory to attend to"
    if keys.biases and site.softcap is not None:
        return f"its keys have a bias and its scores are capped at {site.softcap:g}; softmax does not cancel it then"
    if arranged(site, keys) is None:
        return "the hidden states behind its keys cannot be brought to [b t m]"
    return None


def why_not_smaller(site: AttentionSite, keys: Memory) -> str | None:
    """Return why hidden states would take more memory than keys and values."""
    numbers = kept(site)
    if not isinstance(numbers, int) or not isinstance(keys.width, int) or numbers >= keys.width:
        return None
    return (
        f"its keys and values are {numbers} numbers for each token and hidden states are {keys.width}: what is kept "
        "would grow; force takes it all the same (force=yes, or graft expand --force)"
    )


def kept(site: AttentionSite) -> Dim:
    """Return how many numbers keys and values are for each token."""
    return site.kv_heads * _number(site.head_width) + site.kv_heads * _number(site.value_width)


def _number(width: Dim | None) -> Dim:
    return 0 if width is None else width


def arranged(site: AttentionSite, keys: Memory) -> Expr | None:
    """Return the hidden states [b t m]; flattened ones are read from before they were."""
    target = (site.frame["b"], site.frame["t"], keys.x.axes[-1])
    views = layout.views(keys.x.value, keys.x.axes, through_scales=False)
    return next((x for expr, axes, _ in views if (x := layout.arrange(expr, axes, target)) is not None), None)


def _plan(site: AttentionSite, given: Mapping[str, Any]) -> Plan:
    keys, values = memory.read(site, "k"), memory.read(site, "v")
    hidden = arranged(site, keys)
    assert hidden is not None  # ``why_not`` looked
    return Plan(values=call(site, hidden, keys, values, {"bias": site.bias, "key_mask": site.keys}))


def call(
    site: AttentionSite, hidden: Expr, keys: Memory, values: Memory, masks: Mapping[str, Expr | None]
) -> dict[Any, Expr]:
    """Return what takes the place of the site's output if it attends to ``hidden`` [b t m] through these weights."""
    inputs = {
        "q": _per_row(attention_call.operands(site)["q"], hidden),
        "memory": hidden,
        "w_k": keys.heads(),
        "w_v": values.heads(values.factor),
        "b_v": values.bias(),
    }
    typed = {name: attention_call.typed(x, site) for name, x in inputs.items()}
    placed = {**masks, "past_length": attention_call.past_length(site)}
    attrs = {**attention_call.numbers(site), **attention_call.flags(site), "scale": site.scale * keys.factor}
    attrs.update(attention_call.order(site, _OP.by_heads))
    return attention_call.result(site, _OP.call({**typed, **placed}, attrs))


def _per_row(q: Expr | None, hidden: Expr) -> Expr | None:
    """Return queries for every sentence, where one set of them was shared."""
    if q is None or q.shape is None or q.shape[0] != 1 or (hidden.shape is not None and hidden.shape[0] == 1):
        return q
    return make("expand", q, make("concat", dim(hidden, 0), make("dim", q, start=1), axis=0))


def _warns(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    """Say what it costs: sums run over the width of hidden states instead of a head's."""
    width, m = site.head_width, memory.read(site, "k").width
    if not isinstance(width, int) or not isinstance(m, int) or m <= width:
        return None
    return (
        f"scores and results are sums over hidden states of {m} numbers instead of a head's {width}: {m / width:.3g} "
        "times the arithmetic; it pays where a decoder reads what it keeps over and over, not on whole sequences"
    )


RULE = Rule(
    name="expand-query",
    summary="Expands queries to the hidden states' width, so that these are kept and no keys and values; same values.",
    on="attention",
    keeps=Keeps.EXACT,
    options={
        "force": Option(
            kind=str, doc="yes: also where hidden states are wider than keys and values", default="no",
            one_of=("no", "yes"),
        ),
    },
    why_not=_why_not,
    warns=_warns,
    plan=_plan,
)  # fmt: skip
