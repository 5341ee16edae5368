"""A tiny language model learns to write, with dense attention and with top-k: both curves, and where they end.

The text is Wikipedia's, from a package of the index (gensim carries 206 articles for its tests), read byte by byte.
Both runs start from the same weights and see the same text.

    pip install --no-deps gensim==4.4.0
    python examples/train_topk.py [--steps 300] [--k 64] [--length 256]
"""

from __future__ import annotations

import argparse
import bz2
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from runtime_ops.torch_ops import topk_attention

PACKAGE = "gensim"
FILE = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIDTH, HEADS, LAYERS, BATCH = 128, 4, 2, 8
Tensor = torch.Tensor


class Layer(nn.Module):
    """Causal attention to the k best keys (0: to all) and a feed-forward block, each behind a norm."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [b s m] with what both parts add."""
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = topk_attention(q, k, v, k_top=self.k, causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norms[1](x))


class Model(nn.Module):
    """Predicts the next byte."""

    def __init__(self, k: int, length: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Parameter(0.02 * torch.randn(length, WIDTH))
        self.layers = nn.Sequential(*(Layer(k) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [b s 256]."""
        return self.head(self.layers(self.bytes(ids) + self.places))


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--k", type=int, default=64, help="keys per query of the second run")
    parser.add_argument("--length", type=int, default=256, help="bytes that the model sees at once")
    args = parser.parse_args(argv)
    text = articles()
    print(f"{len(text) / 1e6:.1f} MB of text; {LAYERS} layers, width {WIDTH}, {args.length} bytes at once\n")
    curves = {name: train(text, k, args) for name, k in (("dense", 0), (f"top-{args.k}", args.k))}
    plot(curves)
    dense, few = (sum(curve[-20:]) / len(curve[-20:]) for curve in curves.values())
    apart = abs(few - dense) / dense
    print(f"\nfinal loss, mean of the last 20 steps: dense {dense:.4f}, top-{args.k} {few:.4f}, {apart:.2%} apart")
    return 0


def articles() -> Tensor:
    """Return the text of the articles as bytes."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the text is in the package {PACKAGE}: pip install --no-deps gensim==4.4.0")
    pages = bz2.decompress(Path(str(path)).read_bytes())
    text = b"\n\n".join(re.findall(rb"<text[^>]*>(.*?)</text>", pages, re.DOTALL))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def train(text: Tensor, k: int, args: argparse.Namespace) -> list[float]:
    """Return the losses of one run."""
    torch.manual_seed(0)
    model, losses = Model(k, args.length), list[float]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps + 1)
    for step in range(args.steps):
        starts = torch.randint(len(text) - args.length - 1, (BATCH,))
        ids = torch.stack([text[a : a + args.length + 1] for a in starts]).long()
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"{'dense' if k == 0 else f'top-{k}':8} step {step + 1:4}  loss {losses[-1]:.3f}", flush=True)
    return losses


def plot(curves: dict[str, list[float]], width: int = 72, height: int = 18) -> None:
    """Draw the curves with one letter each, `*` where they meet."""
    values = [x for curve in curves.values() for x in curve]
    low, high, length = min(values), max(values), max(map(len, curves.values()))
    rows = [[" "] * width for _ in range(height)]
    for mark, curve in zip("dt", curves.values(), strict=True):
        for x in range(width):
            part = curve[x * length // width : max((x + 1) * length // width, x * length // width + 1)]
            y = int((high - sum(part) / len(part)) / max(high - low, 1e-9) * (height - 1))
            rows[y][x] = "*" if rows[y][x] not in (" ", mark) else mark
    print(f"\nloss by step; {', '.join(f'{m}: {name}' for m, name in zip('dt', curves, strict=True))}, *: both")
    for i, row in enumerate(rows):
        print(f"{high - (high - low) * i / (height - 1):6.2f} |{''.join(row).rstrip()}")
    print(" " * 7 + "+" + "-" * width + f"\n{'':8}0{length:>{width - 1}}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
