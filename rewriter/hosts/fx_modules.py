"""READ for torch: modules that a traced graph calls, each as the function that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rewriter.hosts.fx_read import READ
from runtime_ops.words import Expr

Fetch = Callable[[str], "Expr | None"]  # a parameter or buffer of the module, by its name there
Call = Callable[[Any, Fetch, Expr], Any]


def _plain(name: str, *options: str) -> Call:
    """Return the row of a module that is a function of its input and of some of its own attributes."""
    return lambda module, fetch, x: READ[name](x, **{option: getattr(module, option) for option in options})


def _linear(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["linear"](x, fetch("weight"), fetch("bias"))


def _embedding(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["embedding"](fetch("weight"), x)


def _dropout(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["dropout"](x, module.p, module.training)


def _flatten(module: Any, fetch: Fetch, x: Expr) -> Any:
    return READ["flatten"](x, module.start_dim, module.end_dim)


def _norm(op: str) -> Call:
    """Return the row of a norm with a weight, which is said in no words."""

    def row(module: Any, fetch: Fetch, x: Expr) -> Any:
        weight = fetch("weight")
        return None if weight is None else Expr("opaque", (x, weight), {"op": op, "why": None}, x.shape, x.dtype)

    return row


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
    nn.LayerNorm: _norm("LayerNormalization"),
    nn.RMSNorm: _norm("RMSNormalization"),
}
# Modules whose result has the shape of their input.
SAME_SHAPE: tuple[type, ...] = (
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.LogSoftmax, nn.Dropout, nn.ELU),
    *(nn.Hardswish, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.PReLU),
)


def row(module: nn.Module) -> Call | None:
    """Return the row of a module of exactly a known class."""
    return MODULES.get(type(module))


def name(module: nn.Module) -> str:
    """Return what a module without a row is called in declines."""
    return type(module).__name__
