"""The ONNX interpreter of the alphabet: one table that spells every word for any opset from 11 on.

It writes function bodies (every model that graft writes runs without our kernels) and the nodes that an edit
inserts. ``Writer.value`` returns the ONNX value of an expression and collects the nodes it needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from runtime_ops import interpret
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from runtime_ops.bodies import Bodies

MIN_OPSET, MAX_OPSET = 11, 26


class Writer:
    """Spells expressions as ONNX nodes of one opset.

    Args:
        opset: version of the default domain to write for.
        values: the ONNX values of inputs, by handle or by name.
        prefix: put before the names of nodes and values.
        bodies: where calls of our operations leave their function bodies; without it there can be no calls.
    """

    def __init__(
        self,
        opset: int,
        values: Mapping[Any, ir.Value] | None = None,
        prefix: str = "",
        bodies: Bodies | None = None,
    ) -> None:
        self.opset = opset
        self.prefix = prefix
        self.bodies = bodies
        self.nodes: list[ir.Node] = []
        self._given: dict[Any, ir.Value] = dict(values or {})
        self._made: dict[int, ir.Value] = {}
        self._kept: list[Expr] = []  # keeps ids of ``_made`` from being used twice
        self._constants: dict[Any, ir.Value] = {}

    def value(self, expr: Expr) -> ir.Value:
        """Return the ONNX value of ``expr``, writing the nodes that are not there yet."""
        for node in interpret.topological(expr, interpret.has_handle):
            if id(node) not in self._made:
                self._made[id(node)] = self._spell(node)
                self._kept.append(node)
        return self._made[id(expr)]

    def _spell(self, expr: Expr) -> ir.Value:
        if expr.handle is not None and expr.handle in self._given:
            return self._given[expr.handle]
        if expr.word == "const" and expr.known is not None:
            return self.array(expr.known)
        if isinstance(expr.handle, ir.Value):
            return expr.handle
        if expr.word == "input":
            return self._given[expr.attrs["name"]]
        return WRITE[expr.word](self, [self._made[id(a)] for a in expr.args], expr)

    def op(self, name: str, *inputs: ir.Value | None, domain: str = "", overload: str = "", **attrs: Any) -> ir.Value:
        """Write one node and return its output; attributes that are None are left out."""
        attributes = {key: value for key, value in attrs.items() if value is not None}
        node = ir.node(name, inputs, attributes, domain=domain, overload=overload, name=self._name(name))
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def array(self, array: np.ndarray) -> ir.Value:
        """Write an array as a Constant node, once per value."""
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape))
            self._constants[key] = self.op("Constant", value=tensor)
        return self._constants[key]

    def ints(self, *numbers: int) -> ir.Value:
        """Write an int64 vector."""
        return self.array(np.array(numbers, np.int64))

    def _name(self, op: str) -> str:
        return f"{self.prefix}{op}_{len(self.nodes)}"


Spell = Callable[[Writer, Sequence[ir.Value], Expr], ir.Value]


def _plain(op: str) -> Spell:
    return lambda w, args, expr: w.op(op, *args)


def _last(expr: Expr) -> int:
    """Return the last axis, counted from the front where the rank is known: onnx's reference evaluator needs that."""
    return -1 if expr.rank is None else expr.rank - 1


