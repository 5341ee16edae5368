"""What a bias says in words: which axes it spans, and whether it is a mask."""

from __future__ import annotations

from runtime_ops.words import Expr


def describe(bias: Expr | None) -> str:
    """Return a short text for tables, e.g. ``bias [b 1 1 t]``."""
    if bias is None:
        return "none"
    if bias.shape is None:
        return "bias"
    letters = ("b", "h", "s", "t")
    axes = ["1" if length == 1 else letter for letter, length in zip(letters, bias.shape, strict=True)]
    return f"{'mask' if bias.word == 'where' else 'bias'} [{' '.join(axes)}]"
