"""Texts as the token ids that a split encoder takes, by the tokenizer beside its models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewriter.errors import GraftError

TOKENIZER = "tokenizer.json"
_PROBE = "a"  # a text that every tokenizer makes tokens of


class Texts:
    """Questions and passages as token ids, each with the special tokens of its half of a pair.

    Args:
        folder: what ``graft split`` wrote, with the model's ``tokenizer.json`` (of the package tokenizers) in it.

    Raises:
        GraftError: there is no tokenizer, it cannot be read, or it is none for pairs of texts.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / TOKENIZER
        if not file.is_file():
            raise GraftError(
                f"{folder}: has no {TOKENIZER}, without which questions and passages are token ids, not texts; "
                "put the model's there"
            )
        self._tokenizer = _opened(file)
        pair = self._tokenizer.encode(_PROBE, _PROBE)
        sides = [pair.sequence_ids.index(n) for n in (0, 1) if n in pair.sequence_ids]
        if len(sides) < 2 or sides[0] > sides[1]:
            raise GraftError(f"{file}: makes no pair of a question and a passage behind it")
        ends = [len(pair.ids) - pair.sequence_ids[::-1].index(n) for n in (0, 1)]
        self._around = {
            "question": (pair.ids[: sides[0]], pair.ids[ends[0] : sides[1]]),
            "passage": ([], pair.ids[ends[1] :]),
        }

    def ids(self, part: str, text: str) -> Sequence[int]:
        """Return the ids of a "question" or a "passage".

        Raises:
            GraftError: the text is empty.
        """
        found = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not found:
            raise GraftError(f"the {part} {text!r} has no tokens")
        before, after = self._around[part]
        return [*before, *found, *after]


def _opened(file: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise GraftError("texts need the package tokenizers: pip install 'attn-graft[text]'") from None
    try:
        found = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more particular
        raise GraftError(f"{file}: is no tokenizer: {error}") from error
    found.no_truncation()
    found.no_padding()
    return found
