"""Splitting an encoder: lower layers for a question and for a passage apart, upper layers for both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter import files, reading
from rewriter.errors import GraftError
from rewriter.hosts import onnx_split
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.hosts.onnx_sharing import save_sharing
from rewriter.onnx_host import OnnxHost, OnnxLike
from rewriter.report import SplitReport
from rewriter.texts import TOKENIZER

POSITIONS = ("keep", "restart")
PARTS = ("question", "passage")
MANIFEST, WEIGHTS = "manifest.json", "weights.data"
_FORMAT = 1


def split(
    model: OnnxLike,
    layers: int,
    question_length: int,
    output: str | os.PathLike[str],
    positions: str = "keep",
) -> SplitReport:
    """Split an encoder, so that passages can be encoded ahead (DeFormer, Cao 2020).

    Writes ``question.onnx``, ``passage.onnx`` and ``joint.onnx``, which share one file of weights, and
    ``manifest.json``; a ``tokenizer.json`` beside the model is copied. The first two give the hidden state [b t m]
    after the lower layers; the last takes both.

    Args:
        model: an ONNX file or an ``onnx_ir.Model``.
        layers: how many of the lower layers see their own segment only.
        question_length: the length that questions are padded to.
        output: the folder to write; it must not exist, or be empty.
        positions: "keep": passages stand behind the padded question, as in the model; "restart": they start at 0,
            as in the paper.

    Raises:
        GraftError: bad options, or the model is no encoder that can be cut there.
    """
    if positions not in POSITIONS:
        raise GraftError(f"positions are {' or '.join(POSITIONS)}, not '{positions}'")
    if question_length < 1:
        raise GraftError(f"the question's length must be at least 1, got {question_length}")
    folder, host = files.free_folder(output), OnnxHost(model)
    made, facts = _parts(host, layers, question_length if positions == "keep" else 0)
    facts = {"layers": layers, "question_length": question_length, "positions": positions, **facts}
    sizes = _write(folder, made, facts, host.file)
    return SplitReport(
        model=host.name, output=str(folder), layers=layers, question_length=question_length, positions=positions,
        files=sizes, bytes_per_token=facts["width"] * 4,
    )  # fmt: skip


def _write(folder: Path, models: Mapping[str, Any], facts: Mapping[str, Any], source: Path | None) -> Mapping[str, int]:
    """Write everything at once, the tokenizer beside the model too, and return the size of every file."""
    with files.staging(folder) as staged:
        save_sharing(models, staged, WEIGHTS)
        manifest = json.dumps({"format": _FORMAT, "model": _hash(staged), **facts}, indent=2)
        (staged / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        if source is not None:
            files.copy_beside(source, [TOKENIZER], staged)
        return files.publish_folder(staged, folder)


def _parts(host: OnnxHost, layers: int, ahead: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the three models by name, and what whoever runs them must know."""
    made: dict[str, Any] = {}
    fill: dict[str, int] = {}
    for name in PARTS:
        stream, site = _stream(host, layers)
        fill = _fill(stream.graphs, site)
        if ahead and name == PARTS[1]:
            onnx_split.move_behind(stream, ahead, fill)
        made[name] = stream.graphs.model
        onnx_split.first_part(stream, name)
    stream, site = _stream(host, layers)
    inputs = onnx_split.second_part(stream, PARTS)
    made["joint"] = stream.graphs.model
    facts = {
        "width": (stream.cut.shape or (0,))[-1],
        "filler": fill,
        "ids": site.words,
        "inputs": {name: [x.name for x in made[name].graph.inputs] for name in PARTS},
        "joint": inputs,
        "outputs": [x.name for x in made["joint"].graph.outputs],
    }
    return made, facts


def _stream(host: OnnxHost, layers: int) -> tuple[onnx_split.Stream, Any]:
    """Read a fresh copy of the model, and return what depends on its tokens, and the encoder."""
    graphs = OnnxGraphs(host.open())
    found = reading.read(graphs)
    sites = [site for site in found.sites.values() if site.kind == "encoder"]
    if not sites:
        why = next((d.reason for d in found.declines if d.kind == "encoder"), "no encoder over looked-up tokens in it")
        raise GraftError(f"{host.name}: cannot be split: {why}")
    site = sites[0]
    if not 1 <= layers <= len(site.cuts):
        stopped = f" (further up: {site.stopped})" if site.stopped else ""
        raise GraftError(f"{host.name}: can be split after layer 1 to {len(site.cuts)}{stopped}, not after {layers}")
    return onnx_split.Stream(graphs, site.lookups, site.cuts[layers - 1].value), site


def _fill(graphs: OnnxGraphs, site: Any) -> dict[str, int]:
    """Return what looked-up inputs hold where there is no token: an id that the model does not take for padding."""
    compared = (arg.known for e in graphs.exprs_of("eq") for arg in e.args if arg.known is not None)
    special = {int(known.reshape(-1)[0]) for known in compared if known.size == 1}
    usual = next(n for n in range(len(special) + 1) if n not in special)
    return dict.fromkeys(site.tables, usual)


def _hash(folder: Path) -> str:
    """Return what tells this split from any other: a hash of its weights and graphs."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
