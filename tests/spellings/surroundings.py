"""What q, k and v come through: rotary embedding, norms, a cache, projections; and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sketch import Sketch, Value

from spellings.base import ANY, PAST, Spelling, row

MS = "com.microsoft"
Turn = Callable[[Sketch, Value], Value]


def angle(f: Sketch, x: Value, half: int, twice: str = "concat", offset: int = 0) -> Value:
    """[s half], or [s 2·half] with every angle twice, side by side or in a row."""
    at = f.Range(np.array(offset), x.dim(2) + np.array(offset), np.array(1)).to("float32").unsqueeze(1)
    angles = at * f.const((1.0 / 10 ** (np.arange(half) / half)).astype(np.float32), f"inv_freq_{half}")
    if twice == "no":
        return angles
    if twice == "concat":
        return f.Concat(angles, angles, axis=-1)
    return angles.unsqueeze(2).expand(1, 1, 2).reshape(0, 2 * half)


def halves(f: Sketch, x: Value, width: int | None = None) -> Value:
    """Llama's: x cos + rotate_half(x) sin."""
    half = (width or f.d) // 2
    turned = f.Concat(f.Neg(x.slice(half, 2 * half, 3)), x.slice(0, half, 3), axis=-1)
    return x * f.Cos(angle(f, x, half)) + turned * f.Sin(angle(f, x, half))


