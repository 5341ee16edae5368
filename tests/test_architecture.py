"""The laws of docs/design.md that a machine can check; exceptions are listed here, each with its reason."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from spellings import SPELLINGS

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime_ops", "rewriter", "patterns")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SCRIPTS = [path for folder in ("benchmarks", "docs", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]

# A package may import those on its left, never backwards: patterns → rewriter → runtime_ops.
FORBIDDEN = {"runtime_ops": {"rewriter", "patterns"}, "rewriter": {"patterns"}, "patterns": set[str]()}

# Who may import onnx_ir beside the ONNX host (rewriter/hosts/onnx*.py, the only editor of graphs), and what for.
ONNX_IR = {
    "rewriter/files.py": "opens and saves models",
    "rewriter/onnx_host.py": "takes and returns models, from files or from memory",
    "rewriter/onnx_proof.py": "saves the models that it compares, and each site as a model of its own",
    "rewriter/export.py": "the type of what it returns",
    "rewriter/fx_export.py": "completes the models that torch's exporter makes",
    "rewriter/doctor.py": "builds the one-node model that it runs",
    "runtime_ops/to_onnx.py": "spells words as nodes",
    "runtime_ops/bodies.py": "writes function bodies",
    "runtime_ops/spec.py": "the type of a function body",
}
# Who may import torch, and what for; nobody else may import these, so that everything else runs without torch.
TORCH = {
    "rewriter/fx_host.py": "takes and returns graphs and programs",
    "rewriter/fx_proof.py": "runs them",
    "rewriter/fx_export.py": "calls torch's exporter",
    "rewriter/fx_distill.py": "trains graphs",
    "runtime_ops/cuda.py": "takes torch tensors; imports torch when first called",
    "runtime_ops/to_torch.py": "the torch interpreter of the alphabet",
    "runtime_ops/torch_ops.py": "makes the torch ops",
    "runtime_ops/torch_run.py": "who runs them",
    "runtime_ops/transformers_attention.py": "takes transformers' tensors",
    "runtime_ops/torch_layout.py": "tokens first as views",
    "runtime_ops/torch_training.py": "what training takes",
    "runtime_ops/torch_attention.py": "gradients of attention",
    "runtime_ops/torch_feed_forward.py": "gradients of feed-forward blocks",
    "runtime_ops/torch_chunks.py": "cuts attention up",
    "runtime_ops/torch_remainder.py": "what becomes of keys that were not chosen",
    "runtime_ops/torch_select.py": "products with few columns",
}

LONGEST_FILE, LONGEST_FUNCTION = 300, 40
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "rewriter/recipe.py::apply": "its docstring tells every argument of the main entry point",
    "rewriter/distilling.py::distill": "its docstring tells every argument, and the loss",
    "runtime_ops/kernels.py::run_topk_attention": "its signature is the operation's, one argument a line",
    "runtime_ops/ops/topk_attention.py::samples": "a table of calls",
    "runtime_ops/ops/expanded_attention.py::samples": "a table of calls",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def needs_torch(path: Path) -> bool:
    """The torch host (rewriter/hosts/fx*.py), and what is listed."""
    return name(path).startswith("rewriter/hosts/fx") or name(path) in TORCH


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_import_direction(path: Path) -> None:
    """Even an import by name at run time counts: rewriter finds patterns through its entry points alone."""
    backwards = FORBIDDEN[name(path).partition("/")[0]]
    assert not roots(path) & backwards
    called = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    strings = {arg.value for call in called for arg in call.args if isinstance(arg, ast.Constant)}
    assert not strings & backwards


@pytest.mark.parametrize("path", FILES, ids=name)
def test_who_imports_onnx_ir_and_torch(path: Path) -> None:
    host = name(path).startswith("rewriter/hosts/onnx")
    assert "onnx_ir" not in roots(path) or host or name(path) in ONNX_IR
    assert "torch" not in roots(path) or needs_torch(path)


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=name)
def test_length(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE or name(path) in LONG_FILES, f"{lines} lines"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            long = (node.end_lineno or node.lineno) - node.lineno + 1
            assert long <= LONGEST_FUNCTION or f"{name(path)}::{node.name}" in LONG_FUNCTIONS, f"{node.name}: {long}"


def test_exceptions_are_needed() -> None:
    """An exception whose file is gone is struck from the list."""
    listed = {*ONNX_IR, *TORCH, *LONG_FILES, *(entry.partition("::")[0] for entry in LONG_FUNCTIONS)}
    assert listed <= {name(path) for path in [*FILES, *SCRIPTS]}


# A child that cannot import torch, or anything of the rewriter's own that a command does not need.
CHILD = """
import sys

class Forbid:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in {banned}:
            raise ImportError(module + " must not be imported here")

sys.meta_path.insert(0, Forbid())
{code}
"""
EVERYTHING = """
import importlib, pathlib
for path in sys.argv[1:]:
    importlib.import_module(path)
import rewriter
for entry in rewriter.__all__:
    getattr(rewriter, entry)
rewriter.rules(), rewriter.ops()
"""


def child(banned: set[str], code: str, *args: str) -> subprocess.CompletedProcess[str]:
    source = CHILD.format(banned=banned, code=code)
    return subprocess.run([sys.executable, "-c", source, *args], cwd=ROOT, text=True, capture_output=True, check=False)


def test_the_onnx_side_needs_no_torch() -> None:
    modules = [name(path).removesuffix(".py").replace("/", ".") for path in FILES if not needs_torch(path)]
    modules = [m.removesuffix(".__init__") for m in modules if not m.endswith("__main__")]
    done = child({"torch"}, EVERYTHING, *modules)
    assert done.returncode == 0, done.stderr


def test_help_needs_nothing_heavy() -> None:
    heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "ml_dtypes"}
    code = "import contextlib, rewriter.cli as c\nassert c.console.run(c.app, ['--help']) == 0"
    done = child(heavy, code)
    assert done.returncode == 0, done.stderr
    assert "Usage: graft" in done.stdout


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


APPLY = """
import rewriter, rewriter.errors
shown = rewriter.show(sys.argv[1])
report = rewriter.apply(sys.argv[1], output=sys.argv[2])
assert len(shown.sites) == report.rewritten == 1, report
try:
    rewriter.to_onnx(None)
except rewriter.errors.GraftError as error:
    assert "needs torch" in str(error)
assert "torch" not in sys.modules
"""


def test_models_are_rewritten_without_torch(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(SPELLINGS[0].build(), model)
    done = child({"torch"}, APPLY, str(model), str(tmp_path / "out.onnx"))
    assert done.returncode == 0, done.stderr
