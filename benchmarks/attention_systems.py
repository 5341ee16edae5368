"""The systems that `attention.py` compares: each makes a function that computes one problem once.

Building, and conversions to bf16 that a model in bf16 would not have, are not measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from attention_graphs import Feeds, Problem, attention23, graft, group_query, group_query_step, multi_head, unfused

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime_ops import kernels

# Threads that spin on after a run slow the system that comes next. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
Array = np.ndarray[Any, Any]
Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that computes attention.

    Attributes:
        start: makes the function, given a problem, threads, and whether ONNX Runtime keeps memory between runs.
        number: the type that it computes in; what does not compute in fp32 is not compared by its error.
        heads_first: whether inputs and outputs are [1 h t d], not [1 t h*d].
        top_k: whether it attends to the problem's top_k keys.
        needs: the package that it is, or "".
    """

    start: Callable[[Problem, int, bool], Run]
    number: str = "fp32"
    heads_first: bool = False
    top_k: bool = False
    needs: str = ""


def session(model: onnx.ModelProto, threads: int, arena: bool = True) -> onnxruntime.InferenceSession:
    """Open a model with graft's kernels at hand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.force_spinning_stop", "1")
    kernels.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def in_session(build: Callable[[Problem], onnx.ModelProto], p: Problem, threads: int, arena: bool) -> Run:
    """Run a graph whose inputs are those of the problem."""
    opened = session(build(p), threads, arena)
    feeds = p.feeds(heads_first=len(opened.get_inputs()[0].shape) == 4)
    return lambda: opened.run(["out"], feeds)[0]


def in_place(p: Problem, threads: int, arena: bool) -> Run:
    """Run GroupQueryAttention's decoding step on caches that it writes in place, as its users bind them."""
    opened = session(group_query_step(p), threads, arena)
    feeds: Feeds = p.feeds()
    binding = opened.io_binding()
    binding.bind_cpu_input("q", feeds["q"])
    for name in "kv":
        binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name][:, -1:]))
        cache = onnxruntime.OrtValue.ortvalue_from_numpy(p.feeds(heads_first=True)[name])
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    binding.bind_output("out")

    def run() -> Any:
        opened.run_with_iobinding(binding)
        return binding.get_outputs()[-1]

    return run


def in_torch(half: bool, p: Problem, threads: int, arena: bool) -> Run:
    """Call scaled_dot_product_attention."""
    import torch

    del arena
    torch.set_num_threads(threads)
    kind = torch.bfloat16 if half else torch.float32
    q, k, v = (torch.from_numpy(x).to(kind).view(1, -1, p.h, p.d).transpose(1, 2) for x in p.feeds().values())
    mask = (torch.arange(p.t) < p.live).view(1, 1, 1, p.t) if p.padding else None
    attend = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        with torch.inference_mode():
            return attend(q, k, v, attn_mask=mask, is_causal=bool(p.causal)).transpose(1, 2).reshape(1, p.s, -1)

    return run


def in_openvino(half: bool, p: Problem, threads: int, arena: bool) -> Run:
    """Run OpenVINO's ScaledDotProductAttention, as precise as its hint says."""
    import openvino
    from openvino import opset13 as ops

    del arena
    inputs = [ops.parameter(shape, np.float32, name=name) for name, shape in p.shapes().items()]
    heads = [ops.transpose(ops.reshape(x, [1, -1, p.h, p.d], special_zero=False), [0, 2, 1, 3]) for x in inputs]
    mask = [ops.constant((np.arange(p.t) < p.live)[None, None, None])] if p.padding else []
    out = ops.transpose(ops.scaled_dot_product_attention(*heads, *mask, causal=bool(p.causal)), [0, 2, 1, 3])
    model = openvino.Model([ops.reshape(out, [1, p.s, p.h * p.d], special_zero=False)], inputs)
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": False}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if half else "f32"
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    feeds = dict(enumerate(p.feeds().values()))
    return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)[0]


def of_graph(build: Callable[[Problem], onnx.ModelProto], **more: Any) -> System:
    """Make a system of a graph in ONNX Runtime."""
    return System(start=partial(in_session, build), **more)


def ours(heads_first: bool = False, top_k: bool = False, bias: bool = False) -> System:
    """Make a system of graft's operator."""

    def build(p: Problem) -> onnx.ModelProto:
        form = {"k": p.top_k if top_k else 0, "causal": p.causal, "window": p.window}
        return graft(p, heads_first=heads_first, bias=bias, mask=bool(p.padding) and not bias, **form)

    return of_graph(build, heads_first=heads_first, top_k=top_k)


SYSTEMS: Mapping[str, System] = {
    "graft": ours(),
    "graft, bias": ours(bias=True),
    "graft, heads first": ours(heads_first=True),
    "graft top-k": ours(top_k=True),
    "graft top-k, heads first": ours(top_k=True, heads_first=True),
    "ort MultiHeadAttention": of_graph(lambda p: multi_head(p, masked=bool(p.padding), causal=p.causal)),
    "ort GroupQueryAttention": of_graph(group_query),
    "ort GroupQueryAttention, cache": System(start=in_place),
    "ort Attention-23": of_graph(lambda p: attention23(p, masked=bool(p.padding), causal=p.causal)),
    "ort unfused": of_graph(lambda p: unfused(p, masked=bool(p.padding))),
    "openvino": System(start=partial(in_openvino, False), needs="openvino"),
    "openvino bf16": System(start=partial(in_openvino, True), number="bf16", needs="openvino"),
    "torch": System(start=partial(in_torch, False), needs="torch"),
    "torch bf16": System(start=partial(in_torch, True), number="bf16", needs="torch"),
}


def installed(system: System) -> bool:
    """Tell whether the package that a system needs is there."""
    return not system.needs or find_spec(system.needs) is not None


def as_array(out: Any) -> Array:
    """Return what a system gave as fp32."""
    if isinstance(out, onnxruntime.OrtValue):
        return np.asarray(out.numpy())
    return np.asarray(out if isinstance(out, np.ndarray) else out.float().numpy())
