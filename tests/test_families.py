"""Every model family as every exporter writes it: all blocks are found, and attention rewritten with the same numbers.

The quick run exports every second family once; the sweep (`make sweep`) exports each with every exporter. What an
exporter cannot write, or writes so that ONNX Runtime does not run it, is skipped with the error, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from compare import BACKENDS, distance, session
from exports import SIZES, Arg, Exported, Sizes, exported, feeds, folder
from families import BESIDE, DECLINED, QUICK, SWEEP, UNREAD, Case
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, RuntimeException
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplementedInRuntime
from sweep import SLOW

import rewriter
from rewriter.report import ShowReport

TOLERANCE = 1e-4
RULE = "exact-attention"
Record = Callable[[str, object], None]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("case", SWEEP if SLOW else QUICK[::2], ids=lambda case: case.name)
def test_family(case: Case, exports: Path, tmp_path: Path, record_property: Record) -> None:
    pytest.importorskip("torch", reason="exporting families needs the extra `torch`")
    pytest.importorskip("transformers", reason="exporting families needs transformers")
    file = exported(case, exports)
    row = {"family": case.family.name, "exporter": f"{case.exporter.name} {case.exporter.opset} {case.implementation}"}
    failure = file.error or does_not_run(file)
    if failure is not None:
        record_property("family", row | {"skipped": failure})
        pytest.skip(f"the exporter itself fails: {failure}")
    shown = rewriter.show(file.path)
    found = sum(site.kind == "attention" for site in shown.sites)
    feed_forward = sum(site.kind == "feed-forward" for site in shown.sites)
    row |= {
        "attention": case.family.attention,
        "found": found,
        "feed_forward": case.family.feed_forward,
        "feed_forward_found": feed_forward,
    }
    record_property("family", row | {"error": None})
    check_found(shown, case)
    unread = UNREAD.get(case.family.name)
    assert feed_forward == (case.family.feed_forward if unread is None else 0)
    reasons = [row.reason for row in shown.declines if row.kind == "feed-forward"]
    expected = unread if unread is not None else BESIDE.get(case.family.name)
    assert all(expected is not None and expected in reason for reason in reasons), reasons
    assert reasons or not unread
    record_property("family", row | {"error": check_numbers(file, tmp_path / "rewritten.onnx", found)})


def does_not_run(file: Exported) -> str | None:
    """Return why ONNX Runtime runs a file at no size at all, None if it does."""
    try:
        original = session(file.path, library=False)
    except (Fail, InvalidArgument, InvalidGraph, NotImplementedInRuntime) as failure:
        return str(failure)[:300]
    failures = [attempt(original, inputs(original, file.args, *sizes)) for sizes in SIZES]
    return None if any(not isinstance(one, str) for one in failures) else str(failures[-1])


def check_found(shown: ShowReport, case: Case) -> None:
    """Every block is a site, or a decline gives a sentence and a place for it."""
    declined = [row for row in shown.declines if row.kind == "attention"]
    found = [site for site in shown.sites if site.kind == "attention"]
    assert all(len(row.reason.split()) > 3 and row.at for row in declined), declined
    missed = "\n".join(f"{row.anchor}: {row.reason} (at {row.at})" for row in declined)
    excepted = [row for start, row in DECLINED.items() if f"{case.name}-".startswith(f"{start}-")]
    count = sum(number for number, _ in excepted)
    assert len(found) == case.family.attention - count, missed or "nothing was read, nothing declined"
    for number, words in excepted:
        assert 0 < sum(words in row.reason for row in declined) <= number, missed


def check_numbers(file: Exported, output: Path, sites: int) -> float:
    """Rewrite and compare at every size that the original itself runs at."""
    report = rewriter.apply(file.path, (RULE,), output=output, verify=False)
    assert report.rewritten == sites, report.declined
    original = session(file.path, library=False)
    ours = {name: session(output, library) for name, library in BACKENDS.items()}
    worst, ran = 0.0, 0
    for sizes, pad in SIZES:
        given = inputs(original, file.args, sizes, pad)
        truth = attempt(original, given)
        if isinstance(truth, str):
            continue
        ran += 1
        for backend, one in ours.items():
            error = largest(truth, one.run(None, given))
            assert error <= TOLERANCE, f"{backend}, {sizes}, padded {pad}: relative error {error:.2e}"
            worst = max(worst, error)
    assert ran, "the original runs at none of the sizes"
    return worst


def inputs(
    original: onnxruntime.InferenceSession, args: Sequence[Arg], sizes: Sizes, pad: str | None
) -> dict[str, np.ndarray]:
    """Leave out what the exporter found unused."""
    wanted = {one.name for one in original.get_inputs()}
    return {name: x for name, x in feeds(args, sizes, pad).items() if name in wanted}


def attempt(original: onnxruntime.InferenceSession, given: dict[str, np.ndarray]) -> Sequence[np.ndarray] | str:
    """Return the outputs, or the error: some exports run at the traced sizes only; that is theirs to answer for."""
    try:
        return original.run(None, given)
    except (Fail, InvalidArgument, RuntimeException) as failure:
        return str(failure)[:300]


def largest(truth: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> float:
    """Return the largest relative error of an output, NaN for NaN; infinite if a shape or a NaN differs."""
    errors = [0.0]
    for old, new in zip(truth, ours, strict=True):
        seen = ~np.isnan(old)
        same = old.shape == new.shape and np.array_equal(seen, ~np.isnan(new))
        errors.append(distance(new[seen], old[seen]) if same else float("inf"))
    return max(errors)
