"""READ for torch's scaled dot-product attention, in all its forms: spelled out again in the words of the alphabet."""

from __future__ import annotations

from typing import Any

from rewriter.hosts import spelled_attention as spell
from rewriter.hosts.base import Unfit
from rewriter.hosts.fx_row import Row
from runtime_ops.ops.pieces import hide
from runtime_ops.words import Expr, make


def _attention(
    q: Expr, k: Expr, v: Expr, mask: Expr | None, drop: float, is_causal: bool, scale: Any, grouped: bool = False
) -> Expr:
    """Return softmax(scale · q kᵀ + mask) v of torch: the causal mask is aligned at the top left."""
    if drop:
        raise Unfit(f"the attention drops weights at random (dropout_p={drop:g}); call .eval() on the module first")
    if grouped:
        k, v = (spell.repeated(x, q) for x in (k, v))
    scores = spell.scores(q, k, scale)
    if mask is not None:
        scores = hide(scores, mask) if mask.dtype == bool else make("add", scores, mask)
    if is_causal:
        scores = spell.causal(scores, q, k)
    return spell.weighted(scores, v, empty_rows=mask is not None)  # torch gives 0 for a row without a key


def _general(
    query: Expr, key: Expr, value: Expr, attn_mask: Expr | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: Any = None, enable_gqa: bool = False,
) -> Expr:  # fmt: skip
    return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _flash_for_cpu(
    query: Expr, key: Expr, value: Expr, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Expr | None = None, scale: Any = None,
) -> list[Any]:  # fmt: skip
    return [_attention(query, key, value, attn_mask, dropout_p, is_causal, scale), None]


def _flash(
    query: Expr, key: Expr, value: Expr, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: Any = None,
) -> list[Any]:  # fmt: skip
    return [_attention(query, key, value, None, dropout_p, is_causal, scale), *[None] * 8]


def _efficient(
    query: Expr, key: Expr, value: Expr, attn_bias: Expr | None, compute_log_sumexp: bool, dropout_p: float = 0.0,
    is_causal: bool = False, *rest: Any, scale: Any = None,
) -> list[Any]:  # fmt: skip
    return [_attention(query, key, value, attn_bias, dropout_p, is_causal, scale), *[None] * 8]


def _overrideable(
    query: Expr, key: Expr, value: Expr, attn_bias: Expr | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, return_debug_mask: bool = False, *, scale: Any = None,
) -> list[Any]:  # fmt: skip
    return [_attention(query, key, value, attn_bias, dropout_p, is_causal, scale), *[None] * 8]


def _math(
    query: Expr, key: Expr, value: Expr, attn_mask: Expr | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, dropout_mask: Expr | None = None, *, scale: Any = None, enable_gqa: bool = False,
) -> list[Any]:  # fmt: skip
    return [_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa), None]


def _opaque(reason: str) -> Row:
    def row(*args: Any, **options: Any) -> Any:
        raise Unfit(reason)

    return row


_FAST = "the fused fast path of torch.nn.{}, which holds its weights; trace or export the module with gradients enabled"
ATTENTION: dict[str, Row] = {
    "scaled_dot_product_attention": _general,
    "_scaled_dot_product_flash_attention_for_cpu": _flash_for_cpu,
    "_scaled_dot_product_flash_attention": _flash,
    "_scaled_dot_product_efficient_attention": _efficient,
    "_scaled_dot_product_cudnn_attention": _efficient,
    "_scaled_dot_product_fused_attention_overrideable": _overrideable,
    "_scaled_dot_product_attention_math": _math,
    "_scaled_dot_product_attention_math_for_mps": _math,
    "_native_multi_head_attention": _opaque(_FAST.format("MultiheadAttention")),
    "_transformer_encoder_layer_fwd": _opaque(_FAST.format("TransformerEncoderLayer")),
    "multi_head_attention_forward": _opaque(_FAST.format("functional.multi_head_attention_forward")),
}
