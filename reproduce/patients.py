"""Twelve real patients, forecast from their first samples by networks that saw simulated ones.

    python -m reproduce.patients

Everything is trained and chosen on simulated patients, and written down, before a real one is
read, once. Networks are trained with three seeds, or as many as `--seeds` says; step sizes are
chosen with the first of them. The result goes to results/patients.json. One core needs about
five minutes for a seed; a run that was stopped goes on.
"""
from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import metalit as ml
from benchmarks.measure import RESULTS, machine, resampled, versions, write_json
from metalit.data.patients import (
    Curve,
    Fit,
    MeanCurve,
    Patients,
    least_squares,
    posterior,
    theophylline,
)
from metalit.judging.baselines import InContext, Joint, RidgeOn, Scratch
from metalit.judging.comparison import interval as over_seeds
from metalit.judging.recipes import schedule
from metalit.tasks.task import Split, Task

SHOTS, STEPS, TRIAL, SEED, SEEDS = (2, 3, 4), 3000, 300, 0, 3
RATES, META_RATES, INNER_STEPS = (0.01, 0.03), (1e-3, 3e-3), 5
GRID = [0.25 * i for i in range(1, 101)]                     # hours at which curves are drawn
SIMULATED = 600
LOOKS = 2                            # the first was with one seed; nothing was changed after it
Answer = Callable[[Split, Tensor], Tensor]


def meta_learned(family: Patients, lr: float, meta_lr: float, steps: int, folder: Path,
                 compile: bool = False, seed: int = SEED) -> ml.MetaLoss:
    """Meta-SGD on simulated patients; a run that is found in the folder goes on."""
    J = ml.MetaSGD(Curve(seed=seed), F.mse_loss, lr=lr, steps=INNER_STEPS)
    ml.meta_train(J, family, steps=steps, seed=seed, checkpoint=folder, progress=False,
                  compile=compile, optimizer=partial(torch.optim.Adam, lr=meta_lr),
                  scheduler=schedule("cosine", steps))
    return J


def adapted(J: ml.MetaLoss) -> Answer:
    """What J's model says after it has learned the support sets."""
    return lambda support, x: J.predict(J.adapt(support), x).detach()


def error(answer: Answer, task: Task) -> Tensor:
    """Mean squared error of each patient's later samples, (patients,), in (mg/L)²."""
    return (answer(task.support, task.query.x) - task.query.y).square().mean((1, 2)).double()


def seen(x: Tensor) -> Tensor:
    """The hours as a `Curve` sees them."""
    return torch.cat([x[..., :1] / 12 - 1, (x[..., :1] + 0.1).log()], -1)


def per_dose(split: Split) -> Split:
    """The same samples, for 5 mg/kg each, as those of one who knows that doses are proportional."""
    return Split(seen(split.x), split.y * 5 / split.x[..., 1:])


class PerDose(ml.Family):
    """Simulated patients, for a network that reads them."""

    def __init__(self, shots: int):
        self.patients = Patients(shots)

    def draw(self, n_tasks: int, random: Any) -> Task:
        """Patients, with what is seen of them."""
        support, query = self.patients.draw(n_tasks, random)
        return Task(per_dose(support), per_dose(query))


def in_context(shots: int, steps: int, seed: int) -> Answer:
    """A network that reads the samples as an input."""
    reader = InContext(F.mse_loss, steps=steps, seed=seed).fit(PerDose(shots))
    return lambda support, x: reader.predict(per_dose(support), seen(x)) * x[..., 1:] / 5


def chosen_rates(folder: Path) -> dict[str, float]:
    """The inner and outer step size that do best in short trials with three samples."""
    task, found = Patients(3).batch(200, seed=SEED + 1), {}
    for lr in RATES:
        for meta_lr in META_RATES:
            J = meta_learned(Patients(3), lr, meta_lr, TRIAL, folder / f"trial-{lr}-{meta_lr}")
            found[lr, meta_lr] = error(adapted(J), task).mean().item()
            print(f"inner {lr}, outer {meta_lr}: {found[lr, meta_lr]:.3f}", flush=True)
    lr, meta_lr = min(found, key=lambda pair: found[pair])
    return {"lr": lr, "meta_lr": meta_lr}


def chosen_before() -> dict[str, float]:
    """The step sizes that this command chose, from its file of results."""
    return json.loads((RESULTS / "patients.json").read_text(encoding="utf-8"))["chosen"]


def networks(shots: int, steps: int, rates: dict[str, float], folder: Path, compile: bool,
             seed: int) -> dict[str, Answer]:
    """Those who forecast from so many samples by a network, trained on simulated patients."""
    family, budget = Patients(shots), {"steps": steps, "seed": seed}
    place = folder / (f"{shots}-samples" + f"-seed{seed}" * (seed != SEED))
    J = meta_learned(family, **rates, steps=steps, folder=place, compile=compile, seed=seed)
    joint = Joint(Curve(seed=seed), F.mse_loss, **budget).fit(family)
    features = Scratch(joint.learner.model, F.mse_loss, **budget)
    print(f"{shots} samples, seed {seed}: trained", flush=True)
    return {"meta-learned": adapted(J),
            "ridge on features": RidgeOn(F.mse_loss, features, **budget).fit(family).predict,
            "joint, fine-tuned": joint.predict,
            "from scratch": Scratch(Curve(seed=seed), F.mse_loss, **budget).fit(family).predict,
            "in context": in_context(shots, steps, seed)}


