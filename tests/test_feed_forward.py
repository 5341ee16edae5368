"""Feed-forward blocks: every activation in every spelling is named by its numbers, and only true blocks are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from blocks import BLOCKS, DECLINED, INNER, MODEL, MS, Act, close, first, tanh_gelu
from formula import formula, truth
from sketch import Sketch, feeds

import rewriter
from patterns.site import FeedForwardSite
from rewriter.host import open_host
from rewriter.site_check import frontier

ROOT_2 = float(np.sqrt(2))
DIMS = tuple({"b": b, "s": s, "t": s + 2, "u": 3, "c": s + 1} for b, s in ((2, 7), (1, 1), (3, 5)))
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.intra_op_num_threads = 1
OPTIONS.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

# name: (activation that it must be read as, how it is written, opset)
ACTIVATIONS: dict[str, tuple[str, Act, int]] = {
    "relu": ("relu", lambda f, z: f.Relu(z), 17),
    "relu-max": ("relu", lambda f, z: f.Max(z, 0.0), 17),
    "relu-where": ("relu", lambda f, z: f.Where(f.Greater(z, 0.0), z, 0.0), 17),
    "gelu": ("gelu", lambda f, z: z * 0.5 * (f.Erf(z / ROOT_2) + 1.0), 17),
    "gelu-half-last": ("gelu", lambda f, z: z * (f.Erf(z / ROOT_2) + 1.0) * 0.5, 17),
    "gelu-mul-first": ("gelu", lambda f, z: 0.5 * (z * (1.0 + f.Erf(z * (1 / ROOT_2)))), 14),
    "gelu-op": ("gelu", lambda f, z: f.Gelu(z), 20),
    "gelu-op-tanh": ("gelu_tanh", lambda f, z: f.Gelu(z, approximate="tanh"), 20),
    "gelu-tanh": ("gelu_tanh", tanh_gelu, 17),
    "gelu-fast": ("gelu_tanh", lambda f, z: f.node("FastGelu", z, domain=MS), 17),
    "gelu-bias": ("gelu", lambda f, z: f.node("BiasGelu", z, f.weight("more", INNER), domain=MS), 17),
    "gelu-quick": ("gelu_quick", lambda f, z: z * f.Sigmoid(z * 1.702), 17),
    "gelu-quick-op": ("gelu_quick", lambda f, z: f.node("QuickGelu", z, alpha=1.702, domain=MS), 17),
    "silu": ("silu", lambda f, z: z * f.Sigmoid(z), 17),
    "silu-division": ("silu", lambda f, z: z / (1.0 + f.Exp(f.Neg(z))), 17),
    "mish": ("mish", lambda f, z: z * f.Tanh(f.Softplus(z)), 17),
    "mish-op": ("mish", lambda f, z: f.Mish(z), 18),
    "relu-squared-mul": ("relu_squared", lambda f, z: f.Relu(z) * f.Relu(z), 17),
    "silu-op": ("silu", lambda f, z: f.Swish(z), 24),
    "gelu-contrib": ("gelu", lambda f, z: f.node("Gelu", z, domain=MS), 17),
    "gelu-fast-bias": ("gelu_tanh", lambda f, z: f.node("FastGelu", z, f.weight("more", INNER), domain=MS), 17),
    "relu-clip": ("relu", lambda f, z: f.Clip(z, 0.0), 17),
    "relu-leaky": ("relu", lambda f, z: f.LeakyRelu(z, alpha=0.0), 17),
    "relu-squared": ("relu_squared", lambda f, z: f.Pow(f.Relu(z), 2.0), 17),
}


def read_blocks(f: Sketch, path: Path, off: float = 2e-5) -> list[FeedForwardSite]:
    """The blocks that are read; by its formula each computes what ONNX Runtime does, and in float64 the graph."""
    onnx.save(f.model(), path)
    sites = [site for site in open_host(path).read().sites.values() if site.kind == "feed-forward"]
    rng = np.random.default_rng(3)
    for site in sites:
        for dims in DIMS:
            check_numbers(site, captured(f, site, feeds(f.inputs, rng, dims)), off)
    return sites


def captured(f: Sketch, site: FeedForwardSite, given: dict[str, np.ndarray]) -> dict[Any, np.ndarray]:
    """The values of the block's input, result and dequantised weights as ONNX Runtime computes them, not optimised."""
    weights = [w.value for w in (site.w_in, site.w_gate, site.w_out) if w is not None]
    model, wanted = f.model(), [site.x.value.handle, site.out.value.handle]
    wanted += dict.fromkeys(value for w in weights for value in frontier(w, []))
    inside = [value for value in wanted if value.name not in given]
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(v.name) for v in inside if v.name not in have)
    session = onnxruntime.InferenceSession(model.SerializeToString(), OPTIONS, ["CPUExecutionProvider"])
    found = session.run([value.name for value in inside], given)
    return dict(zip(inside, found, strict=True)) | {v: given[v.name] for v in wanted if v.name in given} | given


def check_numbers(site: FeedForwardSite, leaves: dict[Any, np.ndarray], off: float) -> None:
    ours = formula(site, leaves)
    ran = truth(site, leaves)
    assert np.abs(ours - ran).max() <= off * np.abs(ran).max()
    if site.quantised is None:
        inputs = {key: value for key, value in leaves.items() if key is not site.out.value.handle}
        np.testing.assert_allclose(ours, truth(site, inputs), rtol=1e-6, atol=1e-6 * np.abs(ours).max())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, tmp_path: Path) -> None:
    activation, act, opset = ACTIVATIONS[name]
    f = Sketch(name, m=MODEL, opset=opset)
    close(f, act(f, first(f)))
    [site] = read_blocks(f, tmp_path / "model.onnx")
    assert (site.activation, site.model_width, site.inner_width) == (activation, MODEL, INNER)


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, tmp_path: Path) -> None:
    block = BLOCKS[name]
    f = Sketch(name, m=MODEL, opset=block.opset, dtype=block.dtype)
    block.write(f)
    [site] = read_blocks(f, tmp_path / "model.onnx", block.off)
    assert (site.activation, site.gated, site.x.layout) == (block.activation, block.gated, block.layout)
    assert " ".join(site.biases) == block.biases
    assert (site.model_width, site.inner_width) == block.widths
    assert (site.quantised, site.stored, len(site.leaks)) == (block.quantised, block.stored, block.leaks)


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name: str, tmp_path: Path) -> None:
    write, reason = DECLINED[name]
    f = Sketch(name, m=MODEL)
    write(f)
    onnx.save(f.model(), tmp_path / "model.onnx")
    shown = rewriter.show(tmp_path / "model.onnx")
    assert not [site for site in shown.sites if site.kind == "feed-forward"]
    declined = [row for row in shown.declines if row.kind == "feed-forward"]
    assert len(declined) == (reason is not None), declined
    if reason is not None:
        assert re.search(reason, declined[0].reason), declined[0].reason
        assert {declined[0].anchor, declined[0].at} <= {node.name for node in f.nodes}
