"""A decoding step with hidden states beside one with keys and values: time, what is kept, and how many sentences fit.

Both sides are the cross-attention of all layers of a decoder as ONNX Runtime runs it, from queries [n 1 m] to results
[n 1 m], n the sentences times the beams, every layer with weights of its own: the original multiplies with keys and
values [n h t d] that were kept for each beam and layer; the expanded one reads hidden states [b t m], kept once for
all beams and layers, through the weights that made keys and values. Both give the same numbers, which is checked.
Times are medians of rounds in which both run one after the other in one process. What is kept is told by the session's
inputs, and by the peak memory of processes of their own, less that of those with a single source token. How many
sentences fit a budget follows from what is kept, and their throughput from steps at that size, or at the largest that
`--most` allows. Run `python benchmarks/expanded.py --help`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from attention_systems import session
from measuring import fresh, in_turn, peak_of, save
from onnx import TensorProto, helper, numpy_helper

BYTES, MIB = 4, 2**20  # of a number, and of a MiB
SENTENCES = 4  # whose peak memory is measured: the kernel's own space should not count much
Arrays = dict[str, np.ndarray]


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


@functools.cache
def weights(m: int, layer: int) -> Arrays:
    """Return the projections of one layer [m m]."""
    rng = np.random.default_rng(layer)
    return {name: (rng.standard_normal((m, m)) * m**-0.5).astype(np.float32) for name in ("w_q", "w_k", "w_v", "w_o")}


def layer(shape: Shape, i: int, expanded: bool) -> tuple[list[Any], Arrays]:
    """Return one layer's step, from x{i} to x{i+1}, and its weights: projection, attention, projection."""
    m, h, d = shape.m, shape.h, shape.d
    made = {f"{name}{i}": x for name, x in weights(m, i).items()}
    node = helper.make_node
    nodes = [node("MatMul", [f"x{i}", f"w_q{i}"], [f"q2{i}"]), node("Reshape", [f"q2{i}", "split"], [f"q3{i}"])]
    nodes.append(node("Transpose", [f"q3{i}"], [f"q{i}"], perm=[0, 2, 1, 3]))
    if expanded:
        made |= {name: made[name].T.reshape(h, d, m).copy() for name in (f"w_k{i}", f"w_v{i}")}
        given = [f"q{i}", "memory", f"w_k{i}", f"w_v{i}"]
        nodes.append(node("ExpandedAttention", given, [f"c{i}"], domain="ai.graft"))
    else:
        del made[f"w_k{i}"], made[f"w_v{i}"]
        nodes += [
            node("Transpose", [f"k{i}"], [f"kt{i}"], perm=[0, 1, 3, 2]),
            node("MatMul", [f"q{i}", f"kt{i}"], [f"s{i}"]), node("Mul", [f"s{i}", "scale"], [f"ss{i}"]),
            node("Softmax", [f"ss{i}"], [f"p{i}"], axis=-1), node("MatMul", [f"p{i}", f"v{i}"], [f"c{i}"]),
        ]  # fmt: skip
    nodes += [node("Transpose", [f"c{i}"], [f"c3{i}"], perm=[0, 2, 1, 3])]
    nodes += [node("Reshape", [f"c3{i}", "merge"], [f"c2{i}"]), node("MatMul", [f"c2{i}", f"w_o{i}"], [f"x{i + 1}"])]
    return nodes, made


