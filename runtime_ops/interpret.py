"""The numpy interpreter of the alphabet: folding of constants, and fp64 golden values.

``EVAL`` gives every word its meaning on arrays. ``run`` evaluates an expression; with ``golden`` every floating
tensor is carried in float64 and casts between floating types change nothing, which is the reference that all
kernels and rewrites are measured against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from runtime_ops.words import Expr

Array = np.ndarray
Eval = Callable[[Sequence[Array], Mapping[str, Any]], Any]

_erf = np.frompyfunc(math.erf, 1, 1)


def _reshape(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x, dims = args[0], [int(d) for d in args[1].reshape(-1)]
    if not attrs.get("keep_zero"):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


def _expand(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x, dims = args[0], tuple(int(d) for d in args[1].reshape(-1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, dims))


def _slice(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x, starts, ends, axes, steps = args
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # below the lowest index going backwards, "up to and including the first" is spelled None
        stop = None if int(step) < 0 and int(end) <= -x.shape[int(axis)] - 1 else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return x[tuple(index)]


def _div(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    a, b = args
    if object in (a.dtype, b.dtype):
        return np.asarray(a // b, dtype=object)
    if a.dtype.kind in "iu":
        return np.asarray(np.trunc(np.true_divide(a, b))).astype(a.dtype)
    return np.asarray(a / b)


def _cast(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    to = np.dtype(attrs["to"])
    return args[0] if args[0].dtype == object and to.kind in "iu" else args[0].astype(to)


def _golden_cast(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x = args[0]
    return x.astype(np.float64) if is_float(attrs["to"]) else x.astype(attrs["to"])


def is_float(dtype: Any) -> bool:
    """Return whether ``dtype`` is a floating type, the 16-bit ones of ml_dtypes included."""
    return bool(np.dtype(dtype).kind == "f" or np.dtype(dtype).name.startswith("bfloat"))


def _topk(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x, count = args[0], int(args[1].reshape(-1)[0])
    return np.argsort(-x, axis=-1, kind="stable")[..., :count]


def _scatter(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    out = np.array(args[0])
    np.put_along_axis(out, args[1], args[2], axis=-1)
    return out


def _reduce(function: Callable[..., Any]) -> Eval:
    def evaluate(args: Sequence[Array], attrs: Mapping[str, Any]) -> Any:
        return function(args[0], axis=tuple(attrs["axes"]), keepdims=bool(attrs.get("keepdims", True)))

    return evaluate


def _softmax(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    x, axis = args[0], attrs["axis"]
    exps = np.exp(x - np.max(x, axis=axis, keepdims=True)) if x.size else x
    return np.asarray(exps / np.sum(exps, axis=axis, keepdims=True))


def _squeeze(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    return np.squeeze(args[0], axis=None if attrs["axes"] is None else tuple(attrs["axes"]))


def _where(args: Sequence[Array], attrs: Mapping[str, Any]) -> Array:
    return np.where(np.asarray(args[0], dtype=bool), args[1], args[2])


def _on(function: Callable[..., Any]) -> Eval:
    return lambda args, attrs: function(*args)


EVAL: dict[str, Eval] = {
    "reshape": _reshape,
    "transpose": lambda args, attrs: np.transpose(args[0], attrs["perm"]),
    "expand": _expand,
    "unsqueeze": lambda args, attrs: np.expand_dims(args[0], tuple(attrs["axes"])),
    "squeeze": _squeeze,
    "concat": lambda args, attrs: np.concatenate(args, axis=attrs["axis"]),
    "slice": _slice,
    "gather": lambda args, attrs: np.take(args[0], args[1].astype(np.int64), axis=attrs["axis"]),
    "dim": lambda args, attrs: np.array(args[0].shape[slice(attrs.get("start", 0), attrs.get("end"))], np.int64),
    "add": _on(np.add),
    "sub": _on(np.subtract),
    "mul": _on(np.multiply),
    "div": _div,
    "pow": _on(np.power),
    "max": _on(np.maximum),
    "min": _on(np.minimum),
    "lt": _on(np.less),
    "le": _on(np.less_equal),
    "eq": _on(np.equal),
    "and": _on(np.logical_and),
    "or": _on(np.logical_or),
    "not": _on(np.logical_not),
    "neg": _on(np.negative),
    "exp": _on(np.exp),
    "log": _on(np.log),
    "sqrt": _on(np.sqrt),
    "tanh": _on(np.tanh),
    "floor": _on(np.floor),
    "erf": lambda args, attrs: np.asarray(_erf(args[0])).astype(args[0].dtype),
    "where": _where,
    "sum": _reduce(np.sum),
    "mean": _reduce(np.mean),
    "amax": _reduce(partial(np.max, initial=-np.inf)),
    "topk": _topk,
    "pick": lambda args, attrs: np.take_along_axis(args[0], args[1], axis=-1),
    "scatter": _scatter,
    # numpy multiplies permuted views without BLAS, some hundred times slower
    "matmul": lambda args, attrs: np.matmul(*(np.ascontiguousarray(a) for a in args)),
    "cast": _cast,
    "range": lambda args, attrs: np.arange(*(a.reshape(-1)[0] for a in args)),
    "softmax": _softmax,
    "sigmoid": lambda args, attrs: 1 / (1 + np.exp(-args[0])),
    "relu": lambda args, attrs: np.maximum(args[0], 0),
    "call": lambda args, attrs: attrs["spec"].golden(dict(zip(attrs["names"], args, strict=True)), attrs["values"]),
}

_GOLDEN: dict[str, Eval] = {**EVAL, "cast": _golden_cast}


def widen(array: Array) -> Array:
    """Return floating arrays in float64, others as they are."""
    return array.astype(np.float64) if is_float(array.dtype) else array


def golden(expr: Expr, leaves: Mapping[Any, Array]) -> Array:
    """Return the value of ``expr`` in float64.

    Args:
        expr: the expression; its inputs, and every node whose handle is in ``leaves``, are looked up there.
        leaves: arrays by handle or, for inputs without one, by name.

    Raises:
        KeyError: an input is missing, or an opaque node is met.
    """
    done: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for node in topological(expr, lambda e: e.handle is not None and e.handle in leaves):
            done[id(node)] = _golden_node(node, leaves, done)
    return done[id(expr)]


def _golden_node(node: Expr, leaves: Mapping[Any, Array], done: Mapping[int, Array]) -> Array:
    if node.handle is not None and node.handle in leaves:
        return widen(np.asarray(leaves[node.handle]))
    if node.word == "input":
        return widen(np.asarray(leaves[node.attrs["name"]]))
    value = constant(node)
    if value is not None:
        return widen(value)
    if node.word not in _GOLDEN:
        raise KeyError(f"{node.word} {node.handle} has no value here")
    return np.asarray(_GOLDEN[node.word]([done[id(a)] for a in node.args], node.attrs))


def constant(node: Expr) -> Array | None:
    """Return the value of a constant, however large; None for any other word."""
    if node.word != "const":
        return None
    return node.known if node.known is not None else np.asarray(node.handle.const_value.numpy())


def has_handle(expr: Expr) -> bool:
    """Return whether an expression is a value of a graph: a leaf for plans and writers."""
    return expr.handle is not None


def topological(expr: Expr, is_leaf: Callable[[Expr], bool]) -> list[Expr]:
    """Return ``expr`` and what it is made of, arguments first, not looking behind leaves."""
    order: list[Expr] = []
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if not is_leaf(node):
                stack.extend((a, False) for a in node.args)
    return order
