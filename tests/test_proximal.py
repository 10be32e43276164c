"""Proximal: closed form, plain loop with every habit, Moreau's identity, both ends, its errors."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, counting, quick, times, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square

LR = 0.2
WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
        "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}
EYE = torch.eye(4, dtype=torch.float64)


def by_formula(task, theta, pull, steps):
    "φ_K and ∂φ_K/∂θ of each task, with N = I − α(A + λ) and P = λ(A + λ)⁻¹."
    A, s = curvature(task.support)
    P = pull * torch.linalg.inv(A + pull * EYE)
    N = torch.linalg.matrix_power(EYE - LR * (A + pull * EYE), steps)
    end = times(P, theta.expand_as(s)) + times(EYE - P, s)
    return end + times(N, theta - end), P + N @ (EYE - P)


@pytest.mark.parametrize("rule", [ml.Exact, ml.FirstOrder])
@pytest.mark.parametrize(("pull", "steps"), [(0.7, 0), (0.7, 1), (0.7, 3), (4.0, 3), (4.0, 80)])
def test_closed_form(pull, steps, rule, bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.Proximal(LR, steps, pull=pull),
                    gradient=rule())
    phi, back = by_formula(bowls, start, pull, steps)
    C, q = curvature(bowls.query)
    slope = times(C, phi - q)
    value, gradient = value_and_gradient(J, bowls)
    close(J.adapt(bowls.support)["theta"], phi)
    close(value, 0.5 * ((phi - q) * slope).sum(-1).mean())
    close(gradient, (slope if rule is ml.FirstOrder else times(back, slope)).mean(0))


def test_it_shrinks_towards_the_start(bowls, start):
    "Along an axis of curvature a the share a / (a + λ) of the way."
    A, s = curvature(bowls.support)
    values, axes = torch.linalg.eigh(A)
    J = ml.MetaLoss(Point(start), half_square, inner=ml.Proximal(LR, 200, pull=1.5))
    with torch.no_grad(): gone = times(axes.mT, J.adapt(bowls.support)["theta"] - start)
    close(gone, values / (values + 1.5) * times(axes.mT, s - start))


HABITS = {"plain": {}, "momentum": {"momentum": 0.7}, "nesterov": {"momentum": 0.7,
          "nesterov": True}, "clip": {"clip": 0.4}, "decay": {"weight_decay": 0.3},
          "rates": {"lr": {"0.*": 0.05, "*": LR}}, "learned": {"learn_lr": True},
          "all": {"momentum": 0.7, "clip": 0.4, "weight_decay": 0.3, "lr": {"0.*": 0.05, "*": LR}}}


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def moved(J, phi, home, velocity, x, y, constant):
    "One step: the pull, then clip, decay, momentum, rates, as `torch.optim.SGD` has them."
    push = J.inner.push
    mu, clip, decay = ((getattr(push, name) if push else None)
                       for name in ("momentum", "clip", "weight_decay"))
    at = [p.detach().requires_grad_() for p in phi] if constant else phi
    g = torch.autograd.grad(error(at, x, y), at, create_graph=not constant)
    if constant: at, home = [p.detach() for p in phi], [t.detach() for t in home]
    g = [d + 1.5 * (p - t) for d, p, t in zip(g, at, home, strict=True)]
    length = torch.cat([d.flatten() for d in g]).norm() + 1e-6
    if clip: g = [d * min(1.0, clip / length) for d in g]
    if decay: g = [d + decay * p for d, p in zip(g, at, strict=True)]
    velocity = [(mu or 0.0) * v + d for v, d in zip(velocity, g, strict=True)]
    if push and push.nesterov: g = [d + mu * v for d, v in zip(g, velocity, strict=True)]
    else: g = velocity
    lr = J.inner.lr
    rates = [0.05, 0.05, LR, LR] if isinstance(lr, ml.inner.Rates) else [lr] * 4
    return [p - rate * d for p, rate, d in zip(phi, rates, g, strict=True)], velocity


def by_loop(J, task, constant=False, steps=3):
    values, theta = [], list(J.model.parameters())
    for x, y, x_query, y_query in zip(task.support.x, task.support.y, task.query.x, task.query.y,
                                      strict=True):
        phi, velocity = theta, [0.0] * 4
        for _ in range(steps):
            phi, velocity = moved(J, phi, theta, velocity, x, y, constant)
        values.append(error(phi, x_query, y_query))
    value = torch.stack(values).mean()
    slopes = torch.autograd.grad(value, list(J.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in slopes])


def found(J, task):
    value = J(task)
    slopes = torch.autograd.grad(value, list(J.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in slopes])


@pytest.mark.parametrize("rule", [ml.Exact, ml.FirstOrder])
@pytest.mark.parametrize("habits", HABITS)
def test_a_plain_loop_with_every_habit(habits, rule, small_net, sines):
    inner = ml.Proximal(**({"lr": LR, "steps": 3, "pull": 1.5} | HABITS[habits]))
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner, gradient=rule())
    for one, right in zip(found(J, sines), by_loop(J, sines, rule is ml.FirstOrder), strict=True):
        close(one, right, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way, small_net, sines):
    inner = ml.Proximal(LR, 3, pull=1.5, **HABITS["momentum"])
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner, **WAYS[way])
    for one, right in zip(found(J, sines), by_loop(J, sines), strict=True):
        close(one, right, atol=1e-12)


def test_by_finite_differences(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Proximal(LR, 3, pull=1.5, momentum=0.5))
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


@pytest.mark.parametrize("habits", HABITS)
def test_without_a_pull_it_is_sgd(habits, small_net, sines):
    options = {"lr": LR, "steps": 3} | HABITS[habits]
    J, K = (ml.MetaLoss(small_net, F.mse_loss, inner=inner)
            for inner in (ml.Proximal(pull=0.0, **options), ml.SGD(**options)))
    for one, other in zip(found(J, sines), found(K, sines), strict=True):
        assert torch.equal(one, other)


def test_with_one_step_a_pull_changes_nothing(small_net, sines):
    J, K = (ml.MetaLoss(small_net, F.mse_loss, inner=inner)
            for inner in (ml.Proximal(LR, 1, pull=9.0), ml.SGD(LR, 1)))
    for one, other in zip(found(J, sines), found(K, sines), strict=True):
        close(one, other, atol=1e-14)


def robust(prediction, y): return (prediction - y).cosh().log().sum()


class Envelope(ml.Term):
    "min ℓ(φ) + λ/2‖φ − θ‖², the value where adaptation ends."
    def per_task(self, path, task):
        apart = path.final["theta"] - path.theta["theta"]
        return path.loss(path.final, task.support) + 1.5 / 2 * apart.square().sum()


@pytest.mark.parametrize("loss", [half_square, robust])
def test_the_identity_of_moreau(loss, bowls, start):
    "λ(θ − φ*), without second derivatives, is the slope of the lowest pulled loss."
    reptile = ml.MetaLoss(Point(start), loss, inner=ml.Proximal(LR, 80, pull=1.5),
                          terms=1.5 * ml.ParameterDistance(), gradient=ml.FirstOrder())
    _, gradient = value_and_gradient(reptile, bowls)
    envelope = ml.MetaLoss(Point(start), loss, inner=ml.Proximal(LR, 80, pull=1.5),
                           terms=Envelope())
    with torch.no_grad():
        ends = [envelope.per_task(bowls, {"theta": start + h * e})[0].mean()
                for e in EYE for h in (1e-5, -1e-5)]
    close(gradient, (torch.stack(ends[::2]) - torch.stack(ends[1::2])) / 2e-5, atol=1e-8)
    close(value_and_gradient(envelope, bowls)[1], gradient)  # and its derivative through the walk
    if loss is half_square:
        A, s = curvature(bowls.support)
        close(gradient, 1.5 * times(torch.linalg.solve(A + 1.5 * EYE, A), start - s).mean(0))


def test_to_go_on_from_elsewhere_is_to_be_pulled_there(bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.Proximal(LR, 200, pull=1.5))
    x, y = bowls.support.x[0], bowls.support.y[0]
    first = J.adapted(x, y)
    second = J.adapted(x, y, start=first)
    A, s = (part[0] for part in curvature(bowls.support))
    P = 1.5 * torch.linalg.inv(A + 1.5 * EYE)
    close(first.theta.detach(), s + P @ (start - s))
    close(second.theta.detach(), s + P @ P @ (start - s))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_a_pull_with_a_schedule_does_not_compile_anew(small_net, sines):
    J, eager = (ml.MetaLoss(small_net, F.mse_loss,
                            inner=ml.Proximal(LR, 2, pull=ml.schedule.Linear(3.0, 0.0),
                                              momentum=0.7, clip=0.4))
                for _ in range(2))
    J.compile(backend=counting(graphs := []))
    for step in (0, 5, 10):                                  # at the last one the pull is 0
        for each in (J, eager): each.at(step, 11)
        for one, right in zip(found(J, sines), found(eager, sines), strict=True):
            close(one, right, atol=1e-14)
    assert len(graphs) == 1 and J.inner.pull == 0.0


def test_a_checkpoint_keeps_the_pull(tmp_path):
    def fresh():
        return ml.MetaLoss(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss,
                           inner=ml.Proximal(0.1, 2, pull=ml.schedule.Linear(3.0, 1.0)))
    whole, first, second = fresh(), fresh(), fresh()
    quick(whole, steps=6)
    quick(first, steps=6, checkpoint=tmp_path, max_minutes=1e-9)
    assert first.inner.pull == 3.0
    quick(second, steps=6, checkpoint=tmp_path)
    assert second.inner.pull == whole.inner.pull == 1.0
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pull", [-1.0, math.nan, math.inf, "much", torch.tensor(1.0)])
def test_what_is_no_pull(pull):
    with pytest.raises(ValueError, match=r"pull=.*: a finite number, 0 or more, is needed"):
        ml.Proximal(pull=pull)


def test_its_line_and_its_defaults():
    assert repr(ml.Proximal()) == "Proximal(lr=0.1, steps=16, pull=2.0)"
