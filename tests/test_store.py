"""A store of many passages: killed while it is filled, read while it is filled, and memory that does not grow with it.

The sweep fills it with 10,000 passages of 64 tokens.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from families import TEXT
from sweep import SLOW
from test_encoder import DYNAMO, export

import rewriter
from rewriter import decomposed
from rewriter.decomposed import Pipeline

pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")
pytest.importorskip("lmdb")

COUNT = 10_000 if SLOW else 2_000
TOKENS, WIDTH = 64, 256
CONFIG = {
    **TEXT,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
CHILD = """
import sys
from pathlib import Path
from rewriter import decomposed
own = []

def note(*told):  # memory of its own: pages of the store go when something else needs the room
    lines = Path("/proc/self/status").read_text().splitlines()
    own.append(int(next(x.split()[1] for x in lines if x.startswith("RssAnon:"))))

decomposed.cache(*sys.argv[1:], progress=note)
print(max(own))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("store")
    done = export("bert", DYNAMO, where, config=CONFIG)
    rewriter.split(done.path, 1, 6, where / "split")
    return where / "split"


@pytest.fixture(scope="module")
def told() -> Sequence[np.ndarray]:
    return list(np.random.default_rng(0).integers(1, 96, (COUNT, TOKENS)))


def written(file: Path, told: Sequence[np.ndarray]) -> Path:
    file.write_text("".join(json.dumps({"ids": x.tolist()}) + "\n" for x in told))
    return file


def started(folder: Path, file: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(file), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check(reader: Pipeline, truth: Pipeline, keys: Sequence[bytes]) -> int:
    """Check the entries that are there against the truth, and return how many they are."""
    there = [(x, y) for x, y in zip(reader.store.get(keys), truth.store.get(keys), strict=True) if x is not None]
    for x, y in there:
        assert y is not None
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3)  # one fp16 rounding: batches may have differed
    return len(there)


def test_killed_runs_are_resumed_and_readers_see_whole_entries(
    folder: Path, told: Sequence[np.ndarray], tmp_path: Path
) -> None:
    file, rng = written(tmp_path / "passages.jsonl", told), np.random.default_rng(1)
    truth, reader = Pipeline(folder, tmp_path / "truth"), Pipeline(folder, tmp_path / "store")
    truth.add(told)
    keys = [decomposed._key(x) for x in told]
    for kill in (1, 2, 3):
        before, deadline = len(reader.store), time.monotonic() + 120
        child = started(folder, file, tmp_path / "store")
        while len(reader.store) < COUNT * kill // 10 and time.monotonic() < deadline:
            check(reader, truth, [keys[n] for n in rng.integers(0, COUNT, 100)])
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        left = len(reader.store)
        assert max(before, COUNT * kill // 10) <= left < COUNT
        assert check(reader, truth, keys) == left
    reader.store.close()
    report = decomposed.cache(folder, file, tmp_path / "store")
    assert (report.passages, report.new, report.kept) == (COUNT, COUNT - left, COUNT)
    assert check(Pipeline(folder, tmp_path / "store"), truth, keys) == COUNT


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
def test_memory_does_not_grow_with_the_passages(folder: Path, told: Sequence[np.ndarray], tmp_path: Path) -> None:
    peaks = []
    for count in (COUNT // 4, COUNT):
        store = tmp_path / f"store-{count}"
        child = started(folder, written(tmp_path / f"{count}.jsonl", told[:count]), store)
        peaks.append(int(child.communicate()[0]) / 1024)
        assert child.returncode == 0
    held = (COUNT - COUNT // 4) * TOKENS * WIDTH * 2 / 2**20  # MiB of states that the longer run keeps besides
    assert peaks[1] - peaks[0] < held / 4, peaks
