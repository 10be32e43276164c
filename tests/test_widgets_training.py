"""The figure of a training run without a browser.

What it tells, when, how a run ends, and that it changes nothing.
"""
import json
import re
import signal
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import in_javascript

import metalit as ml
from metalit.training.checkpoints import Progress
from metalit.training.watching import watched
from metalit.widgets import training as module
from metalit.widgets.training import pace, picture_of, training_run

TASKS = ml.tasks.Sinusoids(shots=4)


def small(seed=0):
    "A meta-loss that trains in no time."
    return ml.MAML(ml.models.mlp(1, 6, 1, seed=seed), F.mse_loss, lr=0.01)


def train(J, run, steps=20, **options):
    "A run without a bar."
    return ml.meta_train(J, TASKS, steps=steps, batch_size=4, progress=False, watch=run, **options)


@pytest.fixture
def told(monkeypatch):
    "News after every step, not every quarter of a second; and what the browser is sent."
    monkeypatch.setattr(module, "TELL", 0.0)
    sent = []
    def listen(run):
        def hear(change):
            sent.append(json.loads(json.dumps(change["new"]["history"], allow_nan=False)))
        run.observe(hear, "spec")
        return sent
    return listen


def test_before_training_the_untrained_network_is_there():
    J = small()
    run = training_run(J, TASKS, n_tasks=10, seed=3)
    found = ml.evaluate(J, TASKS, n_tasks=10, steps=range(6), seed=3)
    assert run.picture["now"] == {"step": 0, "mean": found.mean, "ci95": found.ci95}
    assert run.spec["history"]["words"].startswith("No training yet")
    assert run.still().startswith(b"\x89PNG")


def test_the_browser_hears_of_every_step_while_it_trains(told):
    J = small()
    run = training_run(J, TASKS, every=5, n_tasks=4)
    sent = told(run)
    log = train(J, run, log_every=5)
    steps = [history["step"] for history in sent]
    assert steps == sorted(steps) and {*range(1, 21)} <= {*steps}
    during = next(history for history in sent if history["step"] == 12)
    assert during["status"] == "training"
    assert during["words"].startswith("Training: meta-step 12 of 20, ")
    assert during["words"].endswith(" left.")
    assert [look["step"] for look in during["looks"]] == [0, 5, 10]
    assert during["loss"]["step"] == [5, 10]
    assert sent[-1]["status"] == "finished"
    assert re.match(r"Finished\. 20 meta-steps in \d+ s, ", sent[-1]["words"])
    assert [look["step"] for look in sent[-1]["looks"]] == [0, 5, 10, 15, 20]
    torch.testing.assert_close(sent[-1]["loss"]["value"], [row["meta_loss"] for row in log])
    assert sent[-1] == run.spec["history"] == json.loads(json.dumps(run.history))


def test_news_is_rare_and_looks_are_few_where_steps_are_quick(monkeypatch):
    run = training_run(small(), TASKS, n_tasks=4)
    news = []
    run.observe(lambda change: news.append(change["new"]), "spec")
    monkeypatch.setattr(module, "COST", -1.0)
    train(run.J, run, steps=100)
    assert len(news) < 20
    # the first and the last are always there
    assert [look["step"] for look in run.history["looks"]] == [0, 100]


def test_what_was_sent_does_not_change_when_the_run_goes_on(told):
    run = training_run(small(), TASKS, every=2, n_tasks=4)
    kept = []
    run.observe(lambda change: kept.append(change["new"]["history"]), "spec")
    train(run.J, run, steps=8)
    assert [len(history["looks"]) for history in kept] == sorted(len(history["looks"])
                                                                 for history in kept)
    assert len(kept[0]["looks"]) == 1
    assert len(kept[0]["loss"]["step"]) == 0


@pytest.mark.parametrize("dropout", [False, True])
def test_watching_changes_no_number_of_the_run(dropout):
    def trained(watch):
        layers = list(ml.models.mlp(1, 6, 1, seed=1))
        model = (torch.nn.Sequential(layers[0], torch.nn.Dropout(0.4), *layers[1:]) if dropout
                 else small().model)
        J = ml.MAML(model, F.mse_loss)
        log = train(J, training_run(J, TASKS, every=1, n_tasks=4) if watch else None, log_every=1)
        return [row["meta_loss"] for row in log], [parameter.detach().clone()
                                                   for parameter in J.parameters()]
    (losses, parameters), (losses_alone, alone) = trained(True), trained(False)
    assert losses == losses_alone
    for a, b in zip(parameters, alone, strict=True): assert torch.equal(a, b)


def test_an_interrupted_run_leaves_its_picture_and_says_so():
    J = small()
    run = training_run(J, TASKS, every=3, n_tasks=4)
    class Interrupting(ml.tasks.Sinusoids):
        def stream(self, *arguments):
            "Ctrl-C arrives in step 7: it only asks, and the step ends."
            for step, batch in enumerate(super().stream(*arguments)):
                if step == 7: signal.raise_signal(signal.SIGINT)
                yield batch
    with pytest.raises(KeyboardInterrupt):
        ml.meta_train(J, Interrupting(shots=4), steps=100, batch_size=4, progress=False, watch=run)
    history = run.spec["history"]
    assert history["status"] == "stopped"
    assert history["words"] == "Stopped after meta-step 8 of 100: it was interrupted."
    assert [look["step"] for look in history["looks"]] == [0, 3, 6]
    assert history["loss"]["step"] == [3, 6, 8]
    assert run.picture["now"]["step"] == 6


