"""A run, read back: what a folder is, what belongs to it, and a task from a file."""
import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import maml, metalit, quick

import metalit as ml
from metalit.judging.runs import load, program, read_columns, read_settings
from metalit.training import identity, load_checkpoint


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    "A run of the command, with a best model that is not the last."
    folder = tmp_path_factory.mktemp("runs") / "run"
    metalit("train", "sinusoids", "--steps", 6, "--batch-size", 2, "--validate-every", 2,
            "--test-tasks", 2, "--meta-lr", 0.5, "--quiet", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def program_run(tmp_path_factory):
    "A run of a program, and its J."
    folder, J = tmp_path_factory.mktemp("mine"), maml()
    quick(J, steps=3, checkpoint=folder, validation=ml.Validation(ml.tasks.Sinusoids(), every=1,
                                                                  n_tasks=2))
    return folder, J


def parameters(J):
    return [p.detach().clone() for p in J.parameters()]


def equal(J, other):
    return all(map(torch.equal, parameters(J), parameters(other)))


def test_a_run_of_the_command_is_built_anew(command):
    run = ml.load(command)
    assert isinstance(run, ml.Run) and run.step == 6 and run.settings["method"] == "maml"
    assert identity(run.tasks) == identity(ml.tasks.Sinusoids(5))
    reference = ml.MAML(ml.models.mlp(1, 40, 40, 1), torch.nn.functional.mse_loss)
    load_checkpoint(command / "checkpoint.pt", reference)
    assert equal(run.J, reference)
    best = ml.load(command, which="best")
    looks = csv.DictReader((command / "validation.csv").read_text().splitlines())
    assert best.step == int(min(looks, key=lambda row: float(row["validation"]))["step"])
    load_checkpoint(command / "best.pt", reference)
    assert equal(best.J, reference)


def test_a_run_of_a_program_is_loaded_into_its_J(program_run):
    folder, J = program_run
    other = maml(seed=1)
    run = load(folder, other)
    assert run.J is other and run.tasks is None and run.step == 3 and equal(other, J)
    assert run.settings["batch_size"] == 4
    assert load(folder, maml(), which="best").step in (1, 2, 3)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: maml(lr=0.02), r"is of another run:\n  J\.inner\.lr was 0\.01, now 0\.02"),
    (lambda: ml.FOMAML(ml.models.mlp(1, 8, 1), torch.nn.functional.mse_loss), "FirstOrder"),
    (lambda: maml(width=9), r"J\.model\.0\.weight was float32 \(8, 1\), now float32 \(9, 1\)"),
])
@pytest.mark.parametrize("which", ["last", "best"])
def test_another_J_is_refused_and_stays_as_it_was(program_run, make, words, which):
    J = make()
    before = parameters(J)
    with pytest.raises(ml.CheckpointError, match=words): load(program_run[0], J, which)
    assert all(map(torch.equal, parameters(J), before))


