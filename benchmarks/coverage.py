"""Who finds the attention of today's models: graft, ONNX Runtime's optimizer, onnxscript's fusions, the session itself.

    python benchmarks/coverage.py --json benchmarks/results/coverage.json

Every tool gets the same exported files (tests/families.py). Found: attention nodes in what the tool wrote, as many as
there are blocks at most. Right: the same, if what it wrote runs and gives the numbers of the untouched model at every
size within 1e-4. Each tool works in a process of its own, so that a crash or a hang costs that tool that file alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from compare import distance, session
from exports import SIZES, Arg, exported, feeds, folder
from families import QUICK, SWEEP, Case

TOLERANCE = 1e-4
SECONDS = 60.0  # for one tool on one file
ATTENTION = {
    "Attention",
    "DecoderAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
    "QAttention",
    "SparseAttention",
    "TopKAttention",
}


def graft(source: Path, target: Path) -> None:
    """Rewrite with our exact attention."""
    import rewriter

    rewriter.apply(source, ("exact-attention",), output=target, verify=False)


def ort_optimizer(model_type: str, source: Path, target: Path) -> None:
    """Fuse as for one model type; level 0 leaves the rest of the graph alone."""
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(str(source), model_type, num_heads=4, hidden_size=64, opt_level=0)
    made.save_model_to_file(str(target))


def onnxscript(source: Path, target: Path) -> None:
    """Fuse with onnxscript's rules for ONNX Runtime."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    made = optimize_for_ort(ir.load(source))
    ir.save(made[0] if isinstance(made, tuple) else made, target)


def ort_session(source: Path, target: Path) -> None:
    """Let a session optimize, and keep what it made."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath, options.log_severity_level = str(target), 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def model_types() -> Sequence[str]:
    """Return every model type that the optimizer knows."""
    from onnxruntime.transformers.optimizer import MODEL_TYPES

    return tuple(MODEL_TYPES)


Tool = Callable[[Path, Path], None]
# A tool with several ways is credited with its best.
TOOLS: Mapping[str, Callable[[], Iterable[Tool]]] = {
    "graft": lambda: [graft],
    "onnxruntime.transformers": lambda: [partial(ort_optimizer, one) for one in model_types()],
    "onnxscript optimize_for_ort": lambda: [onnxscript],
    "onnxruntime session": lambda: [ort_session],
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one tool did with one file; note says what went wrong."""

    found: int = 0
    right: int = 0
    note: str = ""


def attention_nodes(path: Path) -> int:
    """Count attention nodes in the main graph, its subgraphs and the functions that are not bodies of such nodes."""
    model = onnx.load(path, load_external_data=False)
    bodies = [function.node for function in model.functions if function.name not in ATTENTION]
    return sum(_count(nodes) for nodes in (model.graph.node, *bodies))


