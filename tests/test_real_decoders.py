"""Real decoders expanded: Flan-T5 and Whisper say the same 40 tokens from hidden states as from keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import distance

pytest.importorskip("torch", reason="decoders are exported by torch")
pytest.importorskip("transformers", reason="decoders are made by transformers")

import real_decoders
from decoder_pairs import exported_pair, merged
from real_decoders import Arrays
from sweep import SLOW
from test_decoders import decoders, generate

import rewriter
from rewriter.stepping import Decoder

pytestmark = pytest.mark.models
TOKENS, TOLERANCE = 40, 1e-5


@dataclass(frozen=True, kw_only=True)
class Real:
    """A model, what its encoder says, and the token that begins."""

    model: Callable[[], Any]
    source: Callable[[Any], Arrays]
    start: int
    layers: int


REAL = {
    "flan-t5": Real(model=real_decoders.t5, source=real_decoders.t5_source, start=0, layers=8),
    "whisper": Real(model=real_decoders.whisper, source=real_decoders.whisper_source, start=50257, layers=4),
}
# merged files are compared on random models in the quick tests
FORMS = (*REAL, "flan-t5 merged") if SLOW else tuple(REAL)
Both = tuple[Decoder, Decoder, Arrays]


@pytest.fixture(scope="module", params=FORMS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The original and the result, and the inputs of their first run."""
    name, _, form = request.param.partition(" ")
    row, folder = REAL[name], tmp_path_factory.mktemp(name)
    model = row.model()
    pair, source = exported_pair(model, folder), row.source(model)
    feeds = {"input_ids": np.full((len(source["encoder_hidden_states"]), 1), row.start), **source}
    np.savez(folder / "inputs.npz", **feeds)
    files: Sequence[Path] = [merged(pair, folder / "decoder_model_merged.onnx")] if form else pair
    report = rewriter.expand(files[0], None if form else files[1], folder / "expanded", inputs=folder / "inputs.npz")
    assert report.attentions == 2 * row.layers
    assert report.error is not None
    assert report.error <= TOLERANCE
    return *decoders((files, report)), feeds


@pytest.mark.parametrize("beams", [1, 4])
def test_same_tokens(both: Both, beams: int) -> None:
    old, new, feeds = both
    wanted = generate.generate(old, feeds, TOKENS, beams, again=False)
    assert all(len(set(row)) == TOKENS for row in wanted.tolist())
    np.testing.assert_array_equal(generate.generate(new, feeds, TOKENS, beams, again=False), wanted)


def test_same_numbers(both: Both) -> None:
    """Logits of every step of the greedy tokens, each within 1e-5."""
    old, new, feeds = both
    said = generate.generate(old, feeds, TOKENS, 1, again=False)
    runs = [logits(decoder, feeds, said) for decoder in (old, new)]
    assert max(distance(b, a) for a, b in zip(*runs, strict=True)) <= TOLERANCE


def logits(decoder: Decoder, feeds: Arrays, said: np.ndarray) -> Sequence[np.ndarray]:
    """Return what a decoder gives while it is told the tokens."""
    given = [decoder.begin(feeds), *(decoder.step({**feeds, "input_ids": column[:, None]}) for column in said.T)]
    return [out["logits"] for out in given]
