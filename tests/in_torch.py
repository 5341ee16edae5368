"""A sketch as a torch module: every node of the ONNX graph becomes what people write for it in torch.

Lengths, and vectors of them, are numbers and lists of Python, as in torch; all else are tensors. The module runs,
``torch.fx.symbolic_trace`` traces it once it has run, and ``torch.export`` exports it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from onnx import helper, numpy_helper

Row = Callable[..., Any]


class NoTorchForm(Exception):  # noqa: N818 - an answer, not an error
    """A node that torch has no words for."""


def in_torch(model: onnx.ModelProto) -> torch.nn.Module:
    """Return the module that computes what a model does, with arguments of the same names.

    Raises:
        NoTorchForm: an operator of the model has no row.
    """
    own = {(f.domain, f.name) for f in model.functions}
    for node in _nodes(model):
        if (node.domain or node.op_type not in ROWS) and (node.domain, node.op_type) not in own:
            raise NoTorchForm(node.op_type)
    names = ", ".join(given.name for given in model.graph.input)
    forward = eval(f"lambda self, {names}: self.run({names})")  # tracing knows arguments by their names
    module: torch.nn.Module = type("InTorch", (Sketched,), {"forward": forward})(model).eval()
    return module


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [*model.graph.node, *(node for f in model.functions for node in f.node)]


class Sketched(torch.nn.Module):
    """A model whose nodes are walked through when it is called."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.model = model
        self.opset = next(entry.version for entry in model.opset_import if not entry.domain)
        self.ranks: dict[str, int] = {}  # of all tensors, as a run has shown them: what is traced does not tell
        self.known: dict[str, Any] = {}
        for tensor in model.graph.initializer:
            self._keep(tensor.name, numpy_helper.to_array(tensor))
        for node in _nodes(model):
            if node.op_type == "Constant":
                self._keep(node.output[0], _constant(node))

    def _keep(self, name: str, array: np.ndarray) -> None:
        """Numbers and few of them are Python's, as people write them; all else are buffers."""
        few = array.dtype.kind in "iub" and array.ndim < 2 and array.size < 8
        if few or (array.ndim == 0 and array.dtype == np.float32):
            self.known[name] = array.tolist()
            return
        half = array.dtype == ml_dtypes.bfloat16
        tensor = torch.from_numpy(array.astype(np.float32) if half else array.copy())
        self.register_buffer(_path(name), tensor.bfloat16() if half else tensor)
        self.ranks[name] = array.ndim

    def run(self, *inputs: Any) -> Any:
        values = dict(zip((given.name for given in self.model.graph.input), inputs, strict=True))
        self.ranks |= {name: x.ndim for name, x in values.items() if isinstance(x, torch.Tensor)}
        self._walk(self.model.graph.node, values)
        results = tuple(values[result.name] for result in self.model.graph.output)
        return results if len(results) > 1 else results[0]

    def _walk(self, nodes: Sequence[onnx.NodeProto], values: dict[str, Any]) -> None:
        for node in nodes:
            if node.op_type == "Constant":
                continue
            args = [self._value(name, values) for name in node.input]
            out = self._inlined(node, args) if node.domain else ROWS[node.op_type](Call(self, node), *args)
            for i, name in enumerate(node.output):
                values[name] = out[i] if len(node.output) > 1 else out
                if isinstance(values[name], torch.Tensor):
                    self.ranks[name] = values[name].ndim

    def _inlined(self, node: onnx.NodeProto, args: Sequence[Any]) -> Any:
        function = next(f for f in self.model.functions if (f.domain, f.name) == (node.domain, node.op_type))
        inner = dict(zip(function.input, args, strict=True))
        self.ranks |= {own: self.ranks[given] for own, given in zip(function.input, node.input, strict=True)}
        self._walk(function.node, inner)
        return inner[function.output[0]]

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in values:
            return values[name]
        return self.known[name] if name in self.known else getattr(self, _path(name), None)


def _path(name: str) -> str:
    return f"w_{name.replace('.', '_')}"


def _constant(node: onnx.NodeProto) -> np.ndarray:
    value = helper.get_attribute_value(node.attribute[0])
    return np.array(value, np.float32) if isinstance(value, float) else numpy_helper.to_array(value)


class Call:
    """One node while it is written in torch: its attributes, and what is known of its inputs."""

    def __init__(self, module: Sketched, node: onnx.NodeProto) -> None:
        self.ranks, self.inputs, self.opset, self.outputs = module.ranks, node.input, module.opset, len(node.output)
        self.attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def tensor(self, at: int = 0) -> bool:
        return at < len(self.inputs) and self.inputs[at] in self.ranks

    def rank(self, at: int = 0) -> int:
        return self.ranks[self.inputs[at]]

    def axis(self, default: int) -> int:
        return int(self.attr("axis", default)) % self.rank()


