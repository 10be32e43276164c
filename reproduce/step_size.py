"""How near `ml.find_lr` comes to the best step size of a fine grid, on sinusoids.

    python -m reproduce.step_size [--only 1] [--share 1] [--seeds 3]

On the fine grid each step size has a long meta-training from each seed, all of them stacked in one
call. `find_lr` has 100 or 300 meta-steps for each of its own. What choosing costs is the loss at
the step size that was chosen, after the long training, less the best of the grid. The result goes
to results/step_size.json after each setting; with `--only`, one number of inner steps alone is
measured and the others stay. What the file has is not trained again. One core needs three minutes
for each.
"""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json

RATES = [0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1]
STEPS = {1: 1000, 5: 400}  # of the long trainings, by the number of inner steps
TASKS = ml.tasks.Sinusoids(shots=10)
SHORT = (100, 300)  # meta-steps of `find_lr`
UNSEEN = 300


def start(seed: int) -> nn.Module:
    """The network of the paper, at its first weights."""
    return ml.models.mlp(1, 40, 40, 1, seed=seed)


def repeated(parts: Sequence[Any], times: int) -> Any:
    """Trees of all seeds along a first axis, each so many times."""
    return torch.utils._pytree.tree_map(
        lambda *tensors: torch.stack(tensors).repeat_interleave(times, 0), *parts)


def long_trainings(inner_steps: int, steps: int, seeds: range) -> dict[str, Any]:
    """Losses on unseen tasks at some meta-steps: for each of these, a list over seeds of lists."""
    rate = nn.Parameter(torch.tensor(0.01))
    J = ml.MetaLoss(start(0), F.mse_loss, inner=ml.SGD(rate, inner_steps))
    starts = [{f"model.{name}": p.detach() for name, p in start(seed).named_parameters()}
              for seed in seeds]
    theta = {name: p.clone().requires_grad_() for name, p in repeated(starts, len(RATES)).items()}
    rates = torch.tensor(RATES).repeat(len(seeds))

    def value(theta: dict[str, Tensor], rate: Tensor, task: ml.Task) -> Tensor:
        return functional_call(J, theta | {"inner.lr": rate}, (task,))
    slopes, judged = vmap(grad(value)), vmap(value, (0, 0, None))
    adam, unseen, found = torch.optim.Adam(theta.values(), lr=1e-3), TASKS.held_out(UNSEEN), {}
    looks = {0, steps // 10, steps // 4, steps}
    for step in range(steps + 1):
        now = {name: p.detach() for name, p in theta.items()}
        if step in looks:
            with torch.no_grad():
                losses = judged(now, rates, unseen).view(len(seeds), -1).tolist()
            found[str(step)] = [[loss if math.isfinite(loss) else None for loss in of_seed]
                                for of_seed in losses]
        task = repeated([TASKS.batch(25, seed, step) for seed in seeds], len(RATES))
        for name, g in slopes(now, rates, task).items():
            theta[name].grad = g
        adam.step()
    return found


def chosen(inner_steps: int, steps: int, seed: int) -> dict[str, Any]:
    """What `find_lr` says, with so many meta-steps for each step size."""
    J = ml.MAML(start(seed), F.mse_loss, lr=0.01, steps=inner_steps)
    found = ml.find_lr(J, TASKS, steps=steps, seconds=600, seed=seed)
    return {"rate": found.rate, "level": [min(found.level), max(found.level)],
            "tried": len(found.tried), "meta_steps": found.meta_steps}


def at(rate: float, losses: Sequence[float | None]) -> float:
    """The loss at a step size between two of the grid: a straight line over its logarithm."""
    known = [(math.log(lr), loss) for lr, loss in zip(RATES, losses, strict=True)
             if loss is not None]
    place = math.log(rate)
    below = [pair for pair in known if pair[0] <= place] or known[:1]
    above = [pair for pair in known if pair[0] >= place] or known[-1:]
    (x0, y0), (x1, y1) = below[-1], above[0]
    return y0 if x0 == x1 else y0 + (y1 - y0) * (place - x0) / (x1 - x0)


def best(losses: Sequence[float | None]) -> int:
    """The place of the least loss."""
    return min(range(len(losses)), key=lambda i: math.inf if losses[i] is None else losses[i])


def costs(grid: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each seed, the best of the grid, and what each way to choose costs more than that."""
    rows = []
    for seed, losses in enumerate(grid[max(grid, key=int)]):
        least, untrained = losses[best(losses)], RATES[best(grid["0"][seed])]
        rates = {f"find_lr, {steps}": of_seeds[seed]["rate"] for steps, of_seeds in found.items()}
        rates |= {"untrained start": untrained, "0.01": 0.01}
        rows.append({"best": RATES[best(losses)], "loss": least, "rates": rates,
                     "costs": {name: at(rate, losses) - least for name, rate in rates.items()}})
    return rows


def before(file: str) -> dict[str, Any]:
    """The settings that the file has."""
    path = RESULTS / f"{file}.json"
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """All settings, or one; see above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", type=int, choices=list(STEPS))
    parser.add_argument("--share", type=float, default=1.0, help="of all meta-steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--file", default="step_size")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds, settings = range(options.seeds), before(options.file)
    for inner_steps in [options.only] if options.only else STEPS:
        steps = max(4, round(options.share * STEPS[inner_steps]))
        old = settings.get(str(inner_steps), {})
        if old.get("meta_steps") != steps or len(old["grid"]["0"]) != len(seeds):
            old = {"meta_steps": steps, "grid": long_trainings(inner_steps, steps, seeds),
                   "found": {}}
        for short in (max(1, round(options.share * length)) for length in SHORT):
            if str(short) not in old["found"]:
                old["found"][str(short)] = [chosen(inner_steps, short, seed) for seed in seeds]
        settings[str(inner_steps)] = old | {"costs": costs(old["grid"], old["found"])}
        write_json(options.file, {"rates": RATES, "unseen_tasks": UNSEEN, "machine": machine(),
                                  "versions": versions("metalit", "torch"), "settings": settings})
        print(inner_steps, *settings[str(inner_steps)]["costs"], sep="\n", flush=True)


if __name__ == "__main__":
    main()
