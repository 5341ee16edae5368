"""``topk-feed-forward``: for every token only the k best neurons of a feed-forward block take part (Gupta 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patterns.rules import feed_forward_call
from patterns.site import FeedForwardSite
from rewriter.plan import Keeps, Option, Rule
from runtime_ops.ops.topk_feed_forward import SELECTIONS


def _why_not(site: FeedForwardSite, given: Mapping[str, Any]) -> str | None:
    """Return why the site cannot become a call, or None; what is best in a gated block must be said."""
    if site.gated and given["k"] and given["select_by"] is None:
        return (
            "it is gated, and nothing says what its best neurons are; state select_by=contribution (or preactivation "
            "or magnitude, which go by the gate alone)"
        )
    return feed_forward_call.why_not(site, given)


RULE = Rule(
    name="topk-feed-forward",
    summary="Lets only the k best neurons of a feed-forward block take part for each token; exact where k is at "
    "least their number, and for ReLU as soon as it covers the positive ones.",
    on="feed-forward",
    keeps=Keeps.LIMIT,
    options={
        "k": Option(kind=int, doc="neurons per token; 0 = all", required=True, at_least=0),
        "select_by": Option(
            kind=str,
            doc=f"{', '.join(SELECTIONS)}; without it preactivation, and gated blocks decline",
            one_of=SELECTIONS,
        ),
    },
    limit={"k": 0},
    why_not=_why_not,
    plan=lambda site, given: feed_forward_call.call(site, given["k"], given["select_by"] or "preactivation"),
)
