"""How the fidelity page is measured: on which texts, with what sessions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from fidelity_export import packaged

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import runtime_ops


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the models read: questions name their paragraph by number."""

    about: str
    paragraphs: Sequence[str]
    questions: Sequence[tuple[str, int]]
    prose: str


def read_texts(data: Path | None) -> Texts:
    """Return the texts of a folder with xquad.en.json and wikitext2.test.txt, or those that gensim carries."""
    if data is None:
        lines = packaged("gensim", "gensim/test/test_data/lee_background.cor").read_text("utf-8").splitlines()
        halves = [line.partition(". ") for line in lines]
        return Texts(
            about="gensim's lee_background.cor: 300 news items; the first sentence of each is the question to its rest",
            paragraphs=[rest for _, _, rest in halves],
            questions=[(first, n) for n, (first, _, rest) in enumerate(halves) if rest],
            prose="\n".join(lines),
        )
    articles = json.loads((data / "xquad.en.json").read_text("utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return Texts(
        about="the paragraphs and questions of XQuAD (English), and the test text of WikiText-2",
        paragraphs=[p["context"] for p in paragraphs],
        questions=[(qa["question"], n) for n, p in enumerate(paragraphs) for qa in p["qas"]],
        prose=(data / "wikitext2.test.txt").read_text("utf-8"),
    )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to measure.

    Attributes:
        folder: of exported models, kept between runs.
        texts: what models read.
        quick: whether fewer texts and settings are to do.
        threads: of ONNX Runtime; 0 leaves the choice to it.
    """

    folder: Path
    texts: Texts
    quick: bool
    threads: int = 0

    def session(self, path: Path) -> Any:
        """Return a session with our kernels; what exporters left in a file is not worth a warning."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, self.threads
        return runtime_ops.session(path, sess_options=options)
