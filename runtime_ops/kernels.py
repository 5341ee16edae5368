"""The compiled kernels: find the library, ask what it offers, and run it on numpy arrays or in ONNX Runtime.

The library has no Python ABI: what is here speaks the plain C interface of `native/abi.h` through ctypes.
`GRAFT_LIBRARY` names another library file, `GRAFT_ISA` caps the instruction set that kernels use.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import runtime_ops

ABI_VERSION = 1
_DISTRIBUTION = "attn-graft"
_DTYPES = {
    np.dtype(np.float32): 1,
    np.dtype(np.int64): 7,
    np.dtype(np.bool_): 9,
    np.dtype(np.float16): 10,
    np.dtype(ml_dtypes.bfloat16): 16,
}
_MAX_RANK = 5

Array = np.ndarray[Any, np.dtype[Any]]


class LibraryError(RuntimeError):
    """The kernel library is missing, does not belong to this package, or refused its arguments."""


class _Tensor(ctypes.Structure):
    """`graft_tensor`: a strided view."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * _MAX_RANK),
        ("strides", ctypes.c_int64 * _MAX_RANK),
    ]


_INPUTS = ("q", "k", "v", "bias", "key_mask", "past_length")


class _TopKAttention(ctypes.Structure):
    """`graft_topk_attention`."""

    _fields_ = [
        *((name, _Tensor) for name in (*_INPUTS, "out")),
        ("top_k", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, _Task, ctypes.c_void_p)


class _Pool(ctypes.Structure):
    """`graft_pool`: how a kernel runs independent tasks."""

    _fields_ = [("pool", ctypes.c_void_p), ("run", _Run), ("threads", ctypes.c_int32)]


def library_path() -> Path | None:
    """Return where the kernel library lies, or None where this installation has none."""
    return find_library("GRAFT_LIBRARY", "libruntime_ops.so")


def find_library(variable: str, name: str) -> Path | None:
    """Return the file that an environment variable names, or that lies in this package; None if there is none."""
    named = os.environ.get(variable)
    # an editable install keeps what it built in a folder of its own, which is part of the package's path
    paths = [Path(named)] if named else [Path(folder) / name for folder in runtime_ops.__path__]
    return next((path for path in paths if path.is_file()), None)


def load() -> ctypes.CDLL:
    """Load the kernel library, checked to be the one that belongs to this package."""
    path = library_path()
    if path is None:
        named = os.environ.get("GRAFT_LIBRARY")
        where = f"GRAFT_LIBRARY names {named}, which is no file" if named else "this installation has no library"
        raise LibraryError(
            f"No compiled kernels: {where}. Models still run, on the standard operators of their functions."
        )
    return _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from error
    for name in (
        "graft_version",
        "graft_list_kernels",
        "graft_run_topk_attention",
        "graft_pick_topk_attention",
    ):
        if not hasattr(library, name):
            raise LibraryError(f"{path} is no graft kernel library: it has no {name}")
        getattr(library, name).restype = ctypes.c_char_p
    _check_versions(library, path)
    return library


def _check_versions(library: ctypes.CDLL, path: Path) -> None:
    abi = library.graft_abi_version()
    if abi != ABI_VERSION:
        raise LibraryError(
            f"{path} has ABI version {abi}, this package needs {ABI_VERSION}: build or install them together."
        )
    try:
        wanted = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return
    found = library.graft_version().decode()
    if found != wanted:
        raise LibraryError(f"{path} belongs to {_DISTRIBUTION} {found}, not to the installed {wanted}.")


def kernels() -> list[dict[str, Any]]:
    """One row per kernel in the library: op, name, isa, dtypes, limits, rank, usable, reason."""
    rows: list[dict[str, Any]] = json.loads(load().graft_list_kernels())
    return rows


def topk_proofs() -> dict[str, int]:
    """How often 8-bit scores proved a top-k selection in this process, in blocks of query rows.

    `blocks` were scored in 8 bits, `widened` of them needed a second try that lists more keys, `in_fp32` had no
    proof and were scored in fp32. Results are the same either way; only time differs.
    """
    counts = [ctypes.c_int64() for _ in range(3)]
    function = load().graft_topk_attention_proofs
    function.restype = None
    function(*map(ctypes.byref, counts))
    return dict(zip(("blocks", "widened", "in_fp32"), (count.value for count in counts), strict=True))


def _view(array: Array | None) -> _Tensor:
    """Describe the array as the library sees it, without a copy; an absent one for None."""
    if array is None:
        return _Tensor()
    if array.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype) for dtype in _DTYPES)
        raise LibraryError(f"Element type {array.dtype} is not supported; allowed are {allowed}.")
    if array.ndim > _MAX_RANK:
        raise LibraryError(f"Rank {array.ndim} is not supported; allowed are ranks up to {_MAX_RANK}.")
    strides = [stride // array.itemsize for stride in array.strides]
    shape_type = ctypes.c_int64 * _MAX_RANK
    return _Tensor(array.ctypes.data, _DTYPES[array.dtype], array.ndim, shape_type(*array.shape), shape_type(*strides))


def _rows(array: Array) -> Array:
    """Copy the array where its last axis is not contiguous."""
    ready = array.ndim == 0 or array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if ready else np.ascontiguousarray(array)


def _aligned(array: Array | None, rank: int) -> Array | None:
    """Give the array `rank` axes, new ones in front."""
    return None if array is None else array[(np.newaxis,) * (rank - array.ndim)]


def _make_pool(executor: ThreadPoolExecutor, threads: int) -> _Pool:
    """Make a pool over Python threads: ctypes releases the interpreter lock while the library computes."""

    def run(_pool: int, total: int, task: Any, state: int) -> None:
        def share(first: int) -> None:
            for index in range(first, total, threads):
                task(state, index)

        list(executor.map(share, range(threads)))

    return _Pool(None, _Run(run), threads)


def run_topk_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    key_mask: Array | None = None,
    past_length: Array | None = None,
    *,
    k_top: int = 0,
    scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """softmax(scale q kT + bias) v over the `k_top` best keys of every row (0: over all of them).

    q [b h s d], k [b g t d], v [b g t e], bias right-aligned to [b h s t], key_mask bool [b t], past_length
    int64, a scalar or [b]. fp32, fp16 or bf16, accumulated in fp32. `isa` forces a kernel; `threads` are
    Python threads, started for the call.
    """
    library = load()
    q, k, v = _rows(q), _rows(k), _rows(v)
    if min(q.ndim, k.ndim, v.ndim) != 4 or max(q.ndim, k.ndim, v.ndim) != 4:
        raise LibraryError(f"q, k and v have ranks {q.ndim}, {k.ndim} and {v.ndim}; allowed is 4.")
    past = None if past_length is None else np.asarray(past_length, np.int64)
    out = np.empty(
        (
            max(q.shape[0], k.shape[0], v.shape[0]) if q.size and k.size else q.shape[0],
            *q.shape[1:3],
            v.shape[3],
        ),
        q.dtype,
    )
    inputs = (q, k, v, _aligned(bias, 4), key_mask, _aligned(past, 1))
    views = [_view(array) for array in (*inputs, out)]
    args = _TopKAttention(*views, k_top, q.shape[3] ** -0.5 if scale is None else scale, softcap, causal, 0)
    if threads <= 1:
        error = library.graft_run_topk_attention(ctypes.byref(args), _name(isa), None)
    else:
        with ThreadPoolExecutor(threads) as executor:
            pool = _make_pool(executor, threads)
            error = library.graft_run_topk_attention(ctypes.byref(args), _name(isa), ctypes.byref(pool))
    if error is not None:
        raise LibraryError(error.decode())
    return out


def _name(isa: str | None) -> bytes | None:
    return None if isa is None else isa.encode()


def register(session_options: Any) -> None:
    """Add graft's operators to an `onnxruntime.SessionOptions`; a second time changes nothing."""
    load()
    session_options.register_custom_ops_library(str(library_path()))


def session(path: str | Path, **options: Any) -> Any:
    """Open the model at `path` in an `onnxruntime.InferenceSession` with graft's operators registered.

    `options` are those of InferenceSession; `sess_options` may be given, and `providers` default to the CPU.
    """
    import onnxruntime

    settings = options.pop("sess_options", None) or onnxruntime.SessionOptions()
    register(settings)
    options.setdefault("providers", ["CPUExecutionProvider"])
    return onnxruntime.InferenceSession(str(path), settings, **options)
