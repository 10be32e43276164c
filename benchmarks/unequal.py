"""Tasks of unequal size: padded beside rectangular ones of the same total, a list beside loops.

    python -m benchmarks.unequal

Two hundred tasks come from a CSV file, as `ml.tasks.Table` reads it. A step draws all of them, and
takes value and gradient of MAML's loss. Then the same tasks as a list, which is computed in groups
of equal sizes, beside a loop over tasks: J in a loop, and one of nothing but PyTorch.
"""
from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import metalit as ml

from . import measure

TASKS, SHOTS, LR = 200, 5, 0.01
ROWS = {"rectangular": [14] * TASKS,
        "padded": [8 + i % 13 for i in range(195)] + [14] * 5}  # 8 … 20, and as many in all
WANTED = {"padded": 1.5, "list": 1.0}


def written(file: Path, rows: list[int]) -> Path:
    """A CSV file of waves, so many rows of each."""
    generator = torch.Generator().manual_seed(0)
    with open(file, "w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["task", "x", "y"])
        for i, count in enumerate(rows):
            height, phase = (torch.rand(2, generator=generator) * math.pi).tolist()
            for x in (10 * torch.rand(count, generator=generator) - 5).tolist():
                table.writerow([f"task {i}", x, height * math.sin(x - phase)])
    return file


def tables() -> dict[str, ml.tasks.Table]:
    """The two families, read from their files."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: ml.tasks.Table(written(Path(folder, f"{name}.csv"), rows), task="task", x="x",
                                     y="y", shots=SHOTS, test=0)
                for name, rows in ROWS.items()}


def meta_loss(steps: int, batching: str = "vmap") -> ml.MetaLoss:
    """MAML with the network of the article, the same each time."""
    return ml.MAML(ml.models.mlp(1, 40, 40, 1, seed=0), F.mse_loss, lr=LR, steps=steps,
                   batching=batching)


def slope(J: ml.MetaLoss, tasks: Any) -> Tensor:
    """The value, whose gradient is in the parameters afterwards."""
    J.zero_grad()
    value = J(tasks)
    value.backward()
    return value.detach()


def by_torch(model: torch.nn.Module, steps: int, tasks: list[ml.Task]) -> Tensor:
    """The same by `torch.autograd.grad`, one task after another."""
    model.zero_grad()
    names, theta = zip(*model.named_parameters(), strict=True)
    total = torch.zeros(())
    for task in tasks:
        def loss(phi: Any, split: ml.Split) -> Tensor:
            said = functional_call(model, dict(zip(names, phi, strict=True)), (split.x[0],))
            return F.mse_loss(said, split.y[0])
        phi = theta
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(phi, task.support), phi, create_graph=True)
            phi = [p - LR * g for p, g in zip(phi, slopes, strict=True)]
        value = loss(phi, task.query) / len(tasks)
        value.backward()
        total += value.detach()
    return total


def gradient(module: torch.nn.Module) -> Tensor:
    """The gradient that was left, in one vector."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def check(ways: dict[str, tuple[Callable[[], Tensor], torch.nn.Module]]) -> None:
    """Raise `AssertionError` where a way has another value or gradient than the first."""
    found = [(call(), gradient(module)) for call, module in ways.values()]
    for value, of in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of, found[0][1], rtol=1e-3, atol=1e-4)


def timed(calls: dict[str, Callable[[], Any]], rounds: int, budget: float) -> dict[str, Any]:
    """Milliseconds of each way, in turns."""
    times = measure.in_turns(calls, rounds, budget)
    return {name: measure.spread(ms) for name, ms in times.items()}


def batches(families: dict[str, ml.tasks.Table], steps: int, rounds: int,
            budget: float) -> dict[str, Any]:
    """A step on all tasks of a table, drawn anew: rectangular, and padded."""
    losses = {name: meta_loss(steps) for name in families}
    ms = timed({name: lambda J=losses[name], family=family: slope(J, family.batch(TASKS))
                for name, family in families.items()}, rounds, budget)
    times = ms["padded"]["median"] / ms["rectangular"]["median"]
    print(f"{steps} inner steps: padded takes {times:.2f} × the time of rectangular tasks")
    return {"ms": ms, "padded / rectangular": times}


def lists(family: ml.tasks.Table, steps: int, rounds: int, budget: float) -> dict[str, Any]:
    """The same tasks as a list, in groups, and in two loops."""
    batch = family.batch(TASKS)
    tasks = ml.tasks.unpadded(batch)
    J, looped, padded = meta_loss(steps), meta_loss(steps, "loop"), meta_loss(steps)
    model = meta_loss(steps).model
    ways: dict[str, tuple[Callable[[], Tensor], torch.nn.Module]] = {
        "padded": (lambda: slope(padded, batch), padded.model),
        "list": (lambda: slope(J, tasks), J.model),
        "loop": (lambda: slope(looped, tasks), looped.model),
        "loop of PyTorch": (lambda: by_torch(model, steps, tasks), model)}
    check(ways)
    ms = timed({name: call for name, (call, _) in ways.items()}, rounds, budget)
    loop = min(ms["loop"]["median"], ms["loop of PyTorch"]["median"])
    times = ms["list"]["median"] / loop
    print(f"{steps} inner steps: a list takes {times:.2f} × the time of the quicker loop")
    return {"ms": ms, "list / loop": times}


def main() -> None:
    """Measure, and write `results/unequal.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 7, 0.5))
    if arguments is None: return
    families, found = tables(), {}
    for steps in (1, 5):
        found[str(steps)] = (batches(families, steps, arguments.rounds, arguments.budget)
                             | {"as a list": lists(families["padded"], steps, arguments.rounds,
                                                   arguments.budget)})
    measure.write_json("unequal", {
        "machine": measure.machine(), "versions": measure.versions("metalit", "torch"),
        "tasks": TASKS, "shots": SHOTS, "rows": {name: sum(rows) for name, rows in ROWS.items()},
        "largest": max(ROWS["padded"]), "wanted at most": WANTED,
        "rounds": arguments.rounds, "inner steps": found})


if __name__ == "__main__":
    main()
