"""Every spelling written in torch: the sites of the torch graph are those of the ONNX graph, and so are the numbers.

The quick run traces every row and exports every fifth; the sweep (`make sweep`) exports all of them, and has torch
write them to ONNX as well. A row of fused nodes is written as its twin in plain operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
from blocks import BLOCKS, DECLINED, MODEL, close, first
from fp64 import run_fp64
from sketch import Dims, Input, Sketch, feeds
from spellings import SPELLINGS, Spelling
from sweep import sampled
from test_feed_forward import ACTIVATIONS
from test_feed_forward import DIMS as FEED_FORWARD_DIMS

torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")

from in_torch import NoTorchForm, in_torch  # noqa: E402
from same_sites import check_sites, leaves, runnable  # noqa: E402

import rewriter  # noqa: E402
from rewriter.host import open_host  # noqa: E402
from runtime_ops import to_torch  # noqa: E402

# what a module is traced at; two axes of one length have one letter
LENGTHS = {"b": 4, "s": 14, "t": 5, "p": 9, "p+s": 23, "heads": 3, "u": 3, "c": 5}
TOLERANCE = {"float32": 1e-5, "float16": 4 * 2.0**-11, "bfloat16": 4 * 2.0**-8}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is written in both hosts, and the lengths to run it at."""

    id: str
    sketch: Callable[[], Sketch]
    dims: Sequence[Dims]


def spelled(spelling: Spelling) -> Row:
    def sketch() -> Sketch:
        f = Sketch(spelling.id, **spelling.frame)
        (spelling.twin or spelling.write)(f)
        return f

    return Row(id=spelling.id, sketch=sketch, dims=spelling.dims)


def block(name: str, write: Callable[[Sketch], None], **frame: Any) -> Row:
    def sketch() -> Sketch:
        f = Sketch(name, m=MODEL, **frame)
        write(f)
        return f

    return Row(id=name, sketch=sketch, dims=FEED_FORWARD_DIMS)


def formless(row: Row) -> str | None:
    """The operator of a row that torch has no words for."""
    try:
        in_torch(row.sketch().model())
    except NoTorchForm as operator:
        return str(operator)
    return None


ATTENTION = [spelled(spelling) for spelling in SPELLINGS]
FEED_FORWARD = [
    *(block(f"block-{name}", one.write, opset=one.opset, dtype=one.dtype) for name, one in BLOCKS.items()),
    *(
        block(f"activation-{name}", lambda f, act=act: close(f, act(f, first(f))), opset=opset)
        for name, (_, act, opset) in ACTIVATIONS.items()
    ),
    *(block(f"no-block-{name}", write) for name, (write, _) in DECLINED.items()),
]
WITHOUT = {row.id: operator for row in (*ATTENTION, *FEED_FORWARD) if (operator := formless(row)) is not None}
ROWS = [row for row in (*ATTENTION, *FEED_FORWARD) if row.id not in WITHOUT]
# Nodes that are one operator of ONNX and mean something that no plain operators in the tables say, and a branch.
FUSED = {
    "Attention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention", "LinearAttention", "LongformerAttention",
    "MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention", "PagedAttention", "QAttention",
    "SparseAttention", "If",
}  # fmt: skip
ONE_NODE = {
    "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "MoE", "MatMulNBits", "DequantizeLinear", "QuantizeLinear",
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
}  # fmt: skip


def test_few_rows_have_no_torch_form() -> None:
    """The others are compared in both hosts: of the attention spellings 381 as they are, 54 by their twin."""
    attention, feed_forward = ([row for row in rows if row.id not in WITHOUT] for rows in (ATTENTION, FEED_FORWARD))
    assert (len(ATTENTION), len(attention)) == (450, 435)
    assert (len(FEED_FORWARD), len(feed_forward)) == (94, 79)
    assert {WITHOUT[row.id] for row in ATTENTION if row.id in WITHOUT} == FUSED
    assert {WITHOUT[row.id] for row in FEED_FORWARD if row.id in WITHOUT} <= ONE_NODE


# -- the two forms ---------------------------------------------------------------------------------


class Tracer(torch.fx.Tracer):
    """Traces weights too: buffers that are cut at lengths of the inputs cannot be traced otherwise."""

    proxy_buffer_attributes = True


def traced(module: Any, inputs: Sequence[Input], example: Sequence[Any]) -> Any:
    with torch.no_grad():
        module(*example)  # shows the ranks
    return torch.fx.GraphModule(module, Tracer().trace(module))


def exported(module: Any, inputs: Sequence[Input], example: Sequence[Any]) -> Any:
    return torch.export.export(module, tuple(example), dynamic_shapes=free(inputs))


