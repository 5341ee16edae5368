"""Feed-forward blocks, a row each: how it is written, and what reading must say; and what must be declined, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sketch import Sketch, Value

MODEL, INNER = 12, 200  # their product is more than graft folds, as in real models
MS = "com.microsoft"
Act = Callable[[Sketch, Value], Value]


@dataclass(frozen=True, kw_only=True)
class Block:
    """What must be read: the activation, whether gated and biased, the layout of x, and formats."""

    write: Callable[[Sketch], None]
    activation: str = "relu"
    gated: bool = False
    biases: str = ""  # of in, gate, out: those that are there
    layout: str = "b s m"
    widths: tuple[int, int] = (MODEL, INNER)
    quantised: str | None = None
    stored: str | None = None
    leaks: int = 0
    opset: int = 17
    dtype: str = "float32"
    off: float = 2e-5  # relative error against ONNX Runtime


# -- parts -----------------------------------------------------------------------------------------


def linear(f: Sketch, name: str, x: Value, rows: int = MODEL, columns: int = INNER) -> Value:
    return x @ f.weight(f"{name}.w", rows, columns) + f.weight(f"{name}.b", columns)


def first(f: Sketch) -> Value:
    return linear(f, "in", f.x)


def close(f: Sketch, y: Value, rows: int = INNER) -> None:
    f.output(linear(f, "out", y, rows, MODEL), f"b s {MODEL}")


def bare(f: Sketch, y: Value, rows: int = INNER, dims: str = f"b s {MODEL}") -> None:
    f.output(y @ f.weight("out.w", rows, MODEL), dims)


def tanh_gelu(f: Sketch, z: Value) -> Value:
    return z * 0.5 * (f.Tanh((z + f.Pow(z, 3.0) * 0.044715) * float(np.sqrt(2 / np.pi))) + 1.0)


def pair(f: Sketch) -> tuple[Value, Value]:
    return linear(f, "gate", f.x), linear(f, "up", f.x)


# -- blocks ----------------------------------------------------------------------------------------


def swiglu(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, gate * f.Sigmoid(gate) * up)


def geglu_up_first(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, up * tanh_gelu(f, gate))


def gate_without_bias(f: Sketch) -> None:
    gate, up = f.x @ f.weight("gate.w", MODEL, INNER), linear(f, "up", f.x)
    bare(f, f.Relu(gate) * up)


def packed(f: Sketch) -> None:
    gate, up = linear(f, "both", f.x, MODEL, 2 * INNER).split([INNER, INNER], 2)
    close(f, f.Relu(gate) * up)


def packed_up_first(f: Sketch) -> None:
    both = f.x @ f.weight("both.w", MODEL, 2 * INNER)
    up, gate = (both + f.weight("both.b", 2 * INNER)).split([INNER, INNER], -1)
    close(f, gate * f.Sigmoid(gate) * up)


def interleaved(f: Sketch) -> None:
    both = linear(f, "both", f.x, MODEL, 2 * INNER)
    gate, up = (f.Slice(both, [start], [2**31], [2], [2]) for start in (0, 1))
    close(f, f.Relu(gate) * up)


def bias_after_split(f: Sketch) -> None:
    gate, up = (f.x @ f.weight("both.w", MODEL, 2 * INNER)).split([INNER, INNER], 2)
    close(f, f.Relu(gate + f.weight("gate.b", INNER)) * up)


def gemm(f: Sketch) -> None:
    flat = f.x.reshape(-1, MODEL)
    z = f.Gemm(flat, f.weight("in.w", INNER, MODEL), f.weight("in.b", INNER), transB=1)
    y = f.Gemm(f.Relu(z), f.weight("out.w", MODEL, INNER), f.weight("out.b", MODEL), transB=1)
    f.output(y.reshape(f.x.dim(0), f.x.dim(1), MODEL), f"b s {MODEL}")


def gemm_alpha(f: Sketch) -> None:
    x = f.input("rows", f"s {MODEL}")
    z = f.Gemm(x, f.weight("in.w", MODEL, INNER), f.weight("in.b", INNER), alpha=0.3, beta=1.5)
    f.output(f.Gemm(f.Relu(z), f.weight("out.w", INNER, MODEL), alpha=2.0), f"s {MODEL}")


def gemm_between_views(f: Sketch) -> None:
    """As GPT-2 is exported: flattened for each product, cut open again for the activation."""
    lead = (f.x.dim(0), f.x.dim(1))
    z = f.Gemm(f.x.reshape(-1, MODEL), f.weight("in.w", MODEL, INNER), f.weight("in.b", INNER)).reshape(*lead, INNER)
    y = f.Gemm(f.Relu(z).reshape(-1, INNER), f.weight("out.w", INNER, MODEL), f.weight("out.b", MODEL))
    f.output(y.reshape(*lead, MODEL), f"b s {MODEL}")


def transposed_weights(f: Sketch) -> None:
    z = f.x @ f.weight("in.w", INNER, MODEL).perm(1, 0)
    f.output(f.Relu(z) @ f.weight("out.w", MODEL, INNER).perm(1, 0), f"b s {MODEL}")


def weights_on_the_left(f: Sketch) -> None:
    x = f.x.perm(0, 2, 1)
    z = f.weight("in.w", INNER, MODEL) @ x + f.weight("in.b", INNER, 1)
    y = f.weight("out.w", MODEL, INNER) @ f.Relu(z) + f.weight("out.b", MODEL, 1)
    f.output(y, f"b {MODEL} s")


def left_then_right(f: Sketch) -> None:
    z = f.weight("in.w", INNER, MODEL) @ f.x.perm(0, 2, 1)
    bare(f, f.Relu(z).perm(0, 2, 1))


def shared_weights(f: Sketch) -> None:
    w = f.weight("in.w", MODEL, INNER)
    f.output(f.Relu(f.x @ w) @ w.perm(1, 0), f"b s {MODEL}")


def over_tokens(f: Sketch) -> None:
    """As MLP-Mixer: the block runs along the tokens, the channels are rows."""
    x = f.input("tokens", f"b {MODEL} c")
    z = x.perm(0, 2, 1) @ f.weight("in.w", MODEL, INNER)
    f.output((f.Relu(z) @ f.weight("out.w", INNER, MODEL)).perm(0, 2, 1), f"b {MODEL} c")


def other_width_out(f: Sketch) -> None:
    f.output(f.Relu(first(f)) @ f.weight("out.w", INNER, 5), "b s 5")


def conv(rank: int) -> Callable[[Sketch], None]:
    """A block of 1×1 convolutions over [b m t] or [b m h w]."""

    def write(f: Sketch) -> None:
        places = "t u"[: 2 * rank - 1]
        x, ones = f.input("image", f"b {MODEL} {places}"), [1] * rank
        z = f.Conv(x, f.weight("in.w", INNER, MODEL, *ones), f.weight("in.b", INNER), kernel_shape=ones)
        y = f.Conv(f.Relu(z), f.weight("out.w", MODEL, INNER, *ones), f.weight("out.b", MODEL), kernel_shape=ones)
        f.output(y, f"b {MODEL} {places}")

    return write


def conv_without_bias(f: Sketch) -> None:
    x = f.input("image", f"b {MODEL} t u")
    y = f.Relu(f.Conv(x, f.weight("in.w", INNER, MODEL, 1, 1)))
    f.output(f.Conv(y, f.weight("out.w", MODEL, INNER, 1, 1)), f"b {MODEL} t u")


def scaled_by_neuron(f: Sketch) -> None:
    bare(f, f.Relu((f.x @ f.weight("in.w", MODEL, INNER)) * f.weight("scale", INNER) + f.weight("in.b", INNER)))


def two_biases(f: Sketch) -> None:
    close(f, f.Relu(first(f) + f.weight("more", INNER)))


def inner_is_output(f: Sketch) -> None:
    y = f.Relu(first(f))
    f.output(y, f"b s {INNER}")
    close(f, y)


def inner_read_twice(f: Sketch) -> None:
    y = f.Relu(first(f))
    bare(f, y)
    f.output(f.ReduceSum(y, [2], keepdims=0), "b s")


def cast_twice(f: Sketch) -> None:
    """Each product converts its input for itself."""
    x = f.input("wide", f"b s {MODEL}", dtype="float64")
    gate, up = linear(f, "gate", x.to("float32")), linear(f, "up", x.to("float32"))
    close(f, f.Relu(gate) * up)


def half(f: Sketch) -> None:
    close(f, f.Relu(first(f).to("float32")).to("float16"))


def residual_after(f: Sketch) -> None:
    y = f.Relu(first(f)) @ f.weight("out.w", INNER, MODEL)
    f.output(f.x + (y + f.weight("out.b", MODEL)), f"b s {MODEL}")


def result_read_twice(f: Sketch) -> None:
    y = f.Relu(first(f)) @ f.weight("out.w", INNER, MODEL)
    f.output(y + f.weight("out.b", MODEL), f"b s {MODEL}")
    f.output(y, f"b s {MODEL}")


# -- quantised -------------------------------------------------------------------------------------


def int8(f: Sketch, name: str, *shape: int) -> tuple[Value, Value, Value]:
    """Weights of 8 bits with a scale and a zero point."""
    rng = np.random.default_rng(len(name) + sum(shape))
    w = rng.integers(-90, 90, shape).astype(np.int8)
    parts = (w, np.array(0.004, np.float32), np.array(3, np.int8))
    one, two, three = (f.const(part, f"{name}.{part.dtype}{part.ndim}") for part in parts)
    return one, two, three


def stored_int8(f: Sketch) -> None:
    w_in, w_out = (f.DequantizeLinear(*int8(f, n, *s)) for n, s in (("in", (MODEL, INNER)), ("out", (INNER, MODEL))))
    f.output(f.Relu(f.x @ w_in + f.weight("in.b", INNER)) @ w_out, f"b s {MODEL}")


def dynamic(f: Sketch, name: str, x: Value, *shape: int) -> Value:
    """x · w as ONNX Runtime's quantize_dynamic writes it."""
    q, scale, zero = f.node("DynamicQuantizeLinear", x, outputs=3)
    w, w_scale, w_zero = int8(f, name, *shape)
    return f.MatMulInteger(q, w, zero, w_zero).to("float32") * (scale * w_scale) + f.weight(f"{name}.b", shape[1])


