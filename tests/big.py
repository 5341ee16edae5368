"""Large transformer graphs as the legacy exporter writes them, and a child process that reads them.

``python tests/big.py MODEL OUT`` prints, as JSON, how long show and apply take and what memory apply adds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from sketch import LOWEST, Sketch, Value

MIB = 2**20


def transformer(nodes: int) -> onnx.ModelProto:
    """Return a transformer of at least ``nodes`` nodes with small random weights."""
    f = Sketch("big", h=2, d=4, m=8)
    x = f.x
    mask = padding(f)
    layer = 0
    while len(f.nodes) < nodes:
        x = block(f, x, mask, layer)
        layer += 1
    f.output(x)
    return f.model()


def heavy(path: Path, layers: int = 4, m: int = 4096) -> int:
    """Write a transformer whose weights (12·m² floats a layer) lie in one sparse file; return their bytes."""
    f = Heavy("heavy", h=m // 128, d=128, m=m)
    x = f.x
    mask = padding(f)
    for layer in range(layers):
        x = block(f, x, mask, layer)
    f.output(x)
    with (path.parent / Heavy.FILE).open("wb") as file:
        file.truncate(f.offset)
    onnx.save(f.model(), path)
    return f.offset


class Heavy(Sketch):
    """A sketch whose weights are external: zeros in a sparse file, page by page."""

    FILE = "weights.bin"
    PAGE = 4096

    def __init__(self, *args: Any, **geometry: Any) -> None:
        super().__init__(*args, **geometry)
        self.offset = 0

    def weight(self, name: str, *shape: int, std: float | None = None) -> Value:
        size = int(np.prod(shape)) * 4
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.FILE), ("offset", self.offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        self.offset += -(-size // self.PAGE) * self.PAGE
        return Value(self, name)


def padding(f: Sketch) -> Value:
    keep = f.input("attention_mask", "b s", "lengths", "int64").unsqueeze(1).unsqueeze(2)
    return (1.0 - keep.to("float32")) * LOWEST


def block(f: Sketch, x: Value, mask: Value, layer: int) -> Value:
    """Attention and feed-forward, residuals and norms: about 90 nodes, shapes computed in the graph."""
    q, k, v = (heads(f, linear(f, x, f"{layer}.{n}", f.m, f.h * f.d), f.d) for n in "qkv")
    width = f.Sqrt(f.Cast(f.Slice(f.Shape(q), [-1], [2**63 - 1], [0]), to=TensorProto.FLOAT))
    context = f.Softmax((q @ k.perm(0, 1, 3, 2)) / width + mask, axis=-1) @ v
    merged = context.perm(0, 2, 1, 3)
    merged = merged.reshape(merged.dim(0), merged.dim(1), f.h * f.d)
    x = norm(f, x + linear(f, merged, f"{layer}.o", f.h * f.d, f.m), f"{layer}.n1")
    inner = linear(f, x, f"{layer}.up", f.m, 4 * f.m)
    gelu = (inner * (f.Erf(inner / 2**0.5) + 1.0)) * 0.5
    return norm(f, x + linear(f, gelu, f"{layer}.down", 4 * f.m, f.m), f"{layer}.n2")


def linear(f: Sketch, x: Value, name: str, rows: int, columns: int) -> Value:
    return x @ f.weight(f"{name}.weight", rows, columns) + f.weight(f"{name}.bias", columns)


def heads(f: Sketch, x: Value, width: int) -> Value:
    return x.reshape(x.dim(0), x.dim(1), f.h, width).perm(0, 2, 1, 3)


def norm(f: Sketch, x: Value, name: str) -> Value:
    """LayerNorm in nine nodes, as opset < 17 exports have it."""
    centred = x - f.ReduceMean(x, axes=[-1])
    variance = f.ReduceMean(f.Pow(centred, 2.0), axes=[-1])
    return (centred / f.Sqrt(variance + 1e-5)) * f.weight(f"{name}.gain", f.m) + f.weight(f"{name}.bias", f.m)


# -- measuring -------------------------------------------------------------------------------------


def measured(model: Path, output: Path) -> dict[str, float]:
    """Read and rewrite a model in a fresh process: sites, rewritten, read_s, rewrite_s, peak_mib."""
    run = subprocess.run(
        [sys.executable, __file__, str(model), str(output)],
        text=True,
        capture_output=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, float] = json.loads(run.stdout)
    return result


def memory(key: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024 / MIB


def main(model: Path, output: Path) -> dict[str, float]:
    import rewriter
    import rewriter.cli  # what a user's process has loaded before it starts

    warm = output.with_name("warm.onnx")
    onnx.save(transformer(1), warm)
    rewriter.apply(warm, output=output, verify=False)
    start = time.perf_counter()
    shown = rewriter.show(model)
    read = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory("VmRSS")
    start = time.perf_counter()
    report = rewriter.apply(model, output=output, verify=False)
    rewrite = time.perf_counter() - start
    return {
        "sites": sum(site.kind == "attention" for site in shown.sites),
        "rewritten": report.rewritten,
        "read_s": read,
        "rewrite_s": rewrite,
        "peak_mib": memory("VmHWM") - before,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
