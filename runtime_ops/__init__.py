"""Operations: what each means, and the compiled kernels that run it.

>>> import runtime_ops
>>> runtime_ops.session("rewritten.onnx").run(None, feeds)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_ops.kernels import library_path, register, session

__all__ = ["library_path", "register", "session"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'runtime_ops' has no attribute '{name}'")
    return getattr(importlib.import_module("runtime_ops.kernels"), name)
