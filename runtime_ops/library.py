"""The kernel library: where it lies, and loading it, checked to be the one that belongs to this package.

`GRAFT_LIBRARY` names another library file.
"""

from __future__ import annotations

import ctypes
import functools
import os
from importlib import metadata
from pathlib import Path

import runtime_ops
from runtime_ops import abi
from runtime_ops.abi import LibraryError

_DISTRIBUTION = "attn-graft"


def library_path() -> Path | None:
    """Return where the kernel library lies, or None where this installation has none."""
    return find_library("GRAFT_LIBRARY", "libruntime_ops.so")


def find_library(variable: str, name: str) -> Path | None:
    """Return the file that an environment variable names, or that lies in this package; None if there is none."""
    named = os.environ.get(variable)
    # an editable install keeps what it built in a folder of its own, which is part of the package's path
    paths = [Path(named)] if named else [Path(folder) / name for folder in runtime_ops.__path__]
    return next((path for path in paths if path.is_file()), None)


def open_library(path: Path) -> ctypes.CDLL:
    """Open a library file.

    Raises:
        LibraryError: the system does not load it.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryError(f"{path} cannot be loaded: {error}") from error


def load() -> ctypes.CDLL:
    """Load the kernel library, checked to be the one that belongs to this package."""
    path = library_path()
    if path is None:
        named = os.environ.get("GRAFT_LIBRARY")
        where = f"GRAFT_LIBRARY names {named}, which is no file" if named else "this installation has no library"
        raise LibraryError(
            f"No compiled kernels: {where}. Models still run, on the standard operators of their functions."
        )
    return _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    library = open_library(path)
    if not hasattr(library, "graft_abi_version"):
        raise LibraryError(f"{path} is no graft kernel library: it has no graft_abi_version")
    for name in ("graft_version", "graft_list_kernels"):
        getattr(library, name).restype = ctypes.c_char_p
    _check_versions(library, path)
    return library


def _check_versions(library: ctypes.CDLL, path: Path) -> None:
    found = library.graft_abi_version()
    if found != abi.ABI_VERSION:
        raise LibraryError(
            f"{path} has ABI version {found}, this package needs {abi.ABI_VERSION}: build or install them together."
        )
    try:
        wanted = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return
    found = library.graft_version().decode()
    if found != wanted:
        raise LibraryError(f"{path} belongs to {_DISTRIBUTION} {found}, not to the installed {wanted}.")
