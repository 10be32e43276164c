"""A search for a meta-loss: judged first, within its budget, going on after it was stopped."""
import math
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import optuna
import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.designing import search as searching
from metalit.designing.search import (
    DOUBTS,
    LOOKS,
    Effort,
    Once,
    candidate,
    check_effort,
    design,
    ends_of,
    facts,
    left,
    origin,
    refusal,
    sampler_for,
    seconds_spent,
    shares_in,
    steps_spent,
    storage_at,
    taken_up,
    worst_of,
)
from metalit.designing.space import Space
from metalit.judging.recipes import schedule

ADAM = partial(torch.optim.Adam, lr=1e-3)
SINES, NET = ml.tasks.Sinusoids(shots=5), ml.models.mlp(1, 12, 1, seed=0)
BOWLS = ml.tasks.Quadratics(2)
FEW = Space(steps=1).only(inner=["SGD", "Sign", "Diagonal"], terms=["QueryLoss"], extras=[],
                          mask=["all of them"], pooling=["Mean", "Worst"])


def middle(seed): return ml.models.Point(torch.zeros(2, dtype=torch.float64))


def on_bowls(folder, **how):
    how = {"space": FEW, "steps": 9, "batch_size": 5, "n_tasks": 50, "judges": False} | how
    return design(BOWLS, middle, ml.tasks.half_square, folder=folder, **how)


def told(found): return [{name: value for name, value in row.items() if name != "seconds"}
                         for row in found.rows()]


# ---- judged before it is trained -----------------------------------------------------------------


class Cut(ml.Term):
    "A gradient that is cut where nobody meant it."
    def per_task(self, path, task):
        loss = path.loss(path.final, task.query)
        with torch.no_grad(): size = path.loss(path.final, task.query)
        return loss * size


class Against(ml.Term):
    "Its value rises along its own field."
    def per_task(self, path, task):
        loss = path.loss(path.final, task.query)
        return 2 * loss.detach() - loss


class Flat(ml.Term):
    def per_task(self, path, task): return 0 * path.loss(path.final, task.query)


class Broken(ml.Term):
    def per_task(self, path, task): raise RuntimeError("broken")


def asked(J, optimizer=ADAM): return refusal(candidate(J, SINES, optimizer, (1,)))


@pytest.mark.parametrize(("terms", "starts"), [
    (Cut(), "climbs? its gradient is not that of its value"),
    (Against(), "climbs? its value climbs along its own field"),
    (Flat(), "constant? constant: no batch"), (Broken(), "finite? cannot be asked: RuntimeError"),
    (ml.GradientNorm(), "rewards not adapting? solved by not adapting"),
    (ml.QueryLoss() + 10.0 * ml.GradientNorm(), "rewards not adapting?"),
], ids=lambda x: getattr(type(x), "__name__", None))
def test_what_is_hollow_is_refused(terms, starts):
    assert asked(ml.MAML(NET, F.mse_loss, terms=terms)).startswith(starts)


def test_what_cannot_live_is_refused():
    assert asked(ml.MAML(NET, F.mse_loss, lr=1e200, steps=3)).startswith("finite? not finite")
    soon = asked(ml.MAML(NET, F.mse_loss), partial(torch.optim.SGD, lr=10.0))
    assert soon.startswith("survives ten steps? 10 outer steps take the error from")


@pytest.mark.parametrize("J", [
    ml.MAML(NET, F.mse_loss), ml.FOMAML(NET, F.mse_loss), ml.Reptile(NET, F.mse_loss),
    ml.MetaSGD(NET, F.mse_loss), ml.BMG(NET, F.mse_loss), ml.ANIL(NET, F.mse_loss),
    ml.BOIL(NET, F.mse_loss, lr=0.01), ml.Leap(NET, F.mse_loss, steps=3), ml.L2F(NET, F.mse_loss),
    ml.MetaLoss(NET, F.mse_loss, inner=ml.SAM(0.05, 2)), ml.ConML(NET, F.mse_loss),
    ml.MetaLoss(NET, F.mse_loss, inner=ml.Adam(0.01, 2), gradient=ml.FirstOrder()),
    ml.MetaLoss(NET, F.mse_loss, inner=ml.Sign(0.01, 2), pooling=ml.Worst())],
    ids=lambda J: f"{type(J).__name__} {type(J.inner).__name__}")
def test_good_ones_are_not_refused(J):
    assert asked(J) == ""


def test_the_questions_do_not_change_what_they_ask():
    J = ml.MAML(NET, F.mse_loss)
    before = [p.detach().clone() for p in J.parameters()]
    asked(J)
    assert all(map(torch.equal, before, J.parameters()))
    assert list(DOUBTS) == ["finite?", "constant?", "rewards not adapting?", "climbs?",
                            "survives ten steps?"]


