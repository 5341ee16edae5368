"""One hand-made report of every type, with every optional part present."""

from __future__ import annotations

from dataclasses import replace

from rewriter.doctor import Check, DoctorReport, KernelRow
from rewriter.report import (
    Activity,
    ApplyCheck,
    ApplyReport,
    BenchCase,
    BenchReport,
    CacheReport,
    Caution,
    Count,
    DeclineRow,
    DistillReport,
    ExpandReport,
    OutputError,
    Refusal,
    Report,
    ShowReport,
    SiteError,
    SiteRow,
    SplitReport,
    Step,
    Story,
    Timing,
    VerifyReport,
    WhyReport,
)

ANCHOR = "/encoder/layer.0/Softmax"
REASON = (
    "the probabilities go into ReduceMax and not into a product with values, because the classifier picks "
    "its answer there; nothing that graft has would take its place"
)
SITE = SiteRow(
    id="attention.0",
    kind="attention",
    reads_as="softmax(0.125 q·kᵀ + bias) v",
    heads=12,
    kv_heads=4,
    head_width=64,
    value_width=None,
    scale=0.125,
    mask="bias [b 1 1 t]",
    model_width=None,
    inner_width=None,
    softcap=None,
    anchor=ANCHOR,
)
NEURONS = Count(median=612, most=1_536)
BLOCK = replace(
    SITE,
    id="feed-forward.0",
    kind="feed-forward",
    reads_as="gelu(x·w + b)·w_out + b_out",
    mask=None,
    activity=Activity(tokens=262_144, positive=0.2125, nonzero=NEURONS, largest={0.99: NEURONS, 0.999: NEURONS}),
)
SHOW = ShowReport(
    model="model.onnx",
    host="onnx",
    opset=17,
    sites=[SITE, BLOCK],
    declines=[DeclineRow(kind="softmax", anchor="/head/Softmax", reason=REASON, at="/head/ReduceMax")],
)
WHY = WhyReport(
    model="model.onnx",
    stories=[
        Story(id="decline.0", anchor="/head/Softmax", outcome=REASON, steps=[], around={}, rules={}),
        Story(
            id="attention.0",
            anchor=ANCHOR,
            outcome="softmax(0.125 q·kᵀ + bias) v",
            steps=[Step(node="/encoder/layer.0/Mul", met="mul", meaning="scale × 0.125")],
            around={"rope": "interleaved, the first 32 of 64"},
            rules={"exact-attention": "applies", "topk-attention": REASON},
        ),
    ],
)
VERIFY = VerifyReport(
    outputs=[OutputError(name="logits", max_abs=3e-7, rel_l2=2e-7, cosine=1.0, argmax_agreement=0.995)],
    tolerance=1e-5,
    passed=True,
    cases=["b=2 s=7", "padded", "length 1", "fully masked"],
)
APPLY = ApplyReport(
    model="model.onnx",
    sites=3,
    rewritten=2,
    declined=[Refusal(site="attention.2", rule="topk-attention", reason=REASON)],
    kernels={"attention.0": "topk_attention_avx512", "attention.1": "function body"},
    output="out.onnx",
    verify=ApplyCheck(
        sites=[
            SiteError(site="attention.0", rewrite=1e-16, kernel=1e-7, original=2e-7, approximation=3e-2),
            SiteError(site="attention.1", rewrite=1e-16, kernel=None, original=None, approximation=None),
        ],
        rewrite=VERIFY,
        approximation=VERIFY,
        rolled_back=["attention.2"],
    ),
    warnings=[Caution(sites=["attention.0", "attention.1"], rule="topk-attention", warning=REASON)],
    plan=["attention.0: topk-attention:k=4: out := TopKAttention(q, k, v, k=4)"],
)
TIMING = Timing(median_ms=1234.567, min_ms=1200.0, peak_mb=2048.25)
BENCH = BenchReport(
    a="model.onnx",
    b="out.onnx",
    cases=[BenchCase(dims={"batch": 2, "sequence": 2048}, threads=2, a=TIMING, b=TIMING, ratio=1.0)],
)
SPLIT = SplitReport(
    model="model.onnx",
    output="split",
    layers=9,
    question_length=27,
    positions="keep",
    files={"joint.onnx": 38423, "weights.data": 436_000_000},
    bytes_per_token=3072,
)
CACHE = CacheReport(store="passages", kind="int8", passages=10_000, new=9_000, kept=10_000, bytes=493_000_000)
EXPAND = ExpandReport(
    decoder="decoder_model.onnx",
    with_past="decoder_with_past_model.onnx",
    output="expanded",
    attentions=4,
    old={
        "decoder_model.onnx": {"inputs": {"ids": "int64[b, s]"}, "outputs": {"present.0.key": "float[b, 4, s, 16]"}},
        "decoder_with_past_model.onnx": {"inputs": {"past_key_values.0.key": "float[b, 4, p, 16]"}, "outputs": {}},
    },
    new={
        "decoder_model.onnx": {"inputs": {"ids": "int64[b, s]"}, "outputs": {"present.0.hidden": "float[b, s, 64]"}},
        "decoder_with_past_model.onnx": {"inputs": {"past_key_values.0.hidden": "float[b, p, 64]"}, "outputs": {}},
    },
    files={"decoder_model.onnx": 622_091},
    error=9.2e-7,
    caution=REASON,
)
DISTILL = DistillReport(
    teacher="exported program", steps=2, losses=[{"kd": 0.13, "lrs": 0.037}, {"kd": 0.011, "lrs": 0.019}]
)
DOCTOR = DoctorReport(
    python="3.11.7",
    platform="Linux x86_64",
    versions={"onnx": "1.23.2", "torch": None},
    library="libruntime_ops.so",
    kernels=[
        KernelRow(op="TopKAttention", name="topk_avx2", isa="avx2", dtypes=["float32"], usable=True, reason=""),
        KernelRow(
            op="TopKAttention",
            name="topk_amx",
            isa="amx",
            dtypes=["float32"],
            usable=False,
            reason="no AMX here",
        ),
    ],
    checks=[
        Check(name="ONNX Runtime", passed=True, found="1.31.1"),
        Check(name="kernel library", passed=False, found="ABI 9, not 1", advice="reinstall attn-graft"),
    ],
)
REPORTS: tuple[Report, ...] = (SHOW, WHY, APPLY, VERIFY, BENCH, SPLIT, CACHE, DISTILL, EXPAND, DOCTOR)
