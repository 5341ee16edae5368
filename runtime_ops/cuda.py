"""TopKAttention for torch tensors on CUDA, forward and backward, on the current stream; `torch_ops` calls it.

The kernels are in `libruntime_ops_cuda.so`; `GRAFT_CUDA_LIBRARY` names another file. torch is imported on first use.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_ops.abi import MAX_RANK, LibraryError, Tensor, TopKAttention
from runtime_ops.library import find_library, open_library
from runtime_ops.ops.remainder import NONE, REMAINDERS
from runtime_ops.ops.topk_attention import NO_KEY, ZERO

if TYPE_CHECKING:
    import torch

CUDA_ABI_VERSION = 3
OP, WIDEST = "TopKAttention", 256  # the operation that has CUDA kernels, and how wide its heads may be


class _Saved(ctypes.Structure):
    """`graft_topk_attention_saved`: kept scores and keys, contiguous [b h s k]."""

    _fields_ = [("scores", ctypes.c_void_p), ("keys", ctypes.c_void_p)]


class _Backward(ctypes.Structure):
    """`graft_topk_attention_backward`."""

    _fields_ = [
        ("forward", TopKAttention),
        ("saved", _Saved),
        *((name, Tensor) for name in ("d_out", "d_q", "d_k", "d_v")),
    ]


Scratch = Callable[[int], int]  # bytes to the address of that much scratch memory


def library_path() -> Path | None:
    """Return where the CUDA library lies, or None where this installation has none."""
    return find_library("GRAFT_CUDA_LIBRARY", "libruntime_ops_cuda.so")


def load() -> ctypes.CDLL:
    """Return the CUDA library, checked to be the one that belongs to this package."""
    path = library_path()
    if path is None:
        raise LibraryError(
            "No CUDA kernels: this installation has no libruntime_ops_cuda.so (build with GRAFT_CUDA=ON)."
        )
    return _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    library = open_library(path)
    found = library.graft_cuda_abi_version()
    if found != CUDA_ABI_VERSION:
        raise LibraryError(f"{path} has CUDA ABI version {found}, this package needs {CUDA_ABI_VERSION}.")
    for tail in ("", "_backward"):
        getattr(library, f"graft_cuda_topk_attention{tail}_workspace").restype = ctypes.c_int64
        getattr(library, f"graft_cuda_run_topk_attention{tail}").restype = ctypes.c_char_p
    library.graft_cuda_run_topk_attention_saving.restype = ctypes.c_char_p
    return library


def run_forward(library: ctypes.CDLL, args: TopKAttention, saved: _Saved | None, stream: int, scratch: Scratch) -> None:
    """Enqueue one forward pass; with `saved`, keep what the backward pass needs."""
    size = max(library.graft_cuda_topk_attention_workspace(ctypes.byref(args)), 0)
    tail = (ctypes.c_void_p(stream), ctypes.c_void_p(scratch(size)), ctypes.c_size_t(size))
    if saved is None:
        error = library.graft_cuda_run_topk_attention(ctypes.byref(args), *tail)
    else:
        error = library.graft_cuda_run_topk_attention_saving(ctypes.byref(args), ctypes.byref(saved), *tail)
    if error is not None:
        raise LibraryError(error.decode())


def run_backward(library: ctypes.CDLL, args: _Backward, stream: int, scratch: Scratch) -> None:
    """Enqueue one backward pass."""
    size = library.graft_cuda_topk_attention_backward_workspace(ctypes.byref(args))
    error = library.graft_cuda_run_topk_attention_backward(
        ctypes.byref(args), ctypes.c_void_p(stream), ctypes.c_void_p(scratch(size)), ctypes.c_size_t(size)
    )
    if error is not None:
        raise LibraryError(error.decode())


def trains(inputs: Sequence[torch.Tensor | None], attrs: Mapping[str, Any]) -> bool:
    """Return whether the CUDA library takes a call whose gradients are asked for."""
    return takes(inputs, attrs) and attrs["no_key"] == ZERO


def takes(inputs: Sequence[torch.Tensor | None], attrs: Mapping[str, Any]) -> bool:
    """Return whether the CUDA library is there and takes a call of q, k, v, bias, key_mask and past_length."""
    import torch

    q, k, v, bias, key_mask, _ = inputs
    if q is None or k is None or v is None or not q.is_cuda or library_path() is None:
        return False
    types, floats = (torch.float32, torch.float16, torch.bfloat16), [x for x in (q, k, v, bias) if x is not None]
    one_gpu = {x.device for x in (*floats, key_mask) if x is not None} == {q.device}
    if attrs["k"] and attrs["remainder"] != NONE:
        return False
    return one_gpu and all(x.dtype in types for x in floats) and max(q.shape[3], v.shape[3]) <= WIDEST


def forward(
    inputs: Sequence[torch.Tensor | None], attrs: Mapping[str, Any], keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return the result of TopKAttention and, with `keep`, the kept scores and keys [b h s k] for `backward`.

    The inputs are those of the operation, in its order, heads first; fp32, fp16 or bf16, accumulated in fp32. Only in
    memory the result may have tokens first.
    """
    settings = _settings(inputs, attrs)
    q, k, v, bias, key_mask, past = inputs
    rows = tuple(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    bias = None if bias is None else bias[(None,) * (4 - bias.ndim)]
    past = None if past is None or q is None else past.to(q.device).reshape(-1)
    return _forward((*rows, bias, key_mask, past), settings, attrs, keep and settings[0] > 0)


def backward(
    grad: torch.Tensor, saved: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor | None], attrs: Mapping[str, Any]
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of q, k and v from what a `forward` with k over 0 returned."""
    (q, k, v), (out, scores, keys) = inputs[:3], saved
    return _backward(q, k, v, out, scores, keys, _settings(inputs, attrs), grad)


def _settings(inputs: Sequence[torch.Tensor | None], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    q, k = inputs[:2]
    if q is None or k is None:
        raise LibraryError("q and k are not optional.")
    scale = q.shape[3] ** -0.5 if attrs["scale"] is None else attrs["scale"]
    no_key, remainder = NO_KEY.index(attrs["no_key"]), REMAINDERS.index(attrs["remainder"])
    return min(attrs["k"], k.shape[2]), scale, attrs["softcap"], attrs["causal"], no_key, attrs["window"], remainder


def _view(tensor: torch.Tensor | None) -> Tensor:
    """Return the tensor as the library sees it, without a copy; an absent one for None."""
    if tensor is None:
        return Tensor()
    import torch

    dtypes = {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.bfloat16: 16}
    if tensor.dtype not in dtypes:
        raise LibraryError(f"Element type {tensor.dtype} is not supported; allowed are {', '.join(map(str, dtypes))}.")
    _require_cuda(tensor)
    if tensor.ndim > MAX_RANK:
        raise LibraryError(f"Rank {tensor.ndim} is not supported; allowed are ranks up to {MAX_RANK}.")
    lengths = ctypes.c_int64 * MAX_RANK
    return Tensor(
        tensor.data_ptr(),
        dtypes[tensor.dtype],
        tensor.ndim,
        lengths(*tensor.shape),
        lengths(*tensor.stride()),
    )


def _require_cuda(tensor: torch.Tensor) -> None:
    if not tensor.is_cuda:
        raise LibraryError(f"A tensor lies on {tensor.device}; the CUDA kernels need all of them on one GPU.")


@contextmanager
def _stream(device: torch.device) -> Iterator[int]:
    """Give the device's current stream, with the device made current."""
    import torch

    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream


class _Scratch:
    """Scratch memory from torch's allocator, alive as long as this object."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: torch.Tensor | None = None

    def __call__(self, size: int) -> int:
        import torch

        self.memory = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.memory.data_ptr()


def _arguments(inputs: tuple[Any, ...], out: torch.Tensor, settings: tuple[Any, ...]) -> TopKAttention:
    return TopKAttention(*(_view(x) for x in inputs), _view(out), *settings)


def _forward(
    inputs: tuple[Any, ...], settings: tuple[Any, ...], attrs: Mapping[str, Any], keep: bool
) -> tuple[Any, Any, Any]:
    """Return the result and, where asked for, the kept scores and keys."""
    import torch

    from runtime_ops.torch_layout import place

    q, k, v = inputs[:3]
    if {x.ndim for x in (q, k, v)} != {4}:
        raise LibraryError(f"q, k and v have ranks {q.ndim}, {k.ndim} and {v.ndim}; allowed is 4.")
    b = max(q.shape[0], k.shape[0], v.shape[0]) if min(q.shape[0], k.shape[0], v.shape[0]) else 0
    out = place(q, (b, *q.shape[1:3], v.shape[3]), attrs)
    scores = keys = saved = None
    if keep:
        shape = (*out.shape[:3], settings[0])
        scores = torch.empty(shape, dtype=torch.float32, device=q.device)
        keys = torch.empty(shape, dtype=torch.int32, device=q.device)
        saved = _Saved(scores.data_ptr(), keys.data_ptr())
    with _stream(q.device) as stream:
        run_forward(load(), _arguments(inputs, out, settings), saved, stream, _Scratch(q.device))
    return out, scores, keys


def _backward(q: Any, k: Any, v: Any, out: Any, scores: Any, keys: Any, settings: Any, d_out: Any) -> tuple[Any, ...]:
    """Return d_q, d_k and d_v from the kept scores; one batch for all of them."""
    import torch

    b, d_out = out.shape[0], d_out if d_out.stride(-1) == 1 else d_out.contiguous()
    wide = [x.expand(b, -1, -1, -1) for x in (q, k, v)]
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in wide)
    args = _Backward(
        _arguments((*wide, None, None, None), out, settings), _Saved(scores.data_ptr(), keys.data_ptr()),
        *(_view(x) for x in (d_out, d_q, d_k, d_v)),
    )  # fmt: skip
    with _stream(q.device) as stream:
        run_backward(load(), args, stream, _Scratch(q.device))
    pairs = zip((d_q, d_k, d_v), (q, k, v), strict=True)
    return tuple(d if x.shape[0] == b else d.sum(0, keepdim=True) for d, x in pairs)
