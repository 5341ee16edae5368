"""Generating with hidden states instead of keys and values: the same tokens, and how much less is kept.

Takes a decoder as exporters write it, two files, without past and with past, or one that is both, expands it and
drives the original and the result through ONNX Runtime, greedily and with beams. The encoder's hidden states are made
up, unless a file gives them.

    python examples/generate.py decoder_model.onnx decoder_with_past_model.onnx [--tokens 40] [--beams 4]
    python examples/generate.py decoder_model_merged.onnx
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import rewriter
from rewriter.decoders import states
from rewriter.render import text
from rewriter.stepping import Decoder

SOURCE = "encoder_hidden_states"
Feeds = dict[str, np.ndarray]


def main(argv: Sequence[str]) -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("decoder", type=Path, help="the file without past, or one that is both")
    parser.add_argument("with_past", type=Path, nargs="?", help="the file that takes keys and values back")
    parser.add_argument("--hidden", type=Path, help=".npy file of the encoder's hidden states [b t m]")
    parser.add_argument("--start", type=int, default=0, help="id of the token that begins")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--beams", type=int, default=4)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        report = rewriter.expand(args.decoder, args.with_past, Path(folder) / "expanded")
        print(text(report))
        kept = states(Path(report.output))
        originals = [file for file in (args.decoder, args.with_past) if file is not None]
        old = Decoder(originals, kept.old, kept.switch)
        new = Decoder([Path(report.output) / file.name for file in originals], kept.new, kept.switch)
        feeds = beginning(old, args.start, args.hidden)
        same = [compare(old, new, feeds, args.tokens, beams) for beams in (1, args.beams)]
    return 0 if all(same) else 1


def beginning(decoder: Decoder, start: int, hidden: Path | None) -> Feeds:
    """Return the inputs of the first run."""
    width = next(x.shape[2] for x in decoder.first.get_inputs() if x.name == SOURCE)
    given = np.random.default_rng(0).standard_normal((2, 24, width)) if hidden is None else np.load(hidden)
    b, t = given.shape[:2]
    feeds = {SOURCE: given.astype(np.float32), "input_ids": np.full((b, 1), start, np.int64)}
    masked = any(x.name == "encoder_attention_mask" for x in decoder.first.get_inputs())
    return {**feeds, "encoder_attention_mask": np.ones((b, t), np.int64)} if masked else feeds


def compare(old: Decoder, new: Decoder, feeds: Feeds, tokens: int, beams: int) -> bool:
    """Generate with both, and say whether the tokens are the same."""
    one, two = (generate(decoder, feeds, tokens, beams) for decoder in (old, new))
    same = np.array_equal(one, two)
    how = "greedy" if beams == 1 else f"{beams} beams"
    before, after = old.bytes, new.bytes + feeds[SOURCE].nbytes
    print(f"{how}: {'the same' if same else 'OTHER'} {tokens} tokens for {len(one)} sentences")
    print(f"  kept: {before:,} bytes of keys and values, {after:,} of hidden states: {before / after:.1f} times less")
    return same


def generate(decoder: Decoder, feeds: Feeds, tokens: int, beams: int, again: bool = True) -> np.ndarray:
    """Return the best tokens [b tokens] that beam search finds, greedily with one; ``again``: they may repeat."""
    logits = decoder.begin(feeds)["logits"][:, -1]
    decoder.spread(beams)
    b, words = logits.shape
    # the encoder's hidden states are shared by the beams of a sentence; everything else has a row for each
    later = {name: x if name == SOURCE else np.repeat(x, beams, axis=0) for name, x in feeds.items()}
    found = log_softmax(logits)
    ids = np.argsort(-found, axis=1, kind="stable")[:, :beams]
    scores, said = np.take_along_axis(found, ids, axis=1), ids[:, :, None]
    for _ in range(tokens - 1):
        logits = decoder.step({**later, "input_ids": said[:, :, -1].reshape(-1, 1)})["logits"][:, -1]
        found = log_softmax(logits).reshape(b, beams, words)
        if not again:
            np.put_along_axis(found, said, -np.inf, axis=2)
        total = (scores[:, :, None] + found).reshape(b, -1)
        best = np.argsort(-total, axis=1, kind="stable")[:, :beams]
        scores, origin = np.take_along_axis(total, best, axis=1), best // words
        said = np.concatenate(
            [np.take_along_axis(said, origin[:, :, None], axis=1), (best % words)[:, :, None]], axis=2
        )
        decoder.reorder((np.arange(b)[:, None] * beams + origin).reshape(-1))
    return said[:, 0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
