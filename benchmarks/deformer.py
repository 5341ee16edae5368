"""An encoder split after K layers against the original: milliseconds for one question and one passage.

The encoder has the shape of BERT-base and random weights. `cached`: the passage lies in the store, whose reading is in
the time; `ratio`: the original's time over it; `flop model`: n / ((n-K) + K·|Q|/L), which counts layers alone
(DeFormer, Cao 2020). `not cached`: the passage is encoded and stored first, which is where splitting loses. Times are
medians of rounds in which all run one after the other in one process; peak memory is that of a process of its own,
weights included. `narrowed`: the same after the rule `narrow-last-layer`, which computes of the last layer only the
first token, the one that the scores are made from; K = 0 is the model itself in one piece, narrowed or not.
Run `python benchmarks/deformer.py --help`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from deformer_graph import VOCABULARY, bert
from measuring import fresh, in_turn, resident, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewriter
from rewriter.decomposed import Pipeline
from rewriter.sessions import open_session

Row = dict[str, Any]


class Texts:
    """A question, a passage that is asked about again and again, and passages never seen before."""

    def __init__(self, question: int, passage: int) -> None:
        self.random, self.length = np.random.default_rng(0), passage
        self.question, self.passage = self.ids(question), self.ids(passage)

    def ids(self, length: int) -> np.ndarray[Any, Any]:
        """Return made-up token ids."""
        return self.random.integers(1, VOCABULARY, length)

    def whole(self) -> Mapping[str, np.ndarray[Any, Any]]:
        """Return what the original is given."""
        ids = np.concatenate([self.question, self.passage])[None]
        types = (np.arange(ids.shape[1]) >= len(self.question)).astype(np.int64)[None]
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}


def medians(runs: Mapping[str, Callable[[], Any]], rounds: int) -> Mapping[str, float]:
    """Return milliseconds by name, all run in turn; the first round is not counted."""
    return {name: statistics.median(some[1:]) * 1e3 for name, some in in_turn(runs, rounds + 1).items()}


def peak(folder: Path, args: argparse.Namespace) -> float:
    """Return the peak memory of a process that answers from the store, or that runs the original."""
    lengths = {"question": args.question, "passage": args.passage}
    return float(fresh(__file__, peak=folder, threads=args.threads, **lengths))


def answer(target: Path, args: argparse.Namespace) -> None:
    """Run once what ``target`` is, and print the peak memory of this process."""
    texts = Texts(args.question, args.passage)
    if target.is_dir():
        Pipeline(target, target.with_name("store"), threads=args.threads).score(texts.question, [texts.passage])
    else:
        open_session(target, threads=args.threads).run(None, texts.whole())
    print(resident("VmHWM"))


def pipeline(model: Path, layers: int, args: argparse.Namespace, folder: Path) -> Pipeline:
    """Split a model, and open what it became and an empty store."""
    folder.mkdir(exist_ok=True)
    rewriter.split(model, layers, args.question, folder / "split")
    return Pipeline(folder / "split", folder / "store", threads=args.threads)


def measure(model: Path, narrowed: Path, layers: int, args: argparse.Namespace, folder: Path) -> Row:
    """Split both models after so many layers, and time them against the original."""
    texts, original = Texts(args.question, args.passage), open_session(model, threads=args.threads)
    whole = texts.whole()
    runs: dict[str, Callable[[], Any]] = {"original": lambda: original.run(None, whole)}
    if not layers:
        alone = open_session(narrowed, threads=args.threads)
        return {"layers": 0, **medians({**runs, "narrowed": lambda: alone.run(None, whole)}, args.rounds)}
    split = pipeline(model, layers, args, folder)
    runs["cached"] = lambda: split.score(texts.question, [texts.passage])
    runs["not cached"] = lambda: split.score(texts.question, [texts.ids(args.passage)])
    if layers < args.layers_in_all:
        less = pipeline(narrowed, layers, args, folder / "narrowed")
        runs["narrowed"] = lambda: less.score(texts.question, [texts.passage])
    row: Row = {"layers": layers, **medians(runs, args.rounds)}
    row["kept_kb"] = split.store.used / len(split.store) / 1e3
    split.store.close()
    row["peak_mib"] = None if args.no_memory else peak(folder / "split", args)
    return row


def completed(row: Row, args: argparse.Namespace) -> Row:
    """Add the ratios, measured and expected."""
    share = args.question / (args.question + args.passage)
    expected = args.layers_in_all / (args.layers_in_all - row["layers"] + row["layers"] * share)
    times = ("cached", "narrowed", "not cached")
    ratios = {f"{name} ratio": row["original"] / row[name] for name in times if name in row}
    return {**row, **ratios, "flop_model": expected}


COLUMNS = {
    "layers": "K", "original": "original ms",
    "cached": "cached ms", "cached ratio": "ratio", "flop_model": "flop model",
    "narrowed": "narrowed ms", "narrowed ratio": "ratio", "not cached": "not cached ms", "not cached ratio": "ratio",
    "kept_kb": "KB kept", "peak_mib": "peak MiB",
}  # fmt: skip


def show(rows: list[Row], peak_of_original: float | None) -> None:
    """Print the rows as a table."""
    print("ratios are the original's time over the other's" + (
        "" if peak_of_original is None else f"; the original's peak is {peak_of_original:.0f} MiB"))  # fmt: skip
    print("".join(f"{head:>14}" for head in COLUMNS.values()))
    for row in rows:
        print("".join(f"{_cell(row.get(name)):>14}" for name in COLUMNS))


def _cell(number: float | None) -> str:
    if number is None:
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.2f}"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(13)), help="values of K")
    parser.add_argument("--layers-in-all", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--question", type=int, default=27)
    parser.add_argument("--passage", type=int, default=293)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.peak:
        answer(args.peak, args)
        return
    with tempfile.TemporaryDirectory() as name:
        model, narrowed = Path(name) / "model.onnx", Path(name) / "narrowed.onnx"
        onnx.save(bert(args.layers_in_all, args.width), model)
        rewriter.apply(model, ["narrow-last-layer"], output=narrowed, verify=False)
        before = None if args.no_memory else peak(model, args)
        rows = []
        for layers in args.layers:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                rows.append(completed(measure(model, narrowed, layers, args, Path(folder)), args))
    show(rows, before)
    save(args, onnxruntime, original_peak_mib=before, rows=rows)


if __name__ == "__main__":
    main()
