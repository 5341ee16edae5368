"""The command ``graft``: arguments in, the Python API in the middle, a report out.

Nothing heavy is imported before a command needs it, so that ``graft --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from rewriter import cli_folders, console
from rewriter.errors import BAD_INPUT, DONE, FAILED, GraftError
from rewriter.options import (
    A,
    B,
    Dim,
    Dims,
    DryRun,
    Expect,
    Inputs,
    Json,
    Measured,
    Model,
    NoVerify,
    OpName,
    Output,
    RuleName,
    Rules,
    Sites,
    Strict,
    Threads,
    Tolerance,
    one_each,
    several_each,
)

app = typer.Typer(
    name="graft", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def main() -> NoReturn:
    """Run ``graft`` on the command line's arguments and exit."""
    sys.exit(console.run(app, sys.argv[1:] or ["--help"]))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"graft {version('attn-graft')}")
        raise typer.Exit


@app.callback()
def graft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find every attention of an ONNX transformer and graft a better operation in its place.

    \b
    Exit codes:
      0   done
      1   fewer rewrites than --strict or --expect ask for
      2   usage, unreadable or unsupported input, unwritable output; a check of doctor failed
      3   verification failed, and no output file is left
      70  a bug in graft; GRAFT_TRACEBACK=1 shows where
      130 interrupted, 141 the reader of the output went away

    \b
    Examples:
      graft show model.onnx
      graft apply model.onnx -o fast.onnx
      graft bench model.onnx fast.onnx --dim sequence=128,512
    """


@app.command(short_help="List the attention sites of a model.")
def show(model: Model, inputs: Measured = None, json: Json = False) -> int:
    """List the attention sites of a model and, for each softmax not read, the reason and the node.

    \b
    Examples:
      graft show model.onnx
      graft show model.onnx --json | jq '.sites[].mask'
      graft show model.onnx --inputs batch.npz
    """
    import rewriter

    console.emit(rewriter.show(model, inputs), as_json=json)
    return DONE


@app.command(short_help="Tell why a softmax was read, or not.")
def why(
    model: Model,
    site: Annotated[
        str | None, typer.Argument(metavar="[SITE]", help="A site's id or an anchor's name; all without it.")
    ] = None,
    json: Json = False,
) -> int:
    """Tell the full story of one site or decline: every step of the reading, and how far each rule gets.

    \b
    Examples:
      graft why model.onnx
      graft why model.onnx attention.0
    """
    import rewriter

    console.emit(rewriter.why(model, site), as_json=json)
    return DONE


@app.command(short_help="Rewrite a model, check it, write it.")
def apply(
    model: Model,
    output: Output = None,
    rule: Rules = [],  # noqa: B006 - typer copies it
    sites: Sites = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    expect: Expect = None,
    no_verify: NoVerify = False,
    inputs: Inputs = None,
    dim: Dim = [],  # noqa: B006 - typer copies it
    json: Json = False,
) -> int:
    """Rewrite a model, check the result against the original, and write it.

    Without --rule only exact rules apply. A rule that changes values must be named.

    \b
    Examples:
      graft apply model.onnx -o exact.onnx
      graft apply model.onnx -o top64.onnx --rule topk-attention:k=64
      graft apply model.onnx --dry-run --strict --expect 12
    """
    import rewriter

    if output is None and not dry_run:
        raise GraftError("apply needs -o OUT, the file to write, or --dry-run")
    chosen: dict[str, Any] = {"rules": tuple(rule)} if rule else {}
    with console.progress() as bar:
        report = rewriter.apply(
            model, output=output, sites=sites, dry_run=dry_run, strict=strict, expect=expect,
            verify=not no_verify, inputs=inputs, dims=one_each(dim), progress=bar, **chosen,
        )  # fmt: skip
    console.emit(report, as_json=json)
    return DONE


for _command, _help in cli_folders.COMMANDS.items():
    app.command(short_help=_help)(_command)


@app.command(short_help="Compare the outputs of two models.")
def verify(
    a: A,
    b: B,
    inputs: Inputs = None,
    dim: Dim = [],  # noqa: B006 - typer copies it
    tolerance: Tolerance = 1e-5,
    json: Json = False,
) -> int:
    """Run two models on the same inputs and compare every output; exit 3 if one is beyond the tolerance.

    Made-up inputs include padded batches, length 1 and a fully masked sequence.

    \b
    Examples:
      graft verify model.onnx fast.onnx
      graft verify model.onnx fast.onnx --inputs batch.npz --tolerance 1e-4
    """
    import rewriter

    report = rewriter.verify(a, b, inputs=inputs, dims=one_each(dim), tolerance=tolerance)
    console.emit(report, as_json=json)
    if report.passed:
        return DONE
    worst = max(report.outputs, key=lambda row: row.rel_l2)
    return console.complain(
        f"output '{worst.name}' differs by {worst.rel_l2:.2g} (relative L2), more than {tolerance:g}", FAILED
    )


@app.command(short_help="Time two models side by side.")
def bench(
    a: A,
    b: B,
    dim: Dims = [],  # noqa: B006 - typer copies it
    threads: Threads = 1,
    json: Json = False,
) -> int:
    """Time two models in turn on the same inputs: medians, their ratio, and the peak memory of each.

    \b
    Examples:
      graft bench model.onnx fast.onnx
      graft bench model.onnx fast.onnx --dim batch=1 --dim sequence=128,512,2048 --threads 2
    """
    import rewriter

    console.emit(rewriter.bench(a, b, dims=several_each(dim), threads=threads), as_json=json)
    return DONE


@app.command(short_help="List the rules, or print one's page.")
def rules(name: RuleName = None) -> int:
    """List the rewrite rules and what each keeps, or print one rule's page.

    \b
    Examples:
      graft rules
      graft rules topk-attention
    """
    import rewriter
    from rewriter import pages

    sys.stdout.write(pages.rules(rewriter.rules(), name))
    return DONE


@app.command(short_help="List the operations, or print one's page.")
def ops(name: OpName = None) -> int:
    """List the operations that rewritten models call, or print one operation's page.

    \b
    Examples:
      graft ops
      graft ops TopKAttention
    """
    import rewriter
    from rewriter import pages

    sys.stdout.write(pages.ops(rewriter.ops(), name))
    return DONE


@app.command(short_help="Examine the installation.")
def doctor(json: Json = False) -> int:
    """Look at the installation: versions, kernels, and one small model really run; exit 2 if a check fails.

    \b
    Examples:
      graft doctor
      graft doctor --json
    """
    from rewriter.doctor import doctor as examine

    report = examine()
    console.emit(report, as_json=json)
    return DONE if all(check.passed for check in report.checks) else BAD_INPUT
