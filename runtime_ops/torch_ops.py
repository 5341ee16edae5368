"""The operations as torch ops `graft::<name>`, made from their specs; they run, train, compile and export.

>>> from runtime_ops.ops import OPS
>>> attend = runtime_ops.torch_ops.op(OPS["TopKAttention"])
>>> attend(q, k, v, None, None, None, k=64, causal=1)

An op runs in our kernels where they are built and take its tensors, else the alphabet's torch interpreter works it
out. Where gradients are asked for, `graft::<name>_training` runs instead: it also returns what
`graft::<name>_backward` needs (see `runtime_ops.torch_training`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime_ops import cuda, kernels, to_torch
from runtime_ops.ops import OPS
from runtime_ops.spec import Attribute, OpSpec
from runtime_ops.torch_training import TRAINING, Training, plain
from runtime_ops.words import symbol

NAMESPACE = "graft"
Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]
_SMALL = 1 << 16  # elements of the largest input below which starting threads costs more than it saves


def name(spec: OpSpec) -> str:
    """Return the name of the torch op: TopKAttention is topk_attention."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", spec.name).lower()


def argument(spec: OpSpec, attribute: Attribute) -> str:
    """Return what an attribute is called among the op's arguments: k, where k is an input too, is k_top."""
    return f"{attribute.name}_top" if any(i.name == attribute.name for i in spec.inputs) else attribute.name


def op(spec: OpSpec) -> Callable[..., Tensor]:
    """Return an operation for torch tensors.

    It takes the spec's inputs in order, None where absent, and the spec's attributes by name. What it calls, and what
    stands in graphs, is `torch.ops.graft.<name>.default`: the attributes follow the inputs, in the spec's order.
    """
    target = overload(spec)

    def run(*inputs: Tensor | None, **attrs: Any) -> Tensor:
        values = spec.attrs(attrs)
        absent = (None,) * (len(spec.inputs) - len(inputs))
        result: Tensor = target(*inputs, *absent, *(values[a.name] for a in spec.attributes))
        return result

    return run


def overload(spec: OpSpec) -> Any:
    """Return what stands for an operation in graphs; it takes inputs and attributes by position."""
    return _overload(name(spec))


def _overload(op_name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), op_name).default


def _split(spec: OpSpec, args: Sequence[Any]) -> tuple[Inputs, dict[str, Any], Sequence[Any]]:
    """Return the inputs, the attributes by the spec's names, checked, and what follows them.

    torch leaves out arguments at the end that have their default value.
    """
    first, last = len(spec.inputs), len(spec.inputs) + len(spec.attributes)
    args = (*args, *(None for _ in range(first - len(args))))
    given = zip(spec.attributes, args[first:last], strict=False)
    return args[:first], spec.attrs({a.name: value for a, value in given}), args[last:]


def _run(spec: OpSpec, *args: Any) -> Tensor:
    """Return the result of a call, from the fastest that takes its tensors."""
    inputs, attrs, _ = _split(spec, args)
    if spec.name == cuda.OP and cuda.takes(inputs):
        return cuda.forward(inputs, attrs, keep=False)[0]
    run = _in_c if _on_cpu(spec, inputs) else to_torch.call
    return run(spec, inputs, attrs).contiguous()


def _on_cpu(spec: OpSpec, inputs: Inputs) -> bool:
    """Return whether the library has a kernel for these tensors."""
    if any(x is not None and x.device.type != "cpu" for x in inputs):
        return False
    taken = _cpu_types(kernels.library_path()).get(spec.name, set())
    return _types(spec, inputs) <= taken and _one_type(spec, inputs)


@functools.cache
def _cpu_types(library: Path | None) -> dict[str, set[str]]:
    """Return the element types that the library's kernels take, by op."""
    found: dict[str, set[str]] = {}
    for row in kernels.kernels() if library else []:
        found.setdefault(row["op"], set()).update(row["dtypes"] if row["usable"] else [])
    return found


def _types(spec: OpSpec, inputs: Inputs) -> set[str]:
    pairs = zip(spec.inputs, inputs, strict=True)
    return {str(x.dtype).removeprefix("torch.") for i, x in pairs if x is not None and i.kind == "float"}


def _one_type(spec: OpSpec, inputs: Inputs) -> bool:
    """Return whether the inputs that must be there have one type."""
    pairs = zip(spec.inputs, inputs, strict=True)
    return len({x.dtype for i, x in pairs if x is not None and i.kind == "float" and not i.optional}) == 1


def _in_c(spec: OpSpec, inputs: Inputs, attrs: Mapping[str, Any]) -> Tensor:
    arrays = [None if x is None else to_torch.array(x) for x in inputs]
    named = {argument(spec, a): attrs[a.name] for a in spec.attributes}
    large = max(x.numel() for x in inputs if x is not None) > _SMALL
    run = getattr(kernels, f"run_{name(spec)}")
    return to_torch.tensor(run(*arrays, **named, threads=torch.get_num_threads() if large else 1))


