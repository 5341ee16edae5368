"""How large the numbers of a tensor can be, proved from what it is made of: stored numbers and lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime_ops import interpret
from runtime_ops.words import Expr

_LENGTH = 2.0**31  # nothing is longer
_VIEWS = ("reshape", "transpose", "expand", "unsqueeze", "squeeze", "slice", "gather", "neg", "cast", "relu", "amax")


def bound(expr: Expr) -> float:
    """Return a number that no element's size exceeds, infinity where nothing is proved."""
    if expr.word == "const":
        values = interpret.constant(expr)
        return float(np.abs(values.astype(np.float64)).max(initial=0.0)) if values is not None else np.inf
    if expr.word in ("dim", "range") or (expr.known is not None and expr.dtype == np.dtype(np.int64)):
        return _LENGTH
    if expr.word in ("tanh", "sigmoid", "softmax"):
        return 1.0
    if expr.word in _VIEWS:
        return bound(expr.args[0])
    combine = _COMBINED.get(expr.word)
    if combine is None:
        return np.inf
    with np.errstate(invalid="ignore"):
        found = combine([bound(arg) for arg in (expr.args[1:] if expr.word == "where" else expr.args)])
    return np.inf if np.isnan(found) else found


_COMBINED: dict[str, Callable[[list[float]], float]] = {
    "add": sum,
    "sub": sum,
    "mul": lambda sizes: sizes[0] * sizes[1],
    **dict.fromkeys(("where", "max", "min", "concat"), max),
}
