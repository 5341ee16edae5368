"""Every operation, on every sample, in every back end: the spec's fp64 golden is the judge.

Back ends: the function body in ONNX Runtime and in onnx's own reference evaluator, the C interface on every
instruction set of this machine, the kernel inside ONNX Runtime. Each may be at most twice as far from the golden
as plain float32 arithmetic is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from plain_attention import attention, expanded_attention, segment_attention
from plain_combiner import combiner
from plain_feed_forward import feed_forward
from sweep import sampled

from runtime_ops import kernels
from runtime_ops.ops import OPS
from runtime_ops.ops.remainder import REMAINDERS
from runtime_ops.ops.topk_attention import NO_KEY
from runtime_ops.spec import DOMAIN, VERSION, OpSpec, Sample

onnxruntime = pytest.importorskip("onnxruntime")

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SAMPLES = [(spec, sample) for spec in OPS.values() for sample in spec.samples()]
OPSETS = (11, 12, 13, 14, 17, 18, 21, 23, 24)
# bodies of up to 5,000 nodes: the opsets between which the spelling of a word that they use changes, and the last
FEW_OPSETS = {"CombinerAttention": (11, 13, 18, 24), "ExpandedAttention": (11, 14, 18, 24)}
Arrays = Mapping[str, np.ndarray]
IN_C: dict[str, Callable[..., np.ndarray]] = {
    "TopKAttention": kernels.run_topk_attention,
    "TopKFeedForward": kernels.run_topk_feed_forward,
    "SegmentAttention": kernels.run_segment_attention,
    "CombinerAttention": kernels.run_combiner_attention,
    "ExpandedAttention": kernels.run_expanded_attention,
}
PLAIN: dict[str, Callable[..., np.ndarray]] = {
    "TopKAttention": attention,
    "TopKFeedForward": feed_forward,
    "SegmentAttention": segment_attention,
    "CombinerAttention": combiner,
    "ExpandedAttention": expanded_attention,
}


def present(sample: Sample, kind: Any = np.float32) -> dict[str, np.ndarray]:
    """Return the inputs that a sample has, floating ones in type ``kind``."""
    given = {name: a for name, a in sample.arrays.items() if a is not None}
    return {name: a.astype(kind) if a.dtype == np.float32 and name != "bias" else a for name, a in given.items()}


def model(spec: OpSpec, arrays: Arrays, attrs: Mapping[str, Any], opset: int) -> bytes:
    """Return a model of one call with its function body."""
    signature = spec.told({n: (a.shape, a.dtype) for n, a in arrays.items()}, attrs)
    body = spec.body(signature, attrs, opset, "1")
    first = arrays[spec.inputs[0].name]
    names = [i.name for i in spec.inputs]
    while names[-1] not in arrays:
        names.pop()
    values = [_value(n, arrays[n]) if n in arrays else None for n in names]
    node = ir.node(spec.name, values, dict(attrs), domain=DOMAIN, overload="1")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = "out", ir.DataType.from_numpy(first.dtype), ir.Shape([None] * first.ndim)
    inputs, nodes = [v for v in values if v is not None], [node]
    if first.dtype == ml_dtypes.bfloat16:  # ONNX Runtime gives no bfloat16 to numpy; float32 holds it exactly
        nodes.append(ir.node("Cast", [out], {"to": ir.DataType.FLOAT}))
        out.name, out = "narrow", nodes[-1].outputs[0]
        out.name, out.dtype, out.shape = "out", ir.DataType.FLOAT, ir.Shape([None] * first.ndim)
    graph = ir.Graph(inputs, [out], nodes=nodes, opset_imports={"": opset, DOMAIN: VERSION}, name="g")
    proto = ir.to_proto(ir.Model(graph, ir_version=10, functions=[body]))
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _value(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape)


def in_runtime(library: bool, opset: int = 21) -> Callable[..., np.ndarray]:
    def run(spec: OpSpec, arrays: Arrays, attrs: Mapping[str, Any]) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        if library:
            kernels.register(options)
        session = onnxruntime.InferenceSession(model(spec, arrays, attrs, opset), options, ["CPUExecutionProvider"])
        return run_any_type(session, arrays)

    return run


def run_any_type(session: Any, arrays: Arrays) -> np.ndarray:
    """Run a session; bfloat16, for which ONNX Runtime has no numpy type, goes through OrtValue."""
    if not any(a.dtype == ml_dtypes.bfloat16 for a in arrays.values()):
        return np.asarray(session.run(None, dict(arrays))[0])
    plain, narrow = onnxruntime.OrtValue.ortvalue_from_numpy, onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
    half = onnx.TensorProto.BFLOAT16
    feeds = {
        n: narrow(np.ascontiguousarray(a), half) if a.dtype == ml_dtypes.bfloat16 else plain(a)
        for n, a in arrays.items()
    }
    return np.asarray(session.run_with_ort_values(["out"], feeds)[0].numpy()).astype(ml_dtypes.bfloat16)


def in_reference(spec: OpSpec, arrays: Arrays, attrs: Mapping[str, Any]) -> np.ndarray:
    out = ReferenceEvaluator(onnx.load_from_string(model(spec, arrays, attrs, 21))).run(None, dict(arrays))[0]
    return np.asarray(out)


def in_c(isa: str) -> Callable[..., np.ndarray]:
    def run(spec: OpSpec, arrays: Arrays, attrs: Mapping[str, Any]) -> np.ndarray:
        named = {"k_top" if name == "k" else name: value for name, value in attrs.items()}
        return IN_C[spec.name](**arrays, **named, isa=isa)

    return run


def isas() -> list[str]:
    """Return the instruction sets that run here and have kernels of all operations; others are tested with theirs."""
    if kernels.library_path() is None:
        return []
    rows = [row for row in kernels.kernels() if row["usable"]]
    by_op = [{row["isa"] for row in rows if row["op"] == op} for op in {row["op"] for row in rows}]
    return sorted(set.intersection(*by_op))


no_library = "no kernel library: there was no C++ compiler when graft was installed"
needs_library = pytest.mark.skipif(kernels.library_path() is None, reason=no_library)
BACKENDS = {"function-body": in_runtime(library=False), "ort-kernel": in_runtime(library=True)}
BACKENDS.update({f"c-{isa}": in_c(isa) for isa in isas()})
RUNS = [
    pytest.param(run, kind, id=f"{name}-{type_name}", marks=() if name == "function-body" else needs_library)
    for name, run in BACKENDS.items()
    for type_name, kind in TYPES.items()
]
# onnx's own evaluator in float32 only: bodies cast to it whatever the storage type
RUNS.append(pytest.param(in_reference, np.float32, id="onnx-reference-float32"))


# Four products follow each other there, and each may round to the other side than in plain float32.
TIMES = {"ExpandedAttention": 4}


def allowed(spec: OpSpec, golden: np.ndarray, arrays: Arrays, attrs: Mapping[str, Any]) -> float:
    """Return a multiple of the error of plain float32, rounded to the storage type, against fp64, plus two roundings.

    The multiple is 2, or what ``TIMES`` says.
    """
    kind = arrays[spec.inputs[0].name].dtype
    plain = PLAIN[spec.name](arrays, attrs, np.float32).astype(kind).astype(np.float64)
    rounding = float(ml_dtypes.finfo(kind).eps) * float(np.abs(golden).max(initial=0.0))
    return TIMES.get(spec.name, 2) * float(np.abs(plain - golden).max(initial=0.0)) + 2 * rounding


@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=[s.id for _, s in SAMPLES])
def test_golden_is_right(spec: OpSpec, sample: Sample) -> None:
    # 1e-7: the default scale, and constants of activations, are rounded to float32, as kernels take them
    golden = spec.golden(sample.arrays, sample.attrs)
    plain = PLAIN[spec.name](sample.arrays, sample.attrs)
    np.testing.assert_allclose(golden, plain, rtol=1e-6, atol=1e-7 * _size(golden, sample))


def _size(golden: np.ndarray, sample: Sample) -> float:
    sizes = [float(np.abs(a).max(initial=1.0)) for n, a in sample.arrays.items() if n in "qkv" and a is not None]
    return max([size**2 for size in sizes], default=float(np.abs(golden).max(initial=1.0)))


@pytest.mark.parametrize(("run", "kind"), RUNS)
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=[s.id for _, s in SAMPLES])
def test_backend(spec: OpSpec, sample: Sample, run: Callable[..., np.ndarray], kind: Any) -> None:
    arrays = present(sample, kind)
    golden = spec.golden(arrays, sample.attrs)
    out = run(spec, arrays, sample.attrs)
    assert out.shape == golden.shape
    assert out.dtype == np.dtype(kind)
    error = float(np.abs(out.astype(np.float64) - golden).max(initial=0.0))
    assert error <= allowed(spec, golden, arrays, sample.attrs)


def exchanged(spec: OpSpec, arrays: Arrays, first: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return inputs of which some have tokens first in memory too, and the attribute that says so."""
    given = {n: np.ascontiguousarray(a.swapaxes(1, 2)) if n in first else a for n, a in arrays.items()}
    return given, {"tokens_first": " ".join(first)}


