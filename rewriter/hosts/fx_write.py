"""WRITE for torch: one table that spells every word of the alphabet as ATen operators of a graph.

Lengths are no tensors in torch: where an operator takes numbers, the writer turns the words that compute them into
arithmetic on ``sym_size`` nodes (``FxWriter.numbers``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch._guards import detect_fake_mode

from rewriter.hosts.fx_row import Weight
from runtime_ops import to_torch, torch_ops
from runtime_ops.words import Expr

Node = torch.fx.Node
aten = torch.ops.aten
Constant = Callable[[np.ndarray], Node]


class FxWriter:
    """Spells expressions as nodes of a graph, at its insertion point.

    Args:
        graph: where nodes are written.
        constant: puts an array into the module around the graph and returns the node that fetches it.
        given: nodes that stand for handles.
    """

    def __init__(self, graph: torch.fx.Graph, constant: Constant, given: Mapping[Any, Node] | None = None) -> None:
        self.graph = graph
        self.constant = constant
        self._mode = detect_fake_mode([t for n in graph.nodes if isinstance(t := n.meta.get("val"), torch.Tensor)])
        self._given = dict(given or {})
        self._made: dict[int, Any] = {}
        self._kept: list[Expr] = []  # keeps ids of ``_made`` from being used twice

    def value(self, expr: Expr) -> Any:
        """Return the node of ``expr``, or the number that it is, writing the nodes that are not there yet."""
        if id(expr) not in self._made:
            self._made[id(expr)] = self._spell(expr)
            self._kept.append(expr)
        return self._made[id(expr)]

    def tensor(self, expr: Expr) -> Node:
        """Return the node of ``expr``, a tensor also where it is a number."""
        found = self.value(expr)
        if isinstance(found, Node) and not is_number(found):
            return found
        assert expr.dtype is not None  # numbers have types
        return self.op(aten.scalar_tensor.default, found, dtype=to_torch.dtype(expr.dtype))

    def _spell(self, expr: Expr) -> Any:
        if expr.handle in self._given:
            return self._given[expr.handle]
        if isinstance(expr.handle, Node):
            return expr.handle
        if isinstance(expr.handle, Weight):
            return expr.handle.node or self.graph.get_attr(expr.handle.name)
        if expr.word == "const" and expr.known is not None:
            return expr.known.item() if expr.known.ndim == 0 else self._array(expr.known)
        return WRITE[expr.word](self, expr)

    def _array(self, known: np.ndarray) -> Node:
        flat = known.reshape(-1)
        if known.size and (flat == flat[0]).all():
            return self.op(aten.full.default, list(known.shape), flat[0].item(), dtype=to_torch.dtype(known.dtype))
        return self.constant(known)

    def op(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Write one node; where its arguments tell what they hold, it tells so too."""
        node = self.graph.call_function(target, args, kwargs)
        if self._mode is not None and all("val" in n.meta for n in node.all_input_nodes):
            values: Any = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with self._mode:
                node.meta["val"] = target(*values[0], **values[1])
        return node

    def numbers(self, expr: Expr) -> list[Any]:
        """Return an integer expression as numbers: Python's, and nodes that are numbers when the graph runs.

        Raises:
            ValueError: it is computed from the elements of a tensor.
        """
        if expr.known is not None and expr.known.dtype != object:
            return [int(n) for n in expr.known.reshape(-1)]
        node = self._given.get(expr.handle, expr.handle)
        if isinstance(node, Node) and is_number(node):
            return [node]
        if expr.word in _LISTS:
            return _LISTS[expr.word](self, expr)
        sides = [self.numbers(a) for a in expr.args] if expr.word in _NUMBERS else []
        if not sides:
            raise ValueError(f"a length that is computed by {expr.word} cannot be written as a number")
        return [self.op(_NUMBERS[expr.word], *pair) for pair in zip(*sides, strict=True)]


def is_number(node: Node) -> bool:
    """Return whether a node is a number of Python when the graph runs, not a tensor."""
    told = node.meta.get("val", node.meta.get("tensor_meta"))
    if told is not None:
        return isinstance(told, (int, float, torch.SymInt, torch.SymFloat))
    if node.op == "call_method" and node.target == "size":
        return len(node.args) + len(node.kwargs) > 1
    if node.target is aten.sym_size.int:
        return True
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, Node) and (
            (source.target is getattr and source.args[1] == "shape")
            or (source.op == "call_method" and source.target == "size")
        )
    inputs = node.all_input_nodes
    return getattr(node.target, "__module__", "") == "_operator" and bool(inputs) and all(map(is_number, inputs))


