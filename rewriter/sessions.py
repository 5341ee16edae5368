"""ONNX Runtime sessions, with our kernels where they are installed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.errors import GraftError
from rewriter.inputs import Feeds
from runtime_ops import kernels

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
LESS_OPTIMIZED = tuple(_LEVELS)[:-1]  # than usually: the same model, computed in another order
MIN_RUNTIME = (1, 18)  # the first that tells function bodies apart by overload


def check_runtime() -> None:
    """Raise GraftError if the installed ONNX Runtime is too old."""
    import onnxruntime

    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < MIN_RUNTIME:
        need = ".".join(map(str, MIN_RUNTIME))
        raise GraftError(f"ONNX Runtime {onnxruntime.__version__} is too old; graft needs {need} or later")


def have_kernels() -> bool:
    """Return whether a kernel library is there; one of another version is an error, not an absence.

    Raises:
        GraftError: the library does not belong to this package.
    """
    if kernels.library_path() is None:
        return False
    try:
        kernels.load()
    except kernels.LibraryError as error:
        raise GraftError(str(error)) from error
    return True


def open_session(
    path: str | os.PathLike[str], *, threads: int = 0, optimize: str = "all", ours: bool = True, spin: bool = False
) -> Any:
    """Return a session on the CPU.

    Args:
        path: the model.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
        optimize: how far ONNX Runtime may rewrite the graph: "none", "basic", "extended" or "all".
        ours: whether to register our kernels, where they are installed.
        spin: whether its threads spin on after a run, as ONNX Runtime's usually do; that takes the cores from whatever
            comes next, another session above all.

    Raises:
        GraftError: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    check_runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[optimize])
    if not spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if ours and have_kernels():
        kernels.register(options)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises types of its own, one per status code
        raise GraftError(f"{path}: ONNX Runtime cannot load this model: {_first_line(error)}") from error


def run(session: Any, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[np.ndarray]:
    """Return the outputs of one run.

    Raises:
        GraftError: ONNX Runtime fails on these inputs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [np.asarray(x) for x in session.run(outputs, feeds)]
    except Exception as error:  # as above
        raise GraftError(f"the model does not run on these inputs: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
