"""Simulated patients and real ones: the curve, the family, the rivals who know the formula."""
import math

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.data.patients import (
    BODY,
    NOISE,
    SPREAD,
    THEOPHYLLINE,
    Curve,
    Fit,
    MeanCurve,
    Patients,
    concentration,
    least_squares,
    minimum,
    phi,
    posterior,
    theophylline,
)

FOUR = torch.tensor(4.0, dtype=torch.float64)
hours = torch.linspace(0, 24, 50, dtype=torch.float64)


def body_of(ka, ke, volume=0.5):
    return torch.tensor([ka, ke * volume, volume], dtype=torch.float64).log()


@pytest.mark.parametrize(("ka", "ke"), [(1.5, 0.1), (0.08, 0.17), (5.0, 0.02)])
def test_the_curve_is_that_of_the_books_where_it_can_be_computed(ka, ke):
    book = 4 / 0.5 * ka / (ka - ke) * ((-ke * hours).exp() - (-ka * hours).exp())
    torch.testing.assert_close(concentration(hours, FOUR, body_of(ka, ke)), book, rtol=1e-12,
                               atol=1e-13)


@pytest.mark.parametrize("apart", [0, 1e-14, -1e-10, 1e-7, -1e-4])
def test_nothing_cancels_where_absorption_and_elimination_are_alike(apart):
    "The books' formula, in fractions of 50 digits, by its series in ka − ke."
    ka, ke = 0.3 * (1 + apart), 0.3
    z = (ka - ke) * hours
    series = sum((-z) ** k / math.factorial(k + 1) for k in range(8))
    expected = 4 / 0.5 * ka * hours * (-ke * hours).exp() * series
    torch.testing.assert_close(concentration(hours, FOUR, body_of(ka, ke)), expected, rtol=1e-12,
                               atol=1e-14)


