"""Bad input: one clear sentence, the documented exit code, no traceback, no lost or half-written file.

A row is a command line in a folder of its own. After it the folder must be what it was: a file that stood
at the output path is still there, unchanged, and nothing half-written lies about.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sketch import Sketch
from spellings import SPELLINGS

from rewriter.errors import FAILED

SPELLING = {spelling.id: spelling for spelling in SPELLINGS}
PRECIOUS = b"a file that the user would not like to lose"
APPLY = ("apply", "model.onnx", "-o", "out.onnx")


@dataclass(frozen=True, kw_only=True)
class Bad:
    """One command line that must fail. says: a regex of its sentence."""

    id: str
    argv: tuple[str, ...]
    says: str
    code: int = 2
    prepare: Callable[[Path], None] = lambda folder: None
    env: Mapping[str, str] = field(default_factory=dict)
    room: int | None = None  # bytes that one file may grow to: a full disk


def bad(name: str, argv: str | tuple[str, ...], says: str, prepare: object = None, **more: object) -> Bad:
    words = tuple(argv.split()) if isinstance(argv, str) else argv
    return Bad(id=name, argv=words, says=says, **({"prepare": prepare} if prepare else {}), **more)  # type: ignore[arg-type]


# -- how the folder is spoilt ----------------------------------------------------------------------


def written(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.onnx").write_bytes(content) and None


def cut(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) * 2 // 3])


def opset(version: int) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        model.opset_import[0].version = version
        onnx.save(model, folder / "model.onnx")

    return prepare


def without_opset(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    del model.opset_import[:]
    onnx.save(model, folder / "model.onnx")


def external(
    location: str, outside: str | None = None, size: int | None = None, here: str | None = None
) -> Callable[[Path], None]:
    """Move the weights to a file beside the model, then point the model at ``location``."""

    def prepare(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx")
        onnx.save(
            model,
            folder / "model.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=300,
        )
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(folder=folder)
        onnx.save(model, folder / "model.onnx")
        (folder / "elsewhere").mkdir()
        shutil.move(folder / "weights.bin", folder / "elsewhere" / "weights.bin")
        if here:
            shutil.move(folder / "elsewhere" / "weights.bin", folder / here)
        if outside == "symlink":
            (folder / "link.bin").symlink_to(folder / "elsewhere" / "weights.bin")
        if size is not None:
            (folder / "short.bin").write_bytes((folder / "elsewhere" / "weights.bin").read_bytes()[:size])

    return prepare


def inner(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put the spoilt model one folder down, so that its data lies outside the model's folder."""

    def both(folder: Path) -> None:
        prepare(folder)
        (folder / "inner").mkdir()
        for name in ("model.onnx", "link.bin"):
            if (folder / name).exists():
                shutil.move(folder / name, folder / "inner" / name)

    return both


def linked(folder: Path) -> None:
    (folder / "link.onnx").symlink_to("model.onnx")
    os.link(folder / "model.onnx", folder / "hard.onnx")
    (folder / "inner").mkdir()


def declined(folder: Path) -> None:
    """A site whose probabilities are an output too: read, and declined by every rule."""
    onnx.save(SPELLING["probs-also-output"].build(), folder / "model.onnx")


def unrunnable(folder: Path) -> None:
    """A model with an operator that nobody has registered."""
    sketch = Sketch("unrunnable")
    sketch.attend(context=lambda c: sketch.node("Mystery", c, domain="com.nobody"))
    onnx.save(sketch.model(), folder / "model.onnx")


def other_model(folder: Path) -> None:
    """b.onnx: the same signature, other numbers; c.onnx: another signature."""
    sketch = Sketch("other")
    sketch.attend()
    onnx.save(sketch.model(), folder / "b.onnx")
    info = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["z"], ["zz"])], "c", [info], [])
    graph.output.append(helper.make_tensor_value_info("zz", TensorProto.FLOAT, [1]))
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "c.onnx")


def npz(**arrays: np.ndarray) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        shutil.copy(folder / "model.onnx", folder / "b.onnx")
        np.savez(folder / "in.npz", **arrays)

    return prepare


