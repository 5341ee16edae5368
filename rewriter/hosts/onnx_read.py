"""READ for ONNX: how each standard operator says a word of the alphabet.

A row maps an operator to a function from (reader, node, arguments) to one expression per output. What has no row is
opaque: it keeps its shape where that is plain, and readers stop there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from rewriter.hosts import spelled
from rewriter.hosts.onnx_conv import conv
from rewriter.hosts.onnx_product import einsum, gemm, integer_product, quotient
from rewriter.hosts.onnx_row import Args, Row, attr, numpy_type
from runtime_ops.dims import product
from runtime_ops.words import Expr, const, make


def _word(word: str, swap: bool = False) -> Row:
    return lambda node, args, opset: make(word, *(reversed(args) if swap else args))


def _variadic(word: str) -> Row:
    def read(node: ir.Node, args: Args, opset: int) -> Expr | None:
        result = args[0]
        for arg in args[1:]:
            result = make(word, result, arg)  # type: ignore[arg-type]
        return result

    return read


def _same(node: ir.Node, args: Args, opset: int) -> Expr | None:
    return args[0]


def _dropout(node: ir.Node, args: Args, opset: int) -> Expr | None:
    training = args[2].number() if len(args) > 2 and args[2] is not None else 0.0
    return args[0] if training == 0.0 else None


def _numbers(node: ir.Node, args: Args, index: int, name: str) -> tuple[int, ...] | None:
    """Return integers that are an input in new opsets and an attribute in old ones; None if absent or unknown."""
    if len(args) > index and args[index] is not None:
        known = args[index].known  # type: ignore[union-attr]
        return None if known is None or known.dtype == object else tuple(int(i) for i in known.reshape(-1))
    value = attr(node, name)
    return None if value is None else tuple(value)


def _unsqueeze(node: ir.Node, args: Args, opset: int) -> Expr | None:
    axes = _numbers(node, args, 1, "axes")
    return None if axes is None else make("unsqueeze", args[0], axes=axes)  # type: ignore[arg-type]


def _squeeze(node: ir.Node, args: Args, opset: int) -> Expr | None:
    axes = _numbers(node, args, 1, "axes")
    if axes is None and len(args) > 1 and args[1] is not None:
        return None
    return make("squeeze", args[0], axes=axes)  # type: ignore[arg-type]


def _reshape(node: ir.Node, args: Args, opset: int) -> Expr:
    return make("reshape", *args, keep_zero=bool(attr(node, "allowzero", 0)))  # type: ignore[arg-type]


def _flatten(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x = args[0]
    if x is None or x.shape is None:
        return None
    axis = attr(node, "axis", 1) % (len(x.shape) + 1)
    lead, rest = make("dim", x, start=0, end=axis), make("dim", x, start=axis)
    if lead.known is None or rest.known is None or not lead.known.size:
        return None
    if axis == 1:
        return make("reshape", x, make("concat", lead, const([-1]), axis=0))
    return make("reshape", x, make("concat", const([-1]), rest, axis=0)) if rest.known.size == 1 else None


def _transpose(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x = args[0]
    perm = attr(node, "perm")
    if perm is None and (x is None or x.rank is None):
        return None
    perm = tuple(perm) if perm is not None else tuple(reversed(range(x.rank or 0)))  # type: ignore[union-attr]
    return make("transpose", x, perm=perm)  # type: ignore[arg-type]


def _tile(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read Tile as expand where it repeats axes of length 1 only."""
    x, repeats = args[0], args[1]
    if x is None or repeats is None or x.shape is None or repeats.known is None:
        return None
    if any(length != 1 and times != 1 for length, times in zip(x.shape, repeats.known.reshape(-1), strict=True)):
        return None
    return make("expand", x, repeats)


def _concat(node: ir.Node, args: Args, opset: int) -> Expr | None:
    given = [a for a in args if a is not None]
    return given[0] if len(given) == 1 else make("concat", *given, axis=attr(node, "axis"))


def _shape(node: ir.Node, args: Args, opset: int) -> Expr:
    return make("dim", args[0], start=attr(node, "start", 0), end=attr(node, "end"))  # type: ignore[arg-type]


