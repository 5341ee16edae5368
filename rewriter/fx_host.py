"""Torch graphs in the pipeline: traced modules and exported programs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx.passes.shape_prop import ShapeProp

from rewriter import reading
from rewriter.errors import GraftError
from rewriter.fx_proof import FxProver
from rewriter.host import Host
from rewriter.hosts import fx_edit, fx_inline
from rewriter.hosts.fx import FxGraphs
from rewriter.plan import Plan
from rewriter.proof import Progress
from rewriter.reading import Reading
from runtime_ops.dims import Sym

_SHAPES = "its shapes are not known: pass example inputs with inputs=(...), or run torch.fx's ShapeProp on the graph"


def _tells_all(twin: Any, site: Any) -> bool:
    """Return whether ``twin``, read without its inputs' lengths, knows all of its own and found what ``site`` did."""
    pairs = [(getattr(twin, f.name), getattr(site, f.name)) for f in dataclasses.fields(site) if f.compare]
    inner = [(one[key], other[key]) for one, other in pairs if isinstance(one, Mapping) for key in other]
    return not any(isinstance(one, Sym) or (one is None and other is not None) for one, other in (*pairs, *inner))


class FxHost(Host):
    """A ``torch.fx.GraphModule`` or a ``torch.export.ExportedProgram``.

    Args:
        model: the graph.
        inputs: example inputs, a tuple or a mapping by name.
    """

    kind = "fx"

    def __init__(self, model: Any, inputs: Sequence[Any] | Mapping[str, Any] | None = None) -> None:
        if not isinstance(model, (torch.fx.GraphModule, ExportedProgram)):
            raise GraftError(
                f"{type(model).__name__} is a module, not a graph; give torch.fx.symbolic_trace(module) or "
                "torch.export.export(module, args)"
            )
        if isinstance(inputs, (str, os.PathLike, torch.Tensor)):
            raise GraftError("inputs of a torch graph are a tuple of example inputs, or a mapping by name")
        self.model = model
        self.name = "exported program" if isinstance(model, ExportedProgram) else type(model).__name__
        self.inputs = inputs

    def read(self) -> Reading:
        """Return the sites of a copy that may be edited."""
        if isinstance(self.model, ExportedProgram):
            module = copy.deepcopy(self.model.graph_module)
            fx_edit.sweep(module)
            return self._advised(reading.read(FxGraphs(module, fx_edit.lifted(self.model))))
        module = fx_edit.copied(self.model)
        self._told(module)
        if fx_inline.opened(module):
            self._told(module)
        fx_edit.sweep(module)
        found = self._advised(reading.read(FxGraphs(module)))
        free = reading.read(FxGraphs(module, free=True))
        by_anchor = {(site.kind, site.anchor): site for site in free.sites.values()}
        pairs = {name: (site, by_anchor.get((site.kind, site.anchor), site)) for name, site in found.sites.items()}
        sites = {name: twin if _tells_all(twin, site) else site for name, (site, twin) in pairs.items()}
        return dataclasses.replace(found, sites=sites, free={name: twin for name, (_, twin) in pairs.items()})

    def _told(self, module: torch.fx.GraphModule) -> None:
        """Tell a graph's nodes their shapes, where there are inputs to run it on."""
        if self.inputs is not None:
            with torch.no_grad():
                ShapeProp(module).propagate(*self.arguments(module))

    def arguments(self, module: torch.fx.GraphModule) -> list[Any]:
        """Return the example inputs in the order of the graph's inputs.

        Raises:
            GraftError: they are too few, too many, or have other names.
        """
        names = [str(n.target).lstrip("*") for n in module.graph.nodes if n.op == "placeholder"]
        given = self.inputs or ()
        if isinstance(given, Mapping):
            odd = [n for n in names if n not in given] or [n for n in given if n not in names]
            if odd:
                raise GraftError(f"the inputs of this graph are {', '.join(names)}; '{odd[0]}' does not fit")
            return [given[name] for name in names]
        if len(given) > len(names):
            raise GraftError(f"{len(given)} example inputs were given; the graph has {', '.join(names)}")
        return list(given)

    def _advised(self, found: Reading) -> Reading:
        """Return a reading whose declines say how to make shapes known, where they are not."""
        graphs = found.graphs
        if not isinstance(graphs, FxGraphs) or not graphs.unknown_shapes:
            return found
        told = [dataclasses.replace(d, reason=f"{d.reason}; {_SHAPES}") for d in found.declines]
        return dataclasses.replace(found, declines=told)

    def lower(self, reading: Reading, plans: Mapping[str, Plan]) -> Any:
        """Make the edits in the copy that was read, and return it as a graph of its kind."""
        assert isinstance(reading.graphs, FxGraphs)
        program = self.model if isinstance(self.model, ExportedProgram) else None
        return fx_edit.lower(reading.graphs, plans, program)

    def keep(self, result: Any, folder: Path, name: str) -> Any:
        """Return a result: it runs as it is."""
        return result

    def prover(self, dims: Mapping[str, int] | None, tell: Progress, folder: Path) -> FxProver:
        """Return what measures edits by running both graphs."""
        return FxProver(self, self.model, dims, tell, folder)

    def checked_output(self, output: str | os.PathLike[str]) -> Path:
        """Raise: graphs are not written to files."""
        raise GraftError(
            f"{output}: a torch graph is not written to a file; it is in the report's result, "
            "which torch.export.save or rewriter.to_onnx write"
        )
