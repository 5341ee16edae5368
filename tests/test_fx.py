"""Torch graphs: read as the ONNX export of the same module is, rewritten with the same numbers, and back to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")

from compare import BACKENDS, grafted, session  # noqa: E402
from same_sites import check_sites, runnable  # noqa: E402
from sweep import sampled  # noqa: E402
from test_words import CALLS, TENSORS  # noqa: E402
from torch_spellings import TORCH_SPELLINGS, B, S, TorchSpelling  # noqa: E402

import rewriter  # noqa: E402
from rewriter.errors import GraftError  # noqa: E402
from rewriter.host import open_host  # noqa: E402
from rewriter.hosts.fx_write import WRITE, FxWriter  # noqa: E402
from rewriter.reading import Reading  # noqa: E402
from runtime_ops import interpret, to_torch  # noqa: E402
from runtime_ops.words import WORDS, const, make, symbol  # noqa: E402

Graph = Any
Read = Callable[[TorchSpelling], Reading]
TOLERANCE = 1e-5
BY_ID: Mapping[str, TorchSpelling] = {spelling.id: spelling for spelling in TORCH_SPELLINGS}


def made(spelling: TorchSpelling) -> tuple[Any, Sequence[Any]]:
    torch.manual_seed(0)
    return spelling.module().eval(), spelling.inputs(B, S)


def dynamic_shapes(spelling: TorchSpelling) -> tuple[Any, ...]:
    letters = {letter: torch.export.Dim(letter, max=64) for letter in "bst"}
    return tuple({i: letters[letter] for i, letter in enumerate(free)} for free in spelling.free)


def traced(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.fx.symbolic_trace(module)


def static(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.export.export(module, tuple(inputs))


def dynamic(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes(spelling))


def core(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return dynamic(spelling, module, inputs).run_decompositions()


FORMS: dict[str, Callable[..., Graph]] = {"traced": traced, "dynamic": dynamic, "core": core}


def to_file(spelling: TorchSpelling, path: Path, **options: Any) -> Path:
    module, inputs = made(spelling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(inputs), str(path), dynamo=True, external_data=False, verbose=False, **options)
    return path


@pytest.fixture(scope="session")
def onnx_reading(tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("onnx")
    found: dict[str, Reading] = {}

    def read(spelling: TorchSpelling) -> Reading:
        if spelling.id not in found:
            path = to_file(spelling, folder / f"{spelling.id}.onnx", dynamic_shapes=dynamic_shapes(spelling))
            found[spelling.id] = open_host(path).read()
        return found[spelling.id]

    return read


EXPORTED = [(spelling, form) for spelling in TORCH_SPELLINGS for form in ("dynamic", "core")]


@pytest.mark.parametrize(
    ("spelling", "form"),
    [*((spelling, "traced") for spelling in TORCH_SPELLINGS), *sampled(EXPORTED, 3)],
    ids=lambda x: x if isinstance(x, str) else x.id,
)
def test_spelling(spelling: TorchSpelling, form: str, onnx_reading: Read) -> None:
    """The sites are those of the ONNX export, and the rewritten graph gives the same numbers at every length."""
    module, inputs = made(spelling)
    graph = FORMS[form](spelling, module, inputs)
    example = tuple(inputs) if form == "traced" else None
    check_reading(graph, example, spelling, onnx_reading(spelling))
    report = rewriter.apply(graph, inputs=example)
    assert report.rewritten == spelling.sites, report.declined
    assert isinstance(report.result, type(graph) if form != "traced" else torch.fx.GraphModule)
    assert calls(report.result) == spelling.sites
    for b, s in ((B, S), (1, 9), (3, 2)):
        check_numbers(report.result, module, spelling.inputs(b, s))


def check_reading(graph: Graph, example: Any, spelling: TorchSpelling, theirs: Reading) -> None:
    ours = open_host(graph, example).read()
    assert [site.kind for site in ours.sites.values()].count("attention") == spelling.sites
    check_sites(ours, theirs)


def check_numbers(graph: Graph, module: Any, inputs: Sequence[Any]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(runnable(graph)(*inputs), module(*inputs), rtol=TOLERANCE, atol=TOLERANCE)


def calls(graph: Graph) -> int:
    return sum(str(node.target).startswith("graft.") for node in graph.graph.nodes)


@pytest.mark.parametrize("id", ["causal-tril", "sdpa-causal", "unbind", "encoder-layer"])
def test_fixed_lengths(id: str, tmp_path: Path) -> None:
    """What an export at fixed lengths proves, it proves at these lengths; in both hosts."""
    spelling = BY_ID[id]
    module, inputs = made(spelling)
    graph = static(spelling, module, inputs)
    check_reading(graph, None, spelling, open_host(to_file(spelling, tmp_path / "fixed.onnx")).read())
    check_numbers(rewriter.apply(graph).result, module, inputs)


ROUND = ("matmul", "masked-fill", "sdpa-grouped-causal", "decoder-layer")


BACK = [*((id, (rule,)) for id in ROUND for rule in ("exact-attention", "topk-attention:k=2")),
        ("encoder-layer", ("exact-attention", "topk-feed-forward:k=5"))]  # fmt: skip


@pytest.mark.parametrize("form", ["traced", "dynamic"])
@pytest.mark.parametrize(("id", "rules"), BACK)
def test_back_to_onnx(id: str, rules: Sequence[str], form: str, tmp_path: Path) -> None:
    spelling = BY_ID[id]
    module, inputs = made(spelling)
    report = rewriter.apply(FORMS[form](spelling, module, inputs), rules, inputs=tuple(inputs))
    assert report.rewritten == spelling.sites + len(rules) - 1
    path = tmp_path / "back.onnx"
    options = {"dynamic_shapes": dynamic_shapes(spelling)} if form == "traced" else {}
    rewriter.to_onnx(report.result, tuple(inputs) if form == "traced" else (), path, **options)
    assert grafted(path) == report.rewritten
    given = spelling.inputs(3, 9)
    with torch.no_grad():
        wanted = runnable(report.result)(*given).numpy()
    for library in BACKENDS.values():
        opened = session(path, library)
        feeds = {i.name: x.numpy() for i, x in zip(opened.get_inputs(), given, strict=True)}
        np.testing.assert_allclose(opened.run(None, feeds)[0], wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("id", ROUND)
def test_onnx_from_torch_is_what_apply_writes(id: str, tmp_path: Path) -> None:
    """The same calls with the same attributes, whether the module or its plain export is rewritten."""
    spelling = BY_ID[id]
    module, inputs = made(spelling)
    shapes = dynamic_shapes(spelling)
    rewritten = rewriter.apply(dynamic(spelling, module, inputs), inputs=tuple(inputs)).result
    ours = rewriter.to_onnx(rewritten)
    theirs = rewriter.apply(to_file(spelling, tmp_path / "plain.onnx", dynamic_shapes=shapes)).result
    assert called(ours) == called(theirs)
    assert {f.identifier() for f in ours.functions.values() if f.domain == "ai.graft"} == {
        f.identifier() for f in theirs.functions.values() if f.domain == "ai.graft"
    }


def called(model: Any) -> list[Any]:
    nodes = [node for node in model.graph.all_nodes() if node.domain == "ai.graft"]
    given = [[i for i, v in enumerate(node.inputs) if v is not None] for node in nodes]
    attrs = [{a.name: plain(a.value) for a in node.attributes.values()} for node in nodes]
    return list(zip((node.op_type for node in nodes), given, attrs, strict=True))


def plain(value: Any) -> Any:
    return round(float(value), 6) if isinstance(value, int | float) else value


@pytest.mark.parametrize("form", FORMS)
def test_the_result_trains(form: str) -> None:
    """Gradients of every weight and of the input are those of the original."""
    spelling = BY_ID["unbind"]
    module, inputs = made(spelling)
    report = rewriter.apply(FORMS[form](spelling, module, inputs), inputs=tuple(inputs))
    run = runnable(report.result)
    wanted, found = gradients(module, inputs), gradients(run, inputs)
    assert len(wanted) == len(found) == 5  # two weights, two biases, the input
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE)


def gradients(module: Any, inputs: Sequence[Any]) -> list[Any]:
    x = inputs[0].clone().requires_grad_()
    weights = [w for _, w in sorted(module.named_parameters())]
    return list(torch.autograd.grad((module(x) ** 2).sum(), [*weights, x]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_result_compiles_and_exports(backend: str) -> None:
    spelling = BY_ID["masked-fill"]
    module, inputs = made(spelling)
    result = rewriter.apply(traced(spelling, module, inputs), inputs=tuple(inputs)).result
    torch._dynamo.reset()
    check_numbers(torch.compile(result, backend=backend, fullgraph=True), module, inputs)
    check_numbers(dynamic(spelling, result, inputs), module, spelling.inputs(3, 9))


def test_the_original_is_left_as_it_is() -> None:
    spelling = BY_ID["multihead"]
    module, inputs = made(spelling)
    for graph in (traced(spelling, module, inputs), dynamic(spelling, module, inputs)):
        before = str(graph.graph)
        result = rewriter.apply(graph, inputs=tuple(inputs)).result
        assert str(graph.graph) == before
        assert str(result.graph) != before


def test_topk_is_reported_as_an_approximation() -> None:
    spelling = BY_ID["sdpa"]
    module, inputs = made(spelling)
    report = rewriter.apply(traced(spelling, module, inputs), ("topk-attention:k=2",), inputs=tuple(inputs))
    assert report.verify is not None
    assert report.verify.rewrite.passed
    assert report.verify.approximation is not None
    assert report.verify.approximation.outputs[0].rel_l2 > 1e-3


# -- reasons -----------------------------------------------------------------------------------------


def test_unknown_shapes_are_told() -> None:
    graph = torch.fx.symbolic_trace(Folded())
    (decline,) = rewriter.show(graph).declines
    assert "pass example inputs" in decline.reason
    assert not rewriter.show(graph).sites


def test_shapes_of_shape_prop_are_used() -> None:
    from torch.fx.passes.shape_prop import ShapeProp

    module, inputs = made(BY_ID["matmul"])
    graph = traced(BY_ID["matmul"], module, inputs)
    ShapeProp(graph).propagate(*inputs)
    assert [site.heads for site in rewriter.show(graph).sites] == [4]


def test_a_module_that_is_no_graph() -> None:
    with pytest.raises(GraftError, match=r"symbolic_trace\(module\)"):
        rewriter.show(made(BY_ID["matmul"])[0])


def test_inputs_that_do_not_fit() -> None:
    module, inputs = made(BY_ID["masked-fill"])
    graph = traced(BY_ID["masked-fill"], module, inputs)
    with pytest.raises(GraftError, match="the inputs of this graph are x, mask; 'keep' does not fit"):
        rewriter.show(graph, inputs={"x": inputs[0], "mask": inputs[1], "keep": inputs[1]})
    assert rewriter.show(graph, inputs={"x": inputs[0], "mask": inputs[1]}).sites


def test_active_dropout_is_refused() -> None:
    """In training mode the probabilities are not those that are multiplied by the values."""
    spelling = BY_ID["unbind"]
    module, inputs = made(spelling)
    graph = traced(spelling, module.train(), inputs)
    (decline,) = rewriter.show(graph, inputs=tuple(inputs)).declines
    assert "call .eval() on the module first" in decline.reason
    assert rewriter.apply(graph, inputs=tuple(inputs)).rewritten == 0


class Aliased(torch.nn.Module):
    """Writes into the scores while a view of them from before is read later."""

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        scores = q @ k.transpose(-2, -1)
        view = scores.view(-1)
        view.mul_(2.0)
        return scores.softmax(-1) @ v


def test_writes_that_are_seen_elsewhere_are_not_read_as_pure() -> None:
    inputs = tuple(torch.randn(2, 4, 5, 8) for _ in range(3))
    graph = torch.fx.symbolic_trace(Aliased())
    report = rewriter.apply(graph, inputs=inputs)
    assert report.rewritten == 0
    check_numbers(report.result, Aliased(), inputs)


class Folded(torch.nn.Module):
    """A bias that is a small weight: with the scale it becomes a constant that the plan brings along."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.randn(5, 5))

    def forward(self, q: Any, k: Any, v: Any) -> Any:
        return ((q @ k.transpose(-2, -1) + self.bias * 2.0) * 0.5).softmax(-1) @ v


