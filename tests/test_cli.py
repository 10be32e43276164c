"""The command, as a terminal calls it."""
import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import metalit
from PIL import Image

import metalit as ml
from metalit.cli import main, say


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
     (["train", "sinusoids", "--inner-lr", "-1"], 2,
      "'--inner-lr': '-1' is not a finite number above 0"),
     (["train", "sinusoids", "--shots", "0"], 2, "0 is not in the range"),
     (["train", "cosines"], 1,
      "'cosines' is no family; there are sinusoids, glyphs, omniglot, table, and folders of"),
     (["train", "sinusoids", "--method", "protonet"], 1, "protonet needs classes"),
     (["train", "sinusoids", "--patience", "2"], 1, "--patience needs --validate-every"),
     (["train", "sinusoids", "--max-minutes", "0"], 2,
      "'--max-minutes': '0' is not a finite number above 0"),
     (["train", "omniglot", "--root", "a-file/data"], 1, "a-file/data cannot be written"),
     (["train", "sinusoids", "--method", "mamml"], 2, "'mamml' (did you mean maml?) is not one of"),
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


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["train", "sinusoids", "--ways", 7], 1, "--ways does not go with sinusoids and maml: leave"),
    (["train", "glyphs", "--size", 28], 1, "--size does not go with glyphs and maml: leave"),
    (["train", "sinusoids", "--root", "d"], 1, "--root d does not go with sinusoids"),
    (["train", "sinusoids", "--out", ""], 2, "'--out': an empty name; the current folder is '.'"),
    (["evaluate", ""], 2, "an empty name"), (["train", ""], 1, "'' is no family"),
    (["train", "sinusoids", "--method", "mamml"], 2, "(did you mean maml?)"),
    (["train", "sinusoid"], 1, "'sinusoid' is no family (did you mean sinusoids?)"),
    (["compare", "--methods", "conmll"], 1, "no method 'conmll' (did you mean conml?)"),
    (["trian"], 2, "no command 'trian' (did you mean train?)"),
    (["train", "sinusoids", "--max-minutes", "nan"], 2, "'--max-minutes': 'nan' is not a"),
    (["train", "sinusoids", "--max-minutes", "inf"], 2, "'--max-minutes': 'inf' is not a"),
    (["train", "sinusoids", "--steps", "2.5"], 2, "'--steps': '2.5' is not a valid integer"),
    (["train", "sinusoids", "--seed", 2**63], 2, "'--seed': 9,223,372,036,854,775,808 is above"),
    (["evaluate", "x", "--seed", 2**64], 2, "'--seed': 18,446,744,073,709,551,616 is above"),
    (["compare", "--seeds", 10**10], 2, "'--seeds': '10000000000' has a number above"),
    (["train", "sinusoids", "--device", "meta"], 1, "device 'meta' cannot be used here"),
    (["train", "sinusoids", "--device", "hpu"], 1, "device 'hpu' cannot be used here"),
    (["train", "sinusoids", "--meta-lr", "inf"], 2, "'--meta-lr': 'inf' is not a finite number"),
])
def test_what_is_typed_is_refused_by_name_and_leaves_nothing(arguments, code, message, tmp_path,
                                                             monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in " ".join(metalit(*arguments, code=code).split())
    assert not [path for path in tmp_path.rglob("*") if path.name != ".lock" and path.is_file()]


def test_reptile_says_which_option_lets_a_run_go_on(tmp_path):
    line = ["train", "sinusoids", "--method", "reptile", "--batch-size", 2, "--test-tasks", 2,
            "--quiet"]
    metalit(*line, "--steps", 2, "--out", tmp_path / "linear")
    before = (tmp_path / "linear" / "run.json").read_bytes()
    said = metalit(*line, "--steps", 3, "--out", tmp_path / "linear", code=1)
    assert "holds a run with --steps 2, not 3" in said and "--schedule constant a run can" in said
    assert (tmp_path / "linear" / "run.json").read_bytes() == before
    line += ["--schedule", "constant", "--out", tmp_path / "constant"]
    metalit(*line, "--steps", 2)
    assert "after 3 meta-steps" in metalit(*line, "--steps", 3)
    assert "holds a run with --schedule linear, not constant" in metalit(
        *line, "--steps", 3, "--out", tmp_path / "linear", code=1)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    metalit("compare", "--methods", "maml", "--steps", 1, "--seeds", 0, "--out", folder, "--quiet",
            "--batch-size", 2)
    return folder


def test_a_comparison_is_not_taken_for_a_run(compared, tmp_path):
    cell = compared / "maml-seed0"
    assert json.loads((cell / "result.json").read_text())["metalit"] == "result"
    assert not (cell / "run.json").exists()
    assert "it is the folder of a comparison" in metalit("evaluate", compared, code=1)
    assert "it is one method of a comparison" in metalit("evaluate", cell, code=1)
    for place in (compared, cell):
        said = metalit("train", "sinusoids", "--steps", 1, "--out", place, "--restart", code=1)
        assert "is no place for a run" in said
    shutil.copy(cell / "result.json", tmp_path / "run.json")
    assert "it is the file of a result, not of a run" in metalit("evaluate", tmp_path, code=1)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("maml-seed0/result.json", "[]", "are needed, found list"),
    ("maml-seed0/result.json", '{"method": "maml"}', "is not the result of maml with seed 0"),
    ("maml-seed0/result.json",
     '{"method": "maml", "seed": 1, "status": "", "seconds": 1, "rows": []}',
     "is not the result of maml with seed 0: remove it"),
    ("settings.json", "null", "found NoneType"), ("settings.json", "{", "it is no JSON"),
])
def test_a_damaged_comparison_is_refused(compared, tmp_path, name, content, words):
    shutil.copytree(compared, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(content)
    assert words in metalit("compare", "--methods", "maml", "--steps", 1, "--seeds", 0, "--out",
                            tmp_path, "--quiet", "--batch-size", 2, code=1)


def test_the_table_is_printed_before_a_file_cannot_be_written(run, tmp_path, monkeypatch):
    def full(path, content): raise OSError(28, f"could not write {path}: No space left on device")
    monkeypatch.setattr("metalit.training.checkpoints.write_whole", full)
    said = metalit("evaluate", run, "--tasks", 2, code=1)
    assert said.index("unseen tasks") < said.index("Error: could not write")
    assert "[Errno" not in said


def test_who_closes_the_pipe_has_read_enough_and_nothing_stops(monkeypatch):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        say("one")
        say("two")
        closed.flush()


@pytest.mark.parametrize("size", [(10**15,), (2**62, 4)])
def test_too_much_for_memory_is_a_sentence_and_a_defect_is_not(run, monkeypatch, size):
    monkeypatch.setattr("metalit.cli.training.evaluate", lambda *a, **more: torch.empty(size))
    assert "more than the memory of this machine holds" in metalit("evaluate", run, code=1)
    monkeypatch.setattr("metalit.cli.training.evaluate", lambda *a, **more: torch.ones(2).view(3))
    found = CliRunner().invoke(main, ["evaluate", str(run)])
    assert isinstance(found.exception, RuntimeError)


def test_a_missing_compiler_is_a_sentence(tmp_path, monkeypatch):
    def no_compiler(*arguments, **more):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in torch._inductor")
    monkeypatch.setattr("metalit.cli.training.meta_train", no_compiler)
    assert "or leave --compile out" in metalit("train", "sinusoids", "--out", tmp_path, code=1)


def test_images_keep_their_colours_and_say_what_is_white(tmp_path):
    for c in range(20):
        (tmp_path / "letters" / f"{c}").mkdir(parents=True)
        for i in range(2):
            levels = np.full((16, 16), 200 * c + 16 * i, np.uint16)
            Image.fromarray(levels).save(tmp_path / "letters" / f"{c}" / f"{i}.png")
    line = ["train", tmp_path / "letters", "--ways", 2, "--queries", 1, "--steps", 0, "--quiet",
            "--filters", 2, "--test-tasks", 2, "--channels", 3, "--out", tmp_path / "run"]
    assert "Note: " in (said := metalit(*line)) and "4095 was taken for white" in said
    assert "Note: " not in metalit(*line, "--white", 4095, "--out", tmp_path / "said")
    assert ml.load(tmp_path / "said").tasks.images.shape[1:] == (3, 16, 16)


@pytest.fixture
def points(tmp_path):
    (tmp_path / "points.csv").write_text("y,x\n2.1,-1.5\n-0.4,0\n-2.9,1.5\n")
    (tmp_path / "grid.csv").write_text("x\n-1\n0.5\n")
    return tmp_path / "points.csv"


def test_adapt_says_what_J_says_and_its_program_says_the_same(run, points):
    line = ["adapt", run, "--points", points, "--predict", points.with_name("grid.csv"), "--steps",
            3, "--out", points.with_name("model.pt2")]
    said = CliRunner().invoke(main, [str(word) for word in line])
    x, y = torch.tensor([[-1.5], [0], [1.5]]), torch.tensor([[2.1], [-0.4], [-2.9]])
    grid, model = torch.tensor([[-1.0], [0.5]]), ml.load(run).J.adapted(x, y, steps=3)
    rows = list(csv.DictReader(said.stdout.splitlines()))
    assert [float(row["x"]) for row in rows] == [-1, 0.5]
    found = torch.tensor([[float(row["y"])] for row in rows])
    torch.testing.assert_close(found, model(grid).detach(), rtol=1e-5, atol=1e-6)
    program = torch.export.load(points.with_name("model.pt2")).module()
    torch.testing.assert_close(program(grid), model(grid))
    before, after = (float(words) for words in
                     said.stderr.split("goes from ")[1].split("\n")[0].split(" to "))
    assert after < before and "adapted to 3 points" in said.stderr
    at_points = metalit("adapt", run, "--points", points)
    assert "\n-1.5," in at_points and "\n1.5," in at_points


@pytest.mark.parametrize(("more", "words"), [
    (["--out", "model.pt"], "a name that ends in .pt2 is needed"),
    (["--out", "there.pt2"], "is there already: choose another name"),
    (["--out", "nowhere/model.pt2"], "nowhere is no folder"),
    (["--predict", "gone.csv"], "gone.csv: No such file")])
def test_adapt_refuses_before_it_computes(run, points, monkeypatch, more, words):
    monkeypatch.chdir(points.parent)
    (points.parent / "there.pt2").write_text("precious")
    assert words in metalit("adapt", run, "--points", points, *more, code=1)
    assert (points.parent / "there.pt2").read_text() == "precious"


def test_adapt_is_for_sinusoids(letters, points):
    assert ".J.adapted(x, y) takes images" in metalit("adapt", letters / "run", "--points", points,
                                                      code=1)
