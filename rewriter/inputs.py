"""Inputs to try a model on: made up from its signature, or read from an .npz file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.errors import GraftError
from rewriter.hosts.base import Graphs
from runtime_ops import interpret
from runtime_ops.dims import Dim, Sym, bind
from runtime_ops.words import Expr

Feeds = dict[str, np.ndarray]
# Sizes of the batch and of all other free dimensions, tried in turn until the model runs.
SIZES = ((2, 16), (1, 16), (2, 48), (1, 32), (1, 64), (1, 128), (1, 224), (1, 320))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs for one run, and what is special about them."""

    name: str
    feeds: Feeds


@dataclass(frozen=True, kw_only=True)
class _Signature:
    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype
    vocabulary: int | None  # length of the smallest table that it indexes
    mask: bool


class Signature:
    """The inputs of a model: names, symbolic shapes, types, and what they are for."""

    def __init__(self, graphs: Graphs) -> None:
        self.inputs = [_signature(graphs, expr) for expr in graphs.inputs()]

    @property
    def dims(self) -> list[str]:
        """Names of the lengths that are free."""
        names = {n: None for i in self.inputs for d in i.shape if isinstance(d, Sym) for m, _ in d.terms for n in m}
        return list(names)

    def sizes(self, given: Mapping[str, int], batch: int, length: int) -> dict[str, int]:
        """Return a number for every free length: those given, ``batch`` where the name says so, else ``length``.

        Raises:
            GraftError: a given name is not a free length of this model.
        """
        unknown = sorted(set(given) - set(self.dims))
        if unknown:
            raise GraftError(f"the model has no free dimension '{unknown[0]}'; it has {', '.join(self.dims) or 'none'}")
        guess = {name: batch if "batch" in name.lower() else length for name in self.dims}
        return {**guess, **given}

    def feeds(self, sizes: Mapping[str, int], seed: int = 0, visible: str = "all") -> Feeds:
        """Return inputs of the given sizes; ``visible`` is "all", "ragged" or "none" (of the last row's tokens)."""
        rng = np.random.default_rng(seed)
        return {i.name: _array(i, sizes, rng, visible) for i in self.inputs}

    def cases(self, given: Mapping[str, int], batch: int, length: int) -> Iterator[Case]:
        """Yield the runs that verification makes: plain, padded, one token, one row fully masked."""
        sizes = self.sizes(given, batch, length)
        yield Case(name="plain", feeds=self.feeds(sizes))
        if any(i.mask for i in self.inputs):
            yield Case(name="padded", feeds=self.feeds(sizes, 1, "ragged"))
            yield Case(name="fully masked row", feeds=self.feeds(sizes, 2, "none"))
        if self.dims:
            yield Case(name="length 1", feeds=self.feeds(self.sizes(given, batch, 1), 3))


def _signature(graphs: Graphs, expr: Expr) -> _Signature:
    name = expr.handle.name
    if expr.shape is None or expr.dtype is None:
        raise GraftError(f"input '{name}' has no declared shape or type; pass inputs with --inputs FILE.npz")
    vocabulary = _vocabulary(graphs, expr)
    mask = vocabulary is None and (expr.dtype == bool or "mask" in name.lower())
    return _Signature(name=name, shape=expr.shape, dtype=expr.dtype, vocabulary=vocabulary, mask=mask)


def _vocabulary(graphs: Graphs, expr: Expr) -> int | None:
    """Return the length of the smallest table that an input picks rows of."""
    if expr.dtype is None or expr.dtype.kind not in "iu":
        return None
    found, stack = [], [expr]
    while stack:
        node = stack.pop()
        for user in graphs.readers(node):
            if user.word == "gather" and user.args[1] is node and user.args[0].shape:
                length = user.args[0].shape[user.attrs["axis"]]
                found += [length] if isinstance(length, int) and user.args[0].word != "dim" else []
            elif user.word in ("cast", "reshape", "unsqueeze", "squeeze", "transpose"):
                stack.append(user)
    return min(found, default=None)


def _array(i: _Signature, sizes: Mapping[str, int], rng: np.random.Generator, visible: str) -> np.ndarray:
    shape = tuple(bind(d, sizes) for d in i.shape)
    if i.mask:
        return _mask(shape, visible, rng).astype(i.dtype)
    if i.dtype.kind in "iu":
        own = np.random.default_rng([zlib.crc32(i.name.encode()), int(rng.integers(1 << 30))])
        return own.integers(0, i.vocabulary or 2, shape).astype(i.dtype)
    if interpret.is_float(i.dtype):
        return rng.standard_normal(shape).astype(i.dtype)
    raise GraftError(f"input '{i.name}' has type {i.dtype}; pass inputs with --inputs FILE.npz")


def _mask(shape: Sequence[int], visible: str, rng: np.random.Generator) -> np.ndarray:
    keep = np.ones(shape, bool)
    if visible == "all" or not shape or not keep.size:
        return keep
    rows = keep.reshape(-1, shape[-1])
    rows[-1] = np.arange(shape[-1]) < (0 if visible == "none" else int(rng.integers(1, max(2, shape[-1]))))
    return keep


def load(path: str | os.PathLike[str], signature: Signature) -> Feeds:
    """Return the arrays of an .npz file, checked against the model's inputs.

    Raises:
        GraftError: the file cannot be read, an input is missing or unknown, or has the wrong type or rank.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            feeds = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise GraftError(f"{path}: is not a readable .npz file") from error
    wanted = {i.name: i for i in signature.inputs}
    for name in [*wanted, *feeds]:
        if name not in feeds:
            raise GraftError(
                f"{path}: has no array '{name}' but {', '.join(feeds)}; the inputs are {', '.join(wanted)}"
            )
        if name not in wanted:
            raise GraftError(f"{path}: has an array '{name}' that is no input; the inputs are {', '.join(wanted)}")
        _check(str(path), feeds[name], wanted[name])
    return feeds


def _check(path: str, array: np.ndarray, wanted: _Signature) -> None:
    fixed = [d if isinstance(d, int) else None for d in wanted.shape]
    fits = array.ndim == len(fixed) and all(f in (None, n) for f, n in zip(fixed, array.shape, strict=True))
    if array.dtype != wanted.dtype or not fits:
        shape = ", ".join(str(d) for d in wanted.shape)
        got = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
        raise GraftError(f"{path}: array '{wanted.name}' is {got}; the model takes {wanted.dtype}[{shape}]")
