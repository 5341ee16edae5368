"""Forms of the second reading issue: Einsum, exponentials, sinks, relative bias, past, functions, If."""

from __future__ import annotations

import numpy as np
from onnx import helper
from sketch import LOWEST, Sketch, Value

from spellings.base import ANY, INF, PAST, causal, kept, later, padding


def einsum(f: Sketch, first: str | None, second: str | None) -> None:
    s = f.Einsum(f.q, f.k, equation=first) if first else f.q @ f.k.perm(0, 1, 3, 2)
    p = f.Softmax(s * 0.3, axis=-1)
    f.close(f.Einsum(p, f.v, equation=second) if second else p @ f.v)


def einsum_flat(f: Sketch) -> None:
    """q, k and v stay [b s h d]: the Einsums do all the transposing."""
    q, k, v = (x.reshape(0, 0, f.h, f.d) for x in (f.q3, f.k3, f.v3))
    p = f.Softmax(f.Einsum(q, k, equation="ijkl,imkl->ikjm") * 0.3, axis=-1)
    f.finish(f.Einsum(p, v, equation="zhuw,zwhe->zuhe").reshape(0, 0, f.h * f.d), f.h * f.d)


def einsum_projections(f: Sketch) -> None:
    """XLNet's: weights [m h d], so that heads are never split; sequence first."""
    x = f.x.perm(1, 0, 2)
    q, k, v = (f.Einsum(x, f.weight(f"{n}.weight", f.m, f.h, f.d), equation="ibm,mnd->ibnd") for n in "qkv")
    p = f.Softmax(f.Einsum(q, k, equation="ibnd,jbnd->bnij") * 0.3, axis=-1)
    merged = f.Einsum(
        f.Einsum(p, v, equation="bnij,jbnd->ibnd"), f.weight("o", f.m, f.h, f.d), equation="ibnd,hnd->bih"
    )
    f.output(merged)


def exp_sum(f: Sketch, s: Value, shifted: bool = False, one: float = 0.0) -> Value:
    top = f.Exp(s - f.peak(s) if shifted else s)
    return top / (f.total(top) + one if one else f.total(top))


