"""What every row of the ONNX READ tables is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime_ops.words import Expr

Args = Sequence["Expr | None"]
Row = Callable[[ir.Node, Args, int], "Expr | Sequence[Expr] | None"]


def attr(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, or ``default`` if it is absent."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def numpy_type(kind: ir.DataType | None) -> np.dtype[Any] | None:
    """Return the numpy type of an ONNX element type, None if there is none."""
    if kind is None or kind in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return np.dtype(kind.numpy())
