"""A question and a paragraph read together by an encoder whose lower layers read them apart, beside the original."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from fidelity_export import Array, sentence_encoder, sentence_tokenizer
from fidelity_models import Sentences, cosines, version
from fidelity_setup import Setup

import rewriter
from rewriter.decomposed import Pipeline

LONGEST = 24  # tokens of a question, with what begins and ends it


class Pairs:
    """MiniLM on [CLS] question [SEP] paragraph [SEP]: hidden states, and where in the paragraph the question is met."""

    def __init__(self, setup: Setup) -> None:
        self.name, self.folder, self.threads = "MiniLM on pairs", setup.folder, setup.threads
        tokenizer = sentence_tokenizer()
        count = 10 if setup.quick else 80
        chosen = setup.texts.questions[:: max(1, len(setup.texts.questions) // count)][:count]
        asked = [tokenizer.encode(question).ids for question, _ in chosen]
        told = [tokenizer.encode(setup.texts.paragraphs[n]).ids[1:][: 512 - LONGEST] for _, n in chosen]
        self.pairs = [(q, p) for q, p in zip(asked, told, strict=True) if len(q) <= LONGEST]
        self.original = setup.session(sentence_encoder(setup.folder))
        self.truth = [self._together(q, p, len(q)) for q, p in self.pairs]
        self.about = (
            f"{version(Sentences.package)}, K of its 6 layers apart: {len(self.pairs)} pairs of a question (at most "
            f"{LONGEST} tokens, padded to that in the middle) and its paragraph, hidden states kept in fp16. question, "
            "paragraph: cosine of the hidden states of their tokens, mean; place: pairs whose token of the paragraph "
            "that is nearest to the question's mean is the original's. K = 0: the original, padded in the middle"
        )

    def _together(self, question: list[int], paragraph: list[int], begin: int) -> tuple[Array, Array]:
        """Return what the original makes of question and paragraph, which begins at a place."""
        ids = np.array([[*question, *[0] * (begin - len(question)), *paragraph]])
        types = (np.arange(ids.shape[1]) >= begin).astype(np.int64)[None]
        feeds = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": types}
        hidden = self.original.run(None, feeds)[0][0]
        return hidden[: len(question)], hidden[begin:]

    def score(self, layers: int, positions: str) -> dict[str, float]:
        """Return how near the hidden states after all layers are to the original's."""
        made = self._apart(layers, positions) if layers else [self._together(q, p, LONGEST) for q, p in self.pairs]
        near = {
            name: float(np.mean([cosines(a[n], b[n]) for a, b in zip(made, self.truth, strict=True)]))
            for n, name in enumerate(("question", "paragraph"))
        }
        same = [nearest(*a) == nearest(*b) for a, b in zip(made, self.truth, strict=True)]
        return {**near, "place": float(np.mean(same))}

    def _apart(self, layers: int, positions: str) -> list[tuple[Array, Array]]:
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            split = Path(scratch) / "split"
            rewriter.split(sentence_encoder(self.folder), layers, LONGEST, split, positions=positions)
            pipeline = Pipeline(split, Path(scratch) / "store", threads=self.threads)
            hidden = [pipeline.score(question, [paragraph])[0] for question, paragraph in self.pairs]
            pipeline.store.close()
        return [(x[: len(q)], x[LONGEST:]) for x, (q, _) in zip(hidden, self.pairs, strict=True)]


def nearest(question: Array, paragraph: Array) -> int:
    """Return the token of the paragraph that is nearest to the question's mean, its last one left out."""
    body = paragraph[:-1]
    return int(np.argmax(body @ question.mean(axis=0) / np.linalg.norm(body, axis=1)))
