"""The torch interpreter of the alphabet: what every word does to tensors, differentiable, on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

from runtime_ops import interpret
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from runtime_ops.spec import OpSpec

Tensor = torch.Tensor
Eval = Callable[[Sequence[Tensor], Mapping[str, Any]], Tensor]


def dtype(kind: Any) -> torch.dtype:
    """Return torch's name of a numpy element type, those of ml_dtypes included."""
    found: torch.dtype = getattr(torch, np.dtype(kind).name)
    return found


def numpy_dtype(kind: torch.dtype) -> np.dtype[Any]:
    """Return numpy's name of a torch element type."""
    name = str(kind).removeprefix("torch.")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def tensor(array: np.ndarray) -> Tensor:
    """Return a tensor with the values of an array, in the same memory."""
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array(tensor: Tensor) -> np.ndarray:
    """Return an array that looks into the memory of a tensor of the CPU, strides and all."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def call(spec: OpSpec, inputs: Sequence[Tensor | None], attrs: Mapping[str, Any]) -> Tensor:
    """Return what an operation means: its reference, worked out here.

    Args:
        spec: the operation.
        inputs: in the order of the spec, None where absent.
        attrs: its attributes; defaults for the rest.
    """
    present = {i.name: x for i, x in zip(spec.inputs, inputs, strict=False) if x is not None}
    wide = present[spec.inputs[0].name].dtype == torch.float64
    told = {name: (tuple(x.shape), numpy_dtype(x.dtype)) for name, x in present.items()}
    return evaluate(spec.expression(told, attrs), present, torch.float64 if wide else None)


def evaluate(expr: Expr, leaves: Mapping[Any, Tensor], floating: torch.dtype | None = None) -> Tensor:
    """Return the value of ``expr``.

    Args:
        expr: the expression; its inputs, and every node whose handle is in ``leaves``, are looked up there.
        leaves: tensors by handle or, for inputs without one, by name.
        floating: carry every floating tensor in this type, whatever the expression casts it to (float64: for
            golden values and for checking gradients).

    Raises:
        KeyError: an input is missing, or an opaque node is met.
    """
    done: dict[int, Tensor] = {}
    for node in interpret.topological(expr, lambda e: e.handle is not None and e.handle in leaves):
        leaf = _leaf(node, leaves)
        if leaf is not None:
            done[id(node)] = leaf.to(floating) if floating and leaf.is_floating_point() else leaf
        elif floating and node.word == "cast" and interpret.is_float(node.attrs["to"]):
            done[id(node)] = done[id(node.args[0])].to(floating)
        else:
            done[id(node)] = EVAL[node.word]([done[id(a)] for a in node.args], node.attrs)
    return done[id(expr)]


def _leaf(node: Expr, leaves: Mapping[Any, Tensor]) -> Tensor | None:
    """Return the tensor that a node stands for, None if it is to be worked out."""
    if node.handle is not None and node.handle in leaves:
        return leaves[node.handle]
    if node.word == "input":
        return leaves[node.attrs["name"]]
    if node.word == "const" and node.known is not None:
        return tensor(np.array(node.known))
    if node.word not in EVAL:
        raise KeyError(f"{node.word} {node.handle} has no value here")
    return None


def _on(function: Callable[..., Tensor]) -> Eval:
    """Apply a function to the arguments; those left on the CPU, lengths and constants, follow the others."""

    def evaluate(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
        device = next((a.device for a in args if a.device.type != "cpu"), None)
        return function(*(args if device is None else [a.to(device) for a in args]), **attrs)

    return evaluate


def _numbers(x: Tensor) -> list[int]:
    return [int(n) for n in x.reshape(-1).tolist()]


def _reshape(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    x, dims = args[0], _numbers(args[1])
    if not attrs.get("keep_zero"):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


def _expand(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return args[0].broadcast_to(torch.broadcast_shapes(args[0].shape, _numbers(args[1])))


def _slice(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    x = args[0]
    for start, end, axis, step in zip(*map(_numbers, args[1:]), strict=True):
        # below the lowest index going backwards, "up to and including the first" is spelled None
        stop = None if step < 0 and end <= -x.shape[axis] - 1 else end
        taken = range(*slice(start, stop, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def _unsqueeze(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    x, rank = args[0], args[0].ndim + len(attrs["axes"])
    for axis in sorted(a % rank for a in attrs["axes"]):
        x = x.unsqueeze(axis)
    return x


def _squeeze(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    return args[0].squeeze() if attrs["axes"] is None else args[0].squeeze(tuple(attrs["axes"]))


def _div(a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _reduce(function: Callable[..., Tensor]) -> Eval:
    def evaluate(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
        axes = tuple(attrs["axes"])
        return function(args[0], dim=axes, keepdim=bool(attrs.get("keepdims", True))) if axes else args[0]

    return evaluate


def _amax(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    if all(x.shape[axis] for axis in dim):
        return x.amax(dim, keepdim)
    return x.sum(dim, keepdim) - torch.inf  # of nothing


def _topk(args: Sequence[Tensor], attrs: Mapping[str, Any]) -> Tensor:
    """Return where the largest are, the first of equal ones first, as the numpy interpreter does."""
    return args[0].sort(dim=-1, descending=True, stable=True).indices[..., : _numbers(args[1])[0]]


EVAL: dict[str, Eval] = {
    "reshape": _reshape,
    "transpose": lambda args, attrs: args[0].permute(attrs["perm"]),
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "concat": lambda args, attrs: torch.cat(list(args), dim=attrs["axis"]),
    "slice": _slice,
    "gather": lambda args, attrs: args[0][(slice(None),) * (attrs["axis"] % args[0].ndim) + (args[1].long(),)],
    "dim": lambda args, attrs: torch.tensor(args[0].shape[slice(attrs.get("start", 0), attrs.get("end"))]),
    "add": _on(torch.add),
    "sub": _on(torch.sub),
    "mul": _on(torch.mul),
    "div": _on(_div),
    "pow": _on(torch.pow),
    "max": _on(torch.maximum),
    "min": _on(torch.minimum),
    "lt": _on(torch.lt),
    "le": _on(torch.le),
    "eq": _on(torch.eq),
    "and": _on(torch.logical_and),
    "or": _on(torch.logical_or),
    "not": _on(torch.logical_not),
    "neg": _on(torch.neg),
    "exp": _on(torch.exp),
    "log": _on(torch.log),
    "sqrt": _on(torch.sqrt),
    "tanh": _on(torch.tanh),
    "floor": _on(torch.floor),
    "erf": _on(torch.erf),
    "where": _on(lambda condition, a, b: torch.where(condition.bool(), a, b)),
    "sum": _reduce(torch.sum),
    "mean": _reduce(torch.mean),
    "amax": _reduce(_amax),
    "topk": _topk,
    "pick": _on(lambda x, where: torch.take_along_dim(x, where, dim=-1)),
    "scatter": _on(lambda x, where, values: x.scatter(-1, where, values)),
    "matmul": _on(torch.matmul),
    "cast": lambda args, attrs: args[0].to(dtype(attrs["to"])),
    "range": lambda args, attrs: torch.arange(*(a.reshape(-1)[0].item() for a in args), dtype=args[0].dtype),
    "softmax": lambda args, attrs: torch.softmax(args[0], dim=attrs["axis"]),
    "sigmoid": _on(torch.sigmoid),
    "relu": _on(torch.relu),
    "call": lambda args, attrs: call(attrs["spec"], _ordered(attrs, args), attrs["values"]),
}


def _ordered(attrs: Mapping[str, Any], args: Sequence[Tensor]) -> list[Tensor | None]:
    given = dict(zip(attrs["names"], args, strict=True))
    return [given.get(i.name) for i in attrs["spec"].inputs]
