"""A table as a family of the command: from a CSV file to a run, its figures and a new task."""
import csv
import json
import random
import shutil

import pytest
import torch
from click.testing import CliRunner
from helpers import metalit

import metalit as ml
from metalit.cli import main
from metalit.judging.recipes import RECIPES, build, complete, table_of

COLUMNS = ["--task", "patient", "--x", "time,dose", "--y", "level"]
SMALL = ["--shots", 3, "--steps", 3, "--batch-size", 4, "--quiet"]


def written(path, tasks=8, words=("low", "high")):
    "Patients with five to seven rows each: a level that falls with time, and its name."
    draw = random.Random(0)
    rows = [["patient", "time", "dose", "level", "name", "ward"]]
    for i in range(tasks):
        for time in draw.sample(range(24), 5 + i % 3):
            level = 100 * (4 + i) / (time + 4)
            rows.append([f"p{i}", time, 4 + i % 2, f"{level:.2f}", words[level > 60],
                         f"ward {i // 2}"])
    with open(path, "w", newline="") as file: csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    file = written(folder / "data.csv")
    metalit("train", "table", file, *COLUMNS, "--order", "time", "--held-out", 0.4, *SMALL,
            "--out", folder / "run")
    return folder


def line(folder, *more):
    return ["train", "table", folder / "data.csv", *COLUMNS, "--order", "time", "--held-out", 0.4,
            *SMALL, "--out", folder / "run", *more]


def test_a_run_knows_its_table_and_is_judged_in_its_units(trained):
    settings = json.loads((trained / "run" / "run.json").read_text())
    assert settings["data"] == str((trained / "data.csv").resolve())
    assert (settings["x"], settings["y"], settings["classes"]) == (["time", "dose"], ["level"],
                                                                   False)
    assert (trained / "run" / "adaptation.png").read_bytes().startswith(b"\x89PNG")
    run = ml.load(trained / "run")
    by_hand = []
    for task in (run.tasks.held_out().select(i) for i in range(3)):
        x, y, real = task.query.x[0], task.query.y[0], task.query.mask[0]
        said = run.J.adapted(task.support.x[0], task.support.y[0], steps=1)(x)
        off = run.tasks.y_scale.back(said) - run.tasks.y_scale.back(y)
        by_hand.append(off[real].abs().mean().item())
    rows = list(csv.DictReader((trained / "run" / "evaluation.csv").read_text().splitlines()))
    assert float(rows[1]["error"]) == pytest.approx(sum(by_hand) / 3, rel=1e-4)
    said = metalit("evaluate", trained / "run", "--steps", "1")
    assert "3 unseen tasks" in said and "by how much level is off" in said


