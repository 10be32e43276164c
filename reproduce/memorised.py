"""Tasks that can be memorised, under the protocol of Yin et al. (2020), three seeds.

Sine waves whose inputs name them: MAML, the two kinds of MR-MAML, the encoder of the first without
a price, what the authors' notebook trains under that name, and meta-augmentation.

    python -m reproduce.memorised

One task a meta-step, ten support and ten query points, one inner step of 0.01; judged on 100 new
tasks with five support points, after 0, 1, 5 and 100 inner steps. Every run keeps a checkpoint in
runs/memorised/, so it can be stopped at any moment and goes on. The figures are written to
results/memorised.json after every run. One core needs about twenty minutes.
"""
from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.inner.masked import Masked
from metalit.judging.comparison import number
from metalit.models import mlp

LR, STEPS, SHOTS, SHOTS_OF_NEW, N_TASKS = 0.01, (0, 1, 5, 100), 10, 5, 100
APART = 100  # between the seeds of two parts of one network
ONE = {"batching": "loop"}  # one task at a time has nothing to gain from vmap


class Parted(nn.Module):
    """The encoder and the head of MR-MAML(W): 21-100-5, and 5-40-40-1."""

    def __init__(self, seed: int):
        super().__init__()
        self.encoder = mlp(21, 100, 5, seed=seed)
        self.head = mlp(5, 40, 40, 1, seed=seed + APART)

    def forward(self, x: Tensor) -> Tensor:
        """What the head makes of what the encoder says."""
        return self.head(self.encoder(x))


class Anew(torch.optim.Optimizer):
    """Adam that is made anew at every step, as in the authors' notebook.

    Its first step is lr·g / (|g| + eps/√(1 − β₂)): nearly the sign of the gradient.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= first_step(group["lr"], p.grad)


class EncoderAnew(torch.optim.Adam):
    """Adam, of which the encoder's part, the first four tensors, is made anew at every step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step, by the sign for the encoder."""
        group = self.param_groups[0]
        for p in group["params"][:4]:
            p -= first_step(group["lr"], p.grad)
            p.grad = None
        super().step(closure)


def first_step(lr: float, slope: Tensor) -> Tensor:
    """What the first step of Keras' Adam takes away."""
    return lr * slope / (slope.abs() + 1e-7 / 0.001**0.5)


def maml(seed: int) -> ml.MetaLoss:
    """MAML on the whole network, 21-40-40-1."""
    return ml.MAML(mlp(21, 40, 40, 1, seed=seed), F.mse_loss, LR, **ONE)


def no_price(seed: int) -> ml.MetaLoss:
    """The network of MR-MAML(W), whose head alone adapts."""
    model = Parted(seed)
    return ml.MetaLoss(model, F.mse_loss, inner=Masked(model, LR, only="head"), **ONE)


def on_weights(seed: int) -> ml.MetaLoss:
    """MR-MAML(W) with weights that have noise."""
    return ml.MRMAML(Parted(seed), F.mse_loss, LR, only="head", **ONE)


def as_published(seed: int) -> ml.MetaLoss:
    """MR-MAML(W) with the widths of the authors' notebook, which never change."""
    J = ml.MRMAML(Parted(seed), F.mse_loss, LR, only="head",
                  sigma=torch.finfo(torch.float32).eps, **ONE)
    for width in J.inner.parameters():
        width.requires_grad_(False)
    return J


def on_activations(seed: int, weight: float) -> ml.MetaLoss:
    """MR-MAML(A): encoder 21-80-(5 and 5), head 5-40-40-1."""
    model = ml.models.Bottleneck(mlp(21, 80, 10, seed=seed), mlp(5, 40, 40, 1, seed=seed + APART))
    return ml.MRMAML(model, F.mse_loss, LR, information="activations", weight=weight, **ONE)


class Setting(NamedTuple):
    """How a row is trained, and the test MSE that the authors' notebook prints for its like."""

    build: Callable[[int], ml.MetaLoss]
    tasks: ml.Family
    steps: int = 15_000
    optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3)
    printed: float | None = None