def free(inputs: Sequence[Input]) -> tuple[Any, ...]:
    auto = torch.export.Dim.AUTO
    return tuple({i: auto for i, d in enumerate(one.dims) if not d.isdigit()} for one in inputs)


def given(inputs: Sequence[Input], dims: Dims) -> dict[str, np.ndarray]:
    return feeds(inputs, np.random.default_rng(0), {"t": dims.get("s", 0), **dims})


def tensors(inputs: Sequence[Input], dims: Dims) -> tuple[Any, ...]:
    return tuple(map(to_torch.tensor, given(inputs, dims).values()))


# -- sites -----------------------------------------------------------------------------------------

# What a traced graph tells less of than an ONNX file, which names the lengths that are not known.
TRACED_LESS: Mapping[str, Mapping[str, Any]] = {
    "heads-free": {"heads": 3, "kv_heads": 3},  # a number of the example inputs
    # whether past [2 b h p d] has two parts
    "ms-attention-past-unidirectional": {"mask": "causal (offset 9, only at s=14 t=23)"},
}
BRINGS_A_CONSTANT = ("scale-per-head",)  # of a length that is nobody's, into a program with lengths that are free


@pytest.mark.parametrize(
    ("row", "form"),
    # torch.export takes a second a row and more; the sweep goes through all of them
    [
        *((row, "traced") for row in sampled(ROWS, 4)),
        *((row, "exported") for row in ROWS if row in sampled(ROWS, 16) or row.id in BRINGS_A_CONSTANT),
    ],
    ids=lambda part: part if isinstance(part, str) else part.id,
)
def test_row(row: Row, form: str) -> None:
    sketch = row.sketch()
    model = onnx.inliner.inline_local_functions(sketch.model())  # calling a function leaves no trace in torch
    module, example = in_torch(model), tensors(sketch.inputs, LENGTHS)
    graph = FORMS[form](module, sketch.inputs, example)
    known = example if form == "traced" else None
    theirs = open_host(ir.from_proto(model)).read()
    check_sites(open_host(graph, known).read(), theirs, TRACED_LESS.get(row.id) if form == "traced" else None)
    report = rewriter.apply(graph, RULES, inputs=known, verify=row in FEED_FORWARD)
    assert report.rewritten == rewriter.apply(ir.from_proto(model), RULES, verify=False).rewritten, report.declined
    if report.rewritten:
        ran = [check_numbers(graph, report.result, module, row, dims) for dims in row.dims]
        assert any(ran), "the original runs at none of the sizes"


RULES = ("exact-attention", "exact-feed-forward")
FORMS: Mapping[str, Callable[..., Any]] = {"traced": traced, "exported": exported}


# -- numbers ---------------------------------------------------------------------------------------


def check_numbers(graph: Any, result: Any, module: Any, row: Row, dims: Dims) -> bool:
    """Compare the rewritten graph with the module; return whether the graph itself runs at these lengths."""
    sketch = row.sketch()
    inputs = tensors(sketch.inputs, dims)
    with torch.no_grad():
        try:
            runnable(graph)(*inputs)
        except (AssertionError, RuntimeError):
            return False  # torch.export found that some lengths are not free
        right = leaves(module(*inputs))
        if sketch.dtype in HALF:  # added to a large mask it loses the scores, which kernels keep
            right = [torch.from_numpy(x) for x in run_fp64(sketch.model(), given(sketch.inputs, dims))]
        for pair in zip(leaves(runnable(result)(*inputs)), right, strict=True):
            check_one(*pair)
    return True


HALF = ("float16", "bfloat16")


def check_one(ours: Any, right: Any) -> None:
    """Rows without a visible key may be NaN in the original; they are not in what we write."""
    assert ours.shape == right.shape
    seen, kind = ~right.isnan(), str(ours.dtype).removeprefix("torch.")
    assert not (ours.isnan() & seen).any()
    ours, right = ours[seen].double(), right[seen].double()
    assert (ours - right).norm() <= TOLERANCE[kind] * right.norm()


# -- back to ONNX ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", sampled(ROWS, 100), ids=lambda row: row.id)
def test_torch_writes_the_same_sites(row: Row, tmp_path: Path) -> None:
    """The ONNX file that torch's own exporter makes of the module has the sites of the exported program."""
    sketch = row.sketch()
    module, example = in_torch(sketch.model()), tensors(sketch.inputs, LENGTHS)
    program = exported(module, sketch.inputs, example)
    path = tmp_path / "exported.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
    check_sites(open_host(program).read(), open_host(path).read())
