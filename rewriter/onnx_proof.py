"""The proof of a rewrite in ONNX Runtime: the original and the result as sessions, every plan as a model of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from rewriter import compare, sessions
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.inputs import Case
from rewriter.proof import Progress, Prover
from rewriter.reading import Reading
from rewriter.report import VerifyReport
from rewriter.site_check import Leaves
from runtime_ops.bodies import Bodies
from runtime_ops.spec import DOMAIN, VERSION
from runtime_ops.to_onnx import Writer
from runtime_ops.words import Expr

if TYPE_CHECKING:
    from rewriter.host import Host

_OPSET = 21  # that a site alone is written in


class OnnxProver(Prover):
    """Runs the original and the result of one edit in ONNX Runtime.

    Args:
        host: the model.
        original: its file, None for a model in memory.
        inputs: an .npz file to run it on instead of made-up inputs.
        dims: sizes of free dimensions by name.
        tell: called with (what, done, total) as the work goes on.
        folder: where files may be written.
    """

    def __init__(
        self,
        host: Host,
        original: Path | None,
        inputs: str | os.PathLike[str] | None,
        dims: Mapping[str, int] | None,
        tell: Progress,
        folder: Path,
    ) -> None:
        super().__init__(host, tell, folder)
        self.original, self.inputs, self.dims = original, inputs, dims
        self.found: list[Case] = []

    def capture(self, reading: Reading, wanted: Sequence[ir.Value]) -> list[Leaves]:
        """Return the values of tensors of the main graph in every case."""
        assert isinstance(reading.graphs, OnnxGraphs)
        model = reading.graphs.model
        if self.original is None:
            self.original = self.folder / "original.onnx"
            ir.save(model, self.original, external_data="original.data")
        session = sessions.open_session(self.original, ours=False)
        self.found = compare.cases(reading.graphs, partial(sessions.run, session), self.inputs, self.dims)
        del session
        return _capture(model, wanted, self.folder, self.found)

    def alone(self, site: str, expr: Expr, examples: Leaves) -> Callable[[Leaves], np.ndarray]:
        """Return a session of one plan alone, with the tensors that it reads as inputs."""
        inputs = {value: _input(f"leaf_{i}", array) for i, (value, array) in enumerate(examples.items())}
        bodies = Bodies()
        writer = Writer(_OPSET, inputs, bodies=bodies)
        out = writer.value(expr)
        opsets = {"": _OPSET, DOMAIN: VERSION}
        graph = ir.Graph(list(inputs.values()), [out], nodes=writer.nodes, name="site", opset_imports=opsets)
        path = self.folder / f"{site}.onnx"
        ir.save(ir.Model(graph, ir_version=10, functions=bodies.functions), path)
        session = sessions.open_session(path)

        def run(leaves: Leaves) -> np.ndarray:
            feeds = {f"leaf_{i}": np.asarray(leaves[v], order="C") for i, v in enumerate(examples)}
            return sessions.run(session, feeds)[0]

        return run

    def compare(self, result: Path, tolerance: float) -> VerifyReport:
        """Return how far the model in a file is from the original."""
        first = sessions.open_session(self._file(), ours=False)
        return compare.compare_sessions(first, sessions.open_session(result), self.found, tolerance)

    def noise(self) -> float:
        """Return how far the original is from itself when ONNX Runtime computes it in another order."""
        return compare.noise(self._file(), self.found)

    def _file(self) -> Path:
        assert self.original is not None  # ``capture`` came first
        return self.original


def _capture(model: ir.Model, wanted: Sequence[ir.Value], folder: Path, found: Sequence[Case]) -> list[Leaves]:
    """Return the values of tensors of the main graph in every case, by running the model with more outputs."""
    graph = model.graph
    have = set(graph.outputs)
    inside = [v for v in wanted if v.producer() is not None and v.producer().graph is graph]  # type: ignore[union-attr]
    graph.outputs.extend(v for v in inside if v not in have)
    path = folder / "captured.onnx"
    try:
        ir.save(model, path, external_data="captured.data")
    finally:
        del graph.outputs[len(have) :]
    session = sessions.open_session(path, ours=False, optimize="none")
    names = [str(v.name) for v in inside]
    taken = []
    for case in found:
        got = sessions.run(session, case.feeds, names) if names else []
        values: Leaves = dict(zip(inside, got, strict=True))
        values.update({v: case.feeds[v.name] for v in wanted if v.name in case.feeds and v.is_graph_input()})
        values.update({v: v.const_value.numpy() for v in wanted if v.const_value is not None})
        taken.append(values)
    return taken


def _input(name: str, example: np.ndarray) -> ir.Value:
    return ir.val(name, ir.DataType.from_numpy(example.dtype), ir.Shape([None] * example.ndim))
