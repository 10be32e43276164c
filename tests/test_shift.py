"""Tasks of another kind, said in words: for one run, for a comparison, and drawn characters beside
Omniglot's.
"""
import csv
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import metalit

import metalit as ml
from metalit.data import omniglot as om
from metalit.data.glyphs import glyphs
from metalit.data.images import Images
from metalit.judging import comparison
from metalit.judging.recipes import complete, sine_network, tasks_elsewhere
from metalit.training.evaluation import NoisySupport

WAVES = {"family": "sinusoids", "method": "maml", "seed": 0}


@pytest.mark.parametrize(("told", "family"), [
    ("shots=1", ml.tasks.Sinusoids(1)),
    ("shots=2, queries=7", ml.tasks.Sinusoids(2, 7)),
    ("x=-10:10,phase=0:6.5", ml.tasks.Sinusoids(5, x=(-10, 10), phase=(0, 6.5))),
    ("amplitude=5:8,shots=3", ml.tasks.Sinusoids(3, amplitude=(5, 8)))])
def test_words_say_which_waves(told, family):
    one, other = tasks_elsewhere(WAVES, told).held_out(5, seed=3), family.held_out(5, seed=3)
    assert torch.equal(one.support.x, other.support.x) and torch.equal(one.query.y, other.query.y)


