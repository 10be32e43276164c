"""All methods on all frozen suites: tuned alike, several seeds, intervals, costs, published ones.

    python -m reproduce.measurement --plan
    python -m reproduce.measurement --only sinusoids-5-shot/maml

For each suite (`ml.suites`) each method is trained with each seed on the family of the suite, and
judged once on its frozen tasks. Before that its inner step size is chosen: five of them, from a
tenth to ten times that of its recipe, each trained for a tenth of the steps with a seed of its own,
and judged on tasks that no suite and no training holds. What is finished, a choice or a run, is
written at once to a folder of its own (`--runs`), so the command can be stopped at any moment and
goes on. The figures are written to results/measurement.json after every run, with those runs that
are there. Rows of that file whose runs are not there any more stay, if they were measured alike, so
a method may be added with MAML's runs beside its own:

    python -m reproduce.measurement --only sinusoids-5-shot/maml sinusoids-5-shot/in-context

Omniglot is measured by `python -m reproduce.omniglot`.
"""
from __future__ import annotations

import argparse
import inspect
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.data.patients import Curve, Patients
from metalit.designing.scoring import bowl_model
from metalit.judging.baselines import BASELINES, Baseline, Joint, RidgeOn, baseline
from metalit.judging.comparison import compared, forget_compiled, number, student
from metalit.judging.recipes import RECIPES, Recipe, built_as, schedule, sine_network
from metalit.judging.suites import Suite
from metalit.losses import Loss
from metalit.tasks import BinnedSinusoids, Oversampled, Quadratics, Sinusoids, half_square
from metalit.training.checkpoints import write_whole
from metalit.training.evaluation import NoisySupport
from metalit.training.memory import predicted_memory
from reproduce.tails import adam as adam_and_scores

AT = (0, 1, 2, 5, 10)                        # inner steps after which all are judged
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)         # step sizes to choose from, times that of the recipe
SHARE, TUNING_TASKS, TUNING_SEED = 0.1, 400, 1_000_003
SEEDS, RUNS = 5, Path("runs/measurement")
FIRST = ("maml", "fomaml", "meta-sgd", "meta-curvature", "blind", "ridge-inputs",
         "gaussian-process", "scratch", "ridge", "anil", "conml", "gradient-norm", "sharp-maml",
         "joint", "ridge-features", "cavia", "bmg", "taml", "boil", "reptile")


class Bed(NamedTuple):
    """A suite, the model that learns it, the budget, and other tasks that it is judged on, too."""

    model: Callable[..., nn.Module]
    loss: Loss
    steps: int
    batch_size: int
    shifts: Callable[[], dict[str, ml.Family]]
    factor: float = 1.0                      # all step sizes times this: bowls are flatter


def other_waves(shots: int) -> dict[str, ml.Family]:
    """Waves with one example, with larger amplitudes, and with errors in the support set."""
    return {"1 shot": Sinusoids(1), "larger waves": Sinusoids(shots, amplitude=(5.0, 8.0)),
            "noise of 0.5": NoisySupport(Sinusoids(shots), 0.5)}


BEDS = {
    "sinusoids-5-shot": Bed(sine_network, F.mse_loss, 70_000, 25, partial(other_waves, 5)),
    "bowls": Bed(bowl_model, half_square, 2000, 25, lambda: {
        "further apart": Quadratics(2, spread=3.0),
        "steeper": Quadratics(2, eigenvalues=(2.0, 4.0))}, factor=10.0),
    "amplitude-bins": Bed(sine_network, F.mse_loss, 10_000, 20, lambda: {
        "1 shot": BinnedSinusoids(1), "any amplitude": Sinusoids(5)}),
    "patients-3-samples": Bed(lambda seed: Curve(seed=seed), F.mse_loss, 5000, 25, lambda: {
        "2 samples": Patients(2), "4 samples": Patients(4),
        "twice the noise": Patients(3, noise=(0.286, 0.4))}),
    "sinusoids-10-shot": Bed(sine_network, F.mse_loss, 10_000, 25, partial(other_waves, 10))}

