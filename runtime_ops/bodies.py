"""Function bodies: our operations in standard ONNX operators, so that a model runs where our kernels are missing."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from runtime_ops.to_onnx import Writer
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from runtime_ops.spec import OpSpec, Signature


class Bodies:
    """The function bodies that a model needs, one per operation, attributes, present inputs and opset.

    Args:
        taken: op types and overloads that the model has already.
    """

    def __init__(self, taken: Collection[tuple[str, str]] = ()) -> None:
        self.functions: list[ir.Function] = []
        self._taken = set(taken)
        self._overloads: dict[str, str] = {}

    def overload(self, spec: OpSpec, signature: Signature, values: Mapping[str, Any], opset: int) -> str:
        """Return the overload of the body for a call, making the body if it is new.

        The first body of an operation has none: ONNX Runtime (1.31) loses the overload of a call inside another
        function, so that only this one is found there where our kernels are missing.
        """
        signature = spec.told(signature, values)
        told = {name: (str(shape), str(dtype)) for name, (shape, dtype) in signature.items()}
        key = repr((spec.name, told, sorted(values.items()), opset))
        if key not in self._overloads:
            names = itertools.chain([""], map(str, itertools.count(2)))
            self._overloads[key] = next(name for name in names if (spec.name, name) not in self._taken)
            self._taken.add((spec.name, self._overloads[key]))
            self.functions.append(spec.body(signature, values, opset, self._overloads[key]))
        return self._overloads[key]


def function(
    domain: str,
    name: str,
    overload: str,
    inputs: Sequence[Expr | None],
    result: Expr,
    attrs: Sequence[str],
    opset: int,
) -> ir.Function:
    """Return a model-local function that computes ``result``.

    Args:
        domain: domain of the function.
        name: its op type.
        overload: tells bodies of one name apart.
        inputs: named inputs in order; None where an optional input is absent (it keeps its place).
        result: the body.
        attrs: names of the attributes that calls carry; the body has their values built in.
        opset: version of the default domain to write for.
    """
    values = [ir.val(e.attrs["name"] if e is not None else f"absent_{i}") for i, e in enumerate(inputs)]
    writer = Writer(opset, {v.name: v for v in values})
    output = writer.value(result)
    graph = ir.Graph(values, [output], nodes=writer.nodes, opset_imports={"": opset}, name=f"{name}_{overload}")
    declared = [ir.Attr(attr, ir.AttributeType.UNDEFINED, None) for attr in attrs]
    return ir.Function(domain, name, overload, graph=graph, attributes=declared)
