"""The proof of a rewrite in torch: the original and the result run side by side, every plan as a graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from rewriter import compare
from rewriter.errors import GraftError
from rewriter.hosts.fx import FxGraphs
from rewriter.hosts.fx_row import Weight
from rewriter.hosts.fx_write import FxWriter
from rewriter.inputs import Case
from rewriter.proof import Progress, Prover
from rewriter.reading import Reading
from rewriter.report import OutputError, VerifyReport
from rewriter.site_check import Leaves
from runtime_ops import to_torch
from runtime_ops.interpret import has_handle, topological
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from rewriter.fx_host import FxHost

Arguments = Sequence[Any]


class FxProver(Prover):
    """Runs the original and the result of one edit in torch.

    Args:
        host: the model.
        original: the graph or program that was given.
        dims: sizes of free dimensions by name.
        tell: called with (what, done, total) as the work goes on.
        folder: where files may be written; none are.
    """

    host: FxHost

    def __init__(
        self, host: FxHost, original: Any, dims: Mapping[str, int] | None, tell: Progress, folder: Path
    ) -> None:
        super().__init__(host, tell, folder)
        self.original, self.dims = original, dims
        self.found: list[tuple[str, Arguments]] = []

    def capture(self, reading: Reading, wanted: Sequence[Any]) -> list[Leaves]:
        """Return the values of tensors in every case, by interpreting the graph."""
        graphs = reading.graphs
        assert isinstance(graphs, FxGraphs)
        self.found = self._cases(graphs)
        constants = {w: w.numpy() for w in wanted if isinstance(w, Weight)}
        taken = []
        for _, arguments in self.found:
            recorder = _Recorder(graphs, {w for w in wanted if isinstance(w, torch.fx.Node)})
            with torch.no_grad():
                recorder.run(*self._lifted(graphs, arguments))
            taken.append({**constants, **recorder.taken})
        return taken

    def _cases(self, graphs: FxGraphs) -> list[tuple[str, Arguments]]:
        """Return what to run on: the example inputs, or inputs made up from the shapes that the graph tells."""
        if self.host.inputs is not None:
            return [("inputs", self.host.arguments(_entry(self.original)))]
        names = [expr.handle.name for expr in graphs.inputs()]

        def run(feeds: Mapping[str, np.ndarray]) -> None:
            try:
                _run(self.original, [to_torch.tensor(feeds[name]) for name in names])
            except Exception as error:  # torch raises types of many kinds
                raise GraftError(f"the graph does not run on made-up inputs: {error}") from error

        found: list[Case] = compare.cases(graphs, run, None, self.dims)
        return [(case.name, [to_torch.tensor(case.feeds[name]) for name in names]) for case in found]

    def _lifted(self, graphs: FxGraphs, arguments: Arguments) -> list[Any]:
        """Return the arguments of the graph itself: weights first, where they are inputs."""
        rest = iter(arguments)
        inputs = [n for n in graphs.module.graph.nodes if n.op == "placeholder"]
        return [graphs.weights[n.target] if n.target in graphs.weights else next(rest, None) for n in inputs]

    def alone(self, site: str, expr: Expr, examples: Leaves) -> Callable[[Leaves], np.ndarray]:
        """Return a graph of one plan alone, with the tensors that it reads as inputs."""
        module = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())

        def constant(array: np.ndarray) -> torch.fx.Node:
            name = f"constant_{len(list(module.buffers()))}"
            module.register_buffer(name, to_torch.tensor(array))
            return module.graph.get_attr(name)

        inputs = {handle: module.graph.placeholder(f"leaf_{i}") for i, handle in enumerate(examples)}
        for handle, known in {e.handle: e.known for e in topological(expr, has_handle)}.items():
            if handle in inputs:
                continue
            if isinstance(handle, Weight):  # one that is small enough to be known, and so is no leaf
                inputs[handle] = constant(handle.numpy())
            elif known is not None and known.dtype != object:  # worked out from such weights
                inputs[handle] = constant(known)
        module.graph.output(FxWriter(module.graph, constant, inputs).tensor(expr))
        module.recompile()

        def run(leaves: Leaves) -> np.ndarray:
            with torch.no_grad():
                return to_torch.array(module(*(to_torch.tensor(leaves[handle]) for handle in examples)))

        return run

    def compare(self, result: Any, tolerance: float) -> VerifyReport:
        """Return how far a graph is from the original in every case."""
        worst: dict[str, OutputError] = {}
        for _, arguments in self.found:
            left, right = (_tensors(_run(graph, arguments)) for graph in (self.original, result))
            for name, x in left.items():
                error = compare.distance(name, x, right[name])
                if name not in worst or not error.rel_l2 <= worst[name].rel_l2:
                    worst[name] = error
        passed = all(o.rel_l2 <= tolerance for o in worst.values())
        cases = [name for name, _ in self.found]
        return VerifyReport(outputs=list(worst.values()), tolerance=tolerance, passed=passed, cases=cases)

    def noise(self) -> float:
        """Return 0: torch computes a graph in one order only."""
        return 0.0


class _Recorder(torch.fx.Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, graphs: FxGraphs, wanted: set[torch.fx.Node]) -> None:
        super().__init__(graphs.module)
        self.wanted = wanted
        self.taken: Leaves = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node, and keep what it gives if that is wanted."""
        value = super().run_node(n)
        if n in self.wanted:
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            self.taken[n] = np.array(to_torch.array(tensor.cpu()))  # a later node may write in place
        return value


def _entry(model: Any) -> torch.fx.GraphModule:
    module: torch.fx.GraphModule = model.module() if isinstance(model, ExportedProgram) else model
    return module


def _run(model: Any, arguments: Arguments) -> Any:
    with torch.no_grad():
        return _entry(model)(*arguments)


def _tensors(value: Any) -> dict[str, np.ndarray]:
    """Return the tensors of a result by their place in it."""
    leaves = pytree.tree_leaves_with_path(value)
    found = {f"output{pytree.keystr(path)}": x for path, x in leaves if isinstance(x, torch.Tensor)}
    return {name: to_torch.array(x.detach().cpu()) for name, x in found.items()}
