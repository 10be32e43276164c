"""Memory of a MAML step on images: predicted, measured, and the resident set of the process.

Predicted and measured count what PyTorch allocates for tensors. The resident set is what the system
sees: its peak during the step minus its level before, in a fresh process for every point.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import metalit as ml
from metalit.training.memory import measured_memory, predicted_memory

from . import measure
from .images import FILTERS, LR, QUERIES, SHOTS, SIZE, WAYS, episodes, network
from .scaling import peak_mib

TASKS = (8, 32)
STEPS = (1, 5, 10)
# Images of the size of mini-ImageNet: what a pass keeps outweighs ten copies of the weights.
WIDE, WIDE_TASKS = 84, 4
CHUNK = 8
LABELS = {"exact": "exact", "first_order": "first order", "mixed_mode": "mixed mode",
          "chunked": f"exact, {CHUNK} tasks at a time"}


def meta_loss(variant: str, steps: int, filters: int, size: int) -> ml.MetaLoss:
    """metalit's meta-loss of this variant."""
    kind = ml.FOMAML if variant == "first_order" else ml.MAML
    extra: dict[str, Any] = {"chunk_size": CHUNK} if variant == "chunked" else {}
    if variant == "mixed_mode":
        extra["gradient"] = ml.MixedMode()
    return kind(network(filters, size), F.cross_entropy, lr=LR, steps=steps, **extra)


def measure_here(variant: str, tasks: int, steps: int, filters: int, size: int,
                 repeats: int) -> dict[str, Any]:
    """One point, in this process: the resident set before all else takes memory; then time."""
    J, task = meta_loss(variant, steps, filters, size), episodes(tasks, size=size)

    def call():
        torch.autograd.grad(J(task), list(J.parameters()))

    tiny = episodes(2, size=size)
    torch.autograd.grad(J(tiny), list(J.parameters()))  # loads what is loaded at first use
    resident = peak_mib(call)
    times = [measure.timed(call, 1) for _ in range(repeats)]
    predicted = predicted_memory(J, task)
    return {"predicted_bytes": predicted.total, "predicted_parts": predicted._asdict(),
            "measured_bytes": measured_memory(call), "resident_peak_bytes": round(resident * 2**20),
            "ms": measure.spread(times)}


def path_bytes(tasks: int, steps: int, filters: int, size: int) -> int:
    """What the weights of so many tasks after each of so many inner steps take."""
    weights = sum(p.numel() * p.element_size() for p in network(filters, size).parameters())
    return tasks * steps * weights


def run(tasks: tuple[int, ...] = TASKS, steps: tuple[int, ...] = STEPS, filters: int = FILTERS,
        repeats: int = 5) -> None:
    """Measure every point, print the table, and write `results/memory.json`."""
    heads = f"{'predicted':>11}{'measured':>10}{'resident':>10}{'ms':>8}"
    print(f"{'':28}{'size':>6}{'tasks':>6}{'steps':>6}{heads}   (MiB)")
    where = [(SIZE, count, K) for count in tasks for K in steps] + [(WIDE, WIDE_TASKS, max(steps))]
    points = []
    for variant, label in LABELS.items():
        for size, count, K in where:
            point = measure.fresh("benchmarks.memory", variant, count, K, filters, size, repeats)
            points.append(
                {"variant": variant, "size": size, "tasks": count, "steps": K,
                 "path_bytes": path_bytes(count, K, filters, size), **point,
                 "predicted_over_measured": point["predicted_bytes"] / point["measured_bytes"]}
            )
            row = "".join(f"{point[name] / 2**20:10.1f}" for name in
                          ("predicted_bytes", "measured_bytes", "resident_peak_bytes"))
            print(f"  {label:26}{size:6}{count:6}{K:6} {row}{point['ms']['median']:8.0f}",
                  flush=True)
    path = measure.write_json(
        "memory",
        {"what": f"one meta-step (value and gradient), eager, strided Conv4 with {filters} "
         f"filters, {WAYS}-way {SHOTS}-shot, {QUERIES} queries per class, pictures of size × size "
         "pixels",
         "command": "python -m benchmarks.memory", "predicted":
         "metalit.training.memory.predicted_memory: "
         "from steps with at most 3 tasks and 3 inner steps",
         "measured": "peak of what PyTorch allocates during the step, by its profiler",
         "resident": "peak resident set minus its level before the step, a fresh process per "
         "point, malloc as it is",
         "path": "one copy of the weights for each task and inner step",
         "chunk": CHUNK, "labels": LABELS, "machine": measure.machine(),
         "versions": measure.versions("metalit", "torch"), "points": points}
    )
    print(f"wrote {path}")


def main() -> None:
    """`python -m benchmarks.memory`; with `--point`, one measurement printed as JSON."""
    if measure.begin(measure.parser(__doc__), measure_here):
        run()


if __name__ == "__main__":
    main()
