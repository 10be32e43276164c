"""One meta-step on sinusoids: metalit and four other ways, in one run, in turns.

First every implementation's value and gradients are compared with a float64 reference; nothing is
timed that does not agree. A step is value and gradient (forward and backward), without the outer
optimizer.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import measure
from .peers import LABELS, require_peers
from .problem import LR, TASKS, Arrays, initial_params, sinusoids
from .sinusoids import CONTENDERS, Params, build_autograd, torch_task

TOLERANCE = 1e-5
STEPS = (1, 5)


def excess(found: Any, expected: Any) -> float:
    """The largest |found − expected| / (1 + |expected|): absolute near zero, relative far away."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} was found where {expected.shape} is expected")
    return float(np.max(np.abs(found - expected) / (1 + np.abs(expected))))


def reference(task: Arrays, params: Params, steps: int) -> tuple[Any, dict[str, Any]]:
    """Value and gradients by the plain loop in float64."""
    exact = build_autograd(params, steps, LR, dtype=torch.float64)
    return exact(torch_task(task).to(dtype=torch.float64))


def check(label: str, got: tuple[Any, dict[str, Any]], expected: tuple[Any, dict[str, Any]]):
    """Compare value and gradients, and return the largest error.

    Raises:
        SystemExit: they differ by more than `TOLERANCE`, or a parameter has no gradient.
    """
    (value, grads), (true_value, true_grads) = got, expected
    if set(grads) != set(true_grads):
        raise SystemExit(f"{label}: gradients of {sorted(grads)}, expected {sorted(true_grads)}")
    errors = {"value": excess(value, true_value)}
    errors |= {name: excess(grads[name], true_grads[name]) for name in true_grads}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= TOLERANCE:  # also catches NaN
        raise SystemExit(f"{label}: {worst} is off by {errors[worst]:.1e}, allowed {TOLERANCE:.0e}")
    return errors[worst]


def checked_calls(task: Arrays, steps: int) -> tuple[dict[str, Any], dict[str, float]]:
    """A call without arguments for every contender, and its error against the reference."""
    params = initial_params()
    expected = reference(task, params, steps)
    calls, errors = {}, {}
    for name, contender in CONTENDERS.items():
        step, prepared = contender.build(params, steps, LR), contender.prepare(task)
        errors[name] = check(LABELS[name], step(prepared), expected)
        print(f"  {LABELS[name]:22} agrees to {errors[name]:.0e}", flush=True)
        calls[name] = lambda step=step, prepared=prepared: step(prepared)
    return calls, errors


def compare(steps: int, rounds: int, budget: float) -> dict[str, Any]:
    """Check, then time, all contenders with this many inner steps."""
    print(f"{steps} inner step{'s' * (steps > 1)}: values and gradients first", flush=True)
    calls, errors = checked_calls(sinusoids(), steps)
    times = measure.in_turns(calls, rounds, budget)
    summary = {name: measure.spread(t) for name, t in times.items()}
    ours = ("metalit", "metalit_compiled")
    ratios = {
        mine: {name: summary[name]["median"] / summary[mine]["median"] for name in CONTENDERS}
        for mine in ours
    }
    return {"error": errors, "ms": summary, "rounds_ms": times, "times_as_fast": ratios}


def show(steps: int, result: dict[str, Any]) -> None:
    """Print one table."""
    eager, compiled = (result["times_as_fast"][n] for n in ("metalit", "metalit_compiled"))
    print(f"\n{steps} inner step{'s' * (steps > 1)}, {TASKS} tasks; ms per meta-step; "
          "how many times as fast metalit is")
    print(f"  {'':22}{'median':>9}{'min':>9}{'max':>9}{'eager':>9}{'compiled':>10}")
    for name, ms in result["ms"].items():
        print(f"  {LABELS[name]:22}{ms['median']:9.2f}{ms['min']:9.2f}{ms['max']:9.2f}"
              f"{eager[name]:8.2f}×{compiled[name]:9.2f}×")
    print(flush=True)


def run(rounds: int = 15, budget: float = 0.4) -> None:
    """Compare for every K of `STEPS`; print the tables; write `results/sinusoid_step.json`.

    `budget` is the seconds that one implementation gets in one round.
    """
    require_peers()
    results = {}
    for steps in STEPS:
        results[str(steps)] = compare(steps, rounds, budget)
        show(steps, results[str(steps)])
    path = measure.write_json("sinusoid_step", {
        "what": "one meta-step (value and gradient), 1-40-40-1 ReLU, MSE, 10 support + 10 query",
        "tasks": TASKS,
        "lr": LR,
        "tolerance": f"|found − float64 reference| ≤ {TOLERANCE} · (1 + |reference|)",
        "budget": {"rounds": rounds, "seconds_per_round": budget},
        "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch", "higher", "torchopt", "jax", "numpy"),
        "inner_steps": results,
    })
    print(f"wrote {path}")


def main() -> None:
    """`python -m benchmarks.sinusoid_step`."""
    arguments = measure.begin(measure.parser(__doc__, rounds=15, budget=0.4))
    run(arguments.rounds, arguments.budget)


if __name__ == "__main__":
    main()
