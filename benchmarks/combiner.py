"""Combiner attention beside the fastest exact operators of ONNX Runtime, over the length of the sequence.

Every graph takes q, k, v as [b s h*d], as projections leave them, and returns that layout; graft's are the models that
the rule combiner-attention makes of MultiHeadAttention, `heads first` is the operator alone on [b h s d]. Exact
attention is the baseline: MultiHeadAttention where every query sees every key, the faster of it and
GroupQueryAttention where not. Times are medians of rounds in which all candidates run one after the other in one
process; `slope` is that of the logarithm of the time over that of the length. Peak memory is measured in a process per
candidate, arena off, output included. Run `python benchmarks/combiner.py --help`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from attention_graphs import Graph, Problem, group_query, multi_head
from attention_systems import in_session
from measuring import fresh, in_turn, peak_of, save

import rewriter

FAST = ("fixed", "logsparse")  # also as the operator alone on [b h s d]
VARIANTS = ("fixed", "logsparse", "axial-vertical", "axial-horizontal", "axial-row-major", "mixture")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph and what it computes: exact, or causal; baselines are what the others are compared with."""

    name: str
    kind: str
    build: Callable[[Problem], Any]
    baseline: bool = False


def combiner(p: Problem, variant: str, causal: int, heads_first: bool = False) -> Any:
    """Return what the rule makes of MultiHeadAttention, or the same operator alone where heads come first."""
    if not heads_first:
        original = ir.from_proto(multi_head(p, causal=causal))
        rule = f"combiner-attention:variant={variant}"
        return ir.to_proto(rewriter.apply(original, (rule,), verify=False).result)
    g = Graph(p)
    form = {"variant": variant, "causal": causal, "pooling": "mean", "region_logit": "counted"}
    return g.model(g.add("CombinerAttention", *"qkv", domain="ai.graft", **form), heads_first)


def candidates() -> list[Candidate]:
    """Return the exact operators first, then every variant, with and without a causal mask."""
    found = [
        Candidate(name="ort MultiHeadAttention", kind="exact", baseline=True, build=multi_head),
        Candidate(name="ort GroupQueryAttention", kind="causal", baseline=True, build=group_query),
        Candidate(
            name="ort MultiHeadAttention causal", kind="causal", baseline=True, build=lambda p: multi_head(p, causal=1)
        ),
    ]
    for kind, causal in (("exact", 0), ("causal", 1)):
        for variant in VARIANTS:
            for first in (False, True) if variant in FAST else (False,):
                name = f"{variant}{' causal' * causal}{', heads first' * first}"
                found.append(
                    Candidate(
                        name=name, kind=kind, build=partial(combiner, variant=variant, causal=causal, heads_first=first)
                    )
                )
    return found


def measure(chosen: list[Candidate], p: Problem, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all candidates on one length, round by round."""
    runs = {c.name: in_session(c.build, p, args.threads, True) for c in chosen if not too_long(c, p, args)}
    rounds = max(args.rounds * min(args.t) // p.t, 1)
    times = in_turn(runs, rounds + 1)  # the first one warms up
    rows = [{"name": c.name, "kind": c.kind, "t": p.t} for c in chosen if c.name in runs]
    for row in rows:
        row["ms"] = statistics.median(times[str(row["name"])][1:]) * 1e3
        row["peak_mib"] = None if args.no_memory else peak_in_process(str(row["name"]), p, args)
    return rows


def too_long(c: Candidate, p: Problem, args: argparse.Namespace) -> bool:
    """Whether the operator would hold b·h·s·t scores of more memory than may be used."""
    return c.name == "ort MultiHeadAttention causal" and p.h * p.t**2 * 4 > args.scores_gib * 2**30


def peak_in_process(name: str, p: Problem, args: argparse.Namespace) -> float:
    """Measure the peak of one run in a fresh process."""
    return float(fresh(__file__, peak=name, t=p.t, threads=args.threads, h=p.h, d=p.d))


def add_ratios(rows: list[dict[str, Any]], chosen: list[Candidate]) -> None:
    """Add `times_faster` than the fastest baseline of the kind at that length."""
    exact = {c.name for c in chosen if c.baseline}
    for row in rows:
        peers = [r["ms"] for r in rows if r["name"] in exact and (r["kind"], r["t"]) == (row["kind"], row["t"])]
        row["times_faster"] = min(peers) / row["ms"] if peers else None


def add_slopes(rows: list[dict[str, Any]]) -> None:
    """Add `slope`: 1 is linear time, 2 that of exact attention."""
    for row in rows:
        own = [(r["t"], r["ms"]) for r in rows if r["name"] == row["name"]]
        points = np.log(np.array(own, float)).T
        row["slope"] = float(np.polyfit(points[0], points[1], 1)[0]) if len(own) > 1 else None


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    print(f"{'candidate':32}{'t':>7}{'ms':>11}{'faster':>9}{'slope':>7}{'peak MiB':>10}")
    for row in rows:
        rest = [(row["times_faster"], 9, 2), (row["slope"], 7, 2), (row["peak_mib"], 10, 0)]
        cells = ["-".rjust(width) if x is None else f"{x:>{width}.{digits}f}" for x, width, digits in rest]
        print(f"{row['name']:32}{row['t']:>7}{row['ms']:>11.1f}{''.join(cells)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--t", type=int, nargs="+", default=[4096, 16384, 65536], help="lengths")
    parser.add_argument("--h", type=int, default=12, help="heads")
    parser.add_argument("--d", type=int, default=64, help="head width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="of the shortest length; others take turns less often")
    parser.add_argument("--only", default="", help="names must contain one of these, separated by commas")
    parser.add_argument("--scores-gib", type=float, default=4, help="leave out operators that would hold more scores")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    problems = [Problem(t=t, h=args.h, d=args.d) for t in args.t]
    if args.peak:
        only = next(c for c in candidates() if c.name == args.peak)
        print(peak_of(in_session(only.build, problems[0], args.threads, False))[0])
        return
    chosen = [c for c in candidates() if any(part in c.name for part in args.only.split(","))]
    rows = [row for p in problems for row in measure(chosen, p, args)]
    add_ratios(rows, chosen)
    add_slopes(rows)
    show(rows)
    save(args, onnxruntime, rows=rows)


if __name__ == "__main__":
    main()
