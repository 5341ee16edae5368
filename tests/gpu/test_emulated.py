"""The CUDA kernels, run on an emulated GPU: logic, tile edges, barriers and selection; no speed, no hardware."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulated
from cases import DTYPES, Case, cases, distance, golden, golden_gradients, make, training_cases, wrongness

from runtime_ops import cuda

TOLERANCE = {"fp32": 3e-6, "fp16": 1e-3, "bf16": 8e-3}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    yield cuda._load(emulated.build(tmp_path_factory.mktemp("emulated")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_forward(library: ctypes.CDLL, case: Case, dtype: str) -> None:
    call = make(case, dtype)
    out = emulated.forward(library, call)
    assert wrongness(case, call, out) < TOLERANCE[dtype]
    again = emulated.forward(library, call)
    assert out.tobytes() == again.tobytes()


SUBSET = ("two-tiles", "split", "odd-widths", "causal-past", "mask-none", "top-tiles", "top-tiles-64", "top-causal-long",
          "top-equal", "top-ascending", "top-widest", "top-many", "decode", "decode-few-rows", "decode-equal")  # fmt: skip


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("case", [case for case in cases() if case.id in SUBSET], ids=lambda case: case.id)
def test_any_order_of_warps(library: ctypes.CDLL, case: Case, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = make(case, "bf16")
    expected = emulated.forward(library, call)
    monkeypatch.setenv("GRAFT_EMULATOR_SEED", seed)
    assert emulated.forward(library, call).tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", [case for case in cases() if case.id.startswith("top-")], ids=lambda case: case.id)
def test_lists_in_global_memory(library: ctypes.CDLL, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_EMULATOR_SHARED", "20000")
    call = make(case, "bf16")
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
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda x: x.id if isinstance(x, Case) else "")
def test_refusals(library: ctypes.CDLL, case: Case, reason: str) -> None:
    with pytest.raises(cuda.LibraryError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        emulated.forward(library, make(case, "bf16"))
