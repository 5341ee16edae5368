"""The mass of keys that were not chosen, under training: levelled over the row or over each block of keys.

Levelling takes the weights of some keys, and spreads their sum evenly among the same keys or more. That is a linear
map; its transpose, which the gradient goes through, has the two sets exchanged. The sets count as constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime_ops.ops.remainder import BLOCK, BLOCKS, FAINT, NONE
from runtime_ops.torch_chunks import Chunk, Problem

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Level:
    """Which keys [b g r s t] lose their weights, among which these are spread, and in blocks of how many keys."""

    rest: Tensor
    among: Tensor
    block: int

    def weights(self, x: Tensor) -> Tensor:
        """Return weights levelled."""
        return self._spread(x, self.rest, self.among)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of the weights from that of the levelled ones."""
        return self._spread(x, self.among, self.rest)

    def _spread(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return x, 0 for ``rest``, and on each key of the target its block's sum of the source by ``among``'s size."""
        given, among, to = (_blocks(y, self.block) for y in (x * source, self.among, target))
        level = given.sum(-1, keepdim=True) / among.sum(-1, keepdim=True).clamp_(min=1)
        return x.masked_fill(self.rest, 0).add_((to * level).flatten(-2)[..., : x.shape[-1]])


def levelling(p: Problem, scores: Tensor, keys: Tensor | None, at: Chunk) -> Level | None:
    """Return how a chunk's weights are levelled by its scores [b g r s t] and chosen keys [b g r s k]; None: not.

    Keys below 0 are none.
    """
    if keys is None or p.remainder == NONE:
        return None
    peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    others = scores >= peak - FAINT
    by_block = p.remainder == BLOCKS
    if by_block:
        others &= torch.arange(at.keys, device=scores.device) // BLOCK != p.places(at) // BLOCK
    rest = others.scatter(-1, keys[..., : at.keys].clamp(min=0).long(), False)
    return Level(rest=rest, among=others if by_block else rest, block=BLOCK if by_block else at.keys)


def _blocks(x: Tensor, size: int) -> Tensor:
    """Return [.. t] as [.. n size], zeros behind the last key."""
    gap = -x.shape[-1] % size
    result: Tensor = (torch.nn.functional.pad(x, (0, gap)) if gap else x).unflatten(-1, (-1, size))
    return result