# As their papers give them, none measured on a suite of ours. [V2]: read twice; [M]: from memory.
FINN = "Finn et al. 2017, appendix C, 70,000 meta-steps in its code [V2]"
PARK = "Park & Oliva 2019, after 1 step [M]"
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
    "sinusoids-5-shot": {
        "maml": ("0.67, 0.38, 0.35 after 1, 5, 10", FINN), "meta-sgd": ("0.482 ± .061", PARK),
        "meta-curvature": ("0.405 ± .048", PARK),
        "conml": ("0.3935 ± .0100, MAML there 0.6771 ± .0377", "Wu et al. 2025, Table 2 [V]")},
    "sinusoids-10-shot": {
        "maml": ("0.435 ± .039", PARK), "meta-sgd": ("0.258 ± .026", PARK),
        "meta-curvature": ("0.201 ± .020", PARK)}}


def pooled(make: Callable[[], ml.Pooling]) -> Callable[..., ml.MetaLoss]:
    """MAML with another pooling, made anew each time."""
    return lambda model, loss, lr, steps: ml.MAML(model, loss, lr, steps, pooling=make())


BY_HARDNESS = {"tail": Recipe(pooled(partial(ml.Tail, 0.05))),
               "worst-case": Recipe(pooled(partial(ml.WorstCase, 100))),
               "oversampled": Recipe(built_as(ml.MAML))}


def recipes(bed: str) -> dict[str, Recipe]:
    """How each method is trained on a suite: all that have no need of classes, in our order."""
    names = dict.fromkeys([*FIRST, *RECIPES])
    found = {name: compared(name, classes=False) for name in names
             if name in RECIPES and not RECIPES[name].classes}
    return found | (BY_HARDNESS if bed == "amplitude-bins" else {})


