"""Expanding a decoder: its files with and without past keep hidden states instead of keys and values."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewriter import files, registry, stepping
from rewriter.compare import TOLERANCE
from rewriter.errors import GraftError, VerificationError
from rewriter.hosts import onnx_signature
from rewriter.inputs import Signature
from rewriter.onnx_host import OnnxHost
from rewriter.reading import Kept, State
from rewriter.report import ExpandReport, Signatures

MANIFEST = "manifest.json"
_FORMAT = 1
_BESIDE = ("config.json", "generation_config.json")  # what other tools read beside the model

PathLike = str | os.PathLike[str]


def expand(decoder: PathLike, with_past: PathLike, output: PathLike, verify: bool = True) -> ExpandReport:
    """Rewrite a decoder so that it keeps hidden states instead of keys and values (EL-attention, Yan 2021).

    The encoder's hidden states [b t m] are given to both files, once for all beams of a sentence; the hidden states
    [n s m] of what was decoded take the place of each layer's keys and values. Results are the same up to rounding.

    Args:
        decoder: the file without past, which gives keys and values.
        with_past: the file that takes them back.
        output: the folder to write both into, under their names, with ``manifest.json``.
        verify: decode several tokens with the original and the result, and compare.

    Raises:
        VerificationError: the result does not give the original's numbers; no output is left.
        GraftError: a file cannot be opened, an attention cannot be expanded, or the folder is not empty.
    """
    folder, hosts = files.free_folder(output), (OnnxHost(decoder), OnnxHost(with_past))
    first, later = (host.read() for host in hosts)
    signature = Signature(first.graphs)
    old = _signatures([host.open() for host in hosts])
    *plans, kept = registry.decoders()[0](first, later)
    models = [h.lower(r, p) for h, r, p in zip(hosts, (first, later), plans, strict=True)]
    new = _signatures(models)
    names = [Path(decoder).name, Path(with_past).name]
    with files.staging(folder) as staged:
        for model, name in zip(models, names, strict=True):
            files.save_into(model, staged, name)
        error = _verified([decoder, with_past], [staged / name for name in names], kept, signature) if verify else None
        _describe(staged, names, kept, old, new)
        for name in (name for name in _BESIDE if (Path(decoder).parent / name).is_file()):
            shutil.copy(Path(decoder).parent / name, staged / name)
        sizes = files.publish_folder(staged, folder)
    return ExpandReport(
        decoder=str(decoder), with_past=str(with_past), output=str(folder), attentions=len(plans[0]), old=old, new=new,
        files=sizes, error=error,
    )  # fmt: skip


def states(folder: PathLike) -> Kept:
    """Return what the decoder in a folder that ``expand`` wrote keeps, and what it kept before.

    Raises:
        GraftError: the folder has no manifest that can be read.
    """
    path = Path(folder) / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        old, new = ([State(**state) for state in facts["kept"][which]] for which in ("old", "new"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GraftError(f"{path}: is no manifest of an expanded decoder") from error
    return Kept(old=old, new=new)


def _describe(folder: Path, names: Sequence[str], kept: Kept, old: Signatures, new: Signatures) -> None:
    """Write what whoever runs the files must know."""
    signatures = {"old": asdict(old), "new": asdict(new)}
    facts = {"format": _FORMAT, "files": names, "kept": asdict(kept), "signatures": signatures}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _signatures(models: Sequence[Any]) -> Signatures:
    first, later = map(onnx_signature.signature, models)
    return Signatures(first=first, later=later)


def _verified(old: Sequence[PathLike], new: Sequence[PathLike], kept: Kept, signature: Signature) -> float:
    """Return how far the results are from the originals over several steps.

    Raises:
        VerificationError: further than rounding goes.
    """
    error = stepping.distance(old, new, kept, signature)
    if not error <= 10 * TOLERANCE:
        raise VerificationError(f"the expanded decoder's outputs are {error:.2e} from the original's; none is written")
    return error
