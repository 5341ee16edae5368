"""Shape and type of every word of the alphabet, over symbolic lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_ops.dims import Dim, Sym, divide, product, vague

if TYPE_CHECKING:
    from runtime_ops.words import Expr

Shape = tuple[Dim, ...]
Rule = Callable[[Sequence["Expr"], Mapping[str, Any]], "Shape | None"]


def infer(word: str, args: Sequence[Expr], attrs: Mapping[str, Any]) -> tuple[Shape | None, np.dtype[Any] | None]:
    """Return shape (None if the rank is unknown) and element type (None if unknown) of a word."""
    return SHAPE[word](args, attrs), _dtype(word, args, attrs)


def _dtype(word: str, args: Sequence[Expr], attrs: Mapping[str, Any]) -> np.dtype[Any] | None:
    if word in ("lt", "le", "eq", "and", "or", "not"):
        return np.dtype(bool)
    if word in ("dim", "topk"):
        return np.dtype(np.int64)
    if word == "cast":
        to: np.dtype[Any] = np.dtype(attrs["to"])
        return to
    if word == "where":
        return args[1].dtype or args[2].dtype
    if word in _FIRST_DECIDES:  # the others are lengths, bounds and indices
        return args[0].dtype
    return next((a.dtype for a in args if a.dtype is not None), None) if args else None


_FIRST_DECIDES = ("reshape", "expand", "slice", "gather", "pick", "scatter", "pow")


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """Return the length of two axes after broadcasting."""
    if b in (a, 1):
        return a
    if a == 1 or isinstance(b, int):
        return b
    if isinstance(a, int):
        return a
    if vague(a) or vague(b):  # they are taken to be equal, as exporters write them
        return b if vague(a) and not vague(b) else a
    first, second = sorted((str(a), str(b)))
    return Sym.named(f"max({first},{second})")


def broadcast(*shapes: Shape, join: Callable[[Dim, Dim], Dim] = broadcast_dim) -> Shape:
    """Return the shape of tensors after broadcasting, right-aligned; ``join`` gives the length of two axes."""
    rank = max(len(s) for s in shapes)
    out: list[Dim] = [1] * rank
    for shape in shapes:
        for i, length in enumerate(shape, rank - len(shape)):
            out[i] = join(out[i], length)
    return tuple(out)


def _elementwise(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    shapes = [a.shape for a in args]
    return None if any(s is None for s in shapes) else broadcast(*[s for s in shapes if s is not None])


def _dims_of(shape: Expr) -> list[Dim] | None:
    """Return the lengths that a shape tensor holds, numbers as Python's own."""
    if shape.known is None:
        return None
    return [int(d) if isinstance(d, np.integer) else d for d in shape.known.reshape(-1)]


def _fresh(expr: Expr, count: int) -> Shape:
    return tuple(Sym.named(f"?{id(expr):x}.{i}") for i in range(count))


def _unknown_dims(shape: Expr) -> Shape | None:
    """Return new symbols where only the number of lengths is known."""
    count = shape.shape[0] if shape.shape else None
    return _fresh(shape, count) if isinstance(count, int) else None


