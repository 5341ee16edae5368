"""READ for torch: functions, methods and ATen operators as words, by their name without overload.

``torch.softmax``, ``F.softmax``, ``x.softmax`` and ``aten.softmax.int`` have one row: Python itself sorts their
arguments. What has no row is opaque: it keeps its shape where that is plain, and readers stop there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.hosts import fx_opaque, spelled
from rewriter.hosts.fx_attention import ATTENTION
from rewriter.hosts.fx_make import MADE, Type, type_of
from rewriter.hosts.fx_row import Row, as_expr, as_type, many, pair, rank
from rewriter.hosts.fx_shape import SHAPES
from runtime_ops import activations
from runtime_ops.words import Expr, const, make

_FLOAT32 = np.dtype(np.float32)


def _binary(word: str, swap: bool = False) -> Row:
    def row(x: Any, y: Any) -> Expr:
        return make(word, *(reversed(pair(x, y)) if swap else pair(x, y)))

    return row


def _mul(x: Any, y: Any) -> Expr:
    """Read a product; ATen writes 1 / x as 1 times the reciprocal of x."""
    left, right = pair(x, y)
    return left if right.number() == 1.0 and left.dtype == right.dtype and right.rank == 0 else make("mul", left, right)


def _unary(word: str) -> Row:
    return lambda x, **options: make(word, _floating(x) if word not in ("neg", "not", "relu") else as_expr(x))


def _floating(x: Any) -> Expr:
    x = as_expr(x)
    return as_type(x, _FLOAT32) if x.dtype is not None and x.dtype.kind in "iub" else x


def _scaled(word: str) -> Row:
    def row(x: Any, y: Any, alpha: Any = 1) -> Expr:
        left, right = pair(x, y)
        return make(word, left, right if alpha == 1 else make("mul", right, as_expr(alpha, right)))

    return row


def _rsub(x: Expr, other: Any, alpha: Any = 1) -> Expr:
    return _scaled("sub")(other, x, alpha)  # type: ignore[no-any-return]


def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Expr | None:
    left, right = pair(x, y)
    if rounding_mode is None:
        return spelled.quotient(_floating(left), _floating(right))
    if rounding_mode != "floor":
        return None
    if left.dtype is None or left.dtype.kind not in "iu":
        return make("floor", make("div", left, right))
    if left.rank == right.rank == 0:  # lengths, which are not negative
        return make("div", left, right)
    wide = np.dtype(np.float64)
    return make("cast", make("floor", make("div", as_type(left, wide), as_type(right, wide))), to=left.dtype)


def _floordiv(x: Any, y: Any) -> Expr | None:
    return _div(x, y, "floor")


def _ne(x: Any, y: Any) -> Expr:
    return make("not", make("eq", *pair(x, y)))


def _logical(word: str) -> Row:
    def row(*args: Any) -> Expr | None:
        sides = [as_type(as_expr(x), np.dtype(bool)) for x in args]
        return make(word, *sides)

    return row


def _bitwise(word: str) -> Row:
    def row(*args: Any) -> Expr | None:
        boolean = all(isinstance(x, bool) or (isinstance(x, Expr) and x.dtype == bool) for x in args)
        return make(word, *(as_expr(x) for x in args)) if boolean else None

    return row


def _pow(x: Any, y: Any) -> Expr:
    return make("pow", *pair(x, y))


def _reciprocal(x: Expr) -> Expr:
    return make("div", const(1.0, x.dtype), x)


def _rsqrt(x: Expr) -> Expr:
    return _reciprocal(make("sqrt", x))


def _clamp(x: Expr, min: Any = None, max: Any = None) -> Expr:
    low = x if min is None else make("max", *pair(x, min))
    return low if max is None else make("min", *pair(low, max))


def _where(keep: Expr, x: Any, y: Any) -> Expr:
    left, right = pair(x, y)
    return _guarded(keep, left, right) or make("where", keep, left, right)


def _guarded(test: Expr, zero: Expr, p: Expr) -> Expr | None:
    """Read core ATen's safe softmax: where no score of a row is above -inf, its NaN probabilities become 0."""
    if test.word != "not" or test.args[0].attrs.get("op") != "any" or p.word != "softmax":
        return None
    seen = test.args[0].args[0]
    hidden = seen.args[0] if seen.word == "not" else seen
    plain = hidden.word == "eq" and hidden.args[0] is p.args[0] and hidden.args[1].number() == -np.inf
    while zero.word == "expand":
        zero = zero.args[0]
    if not plain or zero.number() != 0.0:
        return None
    return spelled.or_zero(p)


