"""What the tables of results are to be read beside: who does no meta-learning, on the same tasks.

The blind constant answers the same for every task and input. For classes it is as good as chance;
beside it stands the class whose mean is nearest to the image as it is.

    python -m reproduce.blind

Needs the archives of Omniglot (see `reproduce.omniglot`), or `--without-omniglot`, which leaves
those rows as they are. The figures are written to results/blind.json; `tools/tables.py` puts them
into the tables of other files, and chapters into those of their own. One core needs about a minute.
"""
from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.data.omniglot import omniglot
from metalit.judging.baselines import Blind, NearestMean
from reproduce import memorised, tails
from reproduce.omniglot import SETTINGS

SEEDS, TASKS, STEPS, BATCH_SIZE = (0, 1, 2), 600, 100, 25


def fitted(tasks: ml.Family, seed: int) -> Blind:
    """The constant, from the training stream of some tasks."""
    return Blind(F.mse_loss, steps=STEPS, batch_size=BATCH_SIZE, seed=seed).fit(tasks)


def on_sinusoids(shots: int) -> dict[str, Any]:
    """The query loss of the constant on unseen waves, for each seed of the training stream."""
    tasks = ml.tasks.Sinusoids(shots)
    found = [ml.evaluate(fitted(tasks, seed), tasks, n_tasks=TASKS, steps=[0]) for seed in SEEDS]
    losses = [one.mean[0] for one in found]
    return {"loss": statistics.mean(losses), "sd_of_seeds": statistics.stdev(losses),
            "ci95": statistics.mean(one.ci95[0] for one in found), "shots": shots}


def on_tails() -> dict[str, dict[str, float]]:
    """The constant on the waves of `reproduce.tails`: mean, worst 5 %, small and large waves."""
    found: dict[str, dict[str, float]] = {}
    for name, family in (("few are large", tails.FEW_ARE_LARGE), ("any wave", tails.ANY)):
        each = [tails.measured(fitted(family, seed), tails.unseen(family)) for seed in SEEDS]
        found[name] = {kind: statistics.mean(one[kind][0] for one in each) for kind in each[0]}
    return found


def on_names() -> dict[str, float]:
    """The constant on the waves of `reproduce.memorised`."""
    unseen = ml.tasks.NamedSinusoids(memorised.SHOTS_OF_NEW)
    found = [ml.evaluate(fitted(memorised.WAVES, seed), unseen, n_tasks=memorised.N_TASKS,
                         steps=[0], seed=0).mean[0] for seed in SEEDS]
    return {"new": statistics.mean(found)}


def on_omniglot(root: Path | None) -> dict[str, Any]:
    """Accuracy in per cent of the nearest class mean, and of the constant, in each setting."""
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        train, _, test = omniglot(root, progress=False).episodes(setting.ways, setting.shots)
        nearest = NearestMean(F.cross_entropy, steps=1).fit(train)
        row = ml.evaluate(nearest, test.having(queries=setting.shots), n_tasks=TASKS, steps=[0],
                          metric=ml.accuracy, batch_size=50)
        found[name] = {"nearest mean": {"accuracy": 100 * row.mean[0], "ci95": 100 * row.ci95[0]},
                       "blind": {"accuracy": 100 / setting.ways, "ci95": 0.0}}
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of Omniglot's archives")
    parser.add_argument("--without-omniglot", action="store_true")
    parser.add_argument("--file", default="blind", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"{options.file}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    waves = on_sinusoids(5)
    record = {
        "what": f"who does no meta-learning, on {TASKS} unseen tasks: the constant, from "
        f"{STEPS * BATCH_SIZE:,} training tasks; and the class whose mean is nearest to the image",
        "command": "python -m reproduce.blind", "seeds": list(SEEDS), "machine": machine(),
        "versions": versions("metalit", "torch"), "sinusoids": waves, "comparison": waves,
        "tails": on_tails(), "memorised": on_names(),
        "omniglot": before.get("omniglot") if options.without_omniglot
        else on_omniglot(options.root)}
    write_json(options.file, record)


if __name__ == "__main__":
    main()
