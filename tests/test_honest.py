"""The honest end of a search: rivals tuned as long, trained anew, intervals corrected, no win."""
import json
import math
from functools import partial

import optuna
import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.designing.honest import (
    RIVALS,
    Final,
    NamedSentence,
    OneMethod,
    Trainee,
    concluded,
    confirm,
    error_in,
    gap,
    published,
    recipe_of,
)
from metalit.designing.search import Effort, design
from metalit.designing.space import Between, Known, Setting, Space, program_of
from metalit.judging.comparison import Result, compared, interval, student
from metalit.judging.recipes import RECIPES, schedule, sine_network
from reproduce import design as large
from tools.tables import designs

SINES = ml.tasks.Sinusoids(shots=5)
REGRESSIONS = [name for name, recipe in RECIPES.items() if not recipe.classes]


def made_up(name, kind, errors, estimate=0.5):
    return Final(name, kind, dict(enumerate(errors)), estimate, 1.0, 1.0, None)


def test_the_interval_is_corrected_for_the_number_of_finalists():
    errors = [[0.5, 0.6, 0.4], [0.7, 0.9, 0.8], [0.9, 0.8, 0.9]]
    finals = [made_up(f"found-{i}", "found", each) for i, each in enumerate(errors)]
    of = concluded([*finals, made_up("maml-tuned-0", "tuned", [0.6, 0.7, 0.7])])
    assert of.level == 1 - 0.05 / 3 and of.rival.name == "maml-tuned-0"
    gaps = [0.5 - 0.6, 0.6 - 0.7, 0.4 - 0.7]
    mean = sum(gaps) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in gaps) / 2)
    assert of.gaps[0].mean == pytest.approx(mean, abs=1e-12)
    assert of.gaps[0].ci95 == pytest.approx(7.648803937915511 * spread / math.sqrt(3), abs=1e-9)
    assert student(2, 1 - 0.05 / 3) == pytest.approx(7.648803937915511, abs=1e-9)
    assert interval(gaps)[1] == pytest.approx(4.302652729749462 * spread / math.sqrt(3), abs=1e-9)


def test_the_rival_to_beat_is_the_best_tuned_one_by_what_it_did_anew():
    finals = [made_up("found-1", "found", [0.5, 0.6]), made_up("random-1", "random", [0.1, 0.1]),
              made_up("maml-published", "published", [0.2, 0.2], None),
              made_up("a-tuned-1", "tuned", [0.9, 0.9], 0.1),
              made_up("b-tuned-1", "tuned", [0.7, 0.8], 0.9)]
    of = concluded(finals)
    assert of.rival.name == "b-tuned-1"
    assert [final.name for final in of.finals][:2] == ["random-1", "maml-published"]
    assert of.finals[2].optimism == pytest.approx(0.05) and of.finals[1].optimism is None


def test_what_is_said_where_something_wins_where_nothing_does_and_where_there_is_no_rival():
    rival = made_up("maml-tuned-1", "tuned", [0.60, 0.70, 0.52])
    better = concluded([made_up("found-1", "found", [0.50, 0.61, 0.42]), rival])
    assert better.verdict().startswith("found-1 beats maml-tuned-1, the best tuned rival")
    assert [final.name for final in better.winners] == ["found-1"]
    same = concluded([made_up("found-1", "found", [0.50, 0.80, 0.51]), rival])
    assert same.verdict().startswith("Nothing that the search found beats maml-tuned-1")
    worse = concluded([made_up("found-1", "found", [0.90, 1.00, 0.82]), rival])
    assert not worse.winners and "+0.3" in worse.verdict()
    alone = concluded([made_up("found-1", "found", [0.5, 0.6, 0.4])])
    assert alone.verdict().startswith("No rival was tuned") and not alone.gaps
    gone = concluded([made_up("found-1", "found", []), rival])
    assert "found-1 diverged" in gone.verdict() and "  diverged" in str(gone)
    beside = concluded([made_up("found-1", "found", [0.5, 0.6]), rival,
                        made_up("random-1", "random", [0.7, 0.8])])
    assert "Random search of the same space: 0.75; the best found less it -0.2" in beside.verdict()


