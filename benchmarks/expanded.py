"""A decoding step with hidden states beside one with keys and values: time, what is kept, and how many sentences fit.

Both sides are one cross-attention layer as ONNX Runtime runs it, from queries [n 1 m] to results [n 1 m], n the
sentences times the beams: the original multiplies with keys and values [n h t d] that were kept for each beam and
layer; the expanded one reads hidden states [b t m], kept once for all beams and layers, through the weights that made
keys and values. Times are medians of rounds in which both run one after the other in one process; a whole step is that
of one layer times the layers, as every layer has its own. The sentences that fit a budget follow from what is kept, and
their throughput from steps at that size, or at the largest that `--most` allows.
Run `python benchmarks/expanded.py --help`.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from measuring import in_turn, save
from onnx import TensorProto, helper, numpy_helper

import runtime_ops

BYTES = 4  # of a number


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's cross-attention: h heads of d channels over hidden states of m = h·d numbers."""

    layers: int
    h: int
    d: int
    t: int
    beams: int

    @property
    def m(self) -> int:
        """Width of the hidden states."""
        return self.h * self.d

    def kept(self, sentences: int, expanded: bool) -> int:
        """Return the bytes that are kept of the source: METHODS' 2·layers·beams·b·t·m, or b·t·m, numbers."""
        once = sentences * self.t * self.m * BYTES
        return once if expanded else 2 * self.layers * self.beams * once


def weights(m: int) -> dict[str, np.ndarray]:
    """Return the projections of one layer [m m]."""
    rng = np.random.default_rng(0)
    return {name: (rng.standard_normal((m, m)) * m**-0.5).astype(np.float32) for name in ("w_q", "w_k", "w_v", "w_o")}


def layer(shape: Shape, expanded: bool) -> bytes:
    """Return one layer's step: projection of queries, attention, projection of results."""
    m, h, d = shape.m, shape.h, shape.d
    made = weights(m)
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w_q"], ["q2"]), node("Reshape", ["q2", "split"], ["q3"])]
    nodes.append(node("Transpose", ["q3"], ["q"], perm=[0, 2, 1, 3]))
    if expanded:
        made.update({name: made[name].T.reshape(h, d, m).copy() for name in ("w_k", "w_v")})
        nodes.append(node("ExpandedAttention", ["q", "memory", "w_k", "w_v"], ["c"], domain="ai.graft"))
        given = {"memory": ["b", shape.t, m]}
    else:
        made = {"w_q": made["w_q"], "w_o": made["w_o"], "scale": np.array(d**-0.5, np.float32)}
        given = {"k": ["n", h, shape.t, d], "v": ["n", h, shape.t, d]}
        nodes += [
            node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "kt"], ["s"]),
            node("Mul", ["s", "scale"], ["ss"]), node("Softmax", ["ss"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["c"]),
        ]  # fmt: skip
    nodes += [node("Transpose", ["c"], ["c3"], perm=[0, 2, 1, 3]), node("Reshape", ["c3", "merge"], ["c2"])]
    nodes.append(node("MatMul", ["c2", "w_o"], ["y"]))
    made |= {"split": np.array([0, 0, h, d]), "merge": np.array([0, 0, m])}
    tensors = [numpy_helper.from_array(np.asarray(x), name) for name, x in made.items()]
    inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, s) for x, s in {"x": ["n", 1, m], **given}.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, m])]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graft", 1)]
    made_model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return made_model.SerializeToString()


def feeds(shape: Shape, sentences: int, expanded: bool) -> dict[str, np.ndarray]:
    """Return queries, and what was kept; of keys and values as many layers as are needed to push out the caches."""
    rng, n = np.random.default_rng(1), sentences * shape.beams
    x = rng.standard_normal((n, 1, shape.m)).astype(np.float32)
    memory = rng.standard_normal((sentences, shape.t, shape.m)).astype(np.float32)
    if expanded:
        return {"x": x, "memory": memory}
    rows = memory.reshape(sentences, shape.t, shape.h, shape.d).transpose(0, 2, 1, 3)
    kept = np.repeat(rows, shape.beams, axis=0)
    return {"x": x, "k": kept, "v": kept.copy()}


