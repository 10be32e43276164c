"""The weights that the live figure of sinusoids starts from.

One network, meta-trained in three ways, seeded.

    python -m reproduce.sinusoid_starts

Ten shots, 1-40-40-1 ReLU, as Finn et al. (2017, section 5.1). The weights go to
metalit/widgets/data/, and how well they adapt to tasks that no training saw, to
results/sinusoid_starts.json. One core needs a few minutes.
"""
from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.judging.comparison import number

WEIGHTS = Path("metalit/widgets/data/sinusoid_starts.npz")
SEED, SHOTS, LR, BATCH_SIZE = 0, 10, 0.01, 25
INNER_STEPS = (0, 1, 5, 10)


class Start(NamedTuple):
    """How one start is trained: its meta-loss, optimizer, number of steps, and that in words."""

    build: Callable[[nn.Module], ml.MetaLoss]
    optimizer: Callable
    steps: int
    words: str


def jointly(model: nn.Module) -> ml.MetaLoss:
    """Training without an inner loop: the query loss of θ itself, over all tasks."""
    return ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(LR, steps=0))


def maml(model: nn.Module) -> ml.MetaLoss:
    """The paper's: one inner step, exact gradient."""
    return ml.MAML(model, F.mse_loss, lr=LR, steps=1)


# Of five short trials (5 or 10 inner steps, of 0.005 or 0.01) this one learned most for steps of
# 0.01.
def reptile(model: nn.Module) -> ml.MetaLoss:
    """Towards where five inner steps end."""
    return ml.Reptile(model, F.mse_loss, lr=LR, steps=5)


ADAM = partial(torch.optim.Adam, lr=1e-3)
STARTS = {
    "joint": Start(jointly, ADAM, 20_000, "all tasks jointly, no inner loop; Adam 1e-3"),
    "maml": Start(maml, ADAM, 70_000, "MAML, one inner step of 0.01, exact gradient; Adam 1e-3"),
    "reptile": Start(reptile, partial(torch.optim.SGD, lr=1.0), 20_000,
                     "Reptile, five inner steps of 0.01; ε = 1"),
}


# The kept weights are then not those that the last few batches happened to leave.
def to_zero(steps: int) -> Callable:
    """Outer step sizes that fall linearly to nothing."""
    return lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3,
                                                               total_iters=max(steps, 1))


def network() -> nn.Sequential:
    """The network before any training: the figure's start "random", made by its seed alone."""
    return ml.models.mlp(1, 40, 40, 1, seed=SEED)


def train(start: Start, steps: int, compile: bool) -> tuple[nn.Module, float]:
    """The trained network, and the seconds it took."""
    model, begin = network(), time.perf_counter()
    ml.meta_train(start.build(model), ml.tasks.Sinusoids(shots=SHOTS), steps=steps,
                  batch_size=BATCH_SIZE, seed=SEED, device="cpu", optimizer=start.optimizer,
                  scheduler=to_zero(steps), compile=compile)
    return model, time.perf_counter() - begin


def judged(model: nn.Module) -> list[dict[str, float | None]]:
    """Query losses on 600 unseen tasks after a few steps of plain gradient descent.

    As the figure takes them.
    """
    J = ml.MAML(model, F.mse_loss, lr=LR)
    found = ml.evaluate(J, ml.tasks.Sinusoids(shots=SHOTS), n_tasks=600, steps=INNER_STEPS, seed=0)
    return [{key: number(value) for key, value in row.items()} for row in found.rows()]


def save(models: dict[str, nn.Module], path: Path) -> None:
    """All weights in one file, by the names "maml/0.weight"; same weights, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path,
             **{f"{name}/{parameter}": value.detach().numpy()
                for name, model in models.items() for parameter, value in model.named_parameters()})


def main() -> None:
    """Train all, write the weights, then the record."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps, for a trial")
    parser.add_argument("--eager", action="store_true",
                        help="do not compile, even where a C++ compiler is found")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--file", default="sinusoid_starts", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compile = not options.eager and shutil.which("c++") is not None
    record: dict[str, Any] = {
        "what": "starts of the live figure of sinusoids: query loss (MSE) on 600 unseen tasks, 10 "
        "shots, after plain gradient descent with step size 0.01; query: grid of 100 points",
        "command": "python -m reproduce.sinusoid_starts", "seed": SEED, "shots": SHOTS,
        "batch_size": BATCH_SIZE,
        "outer_step_size": "falls linearly to zero", "compiled": compile, "machine": machine(),
        "versions": versions("metalit", "torch"), "starts": {
            "random": {"what": "no training", "meta_steps": 0, "evaluation": judged(network())}
        }
    }
    models: dict[str, nn.Module] = {}
    for name, start in STARTS.items():
        steps = round(options.share * start.steps)
        print(f"\n{name}: {start.words}", flush=True)
        models[name], seconds = train(start, steps, compile)
        rows = judged(models[name])
        losses = ", ".join(f"{row['inner_steps']} steps {row['loss']:.3f}" for row in rows)
        print(f"query loss after {losses}; {seconds:.0f} s", flush=True)
        record["starts"][name] = {"what": start.words, "meta_steps": steps,
                                  "seconds": round(seconds, 1), "evaluation": rows}
    save(models, options.weights)
    write_json(options.file, record)


if __name__ == "__main__":
    main()
