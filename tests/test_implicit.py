"""Implicit: closed forms, conjugate gradients, differences, a plain loop, what is refused."""
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times, value_and_gradient
from referee import slope_by_difference
from torch import nn

import metalit as ml
from metalit.gradient.implicit import conjugate_gradients
from metalit.tasks import curvature, half_square
from metalit.training.memory import step_memory

PULL = 1.5
EYE = torch.eye(4, dtype=torch.float64)


def far(lr=0.4, steps=70, pull=PULL, **options):
    "An inner loop that arrives."
    return ml.Proximal(lr, steps, pull=pull, **options)


def at_the_end(task, theta, damping=0.0, decay=0.0):
    "φ* = (A + λ + w)⁻¹(As + λθ), and the gradient λ(A + λ + w + δ)⁻¹C(φ* − q) of each task."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    whole = A + (PULL + decay) * EYE
    phi = torch.linalg.solve(whole, times(A, s) + PULL * theta)
    slope = times(C, phi - q)
    gradient = PULL * torch.linalg.solve(whole + damping * EYE, slope)
    return 0.5 * ((phi - q) * slope).sum(-1).mean(), gradient.mean(0)


def bowl_J(rule, theta, inner=None, **options):
    return ml.MetaLoss(ml.models.Point(theta), half_square, inner=inner or far(), gradient=rule,
                       **options)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize(("damping", "decay"), [(0.0, 0.0), (0.8, 0.0), (0.0, 0.3), (0.8, 0.3)])
