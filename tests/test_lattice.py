"""The identity lattice: what each method becomes in a limit, line by line, in float64.

Each line names a meta-loss and what it has to equal, on bowls, or with a network, or both: its
gradient in θ, times a factor, and, where both are the same function, its value. On the right stands
another named method, or a few lines of plain PyTorch.
"""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import backward, flat
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit import as_written
from metalit.batching import grad
from metalit.models import Point
from metalit.tasks import curvature, half_square

LR, K, PULL = 0.1, 3, 2.0
BEDS = ("bowls", "network")


def bed(name, shared=False):
    "A new model, its loss, a batch of tasks."
    if name == "network":
        sines = ml.tasks.Sinusoids(shots=4, queries=3).batch(6, seed=1).to(dtype=torch.float64)
        return ml.models.mlp(1, 5, 1, activation=nn.Tanh, seed=2).double(), F.mse_loss, sines
    family = ml.tasks.Quadratics(dim=4, shift=1.0, shared_curvature=shared)
    start = torch.tensor([0.7, -1.3, 2.1, 0.4], dtype=torch.float64)
    return Point(start), half_square, family.batch(5, seed=3)


def measured(J, task):
    "Value, and gradient in θ."
    return backward(J, task), flat(J.model)


def equal(found, right, factor=1.0, values=True, atol=1e-12):
    if values: torch.testing.assert_close(found[0], factor * right[0], rtol=0, atol=atol)
    torch.testing.assert_close(found[1], factor * right[1], rtol=0, atol=atol)
    assert right[1].norm() > 1e-3                            # of zeros all would be true


def maml(model, loss, **choices): return ml.MAML(model, loss, LR, K, **choices)
def fomaml(model, loss): return ml.FOMAML(model, loss, LR, K)
def with_inner(make, **choices):
    return lambda model, loss: ml.MetaLoss(model, loss, inner=make(model), **choices)


LIKE_MAML = {
    "Meta-Curvature, all factors identities": lambda m, f: ml.MetaCurvature(m, f, LR, K),
    "Meta-SGD, all rates alike": lambda m, f: ml.MetaSGD(m, f, LR, K),
    "rates per step and tensor, all alike": with_inner(lambda m: ml.LSLR(m, LR, K)),
    "a mask of ones": with_inner(lambda m: ml.Masked(m, LR, K)),
    "all weight on the last step": partial(maml, terms=ml.EveryStep(0.0)),
    "a list with all weight on the last": partial(maml, terms=ml.EveryStep([0.0, 0.0, 1.0])),
    "SAM with radius 0": lambda m, f: ml.SharpMAML(m, f, LR, K, rho_inner=0.0, rho_outer=0.0),
    "gradient norm, weight 0": partial(maml, terms=ml.QueryLoss() + 0.0 * ml.GradientNorm()),
    "triplet, weight 0": lambda m, f: ml.TripletMAML(m, f, LR, K, weight=0.0),
    "ConML, weight 0": lambda m, f: ml.ConML(m, f, LR, K, weight=0.0),
    "TAML, weight 0": lambda m, f: ml.TAML(m, f, LR, K, weight=0.0),
    "the tail that is all": partial(maml, pooling=ml.Tail(1.0)),
    "tilt 0": partial(maml, pooling=ml.Tilted(0.0)),
    "tilt near 0": partial(maml, pooling=ml.Tilted(1e-14)),
    "a pull of 0": with_inner(lambda m: ml.Proximal(LR, K, pull=0.0)),
    "no momentum": with_inner(lambda m: ml.SGD(LR, K, momentum=0.0, weight_decay=0.0)),
    "mixed mode": partial(maml, gradient=ml.MixedMode()),
    "truncated after all steps": partial(maml, gradient=ml.Truncated(K)),
}


@pytest.mark.parametrize("where", BEDS)
@pytest.mark.parametrize("line", LIKE_MAML)
def test_these_are_maml(line, where):
    model, loss, task = bed(where)
    found = measured(LIKE_MAML[line](model, loss), task)
    equal(found, measured(maml(model, loss), task))


class Held(ml.SGD):
    "Every inner gradient is a constant."
    def direction(self, gradient): return {name: g.detach() for name, g in gradient.items()}


@pytest.mark.parametrize("where", BEDS)
@pytest.mark.parametrize("make", [with_inner(lambda m: Held(LR, K)),
                                  partial(maml, gradient=ml.Truncated(0))],
                         ids=["inner gradients held", "truncated after none"])
def test_these_are_first_order(make, where):
    model, loss, task = bed(where)
    equal(measured(make(model, loss), task),
          measured(fomaml(model, loss), task))


def test_on_linear_losses_maml_is_first_order():
    model, _, task = bed("bowls")
    def linear(prediction, y): return (prediction * y).sum()
    equal(*(measured(make(model, linear), task) for make in (maml, fomaml)))


