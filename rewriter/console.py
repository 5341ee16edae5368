"""How the command line talks: exit codes, one sentence per error, JSON, and progress on a terminal only."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from rewriter.errors import BAD_INPUT, DONE, GraftError

if TYPE_CHECKING:
    from rewriter.report import Report

BUG = 70  # an exception that nobody foresaw
INTERRUPTED = 130  # Ctrl-C, as shells count it
PIPE_CLOSED = 141  # the reader of our output went away, as shells count it

# typer exports BadParameter but not its base, which lives in click or in typer's own copy of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

Progress = Callable[[str, int, int], None]


def run(app: typer.Typer, args: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors become one sentence on standard error."""
    _never_fail_on_letters()
    try:
        code = _invoke(app, args)
        sys.stdout.flush()
        return code
    except GraftError as error:
        return complain(str(error), error.exit_code)
    except UsageError as error:
        return complain(error.format_message(), BAD_INPUT)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # quiet at interpreter exit too
        return PIPE_CLOSED
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets a sentence
        return _own_up(error)


def _invoke(app: typer.Typer, args: Sequence[str]) -> int:
    """Parse and run without typer's own answers to interrupts and closed pipes."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("graft", list(args)) as context:
            code = command.invoke(context)
    except typer.Exit as stop:
        return int(stop.exit_code)
    return code if isinstance(code, int) else DONE


def _never_fail_on_letters() -> None:
    """Let a terminal that has no ᵀ show a question mark instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def complain(sentence: str, code: int) -> int:
    """Say one sentence on standard error and return the exit code."""
    sys.stderr.write(f"graft: {' '.join(sentence.split())}\n")
    return code


def _own_up(error: Exception) -> int:
    if os.environ.get("GRAFT_TRACEBACK", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return complain(f"this is a bug in graft ({what}); GRAFT_TRACEBACK=1 shows where", BUG)


def emit(report: Report, *, as_json: bool) -> None:
    """Print a report on standard output, as JSON and nothing else or as tables."""
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        from rewriter import render

        sys.stdout.write(render.text(report))


@contextmanager
def progress(delay: float = 1.0) -> Iterator[Progress | None]:
    """Give a callback (what, done, total) that draws a bar on a terminal after ``delay`` seconds."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("")
    start = time.monotonic()

    def update(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)
        if time.monotonic() - start >= delay:
            bar.start()

    try:
        yield update
    finally:
        bar.stop()
