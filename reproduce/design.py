"""Does a search for a meta-loss find one that beats methods which were tuned as long?

    python -m reproduce.design
    python -m reproduce.design --suites patients-3-samples bowls
    python -m reproduce.design --carry

For the tasks of each suite (`ml.suites`): a search of the space that `space_for` gives; each rival
tuned by a search with the same number of trials; a random search of the same space; then the best
of all trained anew with fresh seeds and measured on tasks that no search drew (see
`metalit.designing.confirm`). Rivals are MAML and those methods with a name that came out best in
the large measurement (results/measurement.json). All is kept in runs/design/, so it can be stopped
at any moment, and goes on. The figures are written to results/design.json after each suite; what it
holds of others stays. One core needs one to two hours a suite. With `--carry` the best finalist of
each suite is trained on the tasks of the others that were searched, a minute each.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import metalit as ml
from benchmarks.measure import RESULTS, machine, versions, write_json
from metalit.designing import (
    Among,
    Between,
    Confirmed,
    Counting,
    Design,
    Space,
    confirm,
    design,
)
from metalit.designing.honest import Entry, Trainee, final_of
from metalit.designing.search import ends_of, seconds_spent, steps_spent
from metalit.judging.comparison import compare
from metalit.judging.recipes import RECIPES, SCHEDULES
from reproduce.measurement import BEDS


def by_weights(model: torch.nn.Module, lr: float, steps: int, how: str) -> Any:
    """An inner loop of the library, down squared error with a learned weight of each example."""
    kind, loss = getattr(ml, how), ml.LossWeights()
    return kind(lr, steps, loss=loss) if how == "SGD" else kind(model, lr, steps, loss=loss)


def space_for(suite: str) -> Space:
    """What was learned from searches of the standard space, which found nothing better.

    There each of four extra terms is in every second candidate, so that fifteen of sixteen have
    one: here nothing is added to the query loss. Any step may go down a squared error with learned
    weights (`ml.LossWeights`). A learned loss that is a network begins slowly and ends anywhere; it
    was in the space of an earlier search. Where a head can be solved for, that is one of the inner
    loops, with steps after it or none. Where the large measurement has that far behind, on bowls
    and patients, candidates take one step, after which they are judged, and the range of the outer
    one is longer. For patients three searches were in vain: of all inner loops with one to five
    steps, and of four of them with one, where the best took the mean of the query losses and the
    exact gradient, which are held here; and one that stopped candidates early.
    """
    if suite == "patients-3-samples":
        space = with_weights(Space(1, Between(1e-3, 3e-2)), 0.1, ("Diagonal", "Kronecker"))
        return space.only(inner=["Kronecker", "by_weights"], mask=["all of them"],
                          terms=["QueryLoss"], extras=[], pooling=["Mean"], gradient=["Exact"])
    if suite == "bowls": space, inner = Space(1, Between(3e-4, 3e-2)), []
    else:
        space, inner = Space(), ["SGD", "Diagonal", "Kronecker", "LSLR", "ALFA", "Forget", "Ridge"]
        space.add("inner", ml.Ridge, weight=Between(1e-4, 1.0), learn=True, steps=Counting(0, 3),
                  lr=Between(1e-3, 0.1))
    space = with_weights(space, 1.0, ("SGD", "Diagonal", "Kronecker", "Forget"))
    return space.only(inner=[*inner, "by_weights"], mask=["all of them"], extras=[],
                      terms=["QueryLoss", "EveryStep"], pooling=["Mean", "Tail", "Tilted"])


def with_weights(space: Space, most: float, kinds: tuple[str, ...]) -> Space:
    """The space, with inner loops of these kinds, down weighted losses, at rates up to `most`."""
    return space.add("inner", by_weights, lr=Between(1e-3, most), how=Among(kinds))


def rivals(suite: str, inner_steps: int, count: int) -> list[str]:
    """MAML, and the best methods with a name by the large measurement, the best first.

    The best after as many inner steps as candidates are judged by, or none, for those without.
    """
    rows = json.loads((RESULTS / "measurement.json").read_text())["suites"][suite]["rows"]
    losses = {name: row["loss"][str(min(row["own_steps"], inner_steps))]["mean"]
              for name, row in rows.items() if name in RECIPES and not row["diverged"]}
    ordered = sorted((name for name, loss in losses.items() if loss is not None),
                     key=lambda name: losses[name])
    return list(dict.fromkeys([*ordered[:count], "maml"]))


def told(found: Design, ended: Confirmed) -> dict[str, Any]:
    """What is written down of a suite."""
    finals = [{"name": final.name, "kind": final.kind, "words": final.sentence.words(),
               "error": final.error if final.errors else None, "by seed": final.errors,
               "thought": final.estimate, "ms": final.ms, "ms at test": final.ms_at_test}
              for final in ended.finals]
    trials = found.search.trials()
    return {"space": str(found.search.space.size()), "ends": ends_of(found),
            "meta_steps": steps_spent(trials), "seconds": round(seconds_spent(trials)),
            "best": found.best.words(), "importance": found.importance(), "finals": finals,
            "level": ended.level, "gaps": [one._asdict() for one in ended.gaps],
            "verdict": ended.verdict()}


def searched(suite: str, given: argparse.Namespace) -> Design:
    """The search on the tasks of a suite, which are not those that it holds; it goes on."""
    bed = BEDS[suite]
    aims = ["error", "seconds"] if given.to_the_end else ["error"]
    return design(ml.suites.get(suite).train, bed.model, bed.loss, objective=aims,
                  space=space_for(suite), trials=given.trials, steps=given.steps,
                  inner_steps=given.inner_steps, schedule=given.schedule, seed=given.seed,
                  folder=given.out / suite)


def solved(suite: str, given: argparse.Namespace) -> dict[str, Any]:
    """The search on the tasks of a suite, and its honest end."""
    begin = time.process_time()
    found = searched(suite, given)
    print(f"{suite}\n{found}\n", flush=True)
    against = rivals(suite, given.inner_steps[0], given.rivals)
    ended = confirm(found, against=against, finalists=given.finalists, seeds=given.seeds)
    print(f"{ended}\n", flush=True)
    return told(found, ended) | {"against": against, "versions": versions("metalit", "torch",
                                                                          "optuna"),
                                 "cpu seconds of this call": round(time.process_time() - begin)}


def command_for(suite: str, asked: Mapping[str, Any]) -> str:
    """The command that does the same for a suite."""
    def words(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)
    options = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {words(value)}")
               for name, value in asked.items() if value is not False]
    return " ".join(["python -m reproduce.design", f"--suites {suite}", *options])


def carried(suites: Mapping[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """For the tasks of each suite, the error of what was found for the others, by its own seeds.

    Each search is asked for as it was; one whose folder is gone is made again.
    """
    asked = {suite: argparse.Namespace(**vars(given) | of["asked"]) for suite, of in suites.items()}
    found = {suite: searched(suite, asked[suite]) for suite in suites}
    sentences = {suite: winner(found[suite], of, asked[suite].finalists)
                 for suite, of in suites.items()}
    return {suite: {other: on_tasks_of(found[suite], sentences[other], f"from {other}",
                                       asked[suite]) for other in suites if other != suite}
            for suite in suites}


def winner(found: Design, of: Mapping[str, Any], count: int) -> Any:
    """The sentence that was first of its finals; the search's own best if that is not there.

    So it may be where the search was made again, and seconds were one of its aims.
    """
    words = next(final["words"] for final in of["finals"] if final["kind"] == "found")
    finalists = {one.sentence.words(): one.sentence for one in found.finalists(count)}
    return finalists.get(words, next(iter(finalists.values())))


def on_tasks_of(found: Design, sentence: Any, name: str, given: argparse.Namespace) -> Any:
    """The error by seed of a sentence on the tasks of a search, or why there is none."""
    search = found.search
    try:
        runs = compare(search.setting.tasks, search.setting.model, search.setting.loss,
                       methods={name: Trainee(sentence, search)}, steps=search.effort.steps,
                       seeds=given.seeds, batch_size=search.effort.batch_size, progress=False,
                       folder=search.folder.parent / "carried",
                       inner_steps=sorted({0, *search.effort.inner_steps}))
    except ValueError as error:
        return {"words": sentence.words(), "why not": str(error)[:200]}
    final = final_of(Entry(name, "carried", Trainee(sentence, search)), runs, given.seeds)
    return {"words": sentence.words(), "error": final.error if final.errors else None,
            "by seed": final.errors}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, search, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--suites", nargs="+", choices=list(BEDS), default=list(BEDS))
    parser.add_argument("--trials", type=int, default=200, help="candidates of each search")
    parser.add_argument("--steps", type=int, default=1000, help="meta-steps of one candidate")
    parser.add_argument("--inner-steps", type=int, nargs="+", default=[1])
    parser.add_argument("--rivals", type=int, default=4, help="the best so many, beside MAML")
    parser.add_argument("--finalists", type=int, default=3)
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine",
                        help="how the outer step size shrinks, for all alike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103, 104, 105])
    parser.add_argument("--out", type=Path, default=Path("runs/design"))
    parser.add_argument("--file", default="design", help="name of the file in results/")
    parser.add_argument("--to-the-end", action="store_true",
                        help="stop no candidate early: some begin slowly, as with a learned loss")
    parser.add_argument("--carry", action="store_true", help="what was found, on others' tasks")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = RESULTS / f"{given.file}.json"
    if given.carry:
        record = json.loads(path.read_text())
        write_json(given.file, record | {"carried": carried(record["suites"], given)})
        return
    asked = {name: value for name, value in vars(given).items()
             if name not in ("suites", "out", "file", "carry")}
    for name in given.suites:
        solution = solved(name, given) | {"asked": asked, "command": command_for(name, asked)}
        there = json.loads(path.read_text())["suites"] if path.exists() else {}
        write_json(given.file, {
            "what": str(__doc__).splitlines()[0], "command": "python -m reproduce.design",
            "machine": machine(), "suites": there | {name: solution}})


if __name__ == "__main__":
    main()
