"""Decoders expanded: the same tokens from hidden states as from keys and values, and what is kept of them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="decoders are exported by torch")
pytest.importorskip("transformers", reason="decoders are made by transformers")

from decoder_pairs import LAYERS, WIDTH, exported_pair

import rewriter
from rewriter.decoders import states
from rewriter.errors import GraftError
from rewriter.report import ExpandReport
from rewriter.stepping import Decoder

FAMILIES = ("t5", "bart", "whisper")
Made = tuple[tuple[Path, Path], ExpandReport]
_SCRIPT = importlib.util.spec_from_file_location(
    "generate", Path(__file__).parent.parent / "examples" / "generate.py"
)  # the loop that users read is the loop that is tested
assert _SCRIPT is not None
assert _SCRIPT.loader is not None
generate: Any = importlib.util.module_from_spec(_SCRIPT)
_SCRIPT.loader.exec_module(generate)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    pair = exported_pair(request.param, folder)
    (folder / "config.json").write_text('{"num_beams": 4}', encoding="utf-8")
    return pair, rewriter.expand(*pair, folder / "expanded")


def decoders(made: Made, ours: bool = True) -> tuple[Decoder, Decoder]:
    """Return the original and the result."""
    pair, report = made
    kept = states(report.output)
    new = [Path(report.output) / file.name for file in pair]
    return Decoder(pair, kept.old, ours=False), Decoder(new, kept.new, ours=ours)


def test_signatures(made: Made) -> None:
    pair, report = made
    assert report.attentions == 2 * LAYERS
    assert report.error is not None
    assert report.error < 1e-5
    hidden = {f"{i}.decoder.hidden" for i in range(LAYERS)}
    for part in (report.new.first, report.new.later):
        assert {name for name in part["outputs"] if "present" in name} == {f"present.{x}" for x in hidden}
        assert "encoder_hidden_states" in part["inputs"]
    assert {name for name in report.new.later["inputs"] if "past" in name} == {f"past_key_values.{x}" for x in hidden}
    assert "past_key_values.0.encoder.key" in report.old.later["inputs"]
    for file in pair:
        model = onnx.load(Path(report.output) / file.name)
        assert [x.name for x in model.graph.input] == list(
            (report.new.first if "with" not in file.name else report.new.later)["inputs"]
        )
        assert sum(node.op_type == "ExpandedAttention" for node in model.graph.node) == 2 * LAYERS
    manifest = json.loads((Path(report.output) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["kept"]["new"][0] == {
        "first": "present.0.decoder.hidden",
        "past": "past_key_values.0.decoder.hidden",
        "later": "present.0.decoder.hidden",
    }
    assert (Path(report.output) / "config.json").read_text(encoding="utf-8") == '{"num_beams": 4}'


@pytest.mark.parametrize("ours", [True, False], ids=["kernels", "function bodies"])
@pytest.mark.parametrize("beams", [1, 4, 8])
def test_generates_the_same_tokens(made: Made, beams: int, ours: bool) -> None:
    old, new = decoders(made, ours)
    feeds = generate.beginning(old, 3, None)
    if "encoder_attention_mask" in feeds:
        feeds["encoder_attention_mask"][1, 17:] = 0
    wanted = generate.generate(old, feeds, 40, beams, again=False)
    np.testing.assert_array_equal(generate.generate(new, feeds, 40, beams, again=False), wanted)
    assert len(np.unique(wanted)) >= 40


def test_what_is_kept(made: Made) -> None:
    """Source side: keys and values of every layer and beam, against hidden states once; target side: half."""
    old, new = decoders(made)
    feeds, beams = generate.beginning(old, 3, None), 4
    for decoder in (old, new):
        generate.generate(decoder, feeds, 9, beams)
    source = sum(x.nbytes for name, x in old.state.items() if "encoder" in name)
    assert source == 2 * LAYERS * beams * feeds["encoder_hidden_states"].nbytes
    assert new.bytes == LAYERS * 2 * beams * 9 * WIDTH * 4
    assert old.bytes - source == 2 * new.bytes


def test_files_in_the_wrong_order(made: Made, tmp_path: Path) -> None:
    (first, later), _ = made
    with pytest.raises(GraftError, match=r"attention\.0 cannot be expanded: its keys and values are joined"):
        rewriter.expand(later, first, tmp_path / "expanded")
    assert not (tmp_path / "expanded").exists()


def test_files_that_do_not_belong_together(made: Made, tmp_path: Path) -> None:
    (first, _), _ = made
    with pytest.raises(GraftError, match="joins its keys and values with none from before"):
        rewriter.expand(first, first, tmp_path / "expanded")


def test_a_folder_that_is_not_empty(made: Made) -> None:
    pair, report = made
    with pytest.raises(GraftError, match="is a folder that is not empty"):
        rewriter.expand(*pair, report.output)


def test_a_manifest_that_is_none(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[1].output, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GraftError, match="is no manifest of an expanded decoder"):
        states(tmp_path / "copy")
