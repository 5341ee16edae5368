"""``ai.graft::TopKFeedForward``: a feed-forward block over all neurons, or over the k best neurons of every token.

y = c·w_out + b_out, where every token's coefficients c are activation(x·w_inᵀ + b_in); with a gate they are
activation(g)·(x·w_inᵀ + b_in), g = x·w_gateᵀ + b_gate. Only the k neurons with the best scores take part, of equal
ones those with the lowest index. ``select_by`` says what the score is, z being the activation's argument:
``preactivation`` z, ``magnitude`` |activation(z)|, ``contribution`` |c|. Weights have one row per neuron.

Exact at k = 0 and from k = f on; with relu and ``preactivation`` as soon as k covers a token's positive neurons.

Source: Gupta, Dar, Goodman, Ciprut, Berant, "Memory-efficient Transformers via Top-k Attention" (2021), section 2,
with ``preactivation`` and no biases; gates, biases and the other scores are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_ops.activations import ACTIVATIONS
from runtime_ops.spec import Attribute, Input, OpSpec, Sample, wrong_word
from runtime_ops.words import Expr, const, dim, make

SELECTIONS = ("preactivation", "magnitude", "contribution")


def reference(inputs: Mapping[str, Expr | None], attrs: Mapping[str, Any]) -> Expr:
    """Return the block's result [… e] in the words of the alphabet."""
    x, w_in, w_out, w_gate = (inputs[name] for name in ("x", "w_in", "w_out", "w_gate"))
    if x is None or w_in is None or w_out is None:
        raise ValueError("x, w_in and w_out are not optional")
    z = up = _linear(x, w_in, inputs["b_in"])
    if w_gate is not None:
        z = _linear(x, w_gate, inputs["b_gate"])
    active = ACTIVATIONS[attrs["activation"]](z)
    coefficients = active if w_gate is None else make("mul", active, up)
    if attrs["k"]:
        scored = {"preactivation": z, "magnitude": active, "contribution": coefficients}[attrs["select_by"]]
        coefficients = _top(scored, coefficients, w_in, attrs)
    y = make("matmul", coefficients, w_out)
    return y if inputs["b_out"] is None else make("add", y, inputs["b_out"])


def _linear(x: Expr, w: Expr, bias: Expr | None) -> Expr:
    z = make("matmul", x, make("transpose", w, perm=(1, 0)))
    return z if bias is None else make("add", z, bias)


def _top(scored: Expr, coefficients: Expr, w_in: Expr, attrs: Mapping[str, Any]) -> Expr:
    """Return the coefficients, zero outside the k best of each row."""
    scores = scored if attrs["select_by"] == "preactivation" else make("max", scored, make("neg", scored))
    best = make("topk", scores, make("min", const([attrs["k"]]), dim(w_in, 0)))
    zeros, ones = (make("expand", const(x), make("dim", y)) for x, y in ((0.0, coefficients), (1.0, best)))
    chosen = make("lt", const(0.0), make("scatter", zeros, best, ones))
    return make("where", chosen, coefficients, const(0.0))


