"""ONNX Runtime's C interface as `ort_abi.h` states it, proved against the installed runtime.

The library is registered through a table from which every slot that the header does not name is taken away,
and each named one is counted: so the header is complete, nothing in it is idle, and what the sessions compute
proves the rest.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from runtime_ops import kernels

if kernels.library_path() is None:
    pytest.skip("the kernel library is not built", allow_module_level=True)

HEADER = Path(kernels.__file__).parent / "native" / "ort_abi.h"
NAMES = ("q", "k", "v", "bias", "key_mask", "past_length")
FLOATS = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
INFERS = tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24)
SHAPES = {
    "known": {"q": [2, 4, 5, 8], "k": [2, 2, 7, 8], "v": [2, 2, 7, 6]},
    "named": {"q": ["b", 4, "s", 8], "k": ["b", 2, "t", 8], "v": ["b", 2, "t", 6]},
    "unknown": {"q": [None, 4, None, 8], "k": [None, 2, None, 8], "v": [None, 2, None, 6]},
    "no rank": {},
}


def slots() -> dict[str, int]:
    """Name and position of every function that the library takes from the runtime."""
    found = re.findall(r"constexpr Slot<.*?>\s+(\w+)\{(\d+)\};", HEADER.read_text(), re.DOTALL)
    return {name: int(index) for name, index in found}


def model(dtype: int, bias_dtype: int, present: tuple[str, ...], shapes: str = "known", **attributes: Any) -> bytes:
    """One TopKAttention node, with an Identity behind it that takes type and shape from inference."""
    types = dict.fromkeys("qkv", dtype) | {
        "bias": bias_dtype,
        "key_mask": TensorProto.BOOL,
        "past_length": TensorProto.INT64,
    }
    inputs = [helper.make_tensor_value_info(name, types[name], SHAPES[shapes].get(name)) for name in present]
    last = max(NAMES.index(name) for name in present)
    names = [name if name in present else "" for name in NAMES[: last + 1]]
    nodes = [helper.make_node("TopKAttention", names, ["y"], domain="ai.graft", **attributes)]
    nodes.append(helper.make_node("Identity", ["y"], ["out"]))
    graph = helper.make_graph(nodes, "one", inputs, [helper.make_tensor_value_info("out", dtype, None)])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graft", 1)]
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=domains, ir_version=9)
    return made.SerializeToString()


def feed_forward() -> bytes:
    """One TopKFeedForward node, which asks whether its weights are constant."""
    inputs = [helper.make_tensor_value_info(name, 1, [8, 8]) for name in ("x", "w_in", "w_out")]
    node = helper.make_node("TopKFeedForward", ["x", "w_in", "w_out"], ["out"], domain="ai.graft")
    graph = helper.make_graph([node], "one", inputs, [helper.make_tensor_value_info("out", 1, [8, 8])])
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.graft", 1)], ir_version=9)
    return made.SerializeToString()


def feeds(dtype: int, bias_dtype: int, present: tuple[str, ...]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"q": (2, 4, 5, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 6), "bias": (5, 7)}
    arrays: dict[str, Any] = {}
    for name, shape in shapes.items():
        arrays[name] = random.standard_normal(shape).astype(FLOATS[bias_dtype if name == "bias" else dtype])
    arrays |= {"key_mask": random.random((2, 7)) < 0.7, "past_length": np.array([1, 3])}
    return {name: arrays[name] for name in present}


def open_session(proto: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    kernels.register(options)
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def as_value(array: Any) -> onnxruntime.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        if not hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type"):
            pytest.skip("this ONNX Runtime cannot take bf16 from Python")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def as_array(value: onnxruntime.OrtValue) -> Any:
    """The value's elements; numpy has no bf16 of its own, so its bytes are read from memory."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    count = int(np.prod(value.shape()))
    data = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.array(data, np.uint16).view(ml_dtypes.bfloat16).reshape(value.shape())


INPUTS = {
    "q k v": ("q", "k", "v"),
    "bias": ("q", "k", "v", "bias"),
    "key_mask": ("q", "k", "v", "key_mask"),
    "past_length": ("q", "k", "v", "past_length"),
    "all": NAMES,
}


