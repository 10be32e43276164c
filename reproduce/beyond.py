"""One long task instead of many short ones: weights of data, augmentation, distilled examples.

    python -m reproduce.beyond [--only weights] [--share 1] [--seeds 8]

Three experiments of the chapter *Beyond few shots*, with more seeds and more outer steps than run
with it. Seeds are the tasks of one batch: each has data of its own, and what is learned for it is
looked up by its number. results/beyond.json is written after each, and with
`--only` the others stay. One core needs two minutes.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.judging.comparison import interval

Examples = tuple[Tensor, Tensor]
STARTS = 20  # on which distilled examples are judged
JITTERED_STEPS, LONG = 120, 200  # inner steps of the augmentation, and of a longer training


def learned(J: ml.MetaLoss, task: ml.Task, lr: float, steps: int,
            before: Callable[[int], Any] = lambda step: None) -> None:
    """Adam on the parameters of the inner loss, and on nothing else."""
    adam = torch.optim.Adam(J.inner.parameters(), lr)
    for step in range(steps):
        before(step)
        adam.zero_grad()
        J(task).backward()
        adam.step()


def stacked(examples: Iterable[Examples]) -> ml.Split:
    """Examples of several seeds, along a first axis."""
    x, y = map(torch.stack, zip(*examples, strict=True))
    return ml.Split(x, y)


def row(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Each seed, what they come to, and the difference to a reference, seed by seed."""
    gap, half, _ = interval([a - b for a, b in zip(values, reference, strict=True)])
    return {"seeds": list(values), "mean": mean(values), "sd_of_seeds": stdev(values),
            "less": {"mean": gap, "ci95": half}}


def rows(found: dict[str, Tensor], reference: str) -> dict[str, Any]:
    """All rows, beside one of them."""
    return {name: row(values.tolist(), found[reference].tolist())
            for name, values in found.items()}


# ---- weights of data -----------------------------------------------------------------------------

DIM, SOURCES, NOISY, CLEAN = 20, 10, 200, 20


class Weighed(nn.Module):
    """Cross-entropy with a learned weight for each example, or for all that share a number."""

    def __init__(self, count: int):
        super().__init__()
        self.z = nn.Parameter(torch.zeros(count))

    def forward(self, prediction: Tensor, y: dict[str, Tensor]) -> Tensor:
        """The weighted mean."""
        weights = self.z[y["which"]].sigmoid()
        losses = F.cross_entropy(prediction, y["label"], reduction="none")
        return (weights * losses).sum() / weights.sum()


def half_space(count: int, seed: int, normal: Tensor) -> Examples:
    """Normal points, and on which side of a plane they are."""
    x = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return x, (x @ normal > 0).long()


