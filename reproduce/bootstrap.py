"""Bootstrapped meta-gradients on sine waves, for which no published figure is known; eight seeds.

MAML, and BMG whose target is five or twenty steps ahead on the support set, or five on the query
set; parameters or predictions compared. Ten shots, 1-40-40-1, ten tasks a meta-step, one inner step
of 0.01, Adam, 3e-3.

    python -m reproduce.bootstrap

Every row is trained with all seeds at once, and results/bootstrap.json is written after each;
stopped at any moment, the command goes on with the row that it was in. One core needs about two
minutes.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F

import metalit as ml

from .together import Bed, Row, parser_of, train_and_write

WAVES = ml.tasks.Sinusoids(shots=10)
BED = Bed(WAVES, WAVES, 500, 10, (0, 1, 5, 10), lr=3e-3)


def maml(seed: int) -> ml.MetaLoss:
    """MAML with one step."""
    return ml.MAML(ml.models.mlp(1, 40, 40, 1, seed=seed), F.mse_loss, 0.01)


def bmg(seed: int, **options: Any) -> ml.MetaLoss:
    """BMG with one step."""
    return ml.BMG(ml.models.mlp(1, 40, 40, 1, seed=seed), F.mse_loss, 0.01, **options)


ROWS = {"MAML": Row(maml), "5 ahead, support": Row(partial(bmg, more=5)),
        "20 ahead, support": Row(partial(bmg, more=20)),
        "5 ahead, query": Row(partial(bmg, more=5, on="query")),
        "5 ahead, query, predictions": Row(partial(bmg, more=5, on="query",
                                                   distance="predictions"))}


def main() -> None:
    """Read the command line, and train."""
    options = parser_of(__doc__, "bootstrap").parse_args()
    train_and_write({"sine waves": BED}, {"sine waves": ROWS}, {"sine waves": range(8)},
                    options.share, {
        "what": "query loss (MSE, on a grid of 100) of sine waves that no training saw, after some "
        "inner steps of 0.01", "command": "python -m reproduce.bootstrap"}, options.file)


if __name__ == "__main__":
    main()
