"""The torch side of the operations: the interpreter of the alphabet, and the ops made from the specs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep import SLOW, sampled
from test_ops import SAMPLES, allowed, exchanged, present
from test_words import CALLS, CUBE, TENSORS, X

from runtime_ops import interpret, kernels, to_torch, torch_ops
from runtime_ops.ops import OPS
from runtime_ops.spec import OpSpec, Sample
from runtime_ops.words import WORDS, const, make, symbol

IDS = [sample.id for _, sample in SAMPLES]
CHECKED = sampled(SAMPLES, 5)  # opcheck is slow
KINDS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": to_torch.ml_dtypes.bfloat16}
FLOATING = [word for word, (arrays, _, _) in CALLS.items() if arrays[0].dtype == np.float32]


def test_every_word_has_a_torch_meaning() -> None:
    assert set(to_torch.EVAL) == set(WORDS).difference(TENSORS)


def in_torch(word: str, arrays: Sequence[np.ndarray], rest: Sequence[np.ndarray], attrs: Any) -> Any:
    inputs = [symbol(f"x{i}", a.shape, a.dtype) for i, a in enumerate(arrays)]
    expr = make(word, *inputs, *(const(r, r.dtype) for r in rest), **attrs)
    return to_torch.evaluate(expr, {f"x{i}": to_torch.tensor(a) for i, a in enumerate(arrays)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", CALLS)
def test_torch_says_what_numpy_says(word: str, kind: str) -> None:
    arrays, rest, attrs = CALLS[word]
    given_arrays = [np.asarray(a) for a in arrays]
    given_arrays = [a.astype(KINDS[kind]) if a.dtype == np.float32 else a for a in given_arrays]
    expected = np.asarray(interpret.EVAL[word]([*map(interpret.widen, given_arrays), *rest], attrs))
    rest = [r.astype(KINDS[kind]) if r.dtype == np.float32 else r for r in rest]
    out = in_torch(word, given_arrays, rest, attrs)
    assert out.shape == expected.shape
    if word in FLOATING and expected.dtype == np.float64:
        assert out.dtype == to_torch.dtype(KINDS[kind])
    rounding = float(torch.finfo(to_torch.dtype(KINDS[kind])).eps)
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=8 * rounding, atol=8 * rounding)


EDGES: dict[str, tuple[str, list[np.ndarray], list[Any], dict[str, Any]]] = {
    "backwards-slice": ("slice", [CUBE], [[2], [-5], [2], [-1]], {}),
    "slice-of-two-axes": ("slice", [CUBE], [[0, -2], [2, 99], [1, 2], [2, 1]], {}),
    "integer-division": ("div", [np.array([-7, 7, 8])], [[2]], {}),
    "reshape-keeps": ("reshape", [CUBE], [[0, -1]], {}),
    "reshape-to-nothing": ("reshape", [X[:0]], [[0, 4, 2]], {"keep_zero": True}),
    "amax-of-nothing": ("amax", [X[:, :0]], [], {"axes": (1,), "keepdims": True}),
    "sum-of-no-axis": ("sum", [X], [], {"axes": (), "keepdims": True}),
    "ties": ("topk", [np.array([[1.0, 2.0, 2.0, 2.0, 0.0]], np.float32)], [[2]], {}),
    "negative-gather": ("gather", [CUBE], [[[-1, 0]]], {"axis": 2}),
    "squeeze-all": ("squeeze", [X[None, :, None]], [], {"axes": None}),
}


@pytest.mark.parametrize("case", EDGES)
def test_torch_at_the_edges(case: str) -> None:
    word, arrays, numbers, attrs = EDGES[case]
    rest = [np.array(n, np.int64) for n in numbers]
    expected = np.asarray(interpret.EVAL[word]([*arrays, *rest], attrs))
    np.testing.assert_array_equal(in_torch(word, arrays, rest, attrs).numpy(), expected)


def tensors(spec: OpSpec, sample: Sample, kind: Any = np.float32) -> list[Any]:
    arrays = present(sample, kind)
    return [to_torch.tensor(arrays[i.name].copy()) if i.name in arrays else None for i in spec.inputs]


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("where", ["op", "interpreter"])
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=IDS)
def test_op(spec: OpSpec, sample: Sample, where: str, kind: str) -> None:
    inputs = tensors(spec, sample, KINDS[kind])
    run = torch_ops.op(spec) if where == "op" else lambda *x, **at: to_torch.call(spec, x, at)
    out = run(*inputs, **sample.attrs)
    arrays = present(sample, KINDS[kind])
    golden = spec.golden(arrays, sample.attrs)
    assert out.shape == golden.shape
    assert out.dtype == to_torch.dtype(KINDS[kind])
    error = float(np.abs(to_torch.array(out).astype(np.float64) - golden).max(initial=0.0))
    assert error <= allowed(spec, golden, arrays, sample.attrs)


@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=IDS)
def test_tensors_in_any_layout(spec: OpSpec, sample: Sample) -> None:
    inputs = tensors(spec, sample)
    strange = [None if x is None else x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    run = torch_ops.op(spec)
    torch.testing.assert_close(run(*strange, **sample.attrs), run(*inputs, **sample.attrs), rtol=1e-5, atol=1e-6)


def overload(spec: OpSpec, tail: str = "") -> Any:
    return getattr(torch.ops.graft, torch_ops.name(spec) + tail).default


def arguments(spec: OpSpec, sample: Sample, needs: bool) -> tuple[Any, ...]:
    inputs = tensors(spec, sample)
    for x, i in zip(inputs, spec.inputs, strict=True):
        if needs and x is not None and i.kind == "float":
            x.requires_grad_()
    values = spec.attrs(sample.attrs)
    return (*inputs, *(values[a.name] for a in spec.attributes))


@pytest.mark.parametrize("needs", [False, True], ids=["run", "train"])
@pytest.mark.parametrize(("spec", "sample"), CHECKED, ids=[sample.id for _, sample in CHECKED])
def test_opcheck(spec: OpSpec, sample: Sample, needs: bool) -> None:
    # gradients of different layouts are added up in different orders
    torch.library.opcheck(overload(spec), arguments(spec, sample, needs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "sample", "first"),
    [
        pytest.param(spec, sample, (name,) if name else spec.by_heads, id=f"{spec.name}-{sample.id}-{name or 'all'}")
        for spec in OPS.values()
        for sample in spec.samples()[:2]
        for name in (*spec.by_heads, "")
        if spec.by_heads
    ],
)
def test_tokens_first_changes_the_layout_alone(spec: OpSpec, sample: Sample, first: Sequence[str]) -> None:
    given, order = exchanged(spec, present(sample), first)
    other = Sample(id="tokens first", arrays=given, attrs={**sample.attrs, **order})
    names = ["out", *(i.name for i in spec.inputs if i.kind == "float" and i.name in given)]
    wanted, found = (gradients(torch_ops.op(spec), spec, one) for one in (sample, other))
    for name, x, y in zip(names, wanted, found, strict=True):
        torch.testing.assert_close(y.transpose(1, 2) if name in first else y, x, rtol=1e-5, atol=1e-5)
    assert found[0].is_contiguous()
    torch.library.opcheck(overload(spec), arguments(spec, other, needs=True), rtol=1e-4, atol=1e-4)


COMPILED = ["inductor dynamic", "aot_eager fixed", *(["inductor fixed", "aot_eager dynamic"] if SLOW else [])]


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("spec", OPS.values(), ids=OPS)
def test_compile_does_not_break_the_graph(spec: OpSpec, how: str, compiler: bool) -> None:
    backend, shapes = how.split()
    if backend == "inductor" and not compiler:
        pytest.skip("inductor needs a C++ compiler, and there is none")
    torch._dynamo.reset()
    run = torch_ops.op(spec)
    first, second = samples_of_two_shapes(spec)

    def model(*inputs: Any, **attrs: Any) -> Any:
        x, *rest = inputs
        return run(x * 2, *rest, **attrs).relu()

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=shapes == "dynamic")
    with torch._inductor.config.patch(force_disable_caches=True):  # its cache does not know that a schema changed
        for sample in (first, second):
            results = [gradients(f, spec, sample) for f in (model, compiled)]
            for expected, got in zip(*results, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def samples_of_two_shapes(spec: OpSpec) -> list[Sample]:
    """Return the first sample, and it with the axis cut by one that is the result's last but one."""
    whole, letter = spec.samples()[0], spec.output.split()[-2]
    layouts = {i.name: i.layout.split() for i in spec.inputs}
    arrays = {name: a if a is None else _cut(a, layouts[name], letter) for name, a in whole.arrays.items()}
    return [whole, Sample(id="cut", arrays=arrays, attrs=whole.attrs)]


