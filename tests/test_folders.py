"""The folder of a run: what fails leaves it as it was, and what is not ours stays.

And the counts of faults that `python -m benchmarks.faults` prints, here with small numbers.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
import torch.nn.functional as F
from helpers import maml, metalit, quick, same

import metalit as ml
from benchmarks import folders
from metalit.training import Validation, checkpoints
from metalit.training.checkpoints import (
    CheckpointError,
    DivergedError,
    load_checkpoint,
    locked,
    parameters_file,
    save_checkpoint,
)

sines = ml.tasks.Sinusoids()


def snapshot(folder: Path) -> dict | None:
    "Every name and every byte below a folder; None where there is none."
    if not folder.exists(): return None
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}


class Wide(ml.tasks.Sinusoids):
    "Inputs of two numbers, for a model that reads one."
    def draw(self, n_tasks, random):
        task = super().draw(n_tasks, random)
        return task.map(lambda tensor: torch.cat([tensor, tensor], -1))


class Holes(ml.tasks.Sinusoids):
    def draw(self, n_tasks, random):
        task = super().draw(n_tasks, random)
        task.query.y[0, 0] = float("nan")
        return task


class Gone(ml.tasks.Sinusoids):
    def draw_held_out(self, n_tasks, random): raise OSError("the file of unseen tasks is gone")


class NoGraph(ml.MAML):
    "Stands for a machine without a compiler: the first call of the graph fails."
    def compile(self, **options):
        def fails(task): raise RuntimeError("no C++ compiler")
        self._compiled = fails


FAILURES = {
    "device": ({"device": "toaster"}, ValueError), "sizes": ({"tasks": Wide()}, RuntimeError),
    "data": ({"tasks": Holes()}, ValueError), "optimizer": ({"optimizer": "adam"}, TypeError),
    "compiler": ({"J": NoGraph(ml.models.mlp(1, 8, 1), F.mse_loss), "compile": True}, RuntimeError),
    "a lambda": ({"J": ml.MAML(ml.models.mlp(1, 8, 1), lambda p, y: 0)}, ValueError),
    "chunks and compiling": ({"J": maml(chunk_size=2), "compile": True}, ValueError),
    "validation": ({"validation": Validation(Gone(), every=2)}, OSError),
    "blows up at once": ({"J": maml(lr=1e30, steps=9)}, DivergedError),
}
IN_A_RUN = {
    "another rate": ({"optimizer": partial(torch.optim.Adam, lr=0.5)}, CheckpointError),
    "another model": ({"J": maml(width=9)}, CheckpointError),
    "other numbers": ({"J": maml().double()}, CheckpointError),
    "too few steps": ({"steps": 1}, CheckpointError),
    "a patience of another measure": ({"validation": Validation(sines)}, CheckpointError),
}


def fails(folder, options, error):
    "A call that fails, and leaves the folder, J, the optimizer and random numbers as they were."
    J = options.get("J") or maml()
    given = {"steps": 9} | {name: value for name, value in options.items() if name != "J"}
    optimizer = torch.optim.SGD(J.parameters(), lr=0.1, momentum=0.5)
    given = {"optimizer": optimizer, "scheduler": partial(
        torch.optim.lr_scheduler.LinearLR, start_factor=0.5)} | given
    groups = [dict(group) for group in optimizer.param_groups]
    before, random = snapshot(folder), torch.get_rng_state()
    state = {name: value.clone() for name, value in J.state_dict().items()}
    with pytest.raises(error): quick(J, checkpoint=folder, **given)
    assert snapshot(folder) == before
    assert same(J.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), random)
    return groups, optimizer


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_leaves_no_trace_where_nothing_was(tmp_path, name):
    fails(tmp_path / "a" / "new one", *FAILURES[name])
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", *FAILURES[name])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    fails(tmp_path / "mine", *FAILURES[name])


@pytest.mark.parametrize("name", FAILURES | IN_A_RUN)
@pytest.mark.parametrize("resume", [True, False])
def test_what_fails_leaves_every_byte_of_a_run(tmp_path, name, resume):
    if name in IN_A_RUN and not resume: return               # a new run may be another one
    quick(maml(), steps=2, checkpoint=tmp_path, validation=Validation(sines, every=2, n_tasks=2))
    options, error = (FAILURES | IN_A_RUN)[name]
    fails(tmp_path, options | {"resume": resume}, (CheckpointError, error) if resume else error)


def test_a_run_that_goes_on_compiled_and_cannot_is_as_it_was(tmp_path):
    def J(seed): return NoGraph(ml.models.mlp(1, 8, 1, seed=seed), F.mse_loss)
    quick(J(0), steps=2, checkpoint=tmp_path, optimizer=partial(torch.optim.SGD, lr=0.1,
                                                                momentum=0.5))
    options = {"J": J(1), "compile": True, "scheduler": None}
    with pytest.warns(UserWarning, match="compiled was False, now True"):
        _, optimizer = fails(tmp_path, options, RuntimeError)
    assert not optimizer.state


def test_an_optimizer_that_a_scheduler_has_changed_is_given_back(tmp_path):
    quick(maml(), steps=2, checkpoint=tmp_path)
    groups, optimizer = fails(tmp_path, {}, CheckpointError)
    assert groups == optimizer.param_groups


@pytest.mark.parametrize("name", checkpoints.RUN_FILES[1:])
def test_files_of_our_names_without_a_checkpoint_are_somebody_elses(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    before = snapshot(tmp_path)
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=f"holds {name}, but no checkpoint .* move it"):
            quick(maml(), steps=1, checkpoint=tmp_path, resume=resume)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("content", [b"a shopping list", None])
def test_a_checkpoint_that_is_not_ours_is_not_replaced(tmp_path, content):
    if content: (tmp_path / "checkpoint.pt").write_bytes(content)
    else: torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="It is not deleted: move it away yourself"):
        quick(maml(), steps=1, checkpoint=tmp_path, resume=False)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_a_best_of_an_earlier_run_is_never_loaded(tmp_path, monkeypatch, seed):
    "A new run that is killed just after its first checkpoint, before the older best is removed."
    watch = Validation(sines, every=2, n_tasks=2)
    quick(maml(), steps=2, checkpoint=tmp_path, validation=watch)
    assert parameters_file(tmp_path).name == "best.pt"
    assert parameters_file(tmp_path, "last").name == "checkpoint.pt"
    class Killed(BaseException): pass
    def killed(path, missing_ok=False):
        if path.name == "best.pt": raise Killed
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Killed):
        quick(maml(seed=seed), steps=2, checkpoint=tmp_path, validation=watch, resume=False)
    monkeypatch.undo()
    assert (tmp_path / "best.pt").exists()
    assert parameters_file(tmp_path).name == "checkpoint.pt"
    assert load_checkpoint(parameters_file(tmp_path), maml())["progress"]["step"] == 0


def test_half_files_are_swept_in_a_folder_of_ours_and_by_their_whole_pattern(tmp_path):
    ours = [f"{name}.123-0123abcd.part" for name in (*checkpoints.FILES, ".writable")]
    others = ["log.csv.part", "log.csv.mine.part", "mine.123-0123abcd.part",
              "log.csv.123-0123abcd.part.txt", "log.csv.x-0123abcd.part"]
    for name in (*ours, *others): (tmp_path / name).write_bytes(b"x")
    with locked(tmp_path): pass                              # no checkpoint: whose folder is it?
    assert all((tmp_path / name).exists() for name in (*ours, *others))
    quick(maml(), steps=1, checkpoint=tmp_path)
    with locked(tmp_path): pass
    assert [name for name in (*ours, *others) if (tmp_path / name).exists()] == others


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_no_trace_of_a_run_that_did_not_begin(tmp_path, monkeypatch, there):
    folder, write = tmp_path / "run", checkpoints.write_whole
    if there:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    def full(path, content):
        if path.name == "checkpoint.pt": raise OSError(28, "No space left on device")
        write(path, content)
    monkeypatch.setattr(checkpoints, "write_whole", full)
    fails(folder, {}, OSError)


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"could not write .*pipe: a pipe or a device is there"):
        checkpoints.write_whole(tmp_path / "pipe", b"x")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="checkpoint='': a folder needs a name"):
        quick(maml(), steps=1, checkpoint="")
    assert not list(tmp_path.iterdir())


class Watches(ml.Watcher):
    "Does something with the folder at a step."
    def __init__(self, at, does): self.left, self.does = at, does

    def step(self, loss):
        self.left -= 1
        if self.left == 0: self.does()


def test_the_lock_survives_that_its_folder_is_made_anew(tmp_path):
    "Another run is in the new folder when the first one comes to save."
    folder = tmp_path / "run"

    def anew():
        shutil.rmtree(folder)
        quick(maml(seed=1), steps=1, checkpoint=folder)
        seen.append(snapshot(folder))
    seen = []
    with pytest.raises(CheckpointError, match="was removed while this run was writing to it"):
        quick(maml(), steps=9, checkpoint=folder, save_every=3, watch=Watches(2, anew))
    assert snapshot(folder) == seen[0]


def test_a_folder_that_is_gone_ends_the_run_and_is_not_made_again(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="was removed while"):
        quick(maml(), steps=9, checkpoint=folder, save_every=3,
              watch=Watches(2, partial(shutil.rmtree, folder)))
    assert not folder.exists()


class Ruins(torch.optim.SGD):
    "Its third step is one too many."
    count = 0

    def step(self, closure=None):
        super().step(closure)
        self.count += 1
        if self.count == 3: self.param_groups[0]["params"][0].data[0] = float("nan")


@pytest.mark.parametrize("kept", [True, False])
def test_parameters_that_are_no_numbers_never_become_a_result(tmp_path, kept):
    with pytest.raises(DivergedError, match=r"parameter 'model.0.weight' is no longer finite"):
        quick(maml(), steps=3, optimizer=partial(Ruins, lr=0.01),
              **{"checkpoint": tmp_path} if kept else {})


def test_float64_into_float32_says_so(tmp_path):
    save_checkpoint(tmp_path / "m.pt", maml().double())
    J = maml()
    before = {name: value.clone() for name, value in J.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"holds float64 at 'model.0.weight', and this "
                       r"meta-loss has float32: load it into J.to\(torch.float64\) first"):
        load_checkpoint(tmp_path / "m.pt", J)
    assert same(before, J.state_dict())
    load_checkpoint(tmp_path / "m.pt", J.double())


def headed(seed=0, frozen=True):
    model = ml.models.mlp(1, 30, 1, seed=seed)
    model[0].requires_grad_(not frozen)
    return ml.MAML(model, F.mse_loss)


def test_a_frozen_base_can_be_left_out(tmp_path):
    J = headed()
    quick(J, steps=3, checkpoint=tmp_path, trainable_only=True)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert sorted(saved["J"]) == ["model.2.bias", "model.2.weight"]
    assert sorted(saved["base"]) == ["model.0.bias", "model.0.weight"]
    quick(K := headed(), steps=6, checkpoint=tmp_path, trainable_only=True)
    quick(whole := headed(), steps=6)
    assert same(K.state_dict(), whole.state_dict())
    load_checkpoint(tmp_path / "checkpoint.pt", L := headed())
    assert same(L.state_dict(), K.state_dict())
    load_checkpoint(tmp_path / "checkpoint.pt", L := headed(frozen=False))
    assert same(L.state_dict(), K.state_dict())


def test_another_base_is_said_to_be_another(tmp_path):
    quick(headed(), steps=3, checkpoint=tmp_path, trainable_only=True)
    J = headed(seed=1)
    before = {name: value.clone() for name, value in J.state_dict().items()}
    for load in (partial(load_checkpoint, tmp_path / "checkpoint.pt"),
                 partial(quick, steps=6, checkpoint=tmp_path, trainable_only=True)):
        with pytest.raises(CheckpointError, match=r"leaves out the frozen base .* stands on "
                           r"another one: at 'model.0.weight' that was float32 \(30, 1\) .*, and"):
            load(J)
    assert same(before, J.state_dict())
    with pytest.raises(CheckpointError, match="here is nothing"):
        load_checkpoint(tmp_path / "checkpoint.pt", ml.MAML(torch.nn.Linear(1, 1), F.mse_loss))
    save_checkpoint(tmp_path / "all.pt", maml(), trainable_only=True)  # nothing is frozen: all
    load_checkpoint(tmp_path / "all.pt", maml(seed=1))


WITH_IDENTITY = "0.2.0-identity"


@pytest.mark.filterwarnings(r"ignore:(?s).*no longer bit for bit.\s+versions.torch was [^\n]*$")
def test_a_run_that_says_what_it_is_goes_on_or_says_what_is_another(tmp_path):
    """Made on 2026-11-29. Where a later metalit writes down more, it has to name that."""
    shutil.copytree(Path(__file__).parent / "old_runs" / WITH_IDENTITY, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt", J := maml(seed=1, width=4))
    assert state["progress"]["step"] == 3 and same(J.state_dict(), state["J"])
    before = snapshot(tmp_path / "run")
    go_on = partial(quick, steps=5, checkpoint=tmp_path / "run", log_every=1)
    with pytest.raises(CheckpointError, match=r"is of another run:\n"): go_on(maml(width=5))
    assert {name: value for name, value in snapshot(tmp_path / "run").items()
            if name.name != ".lock"} == before
    try: log, why = go_on(maml(width=4)), ""
    except CheckpointError as error: log, why = [], str(error)
    if why:
        assert re.search(r"is of another run:\n +\S+ was .* now ", why)
        log = go_on(maml(width=4), allow={"identity"})
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("version", sorted(path.name for path in (
    Path(__file__).parent / "old_runs").iterdir() if path.name != WITH_IDENTITY))
def test_runs_of_older_versions_load_or_say_why_not(tmp_path, version):
    "Made by these versions, as `quick(maml(width=4), steps=3, checkpoint=…, log_every=1)`."
    shutil.copytree(Path(__file__).parent / "old_runs" / version, tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt", J := maml(seed=1, width=4))
    assert state["progress"]["step"] == 3
    assert same(J.state_dict(), state["J"])
    before = snapshot(tmp_path / "run")
    go_on = partial(quick, steps=5, checkpoint=tmp_path / "run", log_every=1)
    with pytest.raises(CheckpointError, match=r"written by an older metalit, which did not "
                       r"write down all that a run is made of: load_checkpoint reads its param"):
        go_on(maml(width=4))
    assert {name: value for name, value in snapshot(tmp_path / "run").items()
            if name.name != ".lock"} == before
    assert [row["step"] for row in go_on(maml(width=4), allow={"identity"})] == [1, 2, 3, 4, 5]
    assert len(go_on(maml(width=4))) == 5                    # now it is a run of this version


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_that_stop_a_run(number):
    number = getattr(signal, number)
    before = signal.signal(number, signal.default_int_handler)  # whatever the tests run under
    try:
        with ml.training.stop_requested() as asked:
            signal.raise_signal(number)
            assert asked()
        assert signal.getsignal(number) == signal.default_int_handler
    finally: signal.signal(number, before)


def test_a_hangup_that_is_not_minded_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)    # as `nohup` does
    try:
        with ml.training.stop_requested() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
    finally: signal.signal(signal.SIGHUP, before)


def test_a_bar_that_nobody_reads_does_not_stop_a_run(monkeypatch):
    class Closed:
        def write(self, text): raise BrokenPipeError
        def flush(self): raise BrokenPipeError
    monkeypatch.setattr(sys, "stderr", Closed())
    assert len(quick(maml(), steps=3, log_every=1, progress=True)) == 3


def counted(work: str, *numbers: int) -> list[int]:
    "What a function of `benchmarks.folders` counts, in a program of its own: it forks."
    program = ("import torch\ntorch.set_num_threads(1)\nfrom benchmarks import folders\n"
               f"print(folders.{work}({', '.join(map(str, numbers))}))")
    done = forked.run("-c", program, check=True, cwd=Path(__file__).parents[1], timeout=300)
    return int(done.stdout)


@pytest.mark.parametrize("times", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_two_processes_that_start_at_the_same_moment_in_one_empty_folder(times):
    assert counted("pairs", times) == times


def test_kills_at_random_moments():
    assert counted("kills", 5) == 5


def test_damaged_files_are_refused():
    assert folders.damage(60) == 60


def test_other_runs_are_noticed():
    noticed, tried = folders.others_noticed()
    assert noticed == tried >= 34


def command(*words, **options) -> subprocess.Popen:
    return forked.python("-m", "metalit", *words, stderr=subprocess.PIPE, text=True,
                         env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


def test_two_interrupts_in_quick_succession_end_with_a_sentence(tmp_path):
    process = command("train", "sinusoids", "--steps", 10**6, "--out", tmp_path, "--quiet")
    while not (tmp_path / "run.json").exists(): time.sleep(0.02)
    for _ in range(8):                                       # some come on the way out
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "Error: stopped, and saved; the same command goes on from there\n"


def test_who_is_stopped_before_it_could_save_does_not_say_that_it_has():
    from click import ClickException

    from metalit.cli import saved_when_stopped
    before = signal.getsignal(signal.SIGINT)
    try:
        for raised, words in ((KeyboardInterrupt(), "stopped; .* what was saved last"),
                              (KeyboardInterrupt("stopped after step 3"), "stopped, and saved")):
            with pytest.raises(ClickException) as told, saved_when_stopped(): raise raised
            told.match(words)
        late = KeyboardInterrupt()                           # pressed once more, on the way out
        late.__context__ = KeyboardInterrupt("stopped after step 3")
        with pytest.raises(ClickException, match="stopped, and saved"), saved_when_stopped():
            raise late
    finally: signal.signal(signal.SIGINT, before)


def test_a_broken_pipe_does_not_stop_training(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)                                           # nobody reads, from the first line on
    process = command("train", "sinusoids", "--steps", 3, "--out", tmp_path, "--quiet",
                      "--test-tasks", 2, stdout=theirs)
    os.close(theirs)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert (tmp_path / "evaluation.csv").exists()


def test_what_was_measured_is_printed_before_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    metalit("train", "sinusoids", "--steps", 2, "--out", tmp_path, "--quiet", "--test-tasks", 2)
    def full(path, rows, columns=None): raise OSError(30, f"could not write {path}: Read-only")
    monkeypatch.setattr("metalit.cli.write_table", full)
    output = metalit("evaluate", tmp_path, "--tasks", 2, code=1)
    assert output.index("after 2 meta-steps") < output.index("2 unseen tasks, seed 0")
    assert output.index("2 unseen tasks, seed 0") < output.index("could not write")


def test_settings_are_written_with_the_run_and_not_before(tmp_path):
    metalit("train", "sinusoids", "--steps", 2, "--device", "toaster", "--out", tmp_path / "no",
            code=1)
    assert not (tmp_path / "no").exists()
    (tmp_path / "best.pt").write_bytes(b"mine")
    assert "holds best.pt, but no checkpoint" in metalit("train", "sinusoids", "--steps", 2,
                                                         "--out", tmp_path, code=1)
    assert snapshot(tmp_path) == {Path("best.pt"): b"mine"}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "one"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(CheckpointError, match="is no file"): ml.load_checkpoint(path, maml())
