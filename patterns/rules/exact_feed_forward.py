"""``exact-feed-forward``: a feed-forward block in chunks of tokens, which never holds all inner values."""

from patterns.rules.feed_forward_call import call, why_not
from rewriter.plan import Keeps, Rule

RULE = Rule(
    name="exact-feed-forward",
    summary="Replaces a feed-forward block by one operation that never holds the tokens×f inner values and skips "
    "neurons that are zero; same values up to rounding.",
    on="feed-forward",
    keeps=Keeps.EXACT,
    why_not=why_not,
    plan=lambda site, given: call(site, k=0, select_by="preactivation"),
)
