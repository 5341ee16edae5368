"""``topk-attention``: every query attends to its k best keys (Gupta 2021), and by choice to means of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patterns.rules.attention_call import call, why_not
from patterns.site import AttentionSite
from rewriter.plan import Keeps, Option, Rule
from runtime_ops.ops.remainder import BLOCKS, NONE, REMAINDERS


def _warns(site: AttentionSite, given: Mapping[str, Any]) -> str | None:
    """Say where no block of keys is a query's own."""
    lengths = [[a.size for a in site.frame[letter]] for letter in "st"]
    if given["remainder"] != BLOCKS or site.causal is not None or site.cache is not None or lengths[0] == lengths[1]:
        return None
    return (
        "its queries and keys are different tokens, so that no block of keys is a query's own: remainder=blocks keeps "
        "the block exact that has the key with the query's number; compare it with remainder=mean"
    )


RULE = Rule(
    name="topk-attention",
    summary="Lets every query attend to its k best keys only; exact where k is at least the number of keys.",
    on="attention",
    keeps=Keeps.LIMIT,
    options={
        "k": Option(kind=int, doc="keys per query; 0 = all", required=True, at_least=0),
        "remainder": Option(
            kind=str,
            doc="what becomes of the other keys: none: nothing; mean: their mass goes to the mean of their values; "
            "blocks: in every block of 64 keys to the mean of the block's visible values, the chosen ones among them, "
            "but the query's own block stays exact",
            default=NONE,
            one_of=REMAINDERS,
        ),
    },
    limit={"k": 0},
    why_not=why_not,
    warns=_warns,
    plan=lambda site, given: call(site, k=given["k"], remainder=given["remainder"]),
)
