"""One call of TopKAttention under training, cut into chunks that are small enough for all their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runtime_ops.ops.remainder import NONE
from runtime_ops.ops.topk_attention import MEAN

Tensor = torch.Tensor
_ROOM = {"cpu": 1 << 20, "cuda": 1 << 26}  # scores in memory at a time
_CAUSAL_ROWS = 256  # more queries at a time would see more keys that most of them may not


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some queries of some heads, and how many keys they may see at most."""

    b: slice
    g: slice
    s: slice
    keys: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One call, seen as q [b g r s d], k [b g t d], v [b g t e], bias [b g r s t], key_mask [b t], past [b].

    r is how many query heads share a key head; everything is a view. mean: what rows get that see no key, else 0.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    key_mask: Tensor | None
    past: Tensor | None
    k_top: int
    scale: float
    softcap: float
    causal: bool
    window: int
    mean: bool
    remainder: str
    dropout: float
    seed: int

    @staticmethod
    def of(inputs: Sequence[Tensor | None], attrs: Mapping[str, Any], extra: Sequence[Any] = ()) -> Problem:
        """Return the call of these inputs and attributes, with dropout and its seed behind them."""
        q, k, v, bias, key_mask, past = inputs
        if q is None or k is None or v is None:
            raise ValueError("TopKAttention: q, k and v are not optional")
        h, g, s, t = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
        if g == 0 or h % g:
            raise ValueError(f"TopKAttention: q has {h} heads, k has {g}; the first must be a multiple of the second")
        b = torch.broadcast_shapes(*(x.shape[:1] for x in (q, k, v)))[0]
        q, k, v = (x.expand(b, -1, -1, -1) for x in (q, k, v))
        dropout, seed = extra or (0.0, None)
        return Problem(
            q=q.unflatten(1, (g, h // g)), k=k, v=v,
            bias=None if bias is None else bias.expand(b, h, s, t).unflatten(1, (g, h // g)),
            key_mask=key_mask, past=None if past is None else past.to(q.device).reshape(-1).expand(b),
            k_top=min(attrs["k"], t), scale=q.shape[3] ** -0.5 if attrs["scale"] is None else attrs["scale"],
            softcap=attrs["softcap"], causal=bool(attrs["causal"]), window=attrs["window"],
            mean=attrs["no_key"] == MEAN, remainder=attrs["remainder"] if attrs["k"] else NONE,
            dropout=dropout, seed=0 if seed is None else int(seed),
        )  # fmt: skip

    @property
    def kind(self) -> torch.dtype:
        """The type of the arithmetic."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def chunks(self, width: int | None = None) -> Iterator[Chunk]:
        """Cut the call up; rows that see no key are left out, unless they get the mean of all values.

        Args:
            width: how many numbers per row a chunk has to have room for; None: all scores.
        """
        b, g, r, s, _ = self.q.shape
        t = self.k.shape[2]
        most = min(s, _CAUSAL_ROWS) if self.causal and width is None else s
        room = _ROOM.get(self.q.device.type, _ROOM["cpu"]) // max(r * (t if width is None else width), 1)
        past = 0 if self.past is None or not self.past.numel() else int(self.past.max())
        rows = min(max(room, 1), most)
        heads = min(max(room // max(rows, 1), 1), g)
        batch = min(max(room // max(rows * heads, 1), 1), b)
        starts = [(i, j, a) for i in range(0, b, batch) for j in range(0, g, heads) for a in range(0, s, max(rows, 1))]
        for number, (i, j, a) in enumerate(starts):
            keys = min(t, max(a + rows + past, int(self.mean))) if self.causal else t
            if keys > 0:
                parts = (slice(n, n + size) for n, size in ((i, batch), (j, heads), (a, rows)))
                yield Chunk(**dict(zip("bgs", parts, strict=True)), keys=keys, number=number)

    def rows(self, x: Tensor, at: Chunk) -> Tensor:
        """Return [b g r*s .], the rows of a chunk, in the type of the arithmetic."""
        return x[at.b, at.g, :, at.s].to(self.kind).flatten(2, 3)

    def table(self, x: Tensor, at: Chunk) -> Tensor:
        """Return the keys or values [b g t .] that a chunk may see, in the type of the arithmetic."""
        return x[at.b, at.g, : at.keys].to(self.kind)

    def scores(self, at: Chunk) -> tuple[Tensor, Tensor | None]:
        """Return all scores [b g r s t] of a chunk, and the soft cap's slope where there is one."""
        x = (self.rows(self.q, at) * self.scale) @ self.table(self.k, at).mT
        x = x.unflatten(2, (self.q.shape[2], -1))
        x, slope = self.capped(x)
        if self.bias is not None:
            x += self.bias[at.b, at.g, :, at.s, : at.keys]
        if self.key_mask is not None:
            x.masked_fill_(~self.key_mask[at.b, None, None, None, : at.keys].bool(), -torch.inf)
        if self.causal or self.window:
            x.masked_fill_(self._unseen(at), -torch.inf)
        return x, slope

    def places(self, at: Chunk) -> Tensor:
        """Return where each query of a chunk stands among the keys, to broadcast to [b g r s t]."""
        row = torch.arange(at.s.start, min(at.s.stop, self.q.shape[3]), device=self.q.device)[:, None]
        return row if self.past is None else row + self.past[at.b].reshape(-1, 1, 1, 1, 1)

    def _unseen(self, at: Chunk) -> Tensor:
        """Return which keys causality and window hide."""
        ahead = torch.arange(at.keys, device=self.q.device) - self.places(at)
        if not self.window:
            return ahead > 0
        return (ahead > (0 if self.causal else self.window - 1)) | (ahead <= -self.window)

    def capped(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the scores with the soft cap on, in the same memory, and the cap's slope."""
        if not self.softcap:
            return x, None
        x.div_(self.softcap).tanh_()
        slope = 1 - x * x
        return x.mul_(self.softcap), slope

    def kept(self, weights: Tensor, at: Chunk) -> Tensor | None:
        """Return what dropout multiplies the weights of a chunk with; the same for the same chunk and seed."""
        if not self.dropout:
            return None
        generator = torch.Generator(weights.device).manual_seed(self.seed + at.number)
        keep = torch.empty_like(weights).bernoulli_(1 - self.dropout, generator=generator)
        return keep.div_(1 - self.dropout) if self.dropout < 1 else keep