def test_noise_is_on_what_is_learned_from_alone_and_of_the_size_that_is_said():
    family = ml.tasks.Sinusoids(50)
    plain, loud = family.held_out(400, 1), (noisy := NoisySupport(family, 0.5)).held_out(400, 1)
    error = loud.support.y - plain.support.y
    assert abs(error.std().item() - 0.5) < 0.01 and abs(error.mean().item()) < 0.02
    assert torch.equal(loud.support.x, plain.support.x)
    assert torch.equal(loud.query.y, plain.query.y)
    assert torch.equal(noisy.held_out(400, 1).support.y, loud.support.y)
    errors = [noisy.batch(3, seed, step).support.y - family.batch(3, seed, step).support.y
              for seed, step in ((0, 0), (0, 1), (1, 0))]
    for other in errors[1:]: assert (errors[0] - other).abs().max() > 0.1
    pictures = ml.tasks.Episodes(torch.rand(20, 1, 4, 4), torch.arange(20) // 4, queries=1)
    seen, loud = pictures.held_out(2), NoisySupport(pictures, 0.1).held_out(2)
    assert torch.equal(seen.support.y, loud.support.y)
    assert not torch.equal(seen.support.x, loud.support.x)
    with pytest.raises(ValueError, match="noise=0: a finite number above 0"):
        NoisySupport(family, 0)


@pytest.mark.parametrize(("told", "words"), [
    ("shot=1", r"shift 'shot=1' \(did you mean shots\?\)"), ("shots=0", "shots=0: a whole number"),
    ("shots=1.5", "shots=1.5: a whole number"), ("shots=few", "'few' is no number"),
    ("x=3", "two limits are needed, as in x=0:5"), ("x=3:-3", "the lower limit comes first"),
    ("glyphs", "shift 'glyphs': amplitude, phase, x, shots, queries or noise"),
    ("noise=-1", "noise=-1.0: a finite number above 0"), ("", "shift ''")])
def test_what_no_tasks_can_be_made_of_is_refused(told, words):
    with pytest.raises(ValueError, match=words): tasks_elsewhere(WAVES, told)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shift") / "run"
    metalit("train", "sinusoids", "--steps", 3, "--out", folder, "--test-tasks", 4, "--quiet")
    return folder


def test_evaluate_sets_other_tasks_beside_those_as_trained(run):
    metalit("evaluate", run, "--tasks", 4)
    written = (run / "evaluation.csv").read_text()
    said = metalit("evaluate", run, "--tasks", 4, "--steps", "0,1", "--shift", "shots=1", "--shift",
                   "noise=0.5,x=-9:9", "--beside", "blind")
    rows = list(csv.DictReader((run / "shift.csv").read_text().splitlines()))
    assert [(row["model"], row["tasks"], row["inner_steps"]) for row in rows] == [
        (model, tasks, step) for model, steps in (("J", "01"), ("blind", "0"))
        for tasks in ("as trained", "shots=1", "noise=0.5,x=-9:9") for step in steps]
    J = ml.load(run).J
    by_hand = ml.evaluate(J, ml.tasks.Sinusoids(1), n_tasks=4, steps=[1]).mean[0]
    assert float(rows[3]["loss"]) == pytest.approx(by_hand)
    assert f"{by_hand:.4f}" in said and "blind, noise=0.5,x=-9:9" in said
    assert "as trained" not in metalit("evaluate", run, "--tasks", 4)
    assert (run / "evaluation.csv").read_text() == written
    assert "shift 'noise': amplitude" in metalit("evaluate", run, "--shift", "noise", code=1)


def test_a_comparison_judges_all_methods_on_other_tasks_too(tmp_path):
    words = ["compare", "--methods", "maml,blind", "--steps", 2, "--seeds", "0,1", "--batch-size",
             2, "--quiet", "--out", tmp_path]
    said = metalit(*words, "--shift", "shots=1")
    assert "on tasks of another kind, shots=1" in said
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["command"].endswith("--shift shots=1")
    lines = {(line["method"], line["inner_steps"]): line for line in record["shifts"]["shots=1"]}
    runs, _ = comparison.read_record(tmp_path / "comparison.json")
    assert lines["maml", 1]["loss"] == pytest.approx(
        sum(run.shifts["shots=1"][1]["loss"] for run in runs if run.method == "maml") / 2)
    assert lines["maml", 1]["loss"] != record["summary"][1]["loss"]
    assert lines["blind", 0]["loss"] == pytest.approx(lines["blind", 10]["loss"])
    assert metalit(*words, "--shift", "shots=1").splitlines()[-4:] == said.splitlines()[-4:]
    assert "is of another run:\n  shift was" in metalit(*words, code=1)
    assert "is of another run:\n  shift was" in metalit(*words, "--shift", "shots=2", code=1)


def test_a_comparison_without_a_shift_is_written_as_before(tmp_path):
    found = comparison.compare(ml.tasks.Sinusoids(2), sine_network, F.mse_loss, methods=["blind"],
                               steps=1, seeds=[0], batch_size=2, folder=tmp_path, progress=False)
    assert found[0].shifts is None and "shifts" not in comparison.record(found, {}, "")
    assert "shift" not in json.loads((tmp_path / "settings.json").read_text())


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    "A run on drawn characters, and the folder of its data."
    folder = tmp_path_factory.mktemp("letters")
    glyphs(folder)
    metalit("train", "glyphs", "--method", "protonet", "--root", folder, "--out", folder / "run",
            "--filters", 2, "--steps", 1, "--batch-size", 2, "--test-tasks", 4, "--queries", 1,
            "--quiet")
    return folder


def test_from_drawn_characters_to_omniglot(letters, monkeypatch):
    "A stand-in of as many characters; where the true ones are at hand, see the next test."
    pixels = torch.randint(256, (1623 * 2, 1, 28, 28), dtype=torch.uint8)
    fake = Images(pixels, torch.arange(1623).repeat_interleave(2), [str(c) for c in range(1623)])
    monkeypatch.setattr(om, "omniglot_images", lambda *args: fake)
    said = metalit("evaluate", letters / "run", "--root", letters, "--tasks", 4, "--shift",
                   "omniglot", "--shift", "shots=3,noise=0.2", "--beside", "nearest-mean")
    assert "omniglot " in said and "shots=3,noise=0.2" in said and "nearest-mean, omniglot" in said
    settings = json.loads((letters / "run" / "run.json").read_text())
    there = tasks_elsewhere(complete({name: settings[name] for name in settings
                              if name not in ("metalit", "version")}), "omniglot")
    assert len(there.classes) == 423 and there.queries == 1