def step_seconds(shape: Shape, sizes: dict[bool, int], args: argparse.Namespace) -> dict[bool, float]:
    """Return the seconds of a whole step of the original (False) and of the expanded decoder, each at its batch."""
    runs = {}
    for expanded, sentences in sizes.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        runtime_ops.register(options)
        session = onnxruntime.InferenceSession(layer(shape, expanded), options, ["CPUExecutionProvider"])
        given = feeds(shape, sentences, expanded)
        runs[str(expanded)] = lambda session=session, given=given: session.run(None, given)
    times = in_turn(runs, args.rounds + 1)
    return {expanded: statistics.median(times[str(expanded)][1:]) * shape.layers for expanded in sizes}


def same_batch(shape: Shape, sentences: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return a row: both decoders at one batch."""
    seconds = step_seconds(shape, {False: sentences, True: sentences}, args)
    old, new = (shape.kept(sentences, expanded) for expanded in (False, True))
    return {
        "sentences": sentences, "original_ms": seconds[False] * 1e3, "expanded_ms": seconds[True] * 1e3,
        "times_slower": seconds[True] / seconds[False], "original_bytes": old, "expanded_bytes": new,
        "times_less": old / new,
    }  # fmt: skip


def largest_batch(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Return a row: each decoder at the largest batch whose source side fits the budget."""
    fits = {expanded: int(args.budget_gib * 2**30) // shape.kept(1, expanded) for expanded in (False, True)}
    sizes = {expanded: max(1, min(count, args.most)) for expanded, count in fits.items()}
    seconds = step_seconds(shape, sizes, args)
    rate = {expanded: sizes[expanded] / seconds[expanded] for expanded in sizes}
    return {
        "budget_gib": args.budget_gib, "fits_original": fits[False], "fits_expanded": fits[True],
        "timed_original": sizes[False], "timed_expanded": sizes[True], "steps_per_second_original": rate[False],
        "steps_per_second_expanded": rate[True], "times_the_throughput": rate[True] / rate[False],
    }  # fmt: skip


def main() -> None:
    """Print a line per measurement, and write all of them where --json says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="sentences")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--h", type=int, default=16, help="heads")
    parser.add_argument("--d", type=int, default=64, help="width of a head")
    parser.add_argument("--t", type=int, default=1024, help="source tokens")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--budget-gib", type=float, default=2.0, help="memory for what is kept")
    parser.add_argument("--most", type=int, default=64, help="sentences that are timed at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shape = Shape(layers=args.layers, h=args.h, d=args.d, t=args.t, beams=args.beams)
    rows = []
    for sentences in args.batches:
        row = same_batch(shape, sentences, args)
        rows.append(row)
        old, new = (row[name] / 2**20 for name in ("original_bytes", "expanded_bytes"))
        print(
            f"{sentences:4} sentences: {row['original_ms']:8.1f} ms a step with keys and values, "
            f"{row['expanded_ms']:8.1f} ms with hidden states ({row['times_slower']:.2f} times), "
            f"kept {old:,.0f} and {new:,.0f} MiB"
        )
    largest = largest_batch(shape, args)
    print(f"in {args.budget_gib:g} GiB: {largest['fits_original']} sentences, or {largest['fits_expanded']}; a second")
    print(
        f"  {largest['steps_per_second_original']:.1f} of {largest['timed_original']} take a step, or "
        f"{largest['steps_per_second_expanded']:.1f} of {largest['timed_expanded']}: "
        f"{largest['times_the_throughput']:.2f} times"
    )
    save(args, onnxruntime, batches=rows, largest=largest)


if __name__ == "__main__":
    main()