def _masked_fill(x: Expr, mask: Expr, value: Any) -> Expr:
    fill = as_expr(value, x)
    return make("where", mask, as_type(fill, x.dtype) if x.dtype is not None else fill, x)


def _softmax(
    x: Expr, dim: int | None = None, _stacklevel: int | Type = 3, dtype: Type | None = None, **_: Any
) -> Expr | None:
    """Read a softmax; the third argument of the ATen operator is its type, that of the function is none of ours."""
    if dim is None:
        return None
    to = type_of(dtype if isinstance(_stacklevel, int) else _stacklevel)
    return make("softmax", x if to is None else as_type(x, to), axis=dim)


def _aten_softmax(x: Expr, dim: int, half_to_float: bool) -> Expr:
    return make("softmax", as_type(x, _FLOAT32) if half_to_float else x, axis=dim)


def _safe_softmax(x: Expr, dim: int, dtype: Type | None = None) -> Expr:
    """Read a softmax that gives 0 for rows in which every score is -inf."""
    to = type_of(dtype)
    p = make("softmax", x if to is None else as_type(x, to), axis=dim)
    return spelled.or_zero(p)


def _matmul(a: Expr, b: Expr) -> Expr:
    """Read a product; factors that were only expanded to batches are multiplied as they were."""
    product = make("matmul", a, b)
    for left, right in ((a, _narrow(b)), (_narrow(a), b)):
        plain = make("matmul", left, right)
        if (left is not a or right is not b) and plain.shape is not None and plain.shape == product.shape:
            return plain
    return product


def _narrow(x: Expr) -> Expr:
    """Return what was expanded to a batch of matrices."""
    inner = x.args[0] if x.word == "expand" else x
    return inner if inner.shape is not None and x.shape is not None and inner.shape[-2:] == x.shape[-2:] else x


def _linear(x: Expr, weight: Expr, bias: Expr | None = None) -> Expr:
    out = make("matmul", x, make("transpose", weight, perm=(1, 0)) if rank(weight) == 2 else weight)
    return out if bias is None else make("add", out, bias)


def _addmm(bias: Expr, a: Expr, b: Expr, *, beta: Any = 1, alpha: Any = 1) -> Expr:
    """Read beta · bias + alpha · a b, of matrices (addmm) or batches of them (baddbmm)."""
    out = make("matmul", a, b)
    out = out if alpha == 1 else make("mul", out, as_expr(alpha, out))
    if beta == 0:
        return out
    return make("add", out, bias if beta == 1 else make("mul", bias, as_expr(beta, bias)))


def _einsum(equation: str, *operands: Any, path: Any = None) -> Expr | None:
    return spelled.einsum(equation, many(operands))


def _reduce(word: str) -> Row:
    def row(x: Expr, dim: Any = None, keepdim: bool = False, *, dtype: Type | None = None) -> Expr:
        to = type_of(dtype)
        x = as_type(x, to) if to is not None else _floating(x) if word == "mean" else x
        if word == "sum" and x.dtype is not None and x.dtype == bool:
            x = as_type(x, np.dtype(np.int64))
        axes = range(rank(x)) if dim is None or dim == [] else dim if isinstance(dim, (list, tuple)) else [dim]
        return make(word, x, axes=tuple(axes), keepdims=keepdim)

    return row


def _max(x: Expr, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, Expr):
        return make("max", *pair(x, dim))
    if dim is None:
        return make("amax", x, axes=tuple(range(rank(x))), keepdims=False)
    return [make("amax", x, axes=(dim,), keepdims=keepdim), None]


