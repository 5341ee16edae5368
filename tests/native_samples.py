"""Write the kernel tests' samples to a file that runtime_ops/native/check_samples.cc reads, results in fp64 included.

For processors that have no Python at hand: native/aarch64.sh runs the file under an emulator.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from plain_feed_forward import feed_forward
from test_expanded import WIDE
from test_feed_forward_kernels import CALLS, Call, split
from test_kernels import DTYPES, HARD, SAMPLES, Sample, attention, rounded, visible
from test_ops import allowed, present

from runtime_ops import abi, spec
from runtime_ops.ops import OPS
from runtime_ops.ops.remainder import REMAINDERS
from runtime_ops.ops.topk_attention import NO_KEY

Array = np.ndarray[Any, np.dtype[Any]]
EXPANDED, FEED_FORWARD = OPS["ExpandedAttention"], OPS["TopKFeedForward"]


def write_tensor(file: BinaryIO, x: Array | None) -> None:
    """Element type (0 where absent), rank, lengths, size in bytes, elements."""
    if x is None:
        file.write(struct.pack("<i", 0))
        return
    data = np.ascontiguousarray(x).tobytes()
    file.write(struct.pack(f"<ii{x.ndim}qq", abi.DTYPES[x.dtype], x.ndim, *x.shape, len(data)) + data)


def aligned(x: Any, rank: int, dtype: Any = None) -> Array | None:
    """The array with `rank` axes, new ones in front."""
    if x is None:
        return None
    array = np.asarray(x, dtype)
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def allowed_error(sample: Sample, golden: Array, dtype: Any, share: float) -> float:
    """Twice the error of plain fp32 numpy, a unit in the last place of the largest value, and a share of the result."""
    plain = attention(sample, np.float32)[0].astype(dtype).astype(np.float64)
    unit = float(np.finfo(np.float32).eps) * np.abs(sample["v"].astype(np.float64)).max(initial=0)
    return float(2 * np.abs(plain - golden).max(initial=0) + 1.01 * unit + share * np.abs(golden).max(initial=0))


def write_text(file: BinaryIO, text: str) -> None:
    """Size in bytes, and the bytes."""
    file.write(struct.pack("<i", len(text.encode())) + text.encode())


def write_call(file: BinaryIO, op: str, name: str, golden: Array, error: float, inputs: Sequence[Array | None]) -> None:
    """What records of all operations begin with, as read_sample in check_samples.cc reads it; `error` is allowed."""
    write_text(file, op)
    write_text(file, name)
    file.write(struct.pack("<d", error))
    write_tensor(file, golden.astype(np.float32))
    file.write(struct.pack("<i", len(inputs)))
    for tensor in inputs:
        write_tensor(file, tensor)


def write_choosing(file: BinaryIO, attrs: Mapping[str, Any], width: int) -> None:
    """Which keys a row attends to, and how, as read_choosing in check_samples.cc reads it."""
    scale = attrs.get("scale")
    file.write(struct.pack("<qq", attrs.get("k_top", 0), attrs.get("window", 0)))
    file.write(struct.pack("<ff", width**-0.5 if scale is None else scale, attrs.get("softcap", 0.0)))
    file.write(struct.pack("<ii", attrs.get("causal", 0), NO_KEY.index(attrs.get("no_key", "zero"))))


def write_attention(file: BinaryIO, name: str, sample: Sample, share: float = 0.0) -> None:
    """One record, as read_attention in check_samples.cc reads on."""
    golden = attention(sample, np.float64)[0]
    masks = (aligned(sample.get("bias"), 4), sample.get("key_mask"), aligned(sample.get("past_length"), 1, np.int64))
    error = allowed_error(sample, golden, sample["q"].dtype, share)
    write_call(file, "TopKAttention", name, golden, error, [*(sample[x] for x in "qkv"), *masks])
    write_choosing(file, sample, sample["q"].shape[3])
    file.write(struct.pack("<i", REMAINDERS.index(sample.get("remainder", "none"))))


def write_expanded(file: BinaryIO, name: str, sample: spec.Sample, kind: Any) -> None:
    """One record, as read_expanded in check_samples.cc reads on."""
    arrays = present(sample, kind)
    golden = EXPANDED.golden(arrays, sample.attrs)
    error = allowed(EXPANDED, golden, arrays, sample.attrs)
    given = {**arrays, "bias": aligned(arrays.get("bias"), 4)}
    write_call(file, EXPANDED.name, name, golden, error, [given.get(x.name) for x in EXPANDED.inputs])
    write_choosing(file, {"k_top": sample.attrs.get("k", 0), **sample.attrs}, arrays["q"].shape[3])


def write_feed_forward(file: BinaryIO, name: str, call: Call, kind: Any) -> None:
    """One record, as read_feed_forward in check_samples.cc reads on."""
    arrays, attrs = split(call)
    arrays = {n: a.astype(kind) for n, a in arrays.items()}
    golden = feed_forward(arrays, attrs)
    error = allowed(FEED_FORWARD, golden, arrays, attrs)
    write_call(file, FEED_FORWARD.name, name, golden, error, [arrays.get(x.name) for x in FEED_FORWARD.inputs])
    file.write(struct.pack("<qq", attrs.get("k", 0), attrs.get("chunk", 0)))
    write_text(file, attrs.get("activation", "relu"))
    write_text(file, attrs.get("select_by", "preactivation"))


def clear(sample: Sample) -> bool:
    """Whether fp32 and fp64 must select the same keys in every row."""
    q, k = sample["q"].astype(np.float64), sample["k"].astype(np.float64)
    scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    scores = np.where(visible(sample, scores.shape), scores, -np.inf)
    around = np.partition(scores, (-sample["k_top"] - 1, -sample["k_top"]), -1)
    low, high = around[..., -sample["k_top"] - 1], around[..., -sample["k_top"]]
    return bool(((high - low > 1e-6 * np.abs(high).max()) | (high == low)).all())


def main() -> None:
    """Write all samples in all element types, and those hard ones whose selection no rounding changes."""
    samples = [(f"{n} ({d})", rounded(s, DTYPES[d]), 0.0) for n, s in SAMPLES.items() for d in DTYPES]
    hard = [(f"{name}, k={k}", sample | {"k_top": k}, 1e-5) for name, sample in HARD.items() for k in (1, 64)]
    samples += [record for record in hard if record[1]["k"].shape[2] < 10000 and clear(record[1])]
    expanded = [(f"{s.id} ({d})", s, kind) for s in (*EXPANDED.samples(), *WIDE) for d, kind in DTYPES.items()]
    calls = [(f"{n} ({d})", call, kind) for n, call in CALLS.items() for d, kind in DTYPES.items()]
    with Path(sys.argv[1]).open("wb") as file:
        file.write(struct.pack("<i", len(samples) + len(expanded) + len(calls)))
        for name, sample, share in samples:
            write_attention(file, name, sample, share)
        for name, queries, kind in expanded:
            write_expanded(file, name, queries, kind)
        for name, call, kind in calls:
            write_feed_forward(file, name, call, kind)


if __name__ == "__main__":
    main()
