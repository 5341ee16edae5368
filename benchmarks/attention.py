"""Attention side by side: graft's kernel inside ONNX Runtime, ONNX Runtime's own operators, torch.

Every graph takes q, k, v as [b s h*d], as projections leave them, and returns that layout, so that each
candidate pays for the reshapes that it needs; `heads first` is graft's operator alone on [b h s d]. Times are
medians of rounds in which all candidates run one after the other in one process. Peak memory is measured in a
process per candidate, arena off, output included. Errors are against fp64 on sampled rows.
Run `python benchmarks/attention.py --help`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from attention_graphs import Problem, attention23, graft, group_query, multi_head, unfused
from measuring import fresh, in_turn, peak_of, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_ops import kernels


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph (or a torch function) and what it computes."""

    name: str
    kind: str  # exact, masked, causal or topk: candidates of one kind compute the same thing
    baseline: bool = False  # the one that the others of its kind are compared with
    build: Callable[[Problem], onnx.ModelProto] | None = None


CANDIDATES = (
    Candidate(name="ort MultiHeadAttention", kind="exact", baseline=True, build=multi_head),
    Candidate(name="ort Attention-23", kind="exact", build=attention23),
    Candidate(name="ort unfused", kind="exact", build=unfused),
    Candidate(name="torch sdpa", kind="exact"),
    Candidate(name="graft", kind="exact", build=graft),
    Candidate(name="graft, heads first", kind="exact", build=lambda p: graft(p, heads_first=True)),
    Candidate(
        name="ort MultiHeadAttention + mask",
        kind="masked",
        baseline=True,
        build=lambda p: multi_head(p, masked=True),
    ),
    Candidate(name="ort Attention-23 + mask", kind="masked", build=lambda p: attention23(p, masked=True)),
    Candidate(name="ort unfused + mask", kind="masked", build=lambda p: unfused(p, masked=True)),
    Candidate(name="torch sdpa + mask", kind="masked"),
    Candidate(name="graft + bias", kind="masked", build=lambda p: graft(p, bias=True)),
    Candidate(name="graft + key_mask", kind="masked", build=lambda p: graft(p, mask=True)),
    Candidate(name="ort GroupQueryAttention", kind="causal", baseline=True, build=group_query),
    Candidate(name="ort MultiHeadAttention causal", kind="causal", build=lambda p: multi_head(p, causal=1)),
    Candidate(name="ort Attention-23 causal", kind="causal", build=lambda p: attention23(p, causal=1)),
    Candidate(name="torch sdpa causal", kind="causal"),
    Candidate(name="graft causal", kind="causal", build=lambda p: graft(p, causal=1)),
    # In ONNX Runtime only the unfused graph computes this; the question is what exact attention costs.
    Candidate(name="ort unfused top-k", kind="topk", build=lambda p: unfused(p, top_k=p.top_k)),
    Candidate(name="graft top-k", kind="topk", build=lambda p: graft(p, k=p.top_k)),
    Candidate(name="graft top-k, heads first", kind="topk", build=lambda p: graft(p, k=p.top_k, heads_first=True)),
)


def heads(x: np.ndarray[Any, Any], p: Problem) -> np.ndarray[Any, Any]:
    """[1 t h*d] as [1 h t d]."""
    return np.ascontiguousarray(x.reshape(1, p.t, p.h, p.d).transpose(0, 2, 1, 3))


def torch_runner(c: Candidate, p: Problem, threads: int) -> Callable[[], np.ndarray[Any, Any]]:
    """Make a function that calls scaled_dot_product_attention once."""
    import torch

    torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(x).view(1, p.t, p.h, p.d).transpose(1, 2) for x in p.feeds().values())
    mask = None
    if c.kind == "masked":
        mask = (torch.arange(p.t) < p.live).view(1, 1, 1, p.t)
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            out = attend(q, k, v, attn_mask=mask, is_causal=c.kind == "causal")
            return out.transpose(1, 2).reshape(1, p.t, p.h * p.d).numpy()

    return run