# -- rows ------------------------------------------------------------------------------------------


def one(x: Any) -> Any:
    """A vector of one number as that number."""
    return x[0] if isinstance(x, list) else x


def two(op: Callable[[Any, Any], Any]) -> Row:
    def row(c: Call, x: Any, y: Any) -> Any:
        if c.tensor(0) or c.tensor(1) or not (isinstance(x, list) or isinstance(y, list)):
            return op(one(x), one(y))
        count = max(len(side) for side in (x, y) if isinstance(side, list))
        left, right = (
            side if isinstance(side, list) and len(side) == count else [one(side)] * count for side in (x, y)
        )
        return [op(a, b) for a, b in zip(left, right, strict=True)]

    return row


def unary(op: Callable[[Any], Any]) -> Row:
    return lambda c, x: op(one(x))


def equal(c: Call, x: Any, y: Any) -> Any:
    """Lengths are compared with -1 only, which none is."""
    return two(operator.eq)(c, x, y) if c.tensor(0) or c.tensor(1) else [False for _ in x]


def choose(c: Call, keep: Any, x: Any, y: Any) -> Any:
    return torch.where(keep, x, y) if c.tensor() else [a if k else b for k, a, b in zip(keep, x, y, strict=True)]


def bounded(op: Callable[[Any, Any], Any], side: str) -> Row:
    """Min and Max: with a number, a clamp."""
    return lambda c, x, y: op(x, y) if c.tensor(1) else torch.clamp(x, **{side: y})


def root(c: Call, x: Any) -> Any:
    return x.sqrt() if c.tensor() else one(x) ** 0.5


def reshape(c: Call, x: Any, shape: Any) -> Any:
    return x.reshape([x.size(i) if isinstance(n, int) and n == 0 else n for i, n in enumerate(shape)])


def flatten(c: Call, x: Any) -> Any:
    axis = c.attr("axis")
    return (x.unsqueeze(-1) if axis == c.rank() else x.flatten(axis)).flatten(0, axis - 1)


def expand(c: Call, x: Any, shape: Any) -> Any:
    if not c.tensor():
        return torch.full(shape, x)
    wide = [1] * (c.rank() - len(shape)) + list(shape)
    new = len(wide) - c.rank()
    return x.expand([-1 if i >= new and isinstance(n, int) and n == 1 else n for i, n in enumerate(wide)])


def given_axes(c: Call, axes: Any) -> list[int]:
    return list(c.attr("axes") if axes is None else axes)