def weights_of_data(seeds: int, steps: int) -> dict[str, Any]:
    """Ten sources of labels, of which five are wrong in four of five cases."""
    normals = [torch.randn(DIM, generator=torch.Generator().manual_seed(500 + i))
               for i in range(seeds)]
    source = torch.arange(NOISY) % SOURCES
    wrong = torch.stack([(torch.rand(NOISY, generator=torch.Generator().manual_seed(100 + i)) < 0.8)
                         & (source < SOURCES // 2) for i in range(seeds)])
    truth = stacked(half_space(NOISY, i, n) for i, n in enumerate(normals))
    clean = stacked(half_space(CLEAN, 1000 + i, n) for i, n in enumerate(normals))
    test = stacked(half_space(2000, 2000 + i, n) for i, n in enumerate(normals))
    labels, model = truth.y ^ wrong.long(), nn.Linear(DIM, 2, bias=False)
    nn.init.zeros_(model.weight)

    def accuracy(J: ml.Learner, support: ml.Split) -> Tensor:
        answers = J.predict(J.adapt(support), test.x).argmax(-1)
        return 100 * (answers == test.y).float().mean(1)
    plain = ml.Learner(model, F.cross_entropy, inner=ml.SGD(2.0, 10))
    few = int((~wrong).sum(1).min())
    right = stacked((x[~bad][:few], y[~bad][:few])
                    for x, y, bad in zip(truth.x, truth.y, wrong, strict=True))
    found = {"all labels, equally": accuracy(plain, ml.Split(truth.x, labels)),
             "the clean set alone": accuracy(plain, clean),
             "both together": accuracy(plain, ml.Split(torch.cat([truth.x, clean.x], 1),
                                                       torch.cat([labels, clean.y], 1)))}
    number = torch.arange(seeds)[:, None]
    which = {"a weight for each example": number * NOISY + torch.arange(NOISY),
             "a weight for each source": number * SOURCES + source}
    for name, places in which.items():
        loss = Weighed(int(places.max()) + 1)
        J = ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD(2.0, 10, loss=loss))
        support = ml.Split(truth.x, {"label": labels, "which": places})
        learned(J, ml.Task(support, clean), 0.3, steps)
        found[name] = accuracy(J, support)
    found["the right labels alone"] = accuracy(plain, right)
    return rows(found, "the clean set alone")


# ---- augmentation --------------------------------------------------------------------------------

START = -2.0  # the logarithm of the strength that a jitter begins with


class Jittered(ml.TaskLoss):
    """Squared error on examples that are moved to and fro by noise of a learned strength."""

    def __init__(self, noise: Tensor, count: int):
        super().__init__()
        self.register_buffer("noise", noise)
        self.log_sigma = nn.Parameter(torch.full((count,), START))

    def forward(self, predict: Callable[..., Any], split: ml.Split,
                phi: dict[str, Tensor]) -> Tensor:
        """The mean over both ways, scaled so that its curvature does not grow with the strength."""
        strength = self.log_sigma[split.y["which"][:1]].exp()
        both = sum(F.mse_loss(predict(phi, split.x + way * strength * self.noise), split.y["y"])
                   for way in (1, -1))
        return both / 2 / (1 + strength[0] ** 2)


def augmentation(seeds: int, steps: int) -> dict[str, Any]:
    """Twenty-five slopes from forty noisy examples; the strength of a jitter of their inputs."""
    n, dim, sigmas = 40, 25, torch.logspace(-2, 0.5, 26)

    def drawn(seed: int, count: int, i: int) -> Examples:
        slopes = torch.randn(dim, 1, generator=torch.Generator().manual_seed(700 + i)) / dim ** 0.5
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, dim, generator=generator)
        return x, x @ slopes + torch.randn(count, 1, generator=generator)
    train, valid, test = (stacked(drawn(first + i, count, i) for i in range(seeds))
                          for first, count in ((0, n), (1000, 40), (2000, 2000)))
    # Columns that are orthogonal, as much noise in each: then the jitter is ridge regression.
    noise = n**0.5 * torch.linalg.qr(torch.randn(n, dim,
                                                 generator=torch.Generator().manual_seed(9))).Q
    model, loss = nn.Linear(dim, 1, bias=False), Jittered(noise, seeds)
    nn.init.zeros_(model.weight)
    inner = ml.SGD(0.2, JITTERED_STEPS, loss=loss)
    J = ml.MetaLoss(model, F.mse_loss, inner=inner, gradient=ml.MixedMode())
    number = torch.arange(seeds)[:, None].expand(-1, n)
    support = ml.Split(train.x, {"y": train.y, "which": number})

    def error(of: ml.Split) -> Tensor:
        return (J.predict(J.adapt(support), of.x) - of.y).square().mean((1, 2))

    def ridge(sigma: Tensor, of: ml.Split) -> Tensor:
        gram = train.x.mT @ train.x + n * sigma**2 * torch.eye(dim)
        return (of.x @ torch.linalg.solve(gram, train.x.mT @ train.y) - of.y).square().mean((1, 2))
    with torch.no_grad():
        loss.log_sigma.fill_(-20.0)
        found = {"no jitter": error(test)}
        loss.log_sigma.fill_(START)
    learned(J, ml.Task(support, valid), 0.3, steps)
    found["strength learned on 40 others"] = error(test)
    of_all = [torch.stack([ridge(sigma, of) for sigma in sigmas]) for of in (valid, test)]
    best = of_all[0].argmin(0)
    found["ridge, best of 26 on the same 40"] = of_all[1][best, torch.arange(seeds)]
    found["ridge, best of 26 on the test"] = of_all[1].min(0).values
    return rows(found, "no jitter")


# ---- ten examples for two hundred ----------------------------------------------------------------

class Distilled(ml.TaskLoss):
    """Cross-entropy on examples that are learned; what it is given says only which of them."""

    def __init__(self, x: Tensor, labels: Tensor):
        super().__init__()
        self.x = nn.Parameter(x.clone())
        self.register_buffer("labels", labels)

    def forward(self, predict: Callable[..., Any], split: ml.Split,
                phi: dict[str, Tensor]) -> Tensor:
        """The loss on the learned examples."""
        return F.cross_entropy(predict(phi, self.x[split.y[:1]][0]), self.labels)


def moons(count: int, seed: int, noise: float = 0.15) -> Examples:
    """Two half circles, one in the other."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count, generator=generator)
    x = torch.stack([angle.cos() + y - 0.5, (angle.sin() - 0.25) * (1 - 2 * y)], 1)
    return x + noise * torch.randn(count, 2, generator=generator), y


def net(seed: int) -> nn.Module:
    """A small network for the plane."""
    return ml.models.mlp(2, 16, 2, activation=nn.Tanh, seed=seed)


def distillation(seeds: int, steps: int) -> dict[str, Any]:
    """Ten examples, learned from 200, by which a network learns in ten steps."""
    train, test = (stacked(moons(count, first + i) for i in range(seeds))
                   for first, count in ((0, 200), (5000, 2000)))
    ten, labels = train.x[:, :10], train.y[0, :10]
    support = ml.Split(ten, torch.arange(seeds)[:, None].expand(-1, 10))

    def accuracy(J: ml.Learner, support: ml.Split, starts: Iterable[int]) -> Tensor:
        found = []
        for seed in starts:
            J.model.load_state_dict(net(seed).state_dict())
            answers = J.predict(J.adapt(support), test.x).argmax(-1)
            found.append(100 * (answers == test.y).float().mean(1))
        return torch.stack(found).mean(0)
    plain = ml.Learner(net(0), F.cross_entropy, inner=ml.SGD(1.0, 10))
    new = range(9000, 9000 + STARTS)
    found = {"ten of the 200": accuracy(plain, ml.Split(ten, train.y[:, :10]), new),
             "all 200": accuracy(plain, train, new)}
    longer = ml.Learner(net(0), F.cross_entropy, inner=ml.SGD(1.0, LONG))
    found[f"all 200, in {LONG} steps"] = accuracy(longer, train, new)
    for name, of_new in (("for one start", False), ("for new starts", True)):
        J = ml.MetaLoss(net(0), F.cross_entropy,
                        inner=ml.SGD(1.0, 10, loss=Distilled(ten, labels)))

        def begin(step: int, J: ml.MetaLoss = J, of_new: bool = of_new) -> None:
            J.model.load_state_dict(net(1 + step if of_new else 0).state_dict())
        learned(J, ml.Task(support, train), 0.05, steps, begin)
        if not of_new:
            found["ten distilled for one start, from it"] = accuracy(J, support, [0])
        found[f"ten distilled {name}"] = accuracy(J, support, new)
    return rows(found, "all 200")


EXPERIMENTS = {"weights": (weights_of_data, 40, "accuracy in per cent"),
               "augmentation": (augmentation, 30, "mean squared error"),
               "distillation": (distillation, 150, "accuracy in per cent")}


def main(arguments: Sequence[str] | None = None) -> None:
    """All three; see above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=list(EXPERIMENTS))
    parser.add_argument("--share", type=float, default=1.0, help="of all outer steps")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--file", default="beyond")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = RESULTS / f"{options.file}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["experiments"] if path.exists() else {}
    record: dict[str, Any] = {"command": "python -m reproduce.beyond", "machine": machine(),
                              "versions": versions("metalit", "torch"), "experiments": old}
    for name in [options.only] if options.only else EXPERIMENTS:
        experiment, steps, measured = EXPERIMENTS[name]
        steps = max(1, round(options.share * steps))
        found = experiment(options.seeds, steps)
        old[name] = {"outer_steps": steps, "measured": measured, "rows": found}
        write_json(options.file, record)
        for title, one in found.items():
            print(f"{name:13} {title:38} {one['mean']:7.3f} ± {one['sd_of_seeds']:.3f}   "
                  f"{one['less']['mean']:+.3f} ± {one['less']['ci95']:.3f}", flush=True)


if __name__ == "__main__":
    main()