def test_closed_form(damping, decay, batching, bowls, start):
    J = bowl_J(ml.Implicit(4, damping=damping), start, far(weight_decay=decay), batching=batching)
    for one, right in zip(value_and_gradient(J, bowls), at_the_end(bowls, start, damping, decay),
                          strict=True):
        close(one, right, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_in_as_many_steps_as_dimensions_and_no_fewer(steps, bowls, start):
    _, gradient = value_and_gradient(bowl_J(ml.Implicit(steps), start), bowls)
    off = (gradient - at_the_end(bowls, start)[1]).norm()
    assert (off < 1e-12) if steps >= 4 else (off > 1e-6)


def test_conjugate_gradients_by_themselves():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    b = torch.randn(6, dtype=torch.float64, generator=generator)
    A = root @ root.mT + torch.eye(6).double()
    def product(v): return {"a": A[:2] @ torch.cat([v["a"], v["b"]]),
                            "b": A[2:] @ torch.cat([v["a"], v["b"]])}
    x, least = conjugate_gradients(product, {"a": b[:2], "b": b[2:]}, 6)
    close(torch.cat([x["a"], x["b"]]), torch.linalg.solve(A, b), atol=1e-12)
    assert torch.linalg.eigvalsh(A)[0] - 1e-9 <= least <= torch.linalg.eigvalsh(A)[-1] + 1e-9
    x, least = conjugate_gradients(product, {"a": 0 * b[:2], "b": 0 * b[2:]}, 6)
    assert not x["a"].any() and not x["b"].any() and least > 0   # nothing asked, no NaN
    assert conjugate_gradients(lambda v: {"a": -v["a"]}, {"a": b}, 1)[1] < 0


@pytest.mark.parametrize("K", [0, 1, 3])
def test_before_the_end_it_is_the_formula_at_the_last_point(K, bowls, start):
    "λ(A + λ)⁻¹C(φ_K − q): off by what is left of the way. Without a step it is the identity."
    J = bowl_J(ml.Implicit(4), start, far(steps=K))
    (A, _), (C, q) = curvature(bowls.support), curvature(bowls.query)
    with torch.no_grad(): slope = times(C, J.adapt(bowls.support)["theta"] - q)
    value, gradient = value_and_gradient(J, bowls)
    assert value == bowl_J(ml.Exact(), start, far(steps=K))(bowls)
    back = PULL * torch.linalg.inv(A + PULL * EYE) if K else EYE.expand(5, 4, 4)
    close(gradient, times(back, slope).mean(0), atol=1e-12)


def test_the_error_follows_the_accuracy_of_the_inner_loop(bowls, start):
    right = at_the_end(bowls, start)[1]
    errors = [(value_and_gradient(bowl_J(ml.Implicit(4), start, far(0.2, K)), bowls)[1]
               - right).norm() for K in (2, 6, 10, 14, 18)]
    ratios = [b / a for a, b in pairwise(errors)]
    assert all(0.02 < ratio < 0.4 for ratio in ratios)         # a steady factor, (1 − α(a + λ))⁴


class Bent(nn.Module):
    "An inner loss with numbers to be learned."
    def __init__(self):
        super().__init__()
        self.bend, self.scale = (nn.Parameter(torch.tensor(v, dtype=torch.float64))
                                 for v in (0.8, 1.2))

    def forward(self, prediction, y):
        return (self.scale * ((prediction - y) ** 2 + self.bend ** 2).sqrt()).sum()


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_finite_differences_where_it_has_arrived(batching, bowls, start):
    "In θ and in what the inner loss learns."
    J = bowl_J(ml.Implicit(4), start, far(0.35, 45, loss=Bent()), batching=batching)
    found = torch.autograd.grad(J(bowls), list(J.parameters()))
    for p, right in zip(J.parameters(), found, strict=True):
        along = torch.linspace(0.4, 1.3, p.numel()).double().reshape(p.shape)
        slope = slope_by_difference(lambda: J(bowls), [p], [along])
        assert (right * along).sum().item() == pytest.approx(slope, abs=1e-8)
        assert right.abs().max() > 1e-3


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def by_loop(theta, task, steps, pull, lr=0.04):
    "Value and λ(H + λ)⁻¹∇ℓ_Q at the end of a plain inner loop, with the Hessian as a matrix."
    total, values = 0, []
    shapes = [p.shape for p in theta]
    sizes = [p.numel() for p in theta]
    def parts(v): return [t.reshape(s) for t, s in zip(v.split(sizes), shapes, strict=True)]
    home = torch.cat([p.detach().flatten() for p in theta])
    for x, y, xq, yq in zip(*task.support[:2], *task.query[:2], strict=True):
        def inner(v, x=x, y=y): return error(parts(v), x, y)
        phi = home
        for _ in range(steps):
            at = phi.requires_grad_()
            phi = at.detach() - lr * (torch.autograd.grad(inner(at), at)[0]
                                      + pull * (at.detach() - home))
        H = torch.autograd.functional.hessian(inner, phi) + pull * torch.eye(len(phi)).double()
        at = phi.detach().requires_grad_()
        judged = error(parts(at), xq, yq)
        total = total + pull * torch.linalg.solve(H, torch.autograd.grad(judged, at)[0])
        values.append(judged.detach())
    return torch.stack(values).mean(), total / len(values)


@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 4},
                                     {"chunk_size": 1, "batching": "loop"}], ids=str)
def test_a_plain_loop_with_the_whole_matrix(options, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Proximal(0.04, 4, pull=20.0),
                    gradient=ml.Implicit(16), **options)
    value, gradient = value_and_gradient(J, sines)
    right, slope = by_loop(list(small_net.parameters()), sines, 4, 20.0)
    close(value, right, 1e-13)
    close(gradient, slope, 1e-9)


def test_chance_is_drawn_once_for_the_equation(sines):
    "With dropout every product is of the same Hessian, so that one step more changes little."
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    def gradient(steps):
        torch.manual_seed(0)
        J = ml.MetaLoss(net, F.mse_loss, inner=ml.Proximal(0.02, 3, pull=20.0),
                        gradient=ml.Implicit(steps))
        before = value_and_gradient(J, sines)[1]
        return before, torch.get_rng_state()
    (one, state), (two, other) = gradient(19), gradient(25)
    close(one, two, 1e-10)
    assert torch.equal(state, other)                         # the way back draws nothing anew


