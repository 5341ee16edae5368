"""Whether the slow tests run too, as `make sweep` has them, and samples of what takes long in every other run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

SLOW = bool(os.environ.get("GRAFT_SWEEP"))
T = TypeVar("T")


def sampled(cases: Sequence[T], every: int) -> Sequence[T]:
    """Return all cases in the sweep, else one of ``every``."""
    return cases if SLOW else cases[::every]
