"""What the commands about patients count: widths, differences, and the table of 65 patients."""
import numpy as np
import pytest
import torch

import metalit as ml
from metalit.data.patients import BODY, NOISE, SPREAD, MeanCurve, Patients, theophylline
from reproduce import patient_intervals, patients, remifentanil, wrong_patients


def test_left_out_of_twelve_eleven_are_held_whatever_their_scores():
    for seed in range(5):
        scores = torch.rand(12, 3, generator=torch.Generator().manual_seed(seed)).double()
        widths, held = patient_intervals.left_out(scores)
        assert held.sum(0).tolist() == [11, 11, 11]
        order = scores.sort(0).values
        for place in range(3):
            found = widths[:, place].sort().values
            assert found[0] == order[-2, place] and (found[1:] == order[-1, place]).all()


def test_what_sets_hold_is_counted_set_by_set():
    draw = torch.Generator().manual_seed(0)
    calibration, fresh = (torch.rand(count, 2, generator=draw).double()
                          for count in (99 * 40, 4000))
    found = patient_intervals.row(calibration, fresh, fresh[:12])
    assert abs(found["fresh"] - 0.9) < 4 * found["fresh error"] < 0.05
    sets = calibration.unflatten(0, (99, 40)).sort(0).values[89]
    by_hand = [(fresh <= width).double().mean() for width in sets]
    assert found["fresh"] == pytest.approx(torch.stack(by_hand).mean().item())
    assert found["fresh deviation"] == pytest.approx(torch.stack(by_hand).std().item())
    assert found["width"] == pytest.approx(2 * sets.mean().item())
    assert len(found["patients"]) == 12


def test_scores_together_are_the_largest_of_each_patient():
    task = theophylline(3)
    scores = patient_intervals.all_scores(MeanCurve(50), task)
    said = MeanCurve(50).predict(task.support, task.query.x)
    away = (said - task.query.y)[..., 0].abs().double()
    torch.testing.assert_close(scores["each"], away)
    torch.testing.assert_close(scores["together"], away.amax(1, keepdim=True))


def test_a_row_is_of_the_same_patients_as_map():
    errors, of_map = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    found = wrong_patients.row(errors.double(), {"MAP": of_map.double()})
    assert (found["mean"], found["less"]["MAP"]["mean"]) == (2.0, 0.0)
    assert found["by sample"] == [1.5, 2.5]
    assert found["less"]["MAP"]["by sample"] == [0.5, -0.5]
    task = Patients(4).held_out(5)
    mean = MeanCurve(50)
    torch.testing.assert_close(wrong_patients.squares(mean.predict, task).mean(1),
                               ml.evaluate(mean, task, steps=(0,)).per_task[:, 0])


def test_who_fits_the_population_finds_the_one_that_patients_were_drawn_from():
    found = wrong_patients.refitted("one compartment", count=400, rounds=6).objective.keywords
    torch.testing.assert_close(found["middle"].float(), BODY, rtol=0.06, atol=0)
    torch.testing.assert_close(found["spread"].float(), SPREAD, rtol=0.15, atol=0)
    torch.testing.assert_close(found["noise"], torch.tensor(NOISE).double(), rtol=0.05, atol=0)


@pytest.fixture(scope="module")
def frame():
    """A stand-in for the 65 patients: 16, of 10 to 17 samples, one of them without a value.

    log concentration = the patient's own number + minutes / 10, until the infusion stops at 5.
    """
    random, rows = np.random.default_rng(0), []
    for who in range(16):
        own, count = random.normal(), 10 + who % 8
        for i in range(count):
            value = np.nan if i == 0 else np.exp(own + min(i, 5) / 10)
            rows.append((who, float(i), value, 70.0 if i < 5 else 0.0, 70.0, 40.0, 50.0))
    columns = zip(*rows, strict=True)
    return dict(zip(("ID", "Time", "conc", "Rate", "Wt", "Age", "LBM"), map(Column, columns),
                    strict=True))


class Column(tuple):
    "A column as data frames have it."
    def to_numpy(self): return np.array(self)


def test_columns_say_when_the_infusion_stopped(frame):
    found = remifentanil.columns(frame)
    one = found["patient"] == 3
    minutes = found["minutes"][one]
    assert np.allclose(np.expm1(found["log_since_stop"][one]), np.maximum(0, minutes - 5))
    assert found["rate"][one].tolist() == [1.0] * 5 + [0.0] * (len(minutes) - 5)
    assert np.isnan(found["log_concentration"][one]).tolist() == [True] + [False] * (
        len(minutes) - 1)


