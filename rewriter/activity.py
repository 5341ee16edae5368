"""How many neurons of each feed-forward block are at work, measured on inputs, so that a k can be chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.host import Host
from rewriter.reading import Reading
from rewriter.report import Activity, Count
from runtime_ops import interpret

SHARES = (0.99, 0.999)  # of the sum of squares that a token's largest neurons hold
_ROWS = 1024  # tokens that are sorted at a time


def measure(host: Host, reading: Reading) -> dict[str, Activity]:
    """Return the activity of every feed-forward block whose inner values can be captured, by site.

    Raises:
        GraftError: the model does not run on the host's inputs.
    """
    inner = {name: site.inner for name, site in reading.sites.items() if hasattr(site, "inner")}
    inner = {name: operand for name, operand in inner.items() if operand.value.handle is not None}
    with tempfile.TemporaryDirectory(prefix="graft-") as folder:
        prover = host.prover(None, lambda what, done, total: None, Path(folder))
        captured = prover.capture(reading, [operand.value.handle for operand in inner.values()])
    found = {
        name: _activity(_tokens(operand, captured), gated=reading.sites[name].gated) for name, operand in inner.items()
    }
    return {name: activity for name, activity in found.items() if activity is not None}


def _tokens(operand: Any, captured: Iterable[Mapping[Any, np.ndarray]]) -> np.ndarray | None:
    """Return the inner values with a row per token [n f]; None where they were not captured or cannot be told apart."""
    at = [n - len(operand.axes) for n, axis in enumerate(operand.axes) if any(a.letter == "f" for a in axis)]
    merged = any({a.letter for a in operand.axes[n]} != {"f"} for n in at)
    arrays = [values[operand.value.handle] for values in captured if operand.value.handle in values]
    if merged or not at or not arrays:
        return None
    last = [np.moveaxis(array, at, range(-len(at), 0)) for array in arrays]
    width = int(np.prod(last[0].shape[-len(at) :]))
    return np.concatenate([interpret.widen(array).reshape(-1, width) for array in last])


def _activity(tokens: np.ndarray | None, gated: bool) -> Activity | None:
    tokens = None if tokens is None else tokens[np.isfinite(tokens).all(axis=1)]
    if tokens is None or not tokens.size:
        return None
    held = np.concatenate([_held(tokens[n : n + _ROWS]) for n in range(0, len(tokens), _ROWS)])
    return Activity(
        tokens=len(tokens),
        positive=None if gated else float((tokens > 0).mean()),
        nonzero=_count((tokens != 0).sum(axis=1)),
        largest={share: _count(held[:, n]) for n, share in enumerate(SHARES)},
    )


def _held(tokens: np.ndarray) -> np.ndarray:
    """Return how many of each token's largest neurons hold each of ``SHARES`` of its sum of squares [n shares]."""
    sums = np.cumsum(np.sort(np.square(tokens, dtype=np.float64), axis=1)[:, ::-1], axis=1)
    return np.stack([((sums < share * sums[:, -1:]).sum(axis=1) + (sums[:, -1] > 0)) for share in SHARES], axis=1)


def _count(neurons: np.ndarray) -> Count:
    return Count(median=int(np.median(neurons)), most=int(neurons.max()))
