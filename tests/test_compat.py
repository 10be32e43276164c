"""Old loops over the same core: `clone`, `adapt` and `innerloop_ctx` have the gradients of J."""
import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch import nn

import metalit as ml
from metalit.compat import Clonable, Clone, inner_like, innerloop_ctx

STEPS = 3


def net():
    return ml.models.mlp(1, 6, 1, activation=nn.Tanh, seed=1).double()


def by_clones(maml, tasks):
    "The value and the gradients of an old loop, by the name of the parameter."
    values = []
    for xs, ys, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
        learner = maml.clone()
        for _ in range(STEPS): learner.adapt(F.mse_loss(learner(xs), ys))
        values.append(F.mse_loss(learner(xq), yq))
    value = torch.stack(values).mean()
    value.backward()
    return value, {name: p.grad for name, p in maml.named_parameters()}


def by_J(J, tasks):
    value = J(tasks)
    value.backward()
    return value, {name: p.grad for name, p in J.named_parameters()}


def assert_same(one, other):
    close(one[0], other[0], 1e-12)
    assert one[1].keys() == other[1].keys() and any(g is not None for g in one[1].values())
    for name, grad in one[1].items():
        assert (grad is None) == (other[1][name] is None), name
        if grad is not None: close(grad, other[1][name], 1e-12)


INNER = {"sgd": lambda model: ml.SGD(0.1, STEPS),
         "momentum, decay, clip": lambda model: ml.SGD(0.1, STEPS, momentum=0.9, weight_decay=0.1,
                                                       clip=0.5),
         "nesterov": lambda model: ml.SGD(0.1, STEPS, momentum=0.5, nesterov=True),
         "a learned rate": lambda model: ml.SGD(0.1, STEPS, learn_lr=True),
         "adam": lambda model: ml.Adam(0.01, STEPS),
         "signs": lambda model: ml.Sign(0.01, STEPS),
         "diagonal": lambda model: ml.Diagonal(model, lr=0.1, steps=STEPS),
         "kronecker": lambda model: ml.Kronecker(model, lr=0.1, steps=STEPS)}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("inner", INNER)
def test_the_gradients_are_those_of_J(sines, inner, first_order):
    pair = [net(), net()]
    maml = Clonable(pair[0], first_order=first_order, inner=INNER[inner](pair[0]))
    J = ml.MetaLoss(pair[1], F.mse_loss, inner=INNER[inner](pair[1]),
                    gradient=ml.FirstOrder() if first_order else ml.Exact())
    assert_same(by_clones(maml, sines), by_J(J, sines))


def test_first_order_is_another_gradient(sines):
    pair = [by_clones(Clonable(net(), 0.1, first_order=which), sines) for which in (False, True)]
    close(pair[0][0], pair[1][0], 1e-12)
    assert (pair[0][1]["model.0.weight"] - pair[1][1]["model.0.weight"]).abs().max() > 1e-3


def test_a_bowl_has_a_closed_form_and_finite_differences():
    "ℓ = a/2 (φ − s)² twice with rate α, judged by c/2 (φ − q)²: J′ = c (1 − αa)² (φ₂ − q)."
    a, s, c, q, alpha = 1.5, 0.3, 2.0, -0.4, 0.2

    def value(theta):
        learner = Clonable(ml.models.Point(theta), alpha).clone()
        def at(curvature, centre):
            return 0.5 * curvature * (learner.parameters()[0] - centre).square().sum()
        for _ in range(2): learner.adapt(at(a, s))
        return at(c, q), learner

    theta = torch.tensor([0.9], dtype=torch.float64)
    found, learner = value(theta)
    gradient, = torch.autograd.grad(found, learner.parameters(time=0))
    end = s + (1 - alpha * a)**2 * (0.9 - s)
    close(learner.parameters()[0], torch.tensor([end], dtype=torch.float64), 1e-12)
    close(gradient, torch.tensor([c * (1 - alpha * a)**2 * (end - q)], dtype=torch.float64), 1e-12)
    apart = (value(theta + 1e-5)[0] - value(theta - 1e-5)[0]) / 2e-5
    close(gradient[0], apart, 1e-8)


def test_what_is_frozen_stays_and_is_not_asked_for_a_gradient(sines):
    pair = [net(), net()]
    for model in pair: model[0].requires_grad_(False)
    by = [by_clones(Clonable(pair[0], 0.1), sines),
          by_J(ml.MAML(pair[1], F.mse_loss, lr=0.1, steps=STEPS), sines)]
    assert by[0][1]["model.0.weight"] is None
    close(by[0][1]["model.2.weight"], by[1][1]["model.2.weight"], 1e-12)


