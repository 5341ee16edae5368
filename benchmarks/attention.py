"""Attention side by side: graft's kernels inside ONNX Runtime, ONNX Runtime's own operators, OpenVINO and torch.

Every system takes q, k, v as [b s h*d], as projections leave them, and returns that layout, so that each pays for the
reshapes that it needs; `heads first` is graft's operator alone on [b h s d]. All systems of a case take turns in one
process, each twice, of which the second run is timed: threads that had to be woken cost milliseconds. Times are medians
of rounds, and a ratio is the median of each round's own. Peak memory is what one run needs beyond what lay there
before, output included, in a process per system, arena off. Errors are against fp64 on sampled rows; --errors compares
top-k with exact top-k on made and on captured data.

    pip install "attn-graft[bench,peers]"
    python benchmarks/attention.py --case open-1024 open-4096 --threads 1

What is not measured now stays as it is in benchmarks/results/attention.json, from which docs/attention.svg is drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from attention_graphs import Problem, split_heads
from attention_systems import SYSTEMS, Array, Run, as_array, installed, kernels
from fidelity_page import plot
from measuring import fresh, in_turn, machine, peak_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attention.json"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How many times as fast as the fastest of some systems one of ours is to be, at least."""

    ours: str
    against: Sequence[str]
    least: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem, who computes it, and what is to be reached."""

    problem: Problem
    systems: Sequence[str]
    goals: Sequence[Goal] = ()


OPEN = ("ort MultiHeadAttention", "openvino", "torch", "openvino bf16", "torch bf16")
OURS = ("graft", "graft, heads first", "graft top-k", "graft top-k, heads first")
MASKED = ("ort MultiHeadAttention", "ort Attention-23", "openvino", "torch", "graft", "graft, bias")
CAUSAL = ("ort GroupQueryAttention", "ort Attention-23", "openvino", "torch", "graft", "graft top-k")
GQA = ("ort GroupQueryAttention",)


def unmasked(t: int, fp32: float, any_number: float) -> Case:
    """Every query sees every key; top-k against the fastest in fp32 and of all, exact attention against one."""
    goals = [Goal(ours="graft", against=OPEN[:1], least=0.95)]
    if fp32:
        goals += [Goal(ours="graft top-k", against=OPEN[:3], least=fp32)]
        goals += [Goal(ours="graft top-k", against=OPEN, least=any_number)]
    return Case(problem=Problem(t=t, top_k=64), systems=(*OPEN, *OURS), goals=goals)


CASES: Mapping[str, Case] = {
    "open-512": unmasked(512, 0, 0),
    "open-1024": unmasked(1024, 1.5, 1.0),
    "open-2048": unmasked(2048, 0, 0),
    "open-4096": unmasked(4096, 4.0, 2.5),
    "open-8192": unmasked(8192, 0, 0),
    "open-16384": unmasked(16384, 6.0, 4.0),
    "padding-4096": Case(
        problem=Problem(t=4096, padding=0.25),
        systems=MASKED,
        goals=[Goal(ours=ours, against=MASKED[:1], least=2.0) for ours in MASKED[-2:]],
    ),
    "causal-4096": Case(
        problem=Problem(t=4096, causal=1, top_k=64),
        systems=CAUSAL,
        goals=[
            Goal(ours="graft top-k", against=GQA, least=2.5),
            Goal(ours="graft", against=GQA, least=0.9),
            Goal(ours="graft", against=("ort Attention-23",), least=2.0),
        ],
    ),
    "window-4096": Case(
        problem=Problem(t=4096, causal=1, window=128),
        systems=(*GQA, "graft"),
        goals=[Goal(ours="graft", against=GQA, least=8.0)],
    ),
    "decode-32768": Case(
        problem=Problem(t=32768, s=1, h=32, g=8, top_k=128),
        systems=("ort GroupQueryAttention, cache", "graft, heads first", "graft top-k, heads first"),
        goals=[Goal(ours="graft top-k, heads first", against=("ort GroupQueryAttention, cache",), least=1.5)],
    ),
}
EXTRA = 1.25  # times the output tensor: the most memory that one run of graft may need
LARGEST = "open-16384"


def golden(p: Problem, rows: Array, top_k: int) -> Array:
    """fp64 outputs [h rows d] of the sampled query rows."""
    q, k, v = (x[0].astype(np.float64) for x in p.feeds(heads_first=True).values())
    k, v = (np.repeat(x, p.h // p.g, axis=0) for x in (k, v))
    scores = np.einsum("hsd,htd->hst", q[:, rows], k) * p.d**-0.5
    scores = np.where(p.visible(rows), scores, -np.inf)
    if 0 < top_k < p.t:
        scores[scores < np.partition(scores, -top_k, -1)[..., -top_k, None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = np.einsum("hst,htd->hsd", weights / weights.sum(-1, keepdims=True), v)
    return result


def error_of(name: str, p: Problem, out: Any) -> float:
    """Largest absolute error on 16 rows of every head."""
    rows = np.unique(np.linspace(0, p.s - 1, 16).astype(int))
    heads = as_array(out) if SYSTEMS[name].heads_first else split_heads(as_array(out), p.d)
    return float(np.abs(heads[0][:, rows] - golden(p, rows, p.top_k if SYSTEMS[name].top_k else 0)).max())


def checked(name: str, p: Problem, run: Run) -> dict[str, Any]:
    """Run once; return the error, and how often 8-bit scores proved a selection, in blocks of rows, if they did."""
    before = kernels.topk_proofs()
    out = run()
    proofs = {key: count - before[key] for key, count in kernels.topk_proofs().items()}
    return {"error": error_of(name, p, out)} | ({"proofs": proofs} if proofs["blocks"] else {})


def measure(case: Case, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Time all systems of a case, round by round; as many rounds as fit the seconds, three at least."""
    p = case.problem
    runs = {name: SYSTEMS[name].start(p, threads, True) for name in case.systems if installed(SYSTEMS[name])}
    begin = time.perf_counter()
    rows = {name: checked(name, p, run) for name, run in runs.items()}
    fit = int(seconds / (time.perf_counter() - begin) / 2)
    times = in_turn(runs, max(3, min(rounds, fit)), warm=True)
    for name, row in rows.items():
        row |= {"ms": statistics.median(times[name]) * 1e3, "best_ms": min(times[name]) * 1e3}
    goals = [reached(goal, times) for goal in case.goals]
    return {
        "problem": asdict(p),
        "threads": threads,
        "rounds": len(times[case.systems[0]]),
        "rows": rows,
        "goals": goals,
    }


