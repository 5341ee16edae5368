"""What the tests of both hosts share: sites of a torch graph and of an ONNX file, compared; graphs that run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rewriter.reading import Reading


def check_sites(ours: Reading, theirs: Reading, less: Mapping[str, Any] | None = None) -> None:
    """The sites of both are equal, attention and feed-forward; ``less`` is what a torch graph tells less of."""
    wanted = [replace(site, **less) if less and site.kind == "attention" else site for site in sites(theirs)]
    assert sites(ours) == wanted, [row.reason for row in ours.declines]
    assert [bool(site.leaks) for site in sites(ours)] == [bool(site.leaks) for site in wanted]
    assert declined(ours) == declined(theirs)


def sites(reading: Reading) -> Sequence[Any]:
    return [unnamed(site) for site in reading.sites.values() if site.kind != "encoder"]


def unnamed(site: Any) -> Any:
    """Return a site that does not say what a free length is called: torch does not keep the names."""
    if site.kind != "attention":
        return site
    heads = {name: n if isinstance(n := getattr(site, name), int) else "free" for name in ("heads", "kv_heads")}
    return replace(site, mask=re.sub(r"offset [a-z?][\w?.]*", "offset", str(site.mask)), **heads)


def declined(reading: Reading) -> Sequence[str]:
    return sorted(row.kind for row in reading.declines if row.kind != "encoder")


def runnable(graph: Any) -> Any:
    return graph.module() if isinstance(graph, torch.export.ExportedProgram) else graph


def leaves(value: Any) -> Sequence[Any]:
    found: Sequence[Any] = torch.utils._pytree.tree_leaves(value)
    return found