_NUMBERS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.floordiv}


def _sizes(w: FxWriter, expr: Expr) -> list[Any]:
    x = expr.args[0]
    if x.rank is None:
        raise ValueError("the lengths of a tensor of unknown rank cannot be written")
    axes = range(x.rank)[slice(expr.attrs.get("start", 0), expr.attrs.get("end"))]
    return [w.op(aten.sym_size.int, w.value(x), axis) for axis in axes]


def _cut(w: FxWriter, expr: Expr) -> list[Any]:
    start, end, _, step = (int(a.known.reshape(-1)[0]) for a in expr.args[1:] if a.known is not None)
    return w.numbers(expr.args[0])[start:end:step]


_LISTS: dict[str, Callable[[FxWriter, Expr], list[Any]]] = {
    "dim": _sizes,
    "concat": lambda w, e: [n for a in e.args for n in w.numbers(a)],
    "slice": _cut,
    "gather": lambda w, e: [w.numbers(e.args[0])[i] for i in w.numbers(e.args[1])],
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze", "cast"), lambda w, e: w.numbers(e.args[0])),
}

Spell = Callable[[FxWriter, Expr], Any]


def _tensors(target: Any) -> Spell:
    return lambda w, e: w.op(target, *(w.tensor(a) for a in e.args))


def _numbers_allowed(target: Any) -> Spell:
    """Spell an operator whose second side may be a number as it stands."""
    return lambda w, e: w.op(target, w.tensor(e.args[0]), w.value(e.args[1]))


def _reshape(w: FxWriter, expr: Expr) -> Node:
    x, sizes = w.tensor(expr.args[0]), w.numbers(expr.args[1])
    if not expr.attrs.get("keep_zero"):
        zero = [isinstance(n, int) and n == 0 for n in sizes]
        sizes = [w.op(aten.sym_size.int, x, i) if z else n for i, (n, z) in enumerate(zip(sizes, zero, strict=True))]
    return w.op(aten.reshape.default, x, sizes)


def _expand(w: FxWriter, expr: Expr) -> Node:
    """Spell a broadcast to lengths, of which 1 keeps what is there."""
    x, sizes = expr.args[0], w.numbers(expr.args[1])
    missing = max(0, (x.rank or 0) - len(sizes))
    kept = [-1] * missing + [-1 if isinstance(n, int) and n == 1 and i + missing >= len(sizes) - (x.rank or 0)
                             else n for i, n in enumerate(sizes)]  # fmt: skip
    return w.op(aten.expand.default, w.tensor(x), kept)


def _unsqueeze(w: FxWriter, expr: Expr) -> Node:
    out, rank = w.tensor(expr.args[0]), (expr.rank or 0)
    for axis in sorted(a % rank if rank else a for a in expr.attrs["axes"]):
        out = w.op(aten.unsqueeze.default, out, axis)
    return out


def _squeeze(w: FxWriter, expr: Expr) -> Node:
    axes = expr.attrs["axes"]
    x = w.tensor(expr.args[0])
    return w.op(aten.squeeze.default, x) if axes is None else w.op(aten.squeeze.dims, x, list(axes))


def _slice(w: FxWriter, expr: Expr) -> Node:
    out = w.tensor(expr.args[0])
    for start, end, axis, step in zip(*(w.numbers(a) for a in expr.args[1:]), strict=True):
        out = w.op(aten.slice.Tensor, out, axis, start, end, step)
    return out


def _gather(w: FxWriter, expr: Expr) -> Node:
    x, index, axis = expr.args[0], expr.args[1], expr.attrs["axis"]
    if index.rank == 0:
        return w.op(aten.select.int, w.tensor(x), axis, w.numbers(index)[0])
    return w.op(aten.index.Tensor, w.tensor(x), [*[None] * (axis % (x.rank or 1)), w.tensor(index)])


