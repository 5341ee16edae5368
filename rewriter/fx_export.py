"""torch's ONNX exporter with our operations in its translation table, and their function bodies afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

from rewriter.errors import GraftError
from rewriter.hosts import onnx_edit
from runtime_ops import torch_ops
from runtime_ops.ops import OPS
from runtime_ops.spec import DOMAIN, VERSION, OpSpec

_KINDS = {int: OpSchema.AttrType.INT, float: OpSchema.AttrType.FLOAT, str: OpSchema.AttrType.STRING}
_TYPES = {"float": "T", "bool": "tensor(bool)", "int64": "tensor(int64)"}
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]


def exported(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> ir.Model:
    """Return the ONNX model of a module.

    Raises:
        GraftError: torch cannot export it.
    """
    table = {torch_ops.overload(spec): _translation(spec) for spec in OPS.values()}
    table.update(options.pop("custom_translation_table", {}))
    try:
        program = torch.onnx.export(
            module, args, dynamo=True, custom_translation_table=table, **{"verbose": False, **options}
        )
    except Exception as error:  # the exporter raises types of its own, one per step
        raise GraftError(f"torch cannot export the module to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None  # with no file given, the exporter returns a program
    onnx_edit.complete(program.model)
    return program.model


def _translation(spec: OpSpec) -> Callable[..., Any]:
    """Return the function that the exporter calls to write one call of an operation."""
    op = values.Op(values.Opset(DOMAIN, VERSION), spec.name, _schema(spec))
    count = len(spec.inputs)

    def write(*args: Any) -> Any:
        inputs, given = list(args[:count]), dict(zip((a.name for a in spec.attributes), args[count:], strict=False))
        while inputs and inputs[-1] is None:
            inputs.pop()
        attrs = {a.name: a.kind(v) for a in spec.attributes if (v := given.get(a.name, a.default)) is not None}
        return op(*inputs, **attrs)

    return write


def _schema(spec: OpSpec) -> OpSchema:
    """Return what onnxscript needs to know of an operation to write a node."""
    formal = OpSchema.FormalParameter
    option = OpSchema.FormalParameterOption
    inputs = [  # an input may have the name of an attribute: k of TopKAttention
        formal(f"{i.name}_input", _TYPES[i.kind], param_option=option.Optional if i.optional else option.Single)
        for i in spec.inputs
    ]
    return OpSchema(
        spec.name,
        DOMAIN,
        VERSION,
        inputs=inputs,
        outputs=[formal("out", "T")],
        type_constraints=[("T", _FLOATS, "floating types")],
        attributes=[OpSchema.Attribute(a.name, _KINDS[a.kind], a.doc, required=False) for a in spec.attributes],
    )