def reached(goal: Goal, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the goal and the ratio that was reached, against the system with the lowest median."""
    fastest = min((name for name in goal.against if name in times), key=lambda name: statistics.median(times[name]))
    ratio = statistics.median(peer / ours for peer, ours in zip(times[fastest], times[goal.ours], strict=True))
    return {"ours": goal.ours, "fastest": fastest, "of": len(goal.against), "least": goal.least, "ratio": ratio}


def memory(threads: int) -> dict[str, Any]:
    """Return the MiB of every system at the largest length, and the share of the output that graft needs."""
    p = CASES[LARGEST].problem
    output = p.h * p.s * p.d * 4 / 2**20
    names = [name for name in CASES[LARGEST].systems if installed(SYSTEMS[name])]
    peaks = {name: float(fresh(__file__, peak=name, threads=threads)) for name in names}
    return {"t": p.t, "output_mib": output, "most": EXTRA, "peak_mib": peaks}


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a case."""
    print(f"\n{name}, {found['threads']} threads, {found['rounds']} rounds")
    for system, row in found["rows"].items():
        print(f"  {system:34}{row['ms']:>10.1f} ms{row['best_ms']:>10.1f} best{row['error']:>10.1e}")
    for goal in found["goals"]:
        told = f"{goal['ratio']:.2f} of {goal['least']}" + ("" if goal["ratio"] >= goal["least"] else "   MISSED")
        print(f"  {goal['ours']} / {goal['fastest']} (fastest of {goal['of']}): {told}", flush=True)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw time against length, one line a system, a panel for each number of threads."""
    panels = []
    found = [case for name, case in results["cases"].items() if name.startswith("open")]
    for threads in sorted({case["threads"] for case in found}):
        lines: dict[str, list[tuple[float, float]]] = {}
        for case in found:
            rows = case["rows"].items() if case["threads"] == threads else ()
            for system, row in rows:
                if "heads first" not in system:
                    lines.setdefault(system, []).append((case["problem"]["t"], row["ms"]))
        title = f"{threads} thread{'s' * (threads > 1)}"
        panels.append({"title": title, "x": "tokens", "y": "milliseconds", "lines": lines, "scale": "log"})
    plot(path, panels)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES), help="what to measure; default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--seconds", type=float, default=60, help="of a case's rounds, about")
    parser.add_argument("--only", default="", help="systems whose names contain one of these, separated by commas")
    parser.add_argument("--memory", action="store_true", help="measure peak memory")
    parser.add_argument("--errors", action="store_true", help="compare top-k on made and captured data with fp64")
    parser.add_argument("--data", type=Path, help="folder of texts for --errors: see fidelity.py")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results to complete")
    parser.add_argument("--svg", type=Path, help="draw the results here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(case: Case, only: str) -> Case:
    """Leave of a case the systems that the command line names, and the goals that need no other."""
    names = [name for name in case.systems if any(part in name for part in only.split(","))]
    goals = [g for g in case.goals if g.ours in names and any(name in names for name in g.against)]
    return replace(case, systems=names, goals=goals)


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.peak:
        print(peak_of(SYSTEMS[args.peak].start(CASES[LARGEST].problem, args.threads[0], False))[0])
        return
    results = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {"cases": {}}
    results["machine"] = machine("onnxruntime", "openvino", "torch")
    for name in args.case:
        for threads in args.threads:
            found = measure(chosen(CASES[name], args.only), threads, args.rounds, args.seconds)
            results["cases"][f"{name}, {threads}"] = found
            show(name, found)
    if args.memory:
        results["memory"] = memory(args.threads[0])
    if args.errors:
        import attention_errors  # needs transformers

        results["errors"] = attention_errors.errors(64, args.data)
    args.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if args.svg:
        draw(results, args.svg)


if __name__ == "__main__":
    main()
