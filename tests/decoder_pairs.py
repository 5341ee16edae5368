"""Decoders as optimum writes them, tiny and with random weights: one file without past, one with, their names alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exports import _cache
from families import FAMILIES

LAYERS, WIDTH, SOURCE = 2, 64, 11
PARTS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")


def model_of(name: str) -> Any:
    """Return the model of a family."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = next(f for f in FAMILIES if f.name == name)
    cls = getattr(transformers, family.model.replace("Model", "ForConditionalGeneration"))
    model = cls._from_config(cls.config_class(**family.config), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def exported_pair(name: str, folder: Path) -> tuple[Path, Path]:
    """Write `decoder_model.onnx` and `decoder_with_past_model.onnx` of a family, and return them."""
    import torch

    model, files = model_of(name), (folder / "decoder_model.onnx", folder / "decoder_with_past_model.onnx")
    masked = name != "whisper"
    ids, hidden = torch.randint(3, 90, (2, 5)), torch.randn(2, SOURCE, WIDTH)
    mask = [torch.ones(2, SOURCE, dtype=torch.int64)] if masked else []
    names = ["input_ids", "encoder_hidden_states", *(["encoder_attention_mask"] if masked else [])]
    kept = [f"{i}.{part}" for i in range(LAYERS) for part in PARTS]
    _export(_plain(model), (ids, hidden, *mask), names, [f"present.{x}" for x in kept], files[0])
    caches = _plain(model)(ids, hidden, *mask)[1:]
    names = ["input_ids", *names[2:], *(f"past_key_values.{x}" for x in kept)]
    own = [f"present.{x}" for x in kept if "decoder" in x]
    _export(_stepping(model, masked), (ids[:, :1], *mask, *caches), names, own, files[1])
    return files


def _plain(model: Any) -> Any:
    import torch

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, hidden: Any, mask: Any = None) -> Any:
            given = {} if mask is None else {"attention_mask": mask}
            out = self.model(decoder_input_ids=ids, encoder_outputs=(hidden,), use_cache=True, **given)
            both = out.past_key_values
            layers = zip(both.self_attention_cache.layers, both.cross_attention_cache.layers, strict=True)
            return out.logits, *(x for pair in layers for layer in pair for x in (layer.keys, layer.values))

    return Plain().eval()


def _stepping(model: Any, masked: bool) -> Any:
    import torch

    class Stepping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, *rest: Any) -> Any:
            given = {"attention_mask": rest[0]} if masked else {}
            past = rest[1:] if masked else rest
            order = [x for i in range(2) for layer in range(LAYERS) for x in past[4 * layer + 2 * i :][:2]]
            half = len(order) // 2
            cache = _cache({f"{'past' if i < half else 'source'}.{i}": x for i, x in enumerate(order)})
            encoded = past[2].new_zeros(past[2].shape[0], past[2].shape[2], WIDTH)  # its keys and values are there
            out = self.model(
                decoder_input_ids=ids, encoder_outputs=(encoded,), past_key_values=cache, use_cache=True, **given
            )
            return out.logits, *(x for layer in cache.self_attention_cache.layers for x in (layer.keys, layer.values))

    return Stepping().eval()


def _export(module: Any, values: tuple[Any, ...], names: Sequence[str], presents: Sequence[str], path: Path) -> None:
    import torch

    axes = {name: _axes(name) for name in (*names, *presents)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, values, str(path), input_names=list(names), output_names=["logits", *presents], opset_version=17,
            dynamo=False, dynamic_axes={**axes, "logits": {0: "batch_size", 1: "decoder_sequence_length"}},
        )  # fmt: skip


def _axes(name: str) -> dict[int, str]:
    if name in ("encoder_hidden_states", "encoder_attention_mask"):
        return {0: "batch_size", 1: "encoder_sequence_length"}
    if name == "input_ids":
        return {0: "batch_size", 1: "decoder_sequence_length"}
    own = "past_decoder_sequence_length" + " + 1" * name.startswith("present")
    return {0: "batch_size", 2: "encoder_sequence_length" if "encoder" in name else own}
