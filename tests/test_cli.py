"""The command, as a terminal calls it."""
import csv
import json

import pytest
from helpers import metalit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    metalit("train", "sinusoids", "--method", "maml", "--shots", 5, "--steps", 60, "--out", folder,
            "--quiet")
    return folder


def test_train_leaves_settings_log_checkpoint_table_and_picture(run):
    assert {p.name for p in run.iterdir()} == {"run.json", "log.csv", "checkpoint.pt",
                                               "evaluation.csv", "adaptation.png", ".lock"}
    assert json.loads((run / "run.json").read_text())["shots"] == 5
    assert (run / "adaptation.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((run / "evaluation.csv").read_text().splitlines()))
    assert [row["inner_steps"] for row in rows] == ["0", "1", "2", "5", "10"]


def test_evaluate_reads_back_what_train_measured(run):
    written = (run / "evaluation.csv").read_text()
    output = metalit("evaluate", run)
    assert "after 60 meta-steps" in output
    assert "600 unseen tasks, seed 0" in output
    assert (run / "evaluation.csv").read_text() == written
    assert "\n          3  " in metalit("evaluate", run, "--steps", "0,3", "--tasks", 20, "--seed",
                                        1)


def test_the_same_command_goes_on_and_other_settings_are_refused(run):
    metalit("train", "sinusoids", "--steps", 70, "--out", run, "--quiet")
    assert "after 70 meta-steps" in metalit("evaluate", run, "--tasks", 10)
    assert "holds a run with --inner-lr 0.01, not 0.1" in metalit(
        "train", "sinusoids", "--steps", 80, "--inner-lr", 0.1, "--out", run, "--quiet", code=1)
    metalit("train", "sinusoids", "--steps", 5, "--inner-lr", 0.1, "--out", run, "--quiet",
            "--restart")
    assert "after 5 meta-steps" in metalit("evaluate", run, "--tasks", 10)


def test_fomaml_gives_another_result(run, tmp_path):
    metalit("train", "sinusoids", "--method", "fomaml", "--steps", 5, "--out", tmp_path, "--quiet")
    metalit("train", "sinusoids", "--method", "maml", "--steps", 5, "--out", tmp_path / "m",
            "--quiet")
    assert ((tmp_path / "evaluation.csv").read_text()
            != (tmp_path / "m" / "evaluation.csv").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["train", "sinusoids", "--device", "toaster"], 1, "device 'toaster' cannot be used here"),
     (["train", "sinusoids", "--inner-lr", "-1"], 1, "must be a finite number above 0"),
     (["train", "sinusoids", "--shots", "0"], 2, "0 is not in the range"),
     (["train", "cosines"], 1,
      "'cosines' is no family (sinusoids, glyphs, omniglot) and no folder of images"),
     (["train", "sinusoids", "--method", "protonet"], 1, "protonet needs classes"),
     (["train", "sinusoids", "--patience", "2"], 1, "--patience needs --validate-every"),
     (["train", "sinusoids", "--max-minutes", "0"], 1, "max_minutes=0.0: above 0 is needed"),
     (["train", "omniglot", "--root", "a-file/data"], 1, "a-file/data cannot be written"),
     (["train", "sinusoids", "--method", "mamml"], 2, "'mamml' is not one of"),
     (["evaluate", "nothing-here"], 1, "holds no run: there is no run.json in it"),
     (["evaluate", ".", "--steps", "1,two"], 2, "is not a list of whole numbers"),
     (["evaluate", ".", "--steps", "-1"], 2, "negative")]
)
def test_errors_are_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    output = metalit(*arguments, code=code)
    assert message in output
    assert "Traceback" not in output


def test_broken_files_of_a_run(run, tmp_path):
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    assert "checkpoint.pt" in metalit("evaluate", tmp_path, code=1)
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:999])
    assert "cut short" in metalit("evaluate", tmp_path, code=1)
    (tmp_path / "run.json").write_text("{")
    assert "run.json cannot be read" in metalit("evaluate", tmp_path, code=1)


def test_help_names_every_command_and_default():
    assert "train" in (text := metalit("--help"))
    assert "evaluate" in text
    text = " ".join(metalit("train", "--help").split())
    assert "[default: (by method)]" in text
    assert "[default: 600; x>=2]" in text
    paragraphs = ("--method", "--queries", "--steps", "--batch-size", "--init", "--size", "--seed",
                  "--compile", "--validate-every", "--tensorboard", "--root", "--quiet")
    places = [text.index(f" {option} ") for option in paragraphs]
    assert places == sorted(places)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    metalit("train", "glyphs", "--root", folder, "--out", folder / "run", "--filters", 4, "--steps",
            20, "--queries", 2, "--batch-size", 2, "--validate-every", 5, "--test-tasks", 10,
            "--quiet")
    return folder


def test_a_new_user_trains_on_glyphs_by_one_command(letters):
    run = letters / "run"
    assert {p.name for p in run.iterdir()} == {
        "run.json", "log.csv", "validation.csv", "checkpoint.pt", "best.pt",
        "evaluation.csv", ".lock"
    }
    steps = [row["step"]
             for row in csv.DictReader((run / "validation.csv").read_text().splitlines())]
    assert steps == ["5", "10", "15", "20"]
    rows = list(csv.DictReader((run / "evaluation.csv").read_text().splitlines()))
    assert [row["inner_steps"] for row in rows] == ["0", "1", "3", "5", "10"]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)


def test_what_is_judged_is_what_did_best_on_validation_tasks(letters):
    rows = list(csv.DictReader((letters / "run" / "validation.csv").read_text().splitlines()))
    best = max(rows, key=lambda row: float(row["validation"]))        # of equals the first
    assert f"after {best['step']} meta-steps" in metalit("evaluate", letters / "run", "--root",
                                                         letters, "--tasks", 10)


def test_one_query_at_a_time_gives_another_answer(letters):
    command = ["evaluate", letters / "run", "--root", letters, "--tasks", 20, "--steps", "1"]
    assert metalit(*command) != metalit(*command, "--one-by-one")


def test_another_method_or_data_set_in_the_folder_is_refused(letters):
    command = ["train", "glyphs", "--root", letters, "--out", letters / "run", "--filters", 4,
               "--queries", 2, "--batch-size", 2, "--quiet"]
    assert "holds a run with --method maml, not anil" in metalit(*command, "--method", "anil",
                                                                 code=1)
    assert "holds a run with FAMILY glyphs, not sinusoids" in metalit(
        "train", "sinusoids", "--out", letters / "run", code=1)
    assert "--ways 5, not 7" in metalit(*command, "--ways", 7, code=1)
    assert "more classes" in metalit(*command, "--ways", 2000, "--out", letters / "wide", code=1)
