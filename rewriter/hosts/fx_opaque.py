"""READ for torch: what no words of the alphabet say, under the names that readers know, which are ONNX's.

All of these have the shape of their first argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from rewriter.hosts.fx_row import Row
from rewriter.hosts.spelled import point_convolution
from runtime_ops.words import Expr, const

# Functions, methods and ATen operators: what readers call them.
OPS: dict[str, str] = {
    "sin": "Sin", "cos": "Cos", "cumsum": "CumSum", "round": "Round", "ceil": "Ceil", "sign": "Sign",
    "softsign": "Softsign", "prelu": "PRelu", "_prelu_kernel": "PRelu", "selu": "Selu", "celu": "Celu",
    "log_softmax": "LogSoftmax", "_log_softmax": "LogSoftmax", "softmax": "Softmax",
    "layer_norm": "LayerNormalization", "rms_norm": "RMSNormalization", "_fused_rms_norm": "RMSNormalization",
    "native_layer_norm": "LayerNormalization", "group_norm": "GroupNormalization",
    "native_group_norm": "GroupNormalization", "instance_norm": "InstanceNormalization",
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"), "BatchNormalization"),
    **dict.fromkeys(("conv1d", "conv2d", "convolution"), "Conv"),
}  # fmt: skip
MODULES: dict[type, str] = {
    nn.GroupNorm: "GroupNormalization",
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d), "InstanceNormalization"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm), "BatchNormalization"),
    nn.LogSoftmax: "LogSoftmax",
    nn.Softsign: "Softsign",
    nn.PReLU: "PRelu",
    nn.SELU: "Selu",
    nn.CELU: "Celu",
}
# What has the shape of its first argument, whatever else it does.
SAME_SHAPE = frozenset((*OPS, "roll", "flip", "tril_", "dropout", "native_dropout")).difference(
    ("conv1d", "conv2d", "convolution", "softmax")
)


def _norm(
    op: str, x: Expr, normalized_shape: Sequence[Any], weight: Expr | None, bias: Expr | None, eps: float | None
) -> Expr:
    """Return a norm over the last axes; without weights it has those that change nothing, as ONNX writes it."""
    given = weight if weight is not None else const(np.ones([int(n) for n in normalized_shape], x.dtype or np.float32))
    attrs = {"op": op} if eps is None else {"op": op, "epsilon": eps}
    return Expr("opaque", (x, given, *([] if bias is None else [bias])), attrs, x.shape, x.dtype)


def _layer_norm(
    x: Expr, normalized_shape: Sequence[Any], weight: Expr | None = None, bias: Expr | None = None, eps: float = 1e-5,
    *rest: Any, **options: Any,
) -> Expr:  # fmt: skip
    """Read a layer norm."""
    return _norm("LayerNormalization", x, normalized_shape, weight, bias, eps)


def _rms_norm(x: Expr, normalized_shape: Sequence[Any], weight: Expr | None = None, eps: float | None = None) -> Expr:
    """Read an RMS norm."""
    return _norm("RMSNormalization", x, normalized_shape, weight, None, eps)


def _convolution(
    x: Expr, weight: Expr, bias: Expr | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Expr | None:  # fmt: skip
    """Read a convolution over one position as a product; None for any other."""
    kernel = (weight.shape or ())[2:]
    ones = [n for option in (stride, kernel) for n in (option if isinstance(option, (list, tuple)) else [option])]
    pads = list(padding) if isinstance(padding, (list, tuple)) else [padding]
    if not kernel or groups != 1 or any(n != 1 for n in ones) or any(n != 0 for n in pads) or x.rank is None:
        return None
    return point_convolution(x, weight, bias)


def _any_convolution(
    x: Expr, weight: Expr, bias: Expr | None, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
) -> Expr | None:
    return None if transposed else _convolution(x, weight, bias, stride, padding, dilation, rest[-1])


ROWS: dict[str, Row] = {
    "layer_norm": _layer_norm,
    "native_layer_norm": lambda *args: [_layer_norm(*args), None, None],
    "rms_norm": _rms_norm,
    "_fused_rms_norm": lambda *args: [_rms_norm(*args), None],
    **dict.fromkeys(("conv1d", "conv2d"), _convolution),
    "convolution": _any_convolution,
}
