"""How metalit's time and memory grow with the number of tasks and of inner steps.

Time per task against the number of tasks; time and peak memory against the number of inner steps.
Memory is measured in a fresh process for every point: the peak of the resident set during the
steps, minus the resident set just before the first one.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import metalit as ml

from . import measure
from .problem import LR, initial_params, sinusoids
from .sinusoids import build_autograd, torch_model, torch_task

TASK_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEP_COUNTS = (1, 2, 4, 8, 16, 32)
TASKS_FOR_STEPS = 256
CHUNK = 32
LABELS = {
    "exact": "exact",
    "first_order": "first-order",
    "chunked": f"exact, {CHUNK} tasks at a time",
    "loop": "plain loop over tasks",
}
# Okabe and Ito's palette, told apart by the colour-blind, and seen on white and on black.
COLOURS = {
    "exact": "#0072B2", "first_order": "#E69F00", "chunked": "#009E73", "loop": "#D55E00",
}
MARKERS = {"exact": "o", "first_order": "s", "chunked": "^", "loop": "D"}
GREY = "#808080"


def meta_loss(variant: str, steps: int) -> torch.nn.Module:
    """metalit's meta-loss of this variant."""
    model = torch_model(initial_params())
    if variant == "first_order":
        return ml.FOMAML(model, F.mse_loss, lr=LR, steps=steps)
    extra = {"chunk_size": CHUNK} if variant == "chunked" else {}
    return ml.MAML(model, F.mse_loss, lr=LR, steps=steps, **extra)


def make_call(variant: str, tasks: int, steps: int) -> Callable[[], Any]:
    """One meta-step, forward and backward, as a call without arguments."""
    task = torch_task(sinusoids(tasks))
    if variant == "loop":
        step = build_autograd(initial_params(), steps, LR)
        return lambda: step(task)
    J = meta_loss(variant, steps)

    def call():
        J.zero_grad()
        J(task).backward()

    return call


