"""Training attention side by side: graft's top-k, plain PyTorch attention, scaled_dot_product_attention.

One causal layer, forward and backward pass, fp32. Every number comes from a process of its own: the highest resident
memory beyond what was there before (the inputs and the gradient of the result), then the time, median of the runs.
Run `python benchmarks/training.py --help`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import fresh, peak_of, save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_ops.torch_ops import topk_attention

Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor, top_k: int) -> Tensor:
    """Attend as textbooks do, with all scores in memory."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


CANDIDATES: dict[str, Attend] = {
    "graft top-k": lambda q, k, v, top_k: topk_attention(q, k, v, k_top=top_k, causal=True),
    "graft exact": lambda q, k, v, top_k: topk_attention(q, k, v, causal=True),
    "torch sdpa": lambda q, k, v, top_k: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
    "torch plain": plain,
}


def draw(args: argparse.Namespace, s: int) -> tuple[list[Tensor], Tensor]:
    """Return q, k, v and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, args.h, s, args.d, generator=generator) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], grad


def step(attend: Attend, inputs: list[Tensor], grad: Tensor, top_k: int) -> float:
    """Run forward and backward pass once; return the highest memory beyond what was there, in MiB."""
    for x in inputs:
        x.grad = None
    return peak_of(lambda: attend(*inputs, top_k).backward(grad))[0]


def cpu_seconds() -> float:
    """Return what this process has computed so far, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def point(args: argparse.Namespace) -> dict[str, float]:
    """Measure one candidate at one length, in this process."""
    torch.set_num_threads(args.threads)
    attend, s = CANDIDATES[args.point], args.s[0]
    step(attend, *draw(args, 256), args.top_k)  # what is loaded and compiled once is not the layer's
    inputs, grad = draw(args, s)
    peak = step(attend, inputs, grad, args.top_k)
    if not args.rounds:
        return {"peak_mib": peak}
    times, used = [], cpu_seconds()
    for _ in range(args.rounds):
        begin = time.perf_counter()
        step(attend, inputs, grad, args.top_k)
        times.append(time.perf_counter() - begin)
    spent = (cpu_seconds() - used) / args.rounds
    return {"peak_mib": peak, "seconds": statistics.median(times), "cpu_seconds": spent}


def in_process(args: argparse.Namespace, name: str, s: int) -> dict[str, Any]:
    """Measure one candidate at one length in a fresh process."""
    options = {key: getattr(args, key) for key in ("threads", "h", "d", "top_k", "rounds")}
    return {"name": name, "s": s, **json.loads(fresh(__file__, point=name, s=s, **options))}


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return what was promised of the longest run, and whether it holds."""
    peak = {(row["name"], row["s"]): row["peak_mib"] for row in rows}
    lengths = sorted({row["s"] for row in rows})
    last, ours = lengths[-1], "graft top-k"
    found = []
    if ("torch plain", last) in peak and (ours, last) in peak:
        share = peak["torch plain", last] / peak[ours, last]
        found.append((f"s = {last}: plain attention takes {share:.1f} times our memory (at least 8)", share >= 8))
    if ("torch sdpa", last) in peak and (ours, last) in peak:
        share = peak[ours, last] / peak["torch sdpa", last]
        found.append((f"s = {last}: {share:.2f} times the memory of sdpa (at most 1.5)", share <= 1.5))
    for short, long in itertools.pairwise(lengths):
        if (ours, long) in peak and peak[ours, short] > 0:
            growth = peak[ours, long] / peak[ours, short] / (long / short)
            found.append((f"s = {short} to {long}: memory grows {growth:.2f} times as fast as s", growth <= 1.1))
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table, and the verdicts."""
    print(f"{'candidate':16}{'s':>7}{'peak MiB':>10}{'seconds':>10}{'cpu s':>10}")
    for row in rows:
        times = "".join(f"{row[key]:>10.2f}" for key in ("seconds", "cpu_seconds") if key in row)
        print(f"{row['name']:16}{row['s']:>7}{row['peak_mib']:>10.0f}{times}")
    for sentence, held in verdicts(rows):
        print("held  " if held else "MISSED", sentence)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--s", type=int, nargs="+", default=[2048, 4096, 8192], help="lengths")
    parser.add_argument("--h", type=int, default=12, help="heads")
    parser.add_argument("--d", type=int, default=64, help="head width")
    parser.add_argument("--top-k", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="timed runs; 0: memory alone")
    parser.add_argument("--only", default="", help="names must contain one of these, separated by commas")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    if args.point:
        print(json.dumps(point(args)))
        return
    names = [name for name in CANDIDATES if any(part in name for part in args.only.split(","))]
    rows = [in_process(args, name, s) for s in args.s for name in names]
    show(rows)
    save(args, torch, rows=rows)


if __name__ == "__main__":
    main()
