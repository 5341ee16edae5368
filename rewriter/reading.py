"""A model as it is read: from a file or from memory, every site by name, every decline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from rewriter import files, registry
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.quiet_gc import quiet_gc

ModelLike = str | os.PathLike[str] | ir.Model


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A model as it was read: sites by name, and declines."""

    graphs: OnnxGraphs
    sites: Mapping[str, Any]
    declines: Sequence[Any]


def open_any(model: ModelLike) -> ir.Model:
    """Return a model that may be edited: from a file, or a copy of one in memory."""
    if not isinstance(model, ir.Model):
        return files.open_model(model)
    files.check_opset(model, "the model")
    return model.clone()


@quiet_gc
def read(model: ir.Model) -> Reading:
    """Return all sites and declines of a model; sites are named by kind and order."""
    graphs = OnnxGraphs(model)
    sites: dict[str, Any] = {}
    declines: list[Any] = []
    counts: dict[str, int] = {}
    for found in _found(graphs, sites):
        if hasattr(found, "reason"):
            declines.append(found)
            continue
        counts[found.kind] = counts.get(found.kind, -1) + 1
        sites[f"{found.kind}.{counts[found.kind]}"] = found
    return Reading(graphs=graphs, sites=sites, declines=declines)


def _found(graphs: OnnxGraphs, sites: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what readers find, and then what those sites make up."""
    for reader in registry.readers():
        yield from reader(graphs)
    for assembler in registry.assemblers():
        yield from assembler(graphs, list(sites.values()))


def name_of(model: ModelLike) -> str:
    """Return how reports call a model."""
    return str(model.graph.name or "model in memory") if isinstance(model, ir.Model) else str(model)
