"""Evolution: closed forms, a plain loop over the same starts, its law, its directions, errors."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, quick, times, value_and_gradient
from torch import nn

import metalit as ml
from metalit.gradient.evolution import normal_directions
from metalit.tasks import curvature, half_square

LR, STEPS = 0.2, 3
EYE = torch.eye(4, dtype=torch.float64)


def bowl_J(rule, theta, inner=None, loss=half_square, **options):
    return ml.MetaLoss(ml.models.Point(theta), loss, inner=inner or ml.SGD(LR, STEPS),
                       gradient=rule, **options)


def exact_gradient(task, theta):
    "M^K C(φ_K − q)."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    M = torch.linalg.matrix_power(EYE - LR * A, STEPS)
    return times(M, times(C, s + times(M, theta - s) - q)).mean(0)


class Axes(ml.Evolution):
    "d orthonormal directions, √d long."
    def directions(self, theta):
        turned = torch.linalg.qr(torch.arange(16.0).double().reshape(4, 4).cos()).Q
        return {"theta": 2 * turned}


WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 2},
        "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sigma", [1e-3, 2.0])
def test_on_bowls_the_estimate_has_a_closed_form_for_every_sigma(sigma, way, bowls, start):
    right = exact_gradient(bowls, start)
    J = bowl_J(ml.Evolution(sigma, n=5), start, **WAYS[way])
    value, gradient = value_and_gradient(J, bowls)
    noise = normal_directions({"theta": start}, 0, 0, range(5, 10))["theta"]
    assert value == bowl_J(ml.Exact(), start, **WAYS[way])(bowls)
    close(gradient, noise.mT @ (noise @ right) / 5, atol=1e-11)
    _, gradient = value_and_gradient(bowl_J(Axes(sigma, n=4), start, **WAYS[way]), bowls)
    close(gradient, right, atol=1e-11)


def robust(prediction, y): return (prediction - y).cosh().log().sum()


def test_a_small_sigma_is_a_finite_difference(bowls, start):
    _, gradient = value_and_gradient(bowl_J(Axes(1e-5, n=4), start, loss=robust), bowls)
    _, right = value_and_gradient(bowl_J(ml.Exact(), start, loss=robust), bowls)
    close(gradient, right, atol=1e-8)


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def by_loop(theta, task, noise, sigma):
    "(1/2nσ) Σᵢ (J(θ + σεᵢ) − J(θ − σεᵢ)) εᵢ, one start, one task, one step after the other."
    def J(theta):
        values = []
        for x, y, xq, yq in zip(*task.support[:2], *task.query[:2], strict=True):
            phi = [p.detach() for p in theta]
            for _ in range(2):
                at = [p.requires_grad_() for p in phi]
                g = torch.autograd.grad(error(at, x, y), at)
                phi = [p.detach() - 0.1 * d for p, d in zip(at, g, strict=True)]
            values.append(error(phi, xq, yq).detach())
        return torch.stack(values).mean()
    total = [torch.zeros_like(p) for p in theta]
    n = len(noise[0])
    for i in range(n):
        up, down = (J([p.detach() + sign * sigma * e[i] for p, e in zip(theta, noise, strict=True)])
                    for sign in (1, -1))
        total = [t + (up - down) * e[i] / (2 * n * sigma)
                 for t, e in zip(total, noise, strict=True)]
    return J(theta), torch.cat([t.flatten() for t in total])


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_loop_over_the_same_starts(way, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), gradient=ml.Evolution(0.3, n=4),
                    **WAYS[way])
    found = value_and_gradient(J, sines)
    noise = normal_directions(dict(small_net.named_parameters()), 0, 0, range(4, 8))
    right = by_loop(list(small_net.parameters()), sines, list(noise.values()), 0.3)
    for one, other in zip(found, right, strict=True): close(one, other, atol=1e-12)


class Apart(ml.Term):
    "How far a task goes from θ, nothing held constant."
    def per_task(self, path, task):
        return (path.final["theta"] - path.theta["theta"]).pow(4).sum()


def test_terms_that_compare_tasks_and_look_at_theta(bowls, start):
    "Pooled outside, with the slopes of the pooling; θ is where each trial starts."
    terms = ml.QueryLoss() + 0.3 * Apart() - 0.2 * ml.Contrast("parameters")
    J, K = (bowl_J(rule, start, terms=terms) for rule in (Axes(1e-5, n=4), ml.Exact()))
    close(value_and_gradient(J, bowls)[1], value_and_gradient(K, bowls)[1], atol=1e-7)


def test_theta_of_a_term_is_where_the_trial_starts(bowls, start):
    "Which a small sigma would not show: the derivative by θ alone could come from elsewhere."
    J = bowl_J(Axes(0.5, n=4), start, terms=Apart())
    def value(theta): return J.per_task(bowls, {"theta": theta})[0].mean()
    with torch.no_grad():
        expected = sum((value(start + 0.5 * e) - value(start - 0.5 * e)) * e / 4
                       for e in J.gradient.directions({})["theta"])
    close(value_and_gradient(J, bowls)[1], expected, atol=1e-11)


def test_the_cosine_to_the_exact_gradient():
    "√(n / (n + d)): of its mean over twelve estimates."
    d, task = 30, ml.tasks.Quadratics(dim=30, shift=1.0).batch(2, seed=0)
    J = ml.MetaLoss(ml.models.Point(torch.ones(d).double()), half_square, inner=ml.SGD(LR, 1))
    _, exact = value_and_gradient(J, task)
    for n in (10, 60):
        J.gradient = ml.Evolution(n=n)
        cosines = [F.cosine_similarity(value_and_gradient(J, task)[1], exact, dim=0).item()
                   for _ in range(12)]
        assert sum(cosines) / 12 == pytest.approx(math.sqrt(n / (n + d)), abs=0.05)


def test_the_mean_of_many_estimates_is_the_gradient(bowls, start):
    _, gradient = value_and_gradient(bowl_J(ml.Evolution(0.1, n=40_000), start), bowls)
    right = exact_gradient(bowls, start)
    assert (gradient - right).norm() < 0.03 * right.norm()


class Rounded(ml.SGD):
    "Weights that are kept as multiples of an eighth."
    def step(self, loss, phi, state, k):
        phi, state = super().step(loss, phi, state, k)
        return {name: (value * 8).round() / 8 for name, value in phi.items()}, state


class Choosy(ml.InnerLoop):
    "A step with the best of three lengths, chosen by numbers in Python."
    def step(self, loss, phi, state, k):
        slope = ml.batching.slope.grad(loss)(phi)
        ends = [{n: p - a * slope[n] for n, p in phi.items()} for a in (0.0, 0.2, 0.8)]
        return ends[min(range(3), key=lambda i: loss(ends[i]).item())], state


@pytest.mark.parametrize(("inner", "batching"), [(Rounded(LR, 2), "vmap"), (Rounded(LR, 2), "loop"),
                                                 (Choosy(2), "loop")], ids=str)
def test_inner_loops_without_a_derivative(inner, batching, bowls, start):
    J = bowl_J(ml.Evolution(0.2, n=6), start, inner, batching=batching)
    optimizer, values = torch.optim.SGD(J.parameters(), lr=0.3), []
    for step in range(8):
        J.at(step, 8)
        optimizer.zero_grad()
        values.append(J(bowls))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.95 * values[0]
    if isinstance(inner, Rounded):
        assert not value_and_gradient(bowl_J(ml.Exact(), start, inner), bowls)[1].any()


# Directions


def gradient_at(J, task, step=None):
    if step is not None: J.at(step, 10)
    return value_and_gradient(J, task)[1]


def test_each_call_and_each_step_tries_new_ones(bowls, start):
    J = bowl_J(ml.Evolution(n=3), start)
    calls = [gradient_at(J, bowls) for _ in range(3)] + [gradient_at(J, bowls, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(calls) for b in calls[:i])
    assert torch.equal(gradient_at(J, bowls, 0), calls[0])
    assert torch.equal(gradient_at(J, bowls, 1), calls[3])
    J.at(1, 10)
    with torch.no_grad(): J(bowls)                           # no gradient, no directions
    J.report(bowls)
    assert torch.equal(gradient_at(J, bowls), calls[3])
    other = bowl_J(ml.Evolution(n=3, seed=1), start)
    assert not torch.equal(gradient_at(other, bowls, 1), calls[3])


def test_directions_are_numbered():
    "Which are drawn together makes no difference; they are no numbers of a family's tasks."
    theta = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}
    whole, part = (normal_directions(theta, 5, 7, numbers) for numbers in (range(9), range(4, 6)))
    assert all(torch.equal(whole[name][4:6], part[name]) for name in theta)
    assert whole["a"].dtype == torch.float32 and whole["a"].shape == (9, 2, 3)
    many = normal_directions({"w": torch.zeros(1000)}, 0, 0, range(20))["w"]
    close(many.mean(), 0.0, 0.03)
    close(many.std(), 1.0, 0.03)
    of_tasks = ml.tasks.Random.of_steps(0, [0], 20).normal((20, 1000))
    assert abs((many * of_tasks).mean()) < 0.03


def test_two_batches_in_one_step_with_chunks_go_back_each_to_its_own(bowls, start):
    "The way back of the first comes after the second was computed."
    J, K = (bowl_J(ml.Evolution(n=3), start, **options) for options in ({}, {"chunk_size": 2}))
    one, two = gradient_at(J, bowls), gradient_at(J, bowls)
    (K(bowls) + K(bowls)).backward()
    close(K.model.theta.grad, one + two, atol=1e-12)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_all_trials_of_a_task_draw_the_same_numbers(batching, sines):
    "With another mask for each start, the difference of a pair would be the masks', over 2σ."
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    J = ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.1, 2), gradient=ml.Evolution(1e-6, n=3),
                    batching=batching)
    torch.manual_seed(0)
    assert gradient_at(J, sines).norm() < 1e3


def test_what_else_is_learned_keeps_its_exact_derivative(small_net, sines):
    J, K = (ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2, learn_lr=True), gradient=rule)
            for rule in (ml.Evolution(n=2), ml.Exact()))
    for one in (J, K): value_and_gradient(one, sines)
    close(J.inner.lr.grad, K.inner.lr.grad.item(), atol=1e-13)


def test_frozen_parameters_are_not_moved(small_net, sines):
    small_net[0].requires_grad_(False)
    J = ml.MetaLoss(small_net, F.mse_loss, gradient=ml.Evolution(n=2))
    J(sines).backward()
    assert small_net[0].weight.grad is None and small_net[2].weight.grad.norm() > 0



def test_a_loop_of_ones_own_goes_on_from_a_checkpoint(tmp_path, bowls, start):
    "The number of calls is kept, also where no one says which step it is."
    def fresh():
        J = bowl_J(ml.Evolution(n=2), start)
        return J, torch.optim.SGD(J.parameters(), lr=0.1)

    def steps(J, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            J(bowls).backward()
            optimizer.step()
    (whole, first), (half, second), (rest, third) = fresh(), fresh(), fresh()
    steps(whole, first, 4)
    steps(half, second, 2)
    ml.save_checkpoint(tmp_path / "c.pt", half)
    ml.load_checkpoint(tmp_path / "c.pt", rest)
    steps(rest, third, 2)
    assert torch.equal(whole.model.theta, rest.model.theta)


def test_sigma_may_have_a_schedule(tmp_path):
    J = ml.MAML(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss,
                gradient=ml.Evolution(ml.schedule.Linear(0.5, 0.1), n=2))
    quick(J, steps=3)
    assert J.gradient.sigma == 0.1 and J.gradient.step == 2.0 and J.gradient.calls == 1.0


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ml.Evolution(0.0), "sigma=0.0: a finite number, above 0"),
    (lambda: ml.Evolution("wide"), "sigma='wide'"), (lambda: ml.Evolution(n=0), "n=0: how many"),
    (lambda: ml.Evolution(n=2.5), "n=2.5"), (lambda: ml.Evolution(seed=-1), "seed=-1: a whole")])
def test_what_is_no_setting(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_a_term_that_holds_something_constant_is_refused(start):
    with pytest.raises(ValueError, match=r"ParameterDistance holds .*ml.FirstOrder"):
        bowl_J(ml.Evolution(), start, terms=ml.QueryLoss() + ml.ParameterDistance())


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss,
                                  nn.MSELoss(reduction="sum"), nn.HuberLoss(delta=0.3),
                                  F.binary_cross_entropy_with_logits, F.cross_entropy])
def test_losses_of_all_starts_at_once_are_those_in_turn(loss, sines):
    labels = loss is F.cross_entropy
    net = ml.models.mlp(1, 4, 2 if labels else 1, seed=0).double()
    def signs(y): return (y[..., 0] > 0).long() if labels else (y > 0).double()
    task = ml.Task(*(ml.Split(part.x, signs(part.y)) for part in (sines.support, sines.query)))
    J, K = (ml.MetaLoss(net, loss, inner=ml.SGD(0.01, 2), gradient=ml.Evolution(0.1, n=3),
                        batching=batching) for batching in ("vmap", "loop"))
    close(gradient_at(J, task), gradient_at(K, task), atol=1e-12)


PARTS = {
    "gradient norm": lambda net: {"terms": ml.QueryLoss() + 0.1 * ml.GradientNorm()},
    "at the start": lambda net: {"terms": ml.GradientNorm(at="init")},
    "triplet": lambda net: {"terms": ml.QueryLoss() + ml.Triplet()},
    "contrast": lambda net: {"terms": ml.QueryLoss() - 0.2 * ml.Contrast()},
    "every step": lambda net: {"terms": ml.EveryStep()},
    "worst": lambda net: {"pooling": ml.Worst()}, "adam": lambda net: {"inner": ml.Adam(0.01, 2)},
    "sam": lambda net: {"inner": ml.SAM(0.1, 2, rho=0.1)},
    "kronecker": lambda net: {"inner": ml.Kronecker(net, 0.1, 2)},
    "masked": lambda net: {"inner": ml.Masked(net, 0.1, 2, only="2.*")},
    "habits": lambda net: {"inner": ml.SGD(0.1, 2, momentum=0.9, weight_decay=0.1, clip=1.0,
                                           batch_size=3)}}


@pytest.mark.parametrize("part", PARTS)
def test_with_every_part_all_starts_at_once_are_those_in_turn(part, small_net, sines):
    J, K = (ml.MetaLoss(small_net, F.mse_loss, gradient=ml.Evolution(0.1, n=2), batching=batching,
                        **({"inner": ml.SGD(0.1, 2)} | PARTS[part](small_net)))
            for batching in ("vmap", "loop"))
    close(gradient_at(J, sines), gradient_at(K, sines), atol=1e-11)


def test_complex_numbers_are_refused():
    net = nn.Linear(1, 1, dtype=torch.complex128)
    J = ml.MetaLoss(net, lambda p, y: (p - y).abs().square().mean(), gradient=ml.Evolution(n=2))
    split = ml.Split(torch.ones(2, 3, 1).cdouble(), torch.ones(2, 3, 1).cdouble())
    with pytest.raises(ValueError, match="parameter 'weight' is complex"):
        J(ml.Task(split, split))


def test_its_line():
    assert repr(ml.Evolution()) == "Evolution(sigma=0.1, n=150, seed=0)"
