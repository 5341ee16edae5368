"""The mass of keys that were not chosen, under training: levelled over the row or over each block of keys.

Levelling replaces numbers by their mean. That is a linear map and its own transpose, so one function makes the weights
of the forward pass and the gradient of the weights; which keys it levels counts as constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from runtime_ops.ops.remainder import BLOCK, BLOCKS, FAINT, NONE
from runtime_ops.torch_chunks import Chunk, Problem

Tensor = torch.Tensor
Level = Callable[[Tensor], Tensor]


def unchanged(weights: Tensor) -> Tensor:
    """Level nothing."""
    return weights


def levelling(p: Problem, scores: Tensor, keys: Tensor | None, at: Chunk) -> Level:
    """Return the map of a chunk's weights [b g r s t] that its scores and the chosen keys [b g r s k] make.

    Keys below 0 are none.
    """
    if keys is None or p.remainder == NONE:
        return unchanged
    peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    others = scores >= peak - FAINT
    others.scatter_(-1, keys[..., : at.keys].clamp(min=0).long(), False)
    if p.remainder != BLOCKS:
        return lambda weights: _level(weights, others)
    others &= torch.arange(at.keys, device=scores.device) // BLOCK != p.places(at) // BLOCK
    return lambda weights: _level(_blocks(weights), _blocks(others)).flatten(-2)[..., : at.keys]


def _level(x: Tensor, others: Tensor) -> Tensor:
    """Return the numbers with those of ``others`` replaced by their mean along the last axis."""
    mean = (x * others).sum(-1, keepdim=True) / others.sum(-1, keepdim=True).clamp_(min=1)
    return torch.where(others, mean, x)


def _blocks(x: Tensor) -> Tensor:
    """Return [.. t] as [.. n 64], zeros behind the last key."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK))
    result: Tensor = padded.unflatten(-1, (-1, BLOCK))
    return result