@pytest.mark.parametrize("form", ["traced", "static"])
def test_constants_come_along(form: str) -> None:
    inputs = tuple(torch.randn(2, 4, 5, 8) for _ in range(3))
    module = Folded().eval()
    graph = torch.fx.symbolic_trace(module) if form == "traced" else torch.export.export(module, inputs)
    report = rewriter.apply(graph, inputs=inputs)
    assert report.rewritten == 1, report.declined
    check_numbers(report.result, module, inputs)


def test_no_file_is_written(tmp_path: Path) -> None:
    module, inputs = made(BY_ID["matmul"])
    graph = traced(BY_ID["matmul"], module, inputs)
    with pytest.raises(GraftError, match=r"rewriter\.to_onnx"):
        rewriter.apply(graph, inputs=tuple(inputs), output=tmp_path / "out.onnx")


# -- the WRITE table ---------------------------------------------------------------------------------


def test_every_word_can_be_written() -> None:
    assert set(WRITE) == set(WORDS).difference(TENSORS)


@pytest.mark.parametrize("word", CALLS)
def test_graphs_say_what_numpy_says(word: str) -> None:
    arrays, rest, attrs = CALLS[word]
    given = [np.asarray(a) for a in arrays]
    module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    inputs = [symbol(f"x{i}", a.shape, a.dtype, f"x{i}") for i, a in enumerate(given)]
    if word == "range":  # in torch its bounds are numbers
        inputs = [const(a) for a in given]
    nodes = {f"x{i}": module.graph.placeholder(f"x{i}") for i in range(len(given))}

    def constant(array: np.ndarray) -> Any:
        name = f"constant_{len(list(module.buffers()))}"
        module.register_buffer(name, to_torch.tensor(array))
        return module.graph.get_attr(name)

    expr = make(word, *inputs, *(const(r) for r in rest), **attrs)
    module.graph.output(FxWriter(module.graph, constant, nodes).tensor(expr))
    module.recompile()
    out = to_torch.array(module(*(to_torch.tensor(a) for a in given)))
    expected = np.asarray(interpret.EVAL[word]([*given, *rest], attrs))
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-6)
