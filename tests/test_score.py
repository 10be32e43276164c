"""A score for a file that defines a meta-loss: one number, always, whatever the file does."""
import json
import math
import random
import sys
from functools import partial

import pytest
import torch
from helpers import metalit

import metalit as ml
from metalit.designing import scoring
from metalit.designing.scoring import (
    LOOKS,
    SCORED_ON,
    child,
    defined_in,
    limit_memory,
    outcome_of,
    score,
    score_of,
    scored_here,
    setting_for,
)

GOOD = "def make(model, loss): return ml.MAML(model, loss, lr=0.1)\n"


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.py"):
        (tmp_path / name).write_text("import os, sys, torch, metalit as ml\n" + text)
        return tmp_path / name
    return write


def test_a_score_is_one_over_one_plus_the_error():
    assert [score_of(error) for error in (0.0, 1.0, 3.0)] == [1.0, 0.5, 0.25]
    assert score_of(None) == score_of(math.nan) == score_of(math.inf) == 0.0
    assert outcome_of(math.nan, {"ci95": math.nan}) == {
        "combined_score": 0.0, "error": None, "problem": "the error is not finite"}
    assert outcome_of(None, {"refused": "hollow"})["problem"] == ""


def test_it_is_the_error_of_a_training_by_hand(written):
    found = scored_here(written(GOOD), tasks="bowls", steps=5, seconds=None)
    setting = SCORED_ON["bowls"]
    J = ml.MAML(setting.model(0), setting.loss, lr=0.1)
    ml.meta_train(J, setting.tasks, steps=5, progress=False)
    error = ml.evaluate(J, setting.tasks, steps=(1,), seed=LOOKS).mean[0]
    assert found["error"] == pytest.approx(error, rel=1e-12)
    assert found["combined_score"] == 1 / (1 + found["error"]) and found["meta_steps"] == 5
    assert found["verdicts"]["rewards not adapting?"] == "no" and found["problem"] == ""
    json.dumps(found, allow_nan=False)


def test_a_file_may_say_its_optimizer(written):
    own = "def optimizer(parameters): return torch.optim.SGD(parameters, lr=0.0)\n"
    found = scored_here(written(GOOD + own), tasks="bowls", steps=3, seconds=None)
    setting = SCORED_ON["bowls"]
    still = ml.evaluate(ml.MAML(setting.model(0), setting.loss, lr=0.1), setting.tasks, steps=(1,),
                        seed=LOOKS).mean[0]
    assert found["error"] == still


def test_what_is_hollow_gets_nothing_and_a_reason(written):
    hollow = written("def make(model, loss): return ml.MAML(model, loss, terms=ml.GradientNorm())")
    found = scored_here(hollow, tasks="bowls", steps=5)
    assert found["combined_score"] == 0.0 and found["error"] is None
    assert found["refused"].startswith("rewards not adapting?")


@pytest.mark.parametrize(("text", "error", "says"), [
    ("x = 1", ValueError, r"defines no make\(model, loss\)"),
    ("def make(model, loss): return model", TypeError, "make returned a Point"),
    ("def make(model, loss): raise KeyError('gone')", KeyError, "gone"),
    ("def make(model", SyntaxError, "was never closed")])
def test_in_this_process_errors_are_raised(written, text, error, says):
    with pytest.raises(error, match=says): scored_here(written(text), tasks="bowls", steps=1)
    with pytest.raises(ValueError, match=r"no tasks 'bowl' \(did you mean bowls\?\)"):
        setting_for("bowl")
    assert "make" in defined_in(written(GOOD))


def here(arguments, limit):
    "In the place of a process of its own: the same, in this one."
    before, sys.argv = sys.argv, ["-c", *arguments[:3], "0"]
    try: child()
    finally: sys.argv = before
    return "it ended"


def test_what_goes_wrong_becomes_a_number_and_a_reason(written, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "in_child", here)
    ask = partial(score, tasks="bowls", steps=2)
    assert ask(written(GOOD))["meta_steps"] == 2
    assert ask(tmp_path / "none.py")["problem"].startswith("FileNotFoundError")
    assert ask(written("raise SystemExit(3)"))["problem"] == "SystemExit: 3"
    assert ask(written("def make(model, loss): return 1"))["problem"].startswith("TypeError: make")
    output = metalit("score", written(GOOD), "--tasks", "bowls", "--steps", 4)
    assert output.count("\n") == 1 and json.loads(output)["meta_steps"] == 4


def test_a_process_that_ends_too_early(written):
    found = score(written("print('{}')\nos._exit(7)"), tasks="bowls", steps=1)
    assert found["combined_score"] == 0.0 and "ended with 7" in found["problem"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are those of Linux")
def test_too_long_and_too_much(written):
    late = written("while True: pass")
    assert score(late, seconds=0.5, grace=1)["problem"].startswith("killed after")
    much = written("def make(model, loss): return torch.ones(2**32)")
    assert "memory" in score(much, tasks="bowls", memory=1.0)["problem"]
    limit_memory(0)                                          # no limit for this process


# ---- a scripted proposer -------------------------------------------------------------------------

LEAVES = {"q": "path.loss(path.final, task.query)", "s": "path.loss(path.final, task.support)",
          "m": "sum(((path.final[n] - p) ** 2).sum() for n, p in path.theta.items())"}


def grown(chance, depth):
    if depth == 0 or chance.random() < 0.3: return chance.choice(list(LEAVES))
    if chance.random() < 0.4: return f"torch.log1p({grown(chance, depth - 1)})"
    return f"({grown(chance, depth - 1)} {chance.choice('+*')} {grown(chance, depth - 1)})"


def test_a_proposer_of_expressions_gets_a_score_for_each(written):
    chance, found = random.Random(0), {}
    for tree in ["q", "m", *(grown(chance, 2) for _ in range(2))]:
        names = "".join(f"        {leaf} = {code}\n" for leaf, code in LEAVES.items())
        term = ("class Evolved(ml.Term):\n    def per_task(self, path, task):\n" + names
                + f"        return {tree}\n")
        file = written(term + "def make(model, loss):\n"
                       "    return ml.MetaLoss(model, loss, inner=ml.SGD(0.1), terms=Evolved())\n")
        found[tree] = scored_here(file, tasks="bowls", steps=4, seconds=None)
    assert found["q"]["combined_score"] > 0.3 and not found["q"]["refused"]
    assert found["m"]["refused"].startswith("rewards not adapting?")
    assert all(0 <= one["combined_score"] < 1 for one in found.values())
    assert torch.tensor([one["combined_score"] for one in found.values()]).isfinite().all()
