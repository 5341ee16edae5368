"""Exports a row of families.py to ONNX, once, and makes inputs for it. Nothing here knows a family.

Beside every file lies a JSON file: its arguments, or the error of an exporter that cannot export the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from families import Case

Feeds = dict[str, np.ndarray]
Sizes = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Arg:
    """An input: axes that are words are free, and named so in the exported file."""

    name: str
    shape: Sequence[str | int]
    kind: str  # "ids" | "mask" | "places" | "float"


IDS = Arg(name="input_ids", shape=("batch", "length"), kind="ids")
MASK = Arg(name="attention_mask", shape=("batch", "length"), kind="mask")
TARGET = Arg(name="decoder_input_ids", shape=("batch", "target"), kind="ids")
STEP = Arg(name="decoder_input_ids", shape=("batch", "length"), kind="ids")
ENCODED = Arg(name="encoder_outputs", shape=("batch", "source", 64), kind="float")
PIXELS = Arg(name="pixel_values", shape=("images", 3, 32, 32), kind="float")
INPUTS: Mapping[str, Sequence[Arg]] = {
    "text": (IDS, MASK),
    "text+places": (IDS, MASK, Arg(name="position_ids", shape=("batch", "length"), kind="places")),
    "past": (IDS, Arg(name="attention_mask", shape=("batch", "total"), kind="mask")),  # and past keys and values
    "seq2seq": (IDS, MASK, TARGET),
    # a step of a decoder: what the encoder gave, and the keys and values of both attentions (``_past``)
    "decode": (STEP, ENCODED, Arg(name="attention_mask", shape=("batch", "source"), kind="mask")),
    "decode-speech": (STEP, ENCODED),
    "speech2text": (Arg(name="input_features", shape=("batch", 16, 40), kind="float"), TARGET),
    "wave": (Arg(name="input_values", shape=("batch", "samples"), kind="float"),),
    "image": (PIXELS,),
    "text+image": (IDS, MASK, PIXELS),
    "ids": (IDS,),
    "perceiver": (Arg(name="inputs", shape=("batch", "length", 48), kind="float"),),
    "wave2text": (Arg(name="input_values", shape=("batch", "samples"), kind="float"), TARGET),
}
# Sizes no two of which agree, and no multiples of each other, so that no axis is taken for another.
TRACED: Sizes = {
    "batch": 2,
    "length": 9,
    "past": 5,
    "total": 14,
    "target": 7,
    "source": 11,
    "images": 3,
    "samples": 401,
}

CACHED = ("past", "decode", "decode-speech")  # kinds of inputs that keys and values belong to


@dataclass(frozen=True, kw_only=True)
class Run:
    """Sizes to run a file at, and on which side the shorter sequences of a batch are padded."""

    batch: int
    length: int
    past: int
    pad: str | None = None

    def sizes(self) -> Sizes:
        b, s, p = self.batch, self.length, self.past
        return {
            "batch": b,
            "length": s,
            "past": p,
            "total": p + s,
            "target": s + 2,
            "source": s + 4,
            "images": b,
            "samples": 300 + 7 * s,
        }


RUNS = (
    Run(batch=1, length=1, past=1),
    Run(batch=1, length=23, past=3),
    Run(batch=3, length=13, past=11, pad="left"),
    Run(batch=2, length=16, past=8, pad="right"),
)


# Every size to run a file at: the last one is for exports that run at the traced sizes only.
SIZES: Sequence[tuple[Sizes, str | None]] = (*((run.sizes(), run.pad) for run in RUNS), (TRACED, None))


def feeds(args: Sequence[Arg], sizes: Sizes, pad: str | None = None) -> Feeds:
    """Make inputs of the given sizes; the first sequence of a batch is whole, the others are padded."""
    rng = np.random.default_rng(0)
    made = {}
    for arg in args:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in arg.shape)
        if arg.kind == "ids":
            made[arg.name] = rng.integers(3, 96, shape)
        elif arg.kind == "mask":
            made[arg.name] = _mask(rng, shape, pad)
        elif arg.kind == "places":
            made[arg.name] = np.tile(np.arange(shape[1]), (shape[0], 1))
        else:
            made[arg.name] = rng.standard_normal(shape, np.float32)
    return made


def _mask(rng: np.random.Generator, shape: tuple[int, ...], pad: str | None) -> np.ndarray:
    lengths = np.array([shape[1], *rng.integers(1, shape[1], shape[0] - 1)]) if pad else np.full(shape[0], shape[1])
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return mask[:, ::-1].copy() if pad == "left" else mask


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file and its arguments, or why there is none."""

    path: Path
    args: Sequence[Arg]
    error: str | None


def folder(otherwise: Path) -> Path:
    """Return where exports are kept: GRAFT_EXPORTS lets several runs share them."""
    path = Path(os.environ.get("GRAFT_EXPORTS") or otherwise)
    path.mkdir(parents=True, exist_ok=True)
    return path


