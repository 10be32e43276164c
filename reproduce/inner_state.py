"""What a network that says rates, or what to forget, is worth on images: an ablation over seeds.

Drawn characters, 5-way 1-shot, strided conv4 with 8 filters, images of 14 × 14, eight tasks a
meta-step, five inner steps of 0.1, Adam, 3e-3. ALFA without its decay, and with numbers that are
learned but the same for all tasks; L2F with one γ for all tasks; rates for each step and tensor;
and gradient descent.

    python -m reproduce.inner_state

Every row is trained with all seeds at once, and results/inner_state.json is written after each;
stopped at any moment, the command goes on with the row that it was in. One core needs about four
minutes.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

import metalit as ml

from .together import Bed, Row, parser_of, train_and_write

LR, STEPS, SEEDS = 0.1, 5, range(5)


def with_inner(make: Callable[..., Any], seed: int) -> ml.MetaLoss:
    """The network of a seed, with an inner loop that is made for it."""
    network = ml.models.Conv4(5, filters=8, size=14, seed=seed)
    return ml.MetaLoss(network, F.cross_entropy, inner=make(network, seed))


def same_for_all(inner: Any) -> Any:
    """An inner loop whose network answers every task alike: its last biases, which learn."""
    nn.init.zeros_(inner.net[-1].weight)
    inner.net[-1].weight.requires_grad_(False)
    return inner


def alfa(network: nn.Module, seed: int, **options: Any) -> ml.ALFA:
    """ALFA, whose network begins as the seed says."""
    return ml.ALFA(network, LR, STEPS, seed=seed, **options)


def forget(network: nn.Module, seed: int) -> ml.Forget:
    """L2F's inner loop, whose network begins as the seed says."""
    return ml.Forget(network, LR, STEPS, seed=seed)


ROWS = {
    "gradient descent": lambda network, seed: ml.SGD(LR, STEPS),
    "rates for each step and tensor": lambda network, seed: ml.LSLR(network, LR, STEPS),
    "ALFA": alfa,
    "ALFA without decay": partial(alfa, decay=0.0),
    "ALFA, the same for all tasks": lambda network, seed: same_for_all(alfa(network, seed)),
    "L2F": forget,
    "L2F, the same for all tasks": lambda network, seed: same_for_all(forget(network, seed)),
}


def bed() -> Bed:
    """Characters to learn from, and others to be judged by."""
    learned, _, unseen = ml.glyphs(size=14).split((0.7, 0.1, 0.2), seed=0)
    return Bed(learned.episodes(5, 1, 3), unseen.episodes(5, 1, 3), 200, 8, (0, 1, 5, 10),
               accuracy=True, lr=3e-3)


def main() -> None:
    """Read the command line, and train."""
    options = parser_of(__doc__, "inner_state").parse_args()
    rows = {name: Row(partial(with_inner, make)) for name, make in ROWS.items()}
    train_and_write({"characters": bed()}, {"characters": rows}, {"characters": SEEDS},
                    options.share, {
        "what": "inner loops with something learned of each tensor, on characters that no training "
        "saw, after some inner steps", "command": "python -m reproduce.inner_state"}, options.file)


if __name__ == "__main__":
    main()