def test_a_run_that_blew_up_has_no_error():
    rows = [{"inner_steps": 0, "loss": 9.0}, {"inner_steps": 1, "loss": 1.0},
            {"inner_steps": 5, "loss": 3.0}]
    assert error_in(Result("a", 0, "", 1.0, rows), (1, 5)) == 2.0
    assert error_in(Result("a", 0, "", 1.0, [rows[1] | {"loss": None}]), (1,)) == math.inf
    assert error_in(Result("a", 0, "diverged", 0.0, []), (1,)) == math.inf
    assert gap(made_up("a", "found", []), made_up("b", "tuned", [1.0]), 0.95).verdict == "diverged"


@pytest.mark.parametrize("method", REGRESSIONS)
def test_every_method_of_regressions_can_be_tuned_and_written_down(method):
    space, outer = OneMethod(method), recipe_of(method).meta_lr
    sentence = space.read({"steps": 1, "lr": 0.01, "outer": outer})
    task = SINES.batch(3)
    J = sentence.made(sentence.start(sine_network, 0), F.mse_loss)
    J(task)
    assert sentence.optimizer()(J.parameters()).param_groups[0]["lr"] == outer
    assert space.describe().startswith(f"{method}: lr ") and method in sentence.words()
    if recipe_of(method).context: return                     # whose model is made otherwise
    there = {"__name__": "a program"}
    exec(program_of(sentence, Setting(SINES, sine_network, F.mse_loss), steps=3), there)
    again = sentence.made(sentence.start(sine_network, 0), F.mse_loss)
    torch.manual_seed(0)
    here = again(task)
    torch.manual_seed(0)
    assert torch.equal(here, there["J"](task))


def test_a_method_with_a_scale_of_its_own_is_tuned_about_it():
    reptile, maml = OneMethod("reptile"), OneMethod("maml")
    assert reptile.lr == Between(0.005 / 30, 0.005 * 30) and reptile.outer == Between(0.1, 1.0)
    assert (reptile.steps.high, maml.steps.high, OneMethod("ridge").steps) == (10, 5, 0)
    assert maml.lr == Between(1e-3, 1.0) and published("maml") == NamedSentence("maml", 0.01, 1,
                                                                               1e-3)
    assert OneMethod("ridge").draw(Known({"outer": 1e-3})).lr == 0.0


def test_one_s_own_entry_is_trained_as_its_recipe_says():
    class Search: effort = Effort(schedule="cosine")
    maker = Trainee(NamedSentence("reptile", 0.01, 2, 0.5), Search())
    recipe = compared(maker, classes=False)
    assert (recipe.optimizer, recipe.meta_lr) == (torch.optim.SGD, 0.5)
    assert recipe.schedule == "cosine"
    assert compared(lambda seed: None, classes=False) is RECIPES["maml"]


@pytest.mark.parametrize(("how", "says"), [
    ({"seeds": (1,)}, "an interval needs two or more"), ({"seeds": (0, 1)}, "was trained with 0"),
    ({"against": ["mmal"]}, r"no method 'mmal' \(did you mean maml\?\)")])
def test_what_cannot_be_is_said_before_anything_is_done(how, says, tmp_path):
    class Found:
        class search: seed = 0
    with pytest.raises(ValueError, match=says): confirm(Found(), **how)


def middle(seed): return ml.models.Point(torch.zeros(2, dtype=torch.float64))


