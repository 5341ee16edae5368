"""What the benchmarks measure with: times in turn, memory in processes of their own, and the file of a run."""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_HIDDEN = ("json", "peak", "point", "fill")  # arguments that are no settings


def in_turn(runs: Mapping[str, Callable[[], Any]], rounds: int, *, warm: bool = False) -> dict[str, list[float]]:
    """Return seconds by name and round. ``warm``: run twice, so that weights which others pushed out are back."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(0.02)  # the pool of the one before stops spinning
            if warm:
                run()
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return times


def resident(key: str) -> float:
    """Read a memory figure of this process in MiB: VmRSS now, VmHWM its highest since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the MiB that one run needs beyond what was resident before it, result included, and the result."""
    ctypes.CDLL(None).malloc_trim(0)  # else it would fit into what making the session left behind
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = run()
    return resident("VmHWM") - before, result


def fresh(script: str, **options: object) -> str:
    """Return what a script prints in a process of its own, given ``--name value`` for every option."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def machine(*packages: str) -> dict[str, str]:
    """Return what was measured on and with; packages that are not installed are left out."""
    found = {"machine": platform.processor() or platform.machine()}
    return found | {name: metadata.version(name) for name in packages if find_spec(name)}


def save(args: argparse.Namespace, library: ModuleType, **told: Any) -> None:
    """Write the machine, the settings and what is told where ``--json`` says, if it does."""
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in _HIDDEN}
        told = {**machine(library.__name__), "settings": settings, **told}
        args.json.write_text(json.dumps(told, indent=1) + "\n")
