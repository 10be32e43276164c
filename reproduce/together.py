"""Several seeds in one call: starts, tasks and optimizers of all of them, stacked.

What small experiments over seeds have in common.
"""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.judging.comparison import interval, number

Make = Callable[[int], ml.MetaLoss]  # a meta-loss, from a seed
Runs = list[dict[str, Any]]  # of one row, one for each seed


class Row(NamedTuple):
    """One way of training: its meta-loss, and whether the outer rate falls along a cosine."""

    make: Make
    cosine: bool = False


class Bed(NamedTuple):
    """Tasks, how long and at which rate one trains on them, and how one is judged."""

    tasks: ml.Family
    unseen: ml.Family
    steps: int
    batch_size: int
    at: tuple[int, ...]
    accuracy: bool = False
    n_tasks: int = 400
    lr: float = 1e-3


def trained(row: Row, bed: Bed, seeds: Sequence[int], steps: int) -> list[ml.MetaLoss]:
    """A meta-loss for each seed, after so many steps of Adam; each seed sees tasks of its own.

    Of one that diverged nothing is left.
    """
    several = [row.make(seed) for seed in seeds]
    slower = partial(CosineAnnealingLR, T_max=steps, eta_min=bed.lr / 100) if row.cosine else None
    ended = ml.meta_train_many(several, bed.tasks, steps=steps, seeds=seeds,
                               batch_size=bed.batch_size, scheduler=slower, progress=False,
                               optimizer=partial(torch.optim.Adam, lr=bed.lr))
    for J in (J for J, one in zip(several, ended, strict=True) if one.error):
        for p in J.parameters():
            p.data.fill_(math.nan)
    return several


def looked_at(J: ml.MetaLoss, bed: Bed) -> Tensor:
    """Loss, or accuracy in per cent, of each unseen task (n_tasks, numbers of inner steps)."""
    metric = ml.accuracy if bed.accuracy else None
    found = ml.evaluate(J, bed.unseen, n_tasks=bed.n_tasks, steps=bed.at, seed=0, metric=metric)
    return found.per_task * (100 if bed.accuracy else 1)


def measured(J: ml.MetaLoss, bed: Bed) -> dict[str, list[float | None]]:
    """Means over unseen tasks, and the share of them that a last stretch of steps made worse."""
    each = looked_at(J, bed)
    worse = (~(each[:, 1:] <= each[:, :-1])).double().mean(0)
    if bed.accuracy:
        return {"mean": [number(value) for value in each.mean(0).tolist()]}
    return {"mean": [number(value) for value in each.mean(0).tolist()],
            "worse": [0.0, *worse.tolist()]}


def summary(runs: Runs, kind: str = "mean") -> list[dict[str, float | None]]:
    """Mean and deviation over seeds, at each number of inner steps; None where one is no number."""
    def of(values: tuple[float | None, ...]) -> dict[str, float | None]:
        finite = [value for value in values if value is not None]
        if len(finite) < len(values):
            return {"mean": None, "sd_of_seeds": None}
        return {"mean": mean(finite), "sd_of_seeds": stdev(finite) if len(finite) > 1 else None}
    return [of(values) for values in zip(*(run[kind] for run in runs), strict=True)]


def less(runs: Runs, reference: Runs, kind: str = "mean") -> list[dict[str, Any]]:
    """The difference to a reference, seed by seed: mean, half its 95 % interval, what is shown."""
    found = []
    for place in range(len(runs[0][kind])):
        pairs = [(one[kind][place], other[kind][place])
                 for one, other in zip(runs, reference, strict=True)]
        gaps = [one - other for one, other in pairs if one is not None and other is not None]
        whole = len(gaps) == len(pairs)
        middle, half, verdict = interval(gaps) if whole else (None, None, "not finite")
        found.append({"mean": middle, "ci95": half, "shown": verdict in ("helped", "hurt")})
    return found


def settings_of(bed: Bed, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """What the rows of a bed have in common, for the file."""
    return {"meta_steps": steps, "batch_size": bed.batch_size, "seeds": list(seeds),
            "outer_rate": bed.lr, "inner_steps": list(bed.at), "unseen_tasks": bed.n_tasks,
            "measured": "accuracy in per cent" if bed.accuracy else "loss",
            "versions": versions("metalit", "torch")}


def train_and_write(beds: dict[str, Bed], rows: dict[str, dict[str, Row]],
                    seeds: Mapping[str, Sequence[int]], share: float, record: dict[str, Any],
                    file: str) -> None:
    """Train all rows of all beds that the file does not have yet, and write it after each."""
    torch.set_num_threads(1)
    path = Path("results") / f"{file}.json"
    old = json.loads(path.read_text())["beds"] if path.exists() else {}
    record = record | {"machine": machine(), "beds": old}
    for name, bed in beds.items():
        steps = max(1, round(share * bed.steps))
        settings = settings_of(bed, seeds[name], steps)
        if old.get(name, {}).get("settings") != settings:
            old[name] = {"settings": settings, "rows": {}}
        for title, row in rows[name].items():
            if title not in old[name]["rows"]:
                old[name]["rows"][title] = taken(row, bed, seeds[name], steps)
                finish(old[name]["rows"])
                write_json(file, record)
                print(name, title, *old[name]["rows"][title]["summary"], flush=True)


def taken(row: Row, bed: Bed, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """What a row has reached with each seed."""
    several = trained(row, bed, seeds, steps)
    return {"runs": [{"seed": seed, **measured(J, bed)}
                     for seed, J in zip(seeds, several, strict=True)]}


def finish(rows: dict[str, Any]) -> None:
    """Give each row its summary, and its difference to the first one."""
    first = next(iter(rows.values()))["runs"]
    for row in rows.values():
        kinds = [kind for kind in row["runs"][0] if kind != "seed"]
        row["summary"] = summary(row["runs"])
        row["minus_first"] = {kind: less(row["runs"], first, kind) for kind in kinds}


def parser_of(description: str | None, file: str) -> argparse.ArgumentParser:
    """The options that all such trainings have."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps, for a trial")
    parser.add_argument("--file", default=file, help="name of the file in results/")
    return parser