def test_a_run_that_diverges_says_where_and_shows_the_step():
    J = small()
    run = training_run(J, TASKS, every=1, n_tasks=4)
    with pytest.raises(ml.DivergedError):
        train(J, run, steps=300, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e6))
    history = run.spec["history"]
    assert history["status"] == "diverged"
    assert "DivergedError: the meta-loss is" in history["words"]
    assert history["loss"]["value"][-1] is None
    assert history["loss"]["step"][-1] == history["step"] + 1
    json.dumps(history, allow_nan=False)
    assert run.still().startswith(b"\x89PNG")
    assert "<script" in run.html()


def test_another_error_is_told_and_raised():
    run = training_run(small(), TASKS, n_tasks=4)
    with pytest.raises(OSError, match="disk full"), watched([run], Progress(), 10, 4):
        raise OSError("disk full")
    assert run.history["status"] == "failed"
    assert run.history["words"] == "Stopped after meta-step 0 of 10: OSError: disk full."


def test_a_run_that_ends_early_says_so():
    J = small()
    run = training_run(J, TASKS, every=5, n_tasks=4)
    train(J, run, steps=10**6, max_minutes=0.005)
    assert run.history["status"] == "ended"
    assert run.history["words"].startswith(
        "Ended early, at its patience or its budget: 1000000 were asked for."
    )
    assert run.history["looks"][-1]["step"] == run.history["step"] < 10**6


def test_validation_is_part_of_the_history():
    J = small()
    run = training_run(J, TASKS, n_tasks=4)
    train(J, run, validation=ml.Validation(TASKS, every=10, n_tasks=6))
    seen = run.history["validation"]
    assert seen["step"] == [10, 20]
    expected = ml.evaluate(J, TASKS, n_tasks=6, steps=(1,), seed=1_000_003)
    torch.testing.assert_close([seen["value"][-1], seen["ci95"][-1]],
                               [expected.mean[0], expected.ci95[0]])
    assert run.still().startswith(b"\x89PNG")


def test_a_resumed_run_goes_on_and_a_new_one_begins_anew(tmp_path):
    J = small()
    run = training_run(J, TASKS, every=5, n_tasks=4)
    train(J, run, steps=10, checkpoint=tmp_path)
    train(J, run, steps=20, checkpoint=tmp_path)
    assert [look["step"] for look in run.history["looks"]] == [0, 5, 10, 15, 20]
    assert run.history["loss"]["step"] == [5, 10, 15, 20]
    other = training_run(small(), TASKS, every=5, n_tasks=4)  # another figure, as in a new kernel
    train(other.J, other, steps=30, checkpoint=tmp_path, log_every=100)
    assert [look["step"] for look in other.history["looks"]] == [20, 25, 30]
    train(J, run, steps=5)
    assert [look["step"] for look in run.history["looks"]] == [0, 5]


def test_the_log_of_an_earlier_sitting_is_shown(tmp_path):
    first = small()
    log = train(first, None, steps=20, checkpoint=tmp_path, log_every=10)
    J = small()
    run = training_run(J, TASKS, every=5, n_tasks=4)
    train(J, run, steps=25, checkpoint=tmp_path, log_every=10)
    assert run.history["loss"]["step"] == [10, 20, 25]
    torch.testing.assert_close(run.history["loss"]["value"][:2], [row["meta_loss"] for row in log])


def test_the_slider_goes_back_through_the_history():
    J = small()
    run = training_run(J, TASKS, every=4, n_tasks=4)
    train(J, run)
    run.move(at=2)
    assert run.picture["now"] == run.history["looks"][2]
    assert run.picture["traces"] == [look["mean"] for look in run.history["looks"][:2]]


def test_the_browser_shows_what_python_shows():
    J = small()
    run = training_run(J, TASKS, every=1, n_tasks=4)
    states = [{"at": at} for at in (None, 0, 1, 7, 8, 9, 19, 20, 21, 99)]
    def check():
        assert in_javascript(run, *states) == [picture_of(run.history, state) for state in states]
    check()
    train(J, run)
    check()


def test_nothing_is_left_running():
    before = threading.active_count()
    run = training_run(small(), TASKS, every=2, n_tasks=4)
    train(run.J, run)
    assert threading.active_count() == before


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(TypeError, match="a MetaLoss is needed to be trained, not a Sequential"):
        training_run(ml.models.mlp(1, 1), TASKS)
    for name, least in (("every", 1), ("n_tasks", 2), ("inner_steps", 1)):
        with pytest.raises(ValueError, match=f"{name}=0: at least {least} is needed"):
            training_run(small(), TASKS, **{name: 0})
    with pytest.raises(RuntimeError, match="x of shape"):
        training_run(ml.MAML(ml.models.mlp(3, 1), F.mse_loss), TASKS)


def test_batches_of_their_own_size_are_counted_in_steps():
    assert pace(10, 0, 4, 2.0) == ", 20 tasks/s" and pace(10, 0, 0, 2.0) == ", 5 steps/s"


def test_a_figure_of_another_run_is_refused():
    J, run = small(), training_run(small(seed=1), TASKS, n_tasks=2)
    with pytest.raises(ValueError, match="follows another meta-loss"): train(J, run)
    assert run.history["status"] == "waiting"
