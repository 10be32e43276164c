"""One MAML step on images: metalit and five other ways, in turns.

With and without `keep_freed_memory`; JAX, which has its own memory, and half precision only with.

First every implementation's value and meta-gradient are compared with a float64 reference; nothing
is timed that does not agree. Half precision has no float64: for it, as for all, stands how far off
it is as it is timed. A step is value and gradient, without the outer optimizer. What the allocator
is told holds for a process, so every setting and number of tasks runs in one of its own.
"""
from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import metalit as ml
from metalit.training.memory import keep_freed_memory

from . import measure
from .images import (
    CONTENDERS,
    FILTERS,
    LR,
    QUERIES,
    SHOTS,
    SIZE,
    WAYS,
    build_autograd,
    episodes,
    network,
)
from .peers import LABELS, Step, require_peers

TOLERANCE, OF_JAX = 1e-9, 1e-7
TASKS = (8, 32)
SETTINGS = {"default": False, "keep_freed_memory": True}
COMPILED = ("metalit_compiled", "metalit_half")
ONLY_KEPT = ("metalit_half", "jax_vmap", "jax_map")
SIDE = 2048  # of the matrices whose product shows the machine's peak


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """All gradients, by the order of their names, as one float64 vector."""
    return torch.cat([gradients[name].detach().double().flatten() for name in sorted(gradients)])


def reference(task: ml.Task, filters: int) -> tuple[float, torch.Tensor]:
    """Value and meta-gradient by the plain loop in float64."""
    value, gradients = build_autograd(network(filters).double(), 1)(task.to(dtype=torch.float64))
    return value.item(), flat(gradients)


def error(step: Step, task: ml.Task, expected: tuple[float, torch.Tensor]) -> float:
    """How far a step is from the reference: the larger relative error of value and gradient.

    That of the gradient is in its norm.
    """
    value, gradients = step(task)
    off = ((flat(gradients) - expected[1]).norm() / expected[1].norm()).item()
    return max(off, abs(value.item() - expected[0]) / abs(expected[0]))


def checked(name: str, task: ml.Task, filters: int, expected: tuple[float, torch.Tensor]) -> float:
    """The error of a contender in float64.

    Raises:
        SystemExit: it does not give the meta-gradient.
    """
    off = error(CONTENDERS[name](network(filters).double(), 1), task.to(dtype=torch.float64),
                expected)
    allowed = OF_JAX if name.startswith("jax") else TOLERANCE
    if not off <= allowed:  # also catches NaN
        raise SystemExit(f"{LABELS[name]}: off by {off:.1e}, allowed {allowed:.0e}")
    return off


def checked_steps(names: list[str], task: ml.Task, filters: int
                  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call without arguments for every contender; its errors in float64, and as it is timed.

    As it is timed a unit that is nearly zero may fall on either side.

    Raises:
        SystemExit: one does not give the meta-gradient.
    """
    expected = reference(task, filters)
    calls: dict[str, Any] = {}
    errors: dict[str, Any] = {"error": {}, "error_as_timed": {}}
    for name in names:
        if name != "metalit_half": errors["error"][name] = checked(name, task, filters, expected)
        step = CONTENDERS[name](network(filters), 1)
        errors["error_as_timed"][name] = error(step, task, expected)
        calls[name] = lambda step=step: step(task)
    return calls, errors


def step_flops(filters: int) -> int:
    """Multiplications and additions in convolutions and matrix products of one task's step."""
    step, task = build_autograd(network(filters), 1), episodes(1)
    with FlopCounterMode(display=False) as counter:
        step(task)
    return counter.get_total_flops()


def matmul_peak(rounds: int) -> float:
    """Floating-point operations per second of the best of some products of large matrices."""
    a, b = (torch.randn(SIDE, SIDE) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


def measure_here(names: list[str], tasks: int, keep: bool, filters: int, rounds: int,
                 budget: float):
    """Check, then time, all contenders on this many tasks, in this process."""
    kept = keep_freed_memory() if keep else False
    calls, errors = checked_steps(names, episodes(tasks), filters)
    peak = matmul_peak(rounds)
    times = measure.in_turns(calls, rounds, budget)
    peak = max(peak, matmul_peak(rounds))  # before and after: the machine may have been disturbed
    ms = {name: measure.spread(t) for name, t in times.items()}
    flops = tasks * step_flops(filters)
    return {"kept_freed_memory": kept, **errors, "ms": ms, "rounds_ms": times,
            "times_as_fast_as_loop": {name: ms["autograd"]["median"] / m["median"]
                                      for name, m in ms.items()},
            "flops_per_step": flops, "matmul_flops_per_second": peak,
            "share_of_peak": {name: flops / (m["median"] / 1e3) / peak for name, m in ms.items()}}


def show(tasks: int, setting: str, result: dict[str, Any]) -> None:
    """Print one table."""
    print(f"\n{tasks} tasks, {setting}; ms per meta-step, times as fast as the loop, share of the "
          f"machine's {result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s")
    print(f"  {'':22}{'median':>9}{'min':>9}{'max':>9}{'ratio':>8}{'share':>8}")
    for name, ms in result["ms"].items():
        print(f"  {LABELS[name]:22}{ms['median']:9.1f}{ms['min']:9.1f}{ms['max']:9.1f}"
              f"{result['times_as_fast_as_loop'][name]:7.2f}×{result['share_of_peak'][name]:8.1%}")
    print(flush=True)


def run(rounds: int = 11, budget: float = 1.0, tasks: tuple[int, ...] = TASKS,
        filters: int = FILTERS, compiled: bool = True) -> None:
    """Compare for each number of tasks and setting; print, and write `results/image_step.json`."""
    require_peers()
    names = [name for name in CONTENDERS if compiled or name not in COMPILED]
    results: dict[str, Any] = {}
    for count in tasks:
        results[str(count)] = {}
        for setting, keep in SETTINGS.items():
            here = [name for name in names if keep or name not in ONLY_KEPT]
            result = measure.fresh("benchmarks.image_step", here, count, keep, filters, rounds,
                                   budget)
            results[str(count)][setting] = result
            show(count, setting, result)
    path = measure.write_json("image_step", {
        "what": f"one MAML step (value and gradient), one inner step, strided Conv4 with {filters} "
        f"filters, {WAYS}-way {SHOTS}-shot, {QUERIES} queries per class, {SIZE} × {SIZE} pixels",
        "command": "python -m benchmarks.image_step", "lr": LR,
        "tolerance": f"relative error of value and meta-gradient at most {TOLERANCE}, of JAX "
        f"{OF_JAX}, in float64; timed in float32, or with convolutions in bfloat16",
        "flops": "convolutions and matrix products of the plain loop, by "
        "torch.utils.flop_counter; the same number for all",
        "peak": f"the quickest product of two {SIDE} × {SIDE} float32 matrices in the same process",
        "budget": {"rounds": rounds, "seconds_per_round": budget}, "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch", "higher", "torchopt", "jax"),
        "tasks": results,
    })
    print(f"wrote {path}")


def main() -> None:
    """`python -m benchmarks.image_step`; with `--point`, one setting printed as JSON."""
    parser = measure.parser(__doc__, rounds=11, budget=1.0)
    parser.add_argument("--no-compile", action="store_true",
                        help="leave the compiled step out: it takes minutes")
    if arguments := measure.begin(parser, measure_here):
        run(arguments.rounds, arguments.budget, compiled=not arguments.no_compile)


if __name__ == "__main__":
    main()
