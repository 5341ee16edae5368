"""Grouped heads, and what surrounds q, k and v without being a scale."""

from __future__ import annotations

from sketch import Sketch, Value

from spellings.base import ANY, GQA, MQA, padding, plain, repeat, row

WINDOWS = ({"b": 2, "s": 7}, {"b": 4, "s": 1}, {"b": 6, "s": 13})


def grouped(f: Sketch, how: str) -> None:
    f.attend(k=repeat(f, f.k, how), v=repeat(f, f.v, how), scores=lambda s: s * 0.3 + padding(f))


def five_d(f: Sketch) -> None:
    """Groups as a dimension of their own: q [b g r s d] against k [b g 1 t d]."""
    q = f.q.reshape(0, f.kv, f.h // f.kv, -1, f.d)
    k, v = f.k.unsqueeze(2), f.v.unsqueeze(2)
    f.close(plain(f, q, k, v, 0, 1, 2, 4, 3).reshape(0, f.h, -1, f.d))


def five_d_masked(f: Sketch) -> None:
    """The mask spans b, but not g: where both become one axis, it is repeated."""
    q = f.q.reshape(0, f.kv, f.h // f.kv, -1, f.d)
    scores = (q @ f.k.unsqueeze(2).perm(0, 1, 2, 4, 3)) * 0.3 + padding(f).unsqueeze(1)
    f.close((f.Softmax(scores, axis=-1) @ f.v.unsqueeze(2)).reshape(0, f.h, -1, f.d))


def windows(f: Sketch, dims: str) -> None:
    """Batch is pictures by windows, and the mask is that of a window: Swin's shifted ones."""

    def scores(s: Value) -> Value:
        apart = (s * 0.3).reshape(-1, 2, f.h, s.dim(2), s.dim(3)) + f.input("windows", dims)
        return apart.reshape(-1, f.h, s.dim(2), s.dim(3))

    f.attend(scores=scores)


def wrong_order(f: Sketch, how: str) -> None:
    def whole(x: Value) -> Value:
        if how == "tile":
            return f.Tile(x, [1, f.h // f.kv, 1, 1])
        return x.unsqueeze(1).expand(1, f.h // f.kv, 1, 1, 1).reshape(0, f.h, -1, f.d)

    f.attend(k=whole(f.k), v=whole(f.v))


def shared(f: Sketch, x: Value) -> None:
    f.attend(k=x, v=x)


def two_layers(f: Sketch) -> None:
    """The same weights twice, as ALBERT does: two sites."""
    x = f.x
    for _ in range(2):
        q, k, v = (f.heads(f.project(n, x, f.h * f.d), f.h) for n in "qkv")
        merged = plain(f, q, k, v, 0, 1, 3, 2).perm(0, 2, 1, 3).reshape(0, 0, f.h * f.d)
        x = x + (merged @ f.weight("o.weight", f.h * f.d, f.m) + f.weight("o.bias", f.m))
    f.output(x)


AROUND = (
    row("scale-on-q-is-a-vector", lambda f: f.attend(q=f.q * f.weight("gain", f.d))),
    row("scale-on-q-is-an-input", lambda f: f.attend(q=f.q * f.input("tau", "1")), scale=ANY, may_decline=True),
    row("scale-on-v-is-not-the-scale", lambda f: f.attend(v=f.v * 0.5)),
    row(
        "scale-on-v-before-split",
        lambda f: f.attend(v=f.heads(f.v3 / 4.0, f.h), scores=lambda s: s * 0.3),
        scale=0.3,
    ),
    row("scale-on-shared-key-value", lambda f: f.attend(k=f.k * 0.5, v=f.k * 0.5), scale=0.5),
    row("scale-on-one-shared-value", lambda f: shared(f, f.k * 0.5), scale=(0.5, 1.0)),
    row("shared-key-value", lambda f: f.attend(k=f.k, v=f.k)),
    row("query-is-key", lambda f: f.attend(q=f.k, k=f.k)),
    row("two-layers-shared-weights", two_layers, scale=0.3, sites=2),
)


GROUPS = (
    *(
        row(f"gqa-{how}", lambda f, how=how: grouped(f, how), GQA, scale=0.3, mask=True)
        for how in ("expand", "expand-legacy", "tile")
    ),
    *(  # 6 is true too, 2 saves the copies
        row(f"gqa-{how}", lambda f, how=how: grouped(f, how), GQA, scale=0.3, mask=True, kv_heads=(2, 6))
        for how in ("gather", "concat")
    ),
    row("gqa-rank-5", five_d, GQA, scale=0.3, heads=(3, 6), kv_heads=(1, 2)),
    row("gqa-rank-5-mask", five_d_masked, GQA, scale=0.3, heads=(3, 6), kv_heads=(1, 2), mask=True),
    row("windows", lambda f: windows(f, "2 1 s t"), scale=0.3, mask=True, dims=WINDOWS),
    row("windows-by-head", lambda f: windows(f, f"2 {f.h} s t"), scale=0.3, mask=True, dims=WINDOWS),
    *(  # query head i reads key head i % g: not what grouped heads are
        row(f"gqa-wrong-order-{how}", lambda f, how=how: wrong_order(f, how), GQA, kv_heads=(2, 6))
        for how in ("tile", "expand")
    ),
    row(
        "gqa-k-and-v-differ",
        lambda f: f.attend(k=repeat(f, f.k, "tile"), v=f.Tile(f.v, [1, 3, 1, 1])),
        GQA,
        kv_heads=(2, 6),
    ),
    row("mqa-broadcast", lambda f: f.attend(scores=lambda s: s * 0.3), MQA, scale=0.3),
    row("mqa-expand", lambda f: grouped(f, "expand"), MQA, scale=0.3, mask=True),
)
