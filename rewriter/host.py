"""What the pipeline asks of a model, whichever kind of graph it is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.errors import GraftError
from rewriter.plan import Plan
from rewriter.proof import Progress, Prover
from rewriter.reading import Reading

# A file, an onnx_ir.Model, a torch.fx.GraphModule or a torch.export.ExportedProgram; torch is not needed to say so.
ModelLike = Any
# An .npz file, or for torch: example inputs, a tuple or a mapping by name.
InputsLike = Any


class Host(ABC):
    """A model that is looked at or rewritten; it is left as it is.

    Attributes:
        kind: "onnx" or "fx".
        name: how reports call the model.
        opset: version of the default ONNX domain, None where there is none.
    """

    kind: str
    name: str
    opset: int | None = None

    @abstractmethod
    def read(self) -> Reading:
        """Return the sites of a copy that may be edited."""

    @abstractmethod
    def lower(self, reading: Reading, plans: Mapping[str, Plan]) -> Any:
        """Make the edits of ``plans`` (by site) in the copy that was read, and return it as a model of its kind."""

    @abstractmethod
    def keep(self, result: Any, folder: Path, name: str) -> Any:
        """Return what a result is run from: itself, or the file that it is written to."""

    @abstractmethod
    def prover(self, dims: Mapping[str, int] | None, tell: Progress, folder: Path) -> Prover:
        """Return what measures edits; its files go into ``folder``."""

    @abstractmethod
    def checked_output(self, output: str | os.PathLike[str]) -> Path:
        """Return where to write a result.

        Raises:
            GraftError: it cannot be written there.
        """


def open_host(model: ModelLike, inputs: InputsLike = None) -> Host:
    """Return the host of a model.

    Raises:
        GraftError: the model cannot be opened, or is of no kind that graft opens.
    """
    if isinstance(model, (str, os.PathLike)) or type(model).__module__.startswith("onnx_ir"):
        from rewriter.onnx_host import OnnxHost

        return OnnxHost(model, inputs)
    if any(cls.__module__.partition(".")[0] == "torch" for cls in type(model).__mro__):
        from rewriter.fx_host import FxHost

        return FxHost(model, inputs)
    raise GraftError(
        f"a {type(model).__name__} is no model that graft opens; it opens ONNX files, onnx_ir models, "
        "torch.fx graph modules and exported programs"
    )