class Rate:
    """An inner step size that a compiled meta-loss takes as an input: set anew, compiled once."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, step: int, steps: int) -> float:
        """The number, at each meta-step."""
        return self.value

    def identity(self) -> dict[str, Any]:
        """The graph is the same for all values."""
        return {}


class Host:
    """One meta-loss of a method, set anew for each step size and seed, so that it compiles once."""

    def __init__(self, name: str, method: str):
        self.name, self.bed, self.method = name, BEDS[name], method
        self.recipe = recipes(name)[method]
        self.rate = Rate(self.usual)
        self.J = self.made(0, self.rate)
        self.has_rate = any(self.rate in part.schedules.values()
                            for part in ml.schedule.scheduled(self.J))
        self.compiled = False

    @property
    def usual(self) -> float:
        """The step size of the recipe, on this suite."""
        return self.bed.factor * self.recipe.lr

    def made(self, seed: int, rate: Any) -> ml.MetaLoss:
        """A fresh meta-loss."""
        size = self.recipe.context
        model = self.bed.model(seed, context=size) if size else self.bed.model(seed)
        return self.recipe.build(model, self.bed.loss, rate, self.recipe.inner_steps)

    def start(self, seed: int, rate: float) -> ml.MetaLoss:
        """The one meta-loss, as a fresh one is."""
        self.rate.value = self.usual
        self.J.at(0, 1)
        self.J.load_state_dict(self.made(seed, Rate(rate)).state_dict())
        self.rate.value = rate
        return self.J

    def compile(self) -> None:
        """One step, so that no training is timed while it compiles."""
        if not self.compiled: self.trained(0, self.usual, 1, compile=True)
        self.compiled = True

    def trained(self, seed: int, rate: float, steps: int,
                compile: bool) -> tuple[ml.MetaLoss, float]:
        """The meta-loss after a training, and the CPU seconds of it."""
        J, recipe, begin = self.start(seed, rate), self.recipe, time.process_time()
        family: Any = suite_of(self.name).train
        if self.method == "oversampled": family = Oversampled(family, 0.05)
        optimizer: Any = partial(recipe.optimizer, lr=recipe.meta_lr)
        if self.method == "worst-case": optimizer = adam_and_scores(J)
        ml.meta_train(J, family, steps=steps, batch_size=self.bed.batch_size, seed=seed,
                      device="cpu", compile=compile, progress=False, optimizer=optimizer,
                      scheduler=schedule(recipe.schedule or "constant", steps))
        J.at(steps - 1, steps)
        return J, time.process_time() - begin


class CompiledJoint(Joint):
    """The same training on all tasks as if they were one, as one graph."""

    def started(self, tasks: ml.Family) -> nn.Module:
        """The model after the training."""
        return joint_model(self.model, self.loss, tasks, self.steps, self.batch_size, self.seed)


def joint_model(model: nn.Module, loss: Loss, tasks: ml.Family, steps: int, batch_size: int,
                seed: int) -> nn.Module:
    """A model that was trained on all tasks as if they were one."""
    J = ml.MetaLoss(model, loss, inner=ml.SGD(steps=0))
    ml.meta_train(J, tasks, steps=steps, batch_size=batch_size, seed=seed, progress=False,
                  device="cpu", compile=steps > 1000)
    return J.model


def made_baseline(bed: Bed, method: str, seed: int, steps: int) -> Baseline:
    """Who does no meta-learning, with the budget of the others."""
    budget: dict[str, Any] = {"steps": steps, "batch_size": bed.batch_size, "seed": seed}
    model = bed.model(seed)
    joint = CompiledJoint(model, bed.loss, **budget)
    if method == "joint": return joint
    if method == "ridge-features": return RidgeOn(bed.loss, joint, **budget)
    return baseline(method, model, bed.loss, classes=False, **budget)


def baselines(bed: Bed) -> list[str]:
    """Those who go with the tasks: a bowl has a number for each row of x, and no features."""
    of_no_bowl = ("ridge-inputs", "ridge-features") if bed.loss is half_square else ()
    return [name for name in BASELINES if name not in ("nearest-mean", *of_no_bowl)]


@cache
def why_not(name: str, method: str) -> str:
    """Why a method does not go with a suite; empty where it does."""
    if method in BASELINES: return ""
    size = recipes(name)[method].context
    if size and "context" not in inspect.signature(BEDS[name].model).parameters:
        return "it needs a model with a context"
    try: Host(name, method).J(suite_of(name).train.batch(2)).backward()
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error).split(". ")[0]
    return ""


def methods(name: str) -> list[str]:
    """All who are measured on a suite, the first first."""
    there = {**recipes(name), **dict.fromkeys(baselines(BEDS[name]))}
    ordered = [*(one for one in FIRST if one in there), *(one for one in there if one not in FIRST)]
    if name == "amplitude-bins": ordered = ["maml", *BY_HARDNESS, *ordered[1:]]
    return [method for method in dict.fromkeys(ordered) if not why_not(name, method)]


@cache
def suite_of(name: str) -> Suite:
    """The frozen suite, verified once."""
    return ml.suites.get(name)


# What is finished


class Store:
    """The folder of what is finished: choices and runs, each in a file of its own."""

    def __init__(self, runs: Path, name: str, steps: int):
        self.folder, self.name, self.steps = runs / name / f"{steps}-steps", name, steps

    def path(self, method: str, what: str) -> Path:
        """Where something of a method stands."""
        return self.folder / method / f"{what}.json"

    def read(self, method: str, what: str) -> dict[str, Any] | None:
        """What is there, if it is of this suite; else nothing, and it is measured again."""
        path = self.path(method, what)
        if not path.exists(): return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found.get("checksum") == suite_of(self.name).checksum else None

    def write(self, method: str, what: str, content: dict[str, Any]) -> dict[str, Any]:
        """Written whole or not at all; returns it."""
        path = self.path(method, what)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"checksum": suite_of(self.name).checksum} | content
        write_whole(path, json.dumps(content, allow_nan=False).encode())
        return content


def chosen(store: Store, host: Host, compile: bool) -> dict[str, Any]:
    """The inner step size of a method on a suite, from the file or by the small search."""
    if there := store.read(host.method, "chosen"): return there
    train, steps = suite_of(store.name).train, max(1, round(SHARE * store.steps))
    task = train.held_out(TUNING_TASKS, seed=TUNING_SEED)
    rates = [host.usual * factor for factor in FACTORS] if host.has_rate else [host.usual]
    mib = predicted_memory(host.J, train.batch(host.bed.batch_size)).total / 2**20
    tried: dict[str, float | None] = {}
    for rate in rates if host.has_rate else []:
        tried[f"{rate:g}"] = error_of(host, rate, steps, task, compile)
    known = {rate: loss for rate, loss in tried.items() if loss is not None}
    best = float(min(known, key=lambda rate: known[rate])) if known else host.usual
    ends = {f"{rates[0]:g}", f"{rates[-1]:g}"} if host.has_rate else set()
    return store.write(host.method, "chosen", {
        "rate": best if host.has_rate else None, "tried": tried, "steps": steps,
        "at_the_end": f"{best:g}" in ends, "mib": round(mib, 2)})


def error_of(host: Host, rate: float, steps: int, task: ml.Task, compile: bool) -> float | None:
    """The query loss after the method's own inner steps, on tasks to choose by."""
    try: J, _ = host.trained(TUNING_SEED, rate, steps, compile)
    except ml.DivergedError: return None
    return number(ml.evaluate(J, task, steps=(host.recipe.inner_steps,)).mean[0])


