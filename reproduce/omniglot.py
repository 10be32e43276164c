"""Omniglot (Lake et al. 2015): one model trained for long, and ten methods on a budget.

The one is trained by MAML, at two inner step sizes.

    python -m reproduce.omniglot

Needs the archives of Omniglot, which are downloaded unless METALIT_DATA points at a folder that
holds them. Every run is a `metalit train omniglot …` in a process of its own, on one core, and
keeps a checkpoint in runs/omniglot/, so all of it can be stopped at any moment and goes on. The
figures are written to results/omniglot.json after every run.
"""
from __future__ import annotations

import argparse
import json
import os
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.judging.recipes import Experiment
from metalit.judging.runs import best_or_last, rebuilt
from metalit.tasks import Episodes
from metalit.training.checkpoints import read_checkpoint

FOLDER = Path("runs/omniglot")
LONG_STEPS = 6000
THREADS = 1  # of each run
DIGITS = string.digits + string.ascii_lowercase  # int(digit, 36) reads one
# Inner step sizes on mean cross-entropy. The code of the MAML paper says 0.4 and sums over classes:
# 2.0 on the mean.
STEP_SIZES = (0.4, 2.0)
METHODS = ("maml", "fomaml", "reptile", "anil", "boil", "meta-sgd", "meta-curvature", "cavia",
           "protonet", "protomaml")


class Setting(NamedTuple):
    """Classes, support examples per class, and the budget, smaller where a task is larger."""

    ways: int
    shots: int
    batch_size: int
    steps: int


SETTINGS = {"5-way 1-shot": Setting(5, 1, 32, 400), "5-way 5-shot": Setting(5, 5, 16, 200),
            "20-way 1-shot": Setting(20, 1, 8, 200)}

# As the papers give them, in per cent ± 95 %. Their protocols and budgets differ; none has Omniglot
# for the others.
PUBLISHED = {
    "maml": {"5-way 1-shot": "98.7 ± 0.4", "5-way 5-shot": "99.9 ± 0.1",
             "20-way 1-shot": "95.8 ± 0.3", "source": "Finn et al. 2017, 60,000 meta-steps"},
    "fomaml": {"5-way 1-shot": "98.3 ± 0.5", "5-way 5-shot": "99.2 ± 0.2",
               "20-way 1-shot": "89.4 ± 0.5", "source": "Nichol et al. 2018"},
    "reptile": {"5-way 1-shot": "97.68 ± 0.04", "5-way 5-shot": "99.48 ± 0.06",
                "20-way 1-shot": "89.43 ± 0.14",
                "source": "Nichol et al. 2018, transductive, 100,000 and 200,000 meta-steps"},
    "anil": {"20-way 1-shot": "96.2 ± 0.5", "source": "Raghu et al. 2020"},
    "meta-sgd": {"5-way 1-shot": "99.53 ± 0.26", "5-way 5-shot": "99.93 ± 0.09",
                 "20-way 1-shot": "95.93 ± 0.38",
                 "source": "Li et al. 2017, max pooling, 60,000 meta-steps"},
    "meta-curvature": {"5-way 1-shot": "99.97", "5-way 5-shot": "99.89", "20-way 1-shot": "99.12",
                       "source": "Park & Oliva 2019, MC2 (the name from memory), best row"},
    "protonet": {"5-way 1-shot": "98.8", "5-way 5-shot": "99.7",
                 "20-way 1-shot": "96.0 (from memory)",
                 "source": "Snell et al. 2017, max pooling, trained with 60 ways"},
}


class Job(NamedTuple):
    """One training: where it goes, and what `metalit train` is told."""

    folder: Path
    options: list[str]
    family: str = "omniglot"

    def command(self) -> list[str]:
        """The command line, without the interpreter."""
        return ["metalit", "train", self.family, *self.options, "--out", str(self.folder)]


def long_jobs(steps: int) -> dict[str, Job]:
    """MAML, 5-way 1-shot, the same but for the inner step size."""
    same = ["--method", "maml", "--ways", "5", "--shots", "1", "--steps", str(steps), "--schedule",
            "cosine"]
    return {str(lr):
            Job(FOLDER / f"long-{lr}", [*same, "--inner-lr", str(lr), "--validate-every", "500"])
            for lr in STEP_SIZES}


def short_jobs(methods: list[str], settings: list[str]) -> dict[tuple[str, str], Job]:
    """These methods in these settings, for the same number of meta-steps of a setting."""
    return {(name, method): Job(FOLDER / f"{name.replace(' ', '-')}-{method}", [
                "--method", method, "--ways", str(setting.ways), "--shots", str(setting.shots),
                "--steps", str(setting.steps), *schedule(method), "--batch-size",
                str(setting.batch_size), "--test-tasks", "50"])
            for name, setting in SETTINGS.items() if name in settings for method in methods}


def schedule(method: str) -> list[str]:
    """The same for all, but Reptile has its own."""
    return [] if method == "reptile" else ["--schedule", "cosine"]


