"""The kernels of TopKFeedForward through their C interface: regimes, selection, threads and bad input.

Every sample of the specification runs on every kernel in test_ops.py; here is what those leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from plain_feed_forward import FORMULAS, feed_forward

from runtime_ops import kernels

if kernels.library_path() is None:
    pytest.skip("the kernel library is not built", allow_module_level=True)

Array = np.ndarray[Any, np.dtype[Any]]
Call = dict[str, Any]
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
ISAS = [row["isa"] for row in kernels.kernels() if row["op"] == "TopKFeedForward" and row["usable"]]
INF = float("inf")


def call(n: int, m: int, f: int, *, gate: bool = False, e: int | None = None, **attrs: Any) -> Call:
    """A call with random tensors, biases included."""
    rng = np.random.default_rng([n, m, f])
    shapes = {"x": (n, m), "w_in": (f, m), "w_out": (f, e or m), "b_in": (f,), "b_out": (e or m,)}
    shapes |= {"w_gate": (f, m), "b_gate": (f,)} if gate else {}
    made: Call = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("w_in", "w_gate"):
        if name in made:
            made[name] /= np.float32(np.sqrt(m))
    return made | attrs


def silent(made: Call, share: float) -> Call:
    """The call with a bias so low that about `share` of the neurons is positive."""
    z = made["x"] @ made["w_in"].T + made["b_in"]
    return made | {"b_in": made["b_in"] - np.float32(np.quantile(z, 1 - share))}


def run(made: Call, **more: Any) -> Array:
    return kernels.run_topk_feed_forward(**(made | more))


def split(made: Call) -> tuple[Call, Call]:
    arrays = {name: a for name, a in made.items() if isinstance(a, np.ndarray)}
    attrs = {"k" if name == "k_top" else name: a for name, a in made.items() if name not in arrays}
    return arrays, attrs


CALLS: dict[str, Call] = {
    **{f"{n} tokens": call(n, 65, 333, k_top=20) for n in (1, 2, 3, 4, 5, 8, 9, 48, 49, 113)},
    **{f"{n} tokens, exact": call(n, 65, 333, activation="gelu") for n in (1, 2, 4, 8, 9, 49, 113)},
    **{f"{n} tokens, gated": call(n, 65, 333, gate=True, activation="silu") for n in (1, 7, 50)},
    **{f"{n} tokens, few active": silent(call(n, 65, 333), 0.04) for n in (1, 6, 70)},
    "half active": silent(call(70, 65, 333), 0.5),
    "none active": silent(call(70, 65, 333), 0.5) | {"b_in": np.full(333, -100, np.float32)},
    "several chunks": call(70, 65, 333, k_top=20, chunk=16),
    "chunks of one": call(5, 65, 333, k_top=20, chunk=1),
    "chunks, exact": call(70, 65, 333, chunk=33),
    "many neurons": call(3, 17, 5000, k_top=300),
    "wide": call(20, 1030, 70, k_top=5),
    "wide, one token": call(1, 1030, 700, k_top=50),
    "narrow result": call(20, 64, 128, e=3, k_top=40),
    "wide result": call(4, 16, 128, e=600),
    "one wide": call(20, 1, 1, e=1),
    "most of them": call(30, 33, 100, k_top=99),
    "a quarter": call(30, 33, 100, k_top=25),
    **{f"gated by {by}, k={k}, {n} tokens": call(n, 40, 200, gate=True, activation="silu", select_by=by, k_top=k)
       for by in ("preactivation", "magnitude", "contribution") for k in (7, 150) for n in (3, 60)},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_error_against_fp64(isa: str, dtype: str, name: str) -> None:
    kind = DTYPES[dtype]
    made = {n: a.astype(kind) if isinstance(a, np.ndarray) else a for n, a in CALLS[name].items()}
    out = run(made, isa=isa)
    arrays, attrs = split(made)
    golden, plain = feed_forward(arrays, attrs), feed_forward(arrays, attrs, np.float32)
    assert (out.shape, out.dtype) == (golden.shape, kind)
    rounded = plain.astype(kind).astype(np.float64)
    rounding = float(ml_dtypes.finfo(kind).eps) * np.abs(golden).max()
    assert np.abs(out.astype(np.float64) - golden).max() <= 2 * np.abs(rounded - golden).max() + 2 * rounding


@pytest.mark.parametrize("tokens", [1, 2, 8, 20, 60])
@pytest.mark.parametrize("isa", ISAS)
def test_long_sums_are_made_in_parts(isa: str, tokens: int) -> None:
    m, f = 4096, 64  # equal terms: in one sum each of the late ones would lose the same digits
    made = {"x": np.ones((tokens, m), np.float32), "w_in": np.full((f, m), 0.1, np.float32)}
    out = kernels.run_topk_feed_forward(**made, w_out=np.full((f, 8), 0.1, np.float32), isa=isa)
    np.testing.assert_allclose(out, float(np.float32(0.1)) ** 2 * m * f, rtol=4e-6)


def coefficients(made: Call, **more: Any) -> Array:
    """What every neuron gets, read through w_out = identity."""
    f = made["w_in"].shape[0]
    return run({n: a for n, a in made.items() if n != "b_out"} | {"w_out": np.eye(f, dtype=np.float32)}, **more)


TIES: dict[str, Call] = {
    "all alike": call(40, 8, 300, k_top=37) | {"w_in": np.ones((300, 8), np.float32), "b_in": np.ones(300, np.float32)},
    "two kinds": call(40, 8, 300, k_top=160) | {"w_in": np.tile(np.eye(8, dtype="f")[:2], (150, 1)), "b_in": None},
    "integers": {n: None if n == "b_in" else np.rint(2 * a) if isinstance(a, np.ndarray) else a
                 for n, a in call(40, 3, 500, k_top=37).items()},
    "zeros": call(40, 8, 300, k_top=37) | {"w_in": np.zeros((300, 8), np.float32), "b_in": None},
}  # fmt: skip


@pytest.mark.parametrize("by", ["preactivation", "magnitude"])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("isa", ISAS)
def test_of_equal_scores_the_first_neurons_are_kept(isa: str, name: str, tokens: int, by: str) -> None:
    made = TIES[name] | {"activation": "gelu", "select_by": by}
    made["x"] = np.abs(np.rint(2 * made["x"][:tokens]))  # so that sums are the same in any order
    got = coefficients(made, isa=isa)
    z = made["x"] @ made["w_in"].T + (0 if made["b_in"] is None else made["b_in"])
    active = FORMULAS["gelu"](z)
    rank = np.argsort(np.argsort(-(z if by == "preactivation" else np.abs(active)), -1, kind="stable"), -1)
    np.testing.assert_allclose(got, np.where(rank < made["k_top"], active, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("isa", ISAS)
def test_activations_over_their_whole_range(isa: str, name: str) -> None:
    z = np.concatenate([np.linspace(-30, 30, 6001), np.linspace(-1, 1, 2001), [-1e30, -1e4, -100, 0, 100, 1e4]])
    z = z.astype(np.float32)
    made = {"x": np.ones((1, 1), np.float32), "w_in": z[:, None], "w_out": np.eye(len(z), dtype=np.float32)}
    out = kernels.run_topk_feed_forward(**made, activation=name, isa=isa)[0]
    with np.errstate(over="ignore"):
        golden = FORMULAS[name](z.astype(np.float64))
    np.testing.assert_allclose(out, golden, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [INF, -INF, float("nan"), 3e38])
@pytest.mark.parametrize("where", ["x", "w_in", "w_out", "b_in"])
@pytest.mark.parametrize("k_top", [0, 5, 100])
@pytest.mark.parametrize("tokens", [2, 20])
def test_infinite_inputs_do_not_crash(isa: str, value: float, where: str, k_top: int, tokens: int) -> None:
    made = call(tokens, 20, 120, activation="gelu_tanh", k_top=k_top)
    made[where].reshape(-1)[7] = value
    assert run(made, isa=isa).shape == (tokens, 20)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("k_top", [0, 5, 100])
@pytest.mark.parametrize("tokens", [2, 20])
def test_a_nan_of_a_token_reaches_its_result_and_no_other(isa: str, activation: str, k_top: int, tokens: int) -> None:
    made = call(tokens, 20, 120, activation=activation, k_top=k_top)
    clean = run(made, isa=isa)
    made["x"][1, 3] = np.nan
    out = run(made, isa=isa)
    assert np.isnan(out[1]).all()
    # a few tokens share the order in which terms are summed
    np.testing.assert_allclose(np.delete(out, 1, 0), np.delete(clean, 1, 0), rtol=0, atol=1e-6 * np.abs(clean).max())


@pytest.mark.parametrize("name", ["113 tokens", "113 tokens, exact", "5 tokens", "wide, one token", "several chunks"])
def test_threads_change_nothing(name: str) -> None:
    assert np.array_equal(run(CALLS[name], threads=1), run(CALLS[name], threads=3))


def test_strided_rows_are_read_in_place() -> None:
    made = call(30, 16, 100, k_top=9)
    strided = {n: np.tile(a, 2)[..., : a.shape[-1]] if isinstance(a, np.ndarray) else a for n, a in made.items()}
    assert np.array_equal(run(made), run(strided))


def test_leading_axes_are_kept() -> None:
    made = call(12, 16, 100, k_top=9)
    for shape in ((3, 4, 16), (2, 3, 2, 16), (12, 1, 1, 1, 1, 1, 16)):
        out = run(made | {"x": made["x"].reshape(shape)})
        assert out.shape == shape
        assert np.array_equal(out.reshape(12, 16), run(made))
    assert run(made | {"x": np.zeros((2, 0, 16), np.float32)}).shape == (2, 0, 16)


def test_relu_with_every_positive_neuron_is_dense() -> None:
    made = silent(call(60, 64, 512), 0.05)
    positive = int(((made["x"] @ made["w_in"].T + made["b_in"]) > 0).sum(-1).max())
    dense, top = run(made), run(made, k_top=positive)
    assert np.abs(top - dense).max() <= 1e-6 * np.abs(dense).max()


OK = call(2, 8, 12)
REFUSED: dict[str, tuple[Callable[[], Array], str]] = {
    "k": (lambda: run(OK, k_top=-1), r"k got -1, allowed 0 \(every neuron\) or more"),
    "chunk": (lambda: run(OK, chunk=-5), "chunk got -5, allowed 0"),
    "activation": (lambda: run(OK, activation="softmax"), "activation got softmax, allowed relu, gelu, gelu_tanh"),
    "select_by": (lambda: run(OK, select_by="size"), "select_by got size, allowed preactivation, magnitude"),
    "w_in": (lambda: run(OK | {"w_in": OK["w_in"][:, :7]}), r"w_in got shape \[12 7\], allowed \[f m\] = \[12 8\]"),
    "w_out": (lambda: run(OK | {"w_out": OK["w_out"][:5]}), r"w_out got shape \[5 8\], allowed \[f e\] = \[12 8\]"),
    "b_in": (lambda: run(OK | {"b_in": OK["b_out"]}), r"b_in got shape \[8\], allowed \[f\] = \[12\]"),
    "b_gate": (lambda: run(OK | {"b_gate": OK["b_in"]}), "b_gate got a tensor, allowed none without w_gate"),
    "rank": (lambda: run(OK | {"b_in": OK["w_in"]}), r"b_in got rank 2, allowed 1: \[f\]"),
    "dtype": (lambda: run(OK | {"w_in": OK["w_in"].astype(np.float16)}), "w_in got element type 10, allowed the type"),
    "float64": (lambda: run({n: a.astype(np.float64) for n, a in OK.items()}), "float64 is not supported"),
    "isa": (lambda: run(OK, isa="avx512vnni"), "isa got avx512vnni, (allowed|for which this library has no kernel)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_is_allowed(name: str) -> None:
    refused, sentence = REFUSED[name]
    with pytest.raises(kernels.LibraryError, match=sentence):
        refused()
