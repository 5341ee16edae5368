"""What ``graft doctor`` looks at: versions, the kernel library, and one small model really run with it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.report import Report

PACKAGES = ("attn-graft", "numpy", "onnx", "onnx-ir", "onnxruntime", "torch")
TOLERANCE = 1e-5  # relative L2 of a float32 kernel against fp64, generous


@dataclass(frozen=True, kw_only=True)
class KernelRow(Report):
    """One kernel of the library, and whether this machine can run it."""

    op: str
    name: str
    isa: str
    dtypes: Sequence[str]
    usable: bool
    reason: str  # why not, or ""


@dataclass(frozen=True, kw_only=True)
class Check(Report):
    """One thing that was tried: how it went, and what to do where it failed."""

    name: str
    passed: bool
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorReport(Report):
    """The state of an installation."""

    python: str
    platform: str
    versions: dict[str, str | None]  # None: not installed
    library: str | None
    kernels: Sequence[KernelRow]
    checks: Sequence[Check]


def doctor() -> DoctorReport:
    """Look at the installation and try it; nothing raises, every failure is a row with advice."""
    checks = [_check(*row) for row in CHECKS]
    return DoctorReport(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        versions={name: _version(name) for name in PACKAGES},
        library=_quietly(_library),
        kernels=_quietly(_kernels) or (),
        checks=checks,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _library() -> str | None:
    from runtime_ops import kernels

    path = kernels.library_path()
    return None if path is None else str(path)


def _kernels() -> Sequence[KernelRow]:
    from runtime_ops import kernels

    return [_row(row) for row in kernels.kernels()]


def _row(row: Mapping[str, Any]) -> KernelRow:
    return KernelRow(
        op=row["op"],
        name=row["name"],
        isa=row["isa"],
        dtypes=row["dtypes"],
        usable=row["usable"],
        reason=row.get("reason") or "",
    )


def _quietly(ask: Callable[[], Any]) -> Any:
    """Return an answer, or None where the library cannot give it; a check says why."""
    try:
        return ask()
    except Exception:  # noqa: BLE001 - a doctor reports on every illness
        return None


def _check(name: str, run: Callable[[], str], advice: str) -> Check:
    try:
        return Check(name=name, passed=True, found=run())
    except Exception as error:  # noqa: BLE001 - a doctor reports on every illness
        found = " ".join(str(error).split()) or type(error).__name__
        return Check(name=name, passed=False, found=found, advice=advice)


def _runtime() -> str:
    import onnxruntime

    from rewriter import sessions

    sessions.check_runtime()
    return f"{onnxruntime.__version__}, with {', '.join(onnxruntime.get_available_providers())}"


def _load() -> str:
    from runtime_ops import kernels

    kernels.load()
    usable = [row["isa"] for row in kernels.kernels() if row["usable"]]
    return f"loaded, with kernels for {', '.join(dict.fromkeys(usable))}"


def _rules() -> str:
    import rewriter

    found = sorted(rewriter.rules())
    if not found:
        raise LookupError("no rule is registered")
    return ", ".join(found)


def _run_kernel() -> str:
    return f"ran with the library registered, {_relative_error(library=True):.0e} from fp64"


def _run_body() -> str:
    return f"ran in a plain session, {_relative_error(library=False):.0e} from fp64"


def _relative_error(*, library: bool) -> float:
    """Run TopKAttention on its first sample in ONNX Runtime; return the relative L2 error against fp64."""
    import numpy as np
    import onnxruntime as ort

    from runtime_ops import kernels
    from runtime_ops.ops.topk_attention import TOPK_ATTENTION as SPEC

    sample = SPEC.samples()[0]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library:
        kernels.register(options)
    session = ort.InferenceSession(_tiny_model(SPEC, sample), options, providers=["CPUExecutionProvider"])
    got = session.run(None, dict(sample.arrays))[0]
    golden = SPEC.golden(sample.arrays, sample.attrs)
    error = float(np.linalg.norm(got - golden) / np.linalg.norm(golden))
    if not error <= TOLERANCE:
        raise ArithmeticError(f"wrong numbers: {error:.1e} from fp64, allowed {TOLERANCE:.0e}")
    return error


def _tiny_model(spec: Any, sample: Any) -> bytes:
    """Return a serialized model of one node with its function body, as ``apply`` writes them."""
    import onnx_ir as ir

    shapes = {name: (array.shape, array.dtype) for name, array in sample.arrays.items()}
    inputs = [ir.val(name, ir.DataType.from_numpy(dtype), [*shape]) for name, (shape, dtype) in shapes.items()]
    node = ir.node(spec.name, inputs, attributes=dict(sample.attrs), domain="ai.graft", version=1)
    node.outputs[0].name = "out"
    node.outputs[0].dtype = ir.DataType.FLOAT
    node.outputs[0].shape = ir.Shape([None] * 4)
    opsets = {"": 17, "ai.graft": 1}
    graph = ir.Graph(inputs, [node.outputs[0]], nodes=[node], opset_imports=opsets, name="doctor")
    body = spec.body(shapes, sample.attrs, 17, "")
    model = ir.Model(graph, ir_version=8, functions=[body])
    return bytes(ir.to_proto(model).SerializeToString())


CHECKS = (
    ("ONNX Runtime", _runtime, "install onnxruntime 1.18 or newer"),
    (
        "kernel library",
        _load,
        "install a C++17 compiler and reinstall attn-graft; rewritten models run without it, slower",
    ),
    ("rules", _rules, "reinstall attn-graft: its entry points in the group graft.patterns are missing"),
    (
        "kernel in ONNX Runtime",
        _run_kernel,
        "see the checks above; until then rewritten models run their function bodies, slower",
    ),
    ("function body in ONNX Runtime", _run_body, "install onnxruntime 1.18 or newer"),
)
