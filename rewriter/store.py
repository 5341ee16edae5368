"""Hidden states of passages on disk: an LMDB file that many may read while one writes.

Every entry is written in a transaction, so that a reader, or who comes after a crash, sees it whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.errors import GraftError

KINDS = ("float16", "int8")
_ABOUT = b"about"
_SPACE = 1 << 40  # bytes of addresses; the file grows as it is filled
Array = np.ndarray[Any, np.dtype[Any]]


class Store:
    """Hidden states [t m] by key.

    Args:
        path: a folder, made where there is none.
        about: what the states depend on; a store that was made for something else is refused.
        kind: "float16", or "int8" with one scale a token. Largest error of int8: 1/254 of the token's largest value.

    Raises:
        GraftError: the store belongs to another split or another kind, or it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any], kind: str = KINDS[0]) -> None:
        if kind not in KINDS:
            raise GraftError(f"a store is of kind {' or '.join(KINDS)}, not '{kind}'")
        self.path, self.width, self.int8 = Path(path), int(about["width"]), kind == "int8"
        self._lmdb = _library()
        if self.path.exists() and not (self.path / "data.mdb").exists() and (self.path.is_file() or _filled(self.path)):
            raise GraftError(f"{self.path}: is no store of passages; name a new folder")
        try:
            self._file = self._lmdb.open(str(self.path), map_size=_SPACE, max_readers=512)
            self._file.reader_check()  # readers that were killed would keep old pages from being used again
        except self._lmdb.Error as error:
            raise GraftError(f"{self.path}: cannot be opened as a store: {error}") from error
        self._check({**about, "kind": kind})

    def _check(self, about: Mapping[str, Any]) -> None:
        with self._file.begin(write=True) as transaction:
            found = transaction.get(_ABOUT)
            if found is None and not transaction.stat()["entries"]:
                transaction.put(_ABOUT, json.dumps(about).encode())
                return
        if found is None:
            raise GraftError(f"{self.path}: is no store of passages; name a new folder")
        there = json.loads(found)
        other = [name for name in about if there.get(name) != about[name]]
        if other:
            raise GraftError(
                f"{self.path}: was made for another split: its {other[0]} is {there.get(other[0])}, "
                f"not {about[other[0]]}; name a new folder"
            )

    def __len__(self) -> int:
        with self._file.begin() as transaction:
            return int(transaction.stat()["entries"]) - 1

    @property
    def used(self) -> int:
        """How many bytes of the file are in use."""
        return int((self._file.info()["last_pgno"] + 1) * self._file.stat()["psize"])

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return which of the keys have no entry, by place."""
        with self._file.begin(buffers=True) as transaction:
            return [n for n, key in enumerate(keys) if transaction.get(key) is None]

    def put(self, entries: Mapping[bytes, Array]) -> None:
        """Write entries, all or none."""
        with self._file.begin(write=True) as transaction:
            for key, hidden in entries.items():
                transaction.put(key, self._packed(hidden))

    def get(self, keys: Sequence[bytes]) -> list[Array | None]:
        """Return the hidden states [t m] in fp32, None where there are none."""
        with self._file.begin(buffers=True) as transaction:
            found = (transaction.get(key) for key in keys)
            return [None if entry is None else self._opened(entry) for entry in found]

    def close(self) -> None:
        """Close the file; nothing can be read after."""
        self._file.close()

    def _packed(self, hidden: Array) -> bytes:
        if not self.int8:
            return bytes(hidden.astype(np.float16).tobytes())
        scale = np.abs(hidden).max(axis=1, initial=0.0).astype(np.float32) / 127
        small = np.rint(hidden / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
        return bytes(scale.tobytes() + small.tobytes())

    def _opened(self, entry: Any) -> Array:
        if not self.int8:
            return np.frombuffer(entry, np.float16).reshape(-1, self.width).astype(np.float32)
        tokens = len(entry) // (4 + self.width)
        scale = np.frombuffer(entry, np.float32, tokens)
        small = np.frombuffer(entry, np.int8, offset=4 * tokens).reshape(tokens, self.width)
        return small.astype(np.float32) * scale[:, None]


def _filled(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _library() -> Any:
    try:
        import lmdb
    except ImportError:
        raise GraftError("a store of passages needs the package lmdb: pip install 'attn-graft[store]'") from None
    return lmdb
