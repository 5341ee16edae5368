"""What must be declined, with a reason that is true, and softmax that is not attention at all."""

from __future__ import annotations

from sketch import Sketch, Value

from spellings.base import causal, declined, later, other, padding


def probs_out(f: Sketch) -> None:
    p = f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1)
    f.output(p, "b 3 s t")
    f.close(p @ f.v)


def scores_out(f: Sketch) -> None:
    s = (f.q @ f.k.perm(0, 1, 3, 2)) * 0.3
    f.output(s, "b 3 s t")
    f.close(f.Softmax(s, axis=-1) @ f.v)


def two_values(f: Sketch) -> None:
    p = f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1)
    f.close(p @ f.v)
    f.output(p @ f.k, "b 3 s 8")


def log_softmax(f: Sketch) -> None:
    f.attend(softmax=lambda s: f.LogSoftmax(s, axis=-1))


def weights_transposed(f: Sketch) -> None:
    p = f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1)
    f.close(p.perm(0, 1, 3, 2) @ f.v)


def scaled_late(f: Sketch, s: Value) -> Value:
    return (s + padding(f)) * f.weight("tau", f.h, 1, 1)


DECLINED = (
    declined(
        "probs-also-output",
        probs_out,
        "probabilit|attention weights|also|output",
        sites=1,
        scale=0.3,
        issue=3,
    ),
    later("scores-also-output", scores_out, scale=0.3),
    later("probs-times-two-values", two_values, scale=0.3, sites=None, may_decline=True),
    declined("log-softmax", log_softmax, "LogSoftmax", issue=3),
    declined(
        "head-mask-after-softmax",
        lambda f: f.attend(probs=lambda p: p * f.input("head_mask", f"1 {f.h} 1 1")),
        "Mul",
        sites=None,
    ),
    declined("scale-per-key", lambda f: f.attend(scores=lambda s: s * f.input("tau", "b 1 1 t")), "key to key"),
    declined("scale-per-head-of-masked", lambda f: f.attend(scores=lambda s: scaled_late(f, s)), "already have a mask"),
    declined("bias-after-softmax", lambda f: f.attend(probs=lambda p: p + other(f)), "Add"),
    declined("probs-squared", lambda f: f.attend(probs=lambda p: f.Pow(p, 2.0)), "Pow"),
    declined("weights-transposed", weights_transposed, "transpos|axis|axes|contract|quer|key"),
    declined("softmax-over-queries", lambda f: f.attend(softmax=lambda s: f.Softmax(s, axis=-2)), "axis"),
    declined("softmax-over-heads", lambda f: f.attend(softmax=lambda s: f.Softmax(s, axis=1)), "axis"),
    declined(
        "softmax-flattening-opset-11",
        lambda f: f.attend(softmax=f.Softmax),
        "axis|flatten",
        {"opset": 11},
        issue=3,
        twin=lambda f: f.attend(softmax=lambda s: f.Reshape(f.Softmax(s.reshape(0, -1), axis=-1), f.Shape(s))),
    ),
    declined(
        "where-of-two-tensors",
        lambda f: f.attend(scores=lambda s: f.Where(causal(f), s, other(f))),
        "Where|fill|constant",
        sites=None,
        may_decline=True,
    ),
    declined(
        "scores-gated",
        lambda f: f.attend(scores=lambda s: s * f.Sigmoid(other(f))),
        "Mul|scale|factor",
        sites=None,
        may_decline=True,
    ),
    declined("scores-relu", lambda f: f.attend(scores=f.Relu), "Relu", sites=None, may_decline=True),
)


def classifier(f: Sketch) -> None:
    f.output(f.Softmax(f.project("c", f.x, 5), axis=-1), "b s 5")


def pooling(f: Sketch) -> None:
    """Additive attention over a sequence: softmax of wᵀ tanh(W x), weighted sum by Mul and ReduceSum."""
    score = f.Tanh(f.project("a", f.x, 6)) @ f.weight("w", 6, 1)
    f.output(f.total(f.Softmax(score, axis=1) * f.x, axis=1), "b 1 20")


def pooling_matmul(f: Sketch) -> None:
    """The same with a product for the sum: attention with one learned query, if one will read it so."""
    score = f.Tanh(f.project("a", f.x, 6)) @ f.weight("w", 6, 1)
    f.output(f.Softmax(score.perm(0, 2, 1), axis=-1) @ f.x, "b 1 20")


def gate(f: Sketch) -> None:
    """A mixture of two experts: softmax(x W) weighs expert outputs."""
    weights = f.Softmax(f.project("gate", f.x, 2), axis=-1)
    one, two = (f.Relu(f.project(f"expert{i}", f.x, f.m)) for i in range(2))
    left, right = weights.split([1, 1], 2)
    f.output(left * one + right * two)


def gate_matmul(f: Sketch) -> None:
    """softmax(x W) M: a memory of five constant rows; attention over neurons, if one will read it so."""
    f.output(f.Softmax(f.project("gate", f.x, 5), axis=-1) @ f.weight("memory", 5, f.m))


def bias_only(f: Sketch) -> None:
    """Weights from positions alone, no query and key (a synthesizer)."""
    f.close(f.Softmax(f.input("other", "1 3 s t"), axis=-1) @ f.v)


def squeeze_excite(f: Sketch) -> None:
    f.output(f.x * f.Softmax(f.project("se", f.x, f.m), axis=-1))


def map_only(f: Sketch) -> None:
    """An attention map that is the model's output: no values."""
    f.output(f.Softmax((f.q @ f.k.perm(0, 1, 3, 2)) * 0.3, axis=-1), "b 3 s t")


NO_VALUES = "value|product|MatMul|output|consum|used|read|Mul|ReduceSum|Split"
NO_SCORES = "product|MatMul|score|key|quer|weight|q·k"
NEGATIVE = (
    declined("classifier-head", classifier, NO_VALUES),
    declined("additive-pooling", pooling, NO_VALUES),
    declined("additive-pooling-matmul", pooling_matmul, NO_SCORES, sites=None, may_decline=True),
    declined("mixture-gate", gate, NO_VALUES),
    declined("mixture-gate-matmul", gate_matmul, NO_SCORES, sites=None, may_decline=True),
    declined("scores-from-positions", bias_only, NO_SCORES),
    declined("softmax-gate", squeeze_excite, NO_VALUES),
    declined("map-only", map_only, NO_VALUES),
)
