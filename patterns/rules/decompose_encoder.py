"""``decompose-encoder``: the lower layers of an encoder attend within segments only (DeFormer, Cao 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patterns.rules import attention_call
from patterns.site import AttentionSite, EncoderSite
from rewriter.plan import Keeps, Option, Plan, Rule
from runtime_ops.ops import OPS
from runtime_ops.ops.pieces import count
from runtime_ops.words import Expr, const, dim, make

_OP = OPS["SegmentAttention"]
_F32 = np.dtype(np.float32)
WHOLE = "whole"


def _why_not(site: EncoderSite, given: Mapping[str, Any]) -> str | None:
    layers, segments, separator = given["layers"], given["segments"], given["separator"]
    if layers > len(site.layers):
        return f"the encoder has {len(site.layers)} layers, fewer than the {layers} asked for"
    if layers > len(site.cuts):
        return f"tokens are proved to meet in attention only up to layer {len(site.cuts)}: {site.stopped}"
    named = ", ".join(site.given) or "none"
    if separator is not None:
        return None if _ids(site) is not None else "no lookup of embeddings is by an input itself, so none can be split"
    if segments != WHOLE and segments not in site.given:
        return f"the model has no integer input [b t] called {segments}; it has {named}; or give separator=ID"
    why = (attention_call.why_not(layer, given) for layer in site.layers[:layers])
    return next((f"layer {n}: {reason}" for n, reason in enumerate(why, 1) if reason), None)


def _plan(site: EncoderSite, given: Mapping[str, Any]) -> Plan:
    values: dict[Any, Expr] = {}
    for layer in site.layers[: given["layers"]]:
        inputs = attention_call.operands(layer)
        inputs.update(bias=layer.whole, key_mask=None)  # the operation knows keys alone, and gives 0 without any
        inputs["segments"] = _segments(site, layer, inputs["q"], given)
        attrs = {**attention_call.numbers(layer), **attention_call.order(layer)}
        values.update(attention_call.result(layer, _OP.call(inputs, attrs)))
    return Plan(values=values)


def _places(x: Expr, axis: int) -> Expr:
    """Return 0, 1, … along an axis."""
    return count(dim(x, axis))


def _segments(site: EncoderSite, layer: AttentionSite, q: Expr | None, given: Mapping[str, Any]) -> Expr:
    """Return the segment of every token [b t] of a layer with these queries."""
    assert q is not None
    if given["segments"] == WHOLE:
        lengths = make("concat", dim(q, 0), attention_call.length(layer, "q", q), axis=0)
        return make("expand", const(0), lengths)
    if given["separator"] is not None:
        return _after_separator(_ids(site), given["separator"])
    return make("cast", site.given[given["segments"]], to=np.dtype(np.int64))


def _after_separator(ids: Expr | None, separator: int) -> Expr:
    """Return 0 up to the first separator, itself included, and 1 after it."""
    assert ids is not None
    length = make("dim", ids, start=1, end=2)
    places = _places(ids, axis=1)
    found = make("eq", ids, const(separator, ids.dtype))
    # The negated places of separators: the largest is the first one's.
    first = make("amax", make("where", found, _float(make("neg", places)), _float(make("neg", length))), axes=(1,))
    after = make("lt", make("neg", first), _float(places))
    return make("cast", after, to=np.dtype(np.int64))


def _float(x: Expr) -> Expr:
    return make("cast", x, to=_F32)


def _ids(site: EncoderSite) -> Expr | None:
    return site.given.get(site.words) if site.words is not None else None


RULE = Rule(
    name="decompose-encoder",
    summary="Lets tokens of the lower layers see their own segment only, so that passages can be encoded ahead.",
    on="encoder",
    keeps=Keeps.LIMIT,
    options={
        "layers": Option(kind=int, doc="how many of the lower layers are decomposed", required=True, at_least=1),
        "segments": Option(
            kind=str,
            doc=f"input that tells the segment of every token; {WHOLE}: all in one, which changes nothing",
            default="token_type_ids",
        ),
        "separator": Option(kind=int, doc="id of the token that ends the first segment; then no input is needed"),
    },
    limit={"segments": WHOLE, "separator": None},
    why_not=_why_not,
    plan=_plan,
)
