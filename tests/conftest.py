"""What every run of the tests says at its end: how many blocks were found, by family and by exporter."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sweep import SLOW

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "families.json"
# read when torch is imported: it would start threads, and inductor compilers, for every core, beside each other worker
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
COUNTS = ("attention", "found", "feed_forward", "feed_forward_found")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts that the tests of families recorded; the sweep also writes those of ONNX files to a file."""
    _section(terminalreporter, "torch family", "blocks found in model families as torch graphs")
    rows = _section(terminalreporter, "family", "blocks found in model families")
    if rows and SLOW:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _section(terminalreporter: pytest.TerminalReporter, recorded: str, title: str) -> list[Mapping[str, Any]]:
    """Print the counts that were recorded under a name, and return them: a row for each test."""
    last: dict[str, Mapping[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, row in getattr(report, "user_properties", ()):
                if name == recorded and getattr(report, "when", "") == "call":
                    last[report.nodeid] = row  # a test records again when it gets further
    if last:
        terminalreporter.section(title)
        skipped = [row for row in last.values() if "skipped" in row]
        for what in ("exporter", "family"):
            for line in _counts([row for row in last.values() if "skipped" not in row], what):
                terminalreporter.write_line(line)
        for row in skipped:
            terminalreporter.write_line(f"{row['family']:24} {row['exporter']}: {row['skipped']}")
        terminalreporter.write_line(f"what an exporter does not write, or what does not run: {len(skipped)}")
    return list(last.values())


def _counts(rows: Iterable[Mapping[str, Any]], by: str) -> Iterable[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    for name, group in groups.items():
        sums = {what: sum(row[what] for row in group) for what in COUNTS}
        right = sum(row["found"] for row in group if row["error"] is not None)
        attention = f"attention {sums['found']:4} of {sums['attention']:4}, numbers right {right:4}"
        feed_forward = f"feed-forward {sums['feed_forward_found']:4} of {sums['feed_forward']:4}"
        yield f"{name:24} files {len(group):3}   {attention}   {feed_forward}"
