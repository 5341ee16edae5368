"""What every run of the tests says at its end: how many blocks were found, by family and by exporter."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "families.json"
COUNTS = ("attention", "found", "feed_forward", "feed_forward_found")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts that test_families.py recorded; the sweep also writes them to a file."""
    last: dict[str, Mapping[str, Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, row in getattr(report, "user_properties", ()):
                if name == "family" and getattr(report, "when", "") == "call":
                    last[report.nodeid] = row  # a test records again when it gets further
    if not last:
        return
    terminalreporter.section("blocks found in model families")
    skipped = [row for row in last.values() if "skipped" in row]
    for what in ("exporter", "family"):
        for line in _counts([row for row in last.values() if "skipped" not in row], what):
            terminalreporter.write_line(line)
    for row in skipped:
        terminalreporter.write_line(f"{row['family']:24} {row['exporter']}: {row['skipped']}")
    terminalreporter.write_line(f"files that an exporter does not write, or that do not run: {len(skipped)}")
    if os.environ.get("GRAFT_SWEEP"):
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(list(last.values()), indent=1) + "\n", encoding="utf-8")


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
