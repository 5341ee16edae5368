"""A store being filled with passages, killed in the middle and filled on: time, memory, bytes, and time of a read.

The encoder has the shape of a small BERT and random weights. A first process (`killed`) encodes passages into the store
until half of them are there and gets SIGKILL; a second one (`resumed`) does the rest. Its peak memory is the highest of
its own (weights, activations), beside that of a process that encodes 32 passages, as many as are run at once; pages of
the store's file that it looked into come on top, and go when something else needs the room. A read is of 32 passages
drawn at random, fp16 to fp32.
Run `python benchmarks/deformer_store.py --help`.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from deformer_graph import VOCABULARY, bert
from measuring import resident, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewriter
from rewriter import decomposed
from rewriter.decomposed import Pipeline

QUESTION = 32
Array = np.ndarray[Any, Any]


def drawn(args: argparse.Namespace) -> Array:
    """Return made-up passages, those of one seed always the same."""
    return np.random.default_rng(0).integers(1, VOCABULARY, (args.passages, args.tokens))


def fill(folder: Path, passages: Path, store: Path) -> None:
    """Fill the store, and print what this process took."""
    own: list[float] = []
    decomposed.cache(folder, passages, store, progress=lambda what, done, total: own.append(resident("RssAnon")))
    times = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"own_mib": max(own), "file_mib": resident("RssFile"), "cpu_s": times.ru_utime + times.ru_stime}
    print(json.dumps(figures))


def child(folder: Path, passages: Path, store: Path) -> subprocess.Popen[str]:
    """Start a process that fills the store."""
    command = [sys.executable, __file__, "--fill", str(folder), str(passages), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> Any:
    """Wait for a process and return what it printed."""
    said, _ = process.communicate()
    return json.loads(said)


def killed(process: subprocess.Popen[str], folder: Path, store: Path, count: int) -> int:
    """Kill a process once so many passages are in the store, and return how many are there then."""
    reader = Pipeline(folder, store).store
    while len(reader) < count:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(reader)
    reader.close()
    return left


def checked(folder: Path, store: Path, passages: Array) -> dict[str, float]:
    """Compare what is kept of some passages with what the encoder gives, and time reads."""
    pipeline, rng = Pipeline(folder, store), np.random.default_rng(1)
    keys = [decomposed._key(ids) for ids in passages]
    assert not pipeline.store.missing(keys)
    some = rng.choice(len(passages), min(320, len(passages)), replace=False)
    kept, truth = pipeline.store.get([keys[n] for n in some]), pipeline._encode("passage", list(passages[some]))
    error = max(float(np.abs(x - y).max()) for x, y in zip(kept, truth, strict=True) if x is not None)
    begin, rounds = time.perf_counter(), 50
    for _ in range(rounds):
        pipeline.store.get([keys[n] for n in rng.integers(0, len(keys), 32)])
    each = (time.perf_counter() - begin) / rounds / 32
    return {"worst_error": error, "read_us": each * 1e6, "bytes": pipeline.store.used / len(pipeline.store)}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run it all, in a folder of its own."""
    onnx.save(bert(args.layers_in_all, args.width), work / "model.onnx")
    folder, store, passages = work / "split", work / "kept", drawn(args)
    rewriter.split(work / "model.onnx", args.layers, QUESTION, folder)
    for name, some in (("few.jsonl", passages[:32]), ("all.jsonl", passages)):
        (work / name).write_text("".join(f"{json.dumps(ids.tolist())}\n" for ids in some))
    few = finished(child(folder, work / "few.jsonl", work / "few"))
    left = killed(child(folder, work / "all.jsonl", store), folder, store, args.passages // 2)
    rest = finished(child(folder, work / "all.jsonl", store))
    return {"own_of_32_mib": few["own_mib"], "left": left, **rest, **checked(folder, store, passages)}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=64, help="of each passage")
    parser.add_argument("--layers", type=int, default=4, help="K, of the lower layers")
    parser.add_argument("--layers-in-all", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--fill", type=Path, nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.fill:
        fill(*args.fill)
        return
    with tempfile.TemporaryDirectory() as name:
        row = measure(args, Path(name))
    print(
        f"killed with {row['left']:,} of {args.passages:,} passages in the store; the rest took "
        f"{row['cpu_s']:.0f} s of CPU time\n"
        f"peak of its own memory {row['own_mib']:.0f} MiB, with 32 passages {row['own_of_32_mib']:.0f} MiB; "
        f"{row['file_mib']:.0f} MiB of files mapped\n"
        f"{row['bytes'] / 1e3:.1f} KB kept of each, read in {row['read_us']:.0f} µs, "
        f"largest difference from what the encoder gives {row['worst_error']:.1e}"
    )
    save(args, onnxruntime, **row)


if __name__ == "__main__":
    main()
