"""The network of the live figure of patients, which learns from three blood samples at any hours.

    python -m reproduce.patient_figure

Meta-SGD on simulated patients, three of whose ten samples are learned from, whichever they are.
The weights and step sizes go to metalit/widgets/data/patient_start.npz, and how well they forecast
600 patients, beside MAP and the mean curve, to results/patient_figure.json. One core needs about
two minutes.
"""
from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.data.patients import Fit, MeanCurve, Patients, posterior
from metalit.tasks.random import Random
from metalit.tasks.task import Split, Task
from reproduce.patients import INNER_STEPS, SEED, STEPS, chosen_before, meta_learned

WEIGHTS = Path("metalit/widgets/data/patient_start.npz")
SHOTS, PATIENTS = 3, 600


class Scattered(Patients):
    """Simulated patients whose first samples are any of the ten, and not the earliest."""

    def draw(self, n_tasks: int, random: Random) -> Task:
        """Patients, with the samples that are learned from at random hours."""
        support, query = super().draw(n_tasks, random)
        x, y = torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1)
        order = random.uniform((n_tasks, x.shape[1])).argsort(1)[..., None]
        x, y = x.gather(1, order.expand_as(x)), y.gather(1, order)
        return Task(Split(x[:, :self.shots], y[:, :self.shots]),
                    Split(x[:, self.shots:], y[:, self.shots:]))


def save(J: ml.MetaLoss, path: Path) -> None:
    """The weights of the network and the step size of each, under their names in the network."""
    names = [name for name, _ in J.model.named_parameters()]
    rates = [J.inner.lr * scale for scale in J.inner.parameters()]
    tensors = dict(J.model.named_parameters()) | {
        f"rate/{name}": rate for name, rate in zip(names, rates, strict=True)}
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in tensors.items()})


def main() -> None:
    """Train, save, and measure."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training")
    parser.add_argument("--runs", type=Path, default=Path("runs/patient-figure"),
                        help="for checkpoints")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where they go")
    parser.add_argument("--file", default="patient_figure", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, family = time.process_time(), Scattered(SHOTS)
    compile = not options.eager and shutil.which("c++") is not None
    J = meta_learned(family, **chosen_before(), steps=options.steps, folder=options.runs,
                     compile=compile)
    save(J, options.weights)
    learned = ml.evaluate(J, family, n_tasks=PATIENTS, steps=range(INNER_STEPS + 1))
    others = {name: ml.evaluate(one, family, n_tasks=PATIENTS, steps=(0,)).mean[0]
              for name, one in {"MAP": Fit(posterior), "mean curve": MeanCurve()}.items()}
    write_json(options.file, {
        "what": "mean squared error of seven samples, (mg/L)², after three at any hours",
        "command": "python -m reproduce.patient_figure", "seed": SEED, "meta_steps": options.steps,
        "patients": PATIENTS, "inner steps": learned.mean, "others": others,
        "machine": machine(), "versions": versions("metalit", "torch"),
        "cpu_seconds": math.ceil(time.process_time() - begin)})
    print(f"after 0 … {INNER_STEPS} inner steps {learned.mean}, {others}")


if __name__ == "__main__":
    main()