def _count(nodes: Iterable[onnx.NodeProto]) -> int:
    inner = [a.g.node for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(node.op_type in ATTENTION for node in nodes) + sum(_count(body) for body in inner)


def score(tool: Tool, source: Path, args: Sequence[Arg], blocks: int) -> Score:
    """Let a tool rewrite a file, count and compare."""
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "made.onnx"
        try:
            tool(source, target)
            found = min(attention_nodes(target), blocks)
        except Exception as failure:  # noqa: BLE001 - whatever a tool raises is its result
            return Score(note=f"fails: {type(failure).__name__}: {str(failure)[:200]}")
        if found == 0:
            return Score()
        try:
            error = largest_error(source, target, args, tool is graft)
        except Exception as failure:  # noqa: BLE001
            return Score(found=found, note=f"does not run: {str(failure)[:200]}")
    if error <= TOLERANCE:
        return Score(found=found, right=found)
    return Score(found=found, note=f"wrong numbers: relative error {error:.1e}")


def largest_error(source: Path, target: Path, args: Sequence[Arg], library: bool) -> float:
    """Return the largest relative error at any size at which the untouched model runs."""
    original, made = session(source, library=False), session(target, library=library)
    wanted = {one.name for one in original.get_inputs()}
    errors = []
    for sizes, pad in SIZES:
        given = {name: x for name, x in feeds(args, sizes, pad).items() if name in wanted}
        try:
            truth = original.run(None, given)
        except Exception:  # noqa: BLE001 - some exports run at the traced sizes only
            continue
        for old, new in zip(truth, made.run(None, given), strict=True):
            seen = ~np.isnan(old)
            same = old.shape == new.shape and np.array_equal(seen, ~np.isnan(new))
            errors.append(distance(new[seen], old[seen]) if same else float("inf"))
    return max(errors, default=float("inf"))  # nothing was compared: not right


def work(tool: str, pipe: Connection) -> None:
    """Serve one tool in a process: (file, arguments, blocks) in, Score out."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # the tools print progress and warnings, from C++ too
    os.dup2(silence, 2)
    ways = list(TOOLS[tool]())
    pipe.send("ready")
    while True:
        source, args, blocks = pipe.recv()
        pipe.send(max((score(way, source, args, blocks) for way in ways), key=lambda s: (s.right, s.found, not s.note)))


class Worker:
    """A tool in its own process, started again when it crashed or took too long."""

    def __init__(self, tool: str) -> None:
        self.tool, self.process = tool, None
        self.context = multiprocessing.get_context("spawn")

    def __call__(self, *job: Any) -> Score:
        """Do one job, on a new process if there is none."""
        if self.process is None:
            self.pipe, theirs = self.context.Pipe()
            self.process = self.context.Process(target=work, args=(self.tool, theirs), daemon=True)
            self.process.start()
            theirs.close()
            self._receive()
        self.pipe.send(job)
        return self._receive()

    def _receive(self) -> Any:
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            note = f"no result in {SECONDS:.0f} s"
        except EOFError:
            note = "the process crashed"
        self.process.kill()
        self.process.join()
        self.process = None
        return Score(note=note)


def measure(cases: Sequence[Case], into: Path) -> list[dict[str, Any]]:
    """Return a row per file that could be exported."""
    workers = {tool: Worker(tool) for tool in TOOLS}
    rows = []
    for n, case in enumerate(cases):
        file = exported(case, into)
        if file.error is not None:
            continue
        true = case.family.attention
        scores = {tool: asdict(worker(file.path, file.args, true)) for tool, worker in workers.items()}
        told = ", ".join(f"{tool} {one['right']}" for tool, one in scores.items())
        print(f"[{n + 1}/{len(cases)}] {case.name}: of {true} right: {told}", file=sys.stderr, flush=True)
        rows.append(
            {
                "family": case.family.name,
                "exporter": f"{case.exporter.name} {case.exporter.opset} {case.implementation}",
                "blocks": true,
                "already": attention_nodes(file.path),
                "scores": scores,
            }
        )
    return rows


KINDS: Mapping[str, Sequence[str]] = {
    "legacy exporter, opset 14, 17": ("torchscript 14", "torchscript 17"),
    "dynamo, opset 18, 20": ("dynamo 18", "dynamo 20"),
    "dynamo, opset 23": ("dynamo 23",),
    "all": ("",),
}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the README: found and right of all blocks, a tool a line, an exporter's kind a column."""
    groups = {
        kind: [row for row in rows if row["exporter"].startswith(tuple(starts))] for kind, starts in KINDS.items()
    }
    heads = [f"{kind}: {len(group)} files" for kind, group in groups.items()]
    lines = [f"| found, right / blocks | {' | '.join(heads)} |", "| --- " * (len(groups) + 1) + "|"]
    for tool in TOOLS:
        cells = [
            f"{_sum(group, tool, 'found')}, {_sum(group, tool, 'right')} / {sum(row['blocks'] for row in group)}"
            for group in groups.values()
        ]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    already = [row for row in rows if row["already"]]
    names = ", ".join(dict.fromkeys(row["exporter"] for row in already)) or "none"
    written = sum(row["already"] for row in already)
    lines += [
        "",
        f"Attention nodes that the exporter itself wrote, counted for a tool that leaves them: {written} ({names}).",
    ]
    return "\n".join(lines)


def _sum(rows: Iterable[Mapping[str, Any]], tool: str, what: str) -> int:
    return sum(row["scores"][tool][what] for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="every family with every exporter, not one each")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--keep", type=Path, help="folder for the exported files, to use them again")
    options = parser.parse_args()
    into = folder(options.keep or Path(tempfile.mkdtemp(prefix="coverage-")))
    rows = measure([case for case in (SWEEP if options.sweep else QUICK) if options.only in case.name], into)
    print(table(rows))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.keep is None and "coverage-" in into.name:
        shutil.rmtree(into)


if __name__ == "__main__":
    main()