def test_it_has_its_slopes_where_they_meet_and_on_both_sides():
    for apart in (0, 1e-4, 1e-2):
        body = body_of(0.3 * (1 + apart), 0.3).requires_grad_()
        assert torch.autograd.gradcheck(lambda body: concentration(hours, FOUR, body), body)
    z = torch.tensor([-1e-3, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(phi(z * (1 - 1e-9)), phi(z * (1 + 1e-9)), rtol=1e-11, atol=0)


@pytest.mark.parametrize(("ka", "ke"), [(0.05, 30.0), (1e-3, 500.0), (40.0, 0.02), (0.3, 0.301)])
def test_single_precision_is_enough_whichever_of_the_two_is_slow(ka, ke):
    "e^(ke t) alone would be beyond all numbers of 32 bits, and e^(−ke t) nothing."
    body = body_of(ka, ke)
    right = concentration(hours, FOUR, body)
    book = 4 / 0.5 * ka / (ka - ke) * ((-ke * hours).exp() - (-ka * hours).exp())
    torch.testing.assert_close(right, book, rtol=1e-10, atol=1e-13)
    single = body.float().requires_grad_()
    found = concentration(hours.float(), FOUR.float(), single)
    torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=1e-9)
    slope, = torch.autograd.grad(found.sum(), single)
    expected, = torch.autograd.grad(concentration(hours, FOUR, body.requires_grad_()).sum(), body)
    torch.testing.assert_close(slope.double(), expected, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_right_on_both_sides_of_the_limit_and_at_it():
    for apart in (-1e-5, 0, 1e-5):
        body = body_of(0.3 * (1 + apart), 0.3).requires_grad_()
        assert torch.autograd.gradgradcheck(lambda body: concentration(hours, FOUR, body), body)


def test_the_curve_solves_the_differential_equations():
    body, ka, ke = body_of(1.5, 0.1), 1.5, 0.1
    for hour in (0.3, 2.0, 9.0):
        t = torch.tensor([hour], dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(concentration(t, FOUR, body), t)[0]
        gut = 4 * math.exp(-ka * hour)
        here = concentration(t, FOUR, body).detach()
        torch.testing.assert_close(slope, ka * gut / 0.5 - ke * here)
    assert concentration(torch.zeros(1), torch.tensor(4.0), body.float()) == 0


def test_simulated_patients_are_what_they_say():
    family = Patients(shots=3)
    body, dose, when = family.drawn(20_000, ml.tasks.Random.of_steps(0, [0], 20_000))
    torch.testing.assert_close(body.mean(0), BODY.log(), rtol=0, atol=0.02)
    torch.testing.assert_close(body.std(0), SPREAD, rtol=0.02, atol=0)
    assert dose.min() >= 3 and dose.max() <= 6 and (when.diff(dim=1) > 0).all()
    quiet, loud = (Patients(3, noise=noise).batch(20_000).query.y
                   for noise in ((0.0, 0.0), NOISE))
    gap = ((loud - quiet) / ((0.143 * quiet)**2 + 0.04).sqrt())[:, :3]
    assert abs(gap.mean()) < 0.02 and abs(gap.std() - 1) < 0.02
    task = family.held_out(5)
    assert task.support.x.shape == (5, 3, 2) and task.query.y.shape == (5, 7, 1)
    assert (task.support.x[:, -1, 0] < task.query.x[:, 0, 0]).all()
    with pytest.raises(ValueError, match="there are 10 hours"): Patients(shots=10)


def test_each_number_of_a_simulated_patient_counts():
    first = Patients(3).batch(4).query.y
    for change in ({"body": (1.0, 0.05, 0.484)}, {"spread": (0.5, 0.3, 0.2)}, {"dose": (1.0, 2.0)},
                   {"noise": (0.0, 0.1)}, {"jitter": 0.2}, {"hours": range(1, 11)}):
        assert not torch.equal(Patients(3, **change).batch(4).query.y, first), change


def test_the_twelve_are_twelve_and_their_samples_follow_each_other():
    assert len(THEOPHYLLINE) == 12 and sum(len(c) for *_, c in THEOPHYLLINE) == 132
    assert sum(sum(c) for *_, c in THEOPHYLLINE) == pytest.approx(654.78)
    weights = [weight for weight, *_ in THEOPHYLLINE]
    doses = [weight * dose for weight, dose, *_ in THEOPHYLLINE]
    assert all(266 < dose < 322 for dose in doses) and len(set(weights)) == 11
    for shots in (2, 4):
        task = theophylline(shots)
        assert task.support.x.shape == (12, shots, 2)
        assert task.query.y.shape == (12, 10 - shots, 1)
        assert (torch.cat([task.support.x, task.query.x], 1)[..., 0].diff(dim=1) > 0).all()
    assert theophylline(2).support.y[8, :, 0].tolist() == pytest.approx([7.37, 9.03])


def few(shots=3): return Patients(shots).held_out(12).to(torch.float64)


def middle(count): return BODY.log().double().expand(count, 3)


def test_newton_ends_where_the_slope_is_zero_and_the_objective_bends_up():
    task = few()
    found = minimum(posterior, middle(12), task.support)
    assert torch.func.vmap(torch.func.grad(posterior))(found, task.support).abs().max() < 1e-8
    bend = torch.func.vmap(torch.func.jacrev(torch.func.grad(posterior)))(found, task.support)
    assert torch.linalg.eigvalsh(bend).min() > 0


def test_scipy_ends_at_the_same_places():
    optimize = pytest.importorskip("scipy.optimize")
    for objective, shots in ((posterior, 3), (least_squares, 5)):
        task = few(shots)
        found = minimum(objective, middle(12), task.support, steps=200)
        for i in range(4):
            one = task.support.select(i)

            def value(p, one=one, objective=objective):
                return objective(torch.tensor(p), one).item()
            theirs = optimize.minimize(value, middle(1)[0].numpy(), method="Nelder-Mead",
                                       options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000})
            mine = objective(found[i], one).item()
            assert mine <= theirs.fun + 1e-6 + 1e-4 * abs(theirs.fun), (objective.__name__, i)


def test_who_knows_the_formula_finds_a_body_from_samples_without_noise():
    quiet = Patients(6, noise=(0.0, 0.0)).held_out(20).to(torch.float64)
    found = ml.evaluate(Fit(least_squares), quiet, steps=(0,))
    assert found.mean[0] < 1e-6
    mean, best = (ml.evaluate(one, Patients(4), n_tasks=60, steps=(0,)).mean[0]
                  for one in (MeanCurve(500), Fit(posterior)))
    assert best < mean


def test_the_mean_curve_is_a_mean_of_curves():
    task, mean = few(), MeanCurve(50)
    hours, dose = task.query.x[0, 2:3].unbind(-1)
    by_hand = sum(concentration(hours, dose, body) for body in mean.bodies.double()) / 50
    torch.testing.assert_close(mean.predict(task.support, task.query.x)[0, 2], by_hand)


def test_the_network_is_proportional_to_the_dose_but_for_its_bias():
    model = Curve(seed=3)
    x = torch.tensor([[2.0, 3.0], [2.0, 6.0]])
    one, two = model(x) - model.head.bias
    torch.testing.assert_close(two, 2 * one)
    J = ml.MAML(model, F.mse_loss)
    assert torch.isfinite(J(Patients(3).batch(4)))


@pytest.mark.parametrize("objective", [posterior, least_squares])
def test_padding_is_no_sample(objective):
    longer, shorter = (Patients(shots).held_out(1).to(torch.float64) for shots in (4, 3))
    task, fit = ml.tasks.padded([longer, ml.Task(shorter.support, longer.query)]), Fit(objective)
    assert task.support.mask.sum(1).tolist() == [4, 3]
    alone = fit.predict(shorter.support, longer.query.x)
    torch.testing.assert_close(fit.predict(task.support, task.query.x)[1:], alone)


@pytest.mark.parametrize("shots", [-1, 0, 10])
def test_something_is_learned_and_something_forecast(shots):
    with pytest.raises(ValueError, match=f"shots={shots}, and there are 10"): theophylline(shots)


def test_the_posterior_is_that_of_normal_noise_and_a_normal_population_of_logarithms():
    task, bodies = few(), middle(12) + 0.1 * torch.arange(36).reshape(12, 3) / 36
    values = []
    for i in range(12):
        curve = concentration(*task.support.x[i].unbind(-1), bodies[i])
        noise = torch.distributions.Normal(curve, ((0.143 * curve)**2 + 0.04).sqrt())
        people = torch.distributions.Normal(BODY.log().double(), SPREAD.double())
        said = -noise.log_prob(task.support.y[i, :, 0]).sum() - people.log_prob(bodies[i]).sum()
        values.append(posterior(bodies[i], task.support.select(i)) - said)
    torch.testing.assert_close(torch.stack(values), values[0].expand(12))
