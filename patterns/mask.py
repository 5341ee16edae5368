"""What a mask says: proved causal from its own subgraph, or described by the axes that it spans."""

from __future__ import annotations

import numpy as np

from rewriter import layout
from runtime_ops.words import Expr


def describe(bias: Expr | None, causal: int | None) -> str:
    """Return a short text for tables, e.g. ``causal, bias [b 1 1 t]``."""
    said = [] if causal is None else ["causal" if causal == 0 else f"causal, {causal} ahead"]
    if bias is not None:
        said.append(f"{'mask' if bias.word == 'where' else 'bias'}{_axes(bias)}")
    return ", ".join(said) or "none"


def _axes(bias: Expr) -> str:
    if bias.shape is None:
        return ""
    axes = ["1" if length == 1 else letter for letter, length in zip("bhst", bias.shape, strict=True)]
    return f" [{' '.join(axes)}]"


def causal_offset(keep: Expr, axes: layout.Axes) -> int | None:
    """Return c if ``keep`` is proved to say "key j is visible to query i if j <= i + c" at every length, else None.

    Args:
        keep: true where a key is visible.
        axes: the layout of the scores that it broadcasts against.
    """
    if keep.word == "not" and keep.args[0].word in ("le", "lt"):
        less = keep.args[0]  # not (x < y) is y <= x
        first, second, strict = less.args[1], less.args[0], less.word == "le"
    elif keep.word in ("le", "lt"):
        first, second, strict = *keep.args, keep.word == "lt"
    else:
        return _folded_offset(keep, axes)
    j, i = _position(first, axes), _position(second, axes)
    if j is None or i is None or (j[0], i[0]) != ("t", "s"):
        return None
    return i[1] - j[1] - int(strict)


def _position(expr: Expr, axes: layout.Axes) -> tuple[str, int] | None:
    """Return (axis, c) if a tensor counts 0, 1, 2, … along one axis of the scores, plus c."""
    have, offset = layout.aligned(expr, axes), 0
    while have is not None:
        inner = layout.back(expr, have)
        if inner is not None:
            expr, have = inner
        elif expr.word == "cast":
            expr = expr.args[0]
        elif expr.word in ("add", "sub") and expr.args[1].number() is not None:
            offset += int(expr.args[1].number() or 0) * (1 if expr.word == "add" else -1)
            expr = expr.args[0]
        else:
            break
    if have is None or expr.word != "range" or len(have) != 1 or len(have[0]) != 1:
        return None
    start, step = expr.args[0].number(), expr.args[2].number()
    return (have[0][0].letter, offset + int(start)) if start is not None and step == 1 else None


def _folded_offset(keep: Expr, axes: layout.Axes) -> int | None:
    """Read a mask that was folded to a constant; the scores then have that fixed length, so the proof holds."""
    have = layout.aligned(keep, axes)
    if keep.known is None or keep.known.dtype != bool or have is None or [a[0].letter for a in have if a] != ["s", "t"]:
        return None
    s, t = keep.known.shape[-2:]
    square = keep.known.reshape(s, t)
    return next((c for c in (0, t - s) if c >= 0 and np.array_equal(square, np.tri(s, t, c, dtype=bool))), None)


def fill_number(expr: Expr) -> float | None:
    """Return the one number that a fill consists of."""
    while expr.word in ("expand", "reshape", "unsqueeze") and expr.number() is None:
        expr = expr.args[0]
    if expr.known is not None and expr.known.dtype != object and expr.known.size > 1:
        return float(expr.known.flat[0]) if (expr.known == expr.known.flat[0]).all() else None
    return expr.number()