def train(job: Job) -> None:
    """Train in a process of its own with one thread, or go on; nothing to do where finished."""
    settings, checkpoint = job.folder / "run.json", job.folder / "checkpoint.pt"
    if not (job.folder / "evaluation.csv").exists():
        print(" ".join(job.command()), flush=True)
        result = subprocess.run([sys.executable, "-m", *job.command(), "--quiet"],
                                capture_output=True, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": str(THREADS)}, check=False)
        if result.returncode or not (settings.exists() and checkpoint.exists()):
            raise SystemExit(f"{' '.join(job.command())} failed:\n{result.stdout}{result.stderr}")


def read(job: Job) -> tuple[Experiment, dict[str, Any]]:
    """The trained experiment, and what there is to say about its training."""
    experiment, _, step = rebuilt(job.folder, best_or_last(job.folder))
    progress = read_checkpoint(job.folder / "checkpoint.pt")["progress"]
    return experiment, {"command": " ".join(job.command()), "meta_steps": progress["step"],
                        "chosen_step": step, "metalit": ml.__version__,
                        "seconds": round(progress["seconds"]), "validation": progress["validation"]}


def accuracies(experiment: Experiment, tasks: Episodes, seed: int = 0,
               **options: Any) -> list[dict[str, Any]]:
    """Accuracy in per cent on 600 tasks of unseen classes, after the experiment's inner steps.

    `right` says how many queries of each task were right, one digit a task, to the base of 36.
    """
    result = ml.evaluate(experiment.J, tasks, n_tasks=600, steps=experiment.steps,
                         metric=ml.accuracy, seed=seed, batch_size=50, **options)
    counts = (result.per_task * tasks.ways * tasks.queries).round().int().T.tolist()
    return [{"inner_steps": row["inner_steps"], "accuracy": 100 * row["accuracy"],
             "ci95": 100 * row["ci95"], "right": "".join(DIGITS[n] for n in of_step)}
            for row, of_step in zip(result.rows(), counts, strict=True)]


def judge_long(job: Job) -> dict[str, Any]:
    """The long run on several kinds of tasks: as in the code, more queries, one query at a time."""
    experiment, record = read(job)
    paper = experiment.test.having(queries=1)
    return record | {"evaluation": {
        "protocol of the paper's code": accuracies(experiment, paper),
        "protocol of the paper's code, other tasks": accuracies(experiment, paper, seed=1),
        "5 queries per class": accuracies(experiment, experiment.test),
        "one query at a time": accuracies(experiment, paper, transductive=False)}}


def judge_short(job: Job) -> dict[str, Any]:
    """A method of the table, on tasks with as many queries as shots."""
    experiment, record = read(job)
    tasks = experiment.test.having(queries=experiment.test.shots)
    return record | {"evaluation": accuracies(experiment, tasks)}


def reproduce(long_steps: int, processes: int, parts: list[str], methods: list[str],
              settings: list[str], file: str) -> None:
    """Run everything that is not there yet, and write the figures after each run."""
    path = Path("results") / f"{file}.json"
    record: dict[str, Any] = (json.loads(path.read_text()) if path.exists()
                              else {"long": {}, "methods": {}})
    record |= {
        "what": "Omniglot, protocol of the code of Finn et al. 2017 (the paper: 1200 characters "
        "for training and the rest): 1100 / 100 / 423 characters, 28 × 28, classes turned at "
        "random, also in tests; strided conv4, 64 filters, batch normalisation on the batch's "
        "statistics (transductive), training with 5 queries per class, Adam 1e-3 with a cosine "
        "schedule (Reptile: its own recipe), one seed, one model; accuracy in per cent on 600 "
        "tasks of unseen characters, as many queries as shots; right: how many queries of each "
        "task, one digit to the base of 36 a task",
        "command": "python -m reproduce.omniglot",
        "machine": machine() | {"torch_threads": THREADS}, "versions": versions("torch"),
        "settings": {name: setting._asdict() for name, setting in SETTINGS.items()},
        "published": PUBLISHED
    }
    with ThreadPoolExecutor(processes) as pool:
        if "long" in parts:
            jobs = long_jobs(long_steps)
            for name, _ in zip(jobs, pool.map(train, jobs.values()), strict=True):
                record["long"][name] = judge_long(jobs[name])
                write_json(file, record)
        if "methods" in parts:
            short = short_jobs(methods, settings)
            for (name, method), _ in zip(short, pool.map(train, short.values()), strict=True):
                record["methods"].setdefault(name, {})[method] = judge_short(short[name, method])
                write_json(file, record)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long-steps", type=int, default=LONG_STEPS,
                        help="meta-steps of the long runs")
    parser.add_argument("--processes", type=int, default=2,
                        help="how many runs at once, each on one core")
    parser.add_argument("--parts", nargs="+", choices=["long", "methods"],
                        default=["long", "methods"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD",
                        help="only these; the figures of the others stay as they are")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS],
                        metavar="SETTING", help="only these, such as '20-way 1-shot'")
    parser.add_argument("--file", default="omniglot", help="name of the file in results/")
    options = parser.parse_args()
    reproduce(options.long_steps, options.processes, options.parts, options.methods,
              options.settings, options.file)


if __name__ == "__main__":
    main()
