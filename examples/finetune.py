"""From dense to top-k and on to ONNX: train a module, rewrite it, fine-tune it, export it, run it in ONNX Runtime.

The module learns to say the largest of the words that it sees; it attends densely at first.

    python examples/finetune.py [--steps 200] [--k 8] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import rewriter
import runtime_ops
from rewriter.render import text

WIDTH, HEADS, LENGTH, WORDS = 32, 4, 48, 40
Tensor = torch.Tensor


class Finder(nn.Module):
    """Two layers of attention over embedded words [b s]; the last place gives the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [b words]."""
        x = self.words(ids) + self.places
        for *projections, out in self.layers:
            q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projections)
            x = x + out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x[:, -1])


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="of training; a quarter as many of fine-tuning")
    parser.add_argument("--k", type=int, default=8, help="keys per query")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the exported model")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dense, (ids, right) = Finder(), draw(256)
    train(dense, args.steps)
    print(f"dense: loss {loss_of(dense, ids, right):.3f}")

    report = rewriter.apply(torch.fx.symbolic_trace(dense), [f"topk-attention:k={args.k}"], inputs=(ids,))
    print(text(report), end="")
    few = report.result
    print(f"top-{args.k}, as it is: loss {loss_of(few, ids, right):.3f}")
    train(few, args.steps // 4)
    print(f"top-{args.k}, fine-tuned: loss {loss_of(few, ids, right):.3f}")

    path = args.out / "finetuned.onnx"
    rewriter.to_onnx(few.eval(), (ids,), output=path)
    session = runtime_ops.session(path)
    found = session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0]
    apart = float(np.abs(found - few(ids).detach().numpy()).max())
    print(f"{path} in ONNX Runtime, at most {apart:.0e} from torch")
    return 0


def draw(count: int) -> tuple[Tensor, Tensor]:
    """Return rows of words, each below a limit of its own, and the largest of every row."""
    ids = (torch.rand(count, LENGTH) * torch.randint(2, WORDS + 1, (count, 1))).long()
    return ids, ids.amax(1)


def train(model: nn.Module, steps: int) -> None:
    """Take some steps on fresh rows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        ids, right = draw(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), right).backward()
        optimizer.step()


def loss_of(model: nn.Module, ids: Tensor, right: Tensor) -> float:
    """Return the mean loss without training."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(ids), right))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