def test_memory_does_not_grow_with_the_inner_loop():
    net, tasks = ml.models.mlp(1, 20, 20, 1), ml.tasks.Sinusoids(shots=20).batch(4)
    def kept(steps):
        J = ml.MetaLoss(net, F.mse_loss, inner=ml.Proximal(0.01, steps, pull=30.0),
                        gradient=ml.Implicit())
        return step_memory(J, tasks).graph
    assert kept(2) == kept(6)


def test_a_strong_pull_is_joint_training_and_none_is_nothing(bowls, start):
    C, q = curvature(bowls.query)
    _, strong = value_and_gradient(bowl_J(ml.Implicit(4), start, far(1e-7, 5, pull=1e6)), bowls)
    close(strong, times(C, start - q).mean(0), atol=1e-4)
    _, weak = value_and_gradient(bowl_J(ml.Implicit(4), start, far(0.4, 200, pull=1e-8)), bowls)
    close(weak, torch.zeros(4).double(), atol=1e-6)


class Halfway(ml.Term):
    "The query loss after the first step."
    def per_task(self, path, task): return path.loss(path.points[1], task.query)


class Steep(ml.Proximal):
    "A slope that is no gradient."
    def slope(self, loss, phi): return dict(phi)


@pytest.mark.parametrize(("inner", "words"), [
    (ml.SGD(0.1, 3), r"SGD has no such place: take inner=ml.Proximal"),
    (ml.Proximal(0.1, 3, pull=0.0), r"pull=0.0 ties it to nothing"),
    (ml.Proximal(0.1, 3, batch_size=2), r"batch_size=2 descends another loss"),
    (ml.Proximal(0.1, 3, learn_lr=True), r"inner.lr does not move it"),
    (ml.Proximal({"theta": 0.1}, 3, learn_lr=True), r"inner.lr.rate0 does not move it"),
    (Steep(0.1, 3), "Steep has a slope of its own")], ids=str)
def test_inner_loops_that_are_refused(inner, words, bowls, start):
    with pytest.raises(ValueError, match=words): bowl_J(ml.Implicit(), start, inner)(bowls)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_what_has_no_meaning_is_refused_on_the_way_back(batching, bowls, start):
    J = bowl_J(ml.Implicit(), start, terms=Halfway(), batching=batching)
    with torch.no_grad(): J(bowls)
    with pytest.raises(ValueError, match="a point between start and end"): J(bowls).backward()
    hill = ml.MetaLoss(ml.models.Point(start), lambda p, y: -half_square(p, y),
                       inner=ml.Proximal(0.1, 3, pull=0.2), gradient=ml.Implicit(),
                       batching=batching)
    with pytest.raises(ValueError, match=r"does not curve upwards .* damping= above"):
        hill(bowls).backward()
    held = ml.MetaLoss(ml.models.Point(start), lambda p, y: -half_square(p, y),
                       inner=ml.Proximal(0.1, 3, pull=0.2), gradient=ml.Implicit(damping=9.0),
                       batching=batching)
    assert value_and_gradient(held, bowls)[1].isfinite().all()


def test_a_term_that_looks_at_the_end_only_is_served(bowls, start):
    "Every step with all its weight on the last is the query loss, and the start is known, too."
    J = bowl_J(ml.Implicit(4), start, terms=ml.QueryLoss() + 0.1 * ml.GradientNorm()
               + ml.ParameterDistance())
    assert value_and_gradient(J, bowls)[1].isfinite().all()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ml.Implicit(0), "steps=0: how many steps of conjugate gradients"),
    (lambda: ml.Implicit(2.5), "steps=2.5"), (lambda: ml.Implicit(damping=-1.0), "damping=-1.0"),
    (lambda: ml.Implicit(damping=ml.schedule.Linear(1.0, 0.0)), "a number .* and no schedule")])
def test_what_is_no_setting(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_its_line(small_net):
    assert repr(ml.Implicit()) == "Implicit(steps=5, damping=0.0)"
