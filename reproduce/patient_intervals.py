"""Intervals about forecasts of blood samples: what they promise, and what they hold.

    python -m reproduce.patient_intervals

Networks as those of `python -m reproduce.patients`, whose runs are taken up where they are found,
MAP and the mean curve forecast simulated patients. Sets of 99 of them calibrate intervals for nine
tenths, and 8000 others say how many each set holds. Then the twelve real ones are looked at: held
by intervals of simulated patients, and by those of the eleven others. The result goes to
results/patient_intervals.json. One core needs about five minutes.
"""
from __future__ import annotations

import argparse
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import machine, resampled, versions, write_json
from metalit.data.patients import Fit, MeanCurve, Patients, posterior, theophylline
from metalit.judging.conformal import (
    conformal_quantile,
    conformal_rank,
    distances,
    forecasts,
)
from metalit.tasks.task import Task
from reproduce.patients import SHOTS, STEPS, chosen_before, meta_learned

COVER, CALIBRATION, SETS, FRESH = 0.9, 99, 50, 8000


def forecasters(shots: int, steps: int, folder: Path, compile: bool) -> dict[str, Any]:
    """Those whose forecasts get intervals."""
    J = meta_learned(Patients(shots), **chosen_before(), steps=steps,
                     folder=folder / f"{shots}-samples", compile=compile)
    return {"meta-learned": J, "MAP": Fit(posterior), "mean curve": MeanCurve()}


def all_scores(who: Any, task: Task) -> dict[str, Tensor]:
    """How far off later samples are, (patients, samples), and the worst of each, (patients, 1)."""
    away = distances(forecasts(who, task.support, task.query.x), task.query, None)[..., 0].double()
    return {"each": away, "together": away.amax(1, keepdim=True)}


def left_out(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The width that all other patients give each, and whether it holds the one left out."""
    everyone = torch.arange(len(scores))
    widths = torch.stack([conformal_quantile(scores[everyone != i], COVER) for i in everyone])
    return widths, scores <= widths


def row(calibration: Tensor, fresh: Tensor, real: Tensor) -> dict[str, Any]:
    """What sets of calibration patients hold of fresh and real ones; scores (patients, samples)."""
    sets = calibration.unflatten(0, (CALIBRATION, -1))
    width = conformal_quantile(sets, COVER)                       # (sets, samples)
    held = (fresh[:, None] <= width).double().mean(2)             # (patients, sets)
    of_real = (real[:, None] <= width).double().mean((1, 2))      # (patients,)
    by_chance = held.mean(0).var() / held.shape[1] + held.mean(1).var() / len(held)
    theirs, alone = left_out(real)
    few = calibration[:len(calibration) // 11 * 11].unflatten(0, (11, -1))
    return {"fresh": held.mean().item(), "fresh error": by_chance.sqrt().item(),
            "fresh deviation": held.mean(0).std().item(),
            "real": of_real.mean().item(), "real interval": resampled(of_real),
            "width": 2 * width.mean().item(), "width by the eleven": 2 * theirs.mean().item(),
            "width by eleven simulated": 2 * conformal_quantile(few, COVER).mean().item(),
            "held by the eleven": alone.double().mean().item(),
            "patients": [round(share, 4) for share in of_real.tolist()]}


def table(who: dict[str, Any], *tasks: Task) -> dict[str, Any]:
    """The rows of both kinds of interval, for calibration, fresh and real patients."""
    scores = {name: [all_scores(one, task) for task in tasks] for name, one in who.items()}
    return {kind: {name: row(*(one[kind] for one in of)) for name, of in scores.items()}
            for kind in ("each", "together")}


def main() -> None:
    """Train where nothing is found, calibrate, and count."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--runs", type=Path, default=Path("runs/patients"), help="for checkpoints")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--sets", type=int, default=SETS, help="of calibration patients")
    parser.add_argument("--fresh", type=int, default=FRESH, help="patients to check with")
    parser.add_argument("--file", default="patient_intervals", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin, found = time.process_time(), {}
    compile = not options.eager and shutil.which("c++") is not None
    for shots in SHOTS:
        who, family = forecasters(shots, options.steps, options.runs, compile), Patients(shots)
        found[shots] = table(who, family.held_out(options.sets * CALIBRATION, 11),
                             family.held_out(options.fresh, 12), theophylline(shots))
        print(f"{shots} samples are done", flush=True)
    rank = conformal_rank(CALIBRATION, COVER)
    beta = torch.distributions.Beta(float(rank), float(CALIBRATION + 1 - rank))
    write_json(options.file, {
        "what": "the share of later samples (each), or of patients with all of them (together), "
        "that lies in intervals for nine tenths; widths in mg/L",
        "command": "python -m reproduce.patient_intervals", "cover": COVER,
        "calibration tasks": CALIBRATION, "sets": options.sets, "fresh patients": options.fresh,
        "promised": rank / (CALIBRATION + 1), "deviation promised": beta.stddev.item(),
        "looks at real patients": 2, "meta_steps": options.steps, "compiled": compile,
        "machine": machine(), "versions": versions("metalit", "torch"), "coverage": found,
        "cpu_seconds": math.ceil(time.process_time() - begin)})


if __name__ == "__main__":
    main()
