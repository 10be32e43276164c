"""MAML on sinusoids, trained with the budget of the paper's code, three seeds.

Finn et al. 2017, section 5.1 and appendix C; the paper does not say how long it trained.

    python -m reproduce.sinusoids

Every run keeps a checkpoint in runs/reproduce/, so it can be stopped at any moment and goes on. The
figures are written to results/sinusoids.json after every run.
"""
from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.judging.comparison import number
from metalit.training import Evaluation

STEPS = (0, 1, 2, 5, 10)


class Setting(NamedTuple):
    """What is varied; everything else is the paper's. `judged`: shots of the unseen tasks."""

    shots: int
    lr: float
    init: str
    judged: int


# The paper most probably shows one model, trained with 10 shots, on tasks of 5, 10 and 20 (its
# section 5.1 and appendix B). It says α = 0.01, the default of its released code is 0.001; and that
# code draws other first weights.
SETTINGS = {
    "5 shots": Setting(5, 0.01, "uniform", 5),
    "10 shots": Setting(10, 0.01, "uniform", 10),
    "trained with 10 shots, judged with 5": Setting(10, 0.01, "uniform", 5),
    "5 shots, inner step size 0.001": Setting(5, 0.001, "uniform", 5),
    "5 shots, first weights of the paper's code": Setting(5, 0.01, "finn", 5),
}


def run(name: str, setting: Setting, seed: int, steps: int,
        compile: bool) -> tuple[Evaluation, float]:
    """Train one model, or go on with it; returns its evaluation and the seconds of training."""
    tasks = ml.tasks.Sinusoids(shots=setting.shots)
    model = ml.models.mlp(1, 40, 40, 1, init=setting.init, seed=seed)
    J = ml.MAML(model, F.mse_loss, lr=setting.lr, steps=1)
    folder = f"runs/reproduce/{setting.shots}shot-lr{setting.lr}-{setting.init}-seed{seed}"
    print(f"\n{name}, seed {seed}", flush=True)
    ml.meta_train(J, tasks, steps=steps, batch_size=25, seed=seed, checkpoint=folder,
                  compile=compile)
    seconds = ml.load_checkpoint(f"{folder}/checkpoint.pt", J)["progress"]["seconds"]
    unseen = ml.tasks.Sinusoids(shots=setting.judged)
    return ml.evaluate(J, unseen, n_tasks=600, steps=STEPS, seed=0), round(seconds, 3)


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean over seeds, and standard deviation between them, after each number of inner steps.

    None where a task of some seed has no finite loss, and for the deviation of a single seed.
    """
    def of(losses: tuple[float | None, ...]) -> dict[str, float | None]:
        if None in losses: return {"mean": None, "sd_of_seeds": None}
        return {"mean": statistics.mean(losses),
                "sd_of_seeds": statistics.stdev(losses) if len(losses) > 1 else None}
    columns = zip(*([row["loss"] for row in run["evaluation"]] for run in runs), strict=True)
    return {str(k): of(column) for k, column in zip(STEPS, columns, strict=True)}


def reproduce(seeds: list[int], steps: int, names: list[str], compile: bool, file: str) -> None:
    """Run everything that is asked for, and write the figures after each run."""
    path = Path("results") / f"{file}.json"
    old = json.loads(path.read_text())["settings"] if path.exists() else {}
    record: dict[str, Any] = {
        "what": "MAML, 1-40-40-1 ReLU, one inner step, batch 25, Adam 1e-3; query loss (MSE) on "
        "600 unseen tasks, query: grid of 100 points",
        "command": "python -m reproduce.sinusoids",
        "machine": machine(), "settings": {name: old[name] for name in SETTINGS if name in old}
    }
    for name in names:
        runs: list[dict[str, Any]] = []
        for seed in seeds:
            evaluation, seconds = run(name, SETTINGS[name], seed, steps, compile)
            print(evaluation, flush=True)
            rows = [{key: number(value) for key, value in row.items()} for row in evaluation.rows()]
            runs.append({"seed": seed, "seconds": seconds, "evaluation": rows})
            record["settings"][name] = {
                **SETTINGS[name]._asdict(), "meta_steps": steps, "compiled": compile,
                "versions": versions("metalit", "torch"), "runs": runs, "summary": summary(runs)}
            write_json(file, record)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=70_000,
                        help="meta-steps (70000 in the code of the paper)")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS),
                        metavar="SETTING", help="the figures of the others stay as they are")
    parser.add_argument("--eager", action="store_true",
                        help="do not compile, even where a C++ compiler is found")
    parser.add_argument("--file", default="sinusoids", help="name of the file in results/")
    options = parser.parse_args()
    compile = not options.eager and shutil.which("c++") is not None
    reproduce(options.seeds, options.steps, options.only, compile, options.file)


if __name__ == "__main__":
    main()