def exported(case: Case, into: Path) -> Exported:
    """Export a case, unless the same case was exported by the same versions before."""
    path = into / f"{case.name}-{_key(case)}.onnx"
    note = path.with_suffix(".json")
    if not note.exists():
        error, args = None, INPUTS[case.family.inputs]
        try:
            args = _export(case, path)
        except Exception as failure:  # noqa: BLE001 - an exporter may fail in any way; the sweep goes on and says so
            error = _root(failure)
        note.write_text(json.dumps({"args": [asdict(arg) for arg in args], "error": error}), encoding="utf-8")
    noted = json.loads(note.read_text(encoding="utf-8"))
    return Exported(path=path, args=[Arg(**arg) for arg in noted["args"]], error=noted["error"])


def _key(case: Case) -> str:
    """Return a short hash of all that a file depends on; what is in it by the table's word does not count."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "onnx")]
    family = (case.family.model, case.family.config, case.family.inputs)
    parts = [family, asdict(case.exporter), case.implementation, versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def _root(failure: BaseException) -> str:
    """Return the start of the error that started it all."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:300]


def module_of(case: Case) -> tuple[Any, Sequence[Arg], tuple[Any, ...]]:
    """Return the module that is exported for a case, its arguments, and values for them."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, case.family.model)
    model = cls._from_config(cls.config_class(**case.family.config), attn_implementation=case.implementation).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)  # nothing stays zero, and no scale stays one
    args = [*INPUTS[case.family.inputs]]
    if case.family.inputs in CACHED:
        args += _past(model, args)
    wrapped = _wrapper([arg.name for arg in args], model)
    traced = feeds(args, TRACED)
    return wrapped, args, tuple(torch.from_numpy(traced[arg.name]) for arg in args)


def _export(case: Case, path: Path) -> Sequence[Arg]:
    import torch

    wrapped, args, values = module_of(case)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            values,
            str(path),
            input_names=[arg.name for arg in args],
            opset_version=case.exporter.opset,
            dynamo=case.exporter.name == "dynamo",
            external_data=False,
            **dynamic(case.exporter.name, args),
        )
    return args


def _past(model: Any, args: Sequence[Arg]) -> list[Arg]:
    """Ask the model itself how its keys and values look, those of its cross-attention too if it has one."""
    import torch

    given = {
        name: torch.from_numpy(x) for name, x in feeds([arg for arg in args if arg.kind != "mask"], TRACED).items()
    }
    with torch.no_grad():
        cache = model(**_keywords(given), use_cache=True).past_key_values
    both = {
        "past": getattr(cache, "self_attention_cache", cache),
        "source": getattr(cache, "cross_attention_cache", ()),
    }
    return [
        Arg(name=f"{length}.{i}.{what}", shape=("batch", x.shape[1], length, x.shape[3]), kind="float")
        for length, one in both.items()
        for i, (keys, values, *_) in enumerate(one)
        for what, x in (("key", keys), ("value", values))
    ]


def _keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a model: those of an encoder's results come as a tuple."""
    return {name: (x,) if name == ENCODED.name else x for name, x in given.items()}


def _cache(named: Mapping[str, Any]) -> Any:
    """Return the keys and values of a decoder, or of a decoder and its cross-attention, as the model takes them."""
    from transformers import DynamicCache, EncoderDecoderCache

    caches = []
    for length in ("past", "source"):
        values = [x for name, x in named.items() if name.startswith(f"{length}.")]
        caches += [DynamicCache(ddp_cache_data=list(zip(values[::2], values[1::2], strict=True)))] if values else []
    return EncoderDecoderCache(*caches) if len(caches) > 1 else caches[0]


def _wrapper(names: Sequence[str], model: Any) -> Any:
    import torch

    class Wrapped(torch.nn.Module):
        """Tensors in, tensors out: the first result and, with past, the new keys and values."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            named = dict(zip(names, values, strict=True))
            given = _keywords({name: x for name, x in named.items() if "." not in name})
            if len(given) == len(named):
                return self.model(**given)[0]
            cache = _cache(named)
            out = self.model(**given, past_key_values=cache, use_cache=True)
            own = getattr(cache, "self_attention_cache", cache)  # those of the cross-attention stay as they are
            return out.logits, *(x for layer in own.layers for x in (layer.keys, layer.values))

    return Wrapped().eval()


def dynamic(exporter: str, args: Sequence[Arg], longest: int = 4096) -> Mapping[str, object]:
    """Name the free axes, up to a length; each exporter has its own way to say so."""
    if exporter == "torchscript":
        axes = {arg.name: {i: d for i, d in enumerate(arg.shape) if isinstance(d, str)} for arg in args}
        return {"dynamic_axes": axes}
    import torch

    words = {d for arg in args for d in arg.shape if isinstance(d, str)}
    # the exporter works out by itself that total = past + length
    dims = {word: torch.export.Dim.AUTO if word == "total" else torch.export.Dim(word, max=longest) for word in words}
    shapes = tuple({i: dims[d] for i, d in enumerate(arg.shape) if isinstance(d, str)} for arg in args)
    return {"dynamic_shapes": {"values": shapes}}
