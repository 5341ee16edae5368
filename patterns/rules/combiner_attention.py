"""``combiner-attention``: near keys are read themselves, all others through summaries of regions (Ren 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patterns.mask import Causal, Keys, Mask, Window
from patterns.rules import attention_call
from patterns.site import AttentionSite
from rewriter.plan import Keeps, Option, Plan, Rule
from runtime_ops.dims import product
from runtime_ops.ops import OPS
from runtime_ops.ops.combiner_attention import POOLINGS, REGION_LOGITS, VARIANTS

_OP = OPS["CombinerAttention"]
_WHOLE = 2**30  # a span no shorter than the sequence leaves nothing to summarise


def _why_not(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    reason = attention_call.why_not(site, given)
    if reason is not None:
        return reason
    if site.softcap is not None:
        return f"its scores are capped at {site.softcap:g}, and a region's logit stands for no single score to cap"
    s, t = (product(a.size for a in site.frame[letter]) for letter in "st")
    if s != t:
        return f"its {s} queries and {t} keys are not proved to be one sequence, whose tokens regions are made of"
    if site.causal is not None and site.causal.offset != 0:
        return f"its causal mask is moved by {site.causal.offset}; regions need queries and keys at the same places"
    return _why_no_mask(site) if site.bias is not None or site.window else None


def _why_no_mask(site: AttentionSite) -> str:
    """Return why a region's summary cannot carry what is added to the scores."""
    parts: Sequence[Mask] = getattr(site.mask, "parts", [site.mask])
    if any(isinstance(part, Window) for part in parts):
        return "its mask is a window, which cuts through regions; a summary is seen whole or not at all"
    if all(isinstance(part, Causal | Keys) for part in parts):
        return (
            "its mask adds numbers to scores that are not proved to hide every key alike, as the operation does; "
            "a fill of -inf, or one of -1e30 or lower, would be taken"
        )
    return "it adds a bias to single scores, such as one by distance, and a region has one logit for many keys"


def _warns(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    if site.rope is None:
        return None
    return (
        "its keys carry rotary positions, and a summary mixes those of a whole region, which the method was not made "
        "for: look at the error with the options asked for, or fine-tune"
    )


def _plan(site: AttentionSite, given: Mapping[str, Any]) -> Plan:
    inputs = attention_call.operands(site)
    named = {name: inputs[name] for name in ("q", "k", "v", "key_mask")}
    flags = attention_call.flags(site)
    told = {"causal": flags["causal"], "no_key": flags["no_key"], "scale": site.scale}
    attrs = {**given, **told, **attention_call.order(site)}
    return Plan(values=attention_call.result(site, _OP.call(named, attrs)))


RULE = Rule(
    name="combiner-attention",
    summary="Reads near keys themselves and others through summaries of regions; exact where one span holds all keys.",
    on="attention",
    keeps=Keeps.LIMIT,
    options={
        "variant": Option(kind=str, doc="how keys are split into regions", default="fixed", one_of=VARIANTS),
        "span": Option(kind=int, doc="tokens of a span; 0: about the square root of the length", default=0, at_least=0),
        "pooling": Option(kind=str, doc="how a region's keys become one", default="mean", one_of=POOLINGS),
        "region_logit": Option(
            kind=str, doc="counted: a region weighs as many keys as it has", default="counted", one_of=REGION_LOGITS
        ),
    },
    limit={"variant": "fixed", "span": _WHOLE},
    why_not=_why_not,
    plan=_plan,
    warns=_warns,
)
