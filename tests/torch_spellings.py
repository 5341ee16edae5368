"""Attention as people write it in torch: a module per row, with inputs that no two axes of which agree in length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

B, S, T, H, D, M = 2, 5, 7, 4, 8, 32
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TorchSpelling:
    """One way to write attention.

    Attributes:
        id: name of the row.
        module: makes the module.
        inputs: makes its inputs, given the lengths of batch and sequence.
        sites: attention sites in it.
        free: axes of each input that may have any length: letters b and s, or None.
        traces: whether torch.fx.symbolic_trace can trace it.
    """

    id: str
    module: Callable[[], nn.Module]
    inputs: Callable[[int, int], Sequence[Tensor]]
    free: Sequence[str]
    sites: int = 1
    traces: bool = True


class Heads(nn.Module):
    """Self-attention around a function of [b h s d] tensors."""

    def __init__(self, attend: Callable[..., Tensor], kv_heads: int = H) -> None:
        super().__init__()
        self.attend, self.kv = attend, kv_heads
        self.q, self.k, self.v = nn.Linear(M, H * D), nn.Linear(M, kv_heads * D), nn.Linear(M, kv_heads * D)
        self.out = nn.Linear(H * D, M)

    def forward(self, x: Tensor) -> Tensor:
        return self.merged(self.attend(*self.split(x)))

    def split(self, x: Tensor) -> Sequence[Tensor]:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, H, D).transpose(1, 2)
        return q, *(f(x).view(b, s, self.kv, D).transpose(1, 2) for f in (self.k, self.v))

    def merged(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).reshape(out.shape[0], -1, H * D))


class HeadsWithMask(Heads):
    """The same, with a mask [b t] of 0 and 1 as second input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.merged(self.attend(*self.split(x), mask))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-2, -1)) / math.sqrt(D)).softmax(-1) @ v


