"""`metalit design`: what it writes, several workers, killed ones, and what it refuses."""
import contextlib
import csv
import json
import signal
import sqlite3
import subprocess
import time
import warnings
from pathlib import Path

import optuna
import pytest
import torch
import torch.nn.functional as F
from helpers import metalit

import metalit as ml
from metalit import cli
from metalit.cli import as_options
from metalit.designing.honest import Confirmed, Final, concluded
from metalit.designing.report import html_table, search_page
from metalit.designing.search import Effort, design, facts, seconds_spent
from metalit.designing.space import Space
from metalit.judging.recipes import sine_network
from reproduce.design_killed import chains, complaints, error_anew, search_in, worker

STEPS_OF_ALL = 60
SMALL = ["design", "sinusoids", "--meta-steps", 60, "--steps", 18, "--quiet"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, metalit(*SMALL, "--out", folder, "--report")


def test_it_says_a_sentence_and_writes_a_program_a_table_a_picture_and_a_page(searched):
    folder, output = searched
    assert "A task learns by " in output and "meta-steps, " in output
    assert "on 600 tasks that the search did not look at: " in output
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert sum(int(row["meta_steps"]) for row in rows) == 60
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "<script" not in page and "http" not in page
    assert page.count("<tr>") > len(rows) and "data:image/png;base64," in page


def test_the_program_makes_what_was_found(searched):
    folder, output = searched
    there = {"__name__": "a program"}
    exec((folder / "best.py").read_text(), there)
    value = float(output.split("did not look at: ")[1].split(" ")[0])
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    best = min((row for row in rows if row["ended"] == "trained"), key=lambda row: row["error"])
    ml.meta_train(there["J"], there["tasks"], steps=18, seed=0, optimizer=there["optimizer"],
                  progress=False)
    found = ml.evaluate(there["J"], there["tasks"], steps=(1,))
    assert found.mean[0] == pytest.approx(value, rel=1e-3)
    assert best["words"].startswith("A task learns by ")


def test_the_same_command_says_the_same_and_another_is_refused(searched):
    folder, output = searched
    assert metalit(*SMALL, "--out", folder, "--report") == output
    assert "seed was 0, now 1" in metalit(*SMALL, "--out", folder, "--seed", 1, code=1)


def test_the_honest_end(tmp_path):
    output = metalit("design", "sinusoids", "--trials", 3, "--steps", 3, "--out", tmp_path,
                     "--against", "maml", "--random", "--finalists", 1, "--seeds", "5,6",
                     "--no-judge", "--quiet")
    for word in ("maml-published", "maml-tuned-", "the best tuned rival"): assert word in output
    assert "Random search of the same space" in output


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["design", "sinusoid"], 2, "did you mean sinusoids?"),
    (["design", "sinusoids", "--objective", "eror", "--trials", 1], 1, "did you mean error?"),
    (["design", "sinusoids", "--against", "mmal", "--quiet"], 1,
     "no method 'mmal' (did you mean maml?)")])
def test_what_is_refused(arguments, code, says, tmp_path):
    assert says in metalit(*arguments, "--out", tmp_path, code=code)


def test_settings_become_the_options_of_a_worker():
    assert as_options("meta_steps", 5) == ["--meta-steps", "5"]
    assert as_options("minutes", None) == []
    assert as_options("seeds", [1, 2]) == ["--seeds", "1,2"]
    assert as_options("judges", False) == ["--no-judge"] and as_options("at_random", True) == [
        "--random"]


def test_a_table_says_what_it_is_given():
    assert html_table([]) == "<p>None.</p>"
    text = html_table([{"a": 1.23456, "b": "<i>"}, {"a": None}])
    assert "1.235" in text and "&lt;i&gt;" in text and "<td></td>" in text


# ---- workers -------------------------------------------------------------------------------------