ORDERS = [
    pytest.param(spec, sample, (name,) if name else spec.by_heads, id=f"{sample.id}-{name or 'all'}")
    for spec, sample in sampled(SAMPLES, 3)
    for name in (*spec.by_heads, "")
    if spec.by_heads
]


@pytest.mark.parametrize(("spec", "sample", "first"), ORDERS)
def test_tokens_first_changes_the_layout_alone(spec: OpSpec, sample: Sample, first: Sequence[str]) -> None:
    arrays = present(sample)
    given, order = exchanged(spec, arrays, first)
    golden = spec.golden(arrays, sample.attrs)
    attrs = {**sample.attrs, **order}

    def back(out: np.ndarray) -> np.ndarray:
        return out.swapaxes(1, 2) if "out" in first else out

    np.testing.assert_array_equal(back(spec.golden(given, attrs)), golden)
    if len(first) > 1 or first == ("out",):  # bodies of the other orders are made the same way
        body = back(BACKENDS["function-body"](spec, given, attrs))
        assert float(np.abs(body - golden).max(initial=0.0)) <= allowed(spec, golden, arrays, sample.attrs)
    for name in set(BACKENDS).difference(["function-body"]) if kernels.library_path() else ():
        out = BACKENDS[name](spec, given, attrs)
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(back(out), BACKENDS[name](spec, arrays, sample.attrs))


