"""Calls on torch tensors whose tokens come first, as views with heads first: attribute ``tokens_first``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from runtime_ops.spec import OUT, TOKENS_FIRST, OpSpec, turned
from runtime_ops.torch_training import Attrs, Inputs, Training

Tensor = torch.Tensor


def exchanged(x: Tensor, name: str, attrs: Attrs) -> Tensor:
    """Return a view of an operand or the result with heads first; or as the call has it, of one with heads first."""
    return x.transpose(1, 2) if name in turned(attrs) else x


def heads_first(spec: OpSpec, inputs: Inputs, attrs: Attrs) -> tuple[Inputs, dict[str, Any]]:
    """Return views of the inputs with heads first, and attributes that leave the result to be exchanged."""
    pairs = zip(spec.inputs, inputs, strict=True)
    views = [x if x is None else exchanged(x, i.name, attrs) for i, x in pairs]
    return views, {**attrs, TOKENS_FIRST.name: OUT if OUT in turned(attrs) else ""}


def place(like: Tensor, shape: Sequence[int], attrs: Mapping[str, Any]) -> Tensor:
    """Return room for a result [b h s e] that lies in memory as the call gives it."""
    b, h, s, e = shape
    return exchanged(like.new_empty((b, s, h, e) if OUT in turned(attrs) else (b, h, s, e)), OUT, attrs)


def by_heads(spec: OpSpec, training: Training) -> Training:
    """Return training of an operation from one that knows heads first alone; its result lies as ``place`` says."""

    def forward(inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
        out, *saved = training.forward(*heads_first(spec, inputs, attrs), extra)
        return exchanged(out, OUT, attrs), *saved

    def fake(out: Tensor, inputs: Inputs, attrs: Attrs, extra: Sequence[Any]) -> tuple[Tensor, ...]:
        return training.fake(exchanged(out, OUT, attrs), *heads_first(spec, inputs, attrs), extra)

    def backward(
        grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool], inputs: Inputs, attrs: Attrs, extra: Sequence[Any]
    ) -> Sequence[Tensor]:
        grad, out = (exchanged(x, OUT, attrs) for x in (grad, saved[0]))
        found = training.backward(grad, (out, *saved[1:]), needs, *heads_first(spec, inputs, attrs), extra)
        names = (i.name for i, need in zip(spec.inputs, needs, strict=True) if need)
        return [exchanged(x, name, attrs) for x, name in zip(found, names, strict=True)]

    return Training(saves=training.saves, extra=training.extra, forward=forward, fake=fake, backward=backward)
