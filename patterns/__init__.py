"""Patterns: what graft looks for (readers) and what it puts there (rules).

The command finds this module through the entry-point group ``graft.patterns``; another package can add its own.
"""

from patterns import attention, decoder, encoder, feed_forward
from patterns.rules import (
    combiner_attention,
    decompose_encoder,
    exact_attention,
    exact_feed_forward,
    expand_query,
    narrow_last_layer,
    topk_attention,
    topk_feed_forward,
)

READERS = (attention.read, feed_forward.read)
ASSEMBLERS = (encoder.assemble,)
DECODERS = (decoder.expanded,)
RULES = (
    exact_attention.RULE,
    topk_attention.RULE,
    combiner_attention.RULE,
    expand_query.RULE,
    exact_feed_forward.RULE,
    topk_feed_forward.RULE,
    decompose_encoder.RULE,
    narrow_last_layer.RULE,
)