def finished(store: Store, method: str, seed: int, host: Host | None,
             compile: bool) -> dict[str, Any]:
    """What a method reaches with a seed: from the file, or by training and judging it."""
    if there := store.read(method, f"seed{seed}"): return there
    found: dict[str, Any] = {"method": method, "seed": seed, "status": "done", "rate": None,
                             "compiled": compile}
    try:
        if host is None: J, seconds = fitted(store, method, seed)
        else:
            found["rate"] = chosen(store, host, compile)["rate"]
            if compile: host.compile()
            J, seconds = host.trained(seed, found["rate"] or host.usual, store.steps, compile)
        found |= {"seconds": round(seconds, 3), **judged(J, store.name, own_steps(host))}
    except ml.DivergedError as error: found["status"] = f"diverged: {error}"
    return store.write(method, f"seed{seed}", found)


def fitted(store: Store, method: str, seed: int) -> tuple[Any, float]:
    """Who does no meta-learning, after looking at the training tasks, and its CPU seconds."""
    begin = time.process_time()
    found = made_baseline(BEDS[store.name], method, seed, store.steps)
    return found.fit(suite_of(store.name).train), time.process_time() - begin


def own_steps(host: Host | None) -> int:
    """The inner steps that a method trains with; none for a baseline."""
    return 0 if host is None else host.recipe.inner_steps


def judged(J: Any, name: str, own: int) -> dict[str, Any]:
    """The query loss of each frozen task, the mean on shifted ones, and CPU seconds at test."""
    suite, begin = suite_of(name), time.process_time()
    ml.evaluate(J, suite, steps=(own,))
    seconds = time.process_time() - begin
    found = ml.evaluate(J, suite, steps=AT, shift=BEDS[name].shifts())
    means = {kind: [number(mean) for mean in of.mean] for kind, of in found.items()}
    return {"own_steps": own, "seconds_at_test": round(seconds, 4),
            "losses": [in_short(column) for column in means_first(found)],
            "shifts": {kind: of for kind, of in means.items() if kind != "as trained"}}


def means_first(found: Mapping[str, ml.Evaluation]) -> Iterator[Tensor]:
    """The losses of all tasks of the suite, for each number of inner steps."""
    return iter(found["as trained"].per_task.T)


def in_short(values: Tensor) -> list[float | None]:
    """Numbers with six digits, None for those that are not finite."""
    return [number(float(f"{value:.6g}")) for value in values.tolist()]


# What it comes to


def paired(gaps: Tensor, level: float) -> dict[str, Any]:
    """The mean of differences (seeds, tasks), half its interval at a level, and the verdict.

    Both seeds and tasks are drawn by chance, so the variances of both means are added, which counts
    what belongs to a seed and a task together twice, and is rather too wide than too narrow;
    Student's factor is that of the seeds.
    """
    seeds, tasks = gaps.shape
    mean = gaps.mean().item()
    if seeds < 2: return {"mean": mean, "half": None, "verdict": "cannot tell"}
    variance = gaps.mean(1).var().item() / seeds + gaps.mean(0).var().item() / tasks
    half = student(seeds - 1, level) * math.sqrt(variance)
    shown = abs(mean) > half
    verdict = ("better" if mean < 0 else "worse") if shown else "no difference shown"
    return {"mean": mean, "half": half, "verdict": verdict}


def table_of(runs: Sequence[dict[str, Any]], at: int) -> Tensor:
    """Losses (seeds, tasks) after a number of inner steps; NaN where there is no finite one."""
    place = AT.index(at)
    return torch.tensor([[math.nan if loss is None else loss for loss in run["losses"][place]]
                         for run in runs], dtype=torch.float64)


