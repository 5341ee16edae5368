"""Feed-forward blocks side by side: graft's kernel inside ONNX Runtime, ONNX Runtime's own operators, torch.

Times are medians of rounds in which all candidates run one after the other in one process; `ratio` is the time of
ONNX Runtime's plain MatMul, activation, MatMul over that of the candidate: above 1 is faster. Cases that lose (k near
f) are shown like all others. Memory is the peak of one run beyond what was resident before it and beyond its output,
in a process per candidate, arena off. Errors are against fp64 on sampled tokens.
Run `python benchmarks/feed_forward.py --help`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from attention_systems import session
from feed_forward_graphs import Array, Problem, graft, plain
from measuring import fresh, in_turn, peak_of, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_ops.ops import OPS

BASELINE = "ort"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What computes a block: exact (k = 0), or with the k best neurons of every token."""

    maker: str  # "ort", "torch" or "graft"
    k: int = 0
    select_by: str = "preactivation"

    @property
    def name(self) -> str:
        """As in the table."""
        return self.maker if not self.k else f"{self.maker} k={self.k}{_BY.get(self.select_by, '')}"


_BY = {"contribution": " by contribution", "magnitude": " by magnitude"}


def exact() -> list[Candidate]:
    """Return the candidates that compute the block exactly."""
    return [Candidate(maker=maker) for maker in (BASELINE, "torch", "graft")]


def top(*ks: int, select_by: str = "preactivation") -> list[Candidate]:
    """Return graft with these k."""
    return [Candidate(maker="graft", k=k, select_by=select_by) for k in ks]


GATED = Problem(name="prefill, gated", n=512, m=576, f=1536, activation="silu", gated=True)
CASES: list[tuple[Problem, list[Candidate]]] = [
    (
        Problem(name="prefill", n=512, m=768, f=3072),
        [*exact(), Candidate(maker="ort", k=64), *top(64, 256, 768, 1536, 3000)],
    ),
    (Problem(name="prefill, 5 % active", n=512, m=768, f=3072, active=0.05), [*exact(), *top(307)]),
    (Problem(name="prefill, gelu", n=512, m=768, f=3072, activation="gelu"),
     [*exact(), *top(64), *top(64, 1536, select_by="magnitude")]),
    (GATED, [*exact(), *top(64, 1400), *top(64, 1400, select_by="contribution")]),
    (Problem(name="batch of 8", n=8, m=1024, f=4096), [*exact(), *top(64, 4000)]),
    (Problem(name="decode, 5 % active", n=1, m=1024, f=4096, active=0.05), [*exact(), *top(64)]),
    (Problem(name="decode, gelu", n=1, m=1024, f=4096, activation="gelu"), [*exact(), *top(64, 4000)]),
    (Problem(name="decode, gated", n=1, m=576, f=1536, activation="silu", gated=True),
     [*exact(), *top(64), *top(64, select_by="contribution")]),
    (Problem(name="decode, wide", n=1, m=1024, f=65536), [*exact(), *top(1024)]),
]  # fmt: skip


def torch_runner(p: Problem, threads: int) -> Callable[[], Array]:
    """Make a function that computes the block once in torch."""
    import torch

    torch.set_num_threads(threads)
    x, w = torch.from_numpy(p.x()), {name: torch.from_numpy(a) for name, a in p.weights.items()}
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[p.activation]

    def run() -> Array:
        with torch.inference_mode():
            up = torch.nn.functional.linear(x, w["w_in"])
            inner = act(torch.nn.functional.linear(x, w["w_gate"])) * up if p.gated else act(up)
            return (inner @ w["w_out"]).numpy()  # type: ignore[no-any-return]

    return run


def build(c: Candidate, p: Problem) -> onnx.ModelProto:
    """Return the candidate's model."""
    return plain(p, c.k) if c.maker == "ort" else graft(p, k=c.k, select_by=c.select_by)


def runner(c: Candidate, p: Problem, threads: int, arena: bool) -> Callable[[], Array]:
    """Make a function that computes the candidate once; building it is not measured."""
    if c.maker == "torch":
        return torch_runner(p, threads)
    opened, x = session(build(c, p), threads, arena), p.x()
    return lambda: opened.run(["out"], {"x": x})[0]  # type: ignore[no-any-return]


