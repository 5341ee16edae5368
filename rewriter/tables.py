"""Text for people: tables with right-aligned numbers, laid out for a terminal or for a pipe.

On a terminal tables fit its width and fold; anywhere else they are plain and as wide as they need, so that
``grep`` finds a whole row on one line. Setting ``COLUMNS`` chooses a width.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

UNBOUNDED = 10_000  # columns: wider than any row, so nothing folds


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where text goes: its width in columns, and whether escape codes are welcome."""

    width: int
    color: bool

    @classmethod
    def of(cls, stream: TextIO) -> Page:
        """Return the page of a terminal, or the endless plain page of a pipe or file."""
        if stream.isatty():
            return cls(width=shutil.get_terminal_size().columns, color="NO_COLOR" not in os.environ)
        columns = os.environ.get("COLUMNS", "")
        return cls(width=int(columns) if columns.isdecimal() and int(columns) else UNBOUNDED, color=False)


def lay_out(parts: Iterable[RenderableType], page: Page | None = None) -> str:
    """Return parts (strings and tables) as text, without blanks at the ends of lines."""
    from rich.console import Console

    page = page or Page.of(sys.stdout)
    console = Console(
        file=io.StringIO(), width=page.width, force_terminal=page.color, no_color=not page.color, emoji=False,
        markup=False, highlight=False, soft_wrap=False,
    )  # fmt: skip
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table; a head that starts with ``>`` makes a right-aligned column of numbers."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for head in heads:
        number = head.startswith(">")
        side: Literal["right", "left"] = "right" if number else "left"
        result.add_column(head.lstrip(">"), justify=side, no_wrap=number, overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def indented(line: str, columns: int) -> RenderableType:
    """Return a line that stays indented where it folds."""
    from rich.padding import Padding

    return Padding(line, (0, 0, 0, columns), expand=False)


def counted(n: int, one: str) -> str:
    """Return a number with its noun, in the plural where there is not one."""
    return f"{n} {one if n == 1 else one + 's'}"
