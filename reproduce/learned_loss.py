"""Losses that are learned: the sine protocol of ML3, with and without a query set, and diabetes.

As in the code of Bechtle et al. (2020) the start is random and made anew at every meta-step, and
the loss alone learns: 500 meta-steps on one sine wave, x from -2 to 2, network 1-100-10-1, one
inner step of 0.001, Adam, 0.001. Then new networks descend it on ten other waves (amplitude 0.2 to
5, any phase, x from -5 to 5), 100 steps. Their code judges a step by the points that it descended;
the second way judges by others. A wave has 100 points to learn from and 100 to be asked about.

Diabetes is scikit-learn's: 442 people, ten numbers of each. Two thirds are for learning: at every
meta-step one half of them is descended, and the other half judges; 250 meta-steps, one inner step
of 0.01. Then a new network, 10-50-1, descends the loss on all of them, up to 200 steps with
momentum 0.9, and the others judge. Networks, numbers of points and of steps are ours.

Beside them squared error, ten times squared error, which is a rate ten times as large, and squared
error times one learned number, which is a learned rate.

    python -m reproduce.learned_loss

One core needs about three minutes. The figures are written to results/learned_loss.json after every
row; rows that are there are not trained again.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.inner.learned_loss import LearnedLoss
from metalit.judging.comparison import number
from metalit.models import mlp

from .together import less, parser_of, summary

SEEDS, APART = range(5), 10_000


class Weight(LearnedLoss):
    """Squared error times a learned number."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def value(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """The weighted square."""
        return self.weight * (prediction - truth) ** 2


LOSSES: dict[str, Callable[[int], LearnedLoss]] = {
    "squared error": lambda seed: Weight().requires_grad_(False),
    "squared error, ten times": lambda seed: Weight(10.0).requires_grad_(False),
    "squared error, learned weight": lambda seed: Weight(),
    "network": lambda seed: ml.LossNetwork(seed=seed),
    "polynomial": lambda seed: ml.LossPolynomial(seed=seed),
    "library": lambda seed: ml.LossLibrary()}


def wave(amplitude: Tensor, phase: Tensor, reach: float, random: torch.Generator) -> ml.Task:
    """Sine waves, each with a hundred points to learn from and as many to be asked about."""
    def split() -> ml.Split:
        x = reach * (2 * torch.rand(len(amplitude), 100, 1, generator=random) - 1)
        return ml.Split(x, amplitude[:, None, None] * torch.sin(x - phase[:, None, None]))
    return ml.Task(split(), split())


class Waves:
    """One wave to learn a loss from, and ten others."""

    lr, steps, at, momentum = 1e-3, 500, (0, 1, 10, 100), 0.0

    def __init__(self, seed: int):
        random = torch.Generator().manual_seed(seed)
        self.random = random
        self.others = wave(0.2 + 4.8 * torch.rand(10, generator=random),
                           math.pi * (2 * torch.rand(10, generator=random) - 1), 5.0, random)

    def network(self, seed: int) -> nn.Module:
        """A new network."""
        return mlp(1, 100, 10, 1, seed=seed)

    def drawn(self) -> ml.Task:
        """The one wave."""
        return wave(torch.ones(1), torch.zeros(1), 2.0, self.random)


class Diabetes:
    """People to learn a loss from, and others."""

    lr, steps, at, momentum = 0.01, 250, (0, 10, 100, 200), 0.9

    def __init__(self, seed: int):
        from sklearn.datasets import load_diabetes

        self.random = torch.Generator().manual_seed(seed)
        rows = torch.tensor(load_diabetes().data), torch.tensor(load_diabetes().target)[:, None]
        order = torch.randperm(442, generator=self.random)
        self.x, self.y, far_x, far_y = (part for columns in zip(
            *(in_units(columns[order], 294) for columns in rows), strict=True) for part in columns)
        self.others = ml.tasks.one(self.x, self.y, far_x, far_y)

    def network(self, seed: int) -> nn.Module:
        """A new network."""
        return mlp(10, 50, 1, seed=seed)

    def drawn(self) -> ml.Task:
        """One half to descend, the other to judge."""
        one, other = torch.randperm(294, generator=self.random).chunk(2)
        return ml.tasks.one(self.x[one], self.y[one], self.x[other], self.y[other])


def in_units(columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first rows and the others, in deviations of the first ones."""
    mean, deviation = columns[:count].mean(0), columns[:count].std(0)
    scaled = ((columns - mean) / deviation).float()
    return scaled[:count], scaled[count:]


class Bed(NamedTuple):
    """Tasks; and whether a step is judged by other examples than it descended."""

    tasks: Any
    query: bool = True


BEDS = {"sine waves, judged as in the code": Bed(Waves, query=False),
        "sine waves, judged by a query set": Bed(Waves), "diabetes": Bed(Diabetes)}


def run(make: Callable[[int], LearnedLoss], bed: Bed, seed: int, share: float) -> dict[str, Any]:
    """Learn a loss, and let new networks descend it."""
    tasks = bed.tasks(seed)
    J = ml.MetaLoss(tasks.network(0), F.mse_loss, inner=ml.SGD(
        tasks.lr, 1, loss=make(seed), momentum=tasks.momentum))
    learned = [p for p in J.inner.loss.parameters() if p.requires_grad]
    adam = torch.optim.Adam(learned, lr=1e-3) if learned else None
    for step in range(round(share * tasks.steps) if adam else 0):
        J.model.load_state_dict(tasks.network(APART * (seed + 1) + step).state_dict())
        task = tasks.drawn()
        adam.zero_grad()
        J(task if bed.query else ml.Task(task.support, task.support)).backward()
        adam.step()
    J.model.load_state_dict(tasks.network(seed).state_dict())
    losses = J.curve(tasks.others, tasks.at).mean(0)
    return {"seed": seed, "mean": [number(value) for value in losses.tolist()]}


def main() -> None:
    """Read the command line; train all rows that the file does not have yet."""
    options = parser_of(__doc__, "learned_loss").parse_args()
    torch.set_num_threads(1)
    path = Path("results") / f"{options.file}.json"
    kept = json.loads(path.read_text())["beds"] if path.exists() else {}
    record = {"what": "mean squared error of new networks after steps down a learned loss, on "
              "examples that they have not seen", "command":
              "python -m reproduce.learned_loss", "machine": machine(), "beds": kept}
    for name, bed in BEDS.items():
        settings = {"share": options.share, "meta_steps": bed.tasks.steps, "inner_rate":
                    bed.tasks.lr, "inner_steps": list(bed.tasks.at), "seeds": list(SEEDS),
                    "versions": versions("metalit", "torch", "scikit-learn")}
        if kept.get(name, {}).get("settings") != settings:
            kept[name] = {"settings": settings, "rows": {}}
        for title, make in LOSSES.items():
            if title not in kept[name]["rows"]:
                kept[name]["rows"][title] = finished(
                    [run(make, bed, seed, options.share) for seed in SEEDS], kept[name]["rows"])
                write_json(options.file, record)
                print(name, title, kept[name]["rows"][title]["summary"], flush=True)


def finished(runs: list[dict[str, Any]], rows: dict[str, Any]) -> dict[str, Any]:
    """The runs of a row, their summary, and their difference to a learned weight, seed by seed."""
    row = {"runs": runs, "summary": summary(runs)}
    beside = rows.get("squared error, learned weight")
    return row | {"minus_learned_weight": less(runs, beside["runs"])} if beside else row


if __name__ == "__main__":
    main()
