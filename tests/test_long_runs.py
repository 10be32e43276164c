"""Runs that last.

Killed twenty times, stopped early, out of time, two at once, or not the one in the folder.
"""
import builtins
import csv
import math
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import maml, quick, same

import metalit as ml
from metalit.training import (
    Validation,
    accuracy,
    checkpoints,
    evaluate,
    evaluation,
    stop_requested,
)
from metalit.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Progress,
    load_checkpoint,
    locked,
    save_checkpoint,
)

# A program that has imported everything already: each line "folder steps" forks a process which
# trains there.
SERVER = """
import os, sys, tempfile, torch
import torch.nn.functional as F
import metalit as ml
from metalit.training import Validation, accuracy
torch.set_num_threads(1)
def train(folder, steps):
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12).repeat_interleave(5)
    tasks = ml.tasks.Episodes(images, labels, ways=3, shots=1, queries=2)
    net = torch.nn.Sequential(torch.nn.Dropout(0.1), ml.models.Conv4(3, size=8, filters=4))
    J = ml.MAML(net, F.cross_entropy, lr=ml.schedule.Linear(0.4, 0.1),
                terms=ml.QueryLoss() + ml.schedule.Cosine(0.1, 0.0) * ml.ParameterDistance())
    ml.meta_train(J, tasks, steps=steps, batch_size=2,
                  checkpoint=folder, save_every=1, log_every=5, progress=False,
                  validation=Validation(tasks, every=7, n_tasks=6, metric=accuracy),
                  scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps))
# What is imported late is then here, too.
with tempfile.TemporaryDirectory() as folder: train(folder, 1)
for line in sys.stdin:
    folder, steps = line.split()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, int(steps))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    child: int | None = None

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def start(self, folder: Path, steps: int) -> int:
        "Starts a run, returns the number of its process."
        self.process.stdin.write(f"{folder} {steps}\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())
        return self.child

    def end(self) -> int:
        "Waits for the run, returns its exit code."
        code, self.child = int(self.process.stdout.readline()), None
        return code


@pytest.fixture
def server():
    server = Server()
    yield server
    if server.child: os.kill(server.child, signal.SIGKILL)   # a test has failed while it ran
    server.process.stdin.close()
    server.process.wait()
    server.process.stdout.close()
    server.process.stderr.close()


def contents(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def table(path: Path) -> list[dict]:
    "The rows of a CSV file, without wall time."
    return [{k: v for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader(path.read_text().splitlines())]


def writes_seen(path: Path, count: int, process: int) -> None:
    "Waits until a checkpoint has been written so many times more, or the process has ended."
    last = None
    while count and Path(f"/proc/{process}").exists():
        now = path.stat().st_ino if path.exists() else None
        if now != last: last, count = now, count - (last is not None)
        time.sleep(0.0005)


def test_killed_many_times_in_one_run_every_file_is_that_of_an_uninterrupted_run(tmp_path, server):
    chance, steps, kills, steps_at_kill = random.Random(0), 120, 0, set()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    server.start(whole, steps)
    assert server.end() == 0
    while kills < 12:
        process = server.start(killed, steps)
        writes_seen(killed / "checkpoint.pt", chance.choice((0, 1, 2, 3)), process)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        code = server.end()
        assert code in (0, -signal.SIGKILL), server.process.stderr.read()
        kills += code == -signal.SIGKILL
        if (killed / "checkpoint.pt").exists():
            steps_at_kill.add(
                load_checkpoint(killed / "checkpoint.pt", server_model())["progress"]["step"]
            )
        assert code, f"the run ended after {kills} kills: make it longer"
    server.start(killed, steps)
    assert server.end() == 0
    assert len(steps_at_kill) > 4
    for name in ("checkpoint.pt", "best.pt"):
        assert same(contents(whole / name), contents(killed / name))
    for name in ("log.csv", "validation.csv"): assert table(whole / name) == table(killed / name)
    assert [row["step"] for row in table(whole / "log.csv")] == [
        str(step) for step in range(5, 121, 5)
    ]
    assert [row["step"] for row in table(whole / "validation.csv")] == [
        str(s) for s in (*range(7, 120, 7), 120)
    ]
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}


def test_what_a_killed_run_left_half_written_is_swept_up_and_nothing_else(tmp_path):
    quick(maml(), steps=1, checkpoint=tmp_path)
    ours = {path.name for path in tmp_path.iterdir()}
    left = [f"{name}.123-0123abcd{checkpoints.PART}" for name in (*checkpoints.FILES, ".writable")]
    for name in (*left, "mine.txt", f"mine{checkpoints.PART}"): (tmp_path / name).write_bytes(b"x")
    with locked(tmp_path): pass
    assert {path.name for path in tmp_path.iterdir()} == ours | {"mine.txt",
                                                                 f"mine{checkpoints.PART}"}


def server_model() -> ml.MetaLoss:
    return ml.MAML(torch.nn.Sequential(torch.nn.Dropout(), ml.models.Conv4(3, size=8, filters=4)),
                   F.cross_entropy)


sines = ml.tasks.Sinusoids()
class Killed(BaseException):
    "Stands for a kill at an exact place; no part of the library catches it."


class Kills(ml.Watcher):
    def __init__(self, after: int): self.left = after

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0: raise Killed


@pytest.mark.parametrize("file", ["log.csv", "validation.csv", "checkpoint.pt", "best.pt"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_every_file_of_the_last_step(tmp_path, monkeypatch, file, when):
    "The last step is the one that no later step repairs."
    watch = Validation(sines, every=6, n_tasks=5)
    quick(maml(), steps=6, checkpoint=tmp_path / "whole", validation=watch)
    real = checkpoints.write_whole
    def write(path, content):
        if path.name == file and when == "before" and begun: raise Killed
        real(path, content)
        if path.name == file and when == "after" and begun: raise Killed
        if path.name == "checkpoint.pt": begun.append(True)
    begun = []
    monkeypatch.setattr(checkpoints, "write_whole", write)
    with pytest.raises(Killed):
        quick(maml(), steps=6, checkpoint=tmp_path / "killed", validation=watch, save_every=9)
    monkeypatch.undo()
    quick(maml(seed=1), steps=6, checkpoint=tmp_path / "killed", validation=watch, save_every=9)
    for name in ("checkpoint.pt", "best.pt"):
        assert same(contents(tmp_path / "whole" / name), contents(tmp_path / "killed" / name))
    assert table(tmp_path / "whole" / "validation.csv") == table(
        tmp_path / "killed" / "validation.csv"
    )
    assert (tmp_path / "killed" / "log.csv").exists()


def test_two_runs_in_one_folder_and_the_lock_of_a_killed_one(tmp_path, server):
    process = server.start(tmp_path, 100_000)
    writes_seen(tmp_path / "checkpoint.pt", 1, process)
    with pytest.raises(CheckpointError, match=r"another run is writing to .*: wait for it, or "
                       r"choose another folder"):
        quick(maml(), steps=5, checkpoint=tmp_path)
    os.kill(process, signal.SIGKILL)
    assert server.end() == -signal.SIGKILL
    with locked(tmp_path): pass
    assert not list(tmp_path.glob(".writable*"))


def test_the_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path): raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(CheckpointError, match="another run"), locked(tmp_path):
        pass


def looked(value):
    "An evaluation of two tasks that both have this loss."
    return evaluation.Evaluation([1], torch.full((2, 1), value), seed=0)


def test_early_stop_keeps_the_best_and_a_resumed_run_ends_at_once(tmp_path, monkeypatch):
    losses = iter([9.0, 3.0, 1.0, float("nan"), 2.0, 1.0, 0.5])  # the first is a try
    def found(J, tasks, **options): return looked(next(losses))
    monkeypatch.setattr(evaluation, "evaluate", found)
    watch = Validation(sines, every=2, n_tasks=2, patience=3)
    log = quick(J := maml(), steps=100, checkpoint=tmp_path, validation=watch, log_every=1)
    assert len(log) == 10
    assert [row["step"] for row in table(tmp_path / "validation.csv")] == ["2", "4", "6", "8", "10"]
    assert contents(tmp_path / "best.pt")["progress"]["step"] == 4
    quick(early := maml(), steps=4)
    assert same(contents(tmp_path / "best.pt")["J"], early.state_dict())
    assert next(losses) == 0.5
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("looked again"))
    K = maml(seed=5)
    assert quick(K, steps=100, checkpoint=tmp_path, validation=watch, log_every=1) == log
    assert same(K.state_dict(), J.state_dict())


def test_a_first_look_that_is_no_number_is_never_the_best(monkeypatch):
    state = Progress(step=2)
    watch = Validation(sines, every=2, patience=2)
    for step, value in ((2, float("nan")), (4, float("inf")), (6, 5.0)):
        state.step = step
        found = looked(value)
        monkeypatch.setattr(evaluation, "evaluate", lambda *_, found=found, **__: found)
        assert watch.look(maml(), state) == (step == 6)
        assert watch.exhausted(state) == (step == 4)
    assert state.best["step"] == 6


def test_more_is_better_for_accuracy_and_where_told(monkeypatch):
    values = iter([0.5, 0.7, 0.6])
    monkeypatch.setattr(evaluation, "evaluate",
                        lambda *_, **__: looked(next(values)))
    watch, state = Validation(sines, metric=accuracy), Progress()
    assert [watch.look(maml(), state) for _ in range(3)] == [True, True, False]
    assert Validation(sines).maximize is False
    assert Validation(sines, metric=F.l1_loss, maximize=True).maximize is True


def test_a_look_measures_held_out_tasks_and_leaves_training_as_it_was(tmp_path):
    J, K = (ml.MAML(torch.nn.Sequential(torch.nn.Dropout(0.2), ml.models.mlp(1, 8, 1)), F.mse_loss)
            for _ in "ab")
    quick(J, steps=4)
    quick(K, steps=4, checkpoint=tmp_path,
          validation=Validation(sines, every=1, n_tasks=5, steps=0))
    assert same(J.state_dict(), K.state_dict())
    net = maml()
    quick(net, steps=2, checkpoint=tmp_path / "plain",
          validation=Validation(sines, every=2, n_tasks=7, steps=3))
    expected = evaluate(net, sines, n_tasks=7, steps=(3,), seed=1_000_003)
    row = table(tmp_path / "plain" / "validation.csv")[0]
    assert (float(row["validation"]), float(row["ci95"])) == (expected.mean[0], expected.ci95[0])


def test_the_tasks_that_choose_are_not_those_that_judge():
    "Of a family without end; `evaluate` and `compare` judge by seeds from 0 on."
    net, watch = maml(), Validation(sines, n_tasks=20, steps=1)
    assert watch.look(net, state := Progress()) and state.validation[0]["validation"] == evaluate(
        net, sines.held_out(20, seed=watch.seed), steps=(1,)).mean[0]
    chose, judge = (sines.held_out(20, seed=seed).query.y for seed in (watch.seed, 0))
    assert not (chose[:, None] == judge).all((-2, -1)).any()
    assert Validation(sines, seed=3).seed == 3


@pytest.mark.parametrize("wrong", [{"every": 0}, {"patience": 0}, {"n_tasks": 1}, {"batch_size": 0},
                                   {"steps": -1}])
def test_a_validation_that_cannot_be_is_an_error_before_training(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="): Validation(sines, **wrong)


@pytest.fixture
def clock(monkeypatch):
    "Every look at the clock takes 3 s, so a step takes 3 s: from one look to the next."
    now = [0.0]
    def tick():
        now[0] += 3
        return now[0]
    monkeypatch.setattr(time, "perf_counter", tick)


@pytest.mark.usefixtures("clock")
def test_a_budget_counts_over_resumed_runs_and_ends_at_once_when_used_up(tmp_path):
    budget = partial(quick, steps=100, checkpoint=tmp_path, log_every=1, save_every=50)
    assert len(budget(maml(), max_minutes=0.5)) == 10
    assert contents(tmp_path / "checkpoint.pt")["progress"]["step"] == 10
    assert len(budget(maml(seed=1), max_minutes=0.5)) == 10
    J = maml(seed=2)
    log = budget(J, max_minutes=1)
    assert [row["seconds"] for row in log] == [3.0 * n for n in range(1, 21)]
    quick(K := maml(), steps=20)
    assert same(J.state_dict(), K.state_dict())


@pytest.mark.usefixtures("clock")
def test_the_budget_counts_looks_at_validation_tasks(tmp_path):
    log = quick(maml(), steps=100, log_every=1, max_minutes=0.5,
                validation=Validation(sines, every=1, n_tasks=2))
    assert len(log) == 5                                     # a step and a look take 6 s
    with pytest.raises(ValueError, match="max_minutes=0: a finite number above 0"):
        quick(maml(), steps=1, max_minutes=0)


def test_a_schedule_goes_on_where_it_was(tmp_path):
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=12)
    rates = []
    for steps in (5, 12):
        optimizer = torch.optim.Adam((J := maml(seed=steps)).parameters(), lr=1e-2)
        quick(J, steps=steps, optimizer=optimizer, scheduler=cosine, checkpoint=tmp_path)
        rates.append(optimizer.param_groups[0]["lr"])
    quick(K := maml(seed=5), steps=12, optimizer=partial(torch.optim.Adam, lr=1e-2),
          scheduler=cosine)
    assert same(J.state_dict(), K.state_dict())
    assert rates == pytest.approx([0.005 * (1 + math.cos(5 * math.pi / 12)), 0])


def scheduled() -> ml.MetaLoss:
    "Its inner step size falls, and so do the weights of both terms, one along a function of ours."
    return maml(lr=ml.schedule.Linear(0.1, 0.01), terms=later * ml.QueryLoss()
                + ml.schedule.Cosine(0.5, 0.1, until=0.5) * ml.GradientNorm())


def later(step: int, steps: int) -> float: return 1 + step / steps


def test_a_run_whose_numbers_change_is_killed_and_goes_on_bit_for_bit(tmp_path):
    run = partial(quick, steps=12, log_every=3, save_every=4)
    run(J := scheduled(), checkpoint=tmp_path / "whole")
    with pytest.raises(Killed):
        run(scheduled(), checkpoint=tmp_path / "killed", watch=Kills(after=7))
    at_four = contents(tmp_path / "killed" / "checkpoint.pt")
    assert at_four["progress"]["step"] == 4
    lr = 0.1 + (0.01 - 0.1) * 3 / 11                         # of the fourth step
    weights = [1 + 3 / 12, 0.3 + 0.2 * math.cos(math.pi * 3 / 5.5)]
    assert at_four["numbers"]["inner"] == {"lr": pytest.approx(lr)}
    assert list(at_four["numbers"]["terms"].values()) == pytest.approx(weights)
    run(K := scheduled(), checkpoint=tmp_path / "killed")
    whole, killed = (contents(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert same(whole, killed)
    assert killed["numbers"]["inner"]["lr"] == K.inner.lr == J.inner.lr == pytest.approx(0.01)
    constant = maml(lr=0.1, terms=ml.QueryLoss() + 0.5 * ml.GradientNorm())
    quick(constant, steps=12)
    assert not same(constant.state_dict(), K.state_dict())   # what changes makes a difference


def test_what_is_evaluated_from_a_checkpoint_has_the_numbers_of_its_step(tmp_path):
    run = partial(quick, log_every=3, save_every=4)
    run(J := scheduled(), steps=12, checkpoint=tmp_path)
    load_checkpoint(tmp_path / "checkpoint.pt", K := scheduled())
    assert (K.inner.lr, K.terms.weights) == (J.inner.lr, J.terms.weights)
    found, expected = (evaluate(which, sines, n_tasks=5).mean for which in (K, J))
    assert found == expected


def test_a_schedule_that_is_a_function_is_the_same_run_in_another_process(tmp_path):
    "Its address in memory is not what the run is; how many steps there are is."
    def fading(step, steps): return 1 / (1 + step)
    quick(maml(lr=fading), steps=3, checkpoint=tmp_path)
    def fading(step, steps): return 1 / (1 + step)
    quick(maml(lr=fading), steps=3, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"lr was .*fading\(\), now Linear\(start=0.1, end"):
        quick(maml(lr=ml.schedule.Linear(0.1, 0.0)), steps=3, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"  steps.inner.lr was 3, for a schedule, now 4,"):
        quick(maml(lr=fading), steps=4, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=r"steps.inner.lr was 3"):
        quick(maml(lr=fading), steps=4, checkpoint=tmp_path, allow={"steps"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_files_hold_the_log_also_of_a_resumed_run(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = Validation(sines, every=4, n_tasks=3)
    logged = partial(quick, steps=12, checkpoint=tmp_path, log_every=1, save_every=4,
                     tensorboard=True, validation=watch)
    with pytest.raises(Killed): logged(maml(), watch=Kills(after=6))
    log = logged(maml())  # steps 4 and 5 again: they came after the checkpoint
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    found = events.Scalars("meta_loss")
    assert [event.step for event in found] == list(range(1, 13))
    assert [event.value for event in found] == pytest.approx([row["meta_loss"] for row in log],
                                                             rel=1e-6)
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([1e-3] * 12)
    assert [event.step for event in events.Scalars("validation")] == [4, 8, 12]


def test_tensorboard_without_its_package_or_a_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="tensorboard=True needs the folder of a run"):
        quick(maml(), steps=1, tensorboard=True)
    real = builtins.__import__
    def without(name, *rest):
        if name.startswith("torch.utils.tensorboard"): raise ImportError(name)
        return real(name, *rest)
    quick(maml(), steps=2, checkpoint=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"needs the package tensorboard: pip install 'metalit\[tensorboard\]'"
    ):
        quick(maml(), steps=1, tensorboard=True, checkpoint=tmp_path, resume=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


sgd = partial(torch.optim.SGD, lr=0.1)
step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=10)


@pytest.mark.parametrize(
    ("J", "options", "message"),
    [(ml.FOMAML(ml.models.mlp(1, 8, 1), F.mse_loss), {},
      r"J\.class was metalit\.methods\.MAML, now .*FOMAML\n  J\.gradient was Exact"),
     (maml(lr=0.5), {}, r"  J\.inner\.lr was 0\.01, now 0\.5"),
     (maml(steps=3), {}, r"  J\.inner\.steps was 1, now 3"),
     (maml(), {"tasks": ml.tasks.Sinusoids(shots=7)}, r"  tasks\.shots was 5, now 7"),
     (maml(width=9), {}, r"  J\.model\.0\.weight was float32 \(8, 1\), now float32 \(9, 1\)"),
     (maml(), {"optimizer": sgd}, r"  optimizer was Adam\(lr=0\.001.*, now SGD\(lr=0\.1"),
     (maml(), {"optimizer": partial(torch.optim.Adam, lr=0.5)},
      r"  optimizer\.lr was 0\.001, now 0\.5"),
     (maml(), {"scheduler": step_lr},
      r"  scheduler was None, now StepLR\(step_size=10, gamma=0\.1\)"),
     (maml(), {"validation": Validation(sines, n_tasks=3)},
      r"  validation\.n_tasks was 2, now 3\n")],
    ids=["method", "inner lr", "inner steps", "tasks", "model", "optimizer", "outer lr",
         "scheduler", "validation"]
)
def test_a_checkpoint_of_another_run_names_the_difference_and_changes_nothing(
    tmp_path, J, options, message
):
    quick(maml(), steps=2, checkpoint=tmp_path, validation=Validation(sines, n_tasks=2))
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    before = {name: value.clone() for name, value in J.state_dict().items()}
    options = {"validation": Validation(sines, n_tasks=2)} | options
    with pytest.raises(CheckpointError, match=message):
        quick(J, steps=4, checkpoint=tmp_path, **options)
    assert same(before, J.state_dict())
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_images_that_differ_in_one_pixel_are_other_tasks(tmp_path):
    images = torch.zeros(20, 1, 4, 4, dtype=torch.uint8)
    labels = torch.arange(5).repeat_interleave(4)
    J = ml.MAML(torch.nn.Sequential(torch.nn.Flatten(), ml.models.mlp(16, 2)), F.cross_entropy)
    two = partial(ml.tasks.Episodes, labels=labels, ways=2)
    quick(J, tasks=two(images), steps=2, checkpoint=tmp_path)
    quick(J, tasks=two(images), steps=3, checkpoint=tmp_path)
    images[7, 0, 1, 2] = 1
    with pytest.raises(CheckpointError, match=r"  tasks\.images was uint8 \(20"):
        quick(J, tasks=two(images), steps=4, checkpoint=tmp_path)


def test_a_checkpoint_of_an_older_version_goes_on_if_it_is_told_to(tmp_path):
    "It had no validation rows, no best, and said less of what the run is made of."
    quick(maml(), steps=3, checkpoint=tmp_path)
    old = contents(tmp_path / "checkpoint.pt")
    for name in ("validation", "best"): del old["progress"][name]
    for name in ("version", "run", "base"): del old[name]
    old["settings"] = {name: old["settings"][name] for name in ("seed", "batch_size", "log_every")}
    torch.save(old, tmp_path / "checkpoint.pt")              # and no seal
    go_on = partial(quick, steps=6, checkpoint=tmp_path,
                    validation=Validation(sines, every=2, n_tasks=2))
    with pytest.raises(CheckpointError, match=r"written by an older metalit"): go_on(maml())
    go_on(J := maml(seed=1), allow={"identity"})
    quick(K := maml(), steps=6)
    assert same(J.state_dict(), K.state_dict())
    assert contents(tmp_path / "best.pt")["progress"]["step"] in (4, 6)


def test_parameters_alone_are_no_run(tmp_path):
    save_checkpoint(tmp_path / "checkpoint.pt", maml())
    with pytest.raises(CheckpointError, match="holds parameters, but no run that could go on"):
        quick(maml(), steps=1, checkpoint=tmp_path)


def test_starting_over_leaves_nothing_of_the_older_run(tmp_path):
    quick(maml(), steps=4, checkpoint=tmp_path, log_every=1,
          validation=Validation(sines, every=2, n_tasks=2))
    assert (tmp_path / "best.pt").exists()
    quick(J := maml(), steps=0, checkpoint=tmp_path, resume=False)
    assert not (tmp_path / "best.pt").exists()
    assert not (tmp_path / "validation.csv").exists()
    assert table(tmp_path / "log.csv") == []
    assert same(contents(tmp_path / "checkpoint.pt")["J"], J.state_dict())


def test_one_altered_bit_anywhere_is_noticed(tmp_path):
    "Every third byte of a small file, bits in turn: what still loads is what was saved."
    path, J = tmp_path / "checkpoint.pt", ml.MAML(ml.models.mlp(1, 1), F.mse_loss)
    save_checkpoint(path, J)
    whole, noticed = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(bytes(content))
        K = ml.MAML(ml.models.mlp(1, 1, seed=1), F.mse_loss)
        try: load_checkpoint(path, K)
        except CheckpointError: noticed += 1
        else: assert same(J.state_dict(), K.state_dict())
    assert noticed > 0.95 * len(whole) / 3


def test_saving_counts_on_its_order(tmp_path, monkeypatch):
    "checkpoint.pt is written last, and by a new run first: what it speaks of is there."
    order = []
    real, unlink = checkpoints.write_whole, Path.unlink
    monkeypatch.setattr(checkpoints, "write_whole",
                        lambda path, bits: (order.append(path.name), real(path, bits)))
    monkeypatch.setattr(Path, "unlink",
                        lambda path, **o: (order.append(f"- {path.name}"), unlink(path, **o)))
    J = maml()
    run = Checkpoints(tmp_path, J, torch.optim.Adam(J.parameters()), {})
    run.save(Progress(validation=[{"step": 1, "validation": 2.0}]))
    assert order[-1] == "checkpoint.pt"
    assert sorted(order) == ["checkpoint.pt", "log.csv", "validation.csv"]
    order.clear()
    run.begin(Progress())
    assert order == ["checkpoint.pt", "- best.pt", "log.csv", "- validation.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts_unless_it_comes_at_once(monkeypatch, number):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = signal.getsignal(number)
    with stop_requested() as asked:
        assert not asked()
        for now[0] in (0.0, 0.5): signal.raise_signal(number)
        assert asked()
        now[0] = 1.5
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(number)
    assert signal.getsignal(number) == before
