"""``exact-attention``: tiled attention over all keys, which never holds the scores."""

from patterns.rules.attention_call import call, why_not
from rewriter.plan import Keeps, Rule

RULE = Rule(
    name="exact-attention",
    summary="Replaces attention by one tiled operation that never holds the s×t scores; same values up to rounding.",
    on="attention",
    keeps=Keeps.EXACT,
    why_not=why_not,
    plan=lambda site, given: call(site, k=0),
)
