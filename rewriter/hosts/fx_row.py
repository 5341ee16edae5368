"""What every row of the fx READ tables is made of: values of torch as expressions of the alphabet.

A value in a traced graph is a tensor, a number, or a list of these. Tensors and numbers that the graph computes are
expressions (numbers of rank 0); what is written into the graph stays a Python value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from runtime_ops import to_torch
from runtime_ops.dims import Dim
from runtime_ops.words import Expr, const, dim, make, tidy

Row = Callable[..., Any]


def numpy_type(dtype: torch.dtype) -> np.dtype[Any] | None:
    """Return the numpy type of a torch type, None if there is none."""
    try:
        return to_torch.numpy_dtype(dtype)
    except TypeError:
        return None


@dataclass(frozen=True)
class Weight:
    """The handle of a parameter, buffer or constant of a module.

    Attributes:
        name: its path in the module, or the name of the input that stands for it.
        tensor: its value.
        node: the node that fetches it, None if only a module inside the graph holds it.
    """

    name: str
    tensor: torch.Tensor = field(compare=False, repr=False)
    node: torch.fx.Node | None = field(compare=False, default=None, repr=False)

    @cached_property
    def const_value(self) -> Weight:
        """Itself: where the interpreter of the alphabet looks for the value of a large constant."""
        return self

    def numpy(self) -> np.ndarray:
        """Return its value."""
        return np.array(to_torch.array(self.tensor.detach().cpu()))


def scalar(value: Dim) -> Expr:
    """Return a length as a known number of rank 0."""
    known = np.empty((), dtype=object)
    known[()] = value
    known = tidy(known)
    return Expr("opaque", (), {"op": "length"}, (), np.dtype(np.int64), known)


def as_expr(value: Any, like: Expr | None = None) -> Expr:
    """Return an expression as it is, and a number as a constant of the type that torch gives it beside ``like``."""
    if isinstance(value, Expr):
        return value
    kind = None if like is None or like.dtype is None else like.dtype
    if isinstance(value, float) and (kind is None or kind.kind in "iub"):
        return const(value, np.float32)
    if isinstance(value, int) and not isinstance(value, bool) and kind is not None and kind.kind == "b":
        return const(value)
    return const(value, kind)


def pair(x: Any, y: Any) -> tuple[Expr, Expr]:
    """Return both sides of an operation in the type that torch computes it in."""
    if not isinstance(x, Expr) and not isinstance(y, Expr):
        floating = isinstance(x, float) or isinstance(y, float)
        return as_expr(float(x) if floating else x), as_expr(float(y) if floating else y)
    if not isinstance(x, Expr):
        return as_expr(x, y), y
    if not isinstance(y, Expr):
        x = as_type(x, np.dtype(np.float32)) if isinstance(y, float) and _kind(x) in "iub" else x
        return x, as_expr(y, x)
    if x.dtype is None or y.dtype is None or x.dtype == y.dtype:
        return x, y
    want = numpy_type(torch.result_type(*(_example(e) for e in (x, y))))
    return (as_type(x, want), as_type(y, want)) if want is not None else (x, y)


def _kind(x: Expr) -> str:
    return x.dtype.kind if x.dtype is not None else "?"


def _example(x: Expr) -> Any:
    """Return something that takes part in torch's type promotion as ``x`` does."""
    assert x.dtype is not None  # ``pair`` looked
    if x.rank == 0 and x.dtype.name in ("int64", "float64"):  # numbers of Python
        return 1 if x.dtype.kind == "i" else 1.0
    return torch.empty(() if x.rank == 0 else (1,), dtype=to_torch.dtype(x.dtype))


def as_type(x: Expr, to: np.dtype[Any]) -> Expr:
    """Return a tensor in another type."""
    return x if x.dtype == to else make("cast", x, to=to)


def vector(items: Sequence[Any]) -> Expr:
    """Return lengths, each a number or an expression, as one integer tensor."""
    parts = [make("reshape", i, const([1])) if isinstance(i, Expr) else const([int(i)]) for i in items]
    return make("concat", *parts, axis=0) if parts else const(np.zeros(0, np.int64))


def lengths(x: Expr) -> list[Expr]:
    """Return the lengths of a tensor's axes, each as a number of rank 0.

    Raises:
        ValueError: the rank is unknown.
    """
    return [make("squeeze", dim(x, i), axes=(0,)) for i in range(rank(x))]


def rank(x: Expr) -> int:
    """Return the rank of a tensor.

    Raises:
        ValueError: it is unknown.
    """
    if x.shape is None:
        raise ValueError("the rank is unknown")
    return len(x.shape)


def many(items: Sequence[Any]) -> list[Any]:
    """Return lengths that were given one by one or as one list."""
    return list(items[0]) if len(items) == 1 and isinstance(items[0], (list, tuple)) else list(items)