def dynamic_block(f: Sketch) -> None:
    z = dynamic(f, "in", f.x, MODEL, INNER)
    f.output(dynamic(f, "out", z * 0.5 * (f.Erf(z / float(np.sqrt(2))) + 1.0), INNER, MODEL), f"b s {MODEL}")


def dynamic_operators(f: Sketch) -> None:
    y = f.x
    for name, shape in (("in", (MODEL, INNER)), ("out", (INNER, MODEL))):
        w, scale, zero = int8(f, name, *shape)
        y = f.node("DynamicQuantizeMatMul", y, w, scale, zero, f.weight(f"{name}.b", shape[1]), domain=MS)
        y = f.Relu(y) if name == "in" else y
    f.output(y, f"b s {MODEL}")


def integers_to_float(f: Sketch) -> None:
    y = f.x
    for name, shape in (("in", (MODEL, INNER)), ("out", (INNER, MODEL))):
        q, scale, zero = f.node("DynamicQuantizeLinear", y, outputs=3)
        w, w_scale, w_zero = int8(f, name, *shape)
        bias = f.weight(f"{name}.b", shape[1])
        y = f.node("MatMulIntegerToFloat", q, w, scale, w_scale, zero, w_zero, bias, domain=MS)
        y = f.Relu(y) if name == "in" else y
    f.output(y, f"b s {MODEL}")