def error_of(c: Candidate, p: Problem, out: Array) -> float:
    """Largest error on up to 8 tokens, relative to the largest number of the result, against fp64."""
    rows = np.unique(np.linspace(0, p.n - 1, 8).astype(int))
    attrs = {"k": c.k, "activation": p.activation, "select_by": c.select_by}
    golden = OPS["TopKFeedForward"].golden({"x": p.x()[rows], **p.weights}, attrs)
    return float(np.abs(out[rows] - golden).max() / np.abs(golden).max())


def measure(p: Problem, candidates: Sequence[Candidate], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all candidates, round by round."""
    runs = {c.name: runner(c, p, args.threads, arena=True) for c in candidates}
    errors = {c.name: error_of(c, p, runs[c.name]()) for c in candidates}
    times = in_turn(runs, args.rounds, warm=True)
    base = statistics.median(times[BASELINE])
    return [
        {
            "case": p.name, "name": c.name, "n": p.n, "m": p.m, "f": p.f,
            "ms": statistics.median(times[c.name]) * 1e3, "best_ms": min(times[c.name]) * 1e3,
            "ratio": base / statistics.median(times[c.name]), "error": errors[c.name],
        }
        for c in candidates
    ]  # fmt: skip


def peak_beyond_output(c: Candidate, p: Problem, threads: int) -> float:
    """MiB that one run needs beyond what was resident before it and beyond its output."""
    peak, out = peak_of(runner(c, p, threads, arena=False))
    return peak - float(out.nbytes) / 2**20


def memory_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Peaks of exact and top-k blocks, and of the plain graph where its inner values fit the limit."""
    rows = []
    for tokens in args.tokens:
        for f in args.widths:
            for c in (Candidate(maker=BASELINE), Candidate(maker="graft"), *top(512)):
                inner = tokens * f * 4 / 2**20
                row = {"name": c.name, "n": tokens, "m": 768, "f": f, "inner_mib": inner}
                too_large = c.maker == BASELINE and inner > args.limit_mib
                rows.append(row | {"peak_mib": None if too_large else peak_in_process(c, tokens, f, args.threads)})
    return rows


def peak_in_process(c: Candidate, tokens: int, f: int, threads: int) -> float:
    """Measure peak_beyond_output in a fresh process."""
    problem = {"name": "memory", "n": tokens, "m": 768, "f": f}
    return float(fresh(__file__, peak=json.dumps([asdict(c), problem]), threads=threads))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the times as a table."""
    print(f"{'case':22}{'candidate':30}{'n m f':>16}{'ms':>10}{'best':>10}{'ratio':>8}{'error':>10}")
    for row in rows:
        size = f"{row['n']} {row['m']} {row['f']}"
        numbers = f"{row['ms']:>10.2f}{row['best_ms']:>10.2f}{row['ratio']:>8.2f}{row['error']:>10.1e}"
        print(f"{row['case']:22}{row['name']:30}{size:>16}{numbers}")


def show_memory(rows: Sequence[dict[str, Any]]) -> None:
    """Print the peaks as a table."""
    print(f"\n{'candidate':20}{'tokens':>10}{'f':>8}{'[tokens f] MiB':>16}{'peak MiB':>12}")
    for row in rows:
        peak = "not run" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        print(f"{row['name']:20}{row['n']:>10}{row['f']:>8}{row['inner_mib']:>16.0f}{peak:>12}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="names of cases must contain one of these, separated by commas")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--tokens", type=int, nargs="*", default=[16384, 262144], help="of the memory cases")
    parser.add_argument("--widths", type=int, nargs="*", default=[2048, 8192, 32768], help="their f")
    parser.add_argument(
        "--limit-mib", type=float, default=10000, help="largest [tokens f] that the plain graph may make"
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.peak:
        candidate, problem = json.loads(args.peak)
        print(peak_beyond_output(Candidate(**candidate), Problem(**problem), args.threads))
        return
    rows: list[dict[str, Any]] = []
    for p, candidates in CASES:
        if any(part in p.name for part in args.only.split(",")):
            have = [c for c in candidates if c.maker != "torch" or find_spec("torch") is not None]
            rows += measure(p, have, args)
    show(rows)
    memory = [] if args.no_memory else memory_rows(args)
    show_memory(memory)
    save(args, onnxruntime, rows=rows, memory=memory)


if __name__ == "__main__":
    main()
