"""Questions and passages for the example: one right passage for each question, and wrong ones that are close.

From Wikipedia's articles a question is a sentence, its passage the rest of its paragraph (the inverse cloze task). A
file in SQuAD's format has questions that people asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import torch

WORDS = (40, 160)  # of a paragraph
Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, the passage that answers it, and passages of the same article that do not."""

    question: str
    passage: str
    others: Sequence[str]


def of_articles(seed: int = 0) -> list[list[Asked]]:
    """Return questions by article, from Wikipedia."""
    draw, found = random.Random(seed), []
    for article in corpus.articles():
        split = [corpus.sentences(text) for text in corpus.paragraphs(article)]
        split = [some for some in split if len(some) > 2 and WORDS[0] <= len(" ".join(some).split()) <= WORDS[1]]
        asked = [draw.randrange(len(some)) for some in split]
        passages = [" ".join(some[:n] + some[n + 1 :]) for some, n in zip(split, asked, strict=True)]
        found.append([
            Asked(question=some[n], passage=passages[i], others=passages[:i] + passages[i + 1 :])
            for i, (some, n) in enumerate(zip(split, asked, strict=True))
        ])  # fmt: skip
    return [some for some in found if len(some) > 1]


def of_file(path: Path) -> list[list[Asked]]:
    """Return questions by article, from a file in SQuAD's format."""
    found = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        passages = [x["context"] for x in article["paragraphs"]]
        found.append([
            Asked(question=qa["question"], passage=passage, others=[p for p in passages if p != passage])
            for passage, x in zip(passages, article["paragraphs"], strict=True) for qa in x["qas"]
        ])  # fmt: skip
    return [some for some in found if some and some[0].others]


class Layout:
    """Questions padded to one length, and passages behind them, as token ids.

    Args:
        tokenizer: of the encoder.
        question: length of a padded question, its first and last token included.
        passage: longest passage, its last token included.
    """

    def __init__(self, tokenizer: object, question: int, passage: int) -> None:
        self.tokenizer, self.longest = tokenizer, (question, passage)
        self.first, self.last = tokenizer.cls_token_id, tokenizer.sep_token_id  # type: ignore[attr-defined]

    def question(self, text: str) -> list[int]:
        """Return the ids of a question."""
        return [self.first, *self._ids(text, self.longest[0] - 2), self.last]

    def passage(self, text: str) -> list[int]:
        """Return the ids of a passage."""
        return [*self._ids(text, self.longest[1] - 1), self.last]

    def _ids(self, text: str, most: int) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"][:most]  # type: ignore[operator]

    def batch(self, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids, the mask and the token types [b t] of some questions with a passage each."""
        asked, told = ([make(text) for text in some] for make, some in zip((self.question, self.passage),
                       zip(*pairs, strict=True), strict=True))  # fmt: skip
        sides = [(asked, self.longest[0]), (told, max(map(len, told)))]
        ids = torch.cat([torch.tensor([x + [0] * (n - len(x)) for x in some]) for some, n in sides], 1)
        mask = torch.cat([torch.arange(n) < torch.tensor([[len(x)] for x in some]) for some, n in sides], 1)
        types = torch.cat([torch.full((len(pairs), n), i) for i, (_, n) in enumerate(sides)], 1)
        return ids, mask.long(), types


def batches(
    asked: Sequence[Asked], layout: Layout, steps: int, size: int, candidates: int, seed: int
) -> list[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
    """Return batches of some questions with candidates each, and the place of the right one, which is the first."""
    draw = random.Random(seed)
    chosen = [choices(asked, size, candidates, draw) for _ in range(steps)]
    pairs = [[(question, passage) for question, some in one for passage in some] for one in chosen]
    return [(layout.batch(some), torch.zeros(size, dtype=torch.long)) for some in pairs]


def choices(asked: Sequence[Asked], count: int, candidates: int, draw: random.Random) -> list[tuple[str, list[str]]]:
    """Return some questions with candidates each, the right passage first, wrong ones of the same article if it has."""
    made = []
    for x in draw.sample(asked, min(count, len(asked))):
        near = draw.sample(x.others, min(candidates - 1, len(x.others)))
        far = _strange(asked, {x.passage, *x.others}, candidates - 1 - len(near), draw)
        made.append((x.question, [x.passage, *near, *far]))
    return made


def _strange(asked: Sequence[Asked], known: set[str], count: int, draw: random.Random) -> list[str]:
    """Return passages of other articles."""
    found: dict[str, None] = {}
    while len(found) < count:
        passage = draw.choice(asked).passage
        found.update({} if passage in known else {passage: None})
    return list(found)