def halves_by_part(f: Sketch, x: Value) -> Value:
    """The two halves computed apart, as ONNX Runtime's builder writes it."""
    a, b = x.split([f.d // 2] * 2, 3)
    cos, sin = (op(angle(f, x, f.d // 2, "no")) for op in (f.Cos, f.Sin))
    return f.Concat(a * cos - b * sin, b * cos + a * sin, axis=-1)


def every_second(f: Sketch, x: Value, first: int) -> Value:
    return f.Slice(x, [first], [2**62], [3], [2])


def pairs(f: Sketch, x: Value) -> Value:
    """GPT-J's: neighbours are turned against each other."""
    odd, even = every_second(f, x, 1), every_second(f, x, 0)
    turned = f.Concat(f.Neg(odd).unsqueeze(4), even.unsqueeze(4), axis=4).reshape(0, 0, 0, f.d)
    cos, sin = (op(angle(f, x, f.d // 2, "row")) for op in (f.Cos, f.Sin))
    return x * cos + turned * sin


def partial(f: Sketch, x: Value) -> Value:
    """Half of the channels, the rest as they are."""
    return f.Concat(halves(f, x.slice(0, f.d // 2, 3), f.d // 2), x.slice(f.d // 2, f.d, 3), axis=-1)


def wrong_sign(f: Sketch, x: Value) -> Value:
    """Both halves added: no rotation."""
    half = f.d // 2
    turned = f.Concat(x.slice(half, f.d, 3), x.slice(0, half, 3), axis=-1)
    return x * f.Cos(angle(f, x, half)) + turned * f.Sin(angle(f, x, half))


def swapped(f: Sketch, x: Value) -> Value:
    """Sines where cosines belong."""
    half = f.d // 2
    turned = f.Concat(f.Neg(x.slice(half, f.d, 3)), x.slice(0, half, 3), axis=-1)
    return x * f.Sin(angle(f, x, half)) + turned * f.Cos(angle(f, x, half))


def wrong_partner(f: Sketch, x: Value) -> Value:
    """Quarters exchanged instead of halves."""
    n = f.d // 4
    a, b, c, d = (x.slice(i * n, (i + 1) * n, 3) for i in range(4))
    turned = f.Concat(f.Neg(b), a, f.Neg(d), c, axis=-1)
    return x * f.Cos(angle(f, x, f.d // 2)) + turned * f.Sin(angle(f, x, f.d // 2))


def tables(f: Sketch) -> tuple[Value, Value]:
    at = np.arange(40)[:, None] / 10 ** (np.arange(f.d // 2) / (f.d // 2))
    return f.const(np.cos(at).astype(np.float32), "cos_cache"), f.const(np.sin(at).astype(np.float32), "sin_cache")


def positions(f: Sketch, x: Value) -> Value:
    return f.Range(np.array(0), x.dim(2), np.array(1)).unsqueeze(0).expand(x.dim(0), 1)


def contrib_op(f: Sketch, x: Value, **attrs: Any) -> Value:
    return f.node("RotaryEmbedding", x, np.array([2]), *tables(f), domain=MS, **attrs)


def contrib_twin(f: Sketch, x: Value) -> Value:
    a, b = x.split([f.d // 2] * 2, 3)
    cos, sin = (op(angle(f, x, f.d // 2, "no", 2)) for op in (f.Cos, f.Sin))
    return f.Concat(a * cos - b * sin, b * cos + a * sin, axis=-1)


def standard_op(f: Sketch, x: Value) -> Value:
    return f.RotaryEmbedding(x, *tables(f), positions(f, x))


def both(turn: Turn) -> Callable[[Sketch], None]:
    return lambda f: f.attend(q=turn(f, f.q), k=turn(f, f.k), scores=lambda s: s * 0.3)


def rms(f: Sketch, x: Value, name: str, width: int | None = None) -> Value:
    mean = f.axes_op("ReduceMean", x * x, [-1], since=18, keepdims=1)
    return x * f.Reciprocal(f.Sqrt(mean + 1e-5)) * f.weight(f"gain_{name}", width or f.d)


def rms_power(f: Sketch, x: Value, name: str) -> Value:
    mean = f.axes_op("ReduceMean", f.Pow(x, 2.0), [-1], since=18, keepdims=1)
    return f.weight(f"gain_{name}", f.d) * (x / f.Sqrt(mean + 1e-5))


def layer(f: Sketch, x: Value, name: str) -> Value:
    centred = x - f.axes_op("ReduceMean", x, [-1], since=18, keepdims=1)
    spread = f.axes_op("ReduceMean", centred * centred, [-1], since=18, keepdims=1)
    return centred / f.Sqrt(spread + 1e-5) * f.weight(f"gain_{name}", f.d) + f.weight(f"shift_{name}", f.d)


def unit(f: Sketch, x: Value, name: str) -> Value:
    return x / f.Sqrt(f.total(x * x) + 1e-6)


def layer_op(f: Sketch, x: Value, name: str) -> Value:
    return f.LayerNormalization(x, f.weight(f"gain_{name}", f.d), f.weight(f"shift_{name}", f.d), axis=-1)


def normed(norm: Callable[[Sketch, Value, str], Value], turn: Turn = lambda f, x: x) -> Callable[[Sketch], None]:
    return lambda f: f.attend(q=turn(f, norm(f, f.q, "q")), k=turn(f, norm(f, f.k, "k")))


def all_heads(f: Sketch) -> None:
    q, k = (f.heads(rms(f, x, n, f.h * f.d), f.h) for x, n in ((f.q3, "q"), (f.k3, "k")))
    f.attend(q=q, k=k)


def cached(f: Sketch, turn: Turn = lambda f, x: x, given: bool = True) -> None:
    k, v = (
        f.Concat(f.input(f"past_{n}", f"b {f.kv} p {f.d}"), x, axis=2) for n, x in (("k", turn(f, f.k)), ("v", f.v))
    )
    f.attend(k=k, v=v)
    if given:
        f.output(k, f"b {f.kv} total {f.d}")
        f.output(v, f"b {f.kv} total {f.d}")


def constant_keys(f: Sketch) -> None:
    """Learnt keys and values before the others: nothing from before."""
    one = (f.weight(f"learnt_{n}", 1, f.h, 1, f.d).expand(f.x.dim(0), 1, 1, 1) for n in "kv")
    f.attend(**{n: f.Concat(x, own, axis=2) for n, x, own in zip("kv", one, (f.k, f.v), strict=True)})


def packed(f: Sketch) -> None:
    """One product, split into three."""
    parts = f.project("qkv", f.x, 3 * f.h * f.d).split([f.h * f.d] * 3, 2)
    f.attend(**dict(zip("qkv", (f.heads(x, f.h) for x in parts), strict=True)))


def packed_by_head(f: Sketch) -> None:
    """NeoX's: the columns of q, k and v lie beside each other for every head."""
    whole = f.heads(f.project("qkv", f.x, 3 * f.h * f.d), f.h)
    f.attend(**{n: whole.slice(i * f.d, (i + 1) * f.d, 3) for i, n in enumerate("qkv")})


def without_bias(f: Sketch) -> None:
    q, k, v = (f.heads(f.x @ f.weight(f"{n}.weight", f.m, f.h * f.d), f.h) for n in "qkv")
    f.attend(q=q, k=k, v=v)


def given_keys(f: Sketch) -> None:
    """Keys and values that are inputs: no projection here."""
    f.attend(**{n: f.input(n, f"b {f.h} t {f.d}") for n in "kv"})


def free_heads(f: Sketch) -> None:
    """The number of heads is a free length of the inputs."""
    q, k, v = (f.input(n, f"b heads s {f.d}") for n in "qkv")
    f.output(f.Softmax((q @ k.perm(0, 1, 3, 2)) * 0.3, axis=-1) @ v, f"b heads s {f.d}")


HALVES = {"form": "halves", "width": 8, "of": 8, "sides": "q k"}
PAIRS = {**HALVES, "form": "pairs"}
NOTHING: dict[str, Any] = {"rope": None, "qk_norm": None, "cache": None}


def projection(start: int | None, width: int, **more: Any) -> dict[str, Any]:
    columns = None if start is None else [start, start + width]
    return {"width": width, "columns": columns, "packed": False, "biased": True, **more}


def norm(form: str, over: str = "head") -> dict[str, Any]:
    return {"form": form, "over": over, "sides": "q k"}


PLAIN = {n: projection(0, 24) for n in "qkv"}
_ROPES: tuple[tuple[str, Turn, Any, Any], ...] = (
    ("halves", halves, HALVES, {}),
    ("halves-by-part", halves_by_part, HALVES, {}),
    ("pairs", pairs, PAIRS, {}),
    ("partial", partial, {**HALVES, "width": 4}, {}),
    ("wrong-sign", wrong_sign, None, {}),
    ("sine-for-cosine", swapped, None, {}),
    ("wrong-partner", wrong_partner, None, {}),
    ("op-contrib", contrib_op, HALVES, {"twin": both(contrib_twin)}),
    ("op-23", standard_op, HALVES, {"frame": {"opset": 23}, "twin": both(halves)}),
)
SURROUNDINGS: tuple[Spelling, ...] = (
    row("around-nothing", lambda f: f.attend(), around={**NOTHING, "projections": PLAIN, "around": []}),
    *(
        row(
            f"rotary-{name}",
            both(turn),
            scale=0.3,
            around={"rope": want, "qk_norm": None, **({"projections": PLAIN} if want else {})},
            **more,
        )
        for name, turn, want, more in _ROPES
    ),
    row("rotary-of-q", lambda f: f.attend(q=halves(f, f.q)), around={"rope": {**HALVES, "sides": "q"}}),
    *(
        row(f"qk-norm-{name}", normed(write), around={"qk_norm": norm(form), "rope": None, "projections": PLAIN})
        for name, write, form in (
            ("rms", rms, "rms"),
            ("rms-power", rms_power, "rms"),
            ("layer", layer, "layer"),
            ("layer-op", layer_op, "layer"),
            ("l2", unit, "l2"),
        )
    ),
    row("qk-norm-all-heads", all_heads, around={"qk_norm": norm("rms", "all heads"), "projections": PLAIN}),
    row(
        "qk-norm-then-rotary",
        normed(rms, halves),
        around={"qk_norm": norm("rms"), "rope": HALVES, "projections": PLAIN, "around": ["rope", "qk-norm"]},
    ),
    row(
        "rotary-then-qk-norm",
        lambda f: f.attend(q=rms(f, halves(f, f.q), "q"), k=rms(f, halves(f, f.k), "k")),
        around={"qk_norm": norm("rms"), "rope": HALVES, "projections": PLAIN},
    ),
    row("qk-norm-of-k", lambda f: f.attend(k=rms(f, f.k, "k")), around={"qk_norm": {**norm("rms"), "sides": "k"}}),
    row(
        "cache-of-turned-keys",
        lambda f: cached(f, halves),
        dims=PAST,
        around={"cache": {"past": ["past_k", "past_v"]}, "rope": {**HALVES, "sides": "k"}, "projections": PLAIN},
    ),
    row(
        "cache-not-given-back",
        lambda f: cached(f, given=False),
        dims=PAST,
        around={"cache": {"presents": [None, None]}},
    ),
    row("learnt-keys-are-no-cache", constant_keys, around=NOTHING),
    row(
        "heads-free",
        free_heads,
        scale=0.3,
        heads=ANY,
        kv_heads=ANY,
        dims=({"b": 2, "s": 5, "heads": 3}, {"b": 1, "s": 1, "heads": 1}),
        around={"heads": "heads", "kv_heads": "heads", "head_width": 8},
    ),
    row(
        "projections-packed",
        packed,
        around={"projections": {n: projection(24 * i, 24, packed=True) for i, n in enumerate("qkv")}},
    ),
    row(
        "projections-packed-by-head",
        packed_by_head,
        around={"projections": {n: projection(None, 24, packed=True) for n in "qkv"}},
    ),
    row(
        "projections-without-bias",
        without_bias,
        around={"projections": {n: projection(0, 24, biased=False) for n in "qkv"}},
    ),
    row(
        "projections-of-q-alone",
        given_keys,
        {"cross": True},
        dims=({"b": 2, "s": 3, "t": 4},),
        around={"projections": {**PLAIN, "k": None, "v": None}},
    ),
)
