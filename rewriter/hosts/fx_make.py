"""READ for torch: what makes tensors of one value, of counts, of triangles, and of another type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rewriter.hosts import spelled
from rewriter.hosts.fx_row import Row, as_expr, as_type, many, numpy_type, vector
from runtime_ops.words import Expr, const, make

Type = torch.dtype | np.dtype[Any]


def type_of(dtype: Type | None) -> np.dtype[Any] | None:
    """Return a type that a graph names, or asks a tensor for, as numpy's."""
    return numpy_type(dtype) if isinstance(dtype, torch.dtype) else dtype


def _to(x: Any, *args: Any, dtype: Type | None = None, **options: Any) -> Expr:
    for given in args:
        if isinstance(given, (torch.dtype, np.dtype)):
            dtype = given
        elif isinstance(given, Expr):
            dtype = given.dtype
    to = type_of(dtype)
    return x if to is None else as_type(x, to)


def _cast(dtype: torch.dtype) -> Row:
    return lambda x, **options: _to(x, dtype)


def _full(size: Sequence[Any], fill_value: Any, *, dtype: Type | None = None, **options: Any) -> Expr:
    return make("expand", as_expr(_typed(fill_value, type_of(dtype))), vector(size))


def _typed(value: Any, dtype: np.dtype[Any] | None) -> Any:
    if isinstance(value, Expr):
        return value if dtype is None else as_type(value, dtype)
    return const(value, dtype)


def _filled(value: float) -> Row:
    def row(*size: Any, dtype: Type | None = None, **options: Any) -> Expr:
        return _full(many(size), value, dtype=dtype or torch.float32)

    return row


def _full_like(x: Expr, fill_value: Any, *, dtype: Type | None = None, **options: Any) -> Expr:
    return make("expand", _typed(fill_value, type_of(dtype) or x.dtype), make("dim", x))


def _filled_like(value: float) -> Row:
    return lambda x, dtype=None, **options: _full_like(x, value, dtype=dtype)


def _new_filled(value: float) -> Row:
    return lambda x, *size, dtype=None, **options: _full(many(size), value, dtype=type_of(dtype) or x.dtype)


def _new_full(x: Expr, size: Sequence[Any], fill_value: Any, *, dtype: Type | None = None, **options: Any) -> Expr:
    return _full(size, fill_value, dtype=type_of(dtype) or x.dtype)


def _scalar_tensor(value: Any, dtype: Type | None = None, **options: Any) -> Expr | None:
    return None if isinstance(value, (list, tuple)) else _typed(value, type_of(dtype))


def _arange(*bounds: Any, dtype: Type | None = None, step: Any = 1, **options: Any) -> Expr | None:
    start, end, step = (0, *bounds, step) if len(bounds) == 1 else (*bounds, step)[:3]
    parts = [as_expr(x) for x in (start, end, step)]
    if any(p.dtype is None or p.dtype.kind not in "iu" for p in parts):
        return None
    return _to(make("range", *parts), dtype)


def _triangle(lower: bool) -> Row:
    return lambda x, diagonal=0: spelled.triangle(x, as_expr(diagonal), lower)


_CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
          "bool": torch.bool, "int": torch.int32, "long": torch.int64}  # fmt: skip
_NUMBERS = {"zeros": 0, "ones": 1}
MADE: dict[str, Row] = {
    **dict.fromkeys(("to", "_to_copy", "type_as", "type"), _to),
    **{name: _cast(dtype) for name, dtype in _CASTS.items()},
    "full": _full,
    "full_like": _full_like,
    "new_full": _new_full,
    **{name: _filled(n) for name, n in _NUMBERS.items()},
    **{f"{name}_like": _filled_like(n) for name, n in _NUMBERS.items()},
    **{f"new_{name}": _new_filled(n) for name, n in _NUMBERS.items()},
    **dict.fromkeys(("scalar_tensor", "tensor"), _scalar_tensor),
    "arange": _arange,
    "tril": _triangle(lower=True),
    "triu": _triangle(lower=False),
}
