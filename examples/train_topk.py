"""A tiny language model learns to write, with dense attention and with top-k: both curves, and where they end.

The text is Wikipedia's (`examples/corpus.py`), read byte by byte. Both runs start from the same weights and see the
same text.

    pip install --no-deps gensim==4.4.0
    python examples/train_topk.py [--steps 300] [--k 64] [--length 256]
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence

import language
import torch

from runtime_ops.torch_ops import topk_attention


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--k", type=int, default=64, help="keys per query of the second run")
    parser.add_argument("--length", type=int, default=256, help="bytes that the model sees at once")
    args = parser.parse_args(argv)
    text = language.text()
    print(
        f"{len(text) / 1e6:.1f} MB of text; {language.LAYERS} layers, width {language.WIDTH}, "
        f"{args.length} bytes at once\n"
    )
    curves = {}
    for name, k in (("dense", 0), (f"top-{args.k}", args.k)):
        torch.manual_seed(0)
        model = language.Model(functools.partial(topk_attention, k_top=k, causal=True), args.length)
        curves[name] = language.train(model, name, text, args.length, args.steps)
    language.plot(curves)
    dense, few = (sum(curve[-20:]) / len(curve[-20:]) for curve in curves.values())
    apart = abs(few - dense) / dense
    print(f"\nfinal loss, mean of the last 20 steps: dense {dense:.4f}, top-{args.k} {few:.4f}, {apart:.2%} apart")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