def rivals(of_seeds: list[dict[str, Answer]]) -> dict[str, list[Answer]]:
    """All who forecast: those with a network once for each seed, the others once."""
    found = {name: [answers[name] for answers in of_seeds] for name in of_seeds[0]}
    plain: dict[str, list[Answer]] = {
        "MAP": [Fit(posterior).predict], "mean curve": [MeanCurve().predict],
        "least squares": [Fit(least_squares).predict]}
    return {"meta-learned": found.pop("meta-learned"), **plain, **found}


def table(answers: dict[str, list[Answer]], task: Task) -> dict[str, Any]:
    """For each rival the mean over seeds and the worst patient, and its difference from MAP.

    Intervals are over patients, of their means over seeds; "over seeds" is half of Student's
    interval of the mean over all patients, None for one seed.
    """
    errors = {name: torch.stack([error(one, task) for one in of_seeds])
              for name, of_seeds in answers.items()}
    by_map = errors["MAP"].mean(0)
    return {name: {"mean": values.mean().item(), "interval": resampled(values.mean(0)),
                   "seeds": values.mean(1).tolist(),
                   "over seeds": over_seeds(values.mean(1).tolist())[1],
                   "worst": values.mean(0).max().item(),
                   "less MAP": (values.mean(0) - by_map).mean().item(),
                   "interval less MAP": resampled(values.mean(0) - by_map),
                   "patients": values.mean(0).tolist()} for name, values in errors.items()}


def by_sample(answers: dict[str, list[Answer]], task: Task) -> dict[str, list[float]]:
    """The root of the mean squared error of each later sample, in their order, in mg/L."""
    def squares(answer: Answer) -> Tensor:
        return (answer(task.support, task.query.x) - task.query.y).square().mean((0, 2))
    return {name: torch.stack([squares(one) for one in of_seeds]).mean(0).sqrt().tolist()
            for name, of_seeds in answers.items()}


def curves(answers: dict[str, list[Answer]], task: Task) -> dict[str, list[list[float]]]:
    """What three of the rivals, of the first seed, say of each patient at the hours of `GRID`."""
    hours = torch.tensor(GRID).expand(task.batch_size, -1)
    x = torch.stack([hours, task.support.x[:, :1, 1].expand_as(hours)], -1)
    return {name: [[round(value, 3) for value in row]
                   for row in answers[name][0](task.support, x)[..., 0].tolist()]
            for name in ("meta-learned", "MAP", "mean curve")}


def coverage(answers: list[Answer], simulated: Task, real: Task) -> float:
    """How many real samples lie within what covers nine tenths of the simulated, by their order."""
    def gaps(answer: Answer, task: Task) -> Tensor:
        return (answer(task.support, task.query.x) - task.query.y).abs()[..., 0]

    def held(answer: Answer) -> Tensor:
        wide = torch.quantile(gaps(answer, simulated), 0.9, dim=0)
        return (gaps(answer, real) <= wide).double().mean()
    return torch.stack([held(answer) for answer in answers]).mean().item()


def read_command_line() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds: 0, 1, …")
    parser.add_argument("--runs", type=Path, default=Path("runs/patients"), help="for checkpoints")
    parser.add_argument("--eager", action="store_true",
                        help="do not compile, even where a C++ compiler is found")
    parser.add_argument("--file", default="patients", help="name of the file in results/")
    options = parser.parse_args()
    if options.seeds < 1: parser.error(f"--seeds {options.seeds}: at least 1 is needed")
    return options


def main() -> None:
    """Train and choose on simulated patients, then look at the real ones."""
    options = read_command_line()
    torch.set_num_threads(1)
    begin = time.process_time()
    rates = chosen_rates(options.runs)
    print(f"chosen: {rates}", flush=True)
    compile = not options.eager and shutil.which("c++") is not None
    seeds = list(range(SEED, SEED + options.seeds))
    answers = {shots: rivals([networks(shots, options.steps, rates, options.runs, compile, seed)
                              for seed in seeds]) for shots in SHOTS}
    simulated = {shots: Patients(shots).held_out(SIMULATED, SEED) for shots in SHOTS}
    record: dict[str, Any] = {
        "what": "mean squared error, (mg/L)², of the samples that follow the first ones after the "
        "dose, mean over seeds; intervals: 95 %, patients drawn again; over seeds: half of "
        "Student's 95 % interval", "command": "python -m reproduce.patients",
        "compiled": compile, "seeds": seeds, "meta_steps": options.steps,
        "inner_steps": INNER_STEPS, "chosen": rates, "looks at real patients": LOOKS,
        "tried": {"lr": RATES, "meta_lr": META_RATES, "steps": TRIAL},
        "machine": machine(), "versions": versions("metalit", "torch"),
        "simulated": {shots: table(answers[shots], simulated[shots]) for shots in SHOTS}}
    for one in record["simulated"].values():
        for row in one.values(): row.pop("patients")
    print("simulated patients are done; now the real ones", flush=True)
    real = {shots: theophylline(shots) for shots in SHOTS}
    record["real"] = {shots: table(answers[shots], real[shots]) for shots in SHOTS}
    record["real by sample"] = {shots: by_sample(answers[shots], real[shots]) for shots in SHOTS}
    record["coverage of 90 %"] = {shots: {
        name: coverage(answers[shots][name], simulated[shots], real[shots])
        for name in ("meta-learned", "MAP")} for shots in SHOTS}
    record["curves"] = {"hours": GRID, "samples": 3} | curves(answers[3], real[3])
    record["cpu_seconds"] = math.ceil(time.process_time() - begin)
    write_json(options.file, record)
    for shots in SHOTS:
        for name, row in record["real"][shots].items():
            print(f"{shots} samples, {name:18} {row['mean']:8.3f}  worst {row['worst']:8.3f}")


if __name__ == "__main__":
    main()
