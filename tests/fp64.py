"""The golden of a whole model: a float64 copy of it, run by onnx.reference, not by ONNX Runtime or us."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def fp64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose floating-point inputs, weights, constants and casts are all double."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _graph(copy.graph)
    for function in copy.functions:
        _nodes(function.node)
    return copy


def run_fp64(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run the double copy; floating-point inputs are widened."""
    ints = (np.bool_, np.integer)
    wide = {n: a if issubclass(a.dtype.type, ints) else a.astype(np.float64) for n, a in inputs.items()}
    with np.errstate(all="ignore"):
        return [np.asarray(out) for out in ReferenceEvaluator(fp64(model)).run(None, wide)]


def _graph(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type in FLOATS:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        _tensor(tensor)
    _nodes(graph.node)


def _nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            WIDEN.get(attribute.type, lambda _: None)(attribute)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and attribute.name == "value_float":
                attribute.CopyFrom(
                    onnx.helper.make_attribute("value", numpy_helper.from_array(np.float64(attribute.f)))
                )


def _tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        wide = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


WIDEN: dict[int, Callable[[onnx.AttributeProto], None]] = {
    AttributeProto.TENSOR: lambda a: _tensor(a.t),
    AttributeProto.GRAPH: lambda a: _graph(a.g),
}
