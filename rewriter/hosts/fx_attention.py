"""READ for torch's scaled dot-product attention, in all its forms: spelled out again in the words of the alphabet."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.hosts.base import Unfit
from rewriter.hosts.fx_row import Row, rank
from rewriter.hosts.fx_shape import repeat_interleave
from rewriter.hosts.spelled import causal
from runtime_ops.dims import divide
from runtime_ops.words import Expr, const, make


def _attention(
    q: Expr, k: Expr, v: Expr, mask: Expr | None, drop: float, is_causal: bool, scale: Any, grouped: bool = False
) -> Expr:
    """Return softmax(scale · q kᵀ + mask) v of torch: the causal mask is aligned at the top left."""
    if drop:
        raise Unfit(f"the attention drops weights at random (dropout_p={drop:g}); call .eval() on the module first")
    if grouped:
        k, v = (_repeated(x, q) for x in (k, v))
    scores = _scores(q, k, scale)
    if mask is not None and mask.dtype == bool:
        scores = make("where", mask, scores, const(-np.inf, scores.dtype))
    elif mask is not None:
        scores = make("add", scores, mask)
    if is_causal:
        scores = causal(scores, q, k)
    p = make("softmax", scores, axis=rank(scores) - 1)
    if mask is not None:  # a row without a key gives 0
        p = make("where", make("not", make("eq", p, p)), const(0.0, p.dtype), p)
    return make("matmul", p, v)


def _scores(q: Expr, k: Expr, scale: Any) -> Expr:
    width = q.shape[-1] if q.shape is not None else None
    if scale is None and not isinstance(width, int):
        raise Unfit("its head width, which gives the scale, is not known; pass example inputs with inputs=(...)")
    n = rank(k)
    product = make("matmul", q, make("transpose", k, perm=(*range(n - 2), n - 1, n - 2)))
    factor = scale.number() if isinstance(scale, Expr) else scale
    if scale is not None and factor is None:
        return make("mul", product, scale)
    return make("mul", product, const(width**-0.5 if scale is None else factor, product.dtype))  # type: ignore[operator]


def _repeated(x: Expr, q: Expr) -> Expr:
    """Return key or value heads repeated to the number of query heads."""
    mine, yours = (e.shape[-3] if e.shape is not None else None for e in (x, q))
    if mine is None or yours is None or mine == yours:
        return x
    group = divide(yours, mine)
    wide = repeat_interleave(x, group, rank(x) - 3) if isinstance(group, int) else None
    if wide is None:
        raise Unfit("the numbers of query and key heads are not known; pass example inputs with inputs=(...)")
    return wide


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