def functional(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(F.softmax(torch.matmul(q * D**-0.5, k.transpose(2, 3)), dim=-1), v)


def softmax_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(torch.matmul(q, k.mT) * 0.3, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, s, d = q.shape
    q, k, v = (x.reshape(b * h, s, d) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(0.25).softmax(2), v).view(b, h, s, d)


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, s, d = q.shape
    q, k, v = (x.reshape(b * h, s, d) for x in (q, k, v))
    slope = torch.arange(s).to(q.dtype).view(1, 1, s)
    scores = torch.baddbmm(slope, q, k.transpose(1, 2), beta=0.1, alpha=0.25)
    return (scores.softmax(-1) @ v).view(b, h, s, d)


def with_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhsd,bhtd->bhst", q, k) * D**-0.5
    return torch.einsum("bhst,bhtd->bhsd", scores.softmax(dim=-1), v)


def soft_capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * 0.5
    return (torch.tanh(scores / 5.0) * 5.0).softmax(-1) @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * 0.5
    return F.dropout(scores.softmax(-1), 0.1, False) @ v


def in_place(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    scores /= math.sqrt(D)
    scores.masked_fill_(keep[:, None, None, :] == 0, float("-inf"))
    return torch.softmax(scores, -1) @ v


def filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = ((q @ k.transpose(-2, -1)) * 0.5).masked_fill(keep[:, None, None, :] == 0, -1e9)
    return scores.softmax(-1) @ v


def where(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * 0.5
    hidden = torch.full((), torch.finfo(torch.float32).min)
    return torch.where(keep[:, None, None, :] > 0, scores, hidden).softmax(-1) @ v


def added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    bias = (1.0 - keep[:, None, None, :]) * -10000.0
    return ((q @ k.transpose(-2, -1)) * 0.5 + bias).softmax(-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s, t = q.shape[-2], k.shape[-2]
    scores = (q @ k.transpose(-2, -1)) * 0.5
    keep = torch.arange(t)[None, :] <= torch.arange(s)[:, None]
    return torch.where(keep, scores, float("-inf")).softmax(-1) @ v


def tril(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q.shape[-2]
    scores = (q @ k.transpose(-2, -1)) * 0.5
    return scores.masked_fill(torch.tril(q.new_ones(s, s)) == 0, float("-inf")).softmax(-1) @ v


def triu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q.shape[-2]
    hidden = torch.triu(q.new_ones(s, s).bool(), diagonal=1)
    return ((q @ k.transpose(-2, -1)) * 0.5).masked_fill(hidden, float("-inf")).softmax(-1) @ v


def sdpa(**options: Any) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def sdpa_bool(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :] > 0)


def sdpa_float(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(1.0 - keep[:, None, None, :]) * -10000.0)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, g, s, d = k.shape
    k, v = (x[:, :, None].expand(b, g, 2, s, d).reshape(b, 2 * g, s, d) for x in (k, v))
    return ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v


class Packed(nn.Module):
    """Queries, keys and values from one projection, taken apart in some way."""

    def __init__(self, parts: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.qkv, self.out, self.parts = nn.Linear(M, 3 * M), nn.Linear(M, M), parts
        self.soft, self.drop = nn.Softmax(dim=-1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self.qkv(x))
        weights = self.drop(self.soft(q @ k.transpose(-2, -1) * D**-0.5))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def unbound(x: Tensor) -> Sequence[Tensor]:
    q, k, v = x.view(x.size(0), x.size(1), 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def indexed(x: Tensor) -> Sequence[Tensor]:
    qkv = x.reshape(x.shape[0], x.shape[1], 3, H, D).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def chunked(x: Tensor) -> Sequence[Tensor]:
    q, k, v = x.chunk(3, dim=-1)
    return [y.unflatten(-1, (H, D)).transpose(1, 2) for y in (q, k, v)]


def split(x: Tensor) -> Sequence[Tensor]:
    q, k, v = torch.split(x, M, dim=2)
    return [y.view(y.shape[0], -1, H, D).permute(0, 2, 1, 3) for y in (q, k, v)]


def sliced(x: Tensor) -> Sequence[Tensor]:
    parts = (x[..., :M], x[..., M : 2 * M], x[..., 2 * M :])
    return [y.reshape(y.shape[0], y.shape[1], H, D).transpose(1, 2) for y in parts]


class Cross(nn.Module):
    """Queries of one sequence, keys and values of another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(M, M) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (f(y).unflatten(-1, (H, D)).transpose(1, 2) for f, y in
                   ((self.q, x), (self.k, memory), (self.v, memory)))  # fmt: skip
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Single(nn.Module):
    """One head, no head axis."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(M, D) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.bmm(self.q(x), self.k(x).transpose(1, 2)) / math.sqrt(D)
        return torch.bmm(F.softmax(scores, dim=2), self.v(x))


class Multi(nn.Module):
    """``nn.MultiheadAttention``, as it is usually called."""

    def __init__(self, **call: Any) -> None:
        super().__init__()
        self.attention, self.call = nn.MultiheadAttention(M, H, batch_first=True), call

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.call)[0]


class MultiPadded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(M, H, batch_first=True)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=keep == 0, need_weights=False)[0]


class Block(nn.Module):
    """A whole layer of torch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Decoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(M, H, 64, batch_first=True, **options)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.layer(x, memory)


def hidden(b: int, s: int) -> Sequence[Tensor]:
    return (torch.randn(b, s, M),)


def masked(b: int, s: int) -> Sequence[Tensor]:
    keep = torch.ones(b, s)
    keep[-1, s // 2 :] = 0
    return torch.randn(b, s, M), keep


def two(b: int, s: int) -> Sequence[Tensor]:
    return torch.randn(b, s, M), torch.randn(b, s + 2, M)


def row(id: str, attend: Callable[..., Tensor], **more: Any) -> TorchSpelling:
    return TorchSpelling(id=id, module=lambda: Heads(attend, **more), inputs=hidden, free=("bs",))


def masked_row(id: str, attend: Callable[..., Tensor]) -> TorchSpelling:
    return TorchSpelling(id=id, module=lambda: HeadsWithMask(attend), inputs=masked, free=("bs", "bs"))


def packed(id: str, parts: Callable[[Tensor], Sequence[Tensor]]) -> TorchSpelling:
    return TorchSpelling(id=id, module=lambda: Packed(parts), inputs=hidden, free=("bs",))


def layer(id: str, make: Callable[[], nn.Module], **more: Any) -> TorchSpelling:
    return TorchSpelling(id=id, module=make, **{"inputs": hidden, "free": ("bs",), **more})


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(M, H, 64, batch_first=True, **options)


TORCH_SPELLINGS = (
    row("matmul", plain),
    row("functional", functional),
    row("float32-softmax", softmax_in_float32),
    row("bmm", folded),
    row("baddbmm", baddbmm),
    row("einsum", with_einsum),
    row("softcap", soft_capped),
    row("dropout", dropped),
    masked_row("in-place", in_place),
    masked_row("masked-fill", filled),
    masked_row("where", where),
    masked_row("added-mask", added),
    row("causal-arange", causal),
    row("causal-tril", tril),
    row("causal-triu", triu),
    row("sdpa", sdpa()),
    row("sdpa-causal", sdpa(is_causal=True)),
    row("sdpa-scale", sdpa(scale=0.3)),
    masked_row("sdpa-bool-mask", sdpa_bool),
    masked_row("sdpa-float-mask", sdpa_float),
    row("sdpa-grouped", sdpa(enable_gqa=True), kv_heads=2),
    row("sdpa-grouped-causal", sdpa(enable_gqa=True, is_causal=True), kv_heads=1),
    row("repeat-interleave", repeated, kv_heads=2),
    row("expanded-groups", expanded, kv_heads=2),
    packed("unbind", unbound),
    packed("index", indexed),
    packed("chunk", chunked),
    packed("split", split),
    packed("slice", sliced),
    layer("cross", Cross, inputs=two, free=("bs", "bt")),
    layer("one-head", Single),
    layer("multihead", Multi),
    layer("multihead-no-weights", lambda: Multi(need_weights=False)),
    layer("multihead-padding", MultiPadded, inputs=masked, free=("bs", "bs")),
    layer("encoder-layer", lambda: Block(encoder())),
    layer("encoder-layer-norm-first", lambda: Block(encoder(norm_first=True, activation="gelu"))),
    layer("encoder", lambda: Block(nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False)), sites=2),
    layer("decoder-layer", Decoder, inputs=two, free=("bs", "bt"), sites=2),
    layer("decoder-layer-norm-first", lambda: Decoder(norm_first=True), inputs=two, free=("bs", "bt"), sites=2),
)
