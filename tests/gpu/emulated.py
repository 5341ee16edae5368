"""Build the CUDA kernels for the emulated GPU and call them with numpy arrays."""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from cases import Array, Call

from runtime_ops import cuda
from runtime_ops.abi import Tensor, TopKAttention, view
from runtime_ops.ops.remainder import REMAINDERS
from runtime_ops.ops.topk_attention import NO_KEY

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "runtime_ops" / "native" / "topk_attention"
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-U_FORTIFY_SOURCE"]


def build(folder: Path) -> Path:
    """Compile with the system's C++ compiler; return the library."""
    compiler = os.environ.get("CXX", "c++")
    flags = [*FLAGS, "-DGRAFT_CUDA_EMULATOR", f"-I{HERE / 'emulator'}", "-x", "c++", "-c"]
    sources = [*sorted(NATIVE.glob("*.cu")), HERE / "emulator" / "emulator.cc"]

    def compile_one(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, str(source), "-o", str(out)], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libruntime_ops_cuda_emulated.so"
    subprocess.run([compiler, "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library


class Scratch:
    """Poisoned, 256-byte aligned scratch memory."""

    def __call__(self, size: int) -> int:
        self.memory = np.full(size + 512, 0xFF, np.uint8)
        return (self.memory.ctypes.data + 255) // 256 * 256


def _poisoned(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.full(shape, np.nan, np.float32).astype(dtype)


def _arguments(call: Call, out: Array, only: tuple[str, ...] = ()) -> TopKAttention:
    names = ("q", "k", "v", "bias", "key_mask", "past_length")
    views = [view(call.arrays.get(name)) if not only or name in only else Tensor() for name in names]
    at = call.attributes
    return TopKAttention(
        *views,
        view(out),
        at["k_top"],
        at["scale"],
        at["softcap"],
        at["causal"],
        NO_KEY.index(at["no_key"]),
        at["window"],
        REMAINDERS.index(at["remainder"]),
    )


def _result(call: Call) -> Array:
    q, k, v = (call.arrays[name] for name in ("q", "k", "v"))
    assert q is not None
    assert k is not None
    assert v is not None
    return _poisoned((max(q.shape[0], k.shape[0]), *q.shape[1:3], v.shape[3]), q.dtype)


def forward(library: ctypes.CDLL, call: Call) -> Array:
    """Run one call."""
    out = _result(call)
    cuda.run_forward(library, _arguments(call, out), None, 0, Scratch())
    return out


def gradients(library: ctypes.CDLL, call: Call, d_out: Array) -> tuple[Array, dict[str, Array]]:
    """Run one call for training and its backward pass."""
    out = _result(call)
    shape = (*out.shape[:3], call.attributes["k_top"])
    scores, keys = np.full(shape, np.nan, np.float32), np.full(shape, -7, np.int32)
    saved = cuda._Saved(scores.ctypes.data, keys.ctypes.data)
    cuda.run_forward(library, _arguments(call, out), saved, 0, Scratch())
    grads = {f"d_{n}": _poisoned(x.shape, x.dtype) for n in ("q", "k", "v") if (x := call.arrays[n]) is not None}
    args = cuda._Backward(_arguments(call, out, ("q", "k", "v")), saved, view(d_out), *map(view, grads.values()))
    cuda.run_backward(library, args, 0, Scratch())
    return out, grads