def text_npz(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "b.onnx")
    (folder / "in.npz").write_text("not a zip")


def twice(folder: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "b.onnx")


def old_runtime(folder: Path) -> None:
    """ONNX Runtime says an old version: a sitecustomize that the child imports first."""
    (folder / "fake").mkdir()
    (folder / "fake" / "sitecustomize.py").write_text('import onnxruntime\nonnxruntime.__version__ = "1.10.0"\n')


X = np.zeros((1, 4, 20), np.float32)
VERIFY = ("verify", "model.onnx", "b.onnx")
NOWHERE = {"GRAFT_LIBRARY": "/nowhere/libruntime_ops.so"}

ROWS = (
    # the model
    bad("no-such-file", "show nothing.onnx", "nothing.onnx"),
    bad("a-folder", "show elsewhere", "elsewhere", lambda folder: (folder / "elsewhere").mkdir()),
    bad("empty-file", APPLY, "ONNX", written(b"")),
    bad("not-onnx-text", APPLY, "ONNX", written(b"# a readme\n" * 40)),
    bad("not-onnx-show", "show model.onnx", "ONNX", written(bytes(range(256)) * 9)),
    bad("not-onnx-why", "why model.onnx", "ONNX", written(b"\x00" * 100)),
    bad("cut-off", APPLY, "ONNX|cut", cut),
    bad("opset-too-old", APPLY, r"opset.*10.*11", opset(10)),
    bad("opset-too-new", APPLY, r"opset.*27.*26", opset(27)),
    bad("opset-too-new-show", "show model.onnx", r"opset.*27.*26", opset(27)),
    bad("opset-not-said", APPLY, "opset", without_opset),
    bad("cannot-be-run", APPLY, "Mystery|com.nobody", unrunnable),
    # external data
    bad("data-missing", APPLY, "gone.bin", external("gone.bin")),
    bad("data-absolute", APPLY, "outside|absolute", external("{folder}/elsewhere/weights.bin")),
    bad(
        "data-parent",
        "apply inner/model.onnx -o out.onnx",
        "outside|folder",
        inner(external("../elsewhere/weights.bin")),
    ),
    bad(
        "data-symlink",
        "apply inner/model.onnx -o out.onnx",
        "outside|link",
        inner(external("link.bin", "symlink")),
    ),
    bad("data-too-short", APPLY, "short.bin", external("short.bin", size=40)),
    # rules and options
    bad("unknown-rule", (*APPLY, "--rule", "topk-attentoin:k=4"), "topk-attentoin.*topk-attention"),
    bad("unknown-option", (*APPLY, "--rule", "topk-attention:keep=4"), r"keep.*\bk\b"),
    bad("option-not-a-number", (*APPLY, "--rule", "topk-attention:k=abc"), "k.*abc"),
    bad("option-a-fraction", (*APPLY, "--rule", "topk-attention:k=1.5"), r"k.*1\.5"),
    bad("option-empty", (*APPLY, "--rule", "topk-attention:k="), "k"),
    bad("option-nameless", (*APPLY, "--rule", "topk-attention:"), "topk-attention:"),
    bad("rule-nameless", (*APPLY, "--rule", ":k=4"), "rule"),
    bad("option-not-a-word", (*APPLY, "--rule", "topk-attention:k=4,remainder=rest"), "remainder.*none, mean, blocks"),
    bad("option-twice", (*APPLY, "--rule", "topk-attention:k=4,k=5"), "k"),
    bad("k-negative", (*APPLY, "--rule", "topk-attention:k=-1"), "k.*-1"),
    bad(
        "option-where-none-is-known",
        (*APPLY, "--rule", "exact-attention:k=4"),
        "exact-attention.*k|k.*exact-attention",
    ),
    bad("unknown-command", "graff model.onnx", "graff"),
    bad("unknown-flag", (*APPLY, "--fast"), "--fast"),
    bad("rules-of-no-such-name", "rules nothing", "nothing"),
    bad("ops-of-no-such-name", "ops Nothing", "Nothing"),
    # where the result goes
    bad("no-output", "apply model.onnx", "output|-o"),
    bad("output-is-input", "apply model.onnx -o model.onnx", "model.onnx"),
    bad("output-is-input-relative", "apply model.onnx -o inner/../model.onnx", "model.onnx|input", linked),
    bad("output-is-input-symlink", "apply model.onnx -o link.onnx", "link.onnx|model.onnx", linked),
    bad("output-is-input-hard-link", "apply model.onnx -o hard.onnx", "hard.onnx|model.onnx", linked),
    bad("output-is-input-by-link", "apply link.onnx -o model.onnx", "link.onnx|model.onnx", linked),
    bad("output-no-such-folder", "apply model.onnx -o nowhere/out.onnx", "nowhere"),
    bad("output-under-a-file", "apply model.onnx -o out.onnx/deep.onnx", "out.onnx"),
    bad("output-is-a-folder", "apply model.onnx -o inner", "inner", linked),
    bad(
        "output-is-the-data",
        "apply model.onnx -o elsewhere/weights.bin",
        "weights.bin",
        external("elsewhere/weights.bin"),
    ),
    bad("output-data-is-the-data", APPLY, "out.onnx.data", external("out.onnx.data", here="out.onnx.data")),
    bad("disk-full", APPLY, "out.onnx|space|large|write", room=2000),
    # sites
    bad("unknown-site", (*APPLY, "--sites", "nothing-of-this-name"), "nothing-of-this-name"),
    bad("why-unknown-site", "why model.onnx nothing-of-this-name", "nothing-of-this-name"),
    bad("strict", (*APPLY, "--strict"), "declin|output|probabilit", declined, code=1),
    bad("expect-more", (*APPLY, "--expect", "5"), r"5.*1|1.*5", code=1),
    bad("expect-negative", (*APPLY, "--expect", "-5"), "--expect"),
    # inputs of verify and bench
    bad("verify-fails", VERIFY, "differ|fail|error|toleran", other_model, code=3),
    bad("verify-other-signature", "verify model.onnx c.onnx", "input|output|signature", other_model),
    bad("tolerance-not-a-number", (*VERIFY, "--tolerance", "small"), "--tolerance", twice),
    bad("tolerance-negative", (*VERIFY, "--tolerance", "-1"), "--tolerance", twice),
    bad("dim-unknown", (*VERIFY, "--dim", "length=4"), "length.*(b|s)", twice),
    bad("dim-malformed", (*VERIFY, "--dim", "s"), "--dim|s", twice),
    bad("dim-not-a-number", (*VERIFY, "--dim", "s=long"), "long", twice),
    bad("dim-zero", (*VERIFY, "--dim", "s=0"), r"s.*0", twice),
    bad("bench-dim-unknown", ("bench", "model.onnx", "b.onnx", "--dim", "length=4,8"), "length", twice),
    bad("bench-no-threads", ("bench", "model.onnx", "b.onnx", "--threads", "0"), "--threads", twice),
    bad("inputs-missing", (*VERIFY, "--inputs", "none.npz"), "none.npz", twice),
    bad("inputs-not-npz", (*VERIFY, "--inputs", "in.npz"), "in.npz", text_npz),
    bad("inputs-wrong-name", (*VERIFY, "--inputs", "in.npz"), r"in\.npz.*\bx\b", npz(y=X)),
    bad("inputs-wrong-rank", (*VERIFY, "--inputs", "in.npz"), r"\bx\b", npz(x=X[0])),
    bad("inputs-wrong-width", (*VERIFY, "--inputs", "in.npz"), r"\bx\b.*(19|20)", npz(x=X[:, :, :19])),
    bad(
        "inputs-wrong-type",
        (*VERIFY, "--inputs", "in.npz"),
        r"\bx\b.*(int64|float)",
        npz(x=X.astype(np.int64)),
    ),
    # the runtime
    bad(
        "runtime-too-old",
        APPLY,
        r"1\.10\.0.*1\.\d\d|1\.\d\d.*1\.10\.0",
        old_runtime,
        env={"PYTHONPATH": "fake"},
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_bad_input(row: Bad, tmp_path: Path) -> None:
    furnish(tmp_path)
    row.prepare(tmp_path)
    before = snapshot(tmp_path)
    done = graft(row.argv, tmp_path, row.env, row.room)
    said = " ".join((done.stderr + done.stdout).split())
    assert done.returncode == row.code, said
    assert "Traceback" not in said
    assert re.search(row.says, said), said
    if row.code != FAILED:  # verify prints its table; everything else is one sentence
        assert re.fullmatch(r"graft: .{20,600}\n", done.stderr), done.stderr
        assert not done.stdout
    assert snapshot(tmp_path) == before


def furnish(folder: Path) -> None:
    onnx.save(SPELLING["scale-mul-after"].build(), folder / "model.onnx")
    (folder / "out.onnx").write_bytes(PRECIOUS)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every path below folder with its content; a link with its target."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            kind = os.readlink(path) if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
            found[str(path.relative_to(folder))] = kind
    return found


def graft(
    argv: tuple[str, ...], folder: Path, env: Mapping[str, str] | None = None, room: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a child, in folder."""
    places = [str(folder / "fake"), *sys.path] if (folder / "fake").exists() else sys.path
    child = {**os.environ, **(env or {}), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    child["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    return subprocess.run(
        [sys.executable, "-m", "rewriter", *argv],
        cwd=folder,
        env=child,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
        preexec_fn=(lambda: full(room)) if room else None,
    )


def full(room: int) -> None:
    """No file may grow beyond room; writing more is an error of the system, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))


# -- what works, and must say what is missing ------------------------------------------------------

STUB = """
#include <stdint.h>
int32_t graft_abi_version(void) { return 9999; }
const char* graft_version(void) { return "99.0.0"; }
const char* graft_list_kernels(void) { return "[]"; }
const char* graft_run_topk_attention(void* args, const char* isa, void* pool) { return "never called"; }
const char* graft_pick_topk_attention(void* args, const char* isa, void* reason) { return 0; }
void* RegisterCustomOps(void* options, void* api) { return 0; }
"""


@pytest.fixture(scope="session")
def foreign_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel library of a version that this package does not speak."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler to build a library of another version with")
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "stub.c").write_text(STUB)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True)
    return folder / "stub.so"


