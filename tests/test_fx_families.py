"""Families exported by torch: the attention sites are those of the ONNX export, the numbers those of the model."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch graphs need the extra `torch`")
pytest.importorskip("transformers", reason="families are made by transformers")

from exports import dynamic, exported, feeds, folder, module_of  # noqa: E402
from families import EXPORTERS, FAMILIES, Case  # noqa: E402
from test_fx import attention  # noqa: E402

import rewriter  # noqa: E402

NAMES = ("bert", "gpt2", "llama-past", "t5", "vit", "gemma2")
DYNAMO = next(exporter for exporter in EXPORTERS if exporter.name == "dynamo")
CASES = [
    Case(family=family, exporter=DYNAMO, implementation=implementation)
    for family in FAMILIES
    if family.name in NAMES
    for implementation in family.implementations
]
LONGEST = 64  # positions of the learned embeddings
SIZES = {"batch": 3, "length": 13, "past": 4, "total": 17, "target": 6, "images": 2, "samples": 401}


# torch.export gives every cache a length of its own, so that only the first layer's causal mask is proved there
OWN_LENGTHS = pytest.mark.xfail(strict=True, reason="caches of one length have different symbols in the program")
ROWS = [
    pytest.param(
        case,
        id=f"{case.family.name}-{case.implementation}",
        marks=OWN_LENGTHS if case.name.endswith("eager") and "past" in case.name else (),
    )
    for case in CASES
]


@pytest.mark.parametrize("case", ROWS)
def test_family(case: Case, tmp_path: Path) -> None:
    file = exported(case, folder(tmp_path))
    assert file.error is None
    module, args, values = module_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, values, **dynamic("dynamo", args, LONGEST))
    ours = attention(program)
    assert len(ours) == case.family.attention, [row.reason for row in rewriter.show(program).declines]
    assert list(map(unnamed, ours)) == list(map(unnamed, attention(file.path)))
    report = rewriter.apply(program, inputs=values)
    assert report.rewritten == case.family.attention, report.declined
    given = feeds(args, SIZES, "right")
    with torch.no_grad():
        tensors = [torch.from_numpy(x) for x in given.values()]
        compare(report.result.module()(*tensors), module(*tensors))


def unnamed(site: Any) -> Any:
    """Return a site whose mask does not say what a free length is called: torch does not keep the names."""
    return dataclasses.replace(site, mask=re.sub(r"offset \w+", "offset", str(site.mask)))


def compare(ours: Any, theirs: Any) -> None:
    for x, y in zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(theirs), strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()