def _fake(spec: OpSpec, *args: Any) -> Tensor:
    """Return a tensor with the shape and type of the result, as tracing wants it."""
    inputs, _, _ = _split(spec, args)
    pairs = zip(spec.inputs, inputs, strict=True)
    told = {i.name: symbol(i.name, x.shape, None) for i, x in pairs if x is not None}
    shape = spec.shape(told, lambda a, b: torch.broadcast_shapes((a,), (b,))[0])
    first = inputs[0]
    if shape is None or first is None:
        raise ValueError(f"{spec.name}: an input is missing that is not optional")
    lengths: Any = shape
    return first.new_empty(lengths)


def _differentiable(spec: OpSpec, *args: Any) -> Tensor:
    """Run a call, for training where a gradient is asked for."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
        outputs = _overload(f"{name(spec)}_training")(*args)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = _overload(name(spec))(*args)
    result: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return result


KINDS = {int: "int", float: "float", str: "str"}


def _arguments(spec: OpSpec) -> str:
    """Return inputs and attributes as a torch schema says them."""
    inputs = [f"Tensor? {i.name}=None" if i.optional else f"Tensor {i.name}" for i in spec.inputs]
    attributes = [
        f"{KINDS[a.kind]}{'?' * (a.default is None)} {argument(spec, a)}={json.dumps(a.default)}"
        for a in spec.attributes
    ]
    return ", ".join([*inputs, *attributes]).replace("=null", "=None")


def _define(spec: OpSpec) -> None:
    """Make the ops of one operation: to run it, to train it, and its gradient."""
    training = TRAINING.get(spec.name) or plain(functools.partial(to_torch.call, spec))
    qualified = f"{NAMESPACE}::{name(spec)}"
    _LIBRARY.define(f"{name(spec)}({_arguments(spec)}) -> Tensor")
    _LIBRARY.impl(name(spec), functools.partial(_run, spec), "CompositeExplicitAutograd")
    _LIBRARY.impl(name(spec), functools.partial(_differentiable, spec), "Autograd")
    torch.library.register_fake(qualified, functools.partial(_fake, spec), lib=_LIBRARY)
    _define_training(spec, training, qualified)
    _define_backward(spec, training, qualified)


def _define_training(spec: OpSpec, training: Training, qualified: str) -> None:
    """Make `<name>_training`: the result, and what its gradient needs beside the inputs."""
    returns = ", ".join(["Tensor"] * (1 + training.saves))

    def run(*args: Any) -> Any:
        outputs = training.forward(*_split(spec, args))
        return outputs if training.saves else outputs[0]

    def fake(*args: Any) -> Any:
        out = _fake(spec, *args)
        return (out, *training.fake(out, *_split(spec, args))) if training.saves else out

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*outputs[1:])
        count = len(spec.inputs)
        ctx.save_for_backward(*inputs[:count], *(outputs if training.saves else ()))
        ctx.rest, ctx.count = inputs[count:], count

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        given = ctx.needs_input_grad  # without arguments at the end that have their default value
        needs = [*given[: ctx.count], *(False for _ in range(ctx.count - len(given)))]
        inputs, saved = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        found = iter(_overload(f"{name(spec)}_backward")(grad, list(saved), needs, *inputs, *ctx.rest))
        return tuple(next(found) if i < ctx.count and need else None for i, need in enumerate(given))

    schema = f"({_arguments(spec)}{training.extra}) -> ({returns})"
    made = torch.library.custom_op(f"{qualified}_training", run, mutates_args=(), schema=schema)
    made.register_fake(fake)
    made.register_autograd(backward, setup_context=keep)


def _define_backward(spec: OpSpec, training: Training, qualified: str) -> None:
    """Make `<name>_backward`: the gradients of the inputs that need one."""

    def run(grad: Tensor, saved: list[Tensor], needs: list[bool], *args: Any) -> list[Tensor]:
        return [x.contiguous() for x in training.backward(grad, saved, needs, *_split(spec, args))]

    def fake(grad: Tensor, saved: list[Tensor], needs: list[bool], *args: Any) -> list[Tensor]:
        pairs = zip(args, needs, strict=False)  # the inputs come first
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x, need in pairs if need]

    schema = f"(Tensor grad, Tensor[] saved, bool[] needs, {_arguments(spec)}{training.extra}) -> Tensor[]"
    made = torch.library.custom_op(f"{qualified}_backward", run, mutates_args=(), schema=schema)
    made.register_fake(fake)


_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # the ops live as long as this object
for _spec in OPS.values():
    _define(_spec)
