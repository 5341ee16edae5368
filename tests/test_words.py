"""The alphabet and its tables: every word has every interpreter, and they agree."""

from __future__ import annotations

from typing import Any

import compare
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewriter import layout
from runtime_ops import interpret, shapes, to_onnx
from runtime_ops.dims import Sym, bind, exact_quotient, product
from runtime_ops.words import WORDS, Expr, const, make, symbol

TENSORS = ("input", "const", "opaque")  # what stands for a tensor has no arithmetic and no spelling
RNG = np.random.default_rng(3)
X, Y = (RNG.uniform(0.2, 2.0, (3, 4)).astype(np.float32) for _ in range(2))
CUBE, KEEP = RNG.standard_normal((2, 3, 4)).astype(np.float32), RNG.random((3, 4)) < 0.5


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# word: (arrays, constants that follow them, attributes)
CALLS: dict[str, tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]] = {
    **{w: ([X, Y], [], {}) for w in ("add", "sub", "mul", "div", "pow", "max", "min", "lt", "le", "eq")},
    **{w: ([X], [], {}) for w in ("neg", "exp", "log", "sqrt", "tanh", "erf", "floor", "sigmoid", "relu")},
    **{w: ([KEEP, ~KEEP], [], {}) for w in ("and", "or")},
    **{w: ([CUBE], [], {"axes": (1,), "keepdims": True}) for w in ("sum", "mean", "amax")},
    "not": ([KEEP], [], {}),
    "where": ([KEEP, X, Y], [], {}),
    "reshape": ([CUBE], [ints(4, -1)], {}),
    "transpose": ([CUBE], [], {"perm": (2, 0, 1)}),
    "expand": ([X], [ints(2, 3, 4)], {}),
    "unsqueeze": ([X], [], {"axes": (0, 2)}),
    "squeeze": ([X[None]], [], {"axes": (0,)}),
    "concat": ([X, Y], [], {"axis": 1}),
    "slice": ([CUBE], [ints(1), ints(4), ints(2), ints(2)], {}),
    "gather": ([CUBE], [ints(2, 0)], {"axis": 1}),
    "dim": ([CUBE], [], {"start": 1}),
    "topk": ([X], [ints(2)], {}),
    "pick": ([X], [np.array([[1, 0], [2, 2], [3, 1]])], {}),
    "scatter": ([X], [np.array([[1, 0], [2, 3], [3, 1]]), X[:, :2]], {}),
    "matmul": ([CUBE, X.T.copy()], [], {}),
    "cast": ([X], [], {"to": np.dtype(np.int64)}),
    "range": ([ints(1)[0], ints(9)[0], ints(2)[0]], [], {}),
    "softmax": ([CUBE], [], {"axis": 1}),
}


def test_every_word_has_every_table() -> None:
    wanted = set(WORDS)
    assert set(shapes.SHAPE) == wanted
    assert set(interpret.EVAL) == set(to_onnx.WRITE) == wanted.difference(TENSORS)
    assert set(CALLS) == wanted.difference(TENSORS, {"call"})  # calls are tested in test_ops


@pytest.mark.parametrize("opset", [11, 13, 18, 21, 24])
@pytest.mark.parametrize("word", CALLS)
def test_onnx_says_what_numpy_says(word: str, opset: int) -> None:
    arrays, rest, attrs = CALLS[word]
    if word == "softmax" and opset < 13:
        attrs = {"axis": 2}  # what older opsets can spell
    given_arrays = [np.asarray(a) for a in arrays]
    inputs = [symbol(f"x{i}", a.shape, a.dtype) for i, a in enumerate(given_arrays)]
    expr = make(word, *inputs, *(const(r) for r in rest), **attrs)
    expected = np.asarray(interpret.EVAL[word]([*given_arrays, *rest], attrs))
    out = in_onnx(expr, given_arrays, opset)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-6)
    if word != "range":  # its length depends on the values
        assert expr.shape == expected.shape


def in_onnx(expr: Expr, arrays: list[np.ndarray], opset: int) -> np.ndarray:
    values = [ir.val(f"x{i}", ir.DataType.from_numpy(a.dtype), a.shape) for i, a in enumerate(arrays)]
    writer = to_onnx.Writer(opset, {v.name: v for v in values})
    out = writer.value(expr)
    graph = ir.Graph(values, [out], nodes=writer.nodes, opset_imports={"": opset}, name="word")
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    session = compare.session(model, library=False)
    return np.asarray(session.run(None, {f"x{i}": a for i, a in enumerate(arrays)})[0])


