"""Our attention in the models of Hugging Face transformers, through that library's own registry.

>>> runtime_ops.transformers_attention.register()
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="graft_topk")
>>> model.config.graft_k = 128  # keys per query, 64 if not set; or model.set_attn_implementation("graft_exact")
>>> model.config.graft_remainder = "blocks"  # what becomes of the other keys, "none" if not set

Forward, generation and training work as with "sdpa", without a tensor of all scores and without a mask of all pairs
where padding and causality say it all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from runtime_ops.ops.remainder import BLOCKS, NONE
from runtime_ops.torch_ops import topk_attention

Tensor = torch.Tensor
TOPK, EXACT = "graft_topk", "graft_exact"
K = 64


def register() -> None:
    """Make "graft_topk" and "graft_exact" known as `attn_implementation`; a second time changes nothing.

    With "graft_topk" every query attends to the `graft_k` best keys: an attribute of the model's config, 64 if absent.
    Its `graft_remainder` says what becomes of the other keys: "none" (if absent), "mean" or "blocks", as in
    `ai.graft::TopKAttention`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, attend in ((TOPK, attend_topk), (EXACT, attend_exact)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask)


def attend_topk(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    """Attend to the best keys of every query; arguments and results as in transformers."""
    config = getattr(module, "config", None)
    chosen = {"k_top": getattr(config, "graft_k", K), "remainder": getattr(config, "graft_remainder", NONE)}
    return _attend(chosen, module, query, key, value, *rest, **options)


def attend_exact(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
    """Attend to all keys; arguments and results as in transformers."""
    return _attend({}, module, query, key, value, *rest, **options)


def _attend(
    chosen: Mapping[str, Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend; query [b h s d], key [b g t d], value [b g t e]; returns [b s h e] and no weights."""
    for name, what in (("s_aux", "attention sinks"), ("cache", "paged caches")):
        if others.get(name) is not None:
            raise ValueError(f"graft's attention does not support {what} ({name}): use another attn_implementation")
    s, t = query.shape[2], key.shape[2]
    key_mask, bias = _split(attention_mask, query.dtype)
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    # what is no mask of pairs leaves causality to us; the queries are the last of the keys
    whole = attention_mask is not None and key_mask is None
    ordered = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = not whole and s > 1 and ordered
    placed = ordered and t != s and (causal or chosen.get("remainder") == BLOCKS)
    out = topk_attention(
        query, key, value, bias, key_mask,
        torch.full((1,), t - s, dtype=torch.int64) if placed else None,
        scale=scaling, causal=bool(causal), softcap=softcap or 0.0, dropout_p=dropout, tokens_first="out", **chosen,
    )  # fmt: skip
    return out, None


def _split(attention_mask: Tensor | None, kind: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return a mask of keys [b t], or one of pairs [b h s t] as a bias."""
    if attention_mask is None or attention_mask.ndim == 2:
        return attention_mask, None
    if attention_mask.dtype != torch.bool:
        return None, attention_mask
    return None, torch.zeros_like(attention_mask, dtype=kind).masked_fill_(~attention_mask, -torch.inf)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **others: Any,
) -> Tensor | None:
    """Return what `_attend` needs to know beside causality: padding [b t], nothing, or pairs [b 1 s t] for the rest."""
    from transformers import masking_utils

    causal = mask_function in (None, masking_utils.causal_mask_function)
    plain = causal or mask_function is masking_utils.bidirectional_mask_function
    last = q_offset + q_length == kv_offset + kv_length if causal else True
    padded = attention_mask is not None and tuple(attention_mask.shape) != (batch_size, kv_length)
    if plain and kv_offset == 0 and last and not padded:
        return None if attention_mask is None else attention_mask.bool()
    function = {} if mask_function is None else {"mask_function": mask_function}
    told: dict[str, Any] = {
        **others, **function, "batch_size": batch_size, "q_length": q_length, "kv_length": kv_length,
        "q_offset": q_offset, "kv_offset": kv_offset, "attention_mask": attention_mask,
        "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False,
    }  # fmt: skip
    return masking_utils.sdpa_mask(**told)
