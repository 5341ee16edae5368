"""A tiny language model goes from dense attention to Combiner's: what that costs, and how fine-tuning wins it back.

A model is trained densely on Wikipedia's text (`examples/corpus.py`), rewritten by the rule `combiner-attention`, and
trained on for some steps; beside it the dense model is trained on for as many, on the same text. Losses are those of
text that neither has seen.

pip install --no-deps gensim==4.4.0
python examples/combiner/finetune.py [--steps 300] [--more 200] [--variant fixed] [--length 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import language
import torch
from torch.nn import functional

import rewriter
from rewriter.render import text as told

HELD_OUT, WINDOWS = 0.05, 64  # part of the text that is not learnt from; windows of it that are read


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    args = parse(argv)
    text = language.text()
    cut = int(len(text) * (1 - HELD_OUT))
    seen, unseen = text[:cut], text[cut:]
    torch.manual_seed(0)
    dense = language.Model(functools.partial(functional.scaled_dot_product_attention, is_causal=True), args.length)
    language.train(dense, "dense", seen, args.length, args.steps)

    example = unseen[: args.length].long()[None]
    options = f"variant={args.variant},span={args.span}"
    graph = torch.fx.symbolic_trace(copy.deepcopy(dense))
    report = rewriter.apply(graph, [f"combiner-attention:{options}"], inputs=(example,), expect=language.LAYERS)
    print(told(report), end="")
    rows = {"dense": measured(dense, unseen, args), "as Combiner": measured(report.result, unseen, args)}
    curves = {}
    for name, model in (("dense", dense), ("combiner", report.result)):
        torch.manual_seed(1)
        curves[name] = language.train(model, name, seen, args.length, args.more, rate=1e-3)
    rows["dense, trained on"] = measured(dense, unseen, args)
    rows["Combiner, fine-tuned"] = measured(report.result, unseen, args)
    language.plot(curves)
    apart = tell(rows)
    if args.json:
        settings = {name: x for name, x in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings, "rows": rows, "apart": apart}, indent=1) + "\n")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of training the dense model")
    parser.add_argument("--more", type=int, default=200, help="of training on after the rewrite")
    parser.add_argument("--length", type=int, default=256, help="bytes that the model sees at once")
    parser.add_argument("--variant", default="fixed", help="how keys are split into regions")
    parser.add_argument("--span", type=int, default=0, help="bytes of a span; 0: about the square root of the length")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args(argv)


def measured(model: torch.nn.Module, text: torch.Tensor, args: argparse.Namespace) -> float:
    """Return the loss over windows of text at even distances."""
    starts = torch.linspace(0, len(text) - args.length - 1, WINDOWS).long()
    with torch.no_grad():
        return float(language.loss_of(model, text, starts, args.length))


def tell(rows: dict[str, float]) -> float:
    """Print the losses, and return how far the fine-tuned model is from the dense one that was trained on."""
    print("\nloss on unseen text")
    for name, loss in rows.items():
        print(f"{name:22}{loss:8.4f}")
    apart = rows["Combiner, fine-tuned"] / rows["dense, trained on"] - 1
    print(f"fine-tuned, Combiner's loss is {apart:+.2%} from that of the dense model trained on for as long")
    return apart


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