def late_sum(f: Sketch) -> None:
    top = f.Exp((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3)
    f.close((top @ f.v) / f.total(top))


def transposed_softmax(f: Sketch) -> None:
    """Scores as [b h t s], softmax over t there, the transposed weights times v."""
    p = f.Softmax((f.k @ f.q.perm(0, 1, 3, 2)) * 0.3, axis=2)
    f.close(p.perm(0, 1, 3, 2) @ f.v)


def flat_softmax(f: Sketch, s: Value) -> Value:
    """Softmax over rows of a matrix: the flattening default of opset < 13 is harmless here."""
    rows = s.reshape(-1, s.dim(3))
    return f.Reshape(f.Softmax(rows), f.Shape(s))


def sink(f: Sketch, s: Value) -> Value:
    column = f.weight("sink", 1, f.h, 1, 1).expand(s.dim(0), f.h, s.dim(2), 1)
    return f.Softmax(f.Concat(s, column, axis=-1), axis=-1).slice(0, -1, 3)


def zero_key(f: Sketch) -> None:
    zeros = f.const(np.zeros((1, f.h, 1, f.d), np.float32), "zeros").expand(f.x.dim(0), f.h, 1, f.d)
    f.attend(k=f.Concat(f.k, zeros, axis=2), v=f.Concat(f.v, zeros, axis=2))


def positions(f: Sketch, x: Value) -> Value:
    return f.Range(np.array(0), x.dim(1), np.array(1))


def distance(f: Sketch) -> Value:
    """[s t] int64: key position minus query position."""
    return positions(f, f.x).unsqueeze(0) - positions(f, f.x).unsqueeze(1)


def t5_bias(f: Sketch) -> Value:
    bucket = f.Min(f.Abs(distance(f)), np.array(5))
    return f.Gather(f.weight("relative", 6, f.h, std=1.0), bucket).perm(2, 0, 1).unsqueeze(0)


def alibi(f: Sketch) -> Value:
    return f.const(np.float32([[[0.5]], [[0.25]], [[0.125]]]), "slopes") * distance(f).to("float32")


def disentangled(f: Sketch, s: Value) -> Value:
    """DeBERTa's content-to-position term: q against embedded distances, gathered along the keys."""
    near = f.Min(f.Abs(distance(f)), np.array(5)).unsqueeze(0, 1)
    n = f.x.dim(1)
    terms = f.q @ f.weight("rel_k", f.d, 6)
    return s + f.GatherElements(terms, near.expand(f.x.dim(0), f.h, n, n), axis=3)


def with_past(f: Sketch) -> None:
    past = [f.input(f"past_{n}", f"b {f.h} p {f.d}") for n in "kv"]
    k, v = (f.Concat(p, new, axis=2) for p, new in zip(past, (f.k, f.v), strict=True))
    start = past[0].dim(2)
    rows = f.Range(start, start + f.x.dim(1), np.array(1)).unsqueeze(1)
    seen = f.GreaterOrEqual(rows, f.Range(np.array(0), k.dim(2), np.array(1)).unsqueeze(0))
    f.attend(k=k, v=v, scores=lambda s: f.Where(seen, s * 0.3, -INF))
    f.output(k, "b 3 total 8")
    f.output(v, "b 3 total 8")


def in_function(f: Sketch) -> None:
    inner = Sketch(f.seed, opset=f.opset)
    q, k, v = (Value(inner, n) for n in "qkv")
    out = inner.Softmax((q @ k.perm(0, 1, 3, 2)) * inner.Constant(value_float=0.3), axis=-1) @ v
    imports = [helper.make_opsetid("", f.opset)]
    f.functions.append(helper.make_function("local", "sdpa", ["q", "k", "v"], [out.name], inner.nodes, imports))
    f.close(f.node("sdpa", f.q, f.k, f.v, domain="local"))


def in_if(f: Sketch) -> None:
    q, kt, v = f.q, f.k.perm(0, 1, 3, 2), f.v
    scaled, hot = (f.branch(lambda c=c: f.Softmax((q @ kt) * c, axis=-1) @ v) for c in (0.3, 0.7))
    f.close(f.If(f.input("cold", "", "true", "bool"), then_branch=scaled, else_branch=hot))


def window(f: Sketch) -> Value:
    return f.And(causal(f), f.Less(f.Neg(distance(f)), np.array(3)))


FORMS = (
    later("einsum-first", lambda f: einsum(f, "bhid,bhjd->bhij", None), scale=0.3),
    later("einsum-second", lambda f: einsum(f, None, "bhij,bhjd->bhid"), scale=0.3),
    later("einsum-both-odd-letters", lambda f: einsum(f, "zyxw,zyvw->zyxv", "zyxv,zyvq->zyxq"), scale=0.3),
    later("einsum-implicit-output", lambda f: einsum(f, "...id,...jd->...ij", "...ij,...jd->...id"), scale=0.3),
    later(
        "einsum-projections",
        einsum_projections,
        scale=0.3,
        around={"projections": {n: {"width": 24, "columns": [0, 24], "packed": False} for n in "qkv"}},
    ),
    later("einsum-unsplit-heads", einsum_flat, scale=0.3),
    later("exp-sum", lambda f: f.attend(softmax=lambda s: exp_sum(f, s * 0.3)), scale=0.3),
    later("exp-sum-shifted", lambda f: f.attend(softmax=lambda s: exp_sum(f, s + padding(f), True)), mask=True),
    later("exp-sum-late", late_sum, scale=0.3, may_decline=True),
    later("exp-sum-plus-one", lambda f: f.attend(softmax=lambda s: exp_sum(f, s, one=1.0)), may_decline=True),
    later("softmax-transposed-axis", transposed_softmax, scale=0.3),
    later(
        "softmax-between-transposes",
        lambda f: f.attend(softmax=lambda s: f.Softmax(s.perm(0, 1, 3, 2), axis=2).perm(0, 1, 3, 2)),
    ),
    later(
        "softmax-flat-opset-11",
        lambda f: f.attend(softmax=lambda s: flat_softmax(f, s)),
        {"opset": 11},
        twin=lambda f: f.attend(),
    ),
    later("sink", lambda f: f.attend(softmax=lambda s: sink(f, s)), may_decline=True),
    later("zero-key", zero_key),
    later("t5-bias", lambda f: f.attend(scores=lambda s: s + t5_bias(f) + padding(f)), mask=True),
    later(
        "alibi",
        lambda f: f.attend(scores=lambda s: s * 0.3 + alibi(f) + f.Where(causal(f), 0.0, LOWEST)),
        scale=0.3,
        mask=True,
    ),
    later(
        "deberta",
        lambda f: f.attend(scores=lambda s: f.Where(kept(f), disentangled(f, s) * 0.3, LOWEST)),
        scale=0.3,
        mask=True,
    ),
    later("sliding-window", lambda f: f.attend(scores=lambda s: f.Where(window(f), s, -INF)), mask=True),
    later(
        "sliding-window-padded",
        lambda f: f.attend(scores=lambda s: s + f.Where(window(f), 0.0, LOWEST) + padding(f)),
        mask=True,
    ),
    later("past", with_past, scale=0.3, mask=True, dims=PAST),
    later("learned-query", lambda f: f.attend(q=f.weight("latents", 1, f.h, 5, f.d, std=1.0))),
    later(
        "learned-keys",
        lambda f: f.attend(k=f.weight("mk", 1, f.h, 9, f.d, std=1.0), v=f.weight("mv", 1, f.h, 9, f.d, std=1.0)),
    ),
    later("in-local-function", in_function, scale=0.3, heads=ANY, kv_heads=ANY),
    later("in-if-body", in_if, scale=(0.3, 0.7), sites=2),
)
