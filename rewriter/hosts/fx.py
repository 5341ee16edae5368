"""The torch host: a ``torch.fx`` graph, traced or exported, seen as expressions of the alphabet."""

from __future__ import annotations

import builtins
import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from rewriter.hosts import fx_modules, fx_opaque
from rewriter.hosts.base import Graphs, Unfit
from rewriter.hosts.fx_lengths import Lengths, Told
from rewriter.hosts.fx_read import READ
from rewriter.hosts.fx_row import Weight, numpy_type, scalar
from rewriter.quiet_gc import quiet_gc
from runtime_ops.dims import Dim, vague
from runtime_ops.words import Expr, symbol

Node = torch.fx.Node
_KNOWN_LIMIT = 1024  # elements; larger weights are never looked into
_HOMES = (torch, torch.nn.functional, operator, math, builtins, torch.Tensor, torch._C._nn)
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv", "iand": "and_", "ior": "or_"}
ACTIVE_DROPOUT = "a dropout that is switched on (call .eval() on the module first)"
_MALFORMED = (ValueError, IndexError, TypeError, ZeroDivisionError, AttributeError, KeyError)


class FxGraphs(Graphs):
    """A traced or exported graph read into expressions.

    Args:
        module: the graph and what it refers to.
        weights: tensors that stand for inputs of the graph, by the input's name (exported programs).
        free: take the lengths that inputs were seen with as examples: only ranks, and lengths of 1, are relied on.
    """

    @quiet_gc
    def __init__(
        self, module: torch.fx.GraphModule, weights: Mapping[str, torch.Tensor] | None = None, free: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.unknown_shapes = False  # whether an input has no known rank
        self.weights = dict(weights or {})
        self._free = free
        self._lengths = Lengths(module.graph, free)
        self._values: dict[Node, Any] = {}
        for node in module.graph.nodes:
            self._at = node
            self._values[node] = self._read(node)

    def title(self, node: Node) -> str:
        """Return a node's name."""
        return str(node.name)

    def inputs(self) -> list[Expr]:
        """Return the inputs that are no weights."""
        nodes = (n for n in self.module.graph.nodes if n.op == "placeholder" and n.target not in self.weights)
        return [self.exprs[node] for node in nodes]

    def survivor(self, node: Node) -> str | None:
        """Return the name of a node that still reads ``node``, None if that was removed."""
        if node._erased:
            return None
        return next((user.name for user in node.users), "an output")

    def _read(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            found = _attribute(self.module, str(node.target))
            return self._weight(str(node.target), found, node) if isinstance(found, torch.Tensor) else None
        args = torch.fx.node.map_arg(node.args, lambda n: self._values[n])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: self._values[n])
        if node.op == "output":
            self.outputs |= {id(e) for e in _expressions(args)}
            return None
        if spelling(node)[0] == "_assert_tensor_metadata":
            return None  # a reader of nothing
        value, why = self._words(node, args, kwargs)
        if value is None:
            value = self._opaque(node, args, kwargs, why)
        value = self._bind(node, value) if isinstance(value, Expr) else value
        if self._writes(node):
            self._written(node.args[0], value)
        return value

    def _input(self, node: Node) -> Expr:
        if str(node.target) in self.weights:
            return self._weight(str(node.target), self.weights[str(node.target)], node)
        shape, dtype = self._told(node)
        self.unknown_shapes |= shape is None
        return self._bind(node, symbol(node.name, shape, dtype, node))

    def _weight(self, path: str, tensor: torch.Tensor, node: Node | None = None) -> Expr:
        """Return the constant that a parameter or buffer is; one expression for each path."""
        handle = Weight(path, tensor, node)
        if handle in self.exprs:
            return self.exprs[handle]
        real = not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"
        dtype = numpy_type(tensor.dtype)
        small = real and dtype is not None and tensor.numel() <= _KNOWN_LIMIT
        known = handle.numpy() if small else None
        return self._bind(handle, Expr("const", (), {}, tuple(tensor.shape), dtype, known, handle))

    def _words(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str | None]:
        """Return what a node says in words, None if nothing; and why, where there is a reason to tell."""
        if node.op == "call_module":
            return self._module(node, args, kwargs), None
        name, _ = spelling(node)
        if name not in READ or (self._writes(node) and not self._owned(node.args[0])):
            return None, None
        try:
            return READ[name](*args, **{k: v for k, v in kwargs.items() if k != "inplace"}), None
        except Unfit as reason:
            return None, str(reason)
        except _MALFORMED:
            return None, None  # stranger than the row expects: opaque

    def _module(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        module = self.module.get_submodule(str(node.target))
        row = fx_modules.row(module)
        if row is None or kwargs or len(args) != 1 or not isinstance(args[0], Expr):
            return None
        if self._writes(node) and not self._owned(node.args[0]):
            return None

        def fetch(name: str) -> Expr | None:
            tensor = getattr(module, name, None)
            return None if tensor is None else self._weight(f"{node.target}.{name}", tensor)

        try:
            return row(module, fetch, args[0])
        except _MALFORMED:
            return None

    def _writes(self, node: Node) -> bool:
        """Return whether a node writes into its first argument."""
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        return spelling(node)[1]

    def _owned(self, value: Any) -> bool:
        """Return whether nothing that was read so far looks into the memory of a tensor under another name."""
        if not isinstance(value, Node) or not value.op.startswith("call_"):
            return False
        if any(_is_view_of(user, value) for user in value.users if user in self._values):
            return False
        if not _is_view(value):
            return True
        source = value.args[0]
        return isinstance(source, Node) and len(source.users) == 1 and self._owned_but(source)

    def _owned_but(self, source: Node) -> bool:
        """Return whether the only reader of ``source`` is the view of it that is written into."""
        if not source.op.startswith("call_"):
            return False
        inner = source.args[0] if _is_view(source) else None
        return inner is None or (isinstance(inner, Node) and len(inner.users) == 1 and self._owned_but(inner))

    def _written(self, target: Any, value: Any) -> None:
        """After a write, what reads the target sees the result; what the target is a view of is no longer known."""
        while isinstance(target, Node):
            self._values[target] = value
            if not _is_view(target) or self._owned(target):
                return
            target = target.args[0]
            seen = self._values.get(target)
            shape, dtype = (seen.shape, seen.dtype) if isinstance(seen, Expr) else (None, None)
            value = Expr("opaque", (), {"op": "a write in place"}, shape, dtype, None, target)

    def _opaque(self, node: Node, args: Any, kwargs: Any, why: str | None) -> Any:
        given = (*_expressions((args, kwargs)), *self._held(node))
        op = self._op(node)
        told = node.meta.get("val", node.meta.get("tensor_meta"))
        if isinstance(told, (list, tuple)) and not hasattr(told, "dtype"):
            parts = (self._lengths.shape(t, f"{node.name}{i}") for i, t in enumerate(told))
            return [Expr("opaque", given, {"op": op, "why": why}, *part) for part in parts]
        shape, dtype = self._told(node)
        if self._same_shape(node) and given:
            shape = given[0].shape if shape is None or self._free else shape
            dtype = dtype or given[0].dtype
        if isinstance(told, (torch.SymInt, int)):
            return scalar(self._lengths.length(told))
        return Expr("opaque", given, {"op": op, "why": why}, shape, dtype)

    def _held(self, node: Node) -> list[Expr]:
        """Return the weights of a module that is called."""
        if node.op != "call_module":
            return []
        held = self.module.get_submodule(str(node.target)).named_parameters(recurse=False)
        return [self._weight(f"{node.target}.{name}", tensor) for name, tensor in held]

    def _op(self, node: Node) -> str:
        """Return the name of an operation that is not spelled out."""
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            drops = isinstance(module, torch.nn.modules.dropout._DropoutNd)
            return ACTIVE_DROPOUT if drops else fx_modules.name(module)
        name = spelling(node)[0] or str(getattr(node.target, "__name__", node.target))
        return ACTIVE_DROPOUT if "dropout" in name else fx_opaque.OPS.get(name, name)

    def _same_shape(self, node: Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.module.get_submodule(str(node.target)), fx_modules.SAME_SHAPE)
        return spelling(node)[0] in fx_opaque.SAME_SHAPE

    def _told(self, node: Node) -> Told:
        return self._lengths.shape(node.meta.get("val", node.meta.get("tensor_meta")), node.name)

    def _bind(self, handle: Any, expr: Expr) -> Expr:
        if expr.handle is None:
            shape, dtype = self._told(handle)
            refined = expr.shape if self._free and expr.shape is not None else _refine(expr.shape, shape)
            expr = dataclasses.replace(expr, handle=handle, shape=refined, dtype=expr.dtype or dtype)
        self.exprs[handle] = expr
        self._link(expr)
        return expr


def spelling(node: Node) -> tuple[str | None, bool]:
    """Return the name under which READ knows what a node calls, and whether it writes into its first argument."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        known = target.namespace in ("aten", "prims")
        name = str(target._schema.name).partition("::")[2] if known else None
        writes = bool(target._schema.is_mutable)
    elif node.op == "call_method":
        name, writes = str(target), str(target)[-1:] == "_" and str(target)[-2:] != "__"
    else:
        plain = str(getattr(target, "__name__", ""))
        name = plain if any(getattr(home, plain, None) is target for home in _HOMES) else None
        writes = name in _IN_PLACE or bool(node.kwargs.get("inplace"))
        name = _IN_PLACE.get(name or "", name)
    return (name.rstrip("_") if name and writes and not name.startswith("__") else name), writes


def lasts(node: Node) -> bool:
    """Return whether a node stays in an edited graph though nothing reads it.

    Asserts of the exporter, dropout that is switched off (torch holds attention too to be random) and writes that
    nothing else sees do not.
    """
    name, writes = spelling(node)
    off = name == "dropout" and False in (*node.args[2:3], node.kwargs.get("train"))
    off |= name == "scaled_dot_product_attention" and not any((*node.args[4:5], node.kwargs.get("dropout_p")))
    swept = name == "_assert_tensor_metadata" or off or (writes and _fresh(node.args[0], node, node))
    return (writes or bool(node.is_impure())) and not swept


def _fresh(value: Any, reader: Node, write: Node) -> bool:
    """Return whether nothing else sees a write into a tensor, made for ``reader``: it is read before, if at all."""
    if not isinstance(value, Node) or not value.op.startswith("call_"):
        return False
    if any(write < user or _is_view_of(user, value) for user in value.users if user is not reader):
        return False
    return _fresh(value.args[0], value, write) if _is_view(value) else True


_VIEWS = frozenset((
    "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "expand", "slice", "select", "getitem", "t",
    "chunk", "split", "unbind", "detach", "alias", "contiguous", "narrow", "flatten", "unflatten", "to", "expand_as",
    "view_as", "getattr", "split_with_sizes", "swapaxes", "float", "type_as", "dropout", "movedim",
))  # fmt: skip


def _is_view(node: Node) -> bool:
    """Return whether a result may share its memory with the first argument."""
    return node.op != "call_module" and spelling(node)[0] in _VIEWS


def _is_view_of(user: Node, value: Node) -> bool:
    """Return whether a reader may share the memory of ``value``; others read its shape, as expand_as does."""
    return _is_view(user) and (not user.args or user.args[0] is value)


def _attribute(module: torch.nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _expressions(value: Any) -> list[Expr]:
    """Return the expressions in nested arguments."""
    if isinstance(value, Expr):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [e for item in inner for e in _expressions(item)]


def _refine(shape: tuple[Dim, ...] | None, told: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Return the shape that was worked out, with the lengths that metadata tells where those say more."""
    if shape is None or told is None or len(told) != len(shape):
        return told if shape is None else shape
    return tuple(t if vague(s) and not vague(t) else s for s, t in zip(shape, told, strict=True))
