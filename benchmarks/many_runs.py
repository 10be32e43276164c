"""Five seeds one after another, side by side, and as one graph that they share.

    python -m benchmarks.many_runs

Milliseconds for a step of all runs, sampling and Adam included, in turns: `ml.meta_train` for each
of them, and `ml.meta_train_many` for all, both step by step; then `ml.meta_train` with
`compile=True`, whose first call compiles for all of them. 25 sinusoid tasks of 5 + 5 points and
networks of several widths; images: 5-way 1-shot with 5 queries a class, random pictures. On one
thread and on two.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import metalit as ml

from . import measure

RUNS, MANY = 5, (1, 2, 5, 10, 20)
LABELS = {"alone": "one after another", "many": "side by side", "graph": "one graph, shared"}


class Setting(NamedTuple):
    """A model and tasks: how both are made, and how many steps are timed at once."""

    name: str
    model: Callable[[int], torch.nn.Module]
    tasks: Callable[[], ml.Family]
    batch_size: int
    inner_steps: int
    takes: int
    loss: Callable[..., Any] = F.mse_loss
    graph: bool = False


def net(width: int, seed: int) -> torch.nn.Module:
    """Two hidden layers."""
    return ml.models.mlp(1, width, width, 1, seed=seed)


def strided(seed: int) -> torch.nn.Module:
    """Four convolutions for pictures of 28 × 28."""
    return ml.models.Conv4(5, filters=64, seed=seed)


def pictures() -> ml.Family:
    """Episodes of random pictures: how long a step takes does not depend on what they show."""
    images = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return ml.tasks.Episodes(images, torch.arange(10).repeat_interleave(6), ways=5, shots=1,
                             queries=5)


WAVES = partial(ml.tasks.Sinusoids, shots=5)
SETTINGS = [
    Setting("1-40-40-1, K = 1", partial(net, 40), WAVES, 25, 1, 60, graph=True),
    Setting("1-40-40-1, K = 5", partial(net, 40), WAVES, 25, 5, 20, graph=True),
    Setting("1-200-200-1, K = 1", partial(net, 200), WAVES, 25, 1, 20),
    Setting("1-600-600-1, K = 1", partial(net, 600), WAVES, 25, 1, 6),
    Setting("conv4, 64 filters, K = 1", strided, pictures, 4, 1, 3, F.cross_entropy)]


def made(setting: Setting, runs: int) -> list[ml.MetaLoss]:
    """A MAML for each seed."""
    return [ml.MAML(setting.model(seed), setting.loss, lr=0.01, steps=setting.inner_steps)
            for seed in range(runs)]


def alone(setting: Setting, runs: int, compile: bool = False) -> Callable[[], None]:
    """A call that takes the steps of one run after another."""
    several, tasks = made(setting, runs), setting.tasks()

    def call() -> None:
        for seed, J in enumerate(several):
            ml.meta_train(J, tasks, steps=setting.takes * (20 if compile else 1), seed=seed,
                          batch_size=setting.batch_size, progress=False, device="cpu",
                          compile=compile)
    return call


def many(setting: Setting, runs: int) -> Callable[[], None]:
    """A call that takes the steps of all runs at once."""
    several, tasks = made(setting, runs), setting.tasks()

    def call() -> None:
        ml.meta_train_many(several, tasks, steps=setting.takes, batch_size=setting.batch_size,
                           progress=False, device="cpu")
    return call


def timed(setting: Setting, runs: int, rounds: int, graph: bool = False) -> dict[str, Any]:
    """Milliseconds for a step of all runs, each way; for a graph, the seconds of its first call."""
    calls = {"alone": alone(setting, runs), "many": many(setting, runs)}
    if graph: calls["graph"] = alone(setting, runs, compile=True)
    first, times = {}, {way: [] for way in calls}
    for way, call in calls.items():
        begin = time.perf_counter()
        call()
        first[way] = time.perf_counter() - begin
    for _ in range(rounds):
        for way, call in calls.items():
            steps = setting.takes * (20 if way == "graph" else 1)
            times[way].append(measure.timed(call, 1) / steps)
    found = {way: measure.spread(ms) for way, ms in times.items()}
    if graph: found["graph"]["first_call_seconds"] = first["graph"]
    print(setting.name, runs, {way: round(row["median"], 3) for way, row in found.items()},
          flush=True)
    return found


def run(rounds: int = 7) -> None:
    """Measure all, and write results/many_runs.json."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "what": "milliseconds for a step of all runs, and the seconds of a graph's first call",
        "command": "python -m benchmarks.many_runs", "labels": LABELS, "runs": RUNS,
        "machine": measure.machine(), "versions": measure.versions("metalit", "torch"),
        "threads": {}, "by_runs": {}}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        record["threads"][str(threads)] = {
            setting.name: timed(setting, RUNS, rounds, setting.graph and threads == 1)
            for setting in SETTINGS}
    torch.set_num_threads(1)
    record["by_runs"] = {str(runs): timed(SETTINGS[0], runs, rounds) for runs in MANY}
    measure.write_json("many_runs", record)


def main() -> None:
    """`python -m benchmarks.many_runs`."""
    run(measure.begin(measure.parser(__doc__ or "", rounds=7)).rounds)


if __name__ == "__main__":
    main()