def _size(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x = args[0]
    if x is None or x.shape is None or not all(isinstance(d, int) for d in x.shape):
        return None
    return const(product(x.shape))


def _slice(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x, starts, ends = args[:3]
    axes, steps = (args[i] if len(args) > i else None for i in (3, 4))
    count = starts.shape[0] if starts is not None and starts.shape else None
    if not isinstance(count, int):
        return None
    axes = axes or const(np.arange(count))
    steps = steps or const(np.ones(count, np.int64))
    return make("slice", x, starts, ends, axes, steps)  # type: ignore[arg-type]


def _split(node: ir.Node, args: Args, opset: int) -> Sequence[Expr] | None:
    x, axis = args[0], attr(node, "axis", 0)
    sizes = _numbers(node, args, 1, "split")
    if sizes is None:
        if x is None or x.shape is None or len(args) > 1:
            return None
        length = x.shape[axis]
        if not isinstance(length, int):
            return None
        step = -(-length // len(node.outputs))
        sizes = tuple(min(step, length - i * step) for i in range(len(node.outputs)))
    parts, start = [], 0
    for size in sizes:
        bounds = (const([start]), const([start + size]), const([axis]), const([1]))
        parts.append(make("slice", x, *bounds))  # type: ignore[arg-type]
        start += size
    return parts


def _gather(node: ir.Node, args: Args, opset: int) -> Expr:
    return make("gather", *args, axis=attr(node, "axis", 0))  # type: ignore[arg-type]


def _gather_nd(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read a GatherND that indexes the first axis alone."""
    index = args[1]
    if index is None or not index.shape or index.shape[-1] != 1 or attr(node, "batch_dims", 0):
        return None
    return make("gather", args[0], make("squeeze", index, axes=(len(index.shape) - 1,)), axis=0)  # type: ignore[arg-type]


def _gather_elements(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x, axis = args[0], attr(node, "axis", 0)
    last = x is not None and x.rank is not None and axis in (-1, x.rank - 1)
    return make("pick", *args) if last else None  # type: ignore[arg-type]


def _constant_of_shape(node: ir.Node, args: Args, opset: int) -> Expr:
    value = attr(node, "value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    return make("expand", const(fill.reshape(()), fill.dtype), args[0])  # type: ignore[arg-type]


def _cast(node: ir.Node, args: Args, opset: int) -> Expr | None:
    to = numpy_type(ir.DataType(attr(node, "to")))
    if to is None or args[0] is None:
        return None
    return args[0] if args[0].dtype == to else make("cast", args[0], to=to)


def _softmax(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x = args[0]
    axis = attr(node, "axis", -1 if opset >= 13 else 1)
    if opset < 13:  # the axes from ``axis`` on are one: the same only if the others have length 1
        if x is None or x.shape is None:
            return None
        axis %= len(x.shape)
        long = [i for i in range(axis, len(x.shape)) if x.shape[i] != 1]
        if len(long) > 1:
            return None
        axis = long[0] if long else axis
    return make("softmax", x, axis=axis)  # type: ignore[arg-type]


def _reduce(word: str) -> Row:
    def read(node: ir.Node, args: Args, opset: int) -> Expr | None:
        axes = _numbers(node, args, 1, "axes")
        if axes is None:
            return None
        return make(word, args[0], axes=axes, keepdims=bool(attr(node, "keepdims", 1)))  # type: ignore[arg-type]

    return read


def _length_of(node: ir.Node, args: Args, opset: int) -> Expr | None:
    """Read ReduceL2 as the square root of a sum of squares."""
    square = make("mul", args[0], args[0])  # type: ignore[arg-type]
    total = _reduce("sum")(node, (square, *args[1:]), opset)
    return make("sqrt", total) if isinstance(total, Expr) else None


def _reciprocal(node: ir.Node, args: Args, opset: int) -> Expr:
    x = args[0]
    return make("div", const(1.0, None if x is None else x.dtype), x)  # type: ignore[arg-type]


def _abs(node: ir.Node, args: Args, opset: int) -> Expr:
    return spelled.absolute(args[0])  # type: ignore[arg-type]


def _trilu(node: ir.Node, args: Args, opset: int) -> Expr | None:
    x, k = args[0], args[1] if len(args) > 1 and args[1] is not None else const(0)
    if x is None or x.shape is None or len(x.shape) < 2 or x.dtype is None:
        return None
    return spelled.triangle(x, k, lower=not attr(node, "upper", 1))


def _is_nan(node: ir.Node, args: Args, opset: int) -> Expr:
    return spelled.is_nan(args[0])  # type: ignore[arg-type]


_WORDS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Pow": "pow", "Less": "lt", "LessOrEqual": "le",
    "Equal": "eq", "And": "and", "Or": "or", "Not": "not", "Neg": "neg", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
    "Tanh": "tanh", "Erf": "erf", "Floor": "floor", "Where": "where", "MatMul": "matmul", "Sigmoid": "sigmoid",
    "Relu": "relu", "Expand": "expand", "Range": "range",
}  # fmt: skip

READ: dict[str, Row] = {
    **{op: _word(word) for op, word in _WORDS.items()},
    "Greater": _word("lt", swap=True),
    "GreaterOrEqual": _word("le", swap=True),
    "Max": _variadic("max"),
    "Min": _variadic("min"),
    "Sum": _variadic("add"),
    "Identity": _same,
    "Dropout": _dropout,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Tile": _tile,
    "Concat": _concat,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "Softmax": _softmax,
    "ReduceSum": _reduce("sum"),
    "ReduceMean": _reduce("mean"),
    "ReduceMax": _reduce("amax"),
    "ReduceL2": _length_of,
    "Gemm": gemm,
    "Conv": conv,
    "MatMulInteger": integer_product,
    "Div": quotient,
    "Einsum": einsum,
    "Reciprocal": _reciprocal,
    "IsNaN": _is_nan,
    "Abs": _abs,
    "Trilu": _trilu,
}