def worst_of(losses: Tensor) -> float | None:
    """The mean of the worst 5 % of the tasks; None where one has no finite loss."""
    return ml.Tail(0.05)(losses).item() if losses.isfinite().all() else None


def beside_maml(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]],
                level: float) -> dict[str, Any] | None:
    """A method less MAML, task by task and seed by seed, after the method's own inner steps.

    MAML takes as many, or one where the method takes none.
    """
    of_maml = {run["seed"]: run for run in others}
    both = [(run, of_maml[run["seed"]]) for run in runs if run["seed"] in of_maml]
    if not both or runs[0]["method"] == "maml": return None
    at = runs[0]["own_steps"]
    mine, maml = (table_of([pair[i] for pair in both], (at, max(1, at))[i]) for i in (0, 1))
    gaps = mine - maml
    if not gaps.isfinite().all():
        return {"at": at, "mean": None, "half": None, "verdict": "not finite"}
    return {"at": at, **paired(gaps, level)}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds; None where one is not finite."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values) or not finite: return {"mean": None, "sd_of_seeds": None}
    deviation = statistics.stdev(finite) if len(finite) > 1 else None
    return {"mean": statistics.mean(finite), "sd_of_seeds": deviation}


def row(store: Store, method: str, runs: Sequence[dict[str, Any]],
        of_maml: Sequence[dict[str, Any]], level: float) -> dict[str, Any]:
    """All that the table says of a method."""
    good = [run for run in runs if run["status"] == "done"]
    about = store.read(method, "chosen") or {}
    found: dict[str, Any] = {
        "seeds": [run["seed"] for run in runs], "chosen": {
            key: about.get(key) for key in ("rate", "tried", "at_the_end")},
        "diverged": [run["seed"] for run in runs if run["status"] != "done"]}
    if not good: return found
    losses = {at: [number(mean) for mean in table_of(good, at).mean(1).tolist()] for at in AT}
    own = good[0]["own_steps"]
    return found | {
        "own_steps": own, "loss": {str(at): spread(values) for at, values in losses.items()},
        "worst": spread([worst_of(losses) for losses in table_of(good, own)]),
        "beside_maml": beside_maml(good, of_maml, level),
        "shifts": {kind: spread([run["shifts"][kind][AT.index(own)] for run in good])
                   for kind in good[0]["shifts"]},
        "seconds": statistics.median(run["seconds"] for run in good), "mib": about.get("mib"),
        "ms": 1e3 * min(run["seconds"] for run in good) / store.steps if about else None,
        "seconds_at_test": statistics.median(run["seconds_at_test"] for run in good)}


def summary(store: Store, seeds: int) -> dict[str, Any]:
    """What is known of a suite: settings, those that do not go with it, and a row for a method."""
    bed, suite, names = BEDS[store.name], suite_of(store.name), methods(store.name)
    level = 1 - 0.05 / (len(names) - 1)
    runs = {method: [run for seed in range(seeds) if (run := store.read(method, f"seed{seed}"))]
            for method in names}
    of_maml = [run for run in runs["maml"] if run["status"] == "done"]
    return {"settings": {
                "suite": store.name, "checksum": suite.checksum, "tasks": suite.n_held_out,
                "meta_steps": store.steps, "batch_size": bed.batch_size, "seeds": seeds,
                "inner_steps": list(AT), "comparisons": len(names) - 1, "level": level,
                "versions": versions("metalit", "torch")},
            "planned": names, "left_out": left_out(store.name),
            "published": {name: {"figure": figure, "source": source} for name, (figure, source)
                          in PUBLISHED.get(store.name, {}).items()},
            "rows": {method: row(store, method, mine, of_maml, level)
                     for method, mine in runs.items() if mine}}


