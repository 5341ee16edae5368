"""What a spelling is, and the pieces that several rows share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from sketch import LOWEST, Dims, Sketch, Value, feeds

INF = float("inf")
SELF = ({"b": 2, "s": 7}, {"b": 1, "s": 1}, {"b": 3, "s": 13})
CROSS = (
    {"b": 2, "s": 7, "t": 5},
    {"b": 1, "s": 1, "t": 9},
    {"b": 3, "s": 13, "t": 1},
    {"b": 2, "s": 3, "t": 17},
)
PAST = ({"b": 2, "s": 1, "p": 6}, {"b": 1, "s": 5, "p": 1}, {"b": 3, "s": 4, "p": 9})
ANY: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """One spelling: how to write it, and what reading it must say."""

    id: str
    write: Callable[[Sketch], None]
    frame: Mapping[str, Any] = field(default_factory=dict)  # geometry, opset, dtype: keywords of Sketch
    scale: float | Sequence[float] = 1.0  # several: each is a true reading; ANY: not asked
    softcap: float | None = None
    mask: bool | str | None = False  # whether there is one, or what is read; None: not asked
    passed: Collection[str] | None = None  # which of "causal", "window", "keys", "bias" are given; None: not asked
    heads: int | Sequence[int] | None = None  # None: that of the frame
    kv_heads: int | Sequence[int] | None = None
    around: Mapping[str, Any] = field(default_factory=dict)  # fields of a site, or parts of them by name
    sites: int | None = 1  # as shown; None: not asked
    declines: str | None = None  # regex: nothing is rewritten, for this reason
    may_decline: bool = False  # either a read site or a decline will do; wrong numbers never
    twin: Callable[[Sketch], None] | None = None  # the same in standard ops, where fp64 cannot run the spelling itself
    runs: bool = True  # ONNX Runtime's CPU provider can run the original (it has no bf16 MatMul)
    proves: bool = True  # it runs on the inputs that a proof makes up
    dims: Sequence[Dims] = SELF
    issue: int = 2

    def sketch(self) -> Sketch:
        sketch = Sketch(self.id, **self.frame)
        self.write(sketch)
        return sketch

    def build(self) -> onnx.ModelProto:
        return self.sketch().model()

    def golden(self) -> onnx.ModelProto:
        """A model of the same meaning that runs in fp64."""
        sketch = Sketch(self.id, **self.frame)
        (self.twin or self.write)(sketch)
        return sketch.model()

    def feeds(self, rng: np.random.Generator, dims: Dims) -> dict[str, np.ndarray]:
        return feeds(self.sketch().inputs, rng, dims)


def row(name: str, write: Callable[[Sketch], None], frame: Mapping[str, Any] | None = None, **more: Any) -> Spelling:
    return Spelling(id=name, write=write, frame=frame or {}, **more)


def scored(name: str, scores: Callable[[Sketch, Value], Value], frame: Any = None, **more: Any) -> Spelling:
    """A row whose only particularity happens between the first product and the softmax."""
    return row(name, lambda f: f.attend(scores=lambda s: scores(f, s)), frame, **more)


R8 = 8**-0.5
GQA = {"h": 6, "kv": 2}
MQA = {"h": 4, "kv": 1}


def masked(name: str, scores: Callable[[Sketch, Value], Value], frame: Any = None, **more: Any) -> Spelling:
    return scored(name, lambda f, s: scores(f, s * 0.3), frame, **{"scale": 0.3, "mask": True, **more})


def width(f: Sketch, q: Value) -> Value:
    """√d at run time: Sqrt(Cast(Slice(Shape(q), -1))), one element."""
    return f.Sqrt(f.Cast(f.Slice(f.Shape(q), [-1], [2**63 - 1], [0]), to=1))


def plain(f: Sketch, q: Value, k: Value, v: Value, *perm: int) -> Value:
    return f.Softmax((q @ k.perm(*perm)) * 0.3, axis=-1) @ v


def padding(f: Sketch, fill: float = LOWEST) -> Value:
    """BERT's: (1 − attention_mask) · fill as [b 1 1 t]."""
    keep = f.input("attention_mask", "b t", "lengths", "int64").unsqueeze(1).unsqueeze(2)
    return (1.0 - keep.to("float32")) * fill


def kept(f: Sketch, dims: str = "b 1 s t") -> Value:
    return f.input("keep", dims, "keep", "bool")


def bias(f: Sketch, dims: str = "b 1 s t", fill: str = "additive") -> Value:
    return f.input("bias", dims, fill)


def causal(f: Sketch) -> Value:
    """[s t] bool, true where a key may be seen, from run-time lengths."""
    rows = f.Range(np.array(0), f.x.dim(1), np.array(1))
    return f.Not(f.Less(rows.unsqueeze(1), rows.unsqueeze(0)))


def both_kept(f: Sketch) -> Value:
    return f.And(causal(f), kept(f, "b 1 1 t"))


def other(f: Sketch, dims: str = "s t") -> Value:
    return f.input("other", dims, "normal")


def repeat(f: Sketch, x: Value, how: str) -> Value:
    """[b g t d] → [b h t d], each key/value head repeated for its group of query heads."""
    r, w, t = f.h // f.kv, f.d, x.dim(2)
    if how == "expand":
        return x.unsqueeze(2).expand(1, f.kv, r, 1, w).reshape(0, f.h, -1, w)
    if how == "expand-legacy":  # expand(-1 …) through ConstantOfShape, Mul, Equal, Where
        want = f.shape(x.dim(0), f.kv, r, t, w)
        ones = f.ConstantOfShape([5], value=helper.make_tensor("one", 7, [1], [1]))
        safe = f.Where(f.Equal(want, ones * np.array(-1)), ones, want)
        return f.Expand(x.unsqueeze(2), safe).reshape(x.dim(0), f.h, t, w)
    if how == "tile":
        return f.Tile(x.unsqueeze(2), [1, 1, r, 1, 1]).reshape(0, f.h, -1, w)
    if how == "gather":
        return f.Gather(x, np.repeat(np.arange(f.kv), r), axis=1)
    return f.Concat(*[x.slice(i // r, i // r + 1, 1) for i in range(f.h)], axis=1)


def later(name: str, write: Callable[[Sketch], None], frame: Any = None, **more: Any) -> Spelling:
    return row(name, write, frame, issue=3, **more)


def declined(name: str, write: Callable[[Sketch], None], reason: str, frame: Any = None, **more: Any) -> Spelling:
    return row(name, write, frame, declines=f"(?i){reason}", **{"sites": 0, **more})
