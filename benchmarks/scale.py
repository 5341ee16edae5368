"""How long graft reads and rewrites large models, and how much memory it adds. --json for machines.

Graphs of 500 to 50,000 nodes (transformer blocks as the legacy exporter writes them) and a small graph
with 3 GiB of external weights, each in a process of its own, verification apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from big import heavy, measured, transformer  # the builders that the tests use

SIZES = (500, 1500, 5000, 15000, 50000)


def rows(sizes: tuple[int, ...], weights: bool) -> list[dict[str, float | str]]:
    """Measure every model; a row is its name, nodes, weights in GiB and what tests/big.py answers."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder) / "model.onnx", Path(folder) / "out.onnx"
        for nodes in sizes:
            proto = transformer(nodes)
            onnx.save(proto, model)
            made.append({"model": f"{nodes} nodes", "nodes": len(proto.graph.node), **measured(model, output)})
        if weights:
            size = heavy(model)
            made.append({"model": f"{size / 2**30:.1f} GiB of weights", **measured(model, output)})
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="up to 5,000 nodes, no large weights")
    asked = parser.parse_args()
    made = rows(SIZES[:3] if asked.quick else SIZES, not asked.quick)
    if asked.json:
        sys.stdout.write(json.dumps({"benchmark": "scale", "rows": made}, indent=2) + "\n")
        return
    sys.stdout.write(f"{'model':24}{'sites':>8}{'read s':>10}{'rewrite s':>12}{'peak MiB':>10}\n")
    for row in made:
        cells = f"{row['sites']:>8}{row['read_s']:>10.2f}{row['rewrite_s']:>12.2f}{row['peak_mib']:>10.0f}"
        sys.stdout.write(f"{row['model']:24}{cells}\n")


if __name__ == "__main__":
    main()
