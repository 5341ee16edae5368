"""Families exported by torch: the sites are those of the ONNX export, the numbers those of the model.

The quick run takes some families, the sweep (`make sweep`) all of them in every implementation. What torch cannot
export is skipped with the error, and counted; what only its ONNX exporter cannot write is held against the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")
pytest.importorskip("transformers", reason="families are made by transformers")

from exports import TRACED, Arg, exported, feeds, folder, module_of  # noqa: E402
from families import EXPORTERS, FAMILIES, Case  # noqa: E402
from same_sites import check_sites, leaves, sites  # noqa: E402
from sweep import SLOW  # noqa: E402
from test_families import check_found  # noqa: E402

import rewriter  # noqa: E402
from rewriter.host import open_host  # noqa: E402
from rewriter.reading import Reading  # noqa: E402

DYNAMO = next(exporter for exporter in EXPORTERS if exporter.name == "dynamo" and exporter.opset == 20)
# In both implementations, where there are two; and in the first.
BOTH = ("bert", "llama-past", "t5")
FIRST = ("deberta-v2", "bloom", "gpt2", "bart", "vit", "gemma2", "wav2vec2", "swin")
ALL = [Case(family=f, exporter=DYNAMO, implementation=i) for f in FAMILIES for i in f.implementations]
QUICK = [
    case
    for case in ALL
    if case.family.name in BOTH or (case.family.name in FIRST and case.implementation == case.family.implementations[0])
]
SIZES = {"batch": 3, "length": 13, "past": 4, "total": 17, "target": 6, "source": 11, "images": 2, "samples": 401}
# Read in both, and right in both, but said in another way: in the ONNX file batch and heads of WavLM are one axis of
# unknown length, so one head; and the queries of SpeechT5's encoder, which two products share, are scaled before.
OTHERWISE = ("wavlm", "speecht5")
Record = Callable[[str, object], None]


@pytest.mark.parametrize("case", ALL if SLOW else QUICK[::2], ids=lambda c: f"{c.family.name}-{c.implementation}")
def test_family(case: Case, tmp_path: Path, record_property: Record) -> None:
    module, args, values = module_of(case)
    row = {"family": case.family.name, "exporter": f"torch.export {case.implementation}"}
    program = program_of(module, args, values)
    if isinstance(program, str):
        record_property("torch family", row | {"skipped": program})
        pytest.skip(f"torch.export itself fails: {program}")
    ours = open_host(program).read()
    row |= {"attention": case.family.attention, "found": found(ours, "attention"),
            "feed_forward": case.family.feed_forward, "feed_forward_found": found(ours, "feed-forward")}  # fmt: skip
    record_property("torch family", row | {"error": None})
    check_found(rewriter.show(program), case)
    file = exported(case, folder(tmp_path))
    theirs = None if file.error is not None else open_host(file.path).read()
    if theirs is not None and case.family.name not in OTHERWISE:
        check_sites(ours, theirs)
    elif theirs is not None:
        assert [site.kind for site in sites(ours)] == [site.kind for site in sites(theirs)]
    report = rewriter.apply(program, inputs=values, verify=not SLOW)
    assert report.rewritten == row["found"], report.declined
    error = check_numbers(program, report.result, module, args)
    record_property("torch family", row | {"error": error})


def program_of(module: Any, args: Sequence[Arg], values: Sequence[Any]) -> Any:
    """Return the exported program, or the first line of the error."""
    auto = torch.export.Dim.AUTO
    free = tuple({i: auto for i, d in enumerate(arg.shape) if isinstance(d, str)} for arg in args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, tuple(values), dynamic_shapes={"values": free})
        except Exception as failure:  # noqa: BLE001 - torch.export may fail in any way; the sweep goes on and says so
            return f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"


def found(reading: Reading, kind: str) -> int:
    return sum(site.kind == kind for site in reading.sites.values())


def check_numbers(program: Any, result: Any, module: Any, args: Sequence[Arg]) -> float:
    """Return the largest relative error of an output, at other lengths than those of the export where they are free."""
    for sizes in (SIZES, TRACED):
        given = [torch.from_numpy(x) for x in feeds(args, sizes, "right").values()]
        with torch.no_grad():
            try:
                program.module()(*given)
            except (AssertionError, RuntimeError):
                continue
            pairs = zip(leaves(result.module()(*given)), leaves(module(*given)), strict=True)
            worst = max(float((x - y).norm() / y.norm()) for x, y in pairs)
        assert worst <= 1e-5
        return worst
    raise AssertionError("the program does not run")
