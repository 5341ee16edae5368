"""Gradients of the operations: against finite differences, the interpreter and dense attention; dropout."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sweep import SLOW, sampled
from test_ops import SAMPLES

from runtime_ops import to_torch, torch_chunks, torch_feed_forward, torch_ops
from runtime_ops.ops.remainder import REMAINDERS
from runtime_ops.spec import OpSpec, Sample
from runtime_ops.torch_ops import topk_attention
from runtime_ops.torch_select import Lookup, best


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with all rows in one chunk, and with a few rows in each."""
    if request.param == "many chunks":
        monkeypatch.setitem(torch_chunks._ROOM, "cpu", 64)
        monkeypatch.setitem(torch_feed_forward._ROOM, "cpu", 200)
        monkeypatch.setattr(torch_chunks, "_CAUSAL_ROWS", 2)


def moving(spec: OpSpec, sample: Sample, kind: Any) -> list[Any]:
    """Return the inputs of a sample, the floating ones in type ``kind`` and with a gradient."""
    arrays = [sample.arrays.get(i.name) for i in spec.inputs]
    inputs = [None if a is None else torch.tensor(a) for a in arrays]
    return [x.to(kind).requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]


TOLERANCE = {torch.float64: 3e-7, torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
KINDS = tuple(TOLERANCE) if SLOW else (torch.float32, torch.bfloat16)  # `make sweep` takes all of them


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("spec", "sample"), SAMPLES, ids=[s.id for _, s in SAMPLES])
def test_gradients_are_the_interpreters(spec: OpSpec, sample: Sample, kind: torch.dtype) -> None:
    """The op's gradients are those of its reference, worked out by autograd in float64."""
    inputs = moving(spec, sample, kind)
    wide = [x.detach().double().requires_grad_() if x is not None and x.requires_grad else x for x in inputs]
    out, right = torch_ops.op(spec)(*inputs, **sample.attrs), to_torch.call(spec, wide, sample.attrs)
    grad = torch.randn(right.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(kind)
    out.backward(grad)
    right.backward(grad.double())
    pairs = [(out, right), *((x.grad, y.grad) for x, y in zip(inputs, wide, strict=True) if x is not None and x.is_leaf
                             and x.requires_grad)]  # fmt: skip
    for found, expected in pairs:
        assert found.dtype == kind
        assert found.shape == expected.shape
        # where all keys are hidden, autograd through the reference gives 0 · inf; what float16 cannot hold is inf
        wanted = expected.nan_to_num().to(kind).double()
        size = max([1.0, *wanted[wanted.isfinite()].abs().tolist()])
        size *= 4 if "huge" in sample.id else 1  # the rounding of huge logits shows in the weights
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE[kind] * size)


# Softmax of huge logits is a step, equal scores are chosen by their place, and float64 swallows scores that are added
# to the lowest float32.
NOT_SMOOTH = re.compile("huge|ties|tied|filled|fill")


def smooth(sample: Sample) -> bool:
    sizes = [a.size for a in sample.arrays.values() if a is not None]
    return not NOT_SMOOTH.search(sample.id) and all(sizes) and sum(sizes) < 20_000


SMOOTH = sampled([(spec, sample) for spec, sample in SAMPLES if smooth(sample)], 2)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("spec", "sample"), SMOOTH, ids=[s.id for _, s in SMOOTH])
def test_gradcheck(spec: OpSpec, sample: Sample) -> None:
    inputs = moving(spec, sample, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: torch_ops.op(spec)(*x, **sample.attrs), inputs, fast_mode=True)


