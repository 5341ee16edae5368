"""Torch graphs: read as the ONNX export of the same module is, rewritten with the same numbers, and back to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")

from torch_spellings import TORCH_SPELLINGS, B, S, TorchSpelling  # noqa: E402

import rewriter  # noqa: E402
from rewriter.host import open_host  # noqa: E402

Graph = Any
TOLERANCE = 1e-5


def dynamic(spelling: TorchSpelling) -> Sequence[dict[int, Any]]:
    letters = {letter: torch.export.Dim(letter, min=2, max=64) for letter in "bst"}
    return [{i: letters[letter] for i, letter in enumerate(free)} for free in spelling.free]


def traced(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.fx.symbolic_trace(module)


def exported(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.export.export(module, tuple(inputs))


def exported_dynamic(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(dynamic(spelling)))


def core(spelling: TorchSpelling, module: Any, inputs: Sequence[Any]) -> Graph:
    return exported_dynamic(spelling, module, inputs).run_decompositions()


FORMS: dict[str, Callable[..., Graph]] = {
    "traced": traced,
    "exported": exported,
    "dynamic": exported_dynamic,
    "core": core,
}


def made(spelling: TorchSpelling) -> tuple[Any, Sequence[Any]]:
    torch.manual_seed(0)
    return spelling.module().eval(), spelling.inputs(B, S)


@pytest.fixture(scope="session")
def onnx_sites(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TorchSpelling], Sequence[Any]]:
    folder, found = tmp_path_factory.mktemp("onnx"), {}

    def sites(spelling: TorchSpelling) -> Sequence[Any]:
        if spelling.id not in found:
            path = folder / f"{spelling.id}.onnx"
            module, inputs = made(spelling)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    module, tuple(inputs), str(path), dynamo=True, external_data=False, verbose=False,
                    dynamic_shapes=tuple(dynamic(spelling)),
                )  # fmt: skip
            found[spelling.id] = attention(path)
        return found[spelling.id]

    return sites


def attention(model: Any, inputs: Any = None) -> Sequence[Any]:
    reading = open_host(model, inputs).read()
    return [site for site in reading.sites.values() if site.kind == "attention"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", TORCH_SPELLINGS, ids=lambda spelling: spelling.id)
def test_sites_are_those_of_onnx(
    spelling: TorchSpelling, form: str, onnx_sites: Callable[[TorchSpelling], Sequence[Any]]
) -> None:
    module, inputs = made(spelling)
    graph = FORMS[form](spelling, module, inputs)
    example = inputs if form == "traced" else None
    ours, theirs = attention(graph, example), onnx_sites(spelling)
    assert len(ours) == spelling.sites, [row.reason for row in rewriter.show(graph, example).declines]
    assert ours == theirs
    assert [bool(site.leaks) for site in ours] == [bool(site.leaks) for site in theirs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", TORCH_SPELLINGS, ids=lambda spelling: spelling.id)
def test_rewritten_graphs_give_the_same_numbers(spelling: TorchSpelling, form: str) -> None:
    module, inputs = made(spelling)
    graph = FORMS[form](spelling, module, inputs)
    report = rewriter.apply(graph, inputs=tuple(inputs))
    assert report.rewritten == spelling.sites, report.declined
    assert type(report.result) is type(graph) or isinstance(report.result, torch.fx.GraphModule)
    run = runnable(report.result)
    for b, s in ((B, S), (1, 9), (3, 2)) if form != "exported" else ((B, S),):
        given = spelling.inputs(b, s)
        with torch.no_grad():
            torch.testing.assert_close(run(*given), module(*given), rtol=TOLERANCE, atol=TOLERANCE)


def runnable(graph: Graph) -> Any:
    return graph.module() if isinstance(graph, torch.export.ExportedProgram) else graph