def test_what_is_no_run_is_named(program_run, tmp_path):
    with pytest.raises(ValueError, match=r"A run of a program is read by ml\.load\(folder, J\)"):
        load(program_run[0])
    with pytest.raises(ValueError, match="which='first': 'last' or 'best'"):
        load(program_run[0], maml(), "first")
    with pytest.raises(FileNotFoundError, match=r"holds no file checkpoint\.pt"):
        load(tmp_path, maml())
    ml.save_checkpoint(tmp_path / "checkpoint.pt", maml())
    with pytest.raises(ml.CheckpointError, match="holds parameters, and no run"):
        load(tmp_path, maml())
    shutil.copy(program_run[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file best\.pt; a run keeps one if"):
        load(tmp_path, maml(), "best")


def test_a_best_model_of_an_earlier_run_is_not_loaded(program_run, tmp_path):
    quick(maml(seed=5), steps=2, checkpoint=tmp_path, seed=5)
    shutil.copy(program_run[0] / "best.pt", tmp_path)
    with pytest.raises(ml.CheckpointError, match=r"best\.pt is not of the run of checkpoint\.pt"):
        load(tmp_path, maml(), "best")


def test_the_command_judges_the_last_where_the_best_is_of_an_earlier_run(command, tmp_path):
    assert "the best on validation" in metalit("evaluate", command, "--tasks", 2)
    shutil.copytree(command, tmp_path / "run")
    shutil.copy(tmp_path / "run" / "checkpoint.pt", tmp_path / "run" / "best.pt")
    whole = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    whole["run"] = "another"
    torch.save(whole, tmp_path / "run" / "best.pt")
    assert "after 6 meta-steps\n" in metalit("evaluate", tmp_path / "run", "--tasks", 2)


def test_data_that_were_replaced_since_are_noticed(tmp_path):
    from PIL import Image
    for c in range(20):
        (tmp_path / "letters" / f"{c:02}").mkdir(parents=True)
        for i in range(2):
            image = Image.new("L", (16, 16), 10 * c + i)
            image.save(tmp_path / "letters" / f"{c:02}" / f"{i}.png")
    metalit("train", tmp_path / "letters", "--ways", 2, "--queries", 1, "--steps", 1,
            "--batch-size", 2, "--filters", 2, "--test-tasks", 2, "--quiet", "--out",
            tmp_path / "run")
    assert load(tmp_path / "run").step == 1
    for c in range(20):
        Image.new("L", (16, 16), 255 - c).save(tmp_path / "letters" / f"{c:02}" / "0.png")
    with pytest.raises(ml.CheckpointError, match=r"is of another run:\n  tasks\.images was uint8"):
        load(tmp_path / "run")


def test_settings_of_a_version_that_wrote_every_option_are_read(command, tmp_path):
    shutil.copytree(command, tmp_path / "run")
    now = read_settings(command)
    before = now | {"ways": None, "filters": 64, "pool": "stride", "protocol": "finn", "size": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(before))
    assert read_settings(tmp_path / "run") == now
    assert ml.load(tmp_path / "run").step == 6
    assert json.loads((command / "run.json").read_text())["metalit"] == "run"


def test_a_run_of_version_0_1_0_is_read_and_does_not_go_on_with_other_tasks(tmp_path):
    shutil.copytree(Path(__file__).parent / "runs" / "0.1.0", tmp_path / "run")
    run = ml.load(tmp_path / "run")
    assert run.step == 2 and run.settings["inner_lr"] == 0.01 and "ways" not in run.settings
    assert "after 2 meta-steps" in metalit("evaluate", tmp_path / "run", "--tasks", 2)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    line = ["train", "sinusoids", "--batch-size", 2, "--steps", 3, "--out", tmp_path / "run",
            "--test-tasks", 2, "--quiet"]
    assert "as those of version 0.1.0, which drew other tasks" in metalit(*line, code=1)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert "after 3 meta-steps" in metalit(*line, "--restart")


# Points


@pytest.mark.parametrize("text", ["x,y\n1,2\n3,4\n", "y,x\n2,1\n4,3\n", "1,2\n3,4\n",
                                  "\ufeffx,y\n1,2\n3,4", "x, y\r\n 1,2\r\n\r\n3, 4\r\n",
                                  'id,"x",y,z\na,1,2,5\nb,"3",4,\n'])
def test_columns_are_found_by_name_or_by_order(tmp_path, text):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8", newline="")
    found = read_columns(tmp_path / "p.csv", ("x", "y"))
    assert found.dtype == torch.float32 and found.tolist() == [[1, 2], [3, 4]]
    if "id" not in text: return
    assert read_columns(tmp_path / "p.csv", ("x",)).tolist() == [[1], [3]]


@pytest.mark.parametrize(("text", "words"), [
    ("x,y\n1,2\n3,four\n", r"p\.csv, line 3: 'four' is no finite number"),
    ("1,2\n\n3\n", r"p\.csv, line 3: 2 columns are needed, found 1"),
    ("a,b\n1,2\n", "the first line holds 'a,b'; columns x and y are needed"),
    ("x,y\n", "holds no numbers"),
    ("1,1e39\n", r"p\.csv, line 1: '1e39' is no finite number"),
    ("1,nan\n", r"p\.csv, line 1: 'nan' is no finite number")])
def test_what_is_no_number_is_named_with_its_line(tmp_path, text, words):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=words): read_columns(tmp_path / "p.csv", ("x", "y"))


def test_a_program_is_tried_before_it_is_given_away(program_run):
    J, x = program_run[1], torch.linspace(-1, 1, 5)[:, None]
    model = J.adapted(x, x.sin())
    again = torch.export.load(io.BytesIO(program(model, x[:1]))).module()  # of one row, for any
    for rows in (1, 2, 5): torch.testing.assert_close(again(x[:rows]), model(x[:rows]))

    class Fickle(torch.nn.Module):
        def forward(self, x): return x + 1 if torch.compiler.is_compiling() else x
    with pytest.raises(ValueError, match="does not say what the model says"): program(Fickle(), x)