@pytest.mark.parametrize("present", INPUTS)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("bias_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_type_and_every_choice_of_inputs_runs(dtype: int, bias_dtype: int, shapes: str, present: str) -> None:
    given = feeds(dtype, bias_dtype, INPUTS[present])
    session = open_session(model(dtype, bias_dtype, INPUTS[present], shapes, k=3, causal=1, scale=0.3, softcap=4.0))
    values = {name: as_value(array) for name, array in given.items()}
    out = as_array(session.run_with_ort_values(["out"], values)[0])
    direct = kernels.run_topk_attention(**given, k_top=3, causal=True, scale=0.3, softcap=4.0)
    assert np.array_equal(out, direct)
    expected = {"known": [2, 4, 5, 6], "named": ["b", 4, "s", 6]}
    if shapes in expected and INFERS:
        assert session.get_outputs()[0].shape == expected[shapes]


@pytest.mark.parametrize("first", ["q", "k v", "out", "q k v out"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_tokens_first(shapes: str, first: str) -> None:
    present, turned = INPUTS["q k v"], (0, 2, 1, 3)
    given = feeds(1, 1, present)
    proto = onnx.load_from_string(model(1, 1, present, shapes, tokens_first=first))
    for value in proto.graph.input:
        if value.name in first.split():
            given[value.name] = np.ascontiguousarray(given[value.name].transpose(turned))
            dims = value.type.tensor_type.shape.dim
            if len(dims) == 4:
                dims.insert(1, dims.pop(2))
    session = open_session(proto.SerializeToString())
    out = session.run(None, given)[0]
    heads_first = kernels.run_topk_attention(**feeds(1, 1, present))
    assert np.array_equal(out.transpose(turned) if "out" in first else out, heads_first)
    expected = {"known": [2, 5, 4, 6], "named": ["b", "s", 4, 6]}
    if "out" in first and shapes in expected and INFERS:
        assert session.get_outputs()[0].shape == expected[shapes]


@pytest.mark.parametrize("k", [0, 2])
def test_windows_and_rows_without_a_key(k: int) -> None:
    given = feeds(1, 1, INPUTS["key_mask"]) | {"key_mask": np.zeros((2, 7), bool)}
    given["key_mask"][1, 4:] = True
    settings = {"causal": 1, "window": 2, "no_key": "mean"}
    out = open_session(model(1, 1, INPUTS["key_mask"], k=k, **settings)).run(None, given)[0]
    assert np.array_equal(out, kernels.run_topk_attention(**given, k_top=k, **settings))
    assert np.allclose(out[0], np.repeat(given["v"][0].mean(1, keepdims=True), 2, axis=0), atol=1e-6)


def test_missing_attributes_take_their_defaults() -> None:
    given = feeds(1, 1, NAMES)
    out = open_session(model(1, 1, NAMES)).run(None, given)[0]
    assert np.array_equal(out, kernels.run_topk_attention(**given))


@pytest.mark.skipif(not INFERS, reason="this ONNX Runtime crashes where it infers shapes: ort.cc does without")
def test_unknown_lengths_do_not_count_as_equal() -> None:
    shape = open_session(model(1, 1, INPUTS["q k v"], "no rank")).get_outputs()[0].shape
    assert len(set(shape)) == 4


REFUSED = {
    "k": ({"k": -1}, "attribute k got -1, allowed 0"),
    "k float": ({"k": 1.5}, "attribute k got a float, allowed an int"),
    "scale int": ({"scale": 1}, "attribute scale got an int, allowed a float"),
    "softcap": ({"softcap": -2.0}, "attribute softcap got -2.0*, allowed 0"),
    "causal": ({"causal": 2}, "attribute causal got 2, allowed 0 or 1"),
    "window": ({"window": -1}, "attribute window got -1, allowed 0"),
    "no_key": ({"no_key": "nan"}, "attribute no_key got nan, allowed zero, mean"),
    "tokens_first": ({"tokens_first": "q bias"}, "attribute tokens_first got q bias, allowed some of q k v out"),
    "tokens_first int": ({"tokens_first": 1}, "attribute tokens_first got an int, allowed a string"),
    "tokens_first long": ({"tokens_first": "q " * 90 + "x"}, "attribute tokens_first got q q .* x, allowed some of"),
    "no_key int": ({"no_key": 1}, "attribute no_key got an int, allowed a string"),
    "scale": ({"scale": float("inf")}, "attribute scale got inf, allowed a finite number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_attributes_are_refused_when_the_session_is_made(name: str) -> None:
    attributes, sentence = REFUSED[name]
    with pytest.raises(Exception, match=sentence):
        open_session(model(1, 1, INPUTS["q k v"], **attributes))


BAD_SHAPES = {
    "rank 3": ({"q": np.zeros((4, 5, 8), np.float32)}, "q, k, v got ranks 3, 4, 4, allowed 4"),
    "rank 6": ({"q": np.zeros((1,) * 6, np.float32)}, "q got rank 6, allowed at most"),
    "heads": ({"q": np.zeros((2, 3, 5, 8), np.float32)}, "heads got .* allowed h a multiple of g"),
    "bias": ({"bias": np.zeros((5, 8), np.float32)}, r"bias got shape \[1 1 5 8\], allowed"),
    "bias scalar": ({"bias": np.zeros((), np.float32)}, "bias got rank 0, allowed 1 to 4"),
    "key_mask": ({"key_mask": np.zeros((2, 7, 1), bool)}, "key_mask got rank 3, allowed 2"),
    "past_length": ({"past_length": np.zeros((2, 1), np.int64)}, "past_length got rank 2, allowed"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_bad_shapes_are_refused_when_the_model_runs(name: str) -> None:
    changed, sentence = BAD_SHAPES[name]
    session = open_session(model(1, 1, NAMES, "no rank"))
    with pytest.raises(Exception, match=sentence):
        session.run(None, feeds(1, 1, NAMES) | changed)


def test_registering_twice_is_once() -> None:
    options = onnxruntime.SessionOptions()
    kernels.register(options)
    kernels.register(options)
    proto = model(1, 1, INPUTS["q k v"])
    for _ in range(2):
        onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def test_the_domain_outlives_its_first_session() -> None:
    given = feeds(1, 1, INPUTS["q k v"])
    first = open_session(model(1, 1, INPUTS["q k v"])).run(None, given)[0]
    assert np.array_equal(first, open_session(model(1, 1, INPUTS["q k v"])).run(None, given)[0])


@pytest.mark.parametrize("k", [0, 32])
def test_two_sessions_on_several_threads_at_once_give_the_same_bits_as_one_alone(k: int) -> None:
    random = np.random.default_rng(0)
    given = {name: random.standard_normal((2, 4, 1100, 16), np.float32) for name in "qkv"}
    proto = model(1, 1, INPUTS["q k v"], "no rank", k=k)
    alone = open_session(proto, threads=1).run(None, given)[0]
    sessions = [open_session(proto, threads=3) for _ in range(2)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        runs = [pool.submit(session.run, None, given) for _ in range(10) for session in sessions]
    assert all(np.array_equal(run.result()[0], alone) for run in runs)


# ---- through a table of our own, in a process of its own ----


def runtime_library() -> Path:
    """The file of the installed runtime that exports OrtGetApiBase."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    files = [*folder.glob("onnxruntime_pybind11_state*.so"), *folder.glob("libonnxruntime.so*")]
    for path in files:
        if hasattr(ctypes.CDLL(str(path)), "OrtGetApiBase"):
            return path
    pytest.skip("this build of ONNX Runtime exports no OrtGetApiBase")


def run_child(task: str) -> Any:
    command = [sys.executable, __file__, task, str(runtime_library())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not INFERS, reason="without shape inference some slots are idle")
def test_the_header_names_every_slot_that_is_used_and_no_other() -> None:
    assert run_child("count") == sorted(slots())


def test_an_old_runtime_is_refused_with_a_sentence() -> None:
    assert run_child("old") == "graft needs ONNX Runtime 1.18 or newer, got 1.17.3"


class Base(ctypes.Structure):
    """OrtApiBase."""

    _fields_ = [
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("get_version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    ]


class Probe:
    """The runtime's interface by position, and graft's library registered through tables that we make."""

    def __init__(self, path: str) -> None:
        runtime = ctypes.CDLL(path)
        runtime.OrtGetApiBase.restype = ctypes.POINTER(Base)
        base = runtime.OrtGetApiBase().contents
        self.version: bytes = base.get_version()
        self.table = (ctypes.c_void_p * 300).from_address(base.get_api(18))
        self.kept: list[Any] = []

    def call(self, slot: int, *arguments: Any, returns: Any = ctypes.c_void_p) -> Any:
        return ctypes.CFUNCTYPE(returns, *(type(x) for x in arguments))(self.table[slot])(*arguments)

    def new(self, slot: int, *arguments: Any) -> ctypes.c_void_p:
        """What a function that ends in an out parameter makes."""
        made = ctypes.c_void_p()
        assert self.call(slot, *arguments, ctypes.cast(ctypes.pointer(made), ctypes.c_void_p)) is None
        return made

    def register(self, table: Any, version: bytes, floor: int = 18) -> tuple[ctypes.c_void_p, str]:
        """Fresh session options, and what RegisterCustomOps had to say about them."""
        address = ctypes.addressof(table)
        get_api = Base._fields_[0][1](lambda wanted: address if wanted <= floor else None)
        base = Base(get_api, Base._fields_[1][1](lambda: version))
        self.kept += [table, base]
        options = self.new(10)
        library = kernels.load()
        library.RegisterCustomOps.restype = ctypes.c_void_p
        status = library.RegisterCustomOps(options, ctypes.byref(base))
        if status is None:
            return options, ""
        return options, self.call(2, ctypes.c_void_p(status), returns=ctypes.c_char_p).decode()


def child_old(probe: Probe) -> str:
    return probe.register(probe.table, b"1.17.3", floor=17)[1]


def child_count(probe: Probe) -> list[str]:
    """Runs models until every named slot was called; all other slots are empty."""
    used: set[str] = set()
    table = (ctypes.c_void_p * 300)()
    for name, index in slots().items():
        table[index] = counted(probe, used, name, index)
    options, error = probe.register(table, probe.version)
    assert error == "", error
    environment = probe.new(3, ctypes.c_int(4), ctypes.c_char_p(b"test"))
    for attributes in ({}, {"k": 2, "scale": 0.5, "tokens_first": ""}):
        proto = model(1, 1, INPUTS["q k v"], "named", **attributes)
        session = probe.new(8, environment, ctypes.c_char_p(proto), ctypes.c_size_t(len(proto)), options)
        run_session(probe, session)
    block = feed_forward()
    probe.new(8, environment, ctypes.c_char_p(block), ctypes.c_size_t(len(block)), options)
    try:  # a status that graft makes itself
        broken = model(1, 1, INPUTS["q k v"], "named", k=-1)
        probe.new(8, environment, ctypes.c_char_p(broken), ctypes.c_size_t(len(broken)), options)
    except AssertionError:
        return sorted(used)
    raise AssertionError("k = -1 was taken")


def counted(probe: Probe, used: set[str], name: str, index: int) -> int:
    """A function that notes its name and goes on to the runtime's own; all parameters fit in registers."""
    plain = ctypes.CFUNCTYPE(ctypes.c_void_p, *[ctypes.c_void_p] * 5)
    own = plain(probe.table[index])

    def forward(*arguments: Any) -> Any:
        used.add(name)
        return own(*arguments)

    wrapped = plain(forward)
    probe.kept.append(wrapped)
    return ctypes.cast(wrapped, ctypes.c_void_p).value or 0


def run_session(probe: Probe, session: ctypes.c_void_p) -> None:
    """Runs the session on zeros: a few rows more than one task takes, so that threads are asked for."""
    memory = probe.new(69, ctypes.c_int(1), ctypes.c_int(0))
    shapes = {"q": (1, 4, 300, 8), "k": (1, 2, 7, 8), "v": (1, 2, 7, 6)}
    values = (ctypes.c_void_p * 3)()
    for i, shape in enumerate(shapes.values()):
        array = np.zeros(shape, np.float32)
        lengths = (ctypes.c_int64 * 4)(*shape)
        probe.kept += [array, lengths]
        data, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        where = ctypes.cast(lengths, ctypes.c_void_p)
        values[i] = probe.new(49, memory, data, size, where, ctypes.c_size_t(4), ctypes.c_int(1)).value
    names = (ctypes.c_char_p * 3)(*(name.encode() for name in shapes))
    wanted, outputs = (ctypes.c_char_p * 1)(b"out"), (ctypes.c_void_p * 1)()
    lists = [ctypes.cast(x, ctypes.c_void_p) for x in (names, values, wanted, outputs)]
    size3, size1 = ctypes.c_size_t(3), ctypes.c_size_t(1)
    status = probe.call(9, session, ctypes.c_void_p(), lists[0], lists[1], size3, lists[2], size1, lists[3])
    assert status is None


if __name__ == "__main__":
    print(json.dumps({"count": child_count, "old": child_old}[sys.argv[1]](Probe(sys.argv[2]))))
