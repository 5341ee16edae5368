"""Masks: added, chosen by Where, stacked, made in the graph."""

from __future__ import annotations

import numpy as np
from onnx import helper
from sketch import LOWEST, Sketch, Value

from spellings.base import INF, bias, both_kept, causal, kept, masked, other, padding, scored


def gpt2(f: Sketch, s: Value) -> Value:
    """A constant [1 1 16 16] triangle sliced to the length, a finite fill, then an additive padding mask."""
    triangle = f.const(np.tril(np.ones((1, 1, 16, 16), bool)), "triangle")
    n = f.x.dim(1).unsqueeze(0)
    seen = triangle.slice(0, n, 2).slice(0, n, 3)
    return f.Where(seen, s, LOWEST) + padding(f)


def expanded(f: Sketch) -> Value:
    """attention_mask as bool, expanded to [b 1 s t] by run-time shapes, inverted, filled (transformers)."""
    keep = f.input("attention_mask", "b t", "lengths", "int64").to("bool").unsqueeze(1).unsqueeze(2)
    n = f.x.dim(1)
    wide = keep.expand(f.x.dim(0), 1, n, n)
    return f.Where(f.Not(wide), LOWEST, 0.0)


WHERE = {  # branch order → the node that writes it; the fills stand beside it in MASKS
    "keep": lambda f, s, fill: f.Where(kept(f), s, fill),
    "fill": lambda f, s, fill: f.Where(f.input("drop", "b 1 s t", "drop", "bool"), fill, s),
    "not": lambda f, s, fill: f.Where(f.Not(kept(f)), fill, s),
    "added": lambda f, s, fill: s + f.Where(kept(f), 0.0, fill),
}
FILLS = {"lowest": LOWEST, "1e9": -1e9, "1e4": -1e4, "inf": -INF}


MASKS = (
    masked("mask-add", lambda f, s: s + bias(f)),
    masked("mask-add-first", lambda f, s: bias(f) + s),
    masked("mask-sub", lambda f, s: s - f.Where(kept(f), 0.0, 1e9)),
    masked("mask-add-rank-2", lambda f, s: s + bias(f, "s t")),
    masked("mask-add-keys", lambda f, s: s + bias(f, "b 1 1 t")),
    masked("mask-add-per-head", lambda f, s: s + bias(f, "b 3 s t", "normal")),
    masked("mask-add-ordinary-values", lambda f, s: other(f, "3 s t") + s),
    scored("mask-before-scale", lambda f, s: (s + other(f)) * 0.3, scale=0.3, mask=True),
    scored("mask-between-scales", lambda f, s: (s * 0.6 + other(f)) / 2.0, scale=0.3, mask=True),
    *(
        masked(f"where-{order}-{name}", lambda f, s, w=WHERE[order], fill=fill: w(f, s, fill))
        for order in WHERE
        for name, fill in FILLS.items()
    ),
    masked("where-keys", lambda f, s: f.Where(kept(f, "b 1 1 t"), s, -1e9)),
    scored("where-before-scale", lambda f, s: f.Where(kept(f), s, -1e9) * 0.3, scale=0.3, mask=True),
    masked("masks-add-add", lambda f, s: s + bias(f) + other(f)),
    masked("masks-add-add-first", lambda f, s: other(f) + (bias(f) + s)),
    masked("masks-summed-before", lambda f, s: s + (bias(f) + other(f))),
    masked("masks-where-add", lambda f, s: f.Where(kept(f), s, -1e9) + other(f)),
    masked("masks-add-where", lambda f, s: f.Where(kept(f), s + other(f), -1e9)),
    masked("masks-where-where", lambda f, s: f.Where(kept(f), f.Where(causal(f), s, -INF), LOWEST)),
    masked("masks-add-where-add", lambda f, s: f.Where(kept(f), s + other(f), LOWEST) + padding(f)),
    masked("mask-from-attention-mask", lambda f, s: s + padding(f)),
    masked("mask-from-attention-mask-1e4", lambda f, s: s + padding(f, -1e4)),
    masked("mask-expanded", lambda f, s: s + expanded(f)),
    masked("mask-expanded-nodes", lambda f, s: s + expanded(f), {"constants": "node"}),
    masked("causal-range-less", lambda f, s: f.Where(causal(f), s, -INF)),
    masked("causal-range-less-added", lambda f, s: s + f.Where(causal(f), 0.0, LOWEST)),
    masked(
        "causal-trilu",
        lambda f, s: (
            s
            + f.Trilu(
                f.ConstantOfShape(f.shape(f.x.dim(1), f.x.dim(1)), value=helper.make_tensor("v", 1, [1], [-INF])),
                np.array(1),
            )
        ),
    ),
    masked("causal-and-keys", lambda f, s: f.Where(both_kept(f), s, LOWEST)),
    masked("causal-buffer-gpt2", gpt2),
    masked("mask-floor", lambda f, s: f.Max(s + padding(f), LOWEST), issue=3),
    masked(
        "masked-fill",
        lambda f, s: f.Where(
            f.Equal(f.input("m", "b t", "lengths", "int64").unsqueeze(1, 2), np.array(0)),
            f.Expand(-INF, f.Shape(s)),
            s,
        ),
        issue=3,
    ),
)
