"""ai.graft::TopKAttention in ONNX Runtime, CUDA provider against CPU; needs onnxruntime's GPU build.

python tests/gpu/ort_cuda.py build/cuda/libruntime_ops_cuda.so
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from cases import Array, Call, cases, distance, make

KINDS = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bool": TensorProto.BOOL, "int64": TensorProto.INT64,
}  # fmt: skip
NAMES = ("q", "k", "v", "bias", "key_mask", "past_length")
ALLOWED = {"fp32": 3e-6, "fp16": 1e-3}


def model(call: Call) -> bytes:
    """One node between an Identity before and one after, so that its neighbours share the stream."""
    arrays = {n: a for n in NAMES if (a := call.arrays.get(n)) is not None}
    kind = KINDS[arrays["q"].dtype.name]
    inputs = [helper.make_tensor_value_info(n, KINDS[a.dtype.name], a.shape) for n, a in arrays.items()]
    output = helper.make_tensor_value_info("out", kind, [None] * 4)
    at = call.attributes
    node = helper.make_node(
        "TopKAttention", ["q2", *(n if n in arrays else "" for n in NAMES[1:])], ["y"], domain="ai.graft",
        k=at["k_top"], scale=at["scale"], causal=int(at["causal"]), softcap=float(at["softcap"]),
    )  # fmt: skip
    nodes = [helper.make_node("Identity", ["q"], ["q2"]), node, helper.make_node("Identity", ["y"], ["out"])]
    graph = helper.make_graph(nodes, "one", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made


def run(library: str, call: Call, provider: str) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(model(call), options, providers=[provider])
    assert session.get_providers()[0] == provider, session.get_providers()
    feeds = {n: a for n in NAMES if (a := call.arrays.get(n)) is not None}
    found: Array = session.run(None, feeds)[0]
    return found


def main(library: str) -> int:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        print("this onnxruntime has no CUDA provider")
        return 2
    failures = 0
    for dtype, allowed in ALLOWED.items():
        for case in cases():
            if case.equal or case.s == 0:
                continue
            call = make(case, dtype)
            cpu, gpu = (run(library, call, f"{device}ExecutionProvider") for device in ("CPU", "CUDA"))
            error = distance(gpu, cpu)
            if not error <= allowed:
                failures += 1
                print(f"FAILED {case.id} {dtype}: CUDA differs from CPU by {error:.3g}, allowed {allowed:.3g}")
    print(f"{failures} failures, onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).resolve())))