def _cannot(spec: OpSpec, sample: Sample, opset: int) -> bool:
    """Beams are folded into rows by Reshape, which below opset 14 takes a length of 0 for that of its input."""
    return spec.name == "ExpandedAttention" and opset < 14 and sample.id in ("no-keys", "no-queries")


@pytest.mark.parametrize(
    ("spec", "sample", "opset"),
    [
        (spec, s, opset)
        for spec, s in sampled(SAMPLES, 3)
        for opset in FEW_OPSETS.get(spec.name, OPSETS)
        if not _cannot(spec, s, opset)
    ],
    ids=lambda x: getattr(x, "id", str(x) if isinstance(x, int) else ""),
)
def test_body_of_every_opset(spec: OpSpec, sample: Sample, opset: int) -> None:
    arrays = present(sample)
    golden = spec.golden(arrays, sample.attrs)
    out = in_runtime(library=False, opset=opset)(spec, arrays, sample.attrs)
    assert float(np.abs(out - golden).max(initial=0.0)) <= allowed(spec, golden, arrays, sample.attrs)


@pytest.mark.parametrize(
    ("attrs", "says"),
    [
        ({"k": -1}, "k is -1"),
        ({"causal": 2}, "causal is 2"),
        ({"softcap": -1.0}, "softcap"),
        ({"size": 1}, "size"),
        ({"window": -3}, "window is -3"),
        ({"no_key": "nan"}, "no_key is nan; it must be one of zero, mean"),
        ({"remainder": "rest"}, "remainder is rest; it must be one of none, mean, blocks"),
        ({"tokens_first": "bias"}, "tokens_first is bias; it must be some of q k v out"),
        ({"tokens_first": "q q"}, "tokens_first is q q"),
    ],
    ids=["k", "causal", "softcap", "unknown", "window", "no_key", "remainder", "tokens_first", "tokens_first-twice"],
)
def test_wrong_attributes_are_refused(attrs: Mapping[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OPS["TopKAttention"].attrs(attrs)


lengths = st.integers(1, 70)


@needs_library
@settings(max_examples=160, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), b=st.integers(1, 3), g=st.integers(1, 3), group=st.integers(1, 3),
    s=lengths, t=st.integers(1, 150), d=st.integers(1, 80), e=st.integers(1, 80), k=st.integers(0, 40),
    causal=st.booleans(), mask=st.sampled_from([0, 0.7, 0.04]), past=st.integers(-20, 90),
    bias=st.sampled_from(["", "1 1 1 t", "b 1 s t", "1 h s t", "b h s 1"]),
    window=st.sampled_from([0, 0, 1, 2, 9, 30, 64, 1 << 50]), no_key=st.sampled_from(NO_KEY),
    remainder=st.sampled_from(REMAINDERS), isa=st.sampled_from(isas() or ["scalar"]),
)  # fmt: skip
def test_any_call(
    seed: int, b: int, g: int, group: int, s: int, t: int, d: int, e: int, k: int,
    causal: bool, mask: float, past: int, bias: str, window: int, no_key: str, remainder: str, isa: str,
) -> None:  # fmt: skip
    spec, rng = OPS["TopKAttention"], np.random.default_rng(seed)
    shapes = {"q": (b, g * group, s, d), "k": (b, g, t, d), "v": (b, g, t, e)}
    arrays: dict[str, Any] = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    if mask:
        arrays["key_mask"] = rng.random((b, t)) < mask
    if past >= 0:
        arrays["past_length"] = rng.integers(-past, past + 1, b)
    if bias:
        by_letter = {"b": b, "h": g * group, "s": s, "t": t, "1": 1}
        arrays["bias"] = rng.standard_normal([by_letter[x] for x in bias.split()]).astype(np.float32)
    attrs = {"k": k, "causal": int(causal), "window": window, "no_key": no_key, "remainder": remainder}
    golden = spec.golden(arrays, attrs)
    error = np.abs(in_c(isa)(spec, arrays, attrs) - golden).max(initial=0.0)
    assert error <= allowed(spec, golden, arrays, attrs) + 2e-5  # a near tie may be resolved the other way in float32


@needs_library
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), b=st.integers(1, 4), g=st.integers(1, 2), group=st.integers(1, 2), t=lengths,
    pieces=st.integers(1, 6), contiguous=st.booleans(), mask=st.booleans(), isa=st.sampled_from(isas() or ["scalar"]),
    bias=st.sampled_from(["", "1 1 1 t", "b 1 t t", "1 h t 1"]),
)  # fmt: skip
def test_any_segments(
    seed: int, b: int, g: int, group: int, t: int, pieces: int, contiguous: bool, mask: bool, isa: str, bias: str
) -> None:
    spec, rng = OPS["SegmentAttention"], np.random.default_rng(seed)
    shapes = {"q": (b, g * group, t, 9), "k": (b, g, t, 9), "v": (b, g, t, 5)}
    arrays: dict[str, Any] = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    ids = rng.integers(0, pieces, (b, t))
    arrays["segments"] = np.sort(ids, axis=1)[::-1] if contiguous else ids
    if mask:
        arrays["key_mask"] = rng.random((b, t)) < 0.6
    if bias:
        by_letter = {"b": b, "h": g * group, "t": t, "1": 1}
        arrays["bias"] = rng.standard_normal([by_letter[x] for x in bias.split()]).astype(np.float32)
    golden = spec.golden(arrays, {})
    error = np.abs(in_c(isa)(spec, arrays, {}) - golden).max(initial=0.0)
    assert error <= allowed(spec, golden, arrays, {})


