"""Feed-forward blocks: every activation in every spelling is named by its numbers, and only true blocks are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from formula import formula, truth
from sketch import Sketch, Value, feeds

from patterns.site import FeedForwardSite
from rewriter.host import open_host

WIDTH, INNER = 12, 40
Act = Callable[[Sketch, Value], Value]
MS = "com.microsoft"
ROOT_2, ROOT_2_PI = float(np.sqrt(2)), float(np.sqrt(2 / np.pi))


def tanh_gelu(f: Sketch, z: Value) -> Value:
    return z * 0.5 * (f.Tanh((z + f.Pow(z, 3.0) * 0.044715) * ROOT_2_PI) + 1.0)


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
    "relu-squared": ("relu_squared", lambda f, z: f.Pow(f.Relu(z), 2.0), 17),
}


def linear(f: Sketch, name: str, x: Value, rows: int, columns: int) -> Value:
    return x @ f.weight(f"{name}.w", rows, columns) + f.weight(f"{name}.b", columns)


def close(f: Sketch, y: Value) -> None:
    f.output(linear(f, "out", y, INNER, WIDTH), f"b s {WIDTH}")


def plain(f: Sketch, act: Act) -> None:
    close(f, act(f, linear(f, "in", f.x, WIDTH, INNER)))


def swiglu(f: Sketch) -> None:
    gate, up = (linear(f, n, f.x, WIDTH, INNER) for n in ("gate", "up"))
    close(f, gate * f.Sigmoid(gate) * up)


def up_first(f: Sketch) -> None:
    gate, up = (linear(f, n, f.x, WIDTH, INNER) for n in ("gate", "up"))
    close(f, up * tanh_gelu(f, gate))


def packed(f: Sketch) -> None:
    gate, up = linear(f, "both", f.x, WIDTH, 2 * INNER).split([INNER, INNER], 2)
    close(f, f.Relu(gate) * up)


def gemm(f: Sketch) -> None:
    flat = f.x.reshape(-1, WIDTH)
    z = f.Gemm(flat, f.weight("in.w", INNER, WIDTH), f.weight("in.b", INNER), transB=1)
    y = f.Gemm(f.Relu(z), f.weight("out.w", WIDTH, INNER), f.weight("out.b", WIDTH), transB=1)
    f.output(y.reshape(f.x.dim(0), f.x.dim(1), WIDTH), f"b s {WIDTH}")


def transposed_weights(f: Sketch) -> None:
    z = f.x @ f.weight("in.w", INNER, WIDTH).perm(1, 0)
    f.output(f.Relu(z) @ f.weight("out.w", WIDTH, INNER).perm(1, 0), f"b s {WIDTH}")


def with_norm(f: Sketch) -> None:
    y = f.Relu(linear(f, "in", f.x, WIDTH, INNER))
    close(f, f.LayerNormalization(y, f.weight("g", INNER), f.weight("b", INNER), axis=-1))


# name: (graph, what it must be read as: activation and whether gated; None: no block)
BLOCKS: dict[str, tuple[Callable[[Sketch], None], tuple[str, bool] | None]] = {
    "swiglu": (swiglu, ("silu", True)),
    "geglu-up-first": (up_first, ("gelu_tanh", True)),
    "reglu-packed": (packed, ("relu", True)),
    "gemm": (gemm, ("relu", False)),
    "transposed-weights": (transposed_weights, ("relu", False)),
    "norm-between": (with_norm, None),
    "no-activation": (lambda f: close(f, linear(f, "in", f.x, WIDTH, INNER)), None),
    "tanh-head": (lambda f: close(f, f.Tanh(linear(f, "in", f.x, WIDTH, INNER))), None),
    "two-activations": (lambda f: close(f, f.Relu(f.Tanh(linear(f, "in", f.x, WIDTH, INNER)))), None),
}


DIMS = ({"b": 2, "s": 7}, {"b": 1, "s": 1}, {"b": 3, "s": 5})


def blocks(f: Sketch, path: Path) -> list[FeedForwardSite]:
    """The blocks that are read; each computes by its formula what the graph computes."""
    onnx.save(f.model(), path)
    sites = [site for site in open_host(path).read().sites.values() if site.kind == "feed-forward"]
    rng = np.random.default_rng(3)
    for site in sites:
        for dims in DIMS:
            given = feeds(f.inputs, rng, dims)
            want = truth(site, given)
            np.testing.assert_allclose(formula(site, given), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    return sites


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, tmp_path: Path) -> None:
    activation, act, opset = ACTIVATIONS[name]
    f = Sketch(name, m=WIDTH, opset=opset)
    plain(f, act)
    [row] = blocks(f, tmp_path / "model.onnx")
    assert row.reads_as.startswith(f"{activation}(")
    assert (row.model_width, row.inner_width) == (WIDTH, INNER)


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, tmp_path: Path) -> None:
    write, wanted = BLOCKS[name]
    f = Sketch(name, m=WIDTH)
    write(f)
    rows = blocks(f, tmp_path / "model.onnx")
    if wanted is None:
        assert not rows
    else:
        [row] = rows
        assert row.reads_as.lstrip("(").startswith(f"{wanted[0]}(")
        assert ("⊙" in row.reads_as) == wanted[1]
