"""The plain C interface of the kernel library, `native/abi.h`, as ctypes sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

ABI_VERSION = 6
MAX_RANK = 5
DTYPES = {
    np.dtype(np.float32): 1,
    np.dtype(np.int64): 7,
    np.dtype(np.bool_): 9,
    np.dtype(np.float16): 10,
    np.dtype(ml_dtypes.bfloat16): 16,
}

Array = np.ndarray[Any, np.dtype[Any]]


class LibraryError(RuntimeError):
    """The kernel library is missing, does not belong to this package, or refused its arguments."""


class Tensor(ctypes.Structure):
    """`graft_tensor`: a strided view."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_RANK),
        ("strides", ctypes.c_int64 * MAX_RANK),
    ]


# Attributes of attention to chosen keys, which end the structures of the operations that have them.
_CHOOSING = (
    ("top_k", ctypes.c_int64),
    ("scale", ctypes.c_float),
    ("softcap", ctypes.c_float),
    ("causal", ctypes.c_int32),
    ("no_key", ctypes.c_int32),
    ("window", ctypes.c_int64),
)


class TopKAttention(ctypes.Structure):
    """`graft_topk_attention`."""

    _fields_ = [
        *((name, Tensor) for name in ("q", "k", "v", "bias", "key_mask", "past_length", "out")),
        *_CHOOSING,
        ("remainder", ctypes.c_int32),
    ]


class SegmentAttention(ctypes.Structure):
    """`graft_segment_attention`."""

    _fields_ = [
        *((name, Tensor) for name in ("q", "k", "v", "segments", "bias", "key_mask", "out")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]


class TopKFeedForward(ctypes.Structure):
    """`graft_topk_feed_forward`."""

    _fields_ = [
        *((name, Tensor) for name in ("x", "w_in", "w_out", "b_in", "b_out", "w_gate", "b_gate", "out")),
        ("top_k", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        ("select_by", ctypes.c_char_p),
    ]


class CombinerAttention(ctypes.Structure):
    """`graft_combiner_attention`."""

    _fields_ = [
        *((name, Tensor) for name in ("q", "k", "v", "key_mask", "out")),
        *((name, ctypes.c_char_p) for name in ("variant", "pooling", "region_logit")),
        ("span", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("no_key", ctypes.c_int32),
    ]


class ExpandedAttention(ctypes.Structure):
    """`graft_expanded_attention`."""

    _fields_ = [
        *((name, Tensor) for name in ("q", "memory", "w_k", "w_v", "b_v", "bias", "key_mask", "past_length")),
        *((name, Tensor) for name in ("beam_index", "out")),
        *_CHOOSING,
    ]


_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, _Task, ctypes.c_void_p)


class _Pool(ctypes.Structure):
    """`graft_pool`: how a kernel runs independent tasks."""

    _fields_ = [("pool", ctypes.c_void_p), ("run", _Run), ("threads", ctypes.c_int32)]


def view(array: Array | None) -> Tensor:
    """Describe the array as the library sees it, without a copy; an absent one for None."""
    if array is None:
        return Tensor()
    if array.dtype not in DTYPES:
        allowed = ", ".join(str(dtype) for dtype in DTYPES)
        raise LibraryError(f"Element type {array.dtype} is not supported; allowed are {allowed}.")
    if array.ndim > MAX_RANK:
        raise LibraryError(f"Rank {array.ndim} is not supported; allowed are ranks up to {MAX_RANK}.")
    strides = [stride // array.itemsize for stride in array.strides]
    shape_type = ctypes.c_int64 * MAX_RANK
    return Tensor(array.ctypes.data, DTYPES[array.dtype], array.ndim, shape_type(*array.shape), shape_type(*strides))


def number(name: str, word: str, words: Sequence[str]) -> int:
    """Return the number by which the library knows a word among those that an argument may be."""
    if word not in words:
        raise LibraryError(f"{name} is {word}; allowed are {', '.join(words)}.")
    return words.index(word)


def rows(array: Array) -> Array:
    """Copy the array where its last axis is not contiguous."""
    ready = array.ndim == 0 or array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    return array if ready else np.ascontiguousarray(array)


def aligned(array: Array | None, rank: int) -> Array | None:
    """Give the array `rank` axes, new ones in front."""
    return None if array is None else array[(np.newaxis,) * (rank - array.ndim)]


def matrices(first: Collection[str], *given: Array) -> list[Array]:
    """Return q, k and v, heads first, with contiguous last axes."""
    if any(x.ndim != 4 for x in given):
        q, k, v = (x.ndim for x in given)
        raise LibraryError(f"q, k and v have ranks {q}, {k} and {v}; allowed is 4.")
    return [turned(name in first, rows(x)) for name, x in zip("qkv", given, strict=True)]


def attended(first: Collection[str], q: Array, k: Array, v: Array) -> Array:
    """Return a place for the result [b h s e]."""
    b = max(x.shape[0] for x in (q, k, v)) if q.size and k.size else q.shape[0]
    return place(first, (b, *q.shape[1:3], v.shape[3]), q.dtype)


def place(first: Collection[str], lengths: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a place of these lengths for a result, whose tokens come first in memory where that is asked for."""
    b, h, s, e = lengths
    return turned("out" in first, np.empty((b, s, h, e) if "out" in first else lengths, dtype))


def turned(other: bool, x: Array) -> Array:
    """Return a view with heads first of what has tokens first, or the reverse; or the array as it is."""
    return x.swapaxes(1, 2) if other else x


def tokens_first(text: str, allowed: Collection[str] = ("q", "k", "v", "out")) -> Collection[str]:
    """Return the operands that attribute ``tokens_first`` names."""
    names = text.split()
    if not set(names) <= set(allowed):
        raise LibraryError(f"tokens_first is {text}; allowed are some of {' '.join(allowed)}.")
    return names


def _make_pool(executor: ThreadPoolExecutor, threads: int) -> _Pool:
    """Make a pool over Python threads: ctypes releases the interpreter lock while the library computes."""

    def run(_pool: int, total: int, task: Any, state: int) -> None:
        def share(first: int) -> None:
            for index in range(first, total, threads):
                task(state, index)

        list(executor.map(share, range(threads)))

    return _Pool(None, _Run(run), threads)


@contextmanager
def pool(threads: int) -> Iterator[Any]:
    """Give what a kernel runs its tasks on: None for the calling thread alone, or Python threads for one call."""
    if threads <= 1:
        yield None
        return
    with ThreadPoolExecutor(threads) as executor:
        yield ctypes.byref(_make_pool(executor, threads))
