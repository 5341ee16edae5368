"""ONNX models in the pipeline: from files or from memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from rewriter import files, reading
from rewriter.host import Host
from rewriter.hosts import onnx_edit
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.onnx_proof import OnnxProver
from rewriter.plan import Plan
from rewriter.proof import Progress
from rewriter.reading import Reading

OnnxLike = str | os.PathLike[str] | ir.Model


class OnnxHost(Host):
    """A file, or a model in memory.

    Args:
        model: the model.
        inputs: an .npz file to run it on instead of made-up inputs.
    """

    kind = "onnx"

    def __init__(self, model: OnnxLike, inputs: str | os.PathLike[str] | None = None) -> None:
        self.model, self.inputs = model, inputs
        in_memory = isinstance(model, ir.Model)
        self.name = str(model.graph.name or "model in memory") if isinstance(model, ir.Model) else str(model)
        self.file = None if in_memory else Path(str(model))

    def open(self) -> ir.Model:
        """Return a model that may be edited: from a file, or a copy of one in memory."""
        if not isinstance(self.model, ir.Model):
            return files.open_model(self.model)
        files.check_opset(self.model, "the model")
        return self.model.clone()

    def read(self) -> Reading:
        """Return the sites of a copy that may be edited."""
        model = self.open()
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
        return reading.read(OnnxGraphs(model))

    def lower(self, reading: Reading, plans: Mapping[str, Plan]) -> ir.Model:
        """Make the edits in the copy that was read, and return it."""
        assert isinstance(reading.graphs, OnnxGraphs)
        onnx_edit.lower(reading.graphs, plans)
        return reading.graphs.model

    def keep(self, result: ir.Model, folder: Path, name: str) -> Path:
        """Write a result into a folder."""
        return files.save_into(result, folder, name)

    def prover(self, dims: Mapping[str, int] | None, tell: Progress, folder: Path) -> OnnxProver:
        """Return what measures edits in ONNX Runtime."""
        return OnnxProver(self, self.file, self.inputs, dims, tell, folder)

    def checked_output(self, output: str | os.PathLike[str]) -> Path:
        """Return where to write a result."""
        return files.check_output(output, self.file)
