"""The command line: it says what the API says, in tables or in JSON, with the documented exit codes.

What bad input does is in test_bad_input.py. Tables are made from hand-made
reports, so that every part shows.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
from reports import REPORTS
from spellings import SPELLINGS

import rewriter
from rewriter import console, render
from rewriter.cli import app
from rewriter.tables import UNBOUNDED, Page

COMMANDS = ("show", "why", "apply", "split", "cache", "expand", "verify", "bench", "rules", "ops", "doctor")
GRAFT = (sys.executable, "-m", "rewriter")
Graft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def graft(capsys: pytest.CaptureFixture[str]) -> Graft:
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = console.run(app, [str(word) for word in argv])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with one attention and one softmax that is none."""
    path = tmp_path_factory.mktemp("cli") / "model.onnx"
    onnx.save(next(s for s in SPELLINGS if s.id == "scale-mul-after").build(), path)
    return path


@pytest.fixture(scope="module")
def fast(model: Path) -> Path:
    path = model.with_name("fast.onnx")
    rewriter.apply(str(model), output=str(path))
    return path


def parsed(text: str) -> Any:
    """Strict JSON: no NaN, no Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def plain(report: rewriter.report.Report) -> Any:
    return report.to_dict()


def test_json_is_the_api_s(graft: Graft, model: Path, fast: Path) -> None:
    """Every --json equals to_dict() of the API's report."""
    a, b = str(model), str(fast)
    rows = {
        ("show", a): rewriter.show(a),
        ("why", a): rewriter.why(a),
        ("why", a, "attention.0"): rewriter.why(a, "attention.0"),
        ("apply", a, "--dry-run"): rewriter.apply(a, dry_run=True),
        ("verify", a, b): rewriter.verify(a, b),
    }
    for argv, report in rows.items():
        code, out, err = graft(*argv, "--json")
        assert (code, err) == (0, ""), err
        assert parsed(out) == plain(report)


