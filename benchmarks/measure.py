"""Timing, and what must be known about a machine to read its timings."""
from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import metalit
from metalit.judging.comparison import environment

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
    """The installed release of each package; of metalit, that of the code which runs."""
    return {package: metalit.__version__ if package == "metalit"
            else importlib.metadata.version(package) for package in packages}


def resampled(values: torch.Tensor, seed: int = 0, times: int = 10_000) -> list[float]:
    """95 % of the means of values that are drawn again, with replacement, so many times."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (times, len(values)), generator=generator)
    return torch.quantile(values[drawn].mean(1), torch.tensor([0.025, 0.975]).double()).tolist()


def write_json(name: str, record: dict[str, Any]) -> Path:
    """Write `record` to `results/<name>.json`, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def parser(description: str, rounds: int | None = None,
           budget: float | None = None) -> argparse.ArgumentParser:
    """The options that benchmarks share; those of time where there is something to say for them."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds)
    if budget is not None:
        options.add_argument("--budget", type=float, default=budget,
                             help="seconds per round for each")
    options.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    options.add_argument("--point", help=argparse.SUPPRESS)
    return options


def begin(options: argparse.ArgumentParser,
          point: Callable[..., Any] | None = None) -> argparse.Namespace | None:
    """Read the command line and set the threads.

    With `--point`, which `fresh` gives, `point(…)` is measured and printed, and nothing more is to
    do: None.
    """
    arguments = options.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if point is None or not arguments.point:
        return arguments
    print(json.dumps(point(*json.loads(arguments.point))))
    return None


def fresh(module: str, *point: Any) -> dict[str, Any]:
    """What the module's benchmark finds at a point, in a process with as many threads as this.

    Raises:
        SystemExit: it failed; the message says how.
    """
    command = [sys.executable, "-m", module, "--threads", str(torch.get_num_threads()), "--point",
               json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{module} failed at {point}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
