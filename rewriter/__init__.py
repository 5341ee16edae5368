"""graft: find attention in an exported model, replace it by a better operation, and prove the result.

>>> import rewriter
>>> rewriter.show("model.onnx").sites
>>> rewriter.apply("model.onnx", ["topk-attention:k=64"], output="out.onnx").verify
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewriter.catalogue import ops, rules
    from rewriter.compare import verify
    from rewriter.decoders import expand
    from rewriter.distilling import distill
    from rewriter.export import to_onnx
    from rewriter.look import show, why
    from rewriter.recipe import apply
    from rewriter.splitting import split
    from rewriter.timing import bench

# Loaded when first used, so that `graft --help` does not wait for onnx.
_HOME = {
    "show": "look",
    "why": "look",
    "apply": "recipe",
    "split": "splitting",
    "expand": "decoders",
    "distill": "distilling",
    "verify": "compare",
    "bench": "timing",
    "to_onnx": "export",
    "rules": "catalogue",
    "ops": "catalogue",
}

__all__ = ["apply", "bench", "distill", "expand", "ops", "rules", "show", "split", "to_onnx", "verify", "why"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewriter' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rewriter.{_HOME[name]}"), name)
