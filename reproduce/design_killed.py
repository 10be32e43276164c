"""Workers of a search are killed at fifty random moments: nothing is lost, nothing counts twice.

    python -m reproduce.design_killed

Four workers search for a meta-loss on sinusoids, on one data base of SQLite. One of them, drawn at
random, gets a SIGKILL at a random moment, and is started again, fifty times; then all may finish.
Afterwards every candidate must have exactly one end, the meta-steps of all
must be the budget within 5 %, and every candidate that was trained to its end must have, bit for
bit, the error that it has when it is trained without any interruption. What was found is written to
results/design_killed.json. Four cores need some ten minutes.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import machine, versions, write_json
from metalit.designing.search import Design, design, facts, origin, steps_spent
from metalit.designing.space import Space
from metalit.judging.recipes import sine_network

STEPS = 18


def worker(folder: Path, number: int, meta_steps: int) -> subprocess.Popen[bytes]:
    """A worker of the search in a folder, as a process of its own."""
    command = ["design", "sinusoids", "--meta-steps", meta_steps, "--steps", STEPS, "--no-judge",
               "--quiet", "--out", folder, "--worker", number, "--beat", 1]
    return subprocess.Popen([sys.executable, "-m", "metalit", *map(str, command)],
                            env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def search_in(folder: Path, meta_steps: int) -> Design:
    """The search that a folder holds; what is left to do is done."""
    return design(ml.tasks.Sinusoids(5), sine_network, F.mse_loss, meta_steps=meta_steps,
                  steps=STEPS, folder=folder, beat=1, judges=False)


def chains(found: Design) -> dict[int, list[Any]]:
    """The trials of each candidate: those of dead workers, and the one that went on to an end."""
    of: dict[int, list[Any]] = {}
    for trial in found.search.trials(): of.setdefault(origin(trial), []).append(trial)
    return of


def complaints(found: Design) -> list[str]:
    """What is wrong with a search: a candidate without one end, or steps that do not add up."""
    wrong = []
    for number, (*dead, last) in chains(found).items():
        states = [trial.state.name for trial in dead]
        if set(states) - {"FAIL"} or last.state.name not in ("COMPLETE", "PRUNED"):
            wrong.append(f"candidate {number} ended as {[*states, last.state.name]}")
        if len({json.dumps(one.params, sort_keys=True) for one in (*dead, last) if one.params}) > 1:
            wrong.append(f"candidate {number} is not the same in all of its trials")
        if last.state.name == "COMPLETE" and facts(last)["at"] != STEPS:
            wrong.append(f"candidate {number} ended after {facts(last)['at']} steps")
    spent, budget = steps_spent(found.search.trials()), found.search.effort.meta_steps or 0
    if abs(spent - budget) > 0.05 * budget: wrong.append(f"{spent} meta-steps of {budget}")
    if spent != sum(row["meta_steps"] for row in found.rows()): wrong.append("steps count twice")
    return wrong


def error_anew(found: Design, trial: Any) -> float:
    """The error of a candidate that is trained without any interruption."""
    sentence, search = Space().read(trial.params), found.search
    J = search.made(sentence)
    ml.meta_train(J, search.setting.tasks, steps=STEPS, progress=False, seed=search.seed,
                  optimizer=sentence.optimizer())
    return ml.evaluate(J, search.looks, steps=search.effort.inner_steps).per_task.mean().item()


def killed(folder: Path, workers: int, kills: int, meta_steps: int, chance: random.Random) -> int:
    """Search with some workers, and kill one after the other; how often one was alive then."""
    team = {number: worker(folder, number, meta_steps) for number in range(1, workers + 1)}
    alive = 0
    for _ in range(kills):
        time.sleep(chance.uniform(0, 12))
        number = chance.choice(list(team))
        team[number].kill()
        alive += team[number].wait() == -signal.SIGKILL
        team[number] = worker(folder, number, meta_steps)
    for number, process in team.items():
        if process.wait(): raise RuntimeError(f"worker {number}: {process.stderr.read()!r}")
    return alive


def measured(workers: int, kills: int, meta_steps: int, seed: int) -> dict[str, Any]:
    """All that is written down."""
    with tempfile.TemporaryDirectory() as place:
        alive = killed(Path(place), workers, kills, meta_steps, random.Random(seed))
        found = search_in(Path(place), meta_steps)
        of, wrong = chains(found), complaints(found)
        done = [tries[-1] for tries in of.values() if tries[-1].state.name == "COMPLETE"]
        same = sum(error_anew(found, trial) == trial.values[0] for trial in done)
        command = (f"python -m reproduce.design_killed --workers {workers} --kills {kills} "
                   f"--meta-steps {meta_steps} --seed {seed}")
        return {"what": str(__doc__).splitlines()[0], "command": command,
                "workers": workers, "kills": kills, "seed": seed, "alive when killed": alive,
                "candidates": len(of), "taken up": sum(len(tries) > 1 for tries in of.values()),
                "meta_steps": steps_spent(found.search.trials()), "budget": meta_steps,
                "complaints": wrong, "trained to the end": len(done),
                "same bit for bit as without interruption": same,
                "machine": machine(), "versions": versions("metalit", "torch", "optuna")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--meta-steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", default="design_killed", help="name of the file in results/")
    given = parser.parse_args(arguments)
    found = measured(given.workers, given.kills, given.meta_steps, given.seed)
    write_json(given.file, found)
    print(json.dumps(found, indent=1))
    if found["complaints"]: raise SystemExit(1)


if __name__ == "__main__":
    main()
