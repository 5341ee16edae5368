"""What the CUDA kernels are compared with: plain attention, torch's fused attention, and the paper's top-k."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def plain(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, key_mask: Tensor | None = None,
    past_length: Tensor | None = None, *, k_top: int = 0, scale: float, causal: bool = False, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """The definition, in the tensors' own element type, with all scores in memory."""
    group = q.shape[1] // k.shape[1]
    k, v = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (k, v))
    x = (q @ k.mT) * scale
    x = softcap * torch.tanh(x / softcap) if softcap else x
    x = x if bias is None else x + bias.to(x.dtype)
    if key_mask is not None:
        x = x.masked_fill(~key_mask[:, None, None, :], -torch.inf)
    if causal:
        row = torch.arange(q.shape[2], device=q.device)[:, None]
        row = row if past_length is None else row + past_length.reshape(-1, 1, 1, 1)
        x = x.masked_fill(torch.arange(k.shape[2], device=q.device) > row, -torch.inf)
    if 0 < k_top < x.shape[-1]:
        best = x.topk(k_top, dim=-1)
        x = torch.full_like(x, -torch.inf).scatter_(-1, best.indices, best.values)
    if x.shape[-1] == 0:
        return torch.zeros_like(q @ v.mT.new_zeros(q.shape[3], v.shape[3]))
    seen = x.amax(-1, keepdim=True) > -torch.inf
    return torch.softmax(torch.where(seen, x, 0.0), -1).mul(seen) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False) -> Tensor:
    """torch's fused attention, whichever kernel it picks."""
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)


def _scores(q: Tensor, k: Tensor, first: int, causal: bool) -> Tensor:
    """Products of a chunk of queries that starts at `first`; masked with the lowest finite number, as in the paper."""
    x = q @ k.mT
    if causal:
        row = torch.arange(first, first + q.shape[2], device=q.device)[:, None]
        x.masked_fill_(torch.arange(k.shape[2], device=q.device) > row, torch.finfo(x.dtype).min)
    return x


class _PaperChunk(torch.autograd.Function):
    """One chunk of queries: matmul, topk, softmax of the kept, scatter, matmul; nothing of size s t is kept."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, first: int, k_top: int, scale: float, causal: bool) -> Tensor:
        x = _scores(q, k, first, causal)
        best = x.topk(k_top, dim=-1, sorted=False)
        weights = torch.softmax(best.values * scale, -1)
        ctx.save_for_backward(q, k, v, weights, best.indices)
        ctx.scale = scale
        return x.zero_().scatter_(-1, best.indices, weights) @ v

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        q, k, v, weights, keys = ctx.saved_tensors
        dense = g @ v.mT
        d_weights = dense.gather(-1, keys)
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * ctx.scale
        dense.zero_().scatter_(-1, keys, weights)
        d_v = dense.mT @ g
        dense.scatter_(-1, keys, d_scores)
        return dense @ k, dense.mT @ q, d_v, None, None, None, None


def paper(
    q: Tensor, k: Tensor, v: Tensor, *, k_top: int, scale: float, causal: bool = False, chunk: int = 1024
) -> Tensor:
    """Top-k attention as the authors' code computes it (chunks of 1024 queries, dense variant); METHODS 1.1 to 1.3."""
    starts = range(0, q.shape[2], chunk)
    parts = [_PaperChunk.apply(q[:, :, i : i + chunk], k, v, i, k_top, scale, causal) for i in starts]
    return torch.cat(parts, dim=2)
