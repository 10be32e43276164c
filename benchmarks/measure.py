"""Timing, and what must be known about a machine to read its timings."""
from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metalit.comparison import environment

RESULTS = Path("results")


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds per call, over `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e3


def repeats_for(call: Callable[[], Any], budget: float, warm_up: int = 5) -> int:
    """How many calls fit into `budget` seconds, at least one; warms the call up first."""
    for _ in range(warm_up):
        call()
    return max(1, int(budget * 1e3 / timed(call, 2)))


def in_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, budget: float
) -> dict[str, list[float]]:
    """Milliseconds per call in every round, the calls taking turns: A B C … A B C ….

    A disturbance of the machine then falls on all of them. `budget` is in seconds for one call in
    one round.
    """
    repeats = {name: repeats_for(call, budget) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call, repeats[name]))
    return times


def spread(times: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def machine() -> dict[str, Any]:
    """Processor, cores, threads, system, Python, and the load by others."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return environment() | {"load_average": load}


def versions(*packages: str) -> dict[str, str]:
    """The installed release of each package."""
    return {package: importlib.metadata.version(package) for package in packages}


def write_json(name: str, record: dict[str, Any]) -> Path:
    """Write `record` to `results/<name>.json`, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