def _dim(w: FxWriter, expr: Expr) -> Node:
    return w.op(aten.stack.default, [w.op(aten.scalar_tensor.default, n, dtype=torch.int64) for n in _sizes(w, expr)])


def _div(w: FxWriter, expr: Expr) -> Node:
    sides = w.tensor(expr.args[0]), w.value(expr.args[1])
    whole = expr.dtype is not None and expr.dtype.kind in "iu"
    return w.op(aten.div.Tensor_mode, *sides, rounding_mode="trunc") if whole else w.op(aten.div.Tensor, *sides)


def _reduce(target: Any) -> Spell:
    return lambda w, e: w.op(target, w.tensor(e.args[0]), list(e.attrs["axes"]), bool(e.attrs.get("keepdims", True)))


def _topk(w: FxWriter, expr: Expr) -> Node:
    pair = w.op(aten.topk.default, w.tensor(expr.args[0]), w.numbers(expr.args[1])[0])
    return w.op(operator.getitem, pair, 1)


def _range(w: FxWriter, expr: Expr) -> Node:
    start, end, step = (w.numbers(a)[0] for a in expr.args)
    return w.op(aten.arange.start_step, start, end, step, dtype=torch.int64)


def _cast(w: FxWriter, expr: Expr) -> Node:
    return w.op(aten.to.dtype, w.tensor(expr.args[0]), to_torch.dtype(np.dtype(expr.attrs["to"])))


def _call(w: FxWriter, expr: Expr) -> Node:
    spec = expr.attrs["spec"]
    given = dict(zip(expr.attrs["names"], (w.tensor(a) for a in expr.args), strict=True))
    values = expr.attrs["values"]
    attrs = [None if values[a.name] is None else a.kind(values[a.name]) for a in spec.attributes]
    return w.op(torch_ops.overload(spec), *(given.get(i.name) for i in spec.inputs), *attrs)


def _axes(expr: Expr) -> Sequence[int]:
    return [int(p) for p in expr.attrs["perm"]]


WRITE: dict[str, Spell] = {
    "call": _call,
    "reshape": _reshape,
    "transpose": lambda w, e: w.op(aten.permute.default, w.tensor(e.args[0]), _axes(e)),
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "concat": lambda w, e: w.op(aten.cat.default, [w.tensor(a) for a in e.args], e.attrs["axis"]),
    "slice": _slice,
    "gather": _gather,
    "dim": _dim,
    "add": _numbers_allowed(aten.add.Tensor),
    "sub": _numbers_allowed(aten.sub.Tensor),
    "mul": _numbers_allowed(aten.mul.Tensor),
    "div": _div,
    "pow": _tensors(aten.pow.Tensor_Tensor),
    "max": _tensors(aten.maximum.default),
    "min": _tensors(aten.minimum.default),
    "lt": _tensors(aten.lt.Tensor),
    "le": _tensors(aten.le.Tensor),
    "eq": _tensors(aten.eq.Tensor),
    "and": _tensors(aten.logical_and.default),
    "or": _tensors(aten.logical_or.default),
    "not": _tensors(aten.logical_not.default),
    "neg": _tensors(aten.neg.default),
    "exp": _tensors(aten.exp.default),
    "log": _tensors(aten.log.default),
    "sqrt": _tensors(aten.sqrt.default),
    "tanh": _tensors(aten.tanh.default),
    "floor": _tensors(aten.floor.default),
    "erf": _tensors(aten.erf.default),
    "where": _tensors(aten.where.self),
    "sum": _reduce(aten.sum.dim_IntList),
    "mean": _reduce(aten.mean.dim),
    "amax": _reduce(aten.amax.default),
    "topk": _topk,
    "pick": lambda w, e: w.op(aten.gather.default, w.tensor(e.args[0]), -1, w.tensor(e.args[1])),
    "scatter": lambda w, e: w.op(aten.scatter.src, w.tensor(e.args[0]), -1, *(w.tensor(a) for a in e.args[1:])),
    "matmul": _tensors(aten.matmul.default),
    "cast": _cast,
    "range": _range,
    "softmax": lambda w, e: w.op(aten.softmax.int, w.tensor(e.args[0]), e.attrs["axis"]),
    "sigmoid": _tensors(aten.sigmoid.default),
    "relu": _tensors(aten.relu.default),
}
