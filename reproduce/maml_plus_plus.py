"""MAML++, all parts on, and each switched off in turn, beside MAML; over seeds.

On sine waves (1-40-40-1, ten tasks a meta-step, five inner steps of 0.01) and on drawn characters
(5-way 1-shot, strided conv4 with 8 filters, images of 14 × 14, eight tasks, five inner steps of
0.1). The network for sine waves has no normalisation, so that one part has nothing to do there.

    python -m reproduce.maml_plus_plus

Every row is trained with all seeds at once, and results/maml_plus_plus.json is written after each;
stopped at any moment, the command goes on with the row that it was in. One core needs about ten
minutes.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F

import metalit as ml

from .together import Bed, Row, parser_of, train_and_write

SEEDS = {"sine waves": range(8), "characters": range(5)}
PARTS = {"a loss at every step": {"multi_step": False}, "learned rates": {"step_rates": False},
         "norms of each step": {"step_norms": False}, "first order first": {"annealed": False}}


def on_waves(seed: int, **parts: Any) -> ml.MetaLoss:
    """MAML++ for sine waves."""
    return ml.MAMLPlusPlus(ml.models.mlp(1, 40, 40, 1, seed=seed), F.mse_loss, 0.01, **parts)


def on_characters(seed: int, **parts: Any) -> ml.MetaLoss:
    """MAML++ for characters."""
    network = ml.models.Conv4(5, filters=8, size=14, seed=seed)
    return ml.MAMLPlusPlus(network, F.cross_entropy, 0.1, **parts)


def plain_on_waves(seed: int) -> ml.MetaLoss:
    """MAML with as many steps."""
    return ml.MAML(ml.models.mlp(1, 40, 40, 1, seed=seed), F.mse_loss, 0.01, 5)


def plain_on_characters(seed: int) -> ml.MetaLoss:
    """MAML with as many steps."""
    return ml.MAML(ml.models.Conv4(5, filters=8, size=14, seed=seed), F.cross_entropy, 0.1, 5)


def rows(make: Any, plain: Any, without: str = "") -> dict[str, Row]:
    """All parts, each part off in turn, and MAML; `without` is a part that has nothing to do."""
    off = {f"without {part}": Row(partial(make, **switch), cosine=True)
           for part, switch in PARTS.items() if part != without}
    return {"all parts": Row(make, cosine=True), **off, "without the cosine": Row(make),
            "MAML": Row(plain)}


def beds() -> dict[str, Bed]:
    """What is trained on, how long, and what is looked at."""
    waves = ml.tasks.Sinusoids(shots=5)
    learned, _, unseen = ml.glyphs(size=14).split((0.7, 0.1, 0.2), seed=0)
    return {"sine waves": Bed(waves, waves, 2000, 10, (0, 1, 5, 10), lr=3e-3),
            "characters": Bed(learned.episodes(5, 1, 3), unseen.episodes(5, 1, 3), 300, 8,
                              (0, 1, 5, 10), accuracy=True, lr=3e-3)}


ROWS = {"sine waves": rows(on_waves, plain_on_waves, "norms of each step"),
        "characters": rows(on_characters, plain_on_characters)}


def main() -> None:
    """Read the command line, and train."""
    parser = parser_of(__doc__, "maml_plus_plus")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="BED",
                        help="the figures of the other stay as they are")
    options = parser.parse_args()
    train_and_write({name: bed for name, bed in beds().items() if name in options.only}, ROWS,
                    SEEDS, options.share, {
        "what": "MAML++ with each part switched off in turn; after some inner steps, on tasks that "
        "no training saw", "command": "python -m reproduce.maml_plus_plus"}, options.file)


if __name__ == "__main__":
    main()
