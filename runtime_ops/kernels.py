"""The compiled kernels: ask the library what it offers, and run it on numpy arrays or in ONNX Runtime.

The library has no Python ABI: what is here speaks the plain C interface of `native/abi.h` through ctypes.
`GRAFT_ISA` caps the instruction set that kernels use.
"""

from __future__ import annotations

import ctypes
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from runtime_ops import abi
from runtime_ops.abi import Array, LibraryError
from runtime_ops.library import library_path, load
from runtime_ops.ops.remainder import REMAINDERS
from runtime_ops.ops.topk_attention import NO_KEY

__all__ = [
    "LibraryError", "kernels", "library_path", "load", "register", "run_combiner_attention",
    "run_expanded_attention", "run_segment_attention", "run_topk_attention", "run_topk_feed_forward", "session",
]  # fmt: skip


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
    window: int = 0,
    softcap: float = 0.0,
    no_key: str = "zero",
    remainder: str = "none",
    tokens_first: str = "",
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """softmax(scale q kT + bias) v over the `k_top` best keys of every row (0: over all of them).

    q [b h s d], k [b g t d], v [b g t e], bias right-aligned to [b h s t], key_mask bool [b t], past_length
    int64, a scalar or [b]. fp32, fp16 or bf16, accumulated in fp32. The other arguments: those of
    `ai.graft::TopKAttention`; `tokens_first` "q k v out" reads [b s h d] and writes [b s h e] without a copy, and so
    for any of them. `isa` forces a kernel; `threads` are Python threads, started for the call.
    """
    first = abi.tokens_first(tokens_first)
    q, k, v = abi.matrices(first, q, k, v)
    past = None if past_length is None else np.asarray(past_length, np.int64)
    out = abi.attended(first, q, k, v)
    inputs = (q, k, v, abi.aligned(bias, 4), key_mask, abi.aligned(past, 1))
    views = [abi.view(array) for array in (*inputs, out)]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    words = abi.number("no_key", no_key, NO_KEY), abi.number("remainder", remainder, REMAINDERS)
    args = abi.TopKAttention(*views, k_top, factor, softcap, causal, words[0], window, words[1])
    _run("topk_attention", args, isa, threads)
    return abi.turned("out" in first, out)