@needs_library
@pytest.mark.parametrize("remainder", ["mean", "blocks"])
def test_weights_left_over_are_level(remainder: str) -> None:
    """The k best keep their share of softmax over all keys; others share theirs, by row, or by block with the best."""
    spec, rng = OPS["TopKAttention"], np.random.default_rng(0)
    q, k = (rng.standard_normal((1, 1, n, 8)).astype(np.float32) for n in (3, 200))
    arrays = {"q": q, "k": k, "v": np.eye(200, dtype=np.float32)[None, None]}
    exact = spec.golden(arrays, {})[0, 0]
    best = np.argsort(-exact, axis=-1)[:, :5]
    for isa in isas():
        found = in_c(isa)(spec, arrays, {"k": 5, "remainder": remainder})[0, 0]
        kept = np.zeros(exact.shape, bool)
        np.put_along_axis(kept, best, True, axis=-1)
        kept[:, :64] |= remainder == "blocks"  # where the queries stand
        expected = np.where(kept, exact, 0)
        for row in range(3):
            parts = [slice(0, 200)] if remainder == "mean" else [slice(n, n + 64) for n in (64, 128, 192)]
            for part in parts:
                rest = ~kept[row, part]
                among = rest | (remainder == "blocks")
                expected[row, part] += among * exact[row, part][rest].sum() / among.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@needs_library
@pytest.mark.parametrize("remainder", ["mean", "blocks"])
def test_infinite_values(remainder: str) -> None:
    """Taking a chosen key's value off an infinite sum would make a NaN."""
    spec, t = OPS["TopKAttention"], 200
    k, v = np.zeros((1, 1, t, 8), np.float32), np.ones((1, 1, t, 2), np.float32)
    k[:, :, 64:128] = 1  # alike, so that the chosen ones among them weigh as much as the others
    v[:, :, 64:128, 0] = np.inf
    arrays = {"q": np.ones((1, 1, 1, 8), np.float32), "k": k, "v": v}
    golden = spec.golden(arrays, {"k": 5, "remainder": remainder})
    assert golden[..., 0] == np.inf
    for isa in isas():
        found = in_c(isa)(spec, arrays, {"k": 5, "remainder": remainder})
        np.testing.assert_allclose(found, golden, rtol=1e-5)


@needs_library
def test_a_row_never_attends_to_more_than_k_keys() -> None:
    spec = OPS["TopKAttention"]
    ones = np.ones((1, 1, 4, 8), np.float32)
    v = np.eye(16, dtype=np.float32)[None, None]
    for isa in isas():
        arrays = {"q": ones, "k": np.ones((1, 1, 16, 8), np.float32), "v": v}
        weights = in_c(isa)(spec, arrays, {"k": 5})
        np.testing.assert_array_equal((weights > 0).sum(axis=-1), 5)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
