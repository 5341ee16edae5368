"""The fidelity page: it says what was measured, and the scripts that measure still run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sweep import SLOW

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
RESULTS = ROOT / "benchmarks" / "results" / "fidelity.json"


def test_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    import fidelity_page

    fidelity_page.write(json.loads(RESULTS.read_text("utf-8")), tmp_path)
    page = (tmp_path / "fidelity.md").read_text("utf-8")
    assert page == (ROOT / "docs" / "fidelity.md").read_text("utf-8"), "run python benchmarks/fidelity.py --page"
    plots = {path.name for path in tmp_path.glob("*.svg")}
    assert plots == {path.name for path in (ROOT / "docs").glob("fidelity-*.svg")}
    assert all(f"({name})" in page for name in plots)


def test_nothing_on_the_page_was_measured_quickly() -> None:
    assert not [name for name, section in json.loads(RESULTS.read_text("utf-8")).items() if section["quick"]]


@pytest.mark.parametrize(
    ("perplexities", "k"), [((30.0, 20.1, 20.0), 64), ((30.0, 20.9, 20.3), None), ((20.0, 30.0, 20.0), 256)]
)
def test_smallest_k(perplexities: tuple[float, ...], k: int | None) -> None:
    """The smallest k from which on every k is near enough; a lucky one below a bad one does not count."""
    from fidelity_page import smallest

    original = {"k": 512, "perplexity": 20.0}
    rows = [{"k": n, "by": "a", "perplexity": p} for n, p in zip((16, 64, 256), perplexities, strict=True)]
    other = [{"k": 16, "by": "b", "perplexity": 20.0}]
    assert smallest([original, *rows, *other], {"by": "a"}) == k


@pytest.mark.models
@pytest.mark.skipif(not SLOW, reason="takes a minute or two: GRAFT_SWEEP=1 runs it")
def test_measuring(tmp_path: Path) -> None:
    """MiniLM on a few texts: with every neuron it is the original, with few it is not, and the script can tell."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"the exported model needs {package}")
    from fidelity_sections import Lab, activity, encoders
    from fidelity_setup import Setup, Texts

    lines = [f"The {word} river is {n} miles long, and {n} boats are on it." for n, word in enumerate(WORDS, 2)]
    texts = Texts(
        about="made up",
        paragraphs=lines,
        questions=[(f"How long is the {word} river?", n) for n, word in enumerate(WORDS)],
        prose=" ".join(lines),
    )
    lab = Lab(setup=Setup(folder=tmp_path, texts=texts, quick=True, threads=1))
    settings = [({"k": k}, f"topk-feed-forward:k={k}" if k else None, None) for k in (0, 1536, 64)]
    original, every, few = lab.rows("sentences", settings)
    assert (every["sites"], few["sites"]) == (6, 6)
    assert original["found"] == every["found"] == every["same"] == 1.0
    assert every["least cosine"] > 1 - 1e-5 > 0.99 > few["cosine"] > 0.3
    blocks = list(activity(lab, ["sentences"]))
    assert len(blocks) == 6
    assert all(0 < row["largest"]["0.99"]["most"] < 1536 for row in blocks)
    apart = list(encoders(lab))
    assert [row["layers"] for row in apart] == [0, 3, 3]
    assert all(0.3 < row["question"] < 1 for row in apart)


WORDS = ("long", "old", "cold", "deep", "red", "quiet", "wide", "green", "northern", "salt")