# ---- the search ----------------------------------------------------------------------------------


def test_with_one_worker_it_is_the_same_at_each_call(tmp_path):
    found = [on_bowls(tmp_path / name, trials=8, n_tasks=9) for name in "ab"]
    assert told(found[0]) == told(found[1])
    other = on_bowls(tmp_path / "c", trials=2, n_tasks=9, seed=1)
    assert told(found[0])[:2] != told(other)
    assert [len(told(each)) for each in found] == [8, 8]
    assert {"trained", "behind"} <= set(ends_of(found[0]))


def test_it_finds_the_best_rate_where_that_is_known(tmp_path):
    "λ uniform in [0.3, 2]: α* = E λ / E λ², and 0.0886 a dimension is the least error."
    found = on_bowls(tmp_path, trials=16, steps=9, n_tasks=300, batch_size=10)
    looked = BOWLS.held_out(300, LOOKS)
    least = min(ml.MAML(middle(0), ml.tasks.half_square, lr=0.05 * i).curve(looked, (1,)).mean()
                for i in range(8, 20)).item()
    assert 0.97 * least < found.best.values[0] < 1.15 * least


def test_a_search_that_is_stopped_between_trials_goes_on_as_if_it_had_not_been(tmp_path):
    whole = told(on_bowls(tmp_path / "whole", trials=5))

    def stop(search):
        if len(search.trials()) in (2, 4): raise KeyboardInterrupt
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): on_bowls(tmp_path / "parts", trials=5, tell=stop)
    found = on_bowls(tmp_path / "parts", trials=5)
    assert told(found) == whole
    assert told(on_bowls(tmp_path / "parts", trials=5)) == whole