def runner(c: Candidate, p: Problem, threads: int, arena: bool) -> Callable[[], np.ndarray[Any, Any]]:
    """Make a function that computes the candidate once; building it is not measured."""
    if c.build is None:
        return torch_runner(c, p, threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    kernels.register(options)
    session = onnxruntime.InferenceSession(c.build(p).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = p.feeds()
    if "heads first" in c.name:
        feeds = {name: heads(x, p) for name, x in feeds.items()}
    return lambda: session.run(["out"], feeds)[0]  # type: ignore[no-any-return]


def golden_rows(c: Candidate, p: Problem, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """fp64 outputs [h rows d] of the sampled query rows."""
    q, k, v = (heads(x, p)[0].astype(np.float64) for x in p.feeds().values())
    scores = np.einsum("hsd,htd->hst", q[:, rows], k) * p.d**-0.5
    keys = np.arange(p.t)
    if c.kind == "masked":
        scores[..., keys >= p.live] = -np.inf
    if c.kind == "causal":
        scores[:, keys[None] > rows[:, None]] = -np.inf
    if c.kind == "topk":
        scores[scores < np.partition(scores, -p.top_k, -1)[..., -p.top_k, None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: np.ndarray[Any, Any] = np.einsum("hst,htd->hsd", weights / weights.sum(-1, keepdims=True), v)
    return result


def error_of(c: Candidate, p: Problem, out: np.ndarray[Any, Any]) -> float:
    """Largest absolute error on 16 rows of every head."""
    rows = np.linspace(0, p.t - 1, 16).astype(int)
    got = (out if "heads first" in c.name else heads(out, p))[0][:, rows]
    return float(np.abs(got - golden_rows(c, p, rows)).max())


def peak_in_process(c: Candidate, args: argparse.Namespace, p: Problem) -> float:
    """Measure the peak of one run in a fresh process."""
    sizes = {"t": p.t, "h": p.h, "d": p.d, "top_k": p.top_k, "padding": p.padding}
    return float(fresh(__file__, peak=c.name, threads=args.threads, **sizes))


def proofs_of(run: Callable[[], Any]) -> dict[str, int]:
    """Tell how often 8-bit scores proved a selection in one run, in blocks of rows."""
    before = kernels.topk_proofs()
    run()
    return {name: count - before[name] for name, count in kernels.topk_proofs().items()}


def measure(candidates: list[Candidate], args: argparse.Namespace, p: Problem) -> list[dict[str, Any]]:
    """Time all candidates, round by round."""
    runs = {c.name: runner(c, p, args.threads, arena=True) for c in candidates}
    errors = {c.name: error_of(c, p, runs[c.name]()) for c in candidates}
    proofs = {c.name: proofs_of(runs[c.name]) for c in candidates if c.kind == "topk" and c.name.startswith("graft")}
    times = in_turn(runs, args.rounds)
    rows = []
    for c in candidates:
        row: dict[str, Any] = {"name": c.name, "kind": c.kind, "t": p.t, "ms": statistics.median(times[c.name]) * 1e3}
        row |= {"best_ms": min(times[c.name]) * 1e3, "error": errors[c.name]}
        row["proofs"] = proofs.get(c.name)
        row["peak_mib"] = None if args.no_memory else peak_in_process(c, args, p)
        rows.append(row)
    return rows


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add `ratio`, time over the baseline of the kind (top-k: exact MultiHeadAttention)."""
    base = {row["kind"]: row["ms"] for row in rows if any(c.baseline and c.name == row["name"] for c in CANDIDATES)}
    for row in rows:
        against = base.get("exact" if row["kind"] == "topk" else row["kind"])
        row["ratio"] = None if against is None else row["ms"] / against


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    print(f"{'candidate':32}{'kind':8}{'t':>7}{'ms':>10}{'best':>10}{'ratio':>8}{'peak MiB':>10}{'error':>10}")
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        numbers = f"{row['ms']:>10.1f}{row['best_ms']:>10.1f}{ratio:>8}{peak:>10}{row['error']:>10.1e}"
        print(f"{row['name']:32}{row['kind']:8}{row['t']:>7}{numbers}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--t", type=int, nargs="+", default=[2048, 4096], help="lengths")
    parser.add_argument("--h", type=int, default=12, help="heads")
    parser.add_argument("--d", type=int, default=64, help="head width")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--padding", type=float, default=0.25, help="share of the keys that masked candidates hide")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names must contain one of these, separated by commas")
    parser.add_argument("--kind", default="", help="exact, masked, causal or topk, separated by commas")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> list[Candidate]:
    """Pick the candidates that the command line names."""
    parts, kinds = args.only.split(","), [kind for kind in args.kind.split(",") if kind]
    have_torch = find_spec("torch") is not None
    wanted = [c for c in CANDIDATES if any(part in c.name for part in parts) and (not kinds or c.kind in kinds)]
    return [c for c in wanted if c.build is not None or have_torch]


def main() -> None:
    """Run the benchmark."""
    args = parse()
    problems = [Problem(t=t, h=args.h, d=args.d, top_k=args.top_k, padding=args.padding) for t in args.t]
    if args.peak:
        only = next(c for c in CANDIDATES if c.name == args.peak)
        print(peak_of(runner(only, problems[0], args.threads, arena=False))[0])
        return
    rows = []
    for p in problems:
        measured = measure(chosen(args), args, p)
        add_ratios(measured)
        rows += measured
    show(rows)
    save(args, onnxruntime, rows=rows)


if __name__ == "__main__":
    main()
