"Who looks on while a model trains: what watchers are told, and when."
import importlib
import sys

import pytest
from helpers import maml, quick

import metalit as ml
from metalit.training.checkpoints import Progress
from metalit.training.watching import Board, Watcher, watched


class Told(Watcher):
    "Writes down all that it is told."
    def __init__(self, name="w", told=None, fails=None):
        self.name, self.told, self.fails = name, [] if told is None else told, fails

    def begin(self, progress, steps, batch_size):
        if self.fails: raise self.fails
        self.progress = progress
        self.told.append((self.name, "begin", steps, batch_size))

    def step(self, loss): self.told.append((self.name, "step", loss))
    def end(self, error): self.told.append((self.name, "end", error))


@pytest.mark.parametrize("error", [None, RuntimeError("x"), KeyboardInterrupt()])
def test_who_saw_the_begin_sees_the_end(error):
    told = []
    def run():
        with watched([Told("a", told), Told("b", told)], Progress(), 3, 4):
            if error: raise error
    if error:
        with pytest.raises(type(error)) as caught: run()
        assert caught.value is error
    else: run()
    assert told == [("a", "begin", 3, 4), ("b", "begin", 3, 4), ("b", "end", error),
                    ("a", "end", error)]


def test_a_begin_that_fails_ends_those_that_began():
    told, error = [], ValueError("no")
    by = [Told("a", told), Told("b", told), Told("c", told, error), Told("d", told)]
    with pytest.raises(ValueError, match="no"), watched(by, Progress(), 3, 4):
        told.append("inside")
    assert told[2:] == [("b", "end", error), ("a", "end", error)] and len(told) == 4


def test_a_run_tells_every_loss():
    watcher = Told()
    log = quick(maml(), steps=3, log_every=1, watch=watcher)
    losses = [("w", "step", row["meta_loss"]) for row in log]
    assert watcher.told == [("w", "begin", 3, 4), *losses, ("w", "end", None)]
    assert watcher.progress.step == 3


def test_a_used_up_budget_ends_without_error():
    watcher = Told()
    quick(maml(), steps=9, max_minutes=1e-9, watch=watcher)
    assert [event[1] for event in watcher.told] == ["begin", "step", "end"]
    assert watcher.told[-1][2] is None


def test_a_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="needs the package tensorboard"): Board(tmp_path, None)


def test_the_bar_keeps_off_stdout(capsys):
    quick(maml(), steps=2, progress=True)
    printed = capsys.readouterr()
    assert printed.out == "" and "meta-training" in printed.err


@pytest.mark.parametrize(("module", "name"), [("judge", "judge"), ("comparison", "compare"),
                                              ("compiled", "one_graph")])
def test_old_modules_warn(module, name):
    old = importlib.import_module(f"metalit.{module}")
    with pytest.warns(DeprecationWarning, match=f"metalit.{module}"):
        getattr(old, name) if name != "one_graph" else old.one_graph(maml())
    assert callable(ml.judge) and ml.judge.__module__ == "metalit.judging.judge"