def _cut(array: np.ndarray, letters: Sequence[str], letter: str) -> np.ndarray:
    if letter not in letters:
        return array
    axis = letters.index(letter)
    return array.take(range(array.shape[axis] - 1), axis)


def gradients(run: Callable[..., Any], spec: OpSpec, sample: Sample) -> list[Any]:
    inputs = arguments(spec, sample, needs=True)[: len(spec.inputs)]
    out = run(*inputs, **sample.attrs)
    out.square().sum().backward()
    return [out, *(x.grad for x in inputs if x is not None and x.requires_grad)]


@pytest.fixture(scope="session")
def compiler() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


@pytest.mark.parametrize("spec", OPS.values(), ids=OPS)
def test_export_keeps_the_op(spec: OpSpec) -> None:
    run, sample = torch_ops.op(spec), spec.samples()[0]

    class Model(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return run(*inputs, **sample.attrs)

    inputs = tensors(spec, sample)
    program = torch.export.export(Model(), tuple(inputs)).run_decompositions()
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [overload(spec)]
    torch.testing.assert_close(program.module()(*inputs), run(*inputs, **sample.attrs))


def test_wrong_attributes_are_refused() -> None:
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="k is -1"):
        torch.ops.graft.topk_attention(q, q, q, k_top=-1)


def test_the_interpreter_stands_in_for_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sample = SAMPLES[0]
    expected = torch_ops.op(spec)(*tensors(spec, sample), **sample.attrs)
    monkeypatch.setattr(kernels, "library_path", lambda: None)
    monkeypatch.setattr(kernels, "load", lambda: pytest.fail("there is no library"))
    torch.testing.assert_close(torch_ops.op(spec)(*tensors(spec, sample), **sample.attrs), expected)


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(0, 4)] * 3), perm=st.permutations(range(3)), kind=st.sampled_from(list(KINDS)))
def test_arrays_and_tensors_share_memory(shape: tuple[int, ...], perm: list[int], kind: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(KINDS[kind])
    there = to_torch.tensor(array).permute(perm)
    back = to_torch.array(there)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.float32), np.transpose(array, perm).astype(np.float32))
    assert not array.size or np.shares_memory(array, back)


def test_importing_runtime_ops_does_not_import_torch() -> None:
    code = "import runtime_ops, runtime_ops.ops, rewriter, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
