"""READ for torch: modules that a traced graph calls, each as the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rewriter.hosts import fx_opaque
from rewriter.hosts.fx_read import READ
from runtime_ops.words import Expr

Fetch = Callable[[str], "Expr | None"]  # a parameter or buffer of the module, by its name there
Call = Callable[[Any, Fetch, Expr], Any]


def _plain(name: str, *options: str) -> Call:
    """Return the row of a module that is a function of its input and of some of its own attributes."""
    return lambda module, fetch, x: READ[name](x, **{option: getattr(module, option) for option in options})


def _linear(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["linear"](x, fetch("weight"), fetch("bias"))


def _norm(module: Any, fetch: Fetch, x: Expr) -> Any:
    bias = (fetch("bias"),) if isinstance(module, nn.LayerNorm) else ()
    name = "layer_norm" if bias else "rms_norm"
    return READ[name](x, module.normalized_shape, fetch("weight"), *bias, eps=module.eps)


def _convolution(module: Any, fetch: Fetch, x: Expr) -> Any:
    options = (module.stride, module.padding, module.dilation, module.groups)
    return READ["conv2d"](x, fetch("weight"), fetch("bias"), *options)


def _embedding(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["embedding"](fetch("weight"), x)


def _dropout(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["dropout"](x, module.p, module.training)


def _flatten(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["flatten"](x, module.start_dim, module.end_dim)


MODULES: dict[type, Call] = {
    nn.Linear: _linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _linear,
    nn.Embedding: _embedding,
    nn.Softmax: _plain("softmax", "dim"),
    nn.Identity: lambda module, fetch, x: x,
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _dropout),
    nn.Flatten: _flatten,
    nn.Unflatten: lambda module, fetch, x: READ["unflatten"](x, module.dim, module.unflattened_size),
    nn.ReLU: _plain("relu"),
    nn.GELU: _plain("gelu", "approximate"),
    nn.SiLU: _plain("silu"),
    nn.Mish: _plain("mish"),
    nn.Sigmoid: _plain("sigmoid"),
    nn.Tanh: _plain("tanh"),
    nn.Softplus: _plain("softplus", "beta", "threshold"),
    nn.ELU: _plain("elu", "alpha"),
    nn.LeakyReLU: _plain("leaky_relu", "negative_slope"),
    nn.Hardtanh: _plain("hardtanh", "min_val", "max_val"),
    nn.ReLU6: _plain("relu6"),
    nn.Hardsigmoid: _plain("hardsigmoid"),
    nn.Hardswish: _plain("hardswish"),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _norm),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d), _convolution),
}
SAME_SHAPE: tuple[type, ...] = (*fx_opaque.MODULES, nn.Dropout)


def row(module: nn.Module) -> Call | None:
    """Return the row of a module of exactly a known class."""
    return MODULES.get(type(module))


def name(module: nn.Module) -> str:
    """Return what a module without a row is called in declines."""
    return fx_opaque.MODULES.get(type(module), type(module).__name__)
