"""Who runs an operation on torch tensors: the CUDA kernels, the kernels of the CPU, or the torch interpreter."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime_ops import cuda, kernels, to_torch
from runtime_ops.spec import OUT, Attribute, OpSpec
from runtime_ops.torch_layout import exchanged, heads_first

Tensor = torch.Tensor
Inputs = Sequence[Tensor | None]
_SMALL = 1 << 16  # elements of the largest input below which starting threads costs more than it saves


def name(spec: OpSpec) -> str:
    """Return the name of the torch op: TopKAttention is topk_attention."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", spec.name).lower()


def argument(attribute: Attribute) -> str:
    """Return what an attribute is called among an op's arguments: k is k_top, because attention has an input k."""
    return "k_top" if attribute.name == "k" else attribute.name


def run(spec: OpSpec, inputs: Inputs, attrs: Mapping[str, Any]) -> Tensor:
    """Return the result of a call, contiguous, from the fastest that takes its tensors."""
    if spec.name == cuda.OP and cuda.takes(inputs, attrs):
        return exchanged(cuda.forward(*heads_first(spec, inputs, attrs), keep=False)[0], OUT, attrs)
    where = _in_c if on_cpu(spec, inputs) else to_torch.call
    return where(spec, inputs, attrs).contiguous()


def on_cpu(spec: OpSpec, inputs: Inputs) -> bool:
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
    named = {argument(a): attrs[a.name] for a in spec.attributes}
    large = max(x.numel() for x in inputs if x is not None) > _SMALL
    run = getattr(kernels, f"run_{name(spec)}")
    return to_torch.tensor(run(*arrays, **named, threads=torch.get_num_threads() if large else 1))
