"""EveryStep: closed form, plain loop, finite differences, both ends, its schedule, its errors."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, counting, quick, times, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square
from metalit.terms import Annealed

LR, LIST = 0.2, (0.3, -0.4, 1.1)
WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
        "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}


def by_formula(task, theta, v, first_order):
    "Σ vₖ ½(φₖ − q)ᵀC(φₖ − q), with gradient Σ vₖ Mᵏ C(φₖ − q); v is {step: weight}."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    value = gradient = 0.0
    for k, weight in v.items():
        M = torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * A, k)
        off = s + times(M, theta - s) - q
        value = value + weight * 0.5 * (off * times(C, off)).sum(-1).mean()
        back = torch.eye(4, dtype=A.dtype) if first_order else M
        gradient = gradient + weight * times(back, times(C, off)).mean(0)
    return value, gradient


@pytest.mark.parametrize("rule", [ml.Exact, ml.FirstOrder])
@pytest.mark.parametrize(("weights", "steps", "v"), [
    (1.0, 3, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}), (0.6, 3, {1: 0.2, 2: 0.2, 3: 0.6}),
    (0.0, 3, {3: 1.0}), (0.6, 1, {1: 1.0}), (0.6, 0, {0: 1.0}),
    (LIST, 3, {1: 0.3, 2: -0.4, 3: 1.1}), (LIST, 5, {1: 0.3, 2: -0.4, 3: 1.1, 4: 1.1, 5: 1.1}),
    ([2.0], 2, {1: 2.0, 2: 2.0})])
def test_closed_form(weights, steps, v, rule, bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, steps), gradient=rule(),
                    terms=ml.EveryStep(weights))
    value, gradient = value_and_gradient(J, bowls)
    right = by_formula(bowls, start, v, rule is ml.FirstOrder)
    close(value, right[0])
    close(gradient, right[1])


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def by_loop(theta, task, v, constant):
    total = 0
    for x, y, x_query, y_query in zip(task.support.x, task.support.y, task.query.x, task.query.y,
                                      strict=True):
        phi = theta
        for weight in v:
            at = [p.detach().requires_grad_() for p in phi] if constant else phi
            slopes = torch.autograd.grad(error(at, x, y), at, create_graph=not constant)
            phi = [p - LR * g for p, g in zip(phi, slopes, strict=True)]
            total = total + weight * error(phi, x_query, y_query) / task.batch_size
    return total.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(total, theta)])


@pytest.mark.parametrize("rule", [ml.Exact, ml.FirstOrder])
@pytest.mark.parametrize("way", WAYS)
def test_a_plain_loop(way, rule, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 3), terms=ml.EveryStep(LIST),
                    gradient=rule(), **WAYS[way])
    right = by_loop(list(small_net.parameters()), sines, LIST, rule is ml.FirstOrder)
    for found, expected in zip(value_and_gradient(J, sines), right, strict=True):
        close(found, expected, atol=1e-12)


@pytest.mark.parametrize("weights", [0.7, LIST])
def test_by_finite_differences(weights, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 3), terms=ml.EveryStep(weights))
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


def judged(J, task):
    "How often the task loss judges a query set, of 3 examples."
    counted, loss = [], J.loss

    def counting(prediction, y):
        counted.append(len(y))
        return loss(prediction, y)
    J.loss = counting
    J(task)
    J.loss = loss
    return counted.count(3)


def test_the_last_end_is_the_query_loss_at_its_price(small_net, sines):
    J, K, half = (ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 4), terms=terms)
                  for terms in (ml.EveryStep(0.0), ml.QueryLoss(), ml.EveryStep(0.5)))
    for found, right in zip(value_and_gradient(J, sines), value_and_gradient(K, sines),
                            strict=True):
        assert torch.equal(found, right)
    assert [judged(each, sines) for each in (J, K, half)] == [1, 1, 4]


def test_the_other_end_is_the_mean_of_the_way(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 4), terms=ml.EveryStep(1.0))
    close(J(sines).detach(), J.curve(sines, steps=(1, 2, 3, 4)).mean())


def of_the_authors(epoch, last, K):
    "The weights of `get_per_step_loss_importance_vector`, and what is done after the last epoch."
    if epoch >= last: return [0.0] * (K - 1) + [1.0]
    early = max(1 / K - epoch / K / last, 0.03 / K)
    final = min(1 / K + epoch * (K - 1) / K / last, 1 - (K - 1) * 0.03 / K)
    return [early] * (K - 1) + [final]


@pytest.mark.parametrize(("last", "epochs"), [(10, 101), (15, 101), (60, 61)])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_the_schedule_is_the_authors(K, last, epochs):
    term = ml.EveryStep(Annealed(until=last / (epochs - 1)))
    assert term.weights(K) == pytest.approx([1 / K] * K, abs=1e-15)
    seen = set()
    for epoch in range(epochs):
        term.at(epoch, epochs)
        assert term.weights(K) == pytest.approx(of_the_authors(epoch, last, K), abs=1e-14)
        seen.add(term.early)
    assert (0.03 in seen) == (last == 60)                    # its bound acts on long ways alone
    assert term.weights(K) == [0.0] * (K - 1) + [1.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_the_schedule_does_not_compile_anew(small_net, sines):
    terms = ml.EveryStep() + 0.5 * ml.EveryStep([ml.schedule.Linear(0.5, 1.0), 0.2])
    J, eager = (ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 2), terms=terms)
                for _ in range(2))
    J.compile(backend=counting(graphs := []))
    for step in (0, 1, 5, 29, 30, 299):                      # the last two: the first step is off
        J.at(step, 300)
        found = value_and_gradient(J, sines)
        for one, right in zip(found, value_and_gradient(eager, sines), strict=True):
            close(one, right, atol=1e-14)
    assert len(graphs) == 1


class Stop(ml.Watcher):
    "Ctrl-C after the third step."
    left = 3

    def step(self, loss):
        self.left -= 1
        if self.left == 0: raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_with_its_weights(tmp_path):
    def fresh():
        J = ml.MAML(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss, steps=2,
                    terms=ml.EveryStep(Annealed(until=0.8)))
        return J, next(J.terms.each())
    (whole, term), (first, _), (second, kept) = fresh(), fresh(), fresh()
    quick(whole, steps=8)
    assert term.early == 0.0
    with pytest.raises(KeyboardInterrupt):
        quick(first, steps=8, checkpoint=tmp_path, save_every=1, watch=Stop())
    ml.load_checkpoint(tmp_path / "checkpoint.pt", second)
    assert 0.5 < kept.early < 1
    quick(second, steps=8, checkpoint=tmp_path, save_every=1)
    assert kept.early == 0.0
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.EveryStep(1.5), r"weights=1.5: the share of the equal weight .* from 0 to 1"),
    (lambda: ml.EveryStep(-0.1), r"weights=-0.1: the share"),
    (lambda: ml.EveryStep("all"), r"weights='all': a number from 0 to 1, a schedule of one, or"),
    (lambda: ml.EveryStep([0.5, math.nan]), r"weights=\[0.5, nan\]: a number .* ml.EveryStep\(\["),
    (lambda: ml.EveryStep([]), r"weights=\[\]: a step without a weight"),
    (lambda: ml.EveryStep(torch.ones(3)), r"weights=a Tensor of shape \(3,\): .* list of finite"),
    (lambda: ml.EveryStep(lambda i, n: i + 1.0), r"weights=2.0: the share"),
    (lambda: Annealed(until=0), "a share of the run"),
    (lambda: Annealed(least=1.2), "least=1.2: a share, from 0 to 1")])
def test_what_is_no_weight(make, message):
    with pytest.raises(ValueError, match=message): make().at(1, 10)


def test_fewer_steps_than_weights(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(LR, 2), terms=ml.EveryStep(LIST))
    with pytest.raises(ValueError, match=r"has 3 weights, and the inner loop takes 2 steps"):
        J(sines)


def test_its_line():
    assert repr(ml.EveryStep()) == "EveryStep(weights=Annealed(until=0.1, least=0.03))"
    assert repr(ml.EveryStep([0.2, 0.8])) == "EveryStep(weights=[0.2, 0.8])"
    assert repr(ml.EveryStep(0.5)) == "EveryStep(weights=0.5)"
