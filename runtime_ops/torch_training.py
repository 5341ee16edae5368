"""What training an operation takes: what its forward pass keeps, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]
Attrs = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The forward and backward pass of an operation under training.

    Attributes:
        saves: number of tensors that the forward pass returns beside the result.
        extra: schema of the arguments behind the attributes, from the comma on.
        forward: inputs, attributes and extra arguments to the result and what it saves.
        fake: result, inputs, attributes and extra arguments to empty tensors like the saved ones.
        backward: gradient of the result, saved tensors (the result first), for which inputs a gradient is needed,
            then as forward; to those gradients.
    """

    saves: int = 0
    extra: str = ""
    forward: Callable[[Inputs, Attrs, Sequence[Any]], tuple[Tensor, ...]]
    fake: Callable[[Tensor, Inputs, Attrs, Sequence[Any]], tuple[Tensor, ...]]
    backward: Callable[[Tensor, Sequence[Tensor], Sequence[bool], Inputs, Attrs, Sequence[Any]], Sequence[Tensor]]


def plain(run: Callable[[Inputs, Attrs], Tensor]) -> Training:
    """Return training that keeps the inputs alone and differentiates ``run``, worked out once more."""

    def backward(
        grad: Tensor, saved: Sequence[Tensor], needs: Sequence[bool], inputs: Inputs, attrs: Attrs, extra: Sequence[Any]
    ) -> Sequence[Tensor]:
        moving = [x for x, need in zip(inputs, needs, strict=True) if need and x is not None]

        def on(*given: Tensor) -> Tensor:
            rest = iter(given)
            return run([next(rest) if need else x for x, need in zip(inputs, needs, strict=True)], attrs)

        # inside an op autograd is switched off; the functional transform brings its own
        gradients: Sequence[Tensor] = torch.func.vjp(on, *moving)[1](grad)
        return gradients

    return Training(
        forward=lambda inputs, attrs, extra: (run(inputs, attrs).contiguous(),),
        fake=lambda out, inputs, attrs, extra: (),
        backward=backward,
    )
