"""Answering with a split encoder: passages are encoded once and kept, questions when they come."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import GraftError
from rewriter.proof import Progress
from rewriter.report import CacheReport
from rewriter.sessions import open_session, run
from rewriter.store import Array, Store
from rewriter.texts import Texts

_BATCH = 32
_ABOUT = ("model", "layers", "question_length", "positions", "width")
_TYPES = ("token_type_ids", "segment_ids")  # inputs that are 0 in a question and 1 in a passage
Ids = Sequence[int] | Array
Told = Ids | str  # a text is read by the tokenizer beside the models


class Pipeline:
    """A split encoder and its store of passages.

    Questions and passages are token ids, each with whatever the model wants around it, or texts if there is a
    ``tokenizer.json`` in the folder; ``graft split`` copies the one beside the model.

    Args:
        folder: what ``graft split`` wrote.
        store: where hidden states of passages are kept; a folder, made where there is none.
        kind: how they are kept, "float16" or "int8".
        threads: of ONNX Runtime; 0 leaves the choice to it.

    Attributes:
        store: the hidden states, by passage.
        hits, misses: how many passages of ``score`` were in the store, and how many were encoded for it.

    Raises:
        GraftError: the folder is no split, the model has inputs that are neither words, token types nor masks, or the
            store belongs to another split.
    """

    def __init__(
        self, folder: str | os.PathLike[str], store: str | os.PathLike[str], kind: str = "float16", threads: int = 0
    ) -> None:
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        _fillable(self.folder, self.manifest)
        self.store = Store(store, {name: self.manifest[name] for name in _ABOUT}, kind)
        self._threads, self._sessions = threads, dict[str, Any]()
        self.hits = self.misses = 0

    @cached_property
    def texts(self) -> Texts:
        """What makes token ids of texts."""
        return Texts(self.folder)

    def add(self, passages: Iterable[Told]) -> int:
        """Encode the passages that are not in the store yet; return how many those were."""
        new = 0
        for some in _chunks(passages):
            arrays = [self._ids("passage", one) for one in some]
            keys = [_key(ids) for ids in arrays]
            fresh = {keys[n]: arrays[n] for n in self.store.missing(keys)}
            if fresh:  # readers that find everything never wait for a writer
                self.store.put(dict(zip(fresh, self._encode("passage", list(fresh.values())), strict=True)))
            new += len(fresh)
        return new

    def score(self, question: Told, passages: Sequence[Told], cut: bool = False) -> Array:
        """Return the model's first output [n …] for one question with each of n passages; see ``outputs``."""
        first = self.manifest["outputs"][0]
        return self.outputs(question, passages, cut, [first])[first]

    def outputs(
        self, question: Told, passages: Sequence[Told], cut: bool = False, names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return outputs of the model [n …] by name for one question with each of n passages.

        Passages that are not in the store are encoded and put there. Passages of one call are padded to the longest.
        In outputs with an axis of tokens, as starts and ends of answers, the padded question's stand before the
        passage's: token i of a passage is at ``manifest["question_length"] + i``.

        Args:
            question: at most as many tokens as the split was made for.
            passages: at least one.
            cut: whether a longer question is cut.
            names: the outputs that are wanted; None for all.

        Raises:
            GraftError: the question is too long, there is no passage, an output is unknown, or the model takes no mask
                and has to pad.
        """
        wanted = list(self.manifest["outputs"] if names is None else names)
        unknown = [name for name in wanted if name not in self.manifest["outputs"]]
        if unknown:
            raise GraftError(f"the model has no output {unknown[0]}; it has {', '.join(self.manifest['outputs'])}")
        asked, told = self._question(question, cut), [self._ids("passage", one) for one in passages]
        if not told:
            raise GraftError("there is no passage to score")
        missing = len(self.store.missing([_key(ids) for ids in told]))
        self.hits, self.misses = self.hits + len(told) - missing, self.misses + missing
        self.add(told)
        longest = max(len(ids) for ids in told)
        hidden = self._encode("question", [asked])[0]
        parts = [self._joint(asked, hidden, some, longest, wanted) for some in _chunks(told)]
        return {name: np.concatenate(found) for name, found in zip(wanted, zip(*parts, strict=True), strict=True)}

    def _session(self, part: str) -> Any:
        """Return what runs a part, opened when it is needed first: none holds weights that nobody asks for."""
        if part not in self._sessions:
            file = self.folder / f"{part}.onnx"
            self._sessions[part] = open_session(file, threads=self._threads)
        return self._sessions[part]

    def _ids(self, part: str, told: Told) -> Array:
        return _ids(self.texts.ids(part, told) if isinstance(told, str) else told)

    def _question(self, question: Told, cut: bool) -> Array:
        asked, most = self._ids("question", question), self.manifest["question_length"]
        if len(asked) > most and not cut:
            raise GraftError(f"the question has {len(asked)} tokens, more than the {most} that the split was made for")
        return asked[:most]

    def _joint(
        self, asked: Array, hidden: Array, told: Sequence[Array], longest: int, wanted: Sequence[str]
    ) -> list[Array]:
        """Run the upper layers on one question and some passages."""
        most, names = self.manifest["question_length"], self.manifest["joint"]
        kept = self.store.get([_key(ids) for ids in told])
        sides = {
            "question": (self._inputs("question", [asked] * len(told), most), _padded([hidden] * len(told), most)),
            "passage": (self._inputs("passage", told, longest), _padded([x for x in kept if x is not None], longest)),
        }
        given = {}
        for place, (inputs, states) in enumerate(sides.values()):
            given.update({both[place]: states if kind == "hidden" else inputs[kind] for kind, both in names.items()})
        return run(self._session("joint"), given, wanted)

    def _encode(self, part: str, several: Sequence[Array]) -> list[Array]:
        """Return the hidden state [t m] of each; those of one length are run together."""
        found: dict[int, Array] = {}
        for length in {len(ids) for ids in several}:
            at = [n for n, ids in enumerate(several) if len(ids) == length]
            given = self._inputs(part, [several[n] for n in at], length)
            names = self.manifest["inputs"][part]
            found.update(zip(at, run(self._session(part), {name: given[name] for name in names})[0], strict=True))
        return [found[n] for n in range(len(several))]

    def _inputs(self, part: str, several: Sequence[Array], length: int) -> dict[str, Array]:
        """Return all inputs of a part, padded: ids, token types 0 and 1, and masks."""
        lengths = np.array([len(ids) for ids in several])[:, None]
        mask, filler = np.arange(length) < lengths, self.manifest["filler"]
        masks = [name for name in self.manifest["inputs"][part] if name not in filler]
        masks += [name for name in self.manifest["joint"] if name not in filler and name != "hidden"]
        if not masks and not mask.all():
            raise GraftError("the model takes no mask, so questions and passages cannot be padded")
        given: dict[str, Array] = {name: mask.astype(np.int64) for name in masks}
        given.update({name: np.full(mask.shape, part == "passage", np.int64) for name in filler})
        word = self.manifest["ids"]
        given[word] = np.stack([np.pad(x, (0, length - len(x)), constant_values=filler[word]) for x in several])
        return given


def cache(
    folder: str | os.PathLike[str],
    passages: str | os.PathLike[str],
    store: str | os.PathLike[str],
    kind: str = "float16",
    progress: Progress | None = None,
) -> CacheReport:
    """Encode the passages of a file into a store; what is there already is left, so that it can be resumed.

    Args:
        folder: what ``graft split`` wrote.
        passages: a file with one passage a line: a JSON list of token ids or an object with one called "ids"; or a
            JSON string or an object with one called "text", if there is a tokenizer in the folder.
        store: the folder of the store.
        kind: "float16" or "int8".
        progress: called with (what, done, total) as the work goes on.

    Raises:
        GraftError: a file cannot be read, or the store belongs to another split.
    """
    file = Path(passages)
    if not file.is_file():
        raise GraftError(f"{file}: no such file")
    pipeline = Pipeline(folder, store, kind)
    with file.open(encoding="utf-8") as stream:
        total = sum(1 for line in stream if line.strip())
    done = new = 0
    for some in _chunks(_lines(file)):
        new, done = new + pipeline.add(some), done + len(some)
        if progress is not None:
            progress("passages", done, total)
    kept, used = len(pipeline.store), pipeline.store.used
    pipeline.store.close()
    return CacheReport(store=str(store), kind=kind, passages=total, new=new, kept=kept, bytes=used)


def _lines(file: Path) -> Iterator[Told]:
    with file.open(encoding="utf-8") as stream:
        for n, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                told: Any = entry.get("ids", entry.get("text")) if isinstance(entry, dict) else entry
                yield told if isinstance(told, str) else _ids(told)
            except (ValueError, TypeError, GraftError):
                raise GraftError(
                    f"{file}:{n}: is no JSON list of token ids and no string, nor an object with one called ids or text"
                ) from None


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        manifest: Mapping[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraftError(f"{folder}: is no folder that graft split wrote: it has no readable manifest.json") from error
    return manifest


def _fillable(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise GraftError unless it is known what every input of the models is given."""
    if manifest["ids"] is None:
        raise GraftError(f"{folder}: no input of its models chooses embeddings itself, so none is known as words")
    odd = [name for name in manifest["filler"] if name not in (manifest["ids"], *_TYPES)]
    if odd:
        raise GraftError(
            f"{folder}: its models look up embeddings by {odd[0]} too, and a pipeline knows only words and "
            f"{' or '.join(_TYPES)}; export the model without that input"
        )


def _ids(ids: Ids) -> Array:
    found = np.asarray(ids)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iu":
        raise GraftError("token ids are a list of one or more whole numbers")
    return found.astype(np.int64)


def _key(ids: Array) -> bytes:
    return hashlib.sha256(ids.tobytes()).digest()


def _chunks(several: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(several)
    while some := list(itertools.islice(iterator, _BATCH)):
        yield some


def _padded(states: Sequence[Array], length: int) -> Array:
    out = np.zeros((len(states), length, states[0].shape[1]), states[0].dtype)
    for row, state in zip(out, states, strict=True):
        row[: len(state)] = state
    return out
