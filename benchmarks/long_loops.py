"""Time, peak memory and time to compile of a meta-step, against the number of inner steps.

    python -m benchmarks.long_loops --threads 1

First order, exact, in chunks of tasks, and mixed mode, and the exact gradient compiled: as one
graph, which grows with the number of steps, and by steps, which does not. Each point in a process
of its own, with an empty cache of the compiler.
"""
from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from metalit.training.memory import measured_memory

from . import measure
from .images import episodes, network

STEPS = {"sine": (1, 5, 10, 50), "images": (1, 5, 10)}
LR = {"sine": 0.01, "images": 0.1}
TASKS = {"sine": 25, "images": 8}
FILTERS = 16
WAYS: dict[str, dict[str, Any]] = {
    "first_order": {"gradient": ml.FirstOrder}, "exact": {"gradient": ml.Exact},
    "chunks": {"gradient": ml.Exact, "chunk_size": 4}, "mixed": {"gradient": ml.MixedMode},
    "one_graph": {"gradient": ml.Exact}, "by_steps": {"gradient": ml.MixedMode}}
LABELS = {"first_order": "first order", "exact": "exact", "chunks": "exact, 4 tasks at a time",
          "mixed": "mixed mode", "one_graph": "exact, compiled: one graph",
          "by_steps": "mixed mode, compiled: by steps"}
LAST = {"sine": 10, "images": 1}  # the longest loop that is compiled as one graph here: minutes


def problem(bed: str) -> tuple[nn.Module, Any, ml.Task]:
    """The network, the loss and the tasks."""
    if bed == "images": return network(FILTERS), F.cross_entropy, episodes(TASKS[bed])
    model = ml.models.mlp(1, 40, 40, 1, seed=0)
    return model, F.mse_loss, ml.tasks.Sinusoids(shots=10).batch(TASKS[bed], seed=0)


def meta_loss(bed: str, way: str, steps: int) -> tuple[ml.MetaLoss, ml.Task]:
    """J, compiled where its name says so, and the tasks."""
    model, loss, task = problem(bed)
    options = WAYS[way] | {"gradient": WAYS[way]["gradient"]()}
    J = ml.MetaLoss(model, loss, inner=ml.SGD(LR[bed], steps), **options)
    if way in ("one_graph", "by_steps"): J.compile()
    return J, task


def meta_step(J: ml.MetaLoss, task: ml.Task) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Value and gradient."""
    return lambda: torch.autograd.grad(J(task), list(J.parameters()))


def point(bed: str, way: str, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds of the first call, milliseconds of the others, and their peak of memory."""
    exact = meta_step(*meta_loss(bed, "exact", steps))()  # and what is loaded at first use
    step = meta_step(*meta_loss(bed, way, steps))
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        start = time.perf_counter()
        found = step()
        first = time.perf_counter() - start
        if way != "first_order":
            torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-4)
        repeats = measure.repeats_for(step, 0.3, warm_up=2)
        times = [measure.timed(step, repeats) for _ in range(rounds)]
        return {"bed": bed, "way": way, "steps": steps, "first_seconds": first,
                "ms": measure.spread(times), "peak_bytes": measured_memory(step)}


def main() -> None:
    """Measure every point, and write `results/long_loops.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 5), point)
    if arguments is None: return
    points = []
    print(f"{'':40}{'K':>4}{'ms':>9}{'MiB':>8}{'first call, s':>15}")
    for bed, counts in STEPS.items():
        for way, label in LABELS.items():
            for steps in counts:
                if way == "one_graph" and steps > LAST[bed]: continue
                found = measure.fresh(__spec__.name, bed, way, steps, arguments.rounds)
                points.append(found)
                print(f"{bed:8}{label:32}{steps:4}{found['ms']['median']:9.2f}"
                      f"{found['peak_bytes'] / 2**20:8.1f}{found['first_seconds']:15.1f}",
                      flush=True)
    measure.write_json("long_loops", {
        "what": "one meta-step (value and gradient); sine: 1-40-40-1 ReLU, 10 + 10 points; images: "
                f"strided Conv4 with {FILTERS} filters, 5-way 1-shot, 5 queries per class",
        "command": "python -m benchmarks.long_loops --threads 1", "tasks": TASKS, "lr": LR,
        "labels": LABELS, "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch"),
        "budget": {"rounds": arguments.rounds}, "points": points})


if __name__ == "__main__":
    main()