def run_segment_attention(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    bias: Array | None = None,
    key_mask: Array | None = None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    tokens_first: str = "",
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """softmax(scale q kT + bias) v, every token over the tokens of its own segment.

    q [b h t d], k [b g t d], v [b g t e], segments int64 [b t], bias right-aligned to [b h t t], key_mask bool
    [b t]; otherwise as `run_topk_attention`.
    """
    first = abi.tokens_first(tokens_first)
    q, k, v = abi.matrices(first, q, k, v)
    out = abi.attended(first, q, k, v)
    views = [abi.view(array) for array in (q, k, v, segments, abi.aligned(bias, 4), key_mask, out)]
    args = abi.SegmentAttention(*views, q.shape[3] ** -0.5 if scale is None else scale, softcap)
    _run("segment_attention", args, isa, threads)
    return abi.turned("out" in first, out)


def run_topk_feed_forward(
    x: Array,
    w_in: Array,
    w_out: Array,
    b_in: Array | None = None,
    b_out: Array | None = None,
    w_gate: Array | None = None,
    b_gate: Array | None = None,
    *,
    k_top: int = 0,
    activation: str = "relu",
    select_by: str = "preactivation",
    chunk: int = 0,
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """Feed-forward block over the `k_top` best neurons of every token (0: over all of them).

    x [… m]; w_in and w_gate [f m], w_out [f e], one row per neuron; b_in and b_gate [f], b_out [e]. fp32, fp16 or
    bf16, all alike, accumulated in fp32. Activations and selections: those of `ai.graft::TopKFeedForward`. `isa`
    forces a kernel; `threads` are Python threads, started for the call.
    """
    if x.ndim < 1 or w_in.ndim != 2:
        raise LibraryError(f"x and w_in have ranks {x.ndim} and {w_in.ndim}; allowed are 1 or more and 2.")
    flat = abi.rows(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    out = np.empty((flat.shape[0], w_out.shape[-1]), x.dtype)
    given = (flat, *(None if w is None else abi.rows(w) for w in (w_in, w_out, b_in, b_out, w_gate, b_gate)), out)
    views = [abi.view(array) for array in given]
    args = abi.TopKFeedForward(*views, k_top, chunk, activation.encode(), select_by.encode())
    _run("topk_feed_forward", args, isa, threads)
    return out.reshape(*x.shape[:-1], w_out.shape[-1])


def run_combiner_attention(
    q: Array,
    k: Array,
    v: Array,
    key_mask: Array | None = None,
    *,
    variant: str = "fixed",
    span: int = 0,
    pooling: str = "max",
    region_logit: str = "paper",
    causal: bool = False,
    no_key: str = "zero",
    scale: float | None = None,
    tokens_first: str = "",
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """Attention that reads near keys themselves and all others through summaries of regions.

    q [b h t d], k [b g t d], v [b g t e], key_mask bool [b t]. fp32, fp16 or bf16, all alike, accumulated in fp32.
    The other arguments: those of `ai.graft::CombinerAttention`. `isa` forces a kernel; `threads` are Python
    threads, started for the call.
    """
    first = abi.tokens_first(tokens_first)
    q, k, v = abi.matrices(first, q, k, v)
    b = next((x.shape[0] for x in (q, k, v) if x.shape[0] != 1), 1)
    out = abi.place(first, (b, *q.shape[1:3], v.shape[3]), q.dtype)
    views = [abi.view(array) for array in (q, k, v, key_mask, out)]
    unseeing = abi.number("no_key", no_key, NO_KEY)
    words = [word.encode() for word in (variant, pooling, region_logit)]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    _run("combiner_attention", abi.CombinerAttention(*views, *words, span, factor, causal, unseeing), isa, threads)
    return abi.turned("out" in first, out)


def run_expanded_attention(
    q: Array,
    memory: Array,
    w_k: Array,
    w_v: Array,
    b_v: Array | None = None,
    bias: Array | None = None,
    key_mask: Array | None = None,
    past_length: Array | None = None,
    beam_index: Array | None = None,
    *,
    k_top: int = 0,
    scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    window: int = 0,
    no_key: str = "zero",
    tokens_first: str = "",
    isa: str | None = None,
    threads: int = 1,
) -> Array:
    """Attention to a memory whose keys and values are never made: queries go through `w_k`, results through `w_v`.

    q [n h s d], memory [b t m], w_k [g d m], w_v [g e m], b_v [g e], bias right-aligned to [n h s t], key_mask bool
    [b t], past_length int64 [b], beam_index int64 [n]; otherwise as `run_topk_attention`.
    """
    if (q.ndim, w_v.ndim) != (4, 3):
        raise LibraryError(f"q and w_v have ranks {q.ndim} and {w_v.ndim}; allowed are 4 and 3.")
    first = abi.tokens_first(tokens_first, ("q", "out"))
    q = abi.turned("q" in first, q)
    out = abi.place(first, (*q.shape[:3], w_v.shape[1]), q.dtype)
    given = [*map(abi.rows, (q, memory, w_k, w_v)), b_v, abi.aligned(bias, 4), key_mask]
    views = [abi.view(x) for x in (*given, abi.aligned(past_length, 1), beam_index, out)]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    args = abi.ExpandedAttention(*views, k_top, factor, softcap, causal, abi.number("no_key", no_key, NO_KEY), window)
    _run("expanded_attention", args, isa, threads)
    return abi.turned("out" in first, out)


def _run(op: str, args: ctypes.Structure, isa: str | None, threads: int) -> None:
    run = getattr(load(), f"graft_run_{op}")
    run.restype = ctypes.c_char_p
    with abi.pool(threads) as pool:
        error = run(ctypes.byref(args), None if isa is None else isa.encode(), pool)
    if error is not None:
        raise LibraryError(error.decode())


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
