"""Large models: time grows linearly with nodes, memory not with weights. Seconds: benchmarks/scale.py."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from big import heavy, measured, transformer
from compare import distance, grafted, session

import rewriter

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, which only Linux has")
GIB = 2**30


def test_large_graph_is_right(tmp_path: Path) -> None:
    """A graph of 5,000 nodes: every attention found, and the numbers are the original's."""
    model = transformer(5000)
    assert len(model.graph.node) >= 5000
    layers = sum(node.op_type == "Softmax" for node in model.graph.node)
    onnx.save(model, tmp_path / "model.onnx")
    report = rewriter.apply(tmp_path / "model.onnx", output=tmp_path / "out.onnx", verify=False)
    assert report.rewritten == grafted(tmp_path / "out.onnx") == layers
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 5, 8), np.float32),
        "attention_mask": np.array([[1] * 5, [1, 1, 0, 0, 0]]),
    }
    old, new = (session(tmp_path / name, False).run(None, feeds)[0] for name in ("model.onnx", "out.onnx"))
    assert distance(new, old) <= 1e-5


@needs_proc
@pytest.mark.slow
def test_time_is_linear(tmp_path: Path) -> None:
    """Four times the nodes take about four times as long; sixteen would be quadratic."""
    seconds = []
    for nodes in (2500, 10000):
        onnx.save(transformer(nodes), tmp_path / "model.onnx")
        runs = [measured(tmp_path / "model.onnx", tmp_path / "out.onnx") for _ in range(2)]
        seconds.append(min(run["read_s"] + run["rewrite_s"] for run in runs))
    assert seconds[1] / seconds[0] < 8, seconds


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with room for two large models, and take it away again."""
    if shutil.disk_usage(tmp_path).free < 8 * GIB:
        pytest.skip("less than 8 GiB of free disk for a model with 3 GiB of weights and its rewrite")
    yield tmp_path
    shutil.rmtree(tmp_path)


@needs_proc
@pytest.mark.slow
def test_memory_does_not_grow_with_weights(roomy: Path) -> None:
    """Three GiB of external weights are never read as a whole."""
    assert heavy(roomy / "model.onnx") >= 3 * GIB
    run = measured(roomy / "model.onnx", roomy / "out.onnx")
    assert run["sites"] == run["rewritten"] == 4
    assert run["peak_mib"] < 300
    onnx.checker.check_model(str(roomy / "out.onnx"))  # its external data is there, whole