def test_a_final_is_on_fresh_tasks_and_goes_on(tmp_path):
    few = Space(steps=1).only(inner=["SGD"], mask=["all of them"], terms=["QueryLoss"], extras=[],
                              pooling=["Mean"], gradient=["Exact"])
    found = design(ml.tasks.Quadratics(2), middle, ml.tasks.half_square, space=few, trials=4,
                   steps=2, batch_size=4, n_tasks=40, judges=False, folder=tmp_path,
                   schedule="cosine")
    end = partial(confirm, found, against=["maml"], finalists=2, seeds=(1, 2))
    first = end()
    assert sorted(final.kind for final in first.finals) == [
        "found", "found", "published", "random", "tuned"]
    assert {len(final.errors) for final in first.finals} == {2}
    one = first.finals[0]
    tasks = ml.tasks.Quadratics(2)
    J = one.sentence.made(one.sentence.start(middle, 1), ml.tasks.half_square)
    ml.meta_train(J, tasks, steps=2, batch_size=4, seed=1, progress=False,
                  optimizer=one.sentence.optimizer(), scheduler=schedule("cosine", 2))
    assert ml.evaluate(J, tasks, steps=(1,)).mean[0] == pytest.approx(one.errors[1], rel=1e-12)
    for name in ("tuned maml", "random"):                     # rivals are trained along it, too
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/search.db")
        assert study.user_attrs["of"]["schedule"] == "cosine"
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.pt")}
    again = end()
    assert [final.errors for final in again.finals] == [final.errors for final in first.finals]
    assert written == {file: file.stat().st_mtime_ns for file in written}
    assert set(RIVALS) <= set(REGRESSIONS)


def test_rivals_of_the_large_searches_are_the_best_that_were_measured(tmp_path, monkeypatch):
    def row(own_steps, *losses, diverged=()):
        losses = {str(k): {"mean": loss} for k, loss in zip((0, 1, 5), losses, strict=True)}
        return {"own_steps": own_steps, "loss": losses, "diverged": list(diverged)}
    rows = {"maml": row(1, 9.0, 0.6, 0.4), "ridge": row(0, 0.1, 0.7, 0.7), "blind": row(0, 0, 0, 0),
            "maml++": row(5, 3.0, 0.5, 0.01), "meta-sgd": row(1, 3.0, 0.3, None),
            "alfa": row(5, 0.0, 0.0, 0.0, diverged=[2])}     # no method with a name: blind
    (tmp_path / "measurement.json").write_text(json.dumps({"suites": {"bowls": {"rows": rows}}}))
    monkeypatch.setattr(large, "RESULTS", tmp_path)
    assert large.rivals("bowls", 1, 2) == ["ridge", "meta-sgd", "maml"]
    assert large.rivals("bowls", 5, 2) == ["maml++", "ridge", "maml"]


def test_a_head_is_solved_for_where_a_model_has_one():
    of = {suite: set(large.space_for(suite).choices["inner"].parts) for suite in large.BEDS}
    assert "Ridge" not in of["bowls"] and "Ridge" in of["sinusoids-5-shot"]


def test_the_large_searches_are_written_down_and_what_was_found_is_carried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(large, "rivals", lambda *rest: ["maml"])
    asked = ["--suites", "bowls", "patients-3-samples", "--trials", "2", "--steps", "2", "--seeds",
             "101", "102", "--finalists", "1", "--out", str(tmp_path / "runs")]
    large.main(asked)
    file = tmp_path / "results" / "design.json"
    record = json.loads(file.read_text())
    assert record["suites"].keys() == {"bowls", "patients-3-samples"}
    for found in record["suites"].values():
        assert {final["kind"] for final in found["finals"]} == {"found", "tuned", "published",
                                                                "random"}
        assert found["level"] == 0.95 and len(found["gaps"]) == 1 and found["verdict"]
    rows = designs(record).splitlines()
    assert sum(row.startswith("| bowls |") for row in rows) == 4
    assert sum("maml, tuned as long" in row for row in rows) == 2
    large.main([*asked, "--carry"])
    carried = json.loads(file.read_text())["carried"]
    there = carried["bowls"]["patients-3-samples"]
    assert "why not" in there or set(there["by seed"]) == {"101", "102"}
    assert carried.keys() == record["suites"].keys()