def check(attrs: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the attribute values, or None."""
    if attrs["k"] < 0:
        return f"k is {attrs['k']}; it must be 0 (all neurons) or more"
    if attrs["chunk"] < 0:
        return f"chunk is {attrs['chunk']}; it must be 0 (the library's choice) or more"
    return wrong_word(attrs, "activation", ACTIVATIONS) or wrong_word(attrs, "select_by", SELECTIONS)


def _sample(id: str, seed: int, *, lead: tuple[int, ...] = (2, 5), m: int = 16, f: int = 24, e: int | None = None,
            gate: bool = False, biases: bool = True, size: float = 1.0, whole: bool = False,
            **rest: Any) -> Sample:  # fmt: skip
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        numbers = rng.standard_normal(shape)
        return (np.rint(numbers) if whole else numbers).astype(np.float32)

    arrays: dict[str, np.ndarray | None] = {
        "x": normal(*lead, m) * np.float32(size),
        "w_in": normal(f, m),
        "w_out": normal(f, e or m),
    }
    if biases:
        arrays.update(b_in=normal(f), b_out=normal(e or m))
    if gate:
        arrays["w_gate"] = normal(f, m)
    if gate and biases:
        arrays["b_gate"] = normal(f)
    return Sample(id=f"ff-{id}", arrays=arrays, attrs=rest)


def samples() -> Sequence[Sample]:
    """Return the calls that every back end must get right, the adversarial ones included."""
    table: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("no-biases", {"biases": False}),
        ("top-5", {"k": 5}),
        ("top-1", {"k": 1}),
        ("k-is-f", {"k": 24}),
        ("k-over-f", {"k": 100}),
        ("k-near-f", {"k": 23}),
        ("one-token", {"lead": (1,), "k": 3}),
        ("one-axis", {"lead": (), "k": 3}),
        ("four-axes", {"lead": (2, 1, 3), "k": 3}),
        ("no-tokens", {"lead": (0,), "k": 3}),  # [2 0 m] with fixed lengths breaks ONNX Runtime's own fusion of biases
        ("decode-exact", {"lead": (1, 1), "m": 40, "f": 300}),
        ("decode-batch", {"lead": (7, 1), "m": 40, "f": 300, "k": 20}),
        ("one-neuron", {"f": 1, "k": 2}),
        ("odd-widths", {"m": 7, "f": 13, "k": 4}),
        ("other-width", {"e": 21, "k": 4}),
        ("other-width-many", {"lead": (67,), "e": 7, "k": 20}),
        ("many-odd", {"lead": (67,), "m": 37, "f": 131, "k": 9}),
        ("many-exact", {"lead": (67,), "m": 37, "f": 131}),
        ("many-chunks", {"lead": (67,), "m": 37, "f": 131, "k": 9, "chunk": 16}),
        ("large-k", {"lead": (40,), "m": 20, "f": 90, "k": 70}),
        ("ties", {"lead": (20,), "m": 4, "f": 70, "whole": True, "k": 9}),
        ("ties-magnitude", {"lead": (20,), "m": 4, "f": 70, "whole": True, "k": 9, "select_by": "magnitude"}),
        ("all-tied", {"size": 0.0, "biases": False, "k": 5}),
        ("huge", {"size": 1e4, "k": 5, "activation": "gelu"}),
    ]
    table += [(f"{name}", {"activation": name}) for name in ACTIVATIONS]
    table += [(f"{name}-huge", {"activation": name, "size": 100.0}) for name in ACTIVATIONS]
    table += [(f"{name}-top", {"activation": name, "select_by": "magnitude", "k": 6}) for name in ACTIVATIONS]
    gated: dict[str, Any] = {"gate": True, "activation": "silu", "lead": (19,), "f": 70}
    table += [("gated", gated), ("gated-no-biases", {**gated, "biases": False, "k": 9})]
    table += [(f"gated-{by}", {**gated, "select_by": by, "k": 9}) for by in SELECTIONS]
    table += [(f"gated-{by}-large-k", {**gated, "select_by": by, "k": 60}) for by in SELECTIONS]
    table += [(f"gated-{by}-one", {**gated, "select_by": by, "k": 9, "lead": (1,)}) for by in SELECTIONS]
    return [_sample(id, seed, **rest) for seed, (id, rest) in enumerate(table)]


TOPK_FEED_FORWARD = OpSpec(
    name="TopKFeedForward",
    doc=__doc__ or "",
    inputs=(
        Input(name="x", layout="... m"),
        Input(name="w_in", layout="f m"),
        Input(name="w_out", layout="f e"),
        Input(name="b_in", layout="f", optional=True),
        Input(name="b_out", layout="e", optional=True),
        Input(name="w_gate", layout="f m", optional=True),
        Input(name="b_gate", layout="f", optional=True),
    ),
    attributes=(
        Attribute(name="k", kind=int, default=0, doc="neurons that take part for each token; 0: all, which is exact"),
        Attribute(name="activation", kind=str, default="relu", doc=", ".join(ACTIVATIONS)),
        Attribute(name="select_by", kind=str, default="preactivation", doc=", ".join(SELECTIONS)),
        Attribute(name="chunk", kind=int, default=0, doc="tokens worked on at a time; 0: the library's choice"),
    ),
    output="... e",
    reference=reference,
    check=check,
    samples=samples,
)
