"""What the tests of whole models share: sessions with and without our library, distances, node counts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import runtime_ops


def session(model: Path | bytes, library: bool) -> onnxruntime.InferenceSession:
    """Open a model on one thread, as a user of ONNX Runtime would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if library:
        runtime_ops.register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


BACKENDS = {"function body": False} | ({"library": True} if runtime_ops.library_path() else {})


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance of a from b, in fp64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


def grafted(path: Path) -> int:
    """Count our nodes in the main graph and its subgraphs."""
    model = onnx.load(path, load_external_data=False)
    functions = [function.node for function in model.functions if function.domain != "ai.graft"]
    return sum(_count(nodes) for nodes in (model.graph.node, *functions))


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    total = 0
    for node in nodes:
        bodies = [a.g.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        total += (node.domain == "ai.graft") + sum(_count(body) for body in bodies)
    return total
