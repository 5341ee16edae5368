"""The CUDA kernels, run on an emulated GPU: logic, tile edges, barriers and selection; no speed, no hardware."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

if shutil.which(os.environ.get("CXX", "c++")) is None or platform.system() != "Linux":
    pytest.skip("the emulated GPU is built with a C++ compiler, on Linux", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

import emulated
from cases import DTYPES, Case, cases, distance, golden, golden_gradients, make, training_cases, wrongness

from runtime_ops import cuda
from runtime_ops.ops import OPS

TOLERANCE = {"fp32": 3e-6, "fp16": 1e-3, "bf16": 8e-3}
CASES = {case.id: case for case in cases()}
SUBSET = (
    *("two-tiles", "split", "odd-widths", "causal-past", "mask-none", "top-tiles", "top-tiles-64", "top-widest"),
    *("top-causal-long", "top-equal", "top-ascending", "top-many", "decode", "decode-few-rows", "decode-equal"),
)
TOP = [name for name in CASES if name.startswith("top-")]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return cuda._load(emulated.build(tmp_path_factory.mktemp("emulated")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_forward(library: ctypes.CDLL, name: str, dtype: str) -> None:
    case, call = CASES[name], make(CASES[name], dtype)
    out = emulated.forward(library, call)
    assert wrongness(case, call, out) < TOLERANCE[dtype]
    again = emulated.forward(library, call)
    assert out.tobytes() == again.tobytes()


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("name", SUBSET)
def test_any_order_of_warps(library: ctypes.CDLL, name: str, seed: str, monkeypatch: Patch) -> None:
    call = make(CASES[name], "bf16")
    expected = emulated.forward(library, call)
    monkeypatch.setenv("GRAFT_EMULATOR_SEED", seed)
    assert emulated.forward(library, call).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", TOP)
def test_lists_in_global_memory(library: ctypes.CDLL, name: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv("GRAFT_EMULATOR_SHARED", "20000")
    case, call = CASES[name], make(CASES[name], "bf16")
    assert wrongness(case, call, emulated.forward(library, call)) < TOLERANCE["bf16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", training_cases(), ids=lambda case: case.id)
def test_gradients(library: ctypes.CDLL, case: Case, dtype: str) -> None:
    call = make(case, dtype)
    d_out = np.random.default_rng(1).standard_normal((case.b, case.h, case.s, case.e)).astype(DTYPES[dtype])
    out, found = emulated.gradients(library, call, d_out)
    assert distance(out, golden(call)) < TOLERANCE[dtype]
    for name, expected in golden_gradients(call, d_out).items():
        assert distance(found[name], expected) < 2 * TOLERANCE[dtype], name


REFUSED = [
    (Case(id="too-wide", d=264), "up to 256 wide"),
    (Case(id="heads", h=3, g=2), "multiple of the number of key heads"),
    (Case(id="negative", k_top=-1), "0 (all keys) or more"),
    (Case(id="window", window=-1), "window must be 0 (none) or more"),
    (Case(id="remainder", k_top=2, remainder="mean"), "remainder must be none; mean and blocks run on the CPU"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda x: x.id if isinstance(x, Case) else "")
def test_refusals(library: ctypes.CDLL, case: Case, reason: str) -> None:
    with pytest.raises(cuda.LibraryError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        emulated.forward(library, make(case, "bf16"))


def _on_the_cpu(library: ctypes.CDLL, monkeypatch: Patch) -> None:
    """Lets the torch op take tensors of the CPU to the CUDA kernels; the emulated GPU can read them."""
    monkeypatch.setattr(cuda, "takes", lambda *_: True)
    monkeypatch.setattr(cuda, "load", lambda: library)
    monkeypatch.setattr(cuda, "_require_cuda", lambda _: None)
    monkeypatch.setattr(cuda, "_stream", lambda _: contextlib.nullcontext(0))


TRAINING = ["train", "train-causal", "train-grouped", "train-all", "train-bias-mask", "train-wide", "train-few"]
EXACT = [
    "plain",
    "window",
    "mean",
    "top-mean",
    "causal-past",
    "grouped",
    "mask-none",
    "bias-row",
    "softcap",
    "shared-batch",
    "decode-mask",
]


@pytest.mark.parametrize("name", [*TRAINING, *EXACT])
def test_torch(library: ctypes.CDLL, name: str, monkeypatch: Patch) -> None:
    torch = pytest.importorskip("torch")
    from runtime_ops import torch_chunks, torch_ops

    _on_the_cpu(library, monkeypatch)
    monkeypatch.setitem(torch_chunks._ROOM, "cpu", 1024)  # several chunks
    case = CASES.get(name) or next(case for case in training_cases() if case.id == name)
    call = make(case, "fp32")
    d_out = np.random.default_rng(1).standard_normal((case.b, case.h, case.s, case.e)).astype(np.float32)
    wanted = golden_gradients(call, d_out)
    for with_bias in {False, call.arrays.get("bias") is not None}:  # the bias takes the gradient out of the kernels
        tensors = {n: torch.from_numpy(a) for n, a in call.arrays.items() if a is not None}
        for n in ("q", "k", "v", *["bias"] * with_bias):
            tensors[n] = tensors[n].clone().requires_grad_()
        out = torch_ops.topk_attention(**tensors, **call.attributes)
        assert distance(out.detach().numpy(), golden(call)) < TOLERANCE["fp32"]
        out.backward(torch.from_numpy(d_out))
        for n, expected in wanted.items():
            whole = expected.sum(0, keepdims=True) if case.shared_batch and n != "d_q" else expected
            assert distance(tensors[n[2:]].grad.numpy(), whole) < 1e-5, n


@pytest.mark.parametrize("name", ["train", "train-grouped", "top-mean", "decode-mask"])
def test_tokens_first_changes_the_layout_alone(library: ctypes.CDLL, name: str, monkeypatch: Patch) -> None:
    torch = pytest.importorskip("torch")
    from runtime_ops import torch_ops

    _on_the_cpu(library, monkeypatch)
    case = CASES.get(name) or next(case for case in training_cases() if case.id == name)
    call, results = make(case, "fp32"), []
    for first in ((), ("q", "k", "v", "out")):
        tensors = {n: torch.from_numpy(a) for n, a in call.arrays.items() if a is not None}
        for n in "qkv":
            tensors[n] = (tensors[n].transpose(1, 2) if first else tensors[n]).contiguous().requires_grad_()
        out = torch_ops.topk_attention(**tensors, **call.attributes, tokens_first=" ".join(first))
        assert out.is_contiguous()
        out.square().sum().backward()
        found = (out.detach(), *(tensors[n].grad for n in "qkv"))
        results.append([x.transpose(1, 2) if first else x for x in found])
    torch.testing.assert_close(*results)


def test_the_kernels_take_what_lies_on_one_gpu() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(1, 1, 4, 8)
    assert not cuda.takes((x, x, x, None, None, None), OPS["TopKAttention"].attrs({}))
    with pytest.raises(cuda.LibraryError, match="need all of them on one GPU"):
        cuda._view(x)
