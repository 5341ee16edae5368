"""``topk-attention``: every query attends to its k best keys only (Gupta 2021)."""

from patterns.rules.attention_call import call, why_not
from rewriter.plan import Keeps, Option, Rule

RULE = Rule(
    name="topk-attention",
    summary="Lets every query attend to its k best keys only; exact where k is at least the number of keys.",
    on="attention",
    keeps=Keeps.LIMIT,
    options={"k": Option(kind=int, doc="keys per query; 0 = all", required=True, at_least=0)},
    limit={"k": 0},
    why_not=why_not,
    plan=lambda site, given: call(site, k=given["k"]),
)
