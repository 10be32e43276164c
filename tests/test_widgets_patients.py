"""The figure of patients: the browser computes what torch computes, and both what the library does.
"""
import random

import pytest
import torch
from helpers import in_javascript, numbers

import metalit as ml
from metalit.data.patients import THEOPHYLLINE, Fit, Patients, posterior, theophylline
from metalit.widgets import patients
from metalit.widgets.patients import (
    GRID,
    forecast_of,
    meta_trained,
    population,
    the_twelve,
    with_dose,
)


@pytest.fixture(scope="module")
def figure(): return patients()


def random_states(figure, count, seed):
    "Samples as a reader may drag them, near to a patient's and far from any."
    draw = random.Random(seed)
    for _ in range(count):
        points = [[round(draw.uniform(0.05, 24.5), 2), round(draw.uniform(0, 14), 2)]
                  for _ in range(3)]
        if draw.random() < 0.5: points = draw.choice(the_twelve())["samples"][:3]
        yield figure.state | {"points": points, "dose": round(draw.uniform(1, 8), 2),
                              "steps": draw.randint(0, 5)}


def test_the_browser_computes_what_torch_computes(figure):
    states = list(random_states(figure, 12, seed=2))
    for state, found in zip(states, in_javascript(figure, *states), strict=True):
        expected = figure._picture(state)
        assert found.keys() == expected.keys()
        for key in expected:
            ours, theirs = (torch.tensor(numbers(part[key])).double() for part in (found, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=f"{key}: {state}")


def test_the_curves_are_those_of_the_library():
    J, state = meta_trained(), patients(3).state
    support, dose = theophylline(3).to(torch.float64).select(slice(2, 3)).support, state["dose"]
    picture = forecast_of(state, J, population())
    x = with_dose(picture["x"], torch.tensor(dose).double())[None]
    torch.testing.assert_close(picture["map"], Fit(posterior).predict(support, x)[0, :, 0],
                               rtol=1e-6, atol=1e-6)
    for k in range(6):
        wanted = J.predict(J.adapt(support, steps=k), x)[0, :, 0].detach()
        torch.testing.assert_close(picture["curves"][k], wanted, rtol=1e-5, atol=1e-5)
    assert len(picture["x"]) == GRID[2] and picture["mean"][0] == picture["map"][0] == 0


def test_the_network_has_the_weights_and_step_sizes_that_it_learned():
    J = meta_trained()
    assert next(J.parameters()).dtype == torch.float64
    for place, rate in zip(J.model.parameters(), J.inner.parameters(), strict=True):
        assert place.shape == rate.shape
    assert len({rate.item() for rate in next(J.inner.parameters()).flatten()}) > 70
    before, after = ml.evaluate(J, Patients(3).held_out(100).to(torch.float64), steps=(0, 5)).mean
    assert after < before


@pytest.mark.parametrize("patient", [1, 12])
def test_it_begins_with_a_real_patient(patient):
    state = patients(patient).state
    _, dose, hours, values = THEOPHYLLINE[patient - 1]
    assert state["dose"] == dose and len(state["points"]) == 3 and len(state["later"]) == 7
    assert [*state["points"], *state["later"]] == [list(map(float, pair)) for pair in
                                                   zip(hours[1:], values[1:], strict=True)]


@pytest.mark.parametrize(("change", "words"), [
    ({"points": []}, "1 to 10 pairs"), ({"points": [[0.0, 1.0]] * 3}, "1 to 10 pairs"),
    ({"points": [[1.0, -1.0]] * 3}, "1 to 10 pairs"), ({"dose": 0.0}, "above 0"),
    ({"steps": 6}, "0 to 5 inner steps"), ({"device": "toaster"}, "no device 'toaster'")])
def test_a_state_out_of_bounds_is_told(figure, change, words):
    assert words in figure._picture(figure.state | change)["message"]


@pytest.mark.parametrize("patient", [0, 13])
def test_a_patient_who_is_none_of_the_twelve_is_refused(patient):
    with pytest.raises(ValueError, match="one of the twelve"): patients(patient)


def test_one_sample_is_enough_and_the_still_picture_is_one(figure):
    picture = figure._picture(figure.state | {"points": [[2.0, 5.0]], "later": []})
    assert "message" not in picture
    assert figure.still().startswith(b"\x89PNG")
    assert 'alt="Concentration of a drug' in figure.html()


@pytest.mark.gpu
def test_the_device_is_honoured(figure):
    here, there = (torch.tensor(numbers(figure._picture(figure.state | {"device": device})))
                   for device in ("cpu", "cuda:0"))
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-6)
