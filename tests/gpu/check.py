"""Correctness of the CUDA kernels on a GPU, against float64; `python tests/gpu/check.py [--small]`.

Allowed error: twice that of the plain torch version in the same precision, or, where that is larger, what rounding
the result itself costs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import peers
import torch
from cases import Array, Call, Case, cases, distance, golden, golden_gradients, make, training_cases, wrongness

from runtime_ops import torch_ops

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROUNDING = {"fp32": 1e-6, "fp16": 5e-4, "bf16": 4e-3}
SMALL = {"two-tiles", "split", "odd-widths", "top-tiles", "top-many", "decode", "decode-odd", "decode-equal", "widest"}

# Too large for numpy: checked against the definition in float64 on the GPU.
BIG = [
    Case(id="big-exact", h=4, g=4, s=1000, t=5003),
    Case(id="big-causal", h=4, g=2, s=2048, t=2048, causal=True),
    Case(id="big-top", h=2, g=2, s=500, t=16384, k_top=64),
    Case(id="big-top-causal", h=2, g=2, s=4096, t=4096, k_top=128, causal=True),
    Case(id="big-top-wide", h=2, g=1, s=333, t=8192, k_top=300, d=128, e=128),
    Case(id="big-top-global", h=2, g=1, s=333, t=8192, k_top=2000),
    Case(id="big-decode", b=4, h=16, g=16, s=1, t=32768, k_top=128),
    Case(id="big-decode-grouped", b=4, h=32, g=8, s=1, t=32768, k_top=128, d=128, e=128),
    Case(id="big-decode-exact", b=4, h=16, g=16, s=1, t=32768),
]


def tensor(array: Array) -> torch.Tensor:
    """Copy an array to the GPU; torch does not know numpy's bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


def tensors(call: Call) -> dict[str, Any]:
    return {name: tensor(array) for name, array in call.arrays.items() if array is not None}


def host(x: torch.Tensor) -> Array:
    return x.detach().double().cpu().numpy()


class Report:
    """Collects failures, and says them as they come."""

    def __init__(self) -> None:
        self.done, self.failures, self.worst = 0, list[str](), dict[str, float]()

    def add(self, label: str, dtype: str, error: float, plain: float) -> None:
        self.done += 1
        allowed = max(2 * plain, ROUNDING[dtype])
        self.worst[dtype] = max(self.worst.get(dtype, 0.0), error)
        if not error <= allowed:
            self.failures.append(f"{label} {dtype}: error {error:.3g}, allowed {allowed:.3g} (plain torch {plain:.3g})")
            print("FAILED", self.failures[-1], flush=True)


def check_case(case: Case, dtype: str, report: Report) -> None:
    call = make(case, dtype)
    inputs = tensors(call)
    out = torch_ops.topk_attention(**inputs, **call.attributes)
    if not torch.equal(out, torch_ops.topk_attention(**inputs, **call.attributes)):
        report.add(f"{case.id} differs from run to run", dtype, float("inf"), 0.0)
    plain = 0.0 if case.equal else distance(host(peers.plain(**inputs, **call.attributes)), golden(call))
    report.add(case.id, dtype, wrongness(case, call, host(out)), plain if np.isfinite(plain) else 0.0)


def check_big(case: Case, dtype: str, report: Report) -> None:
    call = make(case, dtype)
    inputs = tensors(call)
    wide = {n: x.double() if x.is_floating_point() else x for n, x in inputs.items()}
    right = host(peers.plain(**wide, **call.attributes))
    plain = distance(host(peers.plain(**inputs, **call.attributes)), right)
    report.add(case.id, dtype, distance(host(torch_ops.topk_attention(**inputs, **call.attributes)), right), plain)


def gradients(function: Any, call: Call, d_out: Array) -> dict[str, Array]:
    inputs = tensors(call)
    for name in ("q", "k", "v"):
        inputs[name].requires_grad_()
    function(**inputs, **call.attributes).backward(tensor(d_out))
    return {f"d_{name}": host(x.grad) for name in ("q", "k", "v") if (x := inputs[name]).grad is not None}


def check_gradients(case: Case, dtype: str, report: Report) -> None:
    call = make(case, dtype)
    d_out = np.random.default_rng(1).standard_normal((case.b, case.h, case.s, case.e))
    d_out = d_out.astype(call.arrays["q"].dtype)  # type: ignore[union-attr]
    right = golden_gradients(call, d_out)
    plain, ours = gradients(peers.plain, call, d_out), gradients(torch_ops.topk_attention, call, d_out)
    for name, expected in right.items():
        report.add(f"{case.id} {name}", dtype, distance(ours[name], expected), distance(plain[name], expected))


def main(small: bool) -> Report:
    torch.backends.cuda.matmul.allow_tf32 = False
    report = Report()
    for dtype in TYPES:
        for case in cases():
            if not small or case.id in SMALL:
                check_case(case, dtype, report)
        for case in training_cases()[: 3 if small else None]:
            check_gradients(case, dtype, report)
        for case in [] if small else BIG:
            check_big(case, dtype, report)
    torch.cuda.synchronize()
    worst = ", ".join(f"{dtype} {error:.2g}" for dtype, error in report.worst.items())
    print(f"checked {report.done} results, {len(report.failures)} failures; largest errors: {worst}", flush=True)
    return report


if __name__ == "__main__":
    sys.exit(bool(main("--small" in sys.argv).failures))
