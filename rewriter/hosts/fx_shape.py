"""READ for torch: what only moves elements, by the name of the function, method or ATen operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rewriter.hosts.fx_row import Row, lengths, many, rank, vector
from rewriter.hosts.spelled_attention import repeated_each
from runtime_ops.words import Expr, const, make

_END = 2**63 - 1


def _view(x: Expr, *shape: Any) -> Expr | None:
    sizes = many(shape)
    if any(isinstance(item, torch.dtype) for item in sizes):
        return None  # other bits, not another shape
    view = make("reshape", x, vector(sizes), keep_zero=True)
    return x if view.shape is not None and view.shape == x.shape else view


def _flatten(x: Expr, start_dim: int = 0, end_dim: int = -1) -> Expr:
    n = rank(x)
    start, end = start_dim % n, end_dim % n
    have = lengths(x)
    return make("reshape", x, vector([*have[:start], -1, *have[end + 1 :]]), keep_zero=True)


def _unflatten(x: Expr, dim: int, sizes: Any) -> Expr:
    have = lengths(x)
    return make("reshape", x, vector([*have[: dim % len(have)], *sizes, *have[dim % len(have) + 1 :]]), keep_zero=True)


def _permute(x: Expr, *dims: Any) -> Expr:
    order = many(dims)
    return make("transpose", x, perm=tuple(d % len(order) for d in order))


def _transpose(x: Expr, dim0: int, dim1: int) -> Expr:
    order = list(range(rank(x)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return make("transpose", x, perm=tuple(order))


def _swapped(x: Expr) -> Expr:
    return _transpose(x, -1, -2) if rank(x) > 1 else x


def _unsqueeze(x: Expr, dim: int) -> Expr:
    return make("unsqueeze", x, axes=(dim % (rank(x) + 1),))


def _squeeze(x: Expr, dim: Any = None) -> Expr | None:
    if dim is None:
        return make("squeeze", x, axes=None)
    axes = [d % rank(x) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    gone = tuple(a for a in axes if x.shape is not None and x.shape[a] == 1)
    if any(not isinstance(x.shape[a], int) for a in axes if x.shape is not None):
        return None  # an axis that may have length 1 or not
    return make("squeeze", x, axes=gone) if gone else x


def _expand(x: Expr, *sizes: Any, implicit: bool = False) -> Expr:
    wanted = many(sizes)
    have = [1] * (len(wanted) - rank(x)) + lengths(x)
    kept = [h if isinstance(w, int) and w == -1 else w for w, h in zip(wanted, have, strict=True)]
    return expand(x, vector(kept))


def expand(x: Expr, sizes: Expr) -> Expr:
    """Return a tensor broadcast to lengths; as it is where it has them already."""
    wide = make("expand", x, sizes)
    return x if wide.shape is not None and wide.shape == x.shape else wide


def _repeat(x: Expr, *times: Any) -> Expr | None:
    """Read repeat as expand where it repeats axes of length 1 only."""
    counts, shape = many(times), x.shape or ()
    padded = [1] * (len(counts) - rank(x)) + list(shape)
    if any(length != 1 and not (isinstance(n, int) and n == 1) for length, n in zip(padded, counts, strict=True)):
        return None
    have = [1] * (len(counts) - rank(x)) + lengths(x)
    return make(
        "expand", x, vector([h if length != 1 else n for h, length, n in zip(have, padded, counts, strict=True)])
    )


def _repeat_interleave(x: Expr, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Expr | None:
    """Read repeats of every element along an axis, as grouped heads are written."""
    return None if dim is None or not isinstance(repeats, int) else repeated_each(x, repeats, dim % rank(x))


def _cat(tensors: Sequence[Expr], dim: int = 0) -> Expr:
    given = [t for t in tensors if t.shape != (0,)]
    return given[0] if len(given) == 1 else make("concat", *given, axis=dim % rank(given[0]))


def _stack(tensors: Sequence[Expr], dim: int = 0) -> Expr:
    axis = dim % (rank(tensors[0]) + 1)
    return make("concat", *(make("unsqueeze", t, axes=(axis,)) for t in tensors), axis=axis)


def _bounds(x: Expr, dim: int, start: Any, end: Any, step: int = 1) -> Expr:
    first, last = (vector([value]) for value in (start, end))
    return make("slice", x, first, last, const([dim % rank(x)]), const([step]))


def cut(x: Expr, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Expr:
    """Read a slice along one axis."""
    if (start is None or (isinstance(start, int) and start == 0)) and step == 1 and (end is None or _whole(end)):
        return x
    return _bounds(x, dim, 0 if start is None else start, _END if end is None else end, step)


def _whole(end: Any) -> bool:
    return isinstance(end, int) and end >= 2**31


def _narrow(x: Expr, dim: int, start: int, length: Any) -> Expr:
    return _bounds(x, dim, start, make("add", const(start), length) if isinstance(length, Expr) else start + length)


def _select(x: Expr, dim: int, index: Any) -> Expr:
    at = index if isinstance(index, Expr) else const(int(index))
    return make("gather", x, at, axis=dim % rank(x))


def _pieces(x: Expr, sizes: Sequence[int], dim: int) -> list[Expr]:
    ends = np.cumsum(sizes)
    return [_bounds(x, dim, int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]


def _split(x: Expr, split_size_or_sections: Any, dim: int = 0) -> list[Expr] | None:
    if isinstance(split_size_or_sections, (list, tuple)):
        return _pieces(x, list(split_size_or_sections), dim)
    whole = (x.shape or ())[dim]
    if not isinstance(whole, int):
        return None
    size = int(split_size_or_sections)
    return _pieces(x, [min(size, whole - at) for at in range(0, whole, size)], dim)


def _chunk(x: Expr, chunks: int, dim: int = 0) -> list[Expr] | None:
    whole = (x.shape or ())[dim]
    if isinstance(whole, int):
        return _split(x, -(-whole // chunks), dim)
    return None


def _unbind(x: Expr, dim: int = 0) -> list[Expr] | None:
    whole = (x.shape or ())[dim]
    return [_select(x, dim, i) for i in range(whole)] if isinstance(whole, int) else None


def _getitem(x: Any, index: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return x[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if any(i is Ellipsis for i in items):
        at = next(n for n, i in enumerate(items) if i is Ellipsis)
        missing = rank(x) - sum(i is not None and i is not Ellipsis for i in items)
        items[at : at + 1] = [slice(None)] * missing
    if sum(isinstance(i, Expr) and i.rank != 0 for i in items) > 1 or any(isinstance(i, (list, bool)) for i in items):
        return None
    axis = 0
    for item in items:
        x, axis = _indexed(x, item, axis)
    return x


def _indexed(x: Expr, item: Any, axis: int) -> tuple[Expr, int]:
    """Return a tensor with one index applied, and the axis that the next is for."""
    if item is None:
        return make("unsqueeze", x, axes=(axis,)), axis + 1
    if isinstance(item, slice):
        return cut(x, axis, item.start, item.stop, item.step or 1), axis + 1
    if isinstance(item, Expr):
        if item.dtype is None or item.dtype.kind == "b":
            raise ValueError("a mask picks a number of elements that depends on its values")
        return make("gather", x, item, axis=axis), axis + rank(item)
    return _select(x, axis, item), axis


def _index(x: Expr, indices: Sequence[Any]) -> Any:
    return _getitem(x, tuple(slice(None) if i is None else i for i in indices))


def _gather(x: Expr, dim: int, index: Expr, sparse_grad: bool = False) -> Expr | None:
    return make("pick", x, index) if dim in (-1, rank(x) - 1) else None


def _size(x: Expr, dim: int | None = None) -> Any:
    return lengths(x) if dim is None else lengths(x)[dim]


def _attribute(x: Any, name: str) -> Any:
    """Read what a traced graph asks a tensor for."""
    found: dict[str, Row] = {
        "shape": lengths, "ndim": rank, "T": lambda t: _permute(t, *reversed(range(rank(t)))), "mT": _swapped,
        "dtype": lambda t: t.dtype,
    }  # fmt: skip
    return found[name](x) if name in found and isinstance(x, Expr) else None


def _same(x: Expr, *rest: Any, **options: Any) -> Expr:
    return x


SHAPES: dict[str, Row] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy"), _view),
    "view_as": lambda x, other: make("reshape", x, make("dim", other), keep_zero=True),
    "reshape_as": lambda x, other: make("reshape", x, make("dim", other), keep_zero=True),
    "flatten": _flatten,
    "unflatten": _unflatten,
    **dict.fromkeys(("permute", "permute_copy"), _permute),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "transpose_copy"), _transpose),
    **dict.fromkeys(("t", "mT"), _swapped),
    "numpy_T": lambda x: _permute(x, *reversed(range(rank(x)))),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "broadcast_to", "expand_copy"), _expand),
    "expand_as": lambda x, other: expand(x, make("dim", other)),
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    **dict.fromkeys(("slice", "slice_copy"), cut),
    "narrow": _narrow,
    **dict.fromkeys(("select", "select_copy"), _select),
    **dict.fromkeys(("split", "split_with_sizes", "split_with_sizes_copy", "unsafe_split"), _split),
    **dict.fromkeys(("chunk", "unsafe_chunk"), _chunk),
    "unbind": _unbind,
    "getitem": _getitem,
    "index": _index,
    "index_select": lambda x, dim, index: make("gather", x, index, axis=dim % rank(x)),
    "gather": _gather,
    **dict.fromkeys(("size", "sym_size"), _size),
    **dict.fromkeys(("dim", "ndimension"), rank),
    "getattr": _attribute,
    **dict.fromkeys(("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift_fresh", "positive"), _same),
}
