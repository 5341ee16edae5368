"""``topk-attention``: every query attends to its k best keys only (Gupta 2021)."""

from patterns.rules.attention_call import call, why_not
from rewriter.plan import Keeps, Option, Rule
from runtime_ops.ops.remainder import NONE, REMAINDERS

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
            "blocks: the same in every block of 64 keys but the query's own, which stays exact",
            default=NONE,
            one_of=REMAINDERS,
        ),
    },
    limit={"k": 0},
    why_not=why_not,
    plan=lambda site, given: call(site, k=given["k"], remainder=given["remainder"]),
)
