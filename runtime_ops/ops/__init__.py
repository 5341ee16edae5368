"""The operations of the domain ``ai.graft``, one per file."""

from runtime_ops.ops.combiner_attention import COMBINER_ATTENTION
from runtime_ops.ops.expanded_attention import EXPANDED_ATTENTION
from runtime_ops.ops.segment_attention import SEGMENT_ATTENTION
from runtime_ops.ops.topk_attention import TOPK_ATTENTION
from runtime_ops.ops.topk_feed_forward import TOPK_FEED_FORWARD
from runtime_ops.spec import OpSpec

_ALL = (TOPK_ATTENTION, TOPK_FEED_FORWARD, COMBINER_ATTENTION, SEGMENT_ATTENTION, EXPANDED_ATTENTION)
OPS: dict[str, OpSpec] = {spec.name: spec for spec in _ALL}