def unsqueeze(c: Call, x: Any, axes: Any = None) -> Any:
    if not c.tensor():
        return [x]
    for axis in sorted(given_axes(c, axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(c: Call, x: Any, axes: Any = None) -> Any:
    for axis in sorted(given_axes(c, axes), reverse=True):
        x = x.squeeze(axis) if c.tensor() else x[0]
    return x


def gather(c: Call, x: Any, at: Any) -> Any:
    if not c.tensor():
        return [x[i] for i in at] if isinstance(at, list) else x[at]
    at = torch.tensor(at) if isinstance(at, list) else at
    return x[(*[slice(None)] * c.axis(0), at)]


def gather_nd(c: Call, x: Any, at: Any) -> Any:
    return x[at[..., 0], at[..., 1]]


def cut(c: Call, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    axes = axes or list(range(len(starts)))
    cuts = {
        a % c.rank() if c.tensor() else 0: slice(i, None if isinstance(j, int) and j >= 2**31 else j, n)
        for i, j, a, n in zip(starts, ends, axes, steps or [None] * len(axes), strict=True)
    }
    return x[tuple(cuts.get(i, slice(None)) for i in range(max(cuts) + 1))] if c.tensor() else x[cuts[0]]


def concat(c: Call, *parts: Any) -> Any:
    if not c.tensor():
        return [n for part in parts for n in part]
    return torch.cat(parts, dim=c.attr("axis"))


def split(c: Call, x: Any, sizes: Any = None) -> Any:
    return x.split(list(sizes or c.attr("split")), dim=c.attr("axis", 0))


def cast(c: Call, x: Any) -> Any:
    to = helper.tensor_dtype_to_np_dtype(c.attr("to"))
    return x.to(getattr(torch, np.dtype(to).name)) if c.tensor() else x


def counted(c: Call, start: Any, end: Any, step: Any) -> Any:
    start, end = one(start), one(end)
    return torch.arange(end) if isinstance(start, int) and start == 0 else torch.arange(start, end)


def filled(c: Call, shape: Any) -> Any:
    value = numpy_helper.to_array(c.attr("value")).reshape(())
    return [value.item()] * shape[0] if value.dtype.kind == "i" else torch.full(shape, value.item())


def triangle(c: Call, x: Any, offset: int = 0) -> Any:
    return torch.triu(x, offset) if c.attr("upper", 1) else torch.tril(x, offset)


def reduce(name: str) -> Row:
    def row(c: Call, x: Any, axes: Any = None) -> Any:
        return getattr(x, name)(given_axes(c, axes), keepdim=bool(c.attr("keepdims", 1)))

    return row


def softmax(c: Call, x: Any, name: str = "softmax") -> Any:
    axis = c.axis(-1 if c.opset >= 13 else 1)
    if c.opset < 13 and axis != c.rank() - 1:
        return getattr(x.flatten(axis), name)(-1).view_as(x)
    return getattr(x, name)(dim=axis)


def product(c: Call, a: Any, b: Any, bias: Any = None) -> Any:
    a, b = (x.t() if c.attr(which) else x for x, which in ((a, "transA"), (b, "transB")))
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    return (a @ b) * alpha if bias is None else torch.addmm(bias, a, b, beta=beta, alpha=alpha)


def convolution(c: Call, x: Any, weight: Any, bias: Any = None) -> Any:
    run = (F.conv1d, F.conv2d)[c.rank() - 3]
    return run(x, weight, bias, padding=tuple((c.attr("pads") or [0, 0])[: c.rank() - 2]), groups=c.attr("group", 1))


def layer_norm(c: Call, x: Any, gain: Any, shift: Any = None) -> Any:
    return F.layer_norm(x, gain.shape, gain, shift, c.attr("epsilon", 1e-5))


def gelu(c: Call, x: Any) -> Any:
    return F.gelu(x, approximate=c.attr("approximate", "none"))


ROWS: dict[str, Row] = {
    **{name: two(op) for name, op in {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul,
       "Div": operator.truediv, "Pow": operator.pow, "MatMul": operator.matmul, "Less": operator.lt,
       "LessOrEqual": operator.le, "Greater": operator.gt, "GreaterOrEqual": operator.ge, "And": operator.and_,
       "Or": operator.or_}.items()},
    **{name: unary(op) for name, op in {"Identity": lambda x: x, "Neg": operator.neg, "Not": operator.invert,
       "Exp": torch.exp, "Tanh": torch.tanh, "Erf": torch.erf, "Cos": torch.cos, "Sin": torch.sin, "Abs": torch.abs,
       "Reciprocal": lambda x: 1.0 / x, "IsNaN": torch.isnan, "Sigmoid": torch.sigmoid, "Relu": F.relu,
       "Elu": F.elu, "HardSwish": F.hardswish, "Softsign": F.softsign, "Softplus": F.softplus, "Mish": F.mish,
       "Swish": F.silu}.items()},
    "Constant": lambda c: None,  # kept when the module is made
    "Sqrt": root,
    "Equal": equal,
    "Where": choose,
    "Min": bounded(torch.minimum, "max"),
    "Max": bounded(torch.maximum, "min"),
    "Clip": lambda c, x, low=None, high=None: torch.clamp(x, low, high),
    "LeakyRelu": lambda c, x: F.leaky_relu(x, c.attr("alpha")),
    "Gelu": gelu,
    "Dropout": lambda c, x, *rest: F.dropout(x, 0.1, False),
    "Transpose": lambda c, x: x.permute(*c.attr("perm")),
    "Reshape": reshape,
    "Flatten": flatten,
    "Expand": expand,
    "Tile": lambda c, x, times: x.repeat(*times),
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Shape": lambda c, x: [x.size(i) for i in range(c.rank())],
    "Gather": gather,
    "GatherND": gather_nd,
    "GatherElements": lambda c, x, at: x.gather(c.axis(0), at),
    "ScatterElements": lambda c, x, at, new: x.scatter(c.axis(0), at, new),
    "Slice": cut,
    "Concat": concat,
    "Split": split,
    "Cast": cast,
    "Range": counted,
    "ConstantOfShape": filled,
    "Trilu": triangle,
    "ReduceSum": reduce("sum"),
    "ReduceMean": reduce("mean"),
    "ReduceMax": reduce("amax"),
    "Softmax": softmax,
    "LogSoftmax": lambda c, x: softmax(c, x, "log_softmax"),
    "Einsum": lambda c, *parts: torch.einsum(c.attr("equation"), *parts),
    "Gemm": product,
    "Conv": convolution,
    "LayerNormalization": layer_norm,
}  # fmt: skip
