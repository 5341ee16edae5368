"""Decoders expanded: the same tokens from hidden states as from keys and values, and what is kept of them."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="decoders are exported by torch")
pytest.importorskip("transformers", reason="decoders are made by transformers")

from compare import grafted
from decoder_pairs import LAYERS, WIDTH, exported_pair, merged, model_of

import rewriter
from rewriter.decoders import states
from rewriter.errors import GraftError
from rewriter.report import ExpandReport
from rewriter.stepping import Decoder

FAMILIES = ("t5", "bart", "whisper")
CASES = (*FAMILIES, *(f"{name} merged" for name in FAMILIES), "bart dynamo")
Made = tuple[Sequence[Path], ExpandReport]
Pairs = Callable[..., tuple[Path, Path]]
_SCRIPT = importlib.util.spec_from_file_location(
    "generate", Path(__file__).parent.parent / "examples" / "generate.py"
)  # the loop that users read is the loop that is tested
assert _SCRIPT is not None
assert _SCRIPT.loader is not None
generate: Any = importlib.util.module_from_spec(_SCRIPT)
_SCRIPT.loader.exec_module(generate)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Export a family once, and write the file that is both beside the two."""

    @functools.cache
    def pair(name: str, exporter: str = "torchscript") -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text('{"num_beams": 4}', encoding="utf-8")
        return exported_pair(model_of(name), folder, exporter)

    return pair


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, pairs: Pairs) -> Made:
    name, _, form = request.param.partition(" ")
    pair = pairs(name, "dynamo" if form == "dynamo" else "torchscript")
    folder = pair[0].parent
    if form != "merged":
        return pair, rewriter.expand(*pair, folder / "expanded")
    both = merged(pair, folder / "decoder_model_merged.onnx")
    return [both], rewriter.expand(both, None, folder / "expanded_merged")


def decoders(made: Made, ours: bool = True) -> tuple[Decoder, Decoder]:
    """Return the original and the result."""
    pair, report = made
    kept = states(report.output)
    new = [Path(report.output) / file.name for file in pair]
    return Decoder(pair, kept.old, kept.switch, ours=False), Decoder(new, kept.new, kept.switch, ours=ours)


def test_signatures(made: Made) -> None:
    pair, report = made
    assert report.attentions == 2 * LAYERS
    assert report.error is not None
    assert report.error < 1e-5
    hidden = {f"{i}.decoder.hidden" for i in range(LAYERS)}
    for file in pair:
        new, model = report.new[file.name], onnx.load(Path(report.output) / file.name)
        assert {name for name in new["outputs"] if "present" in name} == {f"present.{x}" for x in hidden}
        assert "encoder_hidden_states" in new["inputs"]
        assert [x.name for x in model.graph.input] == list(new["inputs"])
        assert grafted(Path(report.output) / file.name) == 2 * LAYERS * (1 if len(pair) == 2 else 2)
        onnx.checker.check_model(model)
    last = pair[-1].name
    assert {x for x in report.new[last]["inputs"] if "past" in x} == {f"past_key_values.{x}" for x in hidden}
    assert "past_key_values.0.encoder.key" in report.old[last]["inputs"]
    assert ("use_cache_branch" in report.new[last]["inputs"]) == (len(pair) == 1)
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


def test_a_merged_file_holds_each_weight_once(pairs: Pairs, tmp_path: Path) -> None:
    """Weights of both branches lie outside; those in new layouts too."""
    file = merged(pairs("bart"), tmp_path / "decoder_model_merged.onnx")
    report = rewriter.expand(file, None, tmp_path / "expanded")
    graph = onnx.load(tmp_path / "expanded" / file.name).graph
    arrays = [onnx.numpy_helper.to_array(x).tobytes() for x in graph.initializer]
    assert len(set(arrays)) == len(arrays)
    assert report.files[file.name] < 1.1 * file.stat().st_size


def test_one_file_that_is_not_both(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="does not choose between a decoder without past and one with"):
        rewriter.expand(pairs("t5")[0], None, tmp_path / "expanded")


def test_two_files_of_one_name(pairs: Pairs, tmp_path: Path) -> None:
    first, later = pairs("t5")
    shutil.copy(later, tmp_path / first.name)
    with pytest.raises(GraftError, match=r"both files are called decoder_model\.onnx"):
        rewriter.expand(first, tmp_path / first.name, tmp_path / "expanded")


def test_what_would_grow_is_declined_unless_forced(tmp_path: Path) -> None:
    """Four heads of four channels: keys and values are 32 numbers for each token, hidden states 64."""
    pair = exported_pair(model_of("t5", d_kv=4), tmp_path)
    with pytest.raises(
        GraftError, match=r"values are 32 numbers for each token and hidden states are 64: what is kept"
    ):
        rewriter.expand(*pair, tmp_path / "expanded")
    report = rewriter.expand(*pair, tmp_path / "expanded", force=True)
    assert report.error is not None
    assert report.error < 1e-5


def test_it_says_where_it_loses(made: Made) -> None:
    """Two layers keep 2·64 numbers each, of 4 bytes; sums are over 64 numbers instead of 16."""
    caution = made[1].caution
    assert caution is not None
    assert "takes 4 times the arithmetic" in caution
    assert "keys and values of 1,024 bytes for each token and beam of all layers" in caution
    assert "32 MiB hold those of 32,768 source tokens times beams times sentences" in caution


def test_files_in_the_wrong_order(pairs: Pairs, tmp_path: Path) -> None:
    first, later = pairs("t5")
    with pytest.raises(GraftError, match=r"attention\.0 cannot be expanded: its keys and values are joined"):
        rewriter.expand(later, first, tmp_path / "expanded")
    assert not (tmp_path / "expanded").exists()


def test_files_that_do_not_belong_together(pairs: Pairs, tmp_path: Path) -> None:
    first, _ = pairs("t5")
    shutil.copy(first, tmp_path / "copy.onnx")
    with pytest.raises(GraftError, match="joins its keys and values with none from before"):
        rewriter.expand(first, tmp_path / "copy.onnx", tmp_path / "expanded")


def test_a_folder_that_is_not_empty(made: Made) -> None:
    pair, report = made
    with pytest.raises(GraftError, match="is a folder that is not empty"):
        rewriter.expand(pair[0], pair[-1], report.output)


def test_a_manifest_that_is_none(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[1].output, tmp_path / "copy")
    (tmp_path / "copy" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GraftError, match="is no manifest of an expanded decoder"):
        states(tmp_path / "copy")