WAVES = ml.tasks.NamedSinusoids(SHOTS)
SETTINGS = {
    "MAML": Setting(maml, WAVES, printed=0.5145),
    "MAML, stretched tasks": Setting(maml, ml.tasks.Augmented(WAVES, shift=0.0, stretch=1.0)),
    "head alone, no price": Setting(no_price, WAVES),
    "head alone, no price, Adam made anew": Setting(no_price, WAVES, optimizer=Anew),
    "MR-MAML(W)": Setting(on_weights, WAVES),
    "MR-MAML(W) without noise, Adam made anew": Setting(as_published, WAVES, optimizer=Anew,
                                                        printed=0.1616),
    "MR-MAML(A)": Setting(partial(on_activations, weight=1.0), WAVES, 10_000),
    "MR-MAML(A), a fifth of the price": Setting(partial(on_activations, weight=0.2), WAVES,
                                                10_000),
    "MR-MAML(A), the encoder's Adam made anew": Setting(
        partial(on_activations, weight=1.0), WAVES, 10_000, partial(EncoderAnew, lr=1e-3), 0.1497),
}


def losses(J: ml.MetaLoss, tasks: Any, train: bool = False) -> list[float | None]:
    """The query loss after each of `STEPS` inner steps; many tasks at once."""
    torch.manual_seed(0)
    J.batching = "vmap"
    count = N_TASKS if isinstance(tasks, ml.Family) else None
    found = ml.evaluate(J, tasks, n_tasks=count, steps=STEPS, seed=0, train=train)
    return [number(row["loss"]) for row in found.rows()]


def run(name: str, setting: Setting, seed: int, steps: int) -> dict[str, Any]:
    """Train one model, or go on with it, and look at new tasks and at those of training."""
    folder = f"runs/memorised/{list(SETTINGS).index(name)}-{steps}-seed{seed}"
    J = setting.build(seed)
    print(f"\n{name}, seed {seed}", flush=True)
    ml.meta_train(J, setting.tasks, steps=steps, batch_size=1, seed=seed, checkpoint=folder,
                  optimizer=setting.optimizer, device="cpu")
    seconds = ml.load_checkpoint(f"{folder}/checkpoint.pt", J)["progress"]["seconds"]
    unseen = ml.tasks.NamedSinusoids(SHOTS_OF_NEW)
    found = {"new": losses(J, unseen), "of_training": losses(J, unseen.batch(N_TASKS, seed=2**40)),
             "new_with_noise": losses(J, unseen, train=True)}
    print(found, flush=True)
    return {"seed": seed, "seconds": round(seconds, 1), **found}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds and deviation between them, after 0 and after most inner steps."""
    def of(values: list[float | None]) -> dict[str, float | None]:
        if None in values:
            return {"mean": None, "sd_of_seeds": None}
        spread = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.mean(values), "sd_of_seeds": spread}
    return {which: {str(STEPS[place]): of([one[which][place] for one in runs])
                    for place in (0, -1)} for which in ("new", "of_training", "new_with_noise")}


def reproduce(seeds: list[int], share: float, names: list[str], file: str) -> None:
    """Run everything that is asked for, and write the figures after each run."""
    torch.set_num_threads(1)
    path = Path("results") / f"{file}.json"
    old = json.loads(path.read_text())["settings"] if path.exists() else {}
    record: dict[str, Any] = {
        "what": "sine waves whose inputs name them; query loss (MSE) on 100 tasks with 5 support "
        "points after some inner steps of 0.01; noise in y: no loss below 0.01",
        "command": "python -m reproduce.memorised", "inner_steps": list(STEPS), "batch_size": 1,
        "machine": machine(), "settings": {name: old[name] for name in SETTINGS if name in old}
    }
    for name in names:
        setting, runs = SETTINGS[name], list[dict[str, Any]]()
        steps = max(1, round(share * setting.steps))
        for seed in seeds:
            runs.append(run(name, setting, seed, steps))
            record["settings"][name] = {
                "meta_steps": steps, "printed_by_the_authors": setting.printed,
                "versions": versions("metalit", "torch"), "runs": runs, "summary": summary(runs)}
            write_json(file, record)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=1.0, help="of the meta-steps, for a trial")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS),
                        metavar="SETTING", help="the figures of the others stay as they are")
    parser.add_argument("--file", default="memorised", help="name of the file in results/")
    options = parser.parse_args()
    reproduce(options.seeds, options.share, options.only, options.file)


if __name__ == "__main__":
    main()