def test_inputs_by_name_and_by_position():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)
        def forward(self, a, b): return self.layer(a) * b

    model, a, b = Two(), torch.ones(3, 1), torch.full((3, 1), 2.0)
    learner = Clonable(model).clone()
    for answer in (learner(a, b), learner(a=a, b=b), Clonable(model)(a, b)):
        assert torch.equal(answer, model(a, b))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True},
                                     {"momentum": 0.5, "weight_decay": 0.1}])
def test_the_context_reads_an_optimizer(sines, options):
    pair = [net(), net()]
    optimizer = torch.optim.SGD(pair[0].parameters(), lr=0.1, **options)
    values = []
    for xs, ys, xq, yq in zip(*sines.support, *sines.query, strict=True):
        with innerloop_ctx(pair[0], optimizer, copy_initial_weights=False) as (fast, steps):
            for _ in range(STEPS): last = steps.step(F.mse_loss(fast(xs), ys))
            assert all(one is other for one, other in zip(last, fast.parameters(), strict=True))
            values.append(F.mse_loss(fast(xq), yq))
    torch.stack(values).mean().backward()
    J = ml.MetaLoss(pair[1], F.mse_loss, inner=ml.SGD(0.1, STEPS, **options))
    by_J(J, sines)
    for one, other in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        close(one.grad, other.grad, 1e-12)


def test_a_copy_keeps_the_gradient_from_the_model(sines):
    model = net()
    before = [p.clone() for p in model.parameters()]
    x, y = sines.support.x[0], sines.support.y[0]
    with innerloop_ctx(model, ml.SGD(0.1)) as (fast, steps):
        steps.step(F.mse_loss(fast(x), y))
        F.mse_loss(fast(x), y).backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in fast.parameters(time=0))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_without_tracking_the_same_numbers_and_no_graph(sines):
    model, x, y = net(), sines.support.x[0], sines.support.y[0]
    ends = []
    for tracked in (True, False):
        learner = Clone(model, ml.SGD(0.1), tracked=tracked)
        for _ in range(STEPS): learner.adapt(F.mse_loss(learner(x), y))
        ends.append(learner.parameters())
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other) and other.is_leaf and not one.is_leaf


def test_a_loss_of_another_moment_or_another_clone_is_refused(sines):
    model, x, y = net(), sines.support.x[0], sines.support.y[0]
    learner, other = (Clone(model, ml.SGD(0.1)) for _ in range(2))
    stale = F.mse_loss(learner(x), y)
    learner.adapt(stale)
    for loss in (stale, F.mse_loss(other(x), y), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="does not depend on the clone as it is now"):
            learner.adapt(loss)


@pytest.mark.parametrize("inner", [
    lambda model: ml.SAM(0.1, rho=0.1), lambda model: ml.Masked(model, 0.1, only="2.*"),
    lambda model: ml.Proximal(0.1), lambda model: ml.Ridge(model, 1.0),
    lambda model: ml.LSLR(model),
    lambda model: ml.SGD(0.1, batch_size=2), lambda model: ml.SGD(0.1, loss=F.l1_loss)])
def test_an_inner_loop_that_looks_at_more_than_a_slope_is_refused(inner):
    with pytest.raises(ValueError, match="looks at more than the gradient"):
        Clonable(net(), inner=inner(net()))


def test_optimizers_without_a_counterpart_are_refused():
    model = net()
    groups = [{"params": [p]} for p in model.parameters()]
    for found, parameters, options in (
            ("4 groups", groups, {}), ("maximize", model.parameters(), {"maximize": True}),
            ("dampening", model.parameters(), {"momentum": 0.1, "dampening": 0.5})):
        optimizer = torch.optim.SGD(parameters, lr=0.1, **options)
        with pytest.raises(ValueError, match=found): inner_like(optimizer)
    with pytest.raises(TypeError, match=r"torch\.optim's Adam"):
        inner_like(torch.optim.Adam(model.parameters()))
    with pytest.raises(TypeError, match="write inner="): Clonable(model, inner=ml.SGD)
    with pytest.raises(ValueError, match="running statistics"):
        Clonable(nn.BatchNorm1d(1)).clone()
