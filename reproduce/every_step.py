"""Does a loss at every step cure what blows up at ten steps? Over six seeds.

In the comparison Meta-SGD, Meta-Curvature, Triplet and ConML, trained for one inner step, blow up
after ten. Here each of the four is trained for five: so that the last step counts, and so that all
five count alike to the end of training; and for one, as there. Sine waves, five shots, 1-40-40-1,
ten tasks a meta-step, inner steps of 0.01, Adam, 3e-3; 3,000 meta-steps for the first, and 1,000
for the others, which cost more. The comparison has 70,000 of 25 tasks, at 1e-3.

    python -m reproduce.every_step

Every row is trained with all seeds at once, and results/every_step.json is written after each;
stopped at any moment, the command goes on with the row that it was in. One core needs about ten
minutes.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F

import metalit as ml

from .together import Bed, Row, parser_of, train_and_write

METHODS = {"meta-sgd": ml.MetaSGD, "meta-curvature": ml.MetaCurvature, "conml": ml.ConML,
           "triplet-maml": ml.TripletMAML}
WAVES = ml.tasks.Sinusoids(shots=5)
STEPS = {"meta-sgd": 3000, "meta-curvature": 1000, "conml": 1000, "triplet-maml": 1000}


def bed(method: str) -> Bed:
    """Sine waves, for as many meta-steps as the method has."""
    return Bed(WAVES, WAVES, STEPS[method], 10, (0, 1, 5, 10, 20), lr=3e-3)


def made(kind: Any, steps: int, early: float, seed: int) -> ml.MetaLoss:
    """A method for so many steps; `early` is the share of the earlier steps, 0 to 1."""
    J = kind(ml.models.mlp(1, 40, 40, 1, seed=seed), F.mse_loss, lr=0.01, steps=steps)
    J.terms = ml.Sum(*((weight, ml.EveryStep(early) if type(term) is ml.QueryLoss else term)
                       for weight, term in J.terms.addends()))
    return J


def rows(kind: Any) -> dict[str, Row]:
    """Five steps of which the last counts, or all; and one."""
    return {"five steps": Row(partial(made, kind, 5, 0.0)),
            "five steps, all count": Row(partial(made, kind, 5, 1.0)),
            "one step": Row(partial(made, kind, 1, 0.0))}


def main() -> None:
    """Read the command line, and train."""
    parser = parser_of(__doc__, "every_step")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS),
                        metavar="METHOD", help="the figures of the others stay as they are")
    options = parser.parse_args()
    train_and_write({name: bed(name) for name in options.only},
                    {name: rows(kind) for name, kind in METHODS.items()},
                    dict.fromkeys(METHODS, range(6)), options.share, {
        "what": "query loss (MSE, on a grid of 100) of sine waves that no training saw, after some "
        "inner steps of 0.01, and the share of waves that the last of them made worse",
        "command": "python -m reproduce.every_step"}, options.file)


if __name__ == "__main__":
    main()