def test_the_same_command_goes_on_and_a_changed_table_is_another_run(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    file = tmp_path / "data.csv"
    shutil.copy(trained / "data.csv", file)
    metalit(*line(tmp_path, "--steps", 5))                   # the same bytes in another place
    assert "after 5 meta-steps" in metalit("evaluate", tmp_path / "run")
    assert "--order time, not dose" in metalit(*line(tmp_path, "--order", "dose"), code=1)
    assert "with --scale, not --no-scale" in metalit(*line(tmp_path, "--no-scale"), code=1)
    assert "--x time,dose, not time" in metalit(*line(tmp_path, "--x", "time"), code=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    file.write_text(file.read_text() + "p1,23,5,1.5,low,ward 0\n")
    assert "with another content than it has now" in metalit(*line(tmp_path), code=1)
    assert "is not the table of this run" in metalit("evaluate", tmp_path / "run", code=1)
    with pytest.raises(ValueError, match="is not the table of this run"): ml.load(tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    metalit(*line(tmp_path, "--restart"))
    assert "after 3 meta-steps" in metalit("evaluate", tmp_path / "run")


def test_a_table_that_has_moved_is_found_by_its_folder(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copy(trained / "data.csv", tmp_path / "data.csv")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    settings["data"] = str(tmp_path / "gone" / "data.csv")
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings))
    assert "--root is its folder" in metalit("evaluate", tmp_path / "run", code=1)
    assert "3 unseen tasks" in metalit("evaluate", tmp_path / "run", "--root", tmp_path)
    assert ml.load(tmp_path / "run", root=tmp_path).step == 3


def test_adapt_learns_rows_of_a_new_task_and_answers_in_units(trained, tmp_path):
    (tmp_path / "new.csv").write_text("level,dose,time,patient\n90,4,1,ann\n60,4,3,ann\n40,4,8,ann")
    (tmp_path / "grid.csv").write_text("dose,time\n4,5.50\n4,20\n")
    words = ["adapt", trained / "run", "--points", tmp_path / "new.csv", "--predict",
             tmp_path / "grid.csv", "--steps", 2, "--out", tmp_path / "model.pt2"]
    said = CliRunner().invoke(main, [str(word) for word in words])
    lines = said.stdout.splitlines()
    assert lines[0] == "time,dose,level" and lines[1].startswith("5.50,4,")
    run = ml.load(trained / "run")
    scales = run.tasks.x_scale, run.tasks.y_scale
    x, y, grid = (torch.tensor(rows, dtype=torch.float64) for rows in
                  ([[1, 4], [3, 4], [8, 4]], [[90], [60], [40]], [[5.5, 4], [20, 4]]))
    model = run.J.adapted(scales[0].to(x), scales[1].to(y), steps=2)
    expected = scales[1].back(model(scales[0].to(grid)).detach().double())
    found = torch.tensor([[float(text.split(",")[2])] for text in lines[1:]]).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(grid), expected, rtol=1e-5, atol=1e-5)
    off = (scales[1].back(model(scales[0].to(x)).detach().double()) - y).abs().mean()
    assert f"to {off:.4g}" in said.stderr and "adapted to 3 points" in said.stderr


@pytest.mark.parametrize(("text", "words"), [
    ("time,dose,level,patient\n1,4,90,ann\n2,4,80,bob\n", "names 2 tasks, 'ann' and 'bob'"),
    ("time,dose\n1,4\n", "there is no column 'level'"), ("time,dose,level\n", "has no row"),
    ("time,dose,level\n1,4,high\n", "column 'level' holds 'high' in row 1, which is no number"),
    ("time,dose,level\n1,4,5\n2,,6\n", "column 'dose' holds '' in row 2, and a finite number"),
    ("time,dose,level\n1,inf,5\n", "column 'dose' holds 'inf' in row 1, and a finite number")])
def test_rows_that_cannot_be_learned_are_named(trained, tmp_path, text, words):
    (tmp_path / "new.csv").write_text(text)
    assert words in metalit("adapt", trained / "run", "--points", tmp_path / "new.csv", code=1)


def test_words_in_y_are_classes(tmp_path):
    file = written(tmp_path / "data.csv")
    metalit("train", "table", file, "--task", "patient", "--x", "time", "--y", "name", "--held-out",
            0.4, *SMALL, "--out", tmp_path / "run")
    run = ml.load(tmp_path / "run")
    assert run.settings["classes"] and run.tasks.classes == ("high", "low")
    rows = list(csv.DictReader((tmp_path / "run" / "evaluation.csv").read_text().splitlines()))
    assert 0 <= float(rows[0]["accuracy"]) <= 1
    assert not (tmp_path / "run" / "adaptation.png").exists()
    new = tmp_path / "new.csv"
    new.write_text("time,name\n1,high\n20,low\n")
    said = CliRunner().invoke(main, ["adapt", str(tmp_path / "run"), "--points", str(new)])
    x = torch.tensor([[1.0], [20.0]], dtype=torch.float64)
    logits = run.J.adapted(run.tasks.x_scale.to(x), torch.tensor([0, 1]))(run.tasks.x_scale.to(x))
    assert [text.split(",")[1] for text in said.stdout.splitlines()[1:]] == [
        run.tasks.classes[i] for i in logits.argmax(-1)]
    new.write_text("time,name\n1,tiny\n")
    assert "'tiny' in row 1, and the classes are high, low" in metalit(
        "adapt", tmp_path / "run", "--points", new, code=1)


def test_whole_numbers_are_classes_where_one_says_so(tmp_path):
    words = {"family": "table", "data": str(written(tmp_path / "data.csv", words="01")),
             "task": "patient", "x": ["time"], "y": ["name"], "method": "maml", "seed": 0,
             "shots": 3}
    assert complete(words)["classes"] is False
    table = table_of(complete(words | {"classes": True, "held_out": 0.4}))
    assert table.classes == ("0", "1")


@pytest.mark.parametrize(("more", "words"), [
    (["--y", "levle"], "there is no column 'levle': did you mean 'level'?"),
    (["--x", "time,ward"], "column 'ward' holds 'ward 0' in row 1, which is no number"),
    (["--y", "level,name"], "column 'name' holds 'low' in row"),
    (["--y", "name,ward"], "of classes, one column is needed"),
    (["--shots", 9], "task 'p0' has 5 examples, and 9 + 1 are needed"),
    (["--shots", 9, "--short", "drop"], "no task has 9 + 1 rows"),
    (["--held-out", 0.1], "two are needed to judge by"),
    (["--held-out", 2], "held_out=2.0: a share between 0 and 1"),
    (["--method", "protonet"], "protonet needs examples of every class"),
    (["--method", "ridge", "--y", "name"], "ridge fits numbers, and y names classes"),
    (["--ways", 3], "--ways does not go with table and maml"),
    (["--root", "."], "--root . does not go with table"),
    (["--validate-every", 2], "a table has no validation tasks")])
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(trained, tmp_path, more, words):
    said = metalit("train", "table", trained / "data.csv", *COLUMNS, *SMALL, "--out",
                   tmp_path / "run", *more, code=1)
    assert words in " ".join(said.split()) and not (tmp_path / "run").exists()


def test_a_file_is_asked_for_and_no_other_family_takes_one(trained, tmp_path):
    for words, sentence in [
            (["table", *COLUMNS], "data is missing: a table needs the name of its file"),
            (["table", trained / "data.csv", *COLUMNS[:4]], "y is missing"),
            (["sinusoids", trained / "data.csv"], "does not go with sinusoids and maml"),
            ([trained / "data.csv"], "A file of rows is a table"),
            (["table", tmp_path / "no.csv", *COLUMNS], "no.csv: No such file")]:
        assert sentence in metalit("train", *words, "--out", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


def test_gaps_and_groups_reach_the_table(trained, tmp_path):
    file = tmp_path / "data.csv"
    file.write_text((trained / "data.csv").read_text() + "p1,23,,1.5,low,ward 0\n")
    words = {"family": "table", "data": str(file), "task": "patient", "x": ["time", "dose"],
             "y": ["level"], "method": "maml", "seed": 0, "shots": 3, "held_out": 0.5}
    with pytest.raises(ValueError, match="cells are empty: 1 in 'dose'"): build(complete(words))
    table = table_of(complete(words | {"missing": "drop", "groups": "ward"}))
    wards = [{int(name[1:]) // 2 for name in pile.names} for pile in (table.train, table.test)]
    assert len(table.test) == 4 and not wards[0] & wards[1]


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if not recipe.classes])
def test_every_method_for_numbers_learns_from_a_table_of_unequal_tasks(trained, method):
    words = {"family": "table", "data": str(trained / "data.csv"), "task": "patient",
             "x": ["time"], "y": ["level"], "method": method, "seed": 0, "shots": 4}
    experiment = build(complete(words | {"held_out": 0.4}))
    J = experiment.J.double().eval()                         # without noise, where there is some
    task = experiment.train.batch(6).to(dtype=torch.float64)
    values = [J.per_task(tasks)[0] for tasks in (task, ml.tasks.unpadded(task))]
    torch.testing.assert_close(*values, rtol=0, atol=1e-10)