def test_patients_of_unequal_length_are_tasks_of_a_table(frame):
    source = remifentanil.columns(frame)
    tasks = remifentanil.table(source, range(16), [3, 5])
    held_out = tasks.held_out()
    assert held_out.support.y.shape == (2, 8, 1)
    assert held_out.query.mask.sum(1).tolist() == [13 - 9, 15 - 9]
    assert tasks.n_held_out == 2 and len(tasks.train) == 14


def test_who_moves_by_all_that_was_missed_is_right_where_patients_are_factors(frame):
    source = remifentanil.columns(frame)
    tasks = remifentanil.table(source, range(16), range(4))

    def model(x):
        "log concentration but for the patient's own number, in the units of the table."
        minutes = torch.expm1(tasks.x_scale.back(x)[..., :1])
        return minutes.clamp_max(5) / 10 / tasks.y_scale.size.item()
    found = [remifentanil.errors(remifentanil.Moved(model, share), tasks).mean()
             for share in (0.0, 0.5, 1.0)]
    assert found[2] < 1e-8
    assert found[1] == pytest.approx(found[0].item() / 4, rel=1e-4)


def test_every_patient_is_forecast_once_by_all(frame, monkeypatch):
    monkeypatch.setattr(remifentanil, "CHOICE", 3)
    source = remifentanil.columns(frame)
    order = remifentanil.dealt(source)
    found, chosen = remifentanil.over_all(source, order, steps=2, seeds=(0, 1), parts=2)
    assert sorted(order) == list(range(16)) and [len(parts) for parts in chosen] == [2, 2]
    assert set(found) == {"blind", "joint, not adapted", "joint, moved", "joint, fine-tuned",
                          "Meta-SGD", "in context"}
    assert all(values.shape == (2, 16) and values.isfinite().all() for values in found.values())
    assert not torch.equal(*found["Meta-SGD"])


def test_a_row_has_means_over_seeds_and_over_patients():
    "Two seeds, three patients; the one to compare with is off by 1 everywhere."
    row = remifentanil.row(torch.tensor([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]]).double(),
                            torch.ones(2, 3).double())
    assert row["patients"] == [2.0, 2.0, 5.0] and row["seeds"] == [3.0, 3.0]
    assert row["mean"] == 3.0 and row["over seeds"] == 0.0 and row["worst"] == 5.0
    assert row["less fine-tuned"] == 2.0 and row["interval less fine-tuned"][0] >= 1.0


def test_a_table_over_seeds_has_their_mean_and_its_interval():
    "Forecasts that are off by 1, 2 and 3 in every seed; MAP is off by 1."
    split = ml.Split(torch.zeros(4, 3, 2), torch.zeros(4, 3, 1))
    task = ml.Task(split, split)

    def off(by):
        return lambda support, x: torch.full((*x.shape[:2], 1), by)
    found = patients.table({"MAP": [off(1.0)], "mine": [off(1.0), off(2.0), off(3.0)]}, task)
    assert found["mine"]["seeds"] == [1.0, 4.0, 9.0] and found["mine"]["mean"] == 14 / 3
    assert found["mine"]["patients"] == pytest.approx([14 / 3] * 4)
    assert found["mine"]["less MAP"] == pytest.approx(11 / 3)
    deviation = ((1 - 14 / 3) ** 2 + (4 - 14 / 3) ** 2 + (9 - 14 / 3) ** 2) / 2
    assert found["mine"]["over seeds"] == pytest.approx(4.302653 * (deviation / 3) ** 0.5)
    assert found["MAP"]["over seeds"] is None


def test_who_has_a_network_stands_once_for_each_seed():
    names = ("meta-learned", "joint, fine-tuned")
    of_seeds = [dict.fromkeys(names, lambda support, x, seed=seed: seed) for seed in range(3)]
    found = patients.rivals(of_seeds)
    assert list(found) == ["meta-learned", "MAP", "mean curve", "least squares",
                           "joint, fine-tuned"]
    assert [answer(None, None) for answer in found["joint, fine-tuned"]] == [0, 1, 2]
    assert len(found["MAP"]) == 1