NAMES = ("b", "s", "h")
polynomials = st.recursive(
    st.one_of(st.integers(1, 5), st.sampled_from([Sym.named(n) for n in NAMES])),
    lambda inner: st.one_of(st.builds(lambda a, b: a + b, inner, inner), st.builds(lambda a, b: a * b, inner, inner)),
    max_leaves=6,
)


@given(a=polynomials, b=polynomials, sizes=st.tuples(*[st.integers(1, 9)] * 3))
def test_symbolic_lengths_compute_as_numbers_do(a: Any, b: Any, sizes: tuple[int, ...]) -> None:
    values = dict(zip(NAMES, sizes, strict=True))
    assert bind(a + b, values) == bind(a, values) + bind(b, values)
    assert bind(a * b, values) == bind(a, values) * bind(b, values)
    assert bind(a - b, values) == bind(a, values) - bind(b, values)
    assert exact_quotient(a * b, b) == a


@given(data=st.data())
def test_a_chain_of_views_is_undone(data: st.DataObject) -> None:
    """Any chain of permutations, merges and splits is traced back, and arranging the end gives the beginning."""
    sizes = data.draw(st.permutations([2, 3, 5, 7]))
    axes = tuple((layout.Atom(n, size),) for n, size in zip("bhst", sizes, strict=True))
    array = np.arange(product(sizes)).reshape(sizes)
    start = expr = symbol("x", sizes, np.int64)
    for _ in range(data.draw(st.integers(1, 5))):
        before = axes
        perm = tuple(data.draw(st.permutations(range(len(before)))))
        expr = make("transpose", expr, perm=perm)
        axes = tuple(before[p] for p in perm)
        cut = data.draw(st.integers(0, len(axes) - 1))
        if cut:  # merge the axes up to the cut
            axes = (tuple(a for axis in axes[: cut + 1] for a in axis), *axes[cut + 1 :])
            expr = make("reshape", expr, const([product(a.size for a in axis) for axis in axes]))
    traced = [x for x, have, _ in layout.views(expr, axes) if x is start and have == _original(axes, sizes)]
    assert traced
    target = tuple((layout.Atom(n, size),) for n, size in zip("bhst", sizes, strict=True))
    undone = layout.arrange(expr, axes, target)
    assert undone is not None
    np.testing.assert_array_equal(interpret.golden(undone, {"x": array}), array)


def _original(axes: layout.Axes, sizes: list[int]) -> layout.Axes:
    return tuple((layout.Atom(n, size),) for n, size in zip("bhst", sizes, strict=True))


@pytest.mark.parametrize("word", ["reshape", "expand", "slice", "gather"])
def test_lengths_and_indices_give_no_type(word: str) -> None:
    """The result has the type of the data; if that is not known, int64 of a shape is no answer."""
    _, constants, attrs = CALLS[word]
    x = Expr("opaque", (), {"op": "Unknown"}, (2, 3, 4), None)
    assert make(word, x, *(const(c) for c in constants), **attrs).dtype is None


def test_lengths_that_are_known_in_part_are_numbers_of_python() -> None:
    """numpy's would never count as the number 0, so that a division of lengths would not end."""
    x, rows = symbol("x", (Sym.named("n"), 64), np.dtype(np.float32)), symbol("rows", (1,), np.dtype(np.int64))
    shape = make("reshape", x, make("concat", rows, const([4, 16]), axis=0)).shape
    assert shape is not None
    assert [type(d) for d in shape[1:]] == [int, int]
    assert exact_quotient(Sym.named("n"), np.int64(4)) is None  # type: ignore[arg-type]
    assert exact_quotient(np.int64(64), 4) == 16  # type: ignore[arg-type]


def test_half_of_an_axis_is_repeated_along_the_rest() -> None:
    n = Sym.named("n")
    free = layout.Atom("b", n, make("dim", symbol("v", (n, 3), np.dtype(np.float32)), start=0, end=1))
    window, s = layout.Atom("bb", 2), layout.Atom("s", 3)
    mask = symbol("mask", (2, 3), np.dtype(np.float32))
    out = layout.arrange(mask, ((window,), (s,)), ((free, window), (s,)))
    assert out is not None
    assert out.shape == (2 * n, 3)
    unknown = layout.Atom("b", n)
    assert layout.arrange(mask, ((window,), (s,)), ((unknown, window), (s,))) is None


def test_what_an_expression_prints_does_not_grow() -> None:
    """A failed assert prints both sides; arguments are shared, so that printed in full 40 levels would not end."""
    x = Expr("input", shape=(2,), dtype=np.dtype(np.float32))
    for _ in range(40):
        x = make("add", x, x)
    assert repr(x) == "<add(add, add) float32 (2,)>"
