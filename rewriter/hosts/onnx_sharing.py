"""Several models that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
from onnx_ir.passes import common as passes

SMALL = 1024  # bytes; what is smaller stays in the models, where shapes are worked out from it
_ALIGNED = 64


def save_sharing(models: Mapping[str, ir.Model], folder: Path, name: str) -> None:
    """Write models into a folder, and each of their large weights once, into ``folder/name``.

    Weights of one name are the same in all models.
    """
    written: dict[str, ir.ExternalTensor] = {}
    with (folder / name).open("wb") as stream:
        for model in models.values():
            passes.LiftConstantsToInitializersPass()(model)
            for key, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < SMALL or tensor.dtype == ir.DataType.STRING:
                    continue
                if key not in written:
                    written[key] = _write(tensor, stream, folder, name)
                value.const_value = written[key]
    for part, model in models.items():
        ir.save(model, folder / f"{part}.onnx")


def _write(tensor: ir.TensorProtocol, stream: BinaryIO, folder: Path, name: str) -> ir.ExternalTensor:
    stream.write(b"\0" * (-stream.tell() % _ALIGNED))
    start = stream.tell()
    stream.write(tensor.tobytes())
    length, shape = stream.tell() - start, ir.Shape(tensor.numpy().shape)
    return ir.ExternalTensor(name, start, length, tensor.dtype, shape=shape, name=tensor.name or "", base_dir=folder)
