"""A tiny language model that reads text byte by byte, and what the examples do with it: train, measure, draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import corpus
import torch
from torch import nn

WIDTH, HEADS, LAYERS, BATCH = 128, 4, 2, 8
Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Layer(nn.Module):
    """Causal attention and a feed-forward block, each behind a norm; ``attend`` takes q, k and v [b h s d]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [b s m] with what both parts add."""
        both = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (both[n].unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in range(3))
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[1](x))


class Model(nn.Module):
    """Predicts the next byte."""

    def __init__(self, attend: Attend, length: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Parameter(0.02 * torch.randn(length, WIDTH))
        self.layers = nn.Sequential(*(Layer(attend) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [b s 256]."""
        return self.head(self.layers(self.bytes(ids) + self.places))


def text() -> Tensor:
    """Return the articles as bytes."""
    return torch.frombuffer(bytearray("\n\n".join(corpus.articles()).encode()), dtype=torch.uint8)


def loss_of(model: nn.Module, text: Tensor, starts: Tensor, length: int) -> Tensor:
    """Return the mean loss over windows of the text."""
    ids = torch.stack([text[a : a + length + 1] for a in starts]).long()
    return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, name: str, text: Tensor, length: int, steps: int, rate: float = 2e-3) -> list[float]:
    """Train on windows drawn from the text, and return the losses."""
    losses = list[float]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    for step in range(steps):
        loss = loss_of(model, text, torch.randint(len(text) - length - 1, (BATCH,)), length)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"{name:8} step {step + 1:4}  loss {losses[-1]:.3f}", flush=True)
    return losses


def plot(curves: Mapping[str, Sequence[float]], width: int = 72, height: int = 18) -> None:
    """Draw the curves with the first letters of their names, `*` where they meet."""
    values = [x for curve in curves.values() for x in curve]
    low, high, length = min(values), max(values), max(map(len, curves.values()))
    rows = [[" "] * width for _ in range(height)]
    for name, curve in curves.items():
        mark = name[0]
        for x in range(width):
            part = curve[x * length // width : max((x + 1) * length // width, x * length // width + 1)]
            y = int((high - sum(part) / len(part)) / max(high - low, 1e-9) * (height - 1))
            rows[y][x] = "*" if rows[y][x] not in (" ", mark) else mark
    print(f"\nloss by step; {', '.join(f'{name[0]}: {name}' for name in curves)}, *: both")
    for i, row in enumerate(rows):
        print(f"{high - (high - low) * i / (height - 1):6.2f} |{''.join(row).rstrip()}")
    print(" " * 7 + "+" + "-" * width + f"\n{'':8}0{length:>{width - 1}}")