def dense(q: Any, k: Any, v: Any, bias: Any = None, causal: bool = False) -> Any:
    """Attention as everyone writes it."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    x = q @ k.mT * q.shape[3] ** -0.5 + (0 if bias is None else bias)
    if causal:
        x = x.masked_fill(torch.ones(x.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return x.softmax(-1) @ v


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), b=st.integers(1, 2), g=st.integers(1, 2), group=st.integers(1, 3),
    t=st.integers(1, 40), d=st.integers(1, 9), e=st.integers(1, 9), causal=st.booleans(),
    bias=st.sampled_from(["", "1 1 1 t", "b 1 t t", "1 h t t", "b h t 1", "t t"]),
    room=st.sampled_from([9, 300, 1 << 20]),
)  # fmt: skip
@example(seed=0, b=1, g=1, group=1, t=10, d=1, e=1, causal=True, bias="", room=300)  # gradients in smaller chunks
def test_all_keys_chosen_is_dense_attention(
    seed: int, b: int, g: int, group: int, t: int, d: int, e: int, causal: bool, bias: str, room: int,
) -> None:  # fmt: skip
    """With k = t, and with k = 0, result and gradients are those of dense attention."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {"b": b, "h": g * group, "t": t, "1": 1}
    shapes = [(b, g * group, t, d), (b, g, t, d), (b, g, t, e)]
    shapes += [tuple(lengths[x] for x in bias.split())] if bias else []
    leaves = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    right = dense(*leaves, causal=causal)
    grad = torch.randn(right.shape, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad(right, leaves, grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torch_chunks._ROOM, "cpu", room)
        for k_top in (0, t, t + 3):
            out = topk_attention(*leaves, k_top=k_top, causal=causal)
            torch.testing.assert_close(out, right)
            torch.testing.assert_close(torch.autograd.grad(out, leaves, grad), expected)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("remainder", ["mean", "blocks"])
def test_remainder_is_attention_to_means(remainder: str) -> None:
    """Result and gradients are those of dense attention to values that were replaced by means, chosen keys constant."""
    q, k, v = (torch.randn(1, 2, 150, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    x = (q @ k.mT * 6**-0.5).masked_fill(torch.ones(150, 150, dtype=torch.bool).triu(1), -torch.inf)
    visible = x > -torch.inf
    others = visible.scatter(-1, x.topk(9).indices, False)
    block = torch.arange(150) // (64 if remainder == "blocks" else 150)
    if remainder == "blocks":
        others = others & (block[:, None] != block)
    among = visible if remainder == "blocks" else others
    members = (among[..., None] & (block[:, None] == torch.arange(3))).double()  # [b h s t n]
    means = torch.einsum("bhstn,bhte->bhsne", members / members.sum(-2, keepdim=True).clamp(min=1), v)
    seen = torch.where(others[..., None], means[..., block, :], v[:, :, None])  # [b h s t e]
    right = torch.einsum("bhst,bhste->bhse", x.softmax(-1), seen)
    out = topk_attention(q, k, v, k_top=9, causal=True, remainder=remainder)
    torch.testing.assert_close(out, right)
    grad = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(y, (q, k, v), grad) for y in (out, right)))


def test_no_gradient_reaches_keys_that_were_not_chosen() -> None:
    q, k, v = (torch.randn(1, 1, n, 8, dtype=torch.float64, requires_grad=True) for n in (1, 9, 9))
    topk_attention(q, k, v, k_top=3).sum().backward()
    chosen = set((q @ k.mT)[0, 0, 0].topk(3).indices.tolist())
    for x in (k, v):
        assert x.grad is not None
        assert set(x.grad[0, 0].abs().sum(-1).nonzero().flatten().tolist()) == chosen


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("k_top", "remainder"), [(0, "none"), (3, "none"), (7, "none"), (3, "mean"), (3, "blocks")])
def test_dropout(k_top: int, remainder: str, causal: bool) -> None:
    """Dropout is one fixed linear map of v in both passes: ⟨G, out⟩ = ⟨∂V, V⟩, in every chunk."""
    q, k, v = (torch.randn(2, 4, 13, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    options: Any = {"k_top": k_top, "remainder": remainder, "causal": causal, "dropout_p": 0.4}
    torch.manual_seed(5)
    out = topk_attention(q, k, v, **options)
    grad = torch.randn_like(out)
    (d_v,) = torch.autograd.grad(out, v, grad, retain_graph=True)
    torch.testing.assert_close((grad * out).sum(), (d_v * v).sum())
    torch.manual_seed(5)
    again = topk_attention(q, k, v, **options)
    torch.testing.assert_close(again, out, rtol=0, atol=0)
    assert not torch.equal(topk_attention(q, k, v, **options), out)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(
    ("k_top", "remainder", "past"),
    [(0, "none", 0), (4, "none", 0), (2, "mean", 0), (2, "blocks", 64)],  # 64: behind the only block
)
def test_dropout_passes_gradcheck(k_top: int, remainder: str, past: int) -> None:
    q, k, v = (torch.randn(1, 2, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def run(*inputs: Any) -> Any:
        torch.manual_seed(3)
        options: Any = {"k_top": k_top, "remainder": remainder, "past_length": torch.tensor([past])}
        return topk_attention(*inputs, **options, causal=True, softcap=2.0, dropout_p=0.3)

    assert torch.autograd.gradcheck(run, (q, k, v, bias))


def test_dropout_drops_as_many_as_it_should() -> None:
    """With v the identity the result is the weights: a share p is 0, the mean stays what it was."""
    q, k = torch.randn(4, 8, 64, 16), torch.randn(4, 8, 64, 16)
    v = torch.eye(64).expand(4, 8, 64, 64).clone()
    kept = topk_attention(q, k, v, dropout_p=0.25)
    assert float((kept == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(kept.sum(-1).mean()) == pytest.approx(1.0, abs=0.01)
    assert not topk_attention(q, k, v, dropout_p=1.0).any()
    with pytest.raises(ValueError, match=r"dropout_p is 1.5"):
        topk_attention(q, k, v, dropout_p=1.5)


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_what_is_saved_does_not_grow_with_the_keys(remainder: str) -> None:
    """Saved for the backward pass, beside the inputs: the result and k numbers a row."""
    sizes = {}
    for t in (64, 256):
        saved: list[int] = []
        q, k, v = (torch.randn(1, 2, 32 if i == 0 else t, 8, requires_grad=True) for i in range(3))

        def pack(x: Any, saved: list[int] = saved) -> Any:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            topk_attention(q, k, v, k_top=8, remainder=remainder)
        sizes[t] = sum(saved) - q.numel() - k.numel() - v.numel()
    assert sizes[64] == sizes[256] == 2 * 32 * 8 + 2 * 32 * 8


def test_checkpointing_repeats_the_dropout() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))

    def run(*inputs: Any) -> Any:
        return topk_attention(*inputs, k_top=4, dropout_p=0.5)

    results = []
    for call in (run, lambda *x: torch.utils.checkpoint.checkpoint(run, *x, use_reentrant=False)):
        torch.manual_seed(0)
        results.append(torch.autograd.grad(call(q, k, v).square().sum(), (q, k, v)))
    torch.testing.assert_close(results[0], results[1])


def test_training_compiles_with_dropout() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    torch._dynamo.reset()
    run = torch.compile(lambda *x: topk_attention(*x, k_top=4, dropout_p=0.5), fullgraph=True, backend="aot_eager")
    out = run(q, k, v)
    (d_v,) = torch.autograd.grad(out, v, out.detach())
    torch.testing.assert_close((out * out).sum(), (d_v * v).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 4),
    n=st.integers(1, 300),
    share=st.floats(0, 1),
    ties=st.booleans(),
)
def test_best_finds_the_largest(seed: int, rows: int, n: int, share: float, ties: bool) -> None:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    x = x.round() if ties else x
    x[0, ::3] = -torch.inf
    count = max(1, int(share * share * n))
    found = best(x, count)
    assert all(len(set(row)) == count for row in found.tolist())
    torch.testing.assert_close(x.gather(-1, found).sort(descending=True).values, x.topk(count).values)


def test_lookup_is_a_sparse_matrix() -> None:
    rng = np.random.default_rng(0)
    columns = torch.tensor(np.stack([rng.permutation(11)[:3] for _ in range(2 * 3 * 5)]).reshape(2, 3, 5, 3))
    weights, table, rows = torch.randn(2, 3, 5, 3), torch.randn(2, 3, 11, 4), torch.randn(2, 3, 5, 4)
    matrix = torch.zeros(2, 3, 5, 11).scatter_(-1, columns, weights)
    lookup = Lookup(columns, 11)
    torch.testing.assert_close(lookup.mix(table, weights), matrix @ table)
    torch.testing.assert_close(lookup.dots(rows, table), (rows @ table.mT).gather(-1, columns))
    torch.testing.assert_close(lookup.spread(rows, weights, 11), matrix.mT @ rows)


def test_heads_that_do_not_divide_are_refused() -> None:
    q, k = torch.randn(1, 3, 4, 8, requires_grad=True), torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="q has 3 heads, k has 2"):
        topk_attention(q, k, k, k_top=2)