def step(shape: Shape, expanded: bool) -> onnx.ModelProto:
    """Return a model of one step through all layers."""
    m, h, d, t = shape.m, shape.h, shape.d, shape.t
    layers = [layer(shape, i, expanded) for i in range(shape.layers)]
    arrays: Arrays = {"split": np.array([0, 0, h, d]), "merge": np.array([0, 0, m])}
    arrays |= {"scale": np.array(d**-0.5, np.float32)} if not expanded else {}
    for _, made in layers:
        arrays |= made
    kept: dict[str, list[Any]] = {f"{part}{i}": ["n", h, t, d] for i in range(shape.layers) for part in "kv"}
    kept = {"memory": ["b", t, m]} if expanded else kept
    inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, s) for x, s in {"x0": ["n", 1, m], **kept}.items()]
    outputs = [helper.make_tensor_value_info(f"x{shape.layers}", TensorProto.FLOAT, ["n", 1, m])]
    tensors = [numpy_helper.from_array(x, name) for name, x in arrays.items()]
    graph = helper.make_graph([node for nodes, _ in layers for node in nodes], "step", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.graft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def feeds(shape: Shape, sentences: int, expanded: bool) -> Arrays:
    """Return queries, and what was kept: hidden states, or the keys and values that were made of them."""
    rng, n = np.random.default_rng(1), sentences * shape.beams
    x = rng.standard_normal((n, 1, shape.m)).astype(np.float32)
    memory = rng.standard_normal((sentences, shape.t, shape.m)).astype(np.float32)
    if expanded:
        return {"x0": x, "memory": memory}
    kept = {}
    for i in range(shape.layers):
        for part in "kv":
            made = (memory @ weights(shape.m, i)[f"w_{part}"]).reshape(sentences, shape.t, shape.h, shape.d)
            kept[f"{part}{i}"] = np.repeat(made.transpose(0, 2, 1, 3), shape.beams, axis=0)
    return {"x0": x, **kept}


def step_seconds(shape: Shape, sizes: Mapping[bool, int], args: argparse.Namespace) -> dict[bool, float]:
    """Return the seconds of a step of the original (False) and of the expanded decoder, each at its batch."""
    runs = {}
    for expanded, sentences in sizes.items():
        opened, given = session(step(shape, expanded), args.threads), feeds(shape, sentences, expanded)
        runs[str(expanded)] = lambda opened=opened, given=given: opened.run(None, given)[0]
    if sizes[False] == sizes[True]:
        old, new = runs["False"](), runs["True"]()
        error = float(np.linalg.norm(new - old) / np.linalg.norm(old))
        assert error < 1e-5, f"results are {error:.1e} apart"
    times = in_turn(runs, args.rounds + 1, warm=True)
    return {expanded: statistics.median(times[str(expanded)][1:]) for expanded in sizes}


def anything(shape: Shape, expanded: bool) -> Arrays:
    """Return inputs of some sentences, of numbers that do not matter."""
    n = SENTENCES * shape.beams
    shapes: dict[str, tuple[int, ...]] = {"x0": (n, 1, shape.m), "memory": (SENTENCES, shape.t, shape.m)}
    if not expanded:
        del shapes["memory"]
        shapes |= {f"{part}{i}": (n, shape.h, shape.t, shape.d) for i in range(shape.layers) for part in "kv"}
    return {name: np.ones(lengths, np.float32) for name, lengths in shapes.items()}


def peak(shape: Shape, args: argparse.Namespace, expanded: bool) -> float:
    """Return the MiB that the source side takes in a process of its own: the median of some, whose threads differ."""
    sizes = {name: getattr(shape, name) for name in ("layers", "h", "d", "beams")}
    point = "expanded" if expanded else "original"

    def median(t: int) -> float:
        runs = (fresh(__file__, peak=point, t=t, threads=args.threads, **sizes) for _ in range(5))
        return statistics.median(float(run) for run in runs)

    return median(shape.t) - median(1)


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
        "timed_original": sizes[False], "timed_expanded": sizes[True], "sentences_per_second_original": rate[False],
        "sentences_per_second_expanded": rate[True], "times_the_throughput": rate[True] / rate[False],
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    """Return the settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="sentences")
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
    parser.add_argument("--peak", choices=["original", "expanded"], help="print the MiB of one step, and nothing else")
    return parser.parse_args()


def main() -> None:
    """Print a line per measurement, and write all of them where --json says."""
    args = parsed()
    shape = Shape(layers=args.layers, h=args.h, d=args.d, t=args.t, beams=args.beams)
    if args.peak:
        expanded = args.peak == "expanded"
        one = session(step(shape, expanded), args.threads, arena=False)
        print(peak_of(lambda: one.run(None, anything(shape, expanded)))[0])
        return
    rows = [same_batch(shape, sentences, args) for sentences in args.batches]
    for row in rows:
        old, new = (row[name] / MIB for name in ("original_bytes", "expanded_bytes"))
        print(
            f"{row['sentences']:4} sentences: {row['original_ms']:8.1f} ms a step with keys and values, "
            f"{row['expanded_ms']:8.1f} ms with hidden states ({row['times_slower']:.2f} times), "
            f"kept {old:,.0f} and {new:,.0f} MiB"
        )
    peaks = {name: peak(shape, args, name == "expanded") for name in ("original", "expanded")}
    print(
        f"peak memory of the source side, {SENTENCES} sentences: {peaks['original']:.1f} and {peaks['expanded']:.1f} "
        f"MiB, {peaks['original'] / peaks['expanded']:.0f} times less"
    )
    largest = largest_batch(shape, args)
    print(f"in {args.budget_gib:g} GiB: {largest['fits_original']} sentences, or {largest['fits_expanded']}; a second")
    print(
        f"  {largest['sentences_per_second_original']:.1f} take a step in batches of {largest['timed_original']}, or "
        f"{largest['sentences_per_second_expanded']:.1f} of {largest['timed_expanded']}: "
        f"{largest['times_the_throughput']:.2f} times"
    )
    save(args, onnxruntime, batches=rows, peak_mib=peaks, largest=largest)


if __name__ == "__main__":
    main()
