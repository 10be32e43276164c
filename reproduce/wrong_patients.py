"""Patients whose bodies are not one compartment: who forecasts them better, a fit or a network?

    python -m reproduce.wrong_patients

For each way in which bodies may work, and two, four and six samples, a network is meta-trained on
simulated patients of that way. On 600 others it is set beside one that was trained on patients of
one compartment, MAP with the formula and the population of one compartment, MAP with the right
ones, and the mean curve of the right kind. The step sizes are those that `python -m
reproduce.patients` chose for one compartment; nothing is tuned here. The result goes to
results/wrong_patients.json. One core needs about ten minutes; a run that was stopped goes on.
"""
from __future__ import annotations

import argparse
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import machine, resampled, versions, write_json
from metalit.data.other_patients import WAYS, OtherPatients, map_of
from metalit.data.patients import (
    BODY,
    NOISE,
    SPREAD,
    Fit,
    MeanCurve,
    concentration,
    improbable,
    minimum,
)
from metalit.tasks.task import Split, Task
from reproduce.patients import SEED, STEPS, Answer, adapted, chosen_before, meta_learned

SHOTS, PATIENTS, PLAIN = (2, 4, 6), 600, "one compartment"


def network(way: str, shots: int, options: argparse.Namespace) -> Answer:
    """A network that was meta-trained on patients of a way."""
    compile = not options.eager and shutil.which("c++") is not None
    folder = options.runs / f"{way.replace(' ', '-')}-{shots}"
    return adapted(meta_learned(OtherPatients(way, shots), **chosen_before(), steps=options.steps,
                                folder=folder, compile=compile))


def answers(way: str, shots: int, plain: Answer, options: argparse.Namespace) -> dict[str, Answer]:
    """All who forecast patients of a way from so many samples."""
    family = OtherPatients(way, shots)
    mine = plain if way == PLAIN else network(way, shots, options)
    return {"meta-learned": mine, "meta-learned on one compartment": plain,
            "MAP, one compartment": map_of(PLAIN).predict,
            "MAP, one compartment, refitted": refitted(way).predict,
            "MAP, right formula": map_of(way).predict,
            "mean curve": MeanCurve(patients=family).predict}


def refitted(way: str, count: int = 500, rounds: int = 10) -> Fit:
    """MAP of one compartment, with the population and noise that fit patients of a way best.

    All ten samples of each are known. The middle and the spread of the posterior densities are
    taken for the population's, each taken for normal (Laplace); the noise is stretched until what
    is left over is as large as it says. And so on, round by round.
    """
    support, query = OtherPatients(way, 5).batch(count, SEED + 2).to(torch.float64)
    samples = Split(torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1))
    middle, spread, noise = BODY.double(), SPREAD.double(), torch.tensor(NOISE).double()
    for _ in range(rounds):
        objective = partial(improbable, curve=concentration, middle=middle, spread=spread,
                            noise=noise)
        bodies = minimum(objective, middle.log().expand(count, 3), samples)
        bend = torch.func.vmap(torch.func.jacrev(torch.func.grad(objective)))(bodies, samples)
        unsure = torch.linalg.inv(bend).diagonal(dim1=-2, dim2=-1).mean(0)
        true = concentration(*samples.x.unbind(-1), bodies)
        left = (samples.y[..., 0] - true).square() / ((noise[0] * true) ** 2 + noise[1] ** 2)
        freedom = samples.y.shape[1] / (samples.y.shape[1] - 3)
        middle, spread = bodies.mean(0).exp(), (bodies.var(0) + unsure).sqrt()
        noise = noise * (left.mean() * freedom).sqrt()
    return Fit(partial(improbable, curve=concentration, middle=middle, spread=spread, noise=noise),
               middle=middle)


def squares(answer: Answer, task: Task) -> Tensor:
    """The squared error of each later sample, (patients, samples), in (mg/L)²."""
    return (answer(task.support, task.query.x) - task.query.y)[..., 0].square().double()


def row(errors: Tensor, rivals: dict[str, Tensor]) -> dict[str, Any]:
    """Mean squared error, and how much it is above that of each rival, overall and by sample."""
    found: dict[str, Any] = {"mean": errors.mean().item(), "interval": resampled(errors.mean(1)),
                             "by sample": errors.mean(0).tolist(), "less": {}}
    for name, of_rival in rivals.items():
        apart = errors - of_rival
        found["less"][name] = {
            "mean": apart.mean().item(), "interval": resampled(apart.mean(1)),
            "by sample": apart.mean(0).tolist(),
            "interval by sample": [resampled(one) for one in apart.T]}
    return found


def table(of: dict[str, Answer], task: Task) -> dict[str, Any]:
    """A row for each who forecasts, beside each MAP."""
    errors = {name: squares(answer, task) for name, answer in of.items()}
    maps = {name: found for name, found in errors.items() if name.startswith("MAP")}
    return {name: row(found, maps) for name, found in errors.items()}


def main() -> None:
    """Train a network for each way and number of samples, and set all beside each other."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--runs", type=Path, default=Path("runs/other-patients"),
                        help="for checkpoints")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="to forecast")
    parser.add_argument("--file", default="wrong_patients", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, found = time.process_time(), dict[str, dict[int, Any]]()
    for shots in SHOTS:
        plain = network(PLAIN, shots, options)
        for way in WAYS:
            family = OtherPatients(way, shots)
            found.setdefault(way, {})[shots] = rows = table(
                answers(way, shots, plain, options), family.held_out(options.patients, SEED))
            print(f"{way}, {shots} samples: " + ", ".join(
                f"{name} {one['mean']:.3f}" for name, one in rows.items()), flush=True)
    write_json(options.file, {
        "what": "mean squared error of later samples, (mg/L)², and how far it is above that of "
        "each MAP; intervals: 95 %, patients drawn again",
        "command": "python -m reproduce.wrong_patients", "seed": SEED, "patients": options.patients,
        "meta_steps": options.steps, "chosen": chosen_before(), "hours": OtherPatients(PLAIN).hours,
        "machine": machine(), "versions": versions("metalit", "torch"), "ways": found,
        "cpu_seconds": math.ceil(time.process_time() - begin)})


if __name__ == "__main__":
    main()
