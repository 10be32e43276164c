"""One task learned by `J.adapted`, beside a plain loop of `torch.optim.SGD` on a copy of the model.

    python -m benchmarks.adapted

Then the users of one model in one call: `J.adapt` and a model for each, `holding`, beside
`J.adapted` for one user after another.
"""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from metalit.adapted import holding

from . import measure

LR, STEPS, USERS = 0.01, 20, 100


def problems() -> dict[str, tuple[nn.Module, Callable[[Any, Any], Tensor], Tensor, Tensor]]:
    """A model, a loss, and the examples of one task: a wave, five drawn classes, short series."""
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))

    class Last(nn.Module):
        """The last output of an LSTM, and a number."""
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            """One number for each series."""
            return self.head(self.net(x)[0][:, -1])
    return {"1-40-40-1, 10 points": (ml.models.mlp(1, 40, 40, 1), F.mse_loss, random(10, 1),
                                     random(10, 1).sin()),
            "conv4, 5 images": (ml.models.Conv4(ways=5), F.cross_entropy, random(5, 1, 28, 28),
                                torch.arange(5)),
            "LSTM, 10 series of 16": (Last(), F.mse_loss, random(10, 16, 4), random(10, 1))}


def plain(model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Tensor, y: Tensor) -> nn.Module:
    """The model after as many steps, by nothing but PyTorch."""
    twin = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(twin.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(twin(x), y).backward()
        optimizer.step()
    return twin


def one_task(rounds: int, budget: float) -> dict[str, Any]:
    """Milliseconds to learn one task in twenty steps, and the ratio of the two."""
    found = {}
    for name, (model, loss, x, y) in problems().items():
        J = ml.MAML(model, loss, lr=LR, steps=STEPS)
        torch.testing.assert_close(J.adapted(x, y)(x), plain(model, loss, x, y)(x), rtol=1e-3,
                                   atol=1e-4)
        times = measure.in_turns({
            "adapted": lambda J=J, x=x, y=y: J.adapted(x, y),
            "torch": lambda m=model, loss=loss, x=x, y=y: plain(m, loss, x, y)}, rounds, budget)
        spreads = {way: measure.spread(ms) for way, ms in times.items()}
        ratio = spreads["adapted"]["median"] / spreads["torch"]["median"]
        found[name] = {"ms": spreads, "times": ratio}
        print(f"{name:24} {ratio:.2f} × the time of torch.optim.SGD")
    return found


def many_users(rounds: int, budget: float) -> dict[str, Any]:
    """Milliseconds for a hundred users of one model: in one call, and one after another."""
    model, loss, _, _ = problems()["1-40-40-1, 10 points"]
    J = ml.MAML(model, loss, lr=LR, steps=STEPS)
    users = ml.tasks.Sinusoids(shots=10).batch(USERS).support

    def together() -> list[nn.Module]:
        phi = J.adapt(users)
        return [holding(model, {name: value[i] for name, value in phi.items()})
                for i in range(USERS)]
    times = measure.in_turns({
        "one call": together,
        "one by one": lambda: [J.adapted(*users.select(i)) for i in range(USERS)]}, rounds, budget)
    spreads = {way: measure.spread(ms) for way, ms in times.items()}
    print({way: round(ms["median"], 1) for way, ms in spreads.items()})
    return {"users": USERS, "ms": spreads}


def main() -> None:
    """Measure, and write `results/adapted.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 7, 0.3))
    if arguments is None: return
    measure.write_json("adapted", {
        "machine": measure.machine(), "versions": measure.versions("metalit", "torch"),
        "steps": STEPS, "one task": one_task(arguments.rounds, arguments.budget),
        "many users": many_users(min(3, arguments.rounds), arguments.budget)})


if __name__ == "__main__":
    main()