def _reshape(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x, dims = args[0], _dims_of(args[1])
    if dims is None:
        return _partly_known(args[1]) or _unknown_dims(args[1])
    if not attrs.get("keep_zero"):
        dims = [_at(x, i) if isinstance(d, (int, np.integer)) and d == 0 else d for i, d in enumerate(dims)]
    dims = [int(d) if isinstance(d, (int, np.integer)) else d for d in dims]
    if -1 in dims:
        rest = product(d for d in dims if not (isinstance(d, int) and d == -1))
        whole = None if x.shape is None else product(x.shape)
        guess: Dim = Sym.named(f"?{id(args[1]):x}.-1") if whole is None else divide(whole, rest)
        dims = [guess if isinstance(d, int) and d == -1 else d for d in dims]
    return tuple(dims)


def _partly_known(shape: Expr) -> Shape | None:
    """Return lengths of a shape that is put together from parts, with new symbols for the unknown parts."""
    if shape.word != "concat":
        return None
    dims: list[Dim] = []
    for part in shape.args:
        known = _dims_of(part)
        if known is None:
            made = _unknown_dims(part)
            if made is None:
                return None
            known = list(made)
        dims += [int(d) if isinstance(d, (int, np.integer)) else d for d in known]
    return None if any(isinstance(d, (int, np.integer)) and d < 1 for d in dims) else tuple(dims)


def _at(x: Expr, axis: int) -> Dim:
    return x.shape[axis] if x.shape is not None and axis < len(x.shape) else Sym.named(f"?{id(x):x}.{axis}")


def _expand(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x, dims = args[0].shape, _dims_of(args[1])
    to: Sequence[Dim] | None = dims if dims is not None else _partly_known(args[1]) or _unknown_dims(args[1])
    if x is None or to is None:
        return None
    return broadcast(x, tuple(int(d) if isinstance(d, (int, np.integer)) else d for d in to))


def _transpose(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x = args[0].shape
    return _fresh(args[0], len(attrs["perm"])) if x is None else tuple(x[p] for p in attrs["perm"])


def _unsqueeze(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x = args[0].shape
    if x is None:
        return None
    rank = len(x) + len(attrs["axes"])
    added = {a % rank for a in attrs["axes"]}
    rest = iter(x)
    return tuple(1 if i in added else next(rest) for i in range(rank))


def _squeeze(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x = args[0].shape
    if x is None:
        return None
    if attrs["axes"] is None:
        return None if any(isinstance(d, Sym) for d in x) else tuple(d for d in x if d != 1)
    gone = {a % len(x) for a in attrs["axes"]}
    return tuple(d for i, d in enumerate(x) if i not in gone)


def _concat(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    shapes = [a.shape for a in args if a.shape is not None]
    if len(shapes) != len(args):
        return _fresh(args[0], len(shapes[0])) if shapes else None
    axis = attrs["axis"] % len(shapes[0])
    total: Dim = 0
    for shape in shapes:
        total = total + shape[axis]
    # beside that axis all are equally long: a number says more than a name, and a name more than a placeholder
    same = [min(lengths, key=lambda n: (not isinstance(n, int), vague(n))) for lengths in zip(*shapes, strict=True)]
    return (*same[:axis], total, *same[axis + 1 :])


def _slice(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x, (_, starts, ends, axes, steps) = args[0].shape, args
    if x is None:
        return None
    if axes.known is None:
        return _fresh(args[1], len(x))
    out = list(x)
    for i, axis in enumerate(axes.known.reshape(-1)):
        bounds = [None if e.known is None else e.known.reshape(-1)[i] for e in (starts, ends, steps)]
        out[int(axis)] = _sliced(x[int(axis)], bounds, args[1], i)
    return tuple(out)


def _sliced(length: Dim, bounds: Sequence[Any], owner: Expr, i: int) -> Dim:
    start, end, step = bounds
    numbers = all(isinstance(b, (int, np.integer)) for b in bounds)
    if numbers and isinstance(length, int):
        return len(range(*slice(int(start), int(end), int(step)).indices(length)))
    if step == 1 and isinstance(start, (int, np.integer)) and end is not None and start >= 0:
        if isinstance(end, Sym) or 0 <= end < 2**31:
            # an end that is symbolic is taken to lie inside the axis, as exporters write it
            return end - int(start) if isinstance(end, Sym) else Sym.named(f"min({length},{end})-{start}")
        if end >= 2**31:
            return length - int(start)
        if numbers:
            return length + int(end) - int(start)
    to_the_end = isinstance(end, (int, np.integer)) and end >= 2**31
    if to_the_end and step == 1 and isinstance(start, Sym) and -start == length:
        return length  # the last of as many
    return Sym.named(f"?{id(owner):x}.slice{i}")


def _gather(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x, index = args[0].shape, args[1].shape
    if x is None or index is None:
        return None
    axis = attrs["axis"] % len(x)
    return (*x[:axis], *index, *x[axis + 1 :])


def _dim(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    return (Sym.named(f"?{id(args[0]):x}.rank"),) if args[0].shape is None else None


def _reduce(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    x = args[0].shape
    if x is None:
        return None
    axes = {a % len(x) for a in attrs["axes"]}
    if attrs.get("keepdims", True):
        return tuple(1 if i in axes else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in axes)


def _topk(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    if args[0].shape is None:
        return None
    count = _dims_of(args[1])
    return (*args[0].shape[:-1], count[0] if count else Sym.named(f"?{id(args[1]):x}.k"))


def _matmul(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    a, b = args[0].shape, args[1].shape
    if a is None or b is None or not a or not b:
        return None
    if len(a) == 1 or len(b) == 1:
        return (*(a[:-1] if len(a) > 1 else b[:-2]), *(b[-1:] if len(b) > 1 else ()))
    return (*(broadcast(a[:-2], b[:-2]) if len(a) + len(b) > 4 else ()), a[-2], b[-1])


def _range(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    start, stop, step = ((a.known.reshape(-1)[0] if a.known is not None else None) for a in args)
    if start is None or stop is None or step != 1:
        return (Sym.named(f"?{id(args[1]):x}.range"),)
    length = stop - start
    return (int(length) if isinstance(length, np.integer) else length,)


def _first(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    return args[0].shape


def _none(args: Sequence[Expr], attrs: Mapping[str, Any]) -> Shape | None:
    return None


_ELEMENTWISE = "add sub mul div pow max min lt le eq and or neg exp log sqrt tanh erf not floor sigmoid relu"

SHAPE: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    "where": lambda args, attrs: _elementwise((*args[1:], args[0]), attrs),  # what is chosen names the lengths
    **dict.fromkeys(("sum", "mean", "amax"), _reduce),
    **dict.fromkeys(("cast", "softmax", "scatter"), _first),
    **dict.fromkeys(("input", "const", "opaque"), _none),
    "reshape": _reshape,
    "transpose": _transpose,
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "concat": _concat,
    "slice": _slice,
    "gather": _gather,
    "dim": _dim,
    "topk": _topk,
    "pick": lambda args, attrs: args[1].shape,
    "matmul": _matmul,
    "range": _range,
    "call": lambda args, attrs: attrs["spec"].shape(dict(zip(attrs["names"], args, strict=True)), attrs["values"]),
}