def test_steps_by_sign_are_first_order():
    model, loss, task = bed("network")
    exact, first = (measured(ml.MetaLoss(model, loss, inner=ml.Sign(LR, K),
                                                   gradient=rule), task)
                    for rule in (ml.Exact(), ml.FirstOrder()))
    equal(exact, first, atol=0)


@pytest.mark.parametrize("where", BEDS)
def test_to_first_order_maml_is_joint_training_and_gradients_that_agree(where):
    "What is left is of second order: half the step, a quarter of it."
    left = []
    for lr in (2e-4, 1e-4):
        model, loss, task = bed(where)
        both = measured(ml.MAML(model, loss, lr), task), measured(
            ml.MAML(model, loss, steps=0, terms=ml.QueryLoss() + lr * ml.GradientAlignment()), task)
        left.append([(a - b).norm() for a, b in zip(*both, strict=True)])
    for whole, half in zip(*left, strict=True): assert abs(whole / half - 4) < 1e-2


def joint(model, loss, task, part):
    "Training on all tasks together, without a thought of adaptation."
    split = getattr(task, part)
    model.zero_grad()
    value = torch.stack([loss(model(x), y) for x, y in zip(split.x, split.y, strict=True)]).mean()
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("where", BEDS)
@pytest.mark.parametrize(("make", "part", "factor", "values"), [
    (lambda m, f: ml.Reptile(m, f, LR, 1), "support", LR, False),
    (lambda m, f: ml.MAML(m, f, LR, 0), "query", 1.0, True),
    (lambda m, f: ml.MAML(m, f, 1e-15, K), "query", 1.0, True),
    (with_inner(lambda m: ml.Proximal(1e-14, K, pull=1e14), gradient=ml.Implicit(5)), "query", 1.0,
     True)], ids=["Reptile of one step", "MAML of no step", "MAML of no length",
                  "iMAML with an infinite pull"])
def test_these_are_joint_training(make, part, factor, values, where):
    model, loss, task = bed(where)
    found = measured(make(model, loss), task)
    equal(found, joint(model, loss, task, part), factor, values)


@pytest.mark.parametrize("where", BEDS)
def test_leap_without_the_loss_is_twice_reptile(where):
    model, loss, task = bed(where)
    leap = ml.Leap(model, loss, LR, K, power=2, loss_part=False)
    equal(measured(leap, task), measured(ml.Reptile(model, loss, LR, K), task),
          2.0, values=False)


@pytest.mark.parametrize("where", BEDS)
@pytest.mark.parametrize("on", ["support", "query"])
def test_bootstrapping_one_step_ahead_is_maml_on_that_data(on, where):
    model, loss, task = bed(where)
    bmg = measured(ml.BMG(model, loss, LR, K, more=1, on=on), task)
    there = task if on == "query" else ml.Task(task.support, task.support)
    equal(bmg, measured(maml(model, loss), there), LR, values=False)


class Through(ml.SGD):
    "A step through a given matrix."
    def __init__(self, P):
        super().__init__(lr=1.0, steps=1)
        self.P = P

    def direction(self, gradient): return {name: self.P @ g for name, g in gradient.items()}


def test_imaml_of_one_curvature_is_maml_through_a_matrix():
    "∂φ/∂θ = (I + A/λ)⁻¹, as one step through P = (A + λ)⁻¹ has it."
    model, loss, task = bed("bowls", shared=True)
    A = curvature(task.support)[0][0]
    P = torch.linalg.inv(A + PULL * torch.eye(4).double())
    implicit = ml.MetaLoss(model, loss, inner=ml.Proximal(0.3, 60, pull=PULL),
                           gradient=ml.Implicit(8))
    found = measured(implicit, task)
    equal(found, measured(ml.MetaLoss(model, loss, inner=Through(P)), task))
    (_, s), (C, q), theta = curvature(task.support), curvature(task.query), model.theta.detach()
    ends = (s @ A + PULL * theta) @ P
    slopes = ((ends - q)[:, None] @ C)[:, 0] @ torch.linalg.inv(torch.eye(4).double() + A / PULL)
    torch.testing.assert_close(found[1], slopes.mean(0), rtol=0, atol=1e-12)


def test_meta_curvature_on_a_vector_is_meta_sgd():
    model, loss, task = bed("bowls")
    rates = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)
    found = []
    for make in (ml.MetaCurvature, ml.MetaSGD):
        J = make(model, loss, LR, K)
        factor, = J.inner.learned.parameters()
        factor.data = rates.clone()
        value, gradient = measured(J, task)
        found.append((value, torch.cat([gradient, factor.grad])))
    equal(*found, atol=0)


class ThroughContext(ml.SGD):
    "Steps of the first bias, through the matrix VVᵀ of the weights that a context would have."
    def step(self, loss, phi, state, k):
        name, V = "model.0.bias", phi["model.0.weight"][:, 1:]
        slope = grad(lambda part: loss(phi | part))({name: phi[name]})[name]
        return phi | {name: phi[name] - self.lr * V @ V.mT @ slope}, state


