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
from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime_ops import to_torch, torch_attention, torch_feed_forward
from runtime_ops.ops import OPS
from runtime_ops.spec import OpSpec
from runtime_ops.torch_run import argument, name, run
from runtime_ops.torch_training import Training, plain
from runtime_ops.words import symbol

NAMESPACE = "graft"
Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]
# the others keep their inputs, see ``plain``
TRAINING = {"TopKAttention": torch_attention.TRAINING, "TopKFeedForward": torch_feed_forward.TRAINING}


def op(spec: OpSpec) -> Callable[..., Tensor]:
    """Return an operation for torch tensors.

    It takes the spec's inputs in order, None where absent, and the spec's attributes by name. What it calls, and what
    stands in graphs, is `torch.ops.graft.<name>.default`: the attributes follow the inputs, in the spec's order.
    """
    target = overload(spec)

    def run(*inputs: Tensor | None, **attrs: Any) -> Tensor:
        values = spec.attrs(attrs)
        absent = (None,) * (len(spec.inputs) - len(inputs))
        result: Tensor = target(*inputs, *absent, *values.values())
        return result

    return run


def topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    past_length: Tensor | None = None,
    *,
    k_top: int = 0,
    scale: float | None = None,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    no_key: str = "zero",
    remainder: str = "none",
    tokens_first: str = "",
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend to the `k_top` best keys of every query (0: to all of them); runs and trains in memory O(s).

    q [b h s d], k [b g t d], v [b g t e], bias right-aligned to [b h s t], key_mask bool [b t], past_length int64 [b];
    returns [b h s e]. Gradients reach q, k, v and the bias. `window`, `no_key`, `remainder` and `tokens_first`: see
    `ai.graft::TopKAttention`. `dropout_p` drops attention weights, as in training; its random numbers come from torch's
    default generator.
    """
    spec = OPS["TopKAttention"]
    inputs = (q, k, v, bias, key_mask, past_length)
    attrs = {
        "k": k_top, "scale": scale, "causal": int(causal), "window": window, "softcap": softcap, "no_key": no_key,
        "remainder": remainder, "tokens_first": tokens_first,
    }  # fmt: skip
    if not dropout_p:
        return op(spec)(*inputs, **attrs)
    if not 0 < dropout_p <= 1:
        raise ValueError(f"dropout_p is {dropout_p}; it must be between 0 and 1")
    values, seed = spec.attrs(attrs), torch.randint(1 << 62, ())
    outputs = _overload("topk_attention_training")(*inputs, *values.values(), dropout_p=dropout_p, seed=seed)
    result: Tensor = outputs[0]
    return result


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


def _fake(spec: OpSpec, *args: Any) -> Tensor:
    """Return a tensor with the shape and type of the result, as tracing wants it."""
    inputs, attrs, _ = _split(spec, args)
    pairs = zip(spec.inputs, inputs, strict=True)
    told = {i.name: symbol(i.name, x.shape, None) for i, x in pairs if x is not None}
    shape = spec.shape(told, attrs, lambda a, b: torch.broadcast_shapes((a,), (b,))[0])
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
        f"{KINDS[a.kind]}{'?' * (a.default is None)} {argument(a)}={json.dumps(a.default)}" for a in spec.attributes
    ]
    return ", ".join([*inputs, *attributes]).replace("=null", "=None")


def _define(spec: OpSpec) -> None:
    """Make the ops of one operation: to run it, to train it, and its gradient."""
    training = TRAINING.get(spec.name) or plain(functools.partial(to_torch.call, spec))
    qualified = f"{NAMESPACE}::{name(spec)}"
    _LIBRARY.define(f"{name(spec)}({_arguments(spec)}) -> Tensor")
    _LIBRARY.impl(name(spec), lambda *args: run(spec, *_split(spec, args)[:2]), "CompositeExplicitAutograd")
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
        ctx.set_materialize_grads(False)  # no zeros as large as what is saved
        count = len(spec.inputs)
        ctx.save_for_backward(*inputs[:count], *(outputs if training.saves else ()))
        ctx.rest, ctx.count = inputs[count:], count

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        given = ctx.needs_input_grad  # without arguments at the end that have their default value
        if grad is None:
            return (None,) * len(given)
        needs = [*given[: ctx.count], *(False for _ in range(ctx.count - len(given)))]
        kept = ctx.saved_tensors  # once: checkpoints count
        inputs, saved = kept[: ctx.count], kept[ctx.count :]
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