def _axes(op: str, since: int) -> Spell:
    """Spell an op whose axes turned from an attribute into an input in opset ``since``."""

    def spell(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
        axes, keep = expr.attrs["axes"], expr.attrs.get("keepdims")
        keepdims = None if keep is None else int(keep)
        if axes is None:
            return w.op(op, *args)
        if w.opset >= since:
            return w.op(op, *args, w.ints(*axes), keepdims=keepdims)
        return w.op(op, *args, axes=list(axes), keepdims=keepdims)

    return spell


def _dim(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    start, end = expr.attrs.get("start", 0), expr.attrs.get("end")
    if w.opset >= 15:
        return w.op("Shape", *args, start=start, end=end)
    shape = w.op("Shape", *args)
    return w.op("Slice", shape, w.ints(start), w.ints(2**31 if end is None else end), w.ints(0), w.ints(1))


def _topk(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    node = ir.node("TopK", args, {"axis": -1, "largest": 1, "sorted": 1}, num_outputs=2, name=w._name("TopK"))
    for output, kind in zip(node.outputs, ("values", "indices"), strict=True):
        output.name = f"{node.name}_{kind}"
    w.nodes.append(node)
    return node.outputs[1]


def _pick(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    best = expr.args[1]
    producer = args[1].producer()
    if best.word == "topk" and best.args[0] is expr.args[0] and producer is not None:
        return producer.outputs[0]  # TopK gives the values as well
    return w.op("GatherElements", *args, axis=_last(expr))


def _extreme(op: str, comparison: str) -> Spell:
    """Spell max and min; before opset 12 they take no integers, so compare and choose."""

    def spell(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
        if w.opset >= 12 or expr.dtype is None or expr.dtype.kind not in "iu":
            return w.op(op, *args)
        first, second = args if comparison == "Less" else (args[1], args[0])
        return w.op("Where", w.op("Less", first, second), *args)

    return spell


def _le(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    if w.opset >= 12:
        return w.op("LessOrEqual", *args)
    return w.op("Not", w.op("Less", args[1], args[0]))


def _reshape(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    keep_zero = 1 if expr.attrs.get("keep_zero") and w.opset >= 14 else None
    return w.op("Reshape", *args, allowzero=keep_zero)


def _cast(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    return w.op("Cast", *args, to=int(ir.DataType.from_numpy(np.dtype(expr.attrs["to"]))))


def _softmax(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    axis = expr.attrs["axis"]
    if w.opset < 13 and axis not in (-1, (expr.rank or 0) - 1):
        raise ValueError("before opset 13 Softmax is written along the last axis only")
    return w.op("Softmax", *args, axis=axis)


def _call(w: Writer, args: Sequence[ir.Value], expr: Expr) -> ir.Value:
    if w.bodies is None:
        raise ValueError("a call of an operation needs somewhere to leave its function body")
    spec, values = expr.attrs["spec"], expr.attrs["values"]
    given = dict(zip(expr.attrs["names"], zip(args, expr.args, strict=True), strict=True))
    names = [i.name for i in spec.inputs]
    while names[-1] not in given:
        names.pop()
    signature = {name: (e.shape, e.dtype) for name, (_, e) in given.items()}
    overload = w.bodies.overload(spec, signature, values, w.opset)
    inputs = [given[name][0] if name in given else None for name in names]
    kinds = {a.name: a.kind for a in spec.attributes}
    attrs = {name: kinds[name](value) for name, value in values.items() if value is not None}
    return w.op(spec.name, *inputs, domain=spec.domain, overload=overload, **attrs)


WRITE: dict[str, Spell] = {
    "call": _call,
    "reshape": _reshape,
    "transpose": lambda w, args, e: w.op("Transpose", *args, perm=list(e.attrs["perm"])),
    "expand": _plain("Expand"),
    "unsqueeze": _axes("Unsqueeze", 13),
    "squeeze": _axes("Squeeze", 13),
    "concat": lambda w, args, e: args[0] if len(args) == 1 else w.op("Concat", *args, axis=e.attrs["axis"]),
    "slice": _plain("Slice"),
    "gather": lambda w, args, e: w.op("Gather", *args, axis=e.attrs["axis"]),
    "dim": _dim,
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "pow": _plain("Pow"),
    "max": _extreme("Max", "Greater"),
    "min": _extreme("Min", "Less"),
    "lt": _plain("Less"),
    "le": _le,
    "eq": _plain("Equal"),
    "and": _plain("And"),
    "or": _plain("Or"),
    "not": _plain("Not"),
    "neg": _plain("Neg"),
    "exp": _plain("Exp"),
    "log": _plain("Log"),
    "sqrt": _plain("Sqrt"),
    "tanh": _plain("Tanh"),
    "floor": _plain("Floor"),
    "erf": _plain("Erf"),
    "where": _plain("Where"),
    "sum": _axes("ReduceSum", 13),
    "mean": _axes("ReduceMean", 18),
    "amax": _axes("ReduceMax", 18),
    "topk": _topk,
    "pick": _pick,
    "scatter": lambda w, args, e: w.op("ScatterElements", *args, axis=_last(e)),
    "matmul": _plain("MatMul"),
    "cast": _cast,
    "range": _plain("Range"),
    "softmax": _softmax,
    "sigmoid": _plain("Sigmoid"),
    "relu": _plain("Relu"),
}
