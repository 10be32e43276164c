"""A compiled meta-step with products in another order, and as written.

    python -m benchmarks.products

25 sine tasks, two hidden layers, MAML, one thread; milliseconds of value and gradient, in turns.
Written to results/products.json.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F

import metalit as ml
from metalit.batching import compiled, many_steps
from metalit.batching.products import Products

from . import measure

CASES = ((40, 5, 1), (40, 5, 5), (100, 5, 1), (100, 5, 5), (256, 5, 1), (256, 5, 5), (256, 10, 5))
TASKS, LR, BUDGET = 25, 0.01, 0.2


@contextmanager
def as_written() -> Iterator[None]:
    """Inside, the compiler is asked for everything but another order of products."""
    asked = {name: value for name, value in compiled.cpu_options().items()
             if not isinstance(value, Products)}
    with (patch.object(compiled, "cpu_options", lambda: asked),
          patch.object(many_steps, "cpu_options", lambda: asked)): yield


def meta_step(width: int, shots: int, steps: int) -> Callable[[], None]:
    """Value and gradient of a new MAML, compiled at the first call."""
    J = ml.MAML(ml.models.mlp(1, width, width, 1, seed=0), F.mse_loss, lr=LR, steps=steps)
    task = ml.tasks.Sinusoids(shots=shots).batch(TASKS, seed=0)
    J.compile()
    return lambda: J(task).backward()


def compare(width: int, shots: int, steps: int, rounds: int) -> dict[str, Any]:
    """One case, both ways, in turns."""
    found = {"products": meta_step(width, shots, steps)}
    with as_written(): found["as_written"] = meta_step(width, shots, steps)
    times = measure.in_turns(found, rounds, BUDGET)
    row = {"width": width, "shots": shots, "inner_steps": steps,
           **{way: measure.spread(ms) for way, ms in times.items()}}
    print(f"{width:4} wide, {shots:2} examples, K = {steps}: "
          + ", ".join(f"{way} {row[way]['median']:.3f} ms" for way in found), flush=True)
    return row


def main() -> None:
    """Measure, and write `results/products.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 15))
    if arguments is None: return
    rows = [compare(*case, arguments.rounds) for case in CASES]
    measure.write_json("products", {
        "what": "one compiled meta-step (value and gradient), two hidden layers, 25 sine tasks",
        "command": "python -m benchmarks.products", "rounds": arguments.rounds, "lr": LR,
        "machine": measure.machine(), "versions": measure.versions("metalit", "torch"),
        "rows": rows})


if __name__ == "__main__":
    main()