def is_at_work(folder, number):
    "Whether a worker has trained something, by what stands in the data base."
    if not (folder / "search.db").exists(): return False
    with contextlib.closing(sqlite3.connect(folder / "search.db", timeout=60)) as base:
        try: rows = base.execute("SELECT value_json FROM trial_user_attributes").fetchall()
        except sqlite3.OperationalError: return False        # its tables are being made
    known = [json.loads(text) for (text,) in rows]
    return any(of.get("worker") == number and of.get("at") for of in known)


def test_a_killed_worker_loses_nothing_and_nothing_counts_twice(tmp_path):
    """SIGKILL in the middle of a training; the other worker goes on from the checkpoint.

    Fifty moments: `python -m reproduce.design_killed`.
    """
    first, second = (worker(tmp_path, number, STEPS_OF_ALL) for number in (1, 2))
    while not is_at_work(tmp_path, 2) and second.poll() is None: time.sleep(0.05)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    assert first.wait(timeout=60) == 0, first.stderr.read()
    for process in (first, second): process.stderr.close()
    found = search_in(tmp_path, STEPS_OF_ALL)
    assert complaints(found) == []
    trials = [trial for tries in chains(found).values() for trial in tries]
    assert {facts(trial)["worker"] for trial in trials if "worker" in facts(trial)} == {1, 2}
    ended = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert error_anew(found, ended[-1]) == ended[-1].values[0]  # bit for bit, killed or not


def test_what_would_be_wrong_is_seen(tmp_path):
    found = search_in(tmp_path, 10)
    assert complaints(found) == []
    storage = found.search.study._storage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)         # a trial without a sign of life
        trial = found.search.study.ask()
    assert complaints(found) == [f"candidate {trial.number} ended as ['RUNNING']"]
    trial.set_user_attr("facts", {"at": 7})
    storage.set_trial_state_values(trial._trial_id, state=optuna.trial.TrialState.FAIL)
    assert complaints(found) == [f"candidate {trial.number} ended as ['FAIL']",
                                 "17 meta-steps of 10"]


def test_the_command_starts_its_workers(tmp_path, monkeypatch):
    "What it starts is this command once more, with the worker's number; here nothing is started."
    started = []

    class Process:
        def __init__(self, command, **how): started.append(command)

        def wait(self): started.append("waited for")
    monkeypatch.setattr(subprocess, "Popen", Process)
    metalit("design", "sinusoids", "--trials", 1, "--steps", 2, "--no-judge", "--quiet",
            "--out", tmp_path, "--workers", 3)
    assert [command[-1] for command in started[:2]] == ["1", "2"]
    assert started[2:] == ["waited for"] * 2
    words = started[0][started[0].index("design"):]
    again = metalit(*words, "--quiet")                       # joins, finds nothing left to do
    assert again == "" and len(list(tmp_path.glob("search/trials/*"))) == 1


def test_a_page_without_a_best_and_one_with_an_end(tmp_path):
    few = Space(steps=1).only(inner=["SGD"], extras=[], terms=["QueryLoss"])
    none = design(ml.tasks.Sinusoids(5), sine_network, F.mse_loss, meta_steps=1, steps=9,
                  folder=tmp_path, space=few, judges=False)
    assert "No candidate was trained to its end." in search_page(none)
    ended = concluded([Final("found-1", "found", {1: 0.5}, 0.4, 1.0, 1.0, None)])
    assert isinstance(ended, Confirmed) and "No rival was tuned" in search_page(none, ended)
    assert seconds_spent(none.search.trials()) > 0 and Effort(steps=9).rungs == [1, 3, 9]
    assert torch.is_tensor(none.search.looks.support.x) and Path(tmp_path, "search.db").exists()


def test_the_schedule_reaches_the_search(tmp_path, monkeypatch):
    class Seen(Exception): pass
    def search(*given, **options): raise Seen(options["schedule"])
    monkeypatch.setattr(cli.searching, "design", search)
    words = ["sinusoids", "--trials", "1", "--schedule", "linear"]
    with pytest.raises(Seen, match="linear"):
        cli.designed(tmp_path, 0, True, cli.design.make_context("design", words).params)