def static_operators(f: Sketch) -> None:
    """Tensors kept in 8 bits between the operators."""
    scale, zero = f.const(np.array(0.1, np.float32)), f.const(np.array(2, np.int8))
    y = f.x
    for name, shape in (("in", (MODEL, INNER)), ("out", (INNER, MODEL))):
        w, w_scale, w_zero = int8(f, name, *shape)
        q = f.QLinearMatMul(f.QuantizeLinear(y, scale, zero), scale, zero, w, w_scale, w_zero, scale, zero)
        y = f.DequantizeLinear(q, scale, zero)
        y = f.Relu(y) if name == "in" else y
    f.output(y, f"b s {MODEL}")


def qdq(f: Sketch) -> None:
    """Every tensor rounded to 8 bits, as static quantisation writes it."""

    def rounded(x: Value) -> Value:
        scale, zero = f.const(np.array(0.05, np.float32)), f.const(np.array(2, np.int8))
        return f.DequantizeLinear(f.QuantizeLinear(x, scale, zero), scale, zero)

    w_in, w_out = (f.DequantizeLinear(*int8(f, n, *s)) for n, s in (("in", (MODEL, INNER)), ("out", (INNER, MODEL))))
    z = rounded(rounded(f.x) @ w_in + f.weight("in.b", INNER))
    f.output(rounded(f.Relu(z)) @ w_out + f.weight("out.b", MODEL), f"b s {MODEL}")


