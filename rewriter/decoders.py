"""Expanding a decoder: its files, without past and with, keep hidden states instead of keys and values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rewriter import files, registry, stepping
from rewriter.compare import TOLERANCE
from rewriter.errors import GraftError, VerificationError
from rewriter.hosts import onnx_merged, onnx_signature
from rewriter.inputs import Signature
from rewriter.onnx_host import OnnxHost
from rewriter.reading import Kept, State
from rewriter.report import ExpandReport

MANIFEST = "manifest.json"
_FORMAT = 1
_BESIDE = ("config.json", "generation_config.json")  # what other tools read beside the model

PathLike = str | os.PathLike[str]
Named = Mapping[str, Mapping[str, Mapping[str, str]]]  # signatures by file


def expand(
    decoder: PathLike,
    with_past: PathLike | None,
    output: PathLike,
    *,
    verify: bool = True,
    inputs: PathLike | None = None,
    force: bool = False,
) -> ExpandReport:
    """Rewrite a decoder so that it keeps hidden states instead of keys and values (EL-attention, Yan 2021).

    The encoder's hidden states [b t m] are given to every run, once for all beams of a sentence; the hidden states
    [n s m] of what was decoded take the place of each layer's keys and values. Results are the same up to rounding.

    Args:
        decoder: the file without past, which gives keys and values; or one that is both, as optimum merges them.
        with_past: the file that takes them back; None where ``decoder`` is both.
        output: the folder to write into, under the files' names, with ``manifest.json``.
        verify: decode several tokens with the original and the result, and compare.
        inputs: an .npz file of the first run's inputs, to verify on instead of made-up ones.
        force: also where hidden states are wider than keys and values.

    Raises:
        VerificationError: the result does not give the original's numbers; no output is left.
        GraftError: a file cannot be opened, an attention cannot be expanded, or the folder is not empty.
    """
    folder, sources = files.free_folder(output), [Path(file) for file in (decoder, with_past) if file is not None]
    names, originals = _names(sources), [files.open_model(file) for file in sources]
    made = _made(originals, force)
    old, new = _signatures(names, originals), _signatures(names, made.models)
    with files.staging(folder) as staged:
        results = [files.save_into(model, staged, name) for model, name in zip(made.models, names, strict=True)]
        error = _verified(sources, results, made, inputs) if verify else None
        _describe(staged, names, made.kept, old, new)
        files.copy_beside(sources[0], _BESIDE, staged)
        sizes = files.publish_folder(staged, folder)
    return ExpandReport(
        decoder=str(decoder), with_past=None if with_past is None else str(with_past), output=str(folder),
        attentions=made.attentions, old=old, new=new, files=sizes, error=error, caution=made.caution,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Made:
    """The models to write, what they keep, attentions that were expanded, inputs without past, and where it loses."""

    models: Sequence[Any]
    kept: Kept
    attentions: int
    signature: Signature
    caution: str | None


def _made(originals: Sequence[Any], force: bool) -> _Made:
    """Return what becomes of two models, or of one that is both; the originals stay as they are."""
    switch = onnx_merged.switch(originals[0]) if len(originals) == 1 else None
    hosts = [OnnxHost(model) for model in (originals if switch is None else onnx_merged.split(originals[0]))]
    first, later = (host.read() for host in hosts)
    signature = Signature(first.graphs)
    *plans, kept, caution = registry.decoders()[0](first, later, force)
    one, two = (host.lower(*both) for host, *both in zip(hosts, (first, later), plans, strict=True))
    models = [one, two] if switch is None else [onnx_merged.merge(one, two, switch)]
    return _Made(
        models=models, kept=replace(kept, switch=switch), attentions=len(plans[0]), signature=signature, caution=caution
    )


def states(folder: PathLike) -> Kept:
    """Return what the decoder in a folder that ``expand`` wrote keeps, and what it kept before.

    Raises:
        GraftError: the folder has no manifest that can be read.
    """
    path = Path(folder) / MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        kept = facts["kept"]
        old, new = ([State(**state) for state in kept[which]] for which in ("old", "new"))
        return Kept(old=old, new=new, switch=kept["switch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GraftError(f"{path}: is no manifest of an expanded decoder") from error


def _names(sources: Sequence[Path]) -> Sequence[str]:
    """Return the names of the files, which one folder can hold."""
    names = [file.name for file in sources]
    if len(set(names)) < len(names):
        raise GraftError(f"both files are called {names[0]}, and one folder cannot hold both")
    return names


def _describe(folder: Path, names: Sequence[str], kept: Kept, old: Named, new: Named) -> None:
    """Write what whoever runs the files must know."""
    facts = {"format": _FORMAT, "files": names, "kept": asdict(kept), "signatures": {"old": old, "new": new}}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _signatures(names: Sequence[str], models: Sequence[Any]) -> Named:
    return {name: onnx_signature.signature(model) for name, model in zip(names, models, strict=True)}


def _verified(old: Sequence[Path], new: Sequence[Path], made: _Made, inputs: PathLike | None) -> float:
    """Return how far the results are from the originals over several steps.

    Raises:
        VerificationError: further than rounding takes the original from itself.
    """
    kept = made.kept
    one = stepping.Decoder(old, kept.old, kept.switch, ours=False)
    feeds, ids = stepping.beginning(one, made.signature, inputs)
    error = stepping.distance(one, stepping.Decoder(new, kept.new, kept.switch), feeds, ids)
    if not error <= 10 * TOLERANCE and not error <= 2 * stepping.noise(one, old, feeds, ids):
        raise VerificationError(f"the expanded decoder's outputs are {error:.2e} from the original's; none is written")
    return error
