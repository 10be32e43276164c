"""Does a search for a meta-loss find one that beats methods which were tuned as long?

    python -m reproduce.design

For each family of sine waves: a search of the standard space; each rival tuned by a search with the
same budget and number of trials; a random search of the same space; then the best of all trained
anew with fresh seeds and measured on tasks that no search drew (`metalit.designing.confirm`). All
is kept in runs/design/, so it can be stopped at any moment, and goes on. The figures are written to
results/design.json after each family. With the default budget one core needs about eight hours a
family.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.designing import Confirmed, Design, confirm, design
from metalit.designing.honest import RIVALS
from metalit.designing.search import ends_of, steps_spent
from metalit.judging.recipes import sine_network

FAMILIES = {"five shots": ml.tasks.Sinusoids(5), "ten shots": ml.tasks.Sinusoids(10),
            "few are large": ml.tasks.BinnedSinusoids(5)}


def searched(family: str, given: argparse.Namespace) -> Design:
    """The search on a family."""
    return design(FAMILIES[family], sine_network, F.mse_loss, meta_steps=given.meta_steps,
                  steps=given.steps, inner_steps=given.inner_steps, seed=given.seed,
                  folder=given.out / family.replace(" ", "-"))


def told(found: Design, ended: Confirmed) -> dict[str, Any]:
    """What is written down of a family."""
    finals = [{"name": final.name, "kind": final.kind, "words": final.sentence.words(),
               "error": final.error if final.errors else None, "by seed": final.errors,
               "thought": final.estimate, "ms": final.ms, "ms at test": final.ms_at_test}
              for final in ended.finals]
    return {"space": str(found.search.space.size()), "ends": ends_of(found),
            "meta_steps": steps_spent(found.search.trials()), "best": found.best.words(),
            "importance": found.importance(), "finals": finals, "level": ended.level,
            "gaps": [one._asdict() for one in ended.gaps], "verdict": ended.verdict()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, search, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--meta-steps", type=int, default=400_000, help="of each search")
    parser.add_argument("--steps", type=int, default=4000, help="of one candidate")
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1])
    parser.add_argument("--against", nargs="*", default=list(RIVALS))
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--out", type=Path, default=Path("runs/design"))
    parser.add_argument("--file", default="design", help="name of the file in results/")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    asked = {name: str(value) for name, value in vars(given).items()}
    record: dict[str, Any] = {"what": str(__doc__).splitlines()[0], "asked": asked,
                              "command": "python -m reproduce.design", "machine": machine(),
                              "versions": versions("metalit", "torch", "optuna"), "families": {}}
    for family in given.families:
        found = searched(family, given)
        ended = confirm(found, against=given.against, finalists=given.finalists,
                        seeds=given.seeds)
        record["families"][family] = told(found, ended)
        write_json(given.file, record)
        print(f"{family}\n{ended}\n", flush=True)
    print(json.dumps(record["asked"]))


if __name__ == "__main__":
    main()