def n_bits(bits: int, zeros: bool) -> Callable[[Sketch], None]:
    """Weights in blocks of 16 along the contracted axis; 200 neurons fill twelve blocks and a half."""

    def product(f: Sketch, x: Value, k: int, n: int) -> Value:
        rng, blocks = np.random.default_rng(k + bits), -(-k // 16)
        packed = rng.integers(0, 256, (n, blocks, 16 * bits // 8)).astype(np.uint8)
        scales = (rng.random(n * blocks) * 0.1 + 0.02).astype(np.float32) * (16 if bits == 4 else 1) / 16
        zero = rng.integers(0, 256, n * (-(-blocks * bits // 8))).astype(np.uint8) if zeros else None
        extra = (zero,) if zeros else ()
        return f.node("MatMulNBits", x, packed, scales, *extra, domain=MS, K=k, N=n, bits=bits, block_size=16)

    def write(f: Sketch) -> None:
        z = product(f, f.x, MODEL, INNER) + f.weight("in.b", INNER)
        f.output(product(f, f.Relu(z), INNER, MODEL) + f.weight("out.b", MODEL), f"b s {MODEL}")

    return write


FEW = "DequantizeLinear, QuantizeLinear"
DYNAMIC = "DynamicQuantizeLinear, MatMulInteger"
BLOCKS: dict[str, Block] = {
    "swiglu": Block(write=swiglu, activation="silu", gated=True, biases="in gate out"),
    "geglu-up-first": Block(write=geglu_up_first, activation="gelu_tanh", gated=True, biases="in gate out"),
    "gate-without-bias": Block(write=gate_without_bias, gated=True, biases="in"),
    "packed": Block(write=packed, gated=True, biases="in gate out"),
    "packed-up-first": Block(write=packed_up_first, activation="silu", gated=True, biases="in gate out"),
    "interleaved": Block(write=interleaved, gated=True, biases="in gate out"),
    "bias-after-split": Block(write=bias_after_split, gated=True, biases="gate out"),
    "gemm": Block(write=gemm, biases="in out", layout="b m"),
    "gemm-alpha": Block(write=gemm_alpha, biases="in", layout="b m"),
    "gemm-between-views": Block(write=gemm_between_views, biases="in out", layout="(b0 b1) m"),
    "transposed-weights": Block(write=transposed_weights),
    "weights-on-the-left": Block(write=weights_on_the_left, biases="in out", layout="b m s"),
    "left-then-right": Block(write=left_then_right, layout="b m s"),
    "shared-weights": Block(write=shared_weights),
    "over-tokens": Block(write=over_tokens),
    "other-width-out": Block(write=other_width_out, biases="in"),
    "conv-1d": Block(write=conv(1), biases="in out", layout="b m s"),
    "conv-2d": Block(write=conv(2), biases="in out", layout="b m s0 s1"),
    "conv-without-bias": Block(write=conv_without_bias, layout="b m s0 s1"),
    "scaled-by-neuron": Block(write=scaled_by_neuron, biases="in"),
    "two-biases": Block(write=two_biases, biases="in out"),
    "inner-is-output": Block(write=inner_is_output, biases="in out", leaks=1),
    "inner-read-twice": Block(write=inner_read_twice, biases="in", leaks=1),
    "cast-twice": Block(write=cast_twice, gated=True, biases="in gate out"),
    "half": Block(write=half, biases="in out", dtype="float16", off=4e-3),
    "residual-after": Block(write=residual_after, biases="in out"),
    "result-read-twice": Block(write=result_read_twice, biases="in"),
    "stored-int8": Block(write=stored_int8, biases="in", stored="int8"),
    "dynamic": Block(
        write=dynamic_block, activation="gelu", biases="in out", quantised=DYNAMIC, stored="int8", off=0.03
    ),
    "dynamic-operators": Block(
        write=dynamic_operators, biases="in out", quantised=DYNAMIC, stored="int8", off=0.03
    ),
    "integers-to-float": Block(
        write=integers_to_float, biases="in out", quantised=DYNAMIC, stored="int8", off=0.03
    ),
    "static-operators": Block(write=static_operators, quantised=FEW, stored="int8", off=0.1),
    "qdq": Block(write=qdq, biases="in out", quantised=FEW, stored="int8", off=0.1),
    "four-bits": Block(write=n_bits(4, False), biases="in out", stored="uint8"),
    "four-bits-zero-points": Block(write=n_bits(4, True), biases="in out", stored="uint8"),
    "eight-bits": Block(write=n_bits(8, False), biases="in out", stored="uint8"),
}  # fmt: skip


# -- declined --------------------------------------------------------------------------------------


def pooled(f: Sketch) -> None:
    """A classifier on the first token, as BERT's."""
    token = f.Gather(f.x, np.array(0), axis=1)
    f.output(f.Tanh(linear(f, "in", token)) @ f.weight("out.w", INNER, 3), "b 3")


def of_first(act: Act) -> Callable[[Sketch], None]:
    return lambda f: close(f, act(f, first(f)))


def with_norm(f: Sketch) -> None:
    close(f, f.LayerNormalization(f.Relu(first(f)), f.weight("g", INNER), f.weight("b", INNER), axis=-1))


def norm_before_activation(f: Sketch) -> None:
    close(f, f.Relu(f.LayerNormalization(first(f), f.weight("g", INNER), f.weight("b", INNER), axis=-1)))


def depthwise(f: Sketch) -> None:
    """As SegFormer: the neurons of neighbouring tokens are mixed before the activation."""
    z = first(f).perm(0, 2, 1)
    z = f.Conv(z, f.weight("mix", INNER, 1, 3), group=INNER, pads=[1, 1], kernel_shape=[3])
    close(f, f.Relu(z.perm(0, 2, 1)))


def grouped(f: Sketch) -> None:
    """As SqueezeBERT: every product is a convolution in groups."""
    z = f.Conv(f.x.perm(0, 2, 1), f.weight("in.w", INNER, MODEL // 2, 1), group=2)
    f.output(f.Conv(f.Relu(z), f.weight("out.w", MODEL, INNER // 2, 1), group=2), f"b {MODEL} s")


def inverted_bottleneck(f: Sketch) -> None:
    """A block of MobileNet, of which convolutional networks are full."""
    x = f.input("image", f"b {MODEL} t u")
    z = f.HardSwish(f.Conv(x, f.weight("in.w", INNER, MODEL, 1, 1)))
    z = f.HardSwish(f.Conv(z, f.weight("mix", INNER, 1, 3, 3), group=INNER, pads=[1, 1, 1, 1]))
    f.output(f.Conv(z, f.weight("out.w", MODEL, INNER, 1, 1)), f"b {MODEL} t u")


def three_products(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, f.Relu(gate) * up * f.Sigmoid(linear(f, "third", f.x)))


def two_added(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, f.Relu(gate) + up)


def bilinear(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, gate * up)


def gate_of_another(f: Sketch) -> None:
    other = f.input("other", f"b s {MODEL}")
    close(f, f.Relu(linear(f, "gate", other)) * linear(f, "up", f.x))


def tokens_merged(f: Sketch) -> None:
    """Two tokens of the first product are one row of the second, as in patch merging."""
    y = f.Relu(first(f)).reshape(f.x.dim(0), -1, 2 * INNER)
    bare(f, y, 2 * INNER, f"b r {MODEL}")


def gate_of_one(f: Sketch) -> None:
    """One gate for all neurons of a token."""
    close(f, f.Relu(f.x @ f.weight("gate.w", MODEL, 1)) * linear(f, "up", f.x))


def limited_factor(f: Sketch) -> None:
    """As a gate, but its other factor is cut off at 7."""
    gate, up = pair(f)
    close(f, gate * f.Sigmoid(gate) * f.Clip(up, -7.0, 7.0))


def both_bent(f: Sketch) -> None:
    gate, up = pair(f)
    close(f, f.Relu(gate) * f.Relu(up))


def gate_of_sentence(f: Sketch) -> None:
    first_token = f.x.slice(0, 1, 1)
    close(f, f.Relu(linear(f, "gate", first_token)) * linear(f, "up", f.x))


def by_neuron(f: Sketch) -> None:
    z = first(f)
    close(f, f.Max(z, z * f.weight("slope", INNER)))


def batched_experts(f: Sketch) -> None:
    x = f.x.unsqueeze(1)
    y = f.Relu(x @ f.weight("in.w", 4, MODEL, INNER)) @ f.weight("out.w", 4, INNER, MODEL)
    f.output(y, f"b 4 s {MODEL}")


def chosen_experts(f: Sketch) -> None:
    """Every sequence goes to one of four experts."""
    which = f.input("expert", "b", fill="zeros", dtype="int64")
    w_in, w_out = (
        f.Gather(f.weight(n, 4, *shape), which) for n, shape in (("in", (MODEL, INNER)), ("out", (INNER, MODEL)))
    )
    f.output(f.Relu(f.x @ w_in) @ w_out, f"b s {MODEL}")


def fused_experts(f: Sketch) -> None:
    router = f.x.reshape(-1, MODEL) @ f.weight("router", MODEL, 4)
    w = f.weight("in.w", 4, INNER, MODEL), None, f.weight("out.w", 4, MODEL, INNER)
    f.output(f.node("MoE", f.x, router, *w, domain=MS, k=1, activation_type="relu"), f"b s {MODEL}")


# name: (graph, regular expression of the reason; None: nothing to say, it is nothing like a block)
DECLINED: dict[str, tuple[Callable[[Sketch], None], str | None]] = {
    "pooled-tanh": (pooled, "^tanh stands between its products, which is none of the activations relu, gelu"),
    "elu": (of_first(lambda f, z: f.Elu(z)), "^an ELU stands"),
    "hard-swish": (of_first(lambda f, z: f.HardSwish(z)), "^a hard swish stands"),
    "relu6": (of_first(lambda f, z: f.Clip(z, 0.0, 6.0)), "^a ReLU cut off at 6 stands"),
    "two-activations": (
        of_first(lambda f, z: f.Relu(f.Tanh(z))),
        "takes -100, -2, -1, 0, 1, 2, 100 to 0, 0, 0, 0, 0.762, 0.964, 1,",
    ),
    "half-a-gelu": (
        of_first(lambda f, z: z * (f.Erf(z / 2**0.5) + 1.0) * 0.51),
        "1, 2, 100 to -0, -0.0464, -0.162, 0, 0.858, 1.99, 102, which is none",
    ),
    "softsign": (of_first(lambda f, z: f.Relu(f.Softsign(z))), "^a Softsign stands between its products$"),
    "by-neuron": (by_neuron, "^two linear results meet"),
    "limit-by-neuron": (
        of_first(lambda f, z: f.Min(f.Relu(z), f.weight("top", INNER))), "another function for each neuron"
    ),
    "norm-between": (with_norm, "^a LayerNormalization stands between its products and mixes the neurons of a row"),
    "norm-before-activation": (norm_before_activation, "^a LayerNormalization stands between"),
    "depthwise": (depthwise, "^a depthwise Conv stands between its products and mixes neighbouring tokens"),
    "grouped": (grouped, "^its products are convolutions in 2 groups"),
    "three-products": (three_products, "^3 linear results meet"),
    "two-added": (two_added, r"not as activation\(gate\) · up"),
    "bilinear": (bilinear, r"not as activation\(gate\) · up"),
    "both-bent": (both_bent, r"not as activation\(gate\) · up"),
    "limited-factor": (limited_factor, r"not as activation\(gate\) · up"),
    "limited-far": (of_first(lambda f, z: f.Clip(z, 0.0, 40.0)), "to 0, 0, 0, 0, 1, 2, 40, which is none"),
    "rounded": (of_first(lambda f, z: f.Relu(z).to("int32").to("float32")), None),
    "gate-of-one": (gate_of_one, "has 1 neurons"),
    "gate-of-sentence": (gate_of_sentence, "read different tensors"),
    "gate-of-another": (gate_of_another, "read different tensors"),
    "tokens-merged": (tokens_merged, "neurons of one are rows of the other"),
    "batched-experts": (batched_experts, "^its weights are 4 matrices, one for each slice of the batch"),
    "chosen-experts": (chosen_experts, "^its weights are 4 matrices, of which the model chooses"),
    "fused-experts": (fused_experts, "^a MoE operator holds several experts"),
    "inverted-bottleneck": (inverted_bottleneck, None),
    "no-activation": (of_first(lambda f, z: z), None),
    "straight": (of_first(lambda f, z: f.Max(z, z) * 2.0), None),
    "softmax": (of_first(lambda f, z: f.Softmax(z, axis=-1)), None),
    "norm-alone": (lambda f: close(f, f.LayerNormalization(first(f), f.weight("g", INNER), axis=-1)), None),
    "input": (lambda f: close(f, f.Relu(f.x), MODEL), None),
    "attention": (lambda f: f.attend(), None),
}  # fmt: skip
