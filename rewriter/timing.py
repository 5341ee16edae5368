"""Two models timed in turn: medians, their ratio, and the peak memory of each, in one run."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import compare, files, inputs, sessions
from rewriter.errors import GraftError
from rewriter.hosts.onnx import OnnxGraphs
from rewriter.inputs import Feeds
from rewriter.report import BenchCase, BenchReport, Timing

_ROUNDS, _BUDGET_MS = 9, 4000.0  # timed rounds per case, fewer where a round is long


def bench(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    dims: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
) -> BenchReport:
    """Time two model files in turn on the same inputs, each in a process of its own.

    Args:
        a: the first model, usually the original.
        b: the second model, usually the rewritten one.
        dims: sizes of free dimensions by name; every combination is a case.
        threads: intra-op threads of each session.

    Raises:
        GraftError: a model cannot be opened or run.
    """
    files.open_model(b)
    graphs = OnnxGraphs(files.open_model(a))
    signature = inputs.Signature(graphs)
    lists = {name: list(sizes) for name, sizes in (dims or {}).items()}
    cases = []
    for combination in itertools.product(*lists.values()):
        given = dict(zip(lists, combination, strict=True))
        feeds = _feeds(graphs, signature, a, given)
        used = {name: size for name, size in zip(signature.dims, _used(signature, feeds), strict=True) if size}
        cases.append(_case(a, b, feeds, {**used, **given}, threads))
    return BenchReport(a=str(a), b=str(b), cases=cases)


def _feeds(
    graphs: OnnxGraphs, signature: inputs.Signature, a: str | os.PathLike[str], given: Mapping[str, int]
) -> Feeds:
    """Return plain inputs; if not all sizes are given, ones that the model runs on."""
    if set(signature.dims) <= set(given):
        return signature.feeds(signature.sizes(given, 1, 1))
    return compare.cases(graphs, partial(sessions.run, sessions.open_session(a, ours=False)), None, given)[0].feeds


def _used(signature: inputs.Signature, feeds: Feeds) -> Iterator[int | None]:
    for name in signature.dims:
        found = [
            length
            for i in signature.inputs
            for d, length in zip(i.shape, feeds[i.name].shape, strict=True)
            if str(d) == name
        ]
        yield found[0] if found else None


def _case(
    a: str | os.PathLike[str], b: str | os.PathLike[str], feeds: Feeds, dims: Mapping[str, int], threads: int
) -> BenchCase:
    with tempfile.TemporaryDirectory(prefix="graft-") as folder, ExitStack() as stack:
        np.savez(Path(folder) / "feeds.npz", **feeds)  # type: ignore[arg-type]
        first, second = (stack.enter_context(_worker(model, Path(folder) / "feeds.npz", threads)) for model in (a, b))
        peaks = [_ask(worker, "peak")["peak_mb"] for worker in (first, second)]
        warm = max(_ask(worker, "time")["ms"] for worker in (first, second))
        rounds = max(3, min(_ROUNDS, int(_BUDGET_MS / max(warm, 1e-3))))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):  # in turn, so that both meet the same weather
            for worker, own in zip((first, second), times, strict=True):
                own.append(_ask(worker, "time")["ms"])
    left, right = (
        Timing(median_ms=statistics.median(t), min_ms=min(t), peak_mb=peak)
        for t, peak in zip(times, peaks, strict=True)
    )
    return BenchCase(dims=dims, threads=threads, a=left, b=right, ratio=left.median_ms / right.median_ms)


@contextmanager
def _worker(model: str | os.PathLike[str], feeds: Path, threads: int) -> Iterator[Any]:
    command = [sys.executable, "-m", "rewriter.timing", str(model), str(feeds), str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def _ask(process: Any, question: str) -> dict[str, Any]:
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise GraftError(f"timing stopped: the process of {process.args[3]} ended, perhaps out of memory")
    reply: dict[str, Any] = json.loads(answer)
    if "error" in reply:
        raise GraftError(reply["error"])
    return reply


def _serve(model: str, feeds_file: str, threads: str) -> None:
    """Answer questions on standard input: ``peak`` runs once and measures memory, ``time`` times one run."""
    import time

    problem: str | None = None
    try:
        session = sessions.open_session(model, threads=int(threads), spin=True)
    except GraftError as error:
        problem = str(error)
    with np.load(feeds_file) as file:
        feeds = {name: file[name] for name in file.files}
    for question in sys.stdin:
        try:
            if problem is not None:
                raise GraftError(problem)
            if question.strip() == "peak":
                reply = {"peak_mb": _peak_mb(session, feeds)}
            else:
                start = time.perf_counter()
                sessions.run(session, feeds)
                reply = {"ms": (time.perf_counter() - start) * 1e3}
        except GraftError as error:
            reply = {"error": str(error)}  # type: ignore[dict-item]
        print(json.dumps(reply), flush=True)


def _peak_mb(session: Any, feeds: Feeds) -> float:
    """Return how far the first run raises the highest resident memory of this process, in MiB."""
    before = _status_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # start the high-water mark anew
    sessions.run(session, feeds)
    return max(0.0, (_status_kb("VmHWM") - before) / 1024)


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    _serve(*sys.argv[1:4])