def test_cavia_is_maml_of_a_bias_through_a_matrix():
    _, loss, task = bed("network")
    net = ml.models.Contextual(ml.models.mlp(3, 5, 1, activation=nn.Tanh, seed=2), 2).double()
    equal(measured(ml.CAVIA(net, loss, LR, K), task),
          measured(ml.MetaLoss(net, loss, inner=ThroughContext(LR, K)), task))


class Weighed(nn.Module):
    "ML3's learned loss at its simplest, ½ψ(ŷ − y)²."
    def __init__(self, psi):
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(psi, dtype=torch.float64))

    def forward(self, prediction, y): return self.psi * ((prediction - y) ** 2).mean() / 2


def half_mean_square(prediction, y): return ((prediction - y) ** 2).mean() / 2


def test_a_learned_weight_of_the_loss_is_a_learned_rate():
    "φ − α∇(ψℓ) = φ − (αψ)∇ℓ, so ∂J/∂ψ = α ∂J/∂(αψ)."
    net, _, task = bed("network")
    learned = ml.MetaLoss(net, half_mean_square, inner=ml.SGD(LR, K, loss=Weighed(1.7)))
    rate = ml.MetaLoss(net, half_mean_square, inner=ml.SGD(LR * 1.7, K, learn_lr=True))
    equal(*(measured(J, task) for J in (learned, rate)))
    psi, lr = learned.inner.loss.psi.grad, rate.inner.lr.grad
    torch.testing.assert_close(psi, LR * lr, rtol=0, atol=1e-12)
    assert psi.abs() > 1e-3


def test_protomaml_without_steps_is_protonet():
    _, _, task = bed("network")
    label = torch.tensor([[0, 1, 2, 1]] * 6)
    task = ml.Task(ml.Split(task.support.x, label), ml.Split(task.query.x, label[:, :3]))
    net = ml.models.mlp(1, 5, 3, activation=nn.Tanh, seed=2).double()
    found = measured(ml.ProtoMAML(net, F.cross_entropy, steps=0), task)
    equal(found, measured(ml.ProtoNet(net, F.cross_entropy), task), atol=0)
    net.zero_grad()
    def features(x): return torch.tanh(net[0](x))
    total = 0
    for x, y, asked, truth in zip(*task.support, *task.query, strict=True):
        seen = features(x)
        means = torch.stack([seen[y == way].mean(0) for way in range(3)])
        far = (features(asked)[:, None] - means) ** 2
        total = total + F.cross_entropy(-far.sum(-1), truth) / 6
    total.backward()
    equal(found, (total.detach(), torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad)
                                             .flatten() for p in net.parameters()])))


class Axes(ml.Evolution):
    "Trials along d orthogonal directions of length √d, in place of random ones."
    def directions(self, theta):
        d = theta["theta"].numel()
        random = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return {"theta": d**0.5 * torch.linalg.qr(random).Q}


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 30.0])
def test_evolution_on_bowls_is_exact_for_every_radius(sigma):
    model, loss, task = bed("bowls")
    found = measured(maml(model, loss, gradient=Axes(sigma, n=4)), task)
    equal(found, measured(maml(model, loss), task), atol=1e-10)


@pytest.mark.parametrize("where", BEDS)
def test_the_worst_of_identical_tasks_is_their_mean(where):
    model, loss, task = bed(where)
    same = task.select([1, 1, 1])
    found = measured(maml(model, loss, pooling=ml.Worst()), same)
    equal(found, measured(maml(model, loss), same))


@pytest.mark.parametrize("where", BEDS)
def test_the_article_s_reptile_is_the_squared_slope(where):
    "‖θ − θ′‖² = α²‖∇ℓ_S‖², no model of Reptile."
    model, loss, task = bed(where)
    names, theta = zip(*model.named_parameters(), strict=True)
    values = []
    for x, y in zip(*task.support, strict=True):
        value = loss(functional_call(model, dict(zip(names, theta, strict=True)), (x,)), y)
        slopes = torch.autograd.grad(value, theta, create_graph=True)
        values.append(sum((g**2).sum() for g in slopes))
    right = torch.stack(values).mean()
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(right, theta)])
    J = as_written.AsWritten(model, loss, as_written.reptile, lr=LR)
    equal(measured(J, task), (right.detach(), slopes), LR**2)


def test_the_article_s_contrast_is_constant_on_one_curvature():
    model, loss, task = bed("bowls", shared=True)
    J = as_written.AsWritten(model, loss, as_written.contrastive, lr=LR)
    value, gradient = measured(J, task)
    A, s = curvature(task.support)
    pairs = [(LR * A[0] @ (a - b)).norm() for i, a in enumerate(s) for j, b in enumerate(s)
             if i != j]
    torch.testing.assert_close(value, 1 + torch.stack(pairs).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
