"""Commands of ``graft`` that write or read folders: several models that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rewriter import console
from rewriter.errors import DONE
from rewriter.options import (
    Decoder,
    Folder,
    Force,
    Inputs,
    Int8,
    Json,
    Layers,
    Model,
    NoVerify,
    Passages,
    Positions,
    QuestionLength,
    SplitFolder,
    StorePath,
    WithPast,
)


def split(
    model: Model,
    layers: Layers,
    question_length: QuestionLength,
    output: Folder,
    positions: Positions = "keep",
    json: Json = False,
) -> int:
    """Write question.onnx, passage.onnx and joint.onnx, which share one file of weights, and manifest.json.

    \b
    Examples:
      graft split model.onnx --layers 9 --question-length 27 -o split
    """
    import rewriter

    console.emit(rewriter.split(model, layers, question_length, output, positions=positions), as_json=json)
    return DONE


def cache(folder: SplitFolder, passages: Passages, store: StorePath, int8: Int8 = False, json: Json = False) -> int:
    """Encode the passages of a file with a split encoder, and keep what they give; a run can be resumed.

    \b
    Examples:
      graft cache split passages.jsonl --store passages.store
    """
    from rewriter import decomposed

    with console.progress() as bar:
        report = decomposed.cache(folder, passages, store, "int8" if int8 else "float16", bar)
    console.emit(report, as_json=json)
    return DONE


def expand(
    decoder: Decoder,
    output: Folder,
    with_past: WithPast = None,
    force: Force = False,
    inputs: Inputs = None,
    no_verify: NoVerify = False,
    json: Json = False,
) -> int:
    """Rewrite a decoder's files to keep hidden states instead of keys and values, and write a manifest.

    \b
    Examples:
      graft expand decoder_model.onnx decoder_with_past_model.onnx -o expanded
      graft expand decoder_model_merged.onnx -o expanded
    """
    import rewriter

    report = rewriter.expand(decoder, with_past, output, verify=not no_verify, inputs=inputs, force=force)
    console.emit(report, as_json=json)
    return DONE


COMMANDS: Mapping[Callable[..., int], str] = {
    split: "Split an encoder, to encode passages ahead.",
    cache: "Encode passages into a store.",
    expand: "Let a decoder keep hidden states.",
}