def test_apply_writes_what_it_says(graft: Graft, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, said, err = graft("apply", model, "-o", out, "--rule", "topk-attention:k=2", "--expect", 1, "--json")
    assert (code, err) == (0, "")
    report = parsed(said)
    assert report == plain(
        rewriter.apply(str(model), ["topk-attention:k=2"], output=str(out))
    )  # the second replaces the first
    assert report["rewritten"] == 1
    assert report["output"] == str(out)
    onnx.checker.check_model(str(out))


def test_bench(graft: Graft, model: Path, fast: Path) -> None:
    code, out, err = graft("bench", model, fast, "--dim", "b=1", "--dim", "s=4,8", "--json")
    assert (code, err) == (0, "")
    cases = parsed(out)["cases"]
    assert [case["dims"]["s"] for case in cases] == [4, 8]
    for case in cases:
        assert case["ratio"] == pytest.approx(case["a"]["median_ms"] / case["b"]["median_ms"])
        assert set(case["a"]) == {"median_ms", "min_ms", "peak_mb"}


def test_verify_that_fails(graft: Graft, model: Path, fast: Path) -> None:
    """Exit code 3, the report on standard output and one sentence on standard error."""
    graft("apply", model, "-o", fast.with_name("k1.onnx"), "--rule", "topk-attention:k=1")
    code, out, err = graft("verify", model, fast.with_name("k1.onnx"), "--json")
    assert code == 3
    assert parsed(out)["passed"] is False
    assert re.fullmatch(r"graft: output '.*' differs by .*\n", err)


def test_strict_and_expect(graft: Graft, model: Path) -> None:
    assert graft("apply", model, "--dry-run", "--expect", 1, "--strict")[0] == 0
    code, out, err = graft("apply", model, "--dry-run", "--expect", 2, "--json")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"graft: .+\n", err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(graft: Graft, command: str) -> None:
    code, out, err = graft(command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: graft {command}" in out
    assert f"\n  Examples:\n    graft {command}" in out


def test_help_lists_every_command_and_exit_code(graft: Graft) -> None:
    out = graft("--help")[1]
    assert re.findall(r"^  ([a-z]+)  ", out.partition("Commands:")[2], re.MULTILINE) == list(COMMANDS)
    assert all(re.search(rf"^ +{code} ", out, re.MULTILINE) for code in (0, 1, 2, 3, 70, 130))


def test_no_arguments_is_help() -> None:
    done = subprocess.run(GRAFT, text=True, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: graft")


def test_version(graft: Graft) -> None:
    assert re.fullmatch(r"graft \d+\.\d+\.\d+\S*\n", graft("--version")[1])


def test_help_is_quick() -> None:
    """Below 0.3 s of processor time, since other work shares the machine; the best of five."""
    times = []
    for _ in range(5):
        before = sum(os.times()[2:4])
        subprocess.run([*GRAFT, "--help"], check=True, capture_output=True)
        times.append(sum(os.times()[2:4]) - before)
    assert min(times) < 0.3


def test_rules_and_ops(graft: Graft) -> None:
    listed = graft("rules")[1]
    assert "exact-attention" in listed
    assert "topk-attention" in listed
    assert re.search(r"^k +int +required", graft("rules", "topk-attention")[1], re.MULTILINE)
    assert "TopKAttention" in graft("ops")[1]
    page = graft("ops", "TopKAttention")[1]
    assert all(word in page for word in ("[b h s d]", "key_mask", "softcap", "1/sqrt(d)"))


def test_doctor(graft: Graft) -> None:
    code, out, _ = graft("doctor", "--json")
    report = parsed(out)
    assert report["versions"]["onnxruntime"]
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["function body in ONNX Runtime"]["passed"]
    assert code == (0 if all(check["passed"] for check in report["checks"]) else 2)
    assert report["library"] is None or (checks["kernel in ONNX Runtime"]["passed"] and report["kernels"])
    assert all(row["usable"] != bool(row["reason"]) for row in report["kernels"])


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
@pytest.mark.parametrize("width", [80, UNBOUNDED])
def test_tables(report: rewriter.report.Report, width: int) -> None:
    """Nothing is cut, no line is wider than the page, and a page without end has every string whole."""
    page = render.text(report, Page(width=width, color=False))
    assert "\x1b" not in page
    assert max(map(len, page.splitlines())) <= width
    assert not re.search(r"[ \t]$", page, re.MULTILINE)
    assert "…" not in page
    if width == UNBOUNDED:
        for word in ("because the classifier", "attention.0", "/encoder/layer.0/Softmax"):
            assert (word in page) == (word in json.dumps(report.to_dict(), ensure_ascii=False))


def test_every_report_has_a_table() -> None:
    assert {type(report) for report in REPORTS} == set(render.FORMS)


@pytest.mark.skipif(not os.environ.get("GRAFT_REQUIRE_KERNELS"), reason="only where kernels are demanded, as in CI")
def test_kernels_are_installed(graft: Graft) -> None:
    assert graft("doctor")[0] == 0


def test_a_bug_is_one_sentence(graft: Graft, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str, inputs: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("rewriter.look.show", broken)
    code, out, err = graft("show", model)
    assert (code, out) == (70, "")
    assert err.startswith("graft: this is a bug in graft (ZeroDivisionError: a b)")
    monkeypatch.setenv("GRAFT_TRACEBACK", "1")
    assert "Traceback" in graft("show", model)[2]


def test_ctrl_c_is_quiet(graft: Graft, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: str, inputs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rewriter.look.show", stopped)
    assert graft("show", model) == (130, "", "graft: interrupted\n")


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*GRAFT, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_letters_that_a_terminal_lacks(model: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*GRAFT, "show", model], capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert b"softmax(" in done.stdout


def test_progress_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress() as nobody:
        assert nobody is None
    parent, terminal = pty.openpty()
    monkeypatch.setattr(sys, "stderr", os.fdopen(terminal, "w"))
    with console.progress(delay=0.0) as bar:
        assert bar is not None
        bar("checking sites", 1, 4)
    assert b"checking sites" in os.read(parent, 4096)
    assert capfd.readouterr().out == ""


def test_usage_errors_come_from_typer() -> None:
    """The base class that console.py reaches through BadParameter is the one that the parser raises."""
    assert console.UsageError.__name__ == "UsageError"
    assert issubclass(typer.BadParameter, console.UsageError)