def with_rows_of(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What is known of a suite, with those rows of a file whose runs are not there any more.

    Raises `ValueError` where a row that is in both with the same seeds is not the same: then rows
    of the two must not stand side by side.
    """
    if old.get("settings") != new["settings"]: return new
    before, rows = old["rows"], new["rows"]
    for method in before.keys() & rows.keys():
        if before[method]["seeds"] != rows[method]["seeds"]: continue
        if before[method].get("loss") != rows[method].get("loss"):
            raise ValueError(f"{method} does not come out as in the file, so its other rows are of "
                             "another measurement: give them another --file")
    both = {**before, **rows}
    return new | {"rows": {method: both[method] for method in new["planned"] if method in both}}


def left_out(name: str) -> dict[str, str]:
    """The methods that do not go with a suite, and why."""
    return {method: why for method in recipes(name) if (why := why_not(name, method))}


# The command


def measure(stores: Sequence[Store], only: Mapping[str, Sequence[str]], seeds: int,
            compile: bool, write: Callable[[dict[str, Any]], Any], old: dict[str, Any]) -> None:
    """Everything that is asked for, method by method; what there is is written after each run."""
    record: dict[str, Any] = {
        "what": "query loss on the frozen tasks of each suite", "machine": machine(),
        "command": "python -m reproduce.measurement",
        "tuning": {"factors": FACTORS, "share": SHARE, "tasks": TUNING_TASKS,
                   "seed": TUNING_SEED}, "suites": dict(old)}
    for store in stores:
        for method in methods(store.name):
            if method not in (only[store.name] or methods(store.name)): continue
            host = None if method in BASELINES else Host(store.name, method)
            for seed in range(seeds):
                found = finished(store, method, seed, host, compile)
                record["suites"][store.name] = with_rows_of(old.get(store.name, {}),
                                                            summary(store, seeds))
                write(record)
                print(store.name, method, seed, found["status"], found.get("seconds"), flush=True)
            if compile: forget_compiled()


def minutes(store: Store, method: str, seeds: int) -> float:
    """How long one core will need for what is not finished of a method, by what is known of it."""
    runs = [store.read(method, f"seed{seed}") for seed in range(seeds)]
    known = [run["seconds"] for run in runs if run and "seconds" in run]
    left = sum(run is None for run in runs)
    each = min(known) if known else guess(store, method)
    tuned = method in BASELINES or store.read(method, "chosen")
    more = 0.0 if tuned else len(FACTORS) * SHARE * each
    return (left * (each + 3) + more + 25 * (left > 0 and method not in BASELINES)) / 60


def guess(store: Store, method: str) -> float:
    """Seconds of a training, before there is any: more for more inner steps."""
    if method in BASELINES: return 4e-3 * store.steps if method == "in-context" else 10.0
    return 2e-4 * (1 + recipes(store.name)[method].inner_steps) * store.steps


def plan(stores: Sequence[Store], only: Mapping[str, Sequence[str]], seeds: int) -> None:
    """Print what is still to do, in minutes of one core."""
    total = 0.0
    for store in stores:
        for method in methods(store.name):
            if method not in (only[store.name] or methods(store.name)): continue
            total += (needs := minutes(store, method, seeds))
            print(f"{store.name:20} {method:26} {needs:7.1f} min")
    print(f"{'all':47} {total:7.1f} min")


def asked_for(words: Sequence[str]) -> dict[str, list[str]]:
    """The methods of each suite that is asked for; an empty list for all of them."""
    found: dict[str, list[str]] = {}
    for word in words or BEDS:
        name, _, method = word.partition("/")
        if name not in BEDS: raise SystemExit(f"no suite {name!r}; there are {', '.join(BEDS)}")
        if method and method not in methods(name):
            raise SystemExit(f"no method {method!r} for {name}; there are "
                             f"{', '.join(methods(name))}")
        found.setdefault(name, []).extend([method] if method else [])
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="SUITE[/METHOD]")
    parser.add_argument("--steps", type=int, help="meta-steps, instead of those of each suite")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds: 0, 1, …")
    parser.add_argument("--quick", action="store_true", help="20 meta-steps and 2 seeds, eager")
    parser.add_argument("--plan", action="store_true", help="only say how long it will take")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of what is finished")
    parser.add_argument("--file", default="measurement", help="name of the file in results/")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    seeds, steps = (2, 20) if options.quick else (options.seeds, options.steps)
    only = asked_for(options.only)
    stores = [Store(options.runs, name, steps or BEDS[name].steps) for name in only]
    if options.plan: return plan(stores, only, seeds)
    path = RESULTS / f"{options.file}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["suites"] if path.exists() else {}
    measure(stores, only, seeds, not (options.eager or options.quick),
            partial(write_json, options.file), old)


if __name__ == "__main__":
    main()
