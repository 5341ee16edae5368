"""The alphabet: the closed table of words in which ops are described, graphs are read and rewrites are written.

An :class:`Expr` is one word applied to other expressions. It knows its shape (symbolic), its element type and,
for small tensors, its value, all worked out when it is made; so run-time shape arithmetic of exporters folds away
as it is read. Interpreters: ``interpret`` (numpy), ``to_onnx`` (function bodies and edits); hosts read into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime_ops import interpret, shapes
from runtime_ops.dims import Dim, Sym

# A word's row: how many expressions it takes (None: any number) and the attributes it carries.
WORDS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    # tensors
    "input": (0, ("name",)),
    "const": (0, ()),
    "opaque": (None, ("op",)),
    # shape
    "reshape": (2, ("keep_zero",)),
    "transpose": (1, ("perm",)),
    "expand": (2, ()),
    "unsqueeze": (1, ("axes",)),
    "squeeze": (1, ("axes",)),
    "concat": (None, ("axis",)),
    "slice": (5, ()),
    "gather": (2, ("axis",)),
    "dim": (1, ("start", "end")),
    # arithmetic
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "max", "min", "lt", "le", "eq", "and", "or"), (2, ())),
    **dict.fromkeys(("neg", "exp", "log", "sqrt", "tanh", "erf", "not", "floor"), (1, ())),
    "where": (3, ()),
    # reductions and selection
    **dict.fromkeys(("sum", "mean", "amax"), (1, ("axes", "keepdims"))),
    "topk": (2, ()),
    "pick": (2, ()),
    "scatter": (3, ()),
    # linear, types, counting
    "matmul": (2, ()),
    "cast": (1, ("to",)),
    "range": (3, ()),
    # derived: each is also defined in the words above (see ``interpret``)
    "softmax": (1, ("axis",)),
    "sigmoid": (1, ()),
    "relu": (1, ()),
    # one of our operations (see ``spec.OpSpec.call``)
    "call": (None, ("spec", "names", "values")),
}

_FOLD_LIMIT = 1024  # elements; larger constants are never folded into new ones


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Expr:
    """One word of the alphabet applied to ``args``.

    Attributes:
        word: a key of ``WORDS``.
        args: the expressions it is applied to.
        attrs: the word's attributes.
        shape: lengths of its axes, None if even the rank is unknown.
        dtype: numpy element type, None if unknown.
        known: its value if small and known when made; lengths in it may be symbolic (dtype object).
        handle: the host's value that this was read from, None for expressions that are made.
    """

    word: str
    args: tuple[Expr, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[Dim, ...] | None = None
    dtype: np.dtype[Any] | None = None
    known: np.ndarray | None = None
    handle: Any = None

    def __repr__(self) -> str:
        # one level only: expressions share arguments, and written out in full they grow exponentially with their depth
        args = ", ".join(a.word for a in self.args)
        return f"<{self.word}({args}) {self.dtype} {self.shape}>"

    @property
    def rank(self) -> int | None:
        """Number of axes, None if unknown."""
        return None if self.shape is None else len(self.shape)

    def number(self) -> float | None:
        """Return the value if this is a known tensor of one element, else None."""
        if self.known is None or self.known.size != 1 or isinstance(self.known.flat[0], Sym):
            return None
        return float(self.known.flat[0])


def make(word: str, *args: Expr, handle: Any = None, **attrs: Any) -> Expr:
    """Return ``word`` applied to ``args``, with shape, type and (where small and known) value worked out."""
    arity, names = WORDS[word]
    if (arity is not None and len(args) != arity) or not set(attrs) <= set(names):
        raise ValueError(f"{word} takes {arity} arguments and {names}, got {len(args)} and {set(attrs)}")
    known = _fold(word, args, attrs)
    if known is None:
        shape, dtype = shapes.infer(word, args, attrs)
        return Expr(word, args, attrs, shape, dtype, None, handle)
    if known.dtype == object:  # symbolic lengths: known, but still to be computed when the graph runs
        return Expr(word, args, attrs, known.shape, shapes.infer(word, args, attrs)[1], known, handle)
    return Expr("const", (), {}, known.shape, known.dtype, known, handle)


def _fold(word: str, args: Sequence[Expr], attrs: dict[str, Any]) -> np.ndarray | None:
    if word == "dim":
        return _fold_dim(args[0], attrs)
    values = [a.known for a in args if a.known is not None]
    if word in ("input", "opaque", "const", "call") or len(values) != len(args):
        return None
    try:
        value = interpret.EVAL[word](values, attrs)
    except (TypeError, ValueError, ArithmeticError, IndexError):
        return None  # symbolic lengths that this word cannot carry
    return tidy(np.asarray(value)) if np.size(value) <= _FOLD_LIMIT else None


def _fold_dim(x: Expr, attrs: dict[str, Any]) -> np.ndarray | None:
    if x.shape is None:
        return None
    dims = x.shape[slice(attrs.get("start", 0), attrs.get("end"))]
    value = np.empty(len(dims), dtype=object)
    value[:] = dims
    return tidy(value)


def tidy(value: np.ndarray) -> np.ndarray:
    """Return integers instead of objects where no symbolic length is left."""
    if value.dtype != object or any(isinstance(item, Sym) for item in value.flat):
        return value
    kind = bool if value.size and all(isinstance(item, (bool, np.bool_)) for item in value.flat) else np.int64
    return value.astype(kind)


def symbol(name: str, shape: Sequence[Dim] | None, dtype: Any, handle: Any = None) -> Expr:
    """Return an input called ``name``."""
    dims = None if shape is None else tuple(shape)
    return Expr("input", (), {"name": name}, dims, None if dtype is None else np.dtype(dtype), None, handle)


def const(value: Any, dtype: Any = None, handle: Any = None) -> Expr:
    """Return a small constant; integers become int64 and floats float32 unless ``dtype`` says otherwise."""
    array = np.asarray(value)
    default = {"i": np.int64, "f": np.float32}.get(array.dtype.kind, array.dtype)
    array = array.astype(dtype or default)
    return Expr("const", (), {}, array.shape, array.dtype, array, handle)


def reshape(x: Expr, dims: Sequence[int | Expr]) -> Expr:
    """Return ``x`` with the given lengths, each a number (-1: the rest) or a 1-element integer expression."""
    parts = [d if isinstance(d, Expr) else const([int(d)]) for d in dims]
    return make("reshape", x, make("concat", *parts, axis=0), keep_zero=True)


def dim(x: Expr, axis: int) -> Expr:
    """Return the length of one axis as an int64 tensor of one element."""
    return make("dim", x, start=axis, end=axis + 1)
