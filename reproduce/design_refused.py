"""What the questions before a training save, and whether they throw a winner away.

    python -m reproduce.design_refused

Candidates are drawn at random from the standard space for sinusoids, and *all* of them are trained
to their end, also those that would have been refused. Then each is asked. Written to
results/design_refused.json: how many would have been refused, by which question; how many of these
diverged, or did better than the median and than nine tenths of those that pass; and the seconds
that their trainings took, against the seconds of asking. Each candidate is judged, too
(`ml.judge`): for every question it is counted how many with which mark failed, that is, diverged or
ended no better than a model that answers the same for all tasks (results/blind.json). One core
needs about ten minutes.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.designing.search import Design, asked_first, design, facts
from metalit.judging.recipes import sine_network


def trained(folder: str, trials: int, steps: int) -> Design:
    """All candidates to their end: with two objectives nothing is stopped early."""
    return design(ml.tasks.Sinusoids(5), sine_network, F.mse_loss, trials=trials, steps=steps,
                  sampler="random", judges=False, objective=["error", "seconds"], folder=folder)


def rows(found: Design) -> list[dict[str, Any]]:
    """For each candidate: its error, infinite where it diverged, and what speaks against it."""
    search, told = found.search, []
    search.judges = True
    for trial in search.trials():
        begun = time.perf_counter()
        sentence = search.space.read(trial.params)
        why = asked_first(search, sentence)
        known = facts(trial)
        error = known.get("values", [math.inf])[0]
        told.append({"words": known["words"], "error": error if math.isfinite(error) else None,
                     "why": why[:120], "seconds": known["seconds"],
                     "seconds to ask": time.perf_counter() - begun,
                     "marks": {answer.question: answer.mark
                               for answer in ml.judge(search.made(sentence))}})
    return told


def power(told: Sequence[dict[str, Any]], blind: float) -> dict[str, dict[str, list[int]]]:
    """For each question and mark: how many candidates had it, and how many of these failed."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in told:
        failed = row["error"] is None or row["error"] >= blind
        for question, mark in row["marks"].items():
            counts = found.setdefault(question, {}).setdefault(mark, [0, 0])
            counts[0] += 1
            counts[1] += failed
    return found


def summary(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the questions would have saved, and what they would have thrown away."""
    kept = sorted(row["error"] for row in told if not row["why"] and row["error"] is not None)
    refused = [row for row in told if row["why"]]
    by = [row["why"].partition("?")[0] for row in refused]
    alive = [row["error"] for row in refused if row["error"] is not None]
    median, tenth = statistics.median(kept), kept[len(kept) // 10]
    return {"candidates": len(told), "refused": len(refused),
            "by question": {name: by.count(name) for name in sorted(set(by))},
            "refused and diverged": len(refused) - len(alive),
            "refused, better than the median of the others": sum(one < median for one in alive),
            "refused, better than nine tenths of the others": sum(one < tenth for one in alive),
            "refused, better than all others": sum(one < kept[0] for one in alive),
            "passed and diverged": len(told) - len(refused) - len(kept),
            "best passed": kept[0], "best refused": min(alive, default=None),
            "seconds of training the refused": sum(row["seconds"] for row in refused),
            "seconds of training all": sum(row["seconds"] for row in told),
            "seconds of asking all": sum(row["seconds to ask"] for row in told)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--file", default="design_refused", help="name of the file in results/")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        told = rows(trained(place, given.trials, given.steps))
    command = f"python -m reproduce.design_refused --trials {given.trials} --steps {given.steps}"
    blind = json.loads((RESULTS / "blind.json").read_text())["sinusoids"]["loss"]
    record = {"what": str(__doc__).splitlines()[0], "command": command, "summary": summary(told),
              "blind": blind, "power": power(told, blind), "candidates": told, "machine": machine(),
              "versions": versions("metalit", "torch", "optuna")}
    write_json(given.file, record)
    print(json.dumps(record["summary"], indent=1))


if __name__ == "__main__":
    main()