def _min(x: Expr, other: Any = None) -> Expr | None:
    return make("min", *pair(x, other)) if isinstance(other, Expr) else None


def _embedding(a: Expr, b: Expr, *rest: Any, **options: Any) -> Expr:
    weight, index = (a, b) if b.dtype is not None and b.dtype.kind in "iu" else (b, a)
    return make("gather", weight, index, axis=0)


def dropout(x: Expr, p: float = 0.5, training: bool = True, inplace: bool = False) -> Expr | None:
    """Read dropout that is switched off."""
    return x if not training or p == 0.0 else None


def _native_dropout(x: Expr, p: float, train: bool | None) -> list[Any] | None:
    return None if train and p else [x, None]


def _gelu(x: Expr, approximate: str = "none") -> Expr:
    return activations.gelu_tanh(x) if approximate == "tanh" else activations.gelu(x)


def _plain_relu(x: Expr, inplace: bool = False) -> Expr:
    return make("relu", x)


READ: dict[str, Row] = {
    **SHAPES,
    **{name: _binary(word) for name, word in {"maximum": "max", "minimum": "min",
       "lt": "lt", "less": "lt", "le": "le", "less_equal": "le", "eq": "eq"}.items()},
    **dict.fromkeys(("gt", "greater"), _binary("lt", swap=True)),
    **dict.fromkeys(("ge", "greater_equal"), _binary("le", swap=True)),
    **dict.fromkeys(("ne", "not_equal"), _ne),
    **{name: _unary(word) for name, word in {"exp": "exp", "log": "log", "sqrt": "sqrt", "tanh": "tanh", "erf": "erf",
       "floor": "floor", "sigmoid": "sigmoid", "neg": "neg", "sym_sqrt": "sqrt", "_sym_sqrt": "sqrt"}.items()},
    "add": _scaled("add"),
    **dict.fromkeys(("mul", "multiply"), _mul),
    "sub": _scaled("sub"),
    "rsub": _rsub,
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _div),
    **dict.fromkeys(("floordiv", "floor_divide"), _floordiv),
    "pow": _pow,
    "abs": spelled.absolute,
    "square": lambda x: _pow(x, 2),
    "reciprocal": _reciprocal,
    "rsqrt": _rsqrt,
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": lambda x, min: _clamp(x, min=min),
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "logical_not": _logical("not"),
    **dict.fromkeys(("bitwise_and", "and_", "__and__"), _bitwise("and")),
    **dict.fromkeys(("bitwise_or", "or_", "__or__"), _bitwise("or")),
    **dict.fromkeys(("bitwise_not", "invert"), _bitwise("not")),
    "isnan": spelled.is_nan,
    "where": _where,
    "masked_fill": _masked_fill,
    "softmax": _softmax,
    "_softmax": _aten_softmax,
    "_safe_softmax": _safe_softmax,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "__matmul__"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "linear": _linear,
    "einsum": _einsum,
    **{word: _reduce(word) for word in ("sum", "mean", "amax")},
    "max": _max,
    "min": _min,
    **MADE,
    "embedding": _embedding,
    "dropout": dropout,
    **dict.fromkeys(("feature_dropout", "dropout2d", "dropout1d", "alpha_dropout"), dropout),
    "native_dropout": _native_dropout,
    "relu": _plain_relu,
    "gelu": _gelu,
    "silu": lambda x, inplace=False: activations.silu(x),
    "mish": lambda x, inplace=False: activations.mish(x),
    "softplus": lambda x, beta=1, threshold=20: spelled.softplus(x) if beta == 1 else None,
    "leaky_relu": lambda x, negative_slope=0.01: spelled.leaky_relu(x, negative_slope),
    "elu": lambda x, alpha=1.0, *scales: None if any(s != 1 for s in scales) else spelled.elu(x, alpha),
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0: _clamp(x, min_val, max_val),
    "relu6": lambda x: _clamp(x, 0.0, 6.0),
    "hardsigmoid": spelled.hard_sigmoid,
    "hardswish": spelled.hard_swish,
    **fx_opaque.ROWS,
    **ATTENTION,
}  # fmt: skip
