"""Opening and saving models: weights stay on disk, bad files give one sentence, nothing is half written."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from rewriter.errors import GraftError
from rewriter.quiet_gc import quiet_gc
from runtime_ops.to_onnx import MAX_OPSET, MIN_OPSET

_DATA = ".data"  # ending of the file of external weights
_EMBED_LIMIT = 1 << 30  # bytes of weights above which a model is saved with external data


@quiet_gc
def open_model(path: str | os.PathLike[str]) -> ir.Model:
    """Return the model in a file; its external weights are mapped, not read.

    Raises:
        GraftError: the file is missing, not ONNX or cut off, its external data is missing, cut off or outside
            its folder, or its opset is not supported.
    """
    file = Path(path)
    if not file.is_file():
        raise GraftError(f"{file}: {'is a folder, not a model file' if file.is_dir() else 'no such file'}")
    try:
        model = ir.load(file)
    except OSError as error:
        raise GraftError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf raises its own types, per implementation
        raise GraftError(f"{file}: is not an ONNX model, or is cut off") from error
    if not len(model.graph) and not model.graph.outputs:
        raise GraftError(f"{file}: is not an ONNX model, or is empty")
    check_opset(model, str(file))
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            _check_external(value.const_value, file)
    return model


def check_opset(model: ir.Model, name: str) -> None:
    """Raise GraftError unless the model's default opset is one that graft writes."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is None:
        raise GraftError(f"{name}: imports no opset of the default ONNX domain")
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise GraftError(f"{name}: has opset {opset}; graft rewrites opsets {MIN_OPSET} to {MAX_OPSET}")


def _check_external(tensor: ir.ExternalTensor, file: Path) -> None:
    location = str(tensor.location)
    folder = file.resolve().parent
    target = (folder / location).resolve()
    if Path(location).is_absolute() or not target.is_relative_to(folder):
        raise GraftError(f"{file}: the external data '{location}' of {tensor.name} lies outside the model's folder")
    if not target.is_file():
        raise GraftError(f"{file}: its external data '{location}' is missing")
    end = (tensor.offset or 0) + (tensor.length or 0)
    if target.stat().st_size < end:
        raise GraftError(f"{file}: its external data '{location}' is cut off: {tensor.name} ends at byte {end}")


def check_output(output: str | os.PathLike[str], source: str | os.PathLike[str] | None) -> Path:
    """Return the output's path.

    Raises:
        GraftError: it would overwrite the input or its external data, is a folder, or lies in a folder that does
            not exist or cannot be written.
    """
    path = Path(output)
    if source is not None and path.exists() and os.path.samefile(path, source):
        raise GraftError(f"{path}: is the input; choose another output, the original is not overwritten")
    for target in (path, path.with_name(path.name + _DATA)):
        if source is not None and target.exists() and any(os.path.samefile(target, f) for f in _data_files(source)):
            raise GraftError(f"{target}: holds weights of the input; choose another output")
    if path.is_dir():
        raise GraftError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise GraftError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise GraftError(f"{path}: the folder {path.parent} cannot be written")
    return path


def free_folder(output: str | os.PathLike[str]) -> Path:
    """Return the path of a folder to write, which does not exist yet or is empty.

    Raises:
        GraftError: it is a file, is not empty, or lies in a folder that does not exist.
    """
    path = Path(output)
    if path.is_dir() and any(path.iterdir()):
        raise GraftError(f"{path}: is a folder that is not empty; name a new one")
    if path.exists() and not path.is_dir():
        raise GraftError(f"{path}: is a file; name a folder")
    if not path.absolute().parent.is_dir():
        raise GraftError(f"{path}: the folder {path.parent} does not exist")
    return path


def copy_beside(model: Path, names: Iterable[str], folder: Path) -> None:
    """Copy those of some files that lie beside a model into a folder."""
    for file in map(model.with_name, names):
        if file.is_file():
            shutil.copy(file, folder / file.name)


def publish_folder(staged: Path, folder: Path) -> Mapping[str, int]:
    """Put a staged folder in its place, and return the size of every file."""
    sizes = {file.name: file.stat().st_size for file in sorted(staged.iterdir())}
    staged.chmod(0o755)
    os.replace(staged, folder)
    return sizes


def _data_files(source: str | os.PathLike[str]) -> set[Path]:
    """Return the files that hold the external data of a model."""
    weights = (v.const_value for v in open_model(source).graph.initializers.values())
    return {Path(w.path) for w in weights if isinstance(w, ir.ExternalTensor)}


@contextlib.contextmanager
def staging(beside: Path) -> Iterator[Path]:
    """Give a fresh folder beside ``beside`` (so that a rename moves its files); it is removed in the end.

    Raises:
        GraftError: the folder cannot be made, or the disk is full or fails while it is used.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{beside.name}.", dir=beside.parent))
    except OSError as error:
        raise GraftError(f"{beside}: cannot be written: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise GraftError(f"{beside}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@quiet_gc
def save_into(model: ir.Model, folder: Path, name: str) -> Path:
    """Write a model into a staging folder; large or external weights go into ``NAME.data`` beside it."""
    target = folder / name
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    external = any(isinstance(w, ir.ExternalTensor) for w in weights)
    total = sum(w.nbytes for w in weights)
    ir.save(model, target, external_data=name + _DATA if external or total > _EMBED_LIMIT else None)
    return target


def publish(folder: Path, output: Path) -> None:
    """Move the files of a staging folder to where they belong, weights first, each by one rename."""
    for file in sorted(folder.iterdir(), key=lambda f: f.name == output.name):
        os.replace(file, output.parent / file.name)