def status_kib(field: str) -> int | None:
    """A line of `/proc/self/status`, or None where the system has no such file."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


def peak_mib(call: Callable[[], Any]) -> float:
    """By how many MiB the resident set rises at most above its level before `call`."""
    before = status_kib("VmRSS")
    if before is None:
        return portable_peak_mib(call)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    call()
    return (status_kib("VmHWM") - before) / 1024


def portable_peak_mib(call: Callable[[], Any]) -> float:
    """The same where only the peak since the start is known, which hides what is smaller."""
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def measure_here(
    variant: str, tasks: int, steps: int, rounds: int, budget: float
) -> dict[str, Any]:
    """Peak memory, then times, of one point, in this process."""
    make_call(variant, 1, 1)()  # loads what is loaded at first use
    call = make_call(variant, tasks, steps)
    memory = peak_mib(call)
    repeats = measure.repeats_for(call, budget, warm_up=1)
    times = [measure.timed(call, repeats) for _ in range(rounds)]
    return {"peak_mib": memory, "ms": measure.spread(times), "rounds_ms": times}


def against_tasks(counts: tuple[int, ...], rounds: int, budget: float) -> dict[str, Any]:
    """Times with one inner step, for every variant and number of tasks, in turns."""
    results: dict[str, Any] = {variant: {} for variant in LABELS}
    for tasks in counts:
        calls = {variant: make_call(variant, tasks, 1) for variant in LABELS}
        for variant, times in measure.in_turns(calls, rounds, budget).items():
            per_task = [t / tasks for t in times]
            results[variant][tasks] = {"ms": measure.spread(per_task), "rounds_ms": per_task}
        row = "".join(f"{results[v][tasks]['ms']['median']:10.3f}" for v in LABELS)
        print(f"  {tasks:4} tasks {row}   ms per task", flush=True)
    return results


def against_steps(counts: tuple[int, ...], rounds: int, budget: float) -> dict[str, Any]:
    """Time and peak memory with `TASKS_FOR_STEPS` tasks, each point in a fresh process."""
    results: dict[str, Any] = {variant: {} for variant in LABELS}
    for steps in counts:
        for variant in LABELS:
            point = measure.fresh("benchmarks.scaling", variant, TASKS_FOR_STEPS, steps, rounds,
                                  budget)
            results[variant][steps] = point
        row = "".join(
            f"{results[v][steps]['ms']['median']:10.1f}{results[v][steps]['peak_mib']:9.1f}"
            for v in LABELS
        )
        print(f"  {steps:4} steps {row}   ms, MiB", flush=True)
    return results


def draw_times(axes, results: dict[str, Any]) -> None:
    """Medians as lines, from minimum to maximum as bands."""
    for variant, points in results.items():
        ms = [point["ms"] for point in points.values()]
        x = list(points)
        axes.plot(x, [m["median"] for m in ms], color=COLOURS[variant], marker=MARKERS[variant],
                  label=LABELS[variant])
        axes.fill_between(x, [m["min"] for m in ms], [m["max"] for m in ms],
                          color=COLOURS[variant], alpha=0.25, linewidth=0)


def draw_memory(axes, results: dict[str, Any]) -> None:
    """Peak memory; one process per point, hence no band."""
    for variant, points in results.items():
        axes.plot(list(points), [point["peak_mib"] for point in points.values()],
                  color=COLOURS[variant], marker=MARKERS[variant], label=LABELS[variant])


def style(axes, xlabel: str, ylabel: str) -> None:
    """Logarithmic axes in a grey that is read on white and on black."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(xlabel, color=GREY)
    axes.set_ylabel(ylabel, color=GREY)
    axes.tick_params(which="both", colors=GREY)
    axes.grid(color=GREY, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def draw(record: dict[str, Any]) -> Path:
    """Draw `results/scaling.svg`: transparent, so that it takes the page's background."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "metalit", "font.size": 9}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        tasks, time, memory = figure.subplots(1, 3)
        draw_times(tasks, record["against_tasks"])
        draw_times(time, record["against_steps"])
        draw_memory(memory, record["against_steps"])
        style(tasks, "tasks (one inner step)", "time per task (ms)")
        style(time, f"inner steps ({TASKS_FOR_STEPS} tasks)", "time per meta-step (ms)")
        style(memory, f"inner steps ({TASKS_FOR_STEPS} tasks)", "peak memory (MiB)")
        lines, labels = tasks.get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper center", ncols=len(labels),
                      frameon=False, labelcolor=GREY)
        path = measure.RESULTS / "scaling.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None})
    return path


def run(rounds: int = 7, budget: float = 0.3, largest: int = 256, most_steps: int = 32) -> None:
    """Measure, print, and write `results/scaling.json` and `results/scaling.svg`."""
    print("time against the number of tasks: " + ", ".join(LABELS.values()), flush=True)
    tasks = against_tasks(tuple(n for n in TASK_COUNTS if n <= largest), rounds, budget)
    print("time and memory against the number of inner steps, the same order", flush=True)
    steps = against_steps(tuple(n for n in STEP_COUNTS if n <= most_steps), rounds, budget)
    record = {
        "what": "one meta-step (forward and backward), eager, 1-40-40-1 ReLU, 10 + 10 points",
        "memory": "peak resident set minus its level before the step, a fresh process per point",
        "chunk": CHUNK,
        "tasks_for_steps": TASKS_FOR_STEPS,
        "budget": {"rounds": rounds, "seconds_per_round": budget},
        "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch"),
        "against_tasks": tasks,
        "against_steps": steps,
    }
    print(f"wrote {measure.write_json('scaling', record)} and {draw(record)}")


def main() -> None:
    """`python -m benchmarks.scaling`; with `--point`, one measurement printed as JSON."""
    if arguments := measure.begin(measure.parser(__doc__, rounds=7, budget=0.3), measure_here):
        run(arguments.rounds, arguments.budget)


if __name__ == "__main__":
    main()