def test_no_library_apply(tmp_path: Path) -> None:
    furnish(tmp_path)
    done = graft(APPLY, tmp_path, NOWHERE)
    assert done.returncode == 0, done.stderr
    assert "function body" in done.stdout + done.stderr
    assert onnx.load(tmp_path / "out.onnx").functions


def test_no_library_doctor(tmp_path: Path) -> None:
    done = graft(("doctor",), tmp_path, NOWHERE)
    assert "/nowhere/libruntime_ops.so" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [APPLY, ("doctor",)], ids=["apply", "doctor"])
def test_foreign_library(argv: tuple[str, ...], foreign_library: Path, tmp_path: Path) -> None:
    """A library of another version is refused by name; it is never called."""
    furnish(tmp_path)
    done = graft(argv, tmp_path, {"GRAFT_LIBRARY": str(foreign_library)})
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode in (0, 2)
    assert re.search(r"stub\.so.*(9999|99\.0\.0)", said), said
    assert "Traceback" not in said


def test_old_runtime_doctor(tmp_path: Path) -> None:
    old_runtime(tmp_path)
    done = graft(("doctor",), tmp_path)
    assert re.search(r"1\.10\.0", done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_dry_run_then_real_run(tmp_path: Path) -> None:
    """A dry run writes nothing; a real run replaces the file and leaves nothing else."""
    furnish(tmp_path)
    assert graft((*APPLY, "--dry-run"), tmp_path).returncode == 0
    assert (tmp_path / "out.onnx").read_bytes() == PRECIOUS
    assert graft(APPLY, tmp_path).returncode == 0
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]
