"""The arguments and options of the command line, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import typer

from rewriter.errors import GraftError


def _number(kind: type[int | float], least: int) -> Callable[[str], float]:
    """Return a parser of numbers that are at least ``least``."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least) - 1
        if not value >= least:
            name = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"'{text}' is not {name} of {least} or more.")
        return value

    return parse


Model = Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file.")]
A = Annotated[str, typer.Argument(metavar="A", help="The ONNX file to compare with.")]
B = Annotated[str, typer.Argument(metavar="B", help="The ONNX file that is compared.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Inputs = Annotated[
    str | None, typer.Option(metavar="F.npz", help="Arrays to run on, by input name; made up without it.")
]
Measured = Annotated[
    str | None,
    typer.Option(
        "--inputs", metavar="F.npz", help="Arrays to run on, by input name: measures how many neurons are at work."
    ),
]
Dim = Annotated[list[str], typer.Option(metavar="NAME=N", help="Length of a free dimension of the inputs; repeatable.")]
Output = Annotated[
    str | None, typer.Option("-o", "--output", metavar="OUT", help="The file to write; not MODEL itself.")
]
Rules = Annotated[
    list[str],
    typer.Option(metavar="NAME[:key=value,…]", help="A rule to apply; repeatable. Default: exact-attention."),
]
Sites = Annotated[
    str | None,
    typer.Option(metavar="SEL", help="Sites to rewrite, names or wildcards: attention.0,attention.1*."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail (1) if any site is declined.")]
Expect = Annotated[
    int | None,
    typer.Option(metavar="N", parser=_number(int, 0), help="Fail (1) if fewer than N sites are rewritten."),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not run original and result to compare them.")]
Tolerance = Annotated[
    float,
    typer.Option(metavar="T", parser=_number(float, 0), help="Largest relative L2 error of an output that passes."),
]
Threads = Annotated[int, typer.Option(metavar="N", parser=_number(int, 1), help="Threads of ONNX Runtime.")]
Dims = Annotated[
    list[str],
    typer.Option(metavar="NAME=N,N,…", help="Lengths of a free dimension, one case each; repeatable."),
]
Layers = Annotated[
    int, typer.Option(metavar="K", parser=_number(int, 1), help="How many of the lower layers see one segment only.")
]
QuestionLength = Annotated[
    int, typer.Option(metavar="N", parser=_number(int, 1), help="The length that questions are padded to.")
]
Folder = Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="The folder to write, new or empty.")]
Positions = Annotated[
    str,
    typer.Option(metavar="keep|restart", help="Passages stand behind the padded question, or start at 0."),
]
Decoder = Annotated[str, typer.Argument(metavar="DECODER.onnx", help="The file without past, or one that is both.")]
WithPast = Annotated[
    str | None, typer.Argument(metavar="[WITH_PAST.onnx]", help="The file that takes keys and values back.")
]
SplitFolder = Annotated[str, typer.Argument(metavar="DIR", help="The folder that graft split wrote.")]
Passages = Annotated[
    str,
    typer.Argument(
        metavar="PASSAGES.jsonl", help="One passage a line: a JSON list of token ids, or a text if DIR has a tokenizer."
    ),
]
StorePath = Annotated[str, typer.Option("--store", metavar="PATH", help="The store's folder, new or of this split.")]
Force = Annotated[bool, typer.Option(help="Also where hidden states are wider than keys and values.")]
Int8 = Annotated[bool, typer.Option("--int8", help="Keep hidden states in int8 instead of float16.")]
RuleName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One rule in full.")]
OpName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One operation in full.")]


def one_each(options: Sequence[str]) -> Mapping[str, int] | None:
    """Return NAME=N options as data; None for none."""
    lengths = several_each(options)
    for name, several in (lengths or {}).items():
        if len(several) != 1:
            raise GraftError(f"--dim {name} takes one length here, not {len(several)}")
    return None if lengths is None else {name: several[0] for name, several in lengths.items()}


def several_each(options: Sequence[str]) -> Mapping[str, Sequence[int]] | None:
    """Return NAME=N,N,… options as data; None for none."""
    lengths: dict[str, list[int]] = {}
    for option in options:
        name, _, numbers = option.partition("=")
        several = [n.strip() for n in numbers.split(",")]
        if not name or not all(n.isdecimal() and int(n) for n in several):
            raise GraftError(f"--dim {option} is not of the form NAME=N with a whole number N of 1 or more")
        if name in lengths:
            raise GraftError(f"--dim {name} is given twice")
        lengths[name] = [int(n) for n in several]
    return lengths or None
