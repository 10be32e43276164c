"""The command, as a terminal calls it."""
import csv
import json

import pytest
from click.testing import CliRunner

from metalit.cli import main


def metalit(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="metalit")
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    metalit("train", "sinusoids", "--method", "maml", "--shots", 5, "--steps", 60, "--out", folder, "--quiet")
    return folder


def test_train_leaves_settings_log_checkpoint_table_and_picture(run):
    assert {p.name for p in run.iterdir()} == {"run.json", "log.csv", "checkpoint.pt", "evaluation.csv",
                                               "adaptation.png"}
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
    assert "\n          3  " in metalit("evaluate", run, "--steps", "0,3", "--tasks", 20, "--seed", 1)


def test_the_same_command_goes_on_and_other_settings_are_refused(run):
    metalit("train", "sinusoids", "--steps", 70, "--out", run, "--quiet")
    assert "after 70 meta-steps" in metalit("evaluate", run, "--tasks", 10)
    assert "holds a run with --inner-lr 0.01, not 0.1" in metalit(
        "train", "sinusoids", "--steps", 80, "--inner-lr", 0.1, "--out", run, "--quiet", code=1)
    metalit("train", "sinusoids", "--steps", 5, "--inner-lr", 0.1, "--out", run, "--quiet", "--restart")
    assert "after 5 meta-steps" in metalit("evaluate", run, "--tasks", 10)


def test_fomaml_gives_another_result(run, tmp_path):
    metalit("train", "sinusoids", "--method", "fomaml", "--steps", 5, "--out", tmp_path, "--quiet")
    metalit("train", "sinusoids", "--method", "maml", "--steps", 5, "--out", tmp_path / "m", "--quiet")
    assert (tmp_path / "evaluation.csv").read_text() != (tmp_path / "m" / "evaluation.csv").read_text()


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["train", "sinusoids", "--device", "toaster"], 1, "device 'toaster' cannot be used here"),
    (["train", "sinusoids", "--inner-lr", "-1"], 1, "must be a finite number above 0"),
    (["train", "sinusoids", "--shots", "0"], 2, "0 is not in the range"),
    (["train", "cosines"], 2, "'cosines' is not"),
    (["train", "sinusoids", "--method", "mamml"], 2, "'mamml' is not one of"),
    (["evaluate", "nothing-here"], 1, "holds no run: there is no run.json in it"),
    (["evaluate", ".", "--steps", "1,two"], 2, "is not a list of whole numbers"),
    (["evaluate", ".", "--steps", "-1"], 2, "negative")])
def test_errors_are_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
    assert "[default: 0.01]" in metalit("train", "--help")
