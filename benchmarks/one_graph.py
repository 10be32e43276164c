"""A meta-step uncompiled, under `torch.compile(J)` in two halves, and under `J.compile()` in one.

    python -m benchmarks.one_graph

In turns, in one run, on 25 sine tasks; and the seconds that the first call of each takes, with an
empty cache, in a process of its own.
"""
from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import metalit as ml

from . import measure

TASKS, SHOTS, LR, STEPS = 25, 10, 0.01, (1, 5)
NAMES = {"uncompiled": "uncompiled", "halves": "torch.compile(J)", "one_graph": "one graph"}


def ways(steps: int) -> dict[str, Callable[[ml.Task], torch.Tensor]]:
    """The same J three times; nothing is compiled before the first call."""
    J = ml.MAML(ml.models.mlp(1, 40, 40, 1), F.mse_loss, lr=LR, steps=steps)
    one = copy.deepcopy(J)
    one.compile()
    return {"uncompiled": J, "halves": torch.compile(copy.deepcopy(J)), "one_graph": one}


def meta_step(J: Callable[[ml.Task], torch.Tensor], task: ml.Task) -> Callable[[], None]:
    """Value and gradient."""
    return lambda: J(task).backward()


def first_call(way: str, steps: int) -> dict[str, float]:
    """How long the first value and gradient take, with what PyTorch compiles on the way."""
    task = ml.tasks.Sinusoids(shots=SHOTS).batch(TASKS, seed=0)
    meta_step(ways(steps)["uncompiled"], task)()
    step = meta_step(ways(steps)[way], task)
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        start = time.perf_counter()
        step()
        return {"seconds": time.perf_counter() - start}


def compare(steps: int, rounds: int, budget: float) -> dict[str, Any]:
    """Check that the values agree, time them, and say after how many meta-steps compiling pays."""
    task = ml.tasks.Sinusoids(shots=SHOTS).batch(TASKS, seed=0)
    found = ways(steps)
    for J in found.values(): torch.testing.assert_close(J(task), found["uncompiled"](task))
    times = measure.in_turns({way: meta_step(J, task) for way, J in found.items()}, rounds, budget)
    record = {way: measure.spread(ms) | {"first call": measure.fresh(__spec__.name, way, steps)}
              for way, ms in times.items()}
    for way, label in NAMES.items():
        print(f"  {label:18} {record[way]['median']:6.2f} ms, the first call "
              f"{record[way]['first call']['seconds']:5.1f} s", flush=True)
    return record


def main() -> None:
    """Measure, and write `results/one_graph.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 31, 0.1), first_call)
    if arguments is None: return
    measured = {}
    for steps in STEPS:
        print(f"{steps} inner step{'s' * (steps > 1)}", flush=True)
        measured[steps] = compare(steps, arguments.rounds, arguments.budget)
    measure.write_json("one_graph", {
        "what": "one meta-step (value and gradient), 1-40-40-1 ReLU, MSE, 10 support + 10 query",
        "tasks": TASKS, "lr": LR, "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch"), "labels": NAMES,
        "budget": {"rounds": arguments.rounds, "seconds_per_round": arguments.budget},
        "inner_steps": measured})


if __name__ == "__main__":
    main()