def test_a_trial_that_is_interrupted_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole = on_bowls(tmp_path / "whole", meta_steps=40, steps=27)
    train, calls = searching.meta_train, []

    def interrupted(*args, **how):
        calls.append(how["checkpoint"])
        if len(calls) == 9: raise KeyboardInterrupt
        return train(*args, **how)
    monkeypatch.setattr(searching, "meta_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        on_bowls(tmp_path / "parts", meta_steps=40, steps=27)
    found = on_bowls(tmp_path / "parts", meta_steps=40, steps=27)
    again = [trial for trial in found.search.trials() if origin(trial) != trial.number]
    assert [origin(trial) for trial in again] == [0] and calls[8] == calls[9]
    assert told(found)[0] == told(whole)[0]
    assert steps_spent(found.search.trials()) == 40 == sum(row["meta_steps"] for row in told(found))


def test_a_worker_that_slept_leaves_its_trial_to_whoever_has_taken_it(tmp_path, monkeypatch):
    train, calls = searching.meta_train, []

    def slept(*args, **how):
        log = train(*args, **how)
        calls.append(how["checkpoint"])
        if len(calls) == 2:                                  # another one takes it for dead
            storage, state = study._storage, optuna.trial.TrialState
            trial = next(one for one in study.get_trials() if one.state == state.RUNNING)
            storage.set_trial_state_values(trial._trial_id, state=state.FAIL)
            taken_up(study, trial)
        return log
    study = on_bowls(tmp_path, trials=1, steps=1).search.study
    monkeypatch.setattr(searching, "meta_train", slept)
    found = on_bowls(tmp_path, trials=3, steps=1)
    assert len(told(found)) == 3 and ends_of(found) == {"trained": 3}
    tries = [origin(trial) for trial in found.search.trials()]
    assert sorted(tries) == [0, 1, 2, 2] and calls[1] == calls[2]


def without_a_sign(study):
    "A trial whose worker died before its first beat."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return study.ask()


def test_workers_that_die_before_their_first_beat_or_while_they_bury_another_are_seen(tmp_path):
    study = on_bowls(tmp_path, trials=1, steps=1).search.study
    without_a_sign(study)
    buried = without_a_sign(study)
    study._storage.set_trial_state_values(buried._trial_id, state=optuna.trial.TrialState.FAIL)
    found = on_bowls(tmp_path, trials=3, steps=1, beat=1)
    assert ends_of(found) == {"trained": 3}
    assert sorted(map(origin, found.search.trials())) == [0, 1, 1, 2, 2]
    states = {trial.number: trial.state.name for trial in found.search.trials()}
    assert (states[1], states[2]) == ("FAIL", "FAIL")


def test_the_file_is_one_s_own_in_a_transaction(tmp_path):
    "Two who look whether a trial waits, and then take it: one of them gets it."
    study = on_bowls(tmp_path, trials=1, steps=1).search.study
    for _ in range(10): study.enqueue_trial({})
    storages = [storage_at(f"sqlite:///{tmp_path}/search.db") for _ in range(2)]
    together = threading.Barrier(2)

    def take(waiting, storage):
        together.wait()
        return storage.set_trial_state_values(waiting, state=optuna.trial.TrialState.RUNNING)
    with ThreadPoolExecutor(2) as team:
        for trial in study.get_trials()[1:]:
            taken = team.map(partial(take, trial._trial_id), storages)
            assert sorted(taken) == [False, True]
    for storage in storages: storage.engine.dispose()


def test_the_budget_in_meta_steps_is_kept(tmp_path):
    found = on_bowls(tmp_path, meta_steps=43, steps=27)
    assert steps_spent(found.search.trials()) == 43
    assert left(found.search.trials(), found.search.effort) == 0


def test_the_budget_in_minutes_is_kept(tmp_path):
    found = on_bowls(tmp_path, minutes=0.04, steps=90)
    assert 2.4 * 0.95 < seconds_spent(found.search.trials()) < 2.4 * 1.05 + 0.3  # one look


def test_several_objectives_have_a_front_and_nothing_is_stopped(tmp_path):
    found = on_bowls(tmp_path, trials=5, objective=["error", "worst", "seconds"])
    assert ends_of(found) == {"trained": 5}
    rows = found.rows()
    assert all(row["worst"] > row["error"] > 0 and row["seconds"] > 0 for row in rows)
    ahead = {best.number for best in found.front()}
    assert min(rows, key=lambda row: row["error"])["number"] in ahead
    assert worst_of(torch.arange(40.0)) == 38.5


def test_the_best_is_a_module_a_program_and_words(tmp_path):
    found = on_bowls(tmp_path, trials=5)
    best, looked = found.best, BOWLS.held_out(50, LOOKS)
    assert best.J().curve(looked, (1,)).double().mean().item() == pytest.approx(best.values[0])
    assert ml.load(best.folder, best.made(0)).step == 9
    there = {"__name__": "a program"}
    exec(best.code(tasks="ml.tasks.Quadratics(2)"), there)
    task = BOWLS.batch(3)
    assert torch.equal(there["J"](task), best.made(0)(task))
    assert best.words() in str(found).replace("\n", " ") and "trained" in str(found)
    assert [one.values for one in found.finalists(2)] == sorted(
        one.values for one in found.finalists(99))[:2]
    assert found.picture().get_xlabel() == "candidate"


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_candidate_is_trained_along_the_schedule_and_so_is_its_program(tmp_path, kind):
    """Stopped at two rungs, and as a program in one go: both are the plain training."""
    found = on_bowls(tmp_path, trials=1, seed=3, schedule=kind)
    best = found.best
    right = best.made(3)
    scheduler = schedule(kind, 9)
    ml.meta_train(right, BOWLS, steps=9, batch_size=5, seed=3, optimizer=best.sentence.optimizer(),
                  scheduler=scheduler, progress=False)
    assert all(torch.equal(*pair) for pair in zip(best.J().parameters(), right.parameters(),
                                                  strict=True))
    constant = best.made(3)
    ml.meta_train(constant, BOWLS, steps=9, batch_size=5, seed=3,
                  optimizer=best.sentence.optimizer(), progress=False)
    assert not all(torch.equal(*pair) for pair in zip(constant.parameters(), right.parameters(),
                                                      strict=True))
    text = best.code(model="middle(3)", tasks="ml.tasks.Quadratics(2)")
    assert f"scheduler=schedule({kind!r}, 9))" in text
    there = {"__name__": "__main__", "middle": middle}
    exec(text.replace("seed=3,", "seed=3, batch_size=5, progress=False,"), there)
    assert all(torch.equal(*pair) for pair in zip(there["J"].parameters(), right.parameters(),
                                                  strict=True))
    with pytest.raises(ValueError, match=f"schedule was {kind}, now constant"):
        on_bowls(tmp_path, trials=1, seed=3)


def test_a_refused_candidate_is_not_trained_and_says_why(tmp_path):
    hollow = Space(steps=1).only(inner=["SGD"], terms=["QueryLoss"], extras=[], pooling=["Mean"],
                                 mask=["all of them"]).add("terms", Cut)
    hollow = hollow.only(terms=["Cut"])
    found = design(SINES, small, F.mse_loss, space=hollow, trials=2, steps=2, folder=tmp_path)
    assert ends_of(found) == {"refused": 2}
    assert all(row["why"].startswith("climbs?") and not row["meta_steps"] for row in found.rows())
    with pytest.raises(ValueError, match="no candidate was trained to its end: 2 refused"):
        _ = found.best
    asked_not = design(SINES, small, F.mse_loss, space=hollow, trials=2, steps=2, judges=False,
                       folder=tmp_path / "not")
    assert ends_of(asked_not) == {"trained": 2}


def small(seed): return ml.models.mlp(1, 6, 1, seed=seed)


def test_divergence_is_an_end(tmp_path):
    wild = Space(steps=5, outer=1e30).only(inner=["SGD"], extras=[], terms=["QueryLoss"])
    found = design(SINES, small, F.mse_loss, space=wild, trials=2, steps=9, judges=False,
                   folder=tmp_path)
    assert ends_of(found) == {"diverged": 2}


def test_what_another_trial_goes_on_with_does_not_prune():
    class Trial:
        def __init__(self, state): self.state = type("State", (), {"name": state})

    class Study:
        def get_trials(self, deepcopy): return [Trial("FAIL"), Trial("RUNNING")]
    assert [trial.state.name for trial in Once(Study()).get_trials(deepcopy=False)] == ["RUNNING"]


def test_importance_is_asked_within_a_branch(tmp_path):
    "Of trials that differ in the rate alone, all of the importance is the rate's."
    one = FEW.only(inner=["SGD"], pooling=["Mean"], gradient=["Exact"])
    one.choices["inner"].parts["SGD"].arguments["learn_lr"] = False
    one.outer = 1e-3
    found = on_bowls(tmp_path, trials=9, steps=1, space=one)
    assert found.importance()["all"] == {"SGD.lr": 1.0}
    assert found.importance()["inner SGD"] == {"SGD.lr": 1.0}
    assert shares_in(found.search.trials()[:1]) == {}


def test_workers_propose_different_points():
    draws = {worker: [sampler_for("random", 0, worker, trial)._rng.rng.random()
                      for trial in range(3)] for worker in (0, 1)}
    assert len({value for values in draws.values() for value in values}) == 6
    assert draws[1][0] == sampler_for("random", 0, 1, 0)._rng.rng.random()


@pytest.mark.parametrize(("how", "says"), [
    ({}, "a search needs an end"), ({"trials": 1, "steps": 0}, "steps=0: 1 or more"),
    ({"trials": 1, "inner_steps": ()}, "after how many steps of the inner loop"),
    ({"trials": 1, "objective": "eror"}, r"objective='eror' \(did you mean error\?\)"),
    ({"trials": 1, "sampler": "grid"}, "choose tpe or random"),
    ({"trials": 1, "schedule": "cosin"}, "cosine")])
def test_what_cannot_be_is_said_before_anything_is_made(tmp_path, how, says):
    with pytest.raises(ValueError, match=says): on_bowls(tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()


def test_another_search_in_the_same_place_is_refused(tmp_path):
    on_bowls(tmp_path, trials=1)
    with pytest.raises(ValueError, match="is of another run:\n  seed was 0, now 1"):
        on_bowls(tmp_path, trials=2, seed=1)
    assert len(told(on_bowls(tmp_path, trials=2))) == 2
    assert len(told(on_bowls(tmp_path, trials=1, seed=1, name="another"))) == 1


def test_tasks_to_judge_by_are_not_those_to_choose_by(tmp_path):
    given = ml.tasks.Given([(torch.ones(6, 1), torch.ones(6, 1))] * 6,
                           test=[(torch.ones(6, 1), torch.ones(6, 1))] * 2)
    with pytest.raises(ValueError, match="give it another family to choose by"):
        design(given, small, F.mse_loss, trials=1, folder=tmp_path)


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r'pip install "metalit\[design\]"'):
        on_bowls(tmp_path, trials=1)


def test_rungs_are_a_ninth_a_third_and_all():
    assert Effort(steps=1000).rungs == [112, 336, 1000]
    assert Effort(steps=9).rungs == [1, 3, 9] and Effort(steps=1).rungs == [1]
    assert Effort(steps=2).rungs == [1, 2]
    assert check_effort(Effort(minutes=1.0)).minutes == 1.0


def test_facts_of_a_trial_that_was_not_begun():
    class Trial:
        number, user_attrs, state = 7, {}, type("State", (), {"name": "WAITING"})
    assert facts(Trial()) == {} and origin(Trial()) == 7
    assert steps_spent([Trial()]) == 0 == seconds_spent([Trial()])
    assert math.isclose(left([Trial()], Effort(meta_steps=10)), 1.0)
