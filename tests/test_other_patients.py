"""Patients that are not one compartment: their curves against equations solved step by step."""
import pytest
import torch

import metalit as ml
from metalit.data.other_patients import WAYS, OtherPatients, map_of, two_compartments
from metalit.data.patients import Fit, MeanCurve, Patients, concentration, posterior

FOUR = torch.tensor(4.0, dtype=torch.float64)


def logs(*numbers): return torch.tensor(numbers, dtype=torch.float64).log()


def solved(rates, doses, hours=8, step=0.01):
    "Runge and Kutta, order four, of ẋ = rates·x for gut, blood, tissue; `doses` by the hour."
    state, found = torch.zeros(3, dtype=torch.float64), []
    for i in range(round(hours / step)):
        state[0] += doses.get(round(i * step, 6), 0.0)
        k1 = rates @ state
        k2 = rates @ (state + step / 2 * k1)
        k3 = rates @ (state + step / 2 * k2)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + rates @ (state + step * k3))
        found.append(state[1])
    return step * torch.arange(1, len(found) + 1).double(), torch.stack(found)


def rates_of(ka, clearance, volume, there=0.0, back=0.0):
    return torch.tensor([[-ka, 0, 0], [ka, -clearance / volume - there, back], [0, there, -back]],
                        dtype=torch.float64)


@pytest.mark.parametrize(("ka", "clearance", "volume"), [(1.5, 0.05, 0.5), (0.08, 0.1, 0.4)])
@pytest.mark.parametrize("way", ["one compartment", "delay", "second peak", "two compartments"])
def test_the_curve_solves_its_equations(way, ka, clearance, volume):
    more, tissue, doses = {
        "one compartment": ((), (), {0.0: 4.0}), "delay": ((0.7,), (), {0.7: 4.0}),
        "second peak": ((0.25, 5.0), (), {0.0: 3.2, 5.0: 0.8}),
        "two compartments": ((0.4, 0.3), (0.4, 0.3), {0.0: 4.0})}[way]
    times, amount = solved(rates_of(ka, clearance, volume, *tissue), doses)
    body = logs(ka, clearance, volume, *more)
    torch.testing.assert_close(WAYS[way].curve(times, FOUR, body), amount / volume, rtol=1e-7,
                               atol=1e-7)


@pytest.mark.parametrize("which", ["quick", "slow"])
@pytest.mark.parametrize("apart", [0, 1e-14, -1e-9, 1e-5, -1e-2])
def test_nothing_cancels_where_absorption_meets_one_of_both_rates(which, apart):
    ke, there, back = 0.1, 0.4, 0.3
    total = ke + there + back
    quick = (total + (total**2 - 4 * ke * back) ** 0.5) / 2
    ka = {"quick": quick, "slow": ke * back / quick}[which] * (1 + apart)
    times, amount = solved(rates_of(ka, 0.05, 0.5, there, back), {0.0: 4.0})
    body = logs(ka, 0.05, 0.5, there, back)
    torch.testing.assert_close(two_compartments(times, FOUR, body), amount / 0.5, rtol=1e-7,
                               atol=1e-7)
    single = two_compartments(times.float(), FOUR.float(), body.float())
    torch.testing.assert_close(single.double(), amount / 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_it_has_its_slopes(way):
    hours = torch.tensor([0.9, 2.0, 9.0], dtype=torch.float64)
    body = WAYS[way].middle.double().log().requires_grad_()
    assert torch.autograd.gradcheck(lambda body: WAYS[way].curve(hours, FOUR, body), body)


def test_each_way_without_what_it_adds_is_one_compartment():
    hours, plain = torch.linspace(0.1, 24, 30).double(), (1.5, 0.05, 0.5)
    wanted = concentration(hours, FOUR, logs(*plain))
    for way, more in {"delay": (1e-12,), "second peak": (1e-12, 6.0),
                      "two compartments": (1e-12, 0.3)}.items():
        torch.testing.assert_close(WAYS[way].curve(hours, FOUR, logs(*plain, *more)), wanted)


def test_one_compartment_is_the_family_of_before():
    one, other = OtherPatients("one compartment", shots=4), Patients(shots=4)
    torch.testing.assert_close(one.batch(5).query.y, other.batch(5).query.y, rtol=0, atol=0)
    support = one.batch(5).support
    x = one.batch(5).query.x
    torch.testing.assert_close(map_of("one compartment").predict(support, x),
                               Fit(posterior).predict(support, x), rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_simulated_patients_are_of_their_way(way):
    family, of = OtherPatients(way, shots=2, noise=(0.0, 0.0)), WAYS[way]
    bodies, dose, hours = family.drawn(20_000, ml.tasks.Random.of_steps(0, [0], 20_000))
    torch.testing.assert_close(bodies.mean(0), of.middle.log(), rtol=0, atol=0.02)
    torch.testing.assert_close(bodies.std(0), of.spread, rtol=0.02, atol=0)
    task = family.batch(20_000)
    support = of.curve(hours, dose, bodies)[:, :2, None]
    torch.testing.assert_close(task.support.y, support, rtol=1e-4, atol=1e-4)
    assert task.query.y.shape == (20_000, 8, 1) and torch.isfinite(task.query.y).all()
    together = family.batches(3, 0, [4, 7])
    assert torch.equal(together[1].query.y, family.batch(3, 0, 7).query.y)


@pytest.mark.parametrize("way", ["delay", "second peak", "two compartments"])
def test_who_knows_the_way_forecasts_better_than_who_does_not(way):
    family = OtherPatients(way, shots=6)
    wrong, right, mean = (ml.evaluate(one, family, n_tasks=60, steps=(0,)) for one in (
        map_of("one compartment"), map_of(way), MeanCurve(500, patients=family)))
    assert wrong.minus(right).mean[0] > wrong.minus(right).ci95[0]
    assert right.mean[0] < mean.mean[0]


def test_the_mean_curve_is_that_of_its_patients():
    family = OtherPatients("delay", shots=2)
    mean = MeanCurve(40, patients=family)
    task = family.batch(2)
    hours, dose = task.query.x[1, 3:4].unbind(-1)
    by_hand = sum(family.curve(hours, dose, body) for body in mean.bodies) / 40
    torch.testing.assert_close(mean.predict(task.support, task.query.x)[1, 3], by_hand)


def test_a_way_that_is_none_is_named():
    for call in (lambda: OtherPatients("three"), lambda: map_of("three")):
        with pytest.raises(ValueError, match="'three': one of 'one compartment', 'delay'"): call()
    assert repr(OtherPatients("delay", 2)) == "OtherPatients('delay', shots=2)"
