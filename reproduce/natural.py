"""mini-ImageNet and CIFAR-FS, where somebody has the pictures: five methods beside published ones.

    python -m reproduce.natural FOLDER --protocol mini-imagenet [--splits FOLDER]
    python -m reproduce.natural

FOLDER holds the pictures, and the split's files train, val and test beside them or in `--splits`
(see the chapter *Splits that others made*). Every run is a `metalit train FOLDER --protocol …` in a
process of its own that keeps a checkpoint in runs/natural/, so all of it can be stopped at any
moment and goes on. The figures are written to results/natural.json after every run; without a
folder nothing is trained, and what was never measured says so there.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.data.splits import NATURAL
from metalit.judging.baselines import NearestMean
from metalit.judging.recipes import build, complete
from reproduce.omniglot import Job, read, train

STEPS, TASKS, QUERIES = 60_000, 4, 15
SHOTS = {"5-way 1-shot": 1, "5-way 5-shot": 5}
METHODS = ("maml", "fomaml", "reptile", "protonet", "r2d2")
LOOKED_AT = {"reptile": 50, "protonet": 0, "r2d2": 0, "maml": 10, "fomaml": 10}

# The code of Finn et al. has 0.01 for mini-ImageNet and sums over classes: 0.05 on the mean.
LR = {"maml": ["--inner-lr", "0.05", "--inner-steps", "5"],
      "fomaml": ["--inner-lr", "0.05", "--inner-steps", "5"]}

# In per cent ± 95 %, each with its paper, whose table was read in a reprint, or where else it comes
# from. Networks of four convolutions; budgets are the papers'.
PUBLISHED: dict[str, dict[str, dict[str, str]]] = {
    "mini-imagenet": {
        "maml": {"5-way 1-shot": "48.70 ± 1.84", "5-way 5-shot": "63.11 ± 0.92",
                 "source": "Finn et al. 2017, 32 filters; in a reprint"},
        "fomaml": {"5-way 1-shot": "48.07 ± 1.75", "5-way 5-shot": "63.15 ± 0.91",
                   "source": "Finn et al. 2017; in a reprint"},
        "reptile": {"5-way 1-shot": "47.07 ± 0.26", "5-way 5-shot": "62.74 ± 0.37",
                    "source": "Nichol et al. 2018, one query at a time; in a reprint"},
        "protonet": {"5-way 1-shot": "49.42 ± 0.78", "5-way 5-shot": "68.20 ± 0.66",
                     "source": "Snell et al. 2017, trained with 30 and 20 ways; in a reprint"},
        "r2d2": {"5-way 1-shot": "51.19 ± 0.36", "5-way 5-shot": "67.29 ± 0.31",
                 "source": "trained again by LibFewShot, 64 filters"}},
    "cifar-fs": {
        "maml": {"5-way 1-shot": "58.9 ± 1.9", "5-way 5-shot": "71.5 ± 1.0",
                 "source": "Bertinetto et al. 2019; in a reprint"},
        "protonet": {"5-way 1-shot": "55.5 ± 0.7", "5-way 5-shot": "72.0 ± 0.6",
                     "source": "Bertinetto et al. 2019; in a reprint"},
        "r2d2": {"5-way 1-shot": "60.0 ± 0.7", "5-way 5-shot": "76.1 ± 0.6",
                 "source": "Bertinetto et al. 2019, 64 filters; in a reprint"}}}


class Asked(NamedTuple):
    """What is to be trained: where the pictures and the split are, and for how long."""

    folder: Path
    protocol: str
    splits: Path | None
    steps: int
    batch_size: int
    filters: int
    test_tasks: int

    def options(self) -> list[str]:
        """What every run is told."""
        return ["--protocol", self.protocol,
                *([] if self.splits is None else ["--splits", str(self.splits)]),
                "--ways", "5", "--queries", str(QUERIES), "--steps", str(self.steps),
                "--batch-size", str(self.batch_size), "--filters", str(self.filters)]


def jobs(asked: Asked, methods: list[str], runs: Path) -> dict[tuple[str, str], Job]:
    """A training for each setting and method."""
    def job(setting: str, method: str) -> Job:
        options = ["--method", method, "--shots", str(SHOTS[setting]), *asked.options(),
                   *LR.get(method, []), "--test-tasks", "50"]
        if method != "reptile": options += ["--schedule", "cosine"]
        name = f"{asked.protocol}-{SHOTS[setting]}shot-{method}"
        return Job(runs / name, options, str(asked.folder))
    return {(setting, method): job(setting, method) for setting in SHOTS for method in methods}


def judged(job: Job, asked: Asked) -> dict[str, Any]:
    """Accuracy on unseen classes, with all queries of a task at once, and with each by itself."""
    experiment, record = read(job)
    def on_all(together: bool) -> list[dict[str, Any]]:
        found = ml.evaluate(experiment.J, experiment.test, n_tasks=asked.test_tasks, batch_size=20,
                            steps=experiment.steps, metric=ml.accuracy, transductive=together)
        return [{"inner_steps": row["inner_steps"], "accuracy": 100 * row["accuracy"],
                 "ci95": 100 * row["ci95"]} for row in found.rows()]
    return record | {"evaluation": on_all(True), "one query at a time": on_all(False)}


def without_learning(asked: Asked, setting: str) -> dict[str, dict[str, float]]:
    """Who compares pixels with the class means, and who always says the same, in per cent."""
    settings: dict[str, Any] = {
        "family": str(asked.folder), "protocol": asked.protocol, "method": "protonet", "seed": 0,
        "shots": SHOTS[setting], "queries": QUERIES, "filters": 1,
        "splits": None if asked.splits is None else str(asked.splits)}
    fresh = build(complete(settings))
    nearest = NearestMean(F.cross_entropy, steps=1).fit(fresh.train)
    found = ml.evaluate(nearest, fresh.test, n_tasks=asked.test_tasks, steps=[0],
                        metric=ml.accuracy)
    return {"nearest-mean": {"accuracy": 100 * found.mean[0], "ci95": 100 * found.ci95[0]},
            "blind": {"accuracy": 20.0, "ci95": 0.0}}


def written(file: str) -> dict[str, Any]:
    """What results/FILE.json holds of measurements, with all that is said beside them."""
    path = RESULTS / f"{file}.json"
    measured = json.loads(path.read_text(encoding="utf-8"))["measured"] if path.exists() else {}
    return {"what": "few-shot accuracy in per cent on unseen classes of published splits; strided "
            "conv4, batch normalisation on the batch's statistics, one seed; a protocol that is "
            "not among `measured` was not measured, because its pictures may not be passed on",
            "command": "python -m reproduce.natural FOLDER --protocol …",
            "protocols": {name: f"{known.source}; {'/'.join(map(str, known.classes))} classes, "
                          f"{known.size} × {known.size}" for name, known in NATURAL.items()},
            "looked_at": LOOKED_AT, "published": PUBLISHED, "measured": measured}


def reproduce(asked: Asked, methods: list[str], runs: Path, file: str) -> None:
    """Run everything that is not there yet, and write the figures after each run."""
    record = written(file)
    about = {"steps": asked.steps, "batch_size": asked.batch_size, "filters": asked.filters,
             "test_tasks": asked.test_tasks, "queries": QUERIES, "seed": 0,
             "machine": machine(), "versions": versions("metalit", "torch")}
    measured: dict[str, Any] = {setting: without_learning(asked, setting) for setting in SHOTS}
    record["measured"][asked.protocol] = about | {"methods": measured}
    for (setting, method), job in jobs(asked, methods, runs).items():
        train(job)
        measured[setting][method] = judged(job, asked)
        write_json(file, record)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the pictures")
    parser.add_argument("--protocol", choices=NATURAL)
    parser.add_argument("--splits", type=Path, help="folder of the files train, val and test")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS],
                        metavar="METHOD", help="of " + ", ".join(METHODS))
    parser.add_argument("--steps", type=int, default=STEPS, help="meta-steps of each run")
    parser.add_argument("--batch-size", type=int, default=TASKS, help="tasks of each meta-step")
    parser.add_argument("--filters", type=int, default=64, help="of each convolution")
    parser.add_argument("--test-tasks", type=int, default=600, help="unseen tasks to judge on")
    parser.add_argument("--runs", type=Path, default=Path("runs/natural"), help="for checkpoints")
    parser.add_argument("--file", default="natural", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.folder is None:
        write_json(options.file, written(options.file))
        return
    if options.protocol is None: parser.error(f"--protocol is needed: {' or '.join(NATURAL)}")
    asked = Asked(options.folder, options.protocol, options.splits, options.steps,
                  options.batch_size, options.filters, options.test_tasks)
    try: reproduce(asked, options.methods, options.runs, options.file)
    except ValueError as error: raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
