"""The large measurement: a small one in this process, stopped, gone on with, and its table."""
import json
import math

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from reproduce import measurement
from reproduce.measurement import (
    BEDS,
    FACTORS,
    Host,
    Store,
    asked_for,
    beside_maml,
    chosen,
    paired,
    recipes,
    table_of,
    with_rows_of,
    worst_of,
)
from tools import tables

ASKED = ["--quick", "--only", "bowls/maml", "bowls/blind", "bowls/meta-sgd"]


class Trainings:
    "Counts the trainings; one of them is interrupted."
    def __init__(self, real, stops_at=None):
        self.real, self.stops_at, self.count = real, stops_at, 0

    def __call__(self, *args, **options):
        if self.count == self.stops_at: raise KeyboardInterrupt
        self.count += 1
        return self.real(*args, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder where 20 meta-steps were interrupted at the ninth training, and gone on with."
    folder, patch = tmp_path_factory.mktemp("measured"), pytest.MonkeyPatch()
    patch.chdir(folder)
    first = Trainings(ml.meta_train, stops_at=9)
    patch.setattr(measurement.ml, "meta_train", first)
    with pytest.raises(KeyboardInterrupt): measurement.main([*ASKED, "--runs", "runs"])
    at_stop = json.loads((folder / "results/measurement.json").read_text())
    second = Trainings(first.real)
    patch.setattr(measurement.ml, "meta_train", second)
    measurement.main([*ASKED, "--runs", "runs"])
    third = Trainings(first.real)
    patch.setattr(measurement.ml, "meta_train", third)
    measurement.main([*ASKED, "--runs", "runs"])
    patch.undo()
    return folder, (first.count, second.count, third.count), at_stop


@pytest.fixture(scope="module")
def found(place): return json.loads((place[0] / "results/measurement.json").read_text())


def test_a_kill_loses_one_run_and_what_is_finished_is_not_trained_again(place):
    "MAML: five rates and two seeds; then two of Meta-SGD's rates, which are tried again as one."
    assert place[1] == (9, len(FACTORS) + 2, 0)
    rows = place[2]["suites"]["bowls"]["rows"]
    assert list(rows) == ["maml"] and rows["maml"]["seeds"] == [0, 1]


def test_the_rate_is_the_one_that_did_best_in_the_search(found):
    for method in ("maml", "meta-sgd"):
        about = found["suites"]["bowls"]["rows"][method]["chosen"]
        assert list(about["tried"]) == [f"{0.1 * factor:g}" for factor in FACTORS]
        assert about["tried"][f"{about['rate']:g}"] == min(about["tried"].values())


def test_figures_are_those_of_a_training_by_hand(place, found):
    row = found["suites"]["bowls"]["rows"]["maml"]
    suite, losses = ml.suites.get("bowls"), []
    for seed in (0, 1):
        J = ml.MAML(BEDS["bowls"].model(seed), BEDS["bowls"].loss, lr=row["chosen"]["rate"])
        ml.meta_train(J, suite.train, steps=20, seed=seed, progress=False, device="cpu")
        losses.append(ml.evaluate(J, suite, steps=(1,)).mean[0])
    assert row["loss"]["1"]["mean"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    moved = BEDS["bowls"].shifts()["steeper"]
    run = json.loads((place[0] / "runs/bowls/20-steps/maml/seed1.json").read_text())
    assert run["shifts"]["steeper"][1] == pytest.approx(
        ml.evaluate(J, moved, steps=(1,)).mean[0], rel=1e-9)


def test_one_host_is_as_many_fresh_ones(monkeypatch):
    host = Host("bowls", "meta-sgd")
    for seed, rate in ((1, 0.3), (2, 0.05), (1, 0.3)):
        J, _ = host.trained(seed, rate, 3, compile=False)
        fresh = ml.MetaSGD(host.bed.model(seed), host.bed.loss, lr=rate)
        ml.meta_train(fresh, ml.suites.get("bowls").train, steps=3, batch_size=25, seed=seed,
                      progress=False, device="cpu")
        assert J.inner.lr == rate
        assert all(torch.equal(p, q) for p, q in
                   zip(J.parameters(), fresh.parameters(), strict=True))


def test_a_search_in_which_all_diverge_keeps_the_rate_of_the_recipe(tmp_path, monkeypatch):
    def diverges(*args, **options): raise ml.DivergedError("too far")
    monkeypatch.setattr(measurement.ml, "meta_train", diverges)
    store, host = Store(tmp_path, "bowls", 20), Host("bowls", "maml")
    about = chosen(store, host, compile=False)
    assert about["rate"] == host.usual and set(about["tried"].values()) == {None}
    run = measurement.finished(store, "maml", 0, host, compile=False)
    assert run["status"] == "diverged: too far"
    assert measurement.row(store, "maml", [run], [], 0.95)["diverged"] == [0]


def test_paired_intervals_are_what_one_computes_by_hand():
    gaps = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
    one = paired(gaps, 0.95)
    assert one["mean"] == 3.0                                # variances 2 and 1, of 2 and of 3
    assert one["half"] == pytest.approx(12.7062 * math.sqrt(2 / 2 + 1 / 3), rel=1e-5)
    assert one["verdict"] == "no difference shown"
    assert paired(gaps - 20, 0.95)["verdict"] == "better"
    assert paired(gaps + 20, 0.95)["verdict"] == "worse"
    assert paired(gaps[:1], 0.95) == {"mean": 2.0, "half": None, "verdict": "cannot tell"}


def test_paired_intervals_hold_the_truth_at_least_as_often_as_they_say():
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        seed, task, both = (torch.randn(shape, generator=generator, dtype=torch.float64)
                            for shape in ((5, 1), (1, 40), (5, 40)))
        one = paired(0.1 * seed + 0.7 * task + 0.5 * both, 0.95)
        held += abs(one["mean"]) <= one["half"]
    assert held >= 0.95 * 400


def made_up(method, seed, losses, own=1):
    return {"method": method, "seed": seed, "own_steps": own, "losses": [losses] * 5}


def test_beside_maml_are_seeds_that_both_have_and_finite_losses_only():
    maml = [made_up("maml", seed, [1.0, 2.0]) for seed in (0, 1)]
    mine = [made_up("x", seed, [0.5, 1.0 + seed]) for seed in (1, 2)]
    assert beside_maml(mine, maml, 0.95)["mean"] == -0.25
    assert beside_maml(maml, maml, 0.95) is None
    assert beside_maml([made_up("x", 5, [0.0, 0.0])], maml, 0.95) is None
    gone = [made_up("x", 0, [None, 1.0])]
    assert table_of(gone, 1).isnan().tolist() == [[True, False]]
    assert beside_maml(gone, maml, 0.95)["verdict"] == "not finite"


def test_the_worst_tasks_are_those_of_the_largest_losses():
    losses = torch.arange(40.0).double()
    assert worst_of(losses) == 38.5
    assert worst_of(losses.index_fill(0, torch.tensor([3]), math.nan)) is None


def test_it_says_what_there_is_and_how_long_it_takes(place, monkeypatch, capsys):
    monkeypatch.chdir(place[0])
    monkeypatch.setattr(measurement, "methods", lambda name: ["maml", "blind", "conml"])
    measurement.main([*ASKED[:4], "--plan", "--runs", "runs"])
    assert "bowls                maml                           0.0 min" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no suite 'bowl'"): asked_for(["bowl"])
    with pytest.raises(SystemExit, match="no method 'mamal' for bowls"): asked_for(["bowls/mamal"])
    assert asked_for(["bowls/maml", "bowls/blind"]) == {"bowls": ["maml", "blind"]}


def test_who_does_not_go_with_a_suite_is_told(found):
    left_out = found["suites"]["bowls"]["left_out"]
    assert {"ridge", "cavia", "boil"} == set(left_out) and all(left_out.values())
    assert {"tail", "worst-case", "oversampled"} <= set(recipes("amplitude-bins"))


def test_rows_whose_runs_are_gone_stay_if_they_were_measured_alike(found):
    whole = found["suites"]["bowls"]
    def only(*methods, **changed):
        rows = {method: whole["rows"][method] | changed for method in methods}
        return whole | {"rows": rows}
    assert with_rows_of(only("maml", "blind"), only("maml", "meta-sgd"))["rows"] == {
        method: whole["rows"][method] for method in whole["planned"] if method in whole["rows"]}
    assert with_rows_of({}, only("maml")) == only("maml")
    other = only("blind") | {"settings": whole["settings"] | {"meta_steps": 21}}
    assert with_rows_of(other, only("maml")) == only("maml")
    fewer = only("maml", seeds=[0], loss={})
    assert with_rows_of(whole, fewer)["rows"]["maml"] == fewer["rows"]["maml"]
    with pytest.raises(ValueError, match="maml does not come out as in the file"):
        with_rows_of(whole, only("maml", loss={}))


def test_the_table_says_what_is_measured_and_what_not(found):
    text = tables.measurement("bowls")(found)
    assert "| maml | 2 |" in text and "| blind | 2 |" in text
    assert "with all 2 seeds: 3 of" in text and "Not measured yet: fomaml, " in text
    assert "ridge (" in text and found["suites"]["bowls"]["settings"]["checksum"][:16] in text
    assert tables.measurement("amplitude-bins")(found) == "*Not measured yet.*"
    assert "| after its own steps | as trained | further apart | steeper |" in tables.shifted(
        "bowls")(found)


def test_numbers_of_the_table():
    assert tables.beside_of({"mean": -0.5, "half": 0.1, "verdict": "better"}) == "**-0.50 ± 0.10**"
    assert tables.beside_of({"mean": 0.5, "half": 0.6, "verdict": "no difference shown"}) == (
        "+0.50 ± 0.60")
    assert tables.beside_of({"mean": None, "half": None, "verdict": "not finite"}) == "not finite"
    astray = [{"mean": mean, "half": 9.0, "verdict": "no difference shown"} for mean in (-2e6, 2e6)]
    assert list(map(tables.beside_of, astray)) == ["MAML blows up", "blows up"]
    chosen_ = {"rate": 0.1, "at_the_end": True, "tried": {}}
    assert tables.measured_cells({"diverged": [0], "chosen": chosen_}) == [
        "0.1*", "diverged", "diverged", "diverged", "", "", "", "", ""]


def test_the_families_of_the_beds_are_those_of_their_suites():
    for name, bed in BEDS.items():
        task = ml.suites.get(name).train.batch(2)
        assert bed.loss(bed.model(0)(task.query.x[0]), task.query.y[0]).isfinite()
    assert BEDS["sinusoids-5-shot"].loss is F.mse_loss
