"""Graphs are a million small objects that live until the end; the cyclic collector would scan them again and again."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def quiet_gc(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function`` with the cyclic garbage collector paused while it runs."""

    @functools.wraps(function)
    def paused(*args: P.args, **kwargs: P.kwargs) -> T:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if was_on:
                gc.enable()

    return paused
