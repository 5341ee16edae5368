"""Real models end to end: all attention found, the original's numbers kept, with our library or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from compare import BACKENDS, distance, grafted, session
from models import EXPORTS, MODELS, Export, Feeds, Model, exported, unrounded

import rewriter

pytestmark = pytest.mark.models
TOLERANCE = 1e-5
RULES = {
    "exact": "exact-attention",
    "topk-all": "topk-attention:k=4096",
}  # k ≥ every length: the same numbers


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_model(model: Model, rule: str, tmp_path: Path) -> None:
    path = model.path()
    feeds = model.feeds(np.random.default_rng(0))
    check_found(path, model.attention, model.other_softmax)
    if model.rounded:
        check_runs(path, rule, model.attention, feeds, tmp_path)
        path = unrounded(path, tmp_path)
    check_rewritten(path, rule, model.attention, feeds, tmp_path)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.name)
def test_export(export: Export, rule: str, folder: Path, tmp_path: Path) -> None:
    path = exported(export, folder)
    check_found(path, export.weights.attention, 0)
    check_rewritten(path, rule, export.weights.attention, export.feeds(np.random.default_rng(0)), tmp_path)


def check_found(path: Path, attention: int, other_softmax: int) -> None:
    shown = rewriter.show(path)
    found = [site for site in shown.sites if site.kind == "attention"]
    declined = [f"{row.anchor}: {row.reason}" for row in shown.declines if row.kind == "attention"]
    assert (len(found), len(declined)) == (attention, other_softmax), declined
    assert all(row.reason and row.at for row in shown.declines)


def rewrite(path: Path, rule: str, attention: int, folder: Path) -> Path:
    output = folder / "rewritten.onnx"
    report = rewriter.apply(path, (rule,), output=output, verify=False, expect=attention)
    assert report.rewritten == attention, report.declined
    assert grafted(output) == attention
    return output


def check_runs(path: Path, rule: str, attention: int, feeds: Sequence[Feeds], folder: Path) -> None:
    """The shipped file itself is rewritten as a whole, and what comes out runs."""
    output = rewrite(path, rule, attention, folder)
    for library in BACKENDS.values():
        ours = session(output, library)
        assert all(np.isfinite(out).all() for feed in feeds for out in ours.run(None, feed))


def check_rewritten(path: Path, rule: str, attention: int, feeds: Sequence[Feeds], folder: Path) -> None:
    output = rewrite(path, rule, attention, folder)
    original = session(path, library=False)
    names = [out.name for out in original.get_outputs()]
    truths = [original.run(names, feed) for feed in feeds]
    for backend, library in BACKENDS.items():
        ours = session(output, library)
        for feed, old in zip(feeds, truths, strict=True):
            dims = {name: array.shape for name, array in feed.items()}
            for name, a, b in zip(names, old, ours.run(names, feed), strict=True):
                close(a, b, f"{backend}, {name}, {dims}")


def close(old: np.ndarray, new: np.ndarray, where: str) -> None:
    assert old.shape == new.shape, where
    if old.dtype.kind != "f":
        assert np.array_equal(old, new), where
        return
    seen = ~np.isnan(old)
    error = distance(new[seen], old[seen])
    assert error <= TOLERANCE, f"{where}: relative error {error:.2e}"
