"""Where the scale stands, and how it is computed."""

from __future__ import annotations

import numpy as np
from sketch import Sketch

from spellings.base import R8, padding, row, scored, width


def legacy_sdpa(f: Sketch) -> None:
    """F.scaled_dot_product_attention as torch's legacy exporter decomposes it."""
    root = f.Sqrt(f.Div(np.array([1.0], np.float32), width(f, f.q)))
    f.attend(q=f.q * root, kt=f.k.perm(0, 1, 3, 2) * root)


SCALES = (
    scored("no-scale", lambda f, s: s),
    scored("scale-mul-after", lambda f, s: s * 0.3, scale=0.3),
    scored("scale-div-after", lambda f, s: s / 2.5, scale=0.4),
    scored("scale-const-first", lambda f, s: 0.3 * s, scale=0.3),
    scored("scale-const-nodes", lambda f, s: s * 0.3, {"constants": "node"}, scale=0.3),
    scored("scale-rank-4-constant", lambda f, s: s * np.full((1, 1, 1, 1), 0.3, np.float32), scale=0.3),
    scored("scale-twice", lambda f, s: (s * 0.6) / 2.0, scale=0.3),
    row("scale-on-q", lambda f: f.attend(q=f.q * 0.3), scale=0.3),
    row("scale-on-q-div", lambda f: f.attend(q=f.q / 2.5), scale=0.4),
    row("scale-on-q-const-first", lambda f: f.attend(q=0.3 * f.q), scale=0.3),
    row("scale-on-q-before-split", lambda f: f.attend(q=f.heads(f.q3 * 0.3, f.h)), scale=0.3),
    row("scale-on-k", lambda f: f.attend(k=f.k * 0.3), scale=0.3),
    row("scale-on-k-transposed", lambda f: f.attend(kt=f.k.perm(0, 1, 3, 2) / 2.5), scale=0.4),
    row("scale-square-roots", lambda f: f.attend(q=f.q * 0.5, k=f.k * 0.5), scale=0.25),
    row("scale-square-roots-div", lambda f: f.attend(q=f.q / 2.0, kt=f.k.perm(0, 1, 3, 2) / 2.0), scale=0.25),
    row("scale-q-and-k-differ", lambda f: f.attend(q=f.q * 0.5, k=0.8 * f.k), scale=0.4),
    row("scale-on-q-and-after", lambda f: f.attend(q=f.q * 0.5, scores=lambda s: s / 2.0), scale=0.25),
    scored("scale-runtime-div", lambda f, s: s / width(f, f.q), scale=R8),
    scored("scale-runtime-mul", lambda f, s: s * f.Div(1.0, width(f, f.q)), scale=R8),
    scored("scale-runtime-reciprocal", lambda f, s: s * f.Reciprocal(width(f, f.q)), scale=R8),
    scored("scale-runtime-pow", lambda f, s: s * f.Pow(f.q.dim(3).to("float32"), -0.5), scale=R8),
    scored("scale-runtime-gather", lambda f, s: s / f.Sqrt(f.q.dim(-1).to("float32")), scale=R8),
    row("scale-runtime-on-q", lambda f: f.attend(q=f.q / width(f, f.q)), scale=R8),
    row("scale-runtime-legacy-sdpa", legacy_sdpa, scale=R8),
    row("scale-runtime-legacy-sdpa-nodes", legacy_sdpa, {"constants": "node"}, scale=R8),
    scored("scale-negative", lambda f, s: s * -0.3, scale=-0.3, issue=3),
    scored("scale-per-head", lambda f, s: s * f.weight("tau", f.h, 1, 1)),
    scored("scale-per-head-div", lambda f, s: s * 0.3 / f.weight("tau", f.h, 1, 1), scale=0.3),
    scored("scale-per-head-and-mask", lambda f, s: f.weight("tau", 1, f.h, 1, 1) * s + padding(f), mask=True),
    scored("scale-per-query", lambda f, s: s * f.input("tau", "b 1 s 1")),
)
