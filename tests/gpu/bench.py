"""Times and memory of the CUDA kernels beside their peers; the ceilings are measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import peers
import torch

from runtime_ops import torch_ops

Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Median of the runs, peak memory in all and beyond the inputs, and the share of the limit that counts."""

    question: str
    who: str
    ms: float
    spread_ms: float
    peak_gib: float
    extra_gib: float
    limit: str = ""
    share: float = 0.0


def timed(run: Run, repeats: int, warmups: int = 3) -> tuple[float, float]:
    """Return median and spread (quartile distance) of one run in ms."""
    for _ in range(warmups):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in events)
    return statistics.median(times), times[3 * len(times) // 4] - times[len(times) // 4]


def measure(question: str, who: str, run: Run, *, repeats: int = 20, limit: str = "", floor_ms: float = 0.0) -> Result:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        ms, spread = timed(run, repeats, warmups=1 if repeats < 5 else 3)
    except torch.cuda.OutOfMemoryError:
        peak, ms, spread = 0, float("inf"), 0.0
    gib = 2.0**30
    result = Result(
        question=question, who=who, ms=ms, spread_ms=spread, peak_gib=peak / gib, extra_gib=(peak - before) / gib,
        limit=limit, share=floor_ms / ms if limit else 0.0,
    )  # fmt: skip
    note = f"{100 * result.share:5.1f} % of {limit}" if limit else ""
    print(f"{question:34s} {who:14s} {ms:10.3f} ms ±{spread:.3f}  peak {result.peak_gib:7.3f} GiB  {note}", flush=True)
    return result


def ceilings() -> dict[str, float]:
    """Return bytes per ms of a copy (read plus written) and bf16 operations per ms of a large product."""
    found = {"bytes_per_ms": _copied(1 << 30), "flops_per_ms": _multiplied(8192)}
    print(
        f"ceilings: {found['bytes_per_ms'] / 1e9:.2f} TB/s, {found['flops_per_ms'] / 1e9:.0f} TFLOP/s bf16", flush=True
    )
    return found


def _copied(numbers: int) -> float:
    x = torch.randn(numbers, device="cuda")
    y = torch.empty_like(x)
    return 8 * numbers / timed(lambda: y.copy_(x), 10)[0]


def _multiplied(size: int) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / timed(lambda: a @ b, 10)[0]


def draw(b: int, h: int, s: int, t: int, d: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    shapes = ((b, h, s, d), (b, h, t, d), (b, h, t, d))
    return tuple(torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)


def decode(limits: dict[str, float]) -> list[Result]:
    b, h, t, d, k_top = 8, 16, 32768, 64, 128
    q, k, v = draw(b, h, 1, t, d)
    scale, name = d**-0.5, f"decode b{b} h{h} t{t} d{d}"
    top = f"{name} top-{k_top}"
    one = b * h * t * d * 2 / limits["bytes_per_ms"]  # reading k, or v, once
    once, twice = ({"limit": "memory bandwidth", "floor_ms": n * one} for n in (1, 2))
    return [
        measure(top, "graft", lambda: torch_ops.topk_attention(q, k, v, k_top=k_top), **once),
        measure(name, "graft exact", lambda: torch_ops.topk_attention(q, k, v), **twice),
        measure(name, "SDPA", lambda: peers.sdpa(q, k, v, scale=scale), **twice),
        measure(name, "plain", lambda: peers.plain(q, k, v, scale=scale)),
        measure(top, "paper", lambda: peers.paper(q, k, v, k_top=k_top, scale=scale)),
    ]


def prefill(limits: dict[str, float], d: int, causal: bool) -> list[Result]:
    h, t, k_top = 16, 16384, 64
    q, k, v = draw(1, h, t, t, d)
    name = f"prefill h{h} t{t} d{d}" + (" causal" if causal else "")
    top, at = f"{name} top-{k_top}", {"scale": d**-0.5, "causal": causal}
    one = 2.0 * h * t * t * d / (2 if causal else 1) / limits["flops_per_ms"]  # one of the two products
    once, twice = ({"limit": "tensor cores", "floor_ms": n * one} for n in (1, 2))
    results = [
        measure(top, "graft", lambda: torch_ops.topk_attention(q, k, v, k_top=k_top, **at), **once),
        measure(name, "graft exact", lambda: torch_ops.topk_attention(q, k, v, **at), **twice),
        measure(name, "SDPA", lambda: peers.sdpa(q, k, v, **at), **twice),
        measure(top, "paper", lambda: peers.paper(q, k, v, k_top=k_top, **at), repeats=3),
    ]
    if d == 64 and not causal:
        results.append(measure(name, "plain", lambda: peers.plain(q, k, v, **at), repeats=3))
    return results


def training() -> list[Result]:
    h, t, d, k_top = 12, 61440, 64, 128
    results = []
    for who, function, dtype in (
        ("graft bf16", torch_ops.topk_attention, torch.bfloat16),
        ("graft fp32", torch_ops.topk_attention, torch.float32),
        ("paper bf16", peers.paper, torch.bfloat16),
        ("paper fp32", peers.paper, torch.float32),
    ):
        q, k, v = (x.requires_grad_() for x in draw(1, h, t, t, d, dtype))
        g = torch.randn_like(q)

        def run(function: Any = function, q: Any = q, k: Any = k, v: Any = v, g: Any = g) -> None:
            function(q, k, v, k_top=k_top, scale=d**-0.5, causal=True).backward(g)
            q.grad = k.grad = v.grad = None

        results.append(measure(f"training h{h} t{t} d{d} top-{k_top}", who, run, repeats=3 if "graft" in who else 1))
    return results


def main() -> dict[str, Any]:
    limits = ceilings()
    results = [*decode(limits)]
    for d, causal in ((64, False), (64, True), (128, True)):
        results += prefill(limits, d, causal)
    results += training()
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name, "multiprocessors": device.multi_processor_count, "torch": torch.__version__,
        "ceilings": limits, "results": [asdict(result) for result in results],
    }  # fmt: skip
