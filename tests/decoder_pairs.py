"""Decoders as optimum writes them, two files or one that is both; tiny ones have random weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from exports import _cache
from families import FAMILIES
from onnx import TensorProto, helper, numpy_helper

LAYERS, WIDTH, SOURCE = 2, 64, 11
PARTS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")


def model_of(name: str, **other: Any) -> Any:
    """Return the model of a family; ``other``: what its configuration is to say instead."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = next(f for f in FAMILIES if f.name == name)
    cls = getattr(transformers, family.model.replace("Model", "ForConditionalGeneration"))
    model = cls._from_config(cls.config_class(**{**family.config, **other}), attn_implementation="sdpa").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def exported_pair(model: Any, folder: Path, exporter: str = "torchscript") -> tuple[Path, Path]:
    """Write `decoder_model.onnx` and `decoder_with_past_model.onnx` of an encoder-decoder, and return them."""
    import torch

    export = {"torchscript": _export, "dynamo": _export_dynamo}[exporter]
    files = (folder / "decoder_model.onnx", folder / "decoder_with_past_model.onnx")
    masked, width = model.config.model_type != "whisper", model.config.d_model
    ids, hidden = torch.randint(3, 90, (2, 5)), torch.randn(2, SOURCE, width)
    mask = [torch.ones(2, SOURCE, dtype=torch.int64)] if masked else []
    names = ["input_ids", "encoder_hidden_states", *(["encoder_attention_mask"] if masked else [])]
    caches = _plain(model)(ids, hidden, *mask)[1:]
    kept = [f"{i}.{part}" for i in range(len(caches) // len(PARTS)) for part in PARTS]
    export(_plain(model), (ids, hidden, *mask), names, [f"present.{x}" for x in kept], files[0])
    names = ["input_ids", *names[2:], *(f"past_key_values.{x}" for x in kept)]
    own = [f"present.{x}" for x in kept if "decoder" in x]
    export(_stepping(model, masked), (ids[:, :1], *mask, *caches), names, own, files[1])
    return files


def merged(pair: Sequence[Path], path: Path) -> Path:
    """Write one file that is both, as optimum merges them: an `If` told by `use_cache_branch`, and return it."""
    first, later = (onnx.load(file) for file in pair)
    given = {value.name for value in later.graph.output}
    for value in (value for value in first.graph.output if value.name not in given):
        later.graph.node.append(helper.make_node("Constant", [], [value.name], value=_empty(value)))
    del later.graph.output[:]
    later.graph.output.extend(first.graph.output)
    weights: dict[bytes, TensorProto] = {}
    branches = [_branch(model.graph, name, weights) for model, name in ((later, "with_past"), (first, "no_past"))]
    told = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    names = [value.name for value in first.graph.output]
    choice = helper.make_node("If", [told.name], names, then_branch=branches[0], else_branch=branches[1])
    inputs = {value.name: value for model in (first, later) for value in model.graph.input}
    graph = helper.make_graph([choice], "merged", [*inputs.values(), told], first.graph.output, weights.values())
    onnx.save(helper.make_model(graph, opset_imports=first.opset_import, ir_version=9), path)
    return path


def _empty(value: onnx.ValueInfoProto) -> TensorProto:
    """Return a constant of no element: the first free length is 0, the others are 1."""
    dims = value.type.tensor_type.shape.dim
    free = [i for i, dim in enumerate(dims) if dim.dim_param]
    lengths = [int(i != free[0]) if i in free else dim.dim_value for i, dim in enumerate(dims)]
    return helper.make_tensor("empty", value.type.tensor_type.elem_type, lengths, [])


def _branch(graph: onnx.GraphProto, title: str, weights: dict[bytes, TensorProto]) -> onnx.GraphProto:
    """Return a graph as a branch; weights but small numbers go outside, each once, under a new name."""
    own, renamed = [], {}
    for tensor in graph.initializer:
        if not tensor.dims or (len(tensor.dims) == 1 and tensor.data_type in (TensorProto.INT32, TensorProto.INT64)):
            own.append(tensor)
            continue
        key = bytes(str((tensor.data_type, *tensor.dims)), "ascii") + numpy_helper.to_array(tensor).tobytes()
        if key not in weights:
            name = f"{tensor.name}_merged_{len(weights)}"
            weights[key] = numpy_helper.from_array(numpy_helper.to_array(tensor), name)
        renamed[tensor.name] = weights[key].name
    for node in graph.node:
        node.input[:] = [renamed.get(x, x) for x in node.input]
    return helper.make_graph(graph.node, title, [], graph.output, own)


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
            layers = range(0, len(past), len(PARTS))
            order = [x for i in range(2) for first in layers for x in past[first + 2 * i :][:2]]
            half = len(order) // 2
            cache = _cache({f"{'past' if i < half else 'source'}.{i}": x for i, x in enumerate(order)})
            encoded = past[2].new_zeros(
                past[2].shape[0], past[2].shape[2], model.config.d_model
            )  # its keys and values are there
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


def _export_dynamo(
    module: Any, values: tuple[Any, ...], names: Sequence[str], presents: Sequence[str], path: Path
) -> None:
    import torch

    past = any("past" in name for name in names)
    free = {
        word: torch.export.Dim(word.replace(" + 1", ""), max=512) for name in names for word in _axes(name).values()
    }
    axes = [{i: free[word] for i, word in _axes(name).items()} for name in names]
    if past:
        del axes[0][1]  # one token at a time
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, values, str(path), input_names=list(names), output_names=["logits", *presents], opset_version=18,
            dynamo=True, dynamic_shapes=(axes[0], tuple(axes[1:])) if past else tuple(axes), external_data=False,
            verbose=False,
        )  # fmt: skip


def _axes(name: str) -> dict[int, str]:
    if name in ("encoder_hidden_states", "encoder_attention_mask"):
        return {0: "batch_size", 1: "encoder_sequence_length"}
    if name == "input_ids":
        return {0: "batch_size", 1: "decoder_sequence_length"}
    own = "past_decoder_sequence_length" + " + 1" * name.startswith("present")
    return {0: "batch_size", 2: "encoder_sequence_length" if "encoder" in name else own}
