"""Inequality and EntropyReduction: numbers by hand, closed forms, a plain loop, their errors."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square

THEIL = (0.5 * math.log(0.5) + 1.5 * math.log(1.5)) / 2
OF_ONE_AND_THREE = {
    ("theil", None): THEIL, ("entropy", 1): THEIL, ("entropy", None): 1 / 8,
    ("entropy", 0): -(math.log(0.5) + math.log(1.5)) / 2,
    ("entropy", -1): ((2 + 2 / 3) / 2 - 1) / 2, ("atkinson", None): 1 - 3**0.5 / 2,
    ("atkinson", 2): 1 / 4, ("gini", None): 1 / 4, ("logs", None): (math.log(3) / 2) ** 2}
DOUBLES = {"dtype": torch.float64, "requires_grad": True}


@pytest.mark.parametrize(("measure", "order"), OF_ONE_AND_THREE)
def test_numbers_by_hand(measure, order):
    term, two = ml.Inequality(measure, order), torch.tensor([1.0, 3.0], **DOUBLES)
    assert abs(term.pool(two).item() - OF_ONE_AND_THREE[measure, order]) < 1e-15
    close(term.pool(1000 * two), term.pool(two).detach(), 1e-14)
    alike = torch.full((3,), 0.7, **DOUBLES)
    slope, = torch.autograd.grad(level := term.pool(alike), alike)
    assert abs(level.item()) < 1e-15 and slope.abs().max() < 1e-14
    some = torch.tensor([0.3, 2.0, 1.1, 5.0], **DOUBLES)
    assert torch.autograd.gradcheck(term.pool, some)


@pytest.mark.parametrize("near", [1e-6, -1e-6])
@pytest.mark.parametrize(("measure", "order"), [("entropy", 1), ("entropy", 0), ("atkinson", 1)])
def test_both_sides_of_an_order_that_is_a_limit(measure, order, near):
    some = torch.tensor([0.3, 2.0, 1.1, 5.0], dtype=torch.float64)
    at, beside = (ml.Inequality(measure, o).pool(some) for o in (order, order + near))
    assert 0 < (at - beside).abs() < 1e-5


@pytest.mark.parametrize(("measure", "order"), [
    *OF_ONE_AND_THREE, ("entropy", 1e-9), ("entropy", 0.4), ("entropy", 1 + 1e-9),
    ("atkinson", 1 + 1e-9), ("atkinson", 1 - 1e-9), ("atkinson", 100)])
def test_single_precision_is_enough(measure, order):
    "Of losses nearly alike and far apart, for orders near a limit and far from it."
    term = ml.Inequality(measure, order)
    for losses in (torch.tensor([1.0, 1.001, 0.999, 1.0005]), torch.tensor([0.3, 2.0, 1.1, 5.0])):
        close(term.pool(losses).double() / term.pool(losses.double()), 1, 2e-3)
        if order not in (1e-9, 1 + 1e-9, 1 - 1e-9):
            close(term.pool(losses.double()), as_written(measure, order, losses.double()), 1e-12)


def as_written(measure, order, losses):
    "The formulas of economists, as they stand."
    r, a = losses / losses.mean(), 2 if order is None else order
    if measure == "gini": return (r[:, None] - r).abs().sum() / 2 / len(r) ** 2
    if measure == "logs": return r.log().var(correction=0)
    if measure == "theil" or (measure, a) == ("entropy", 1): return (r * r.log()).mean()
    if measure == "entropy": return ((r**a).mean() - 1) / a / (a - 1) if a else -r.log().mean()
    if order in (None, 1): return 1 - r.log().mean().exp()
    return 1 - (r ** (1 - a)).mean() ** (1 / (1 - a))


@pytest.mark.parametrize(("measure", "order"), OF_ONE_AND_THREE)
def test_closed_form_before_adaptation(measure, order, bowls, start):
    C, q = curvature(bowls.query)
    losses = (times(C, start - q) * (start - q)).sum(-1) / 2
    weights, = torch.autograd.grad(ml.Inequality(measure, order).pool(losses.requires_grad_()),
                                   losses)
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(0.2, 3),
                    terms=ml.Inequality(measure, order))
    value, gradient = value_and_gradient(J, bowls)
    close(value, ml.Inequality(measure, order).pool(losses).detach())
    close(gradient, weights @ times(C, start - q))
    assert gradient.norm() > 1e-3


def labelled(sines):
    return ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long()) for part in sines))


def test_entropy_by_a_plain_loop(sines):
    net = ml.models.mlp(1, 4, 3, activation=torch.nn.Tanh, seed=2).double()
    task, total = labelled(sines), 0
    names, theta = zip(*net.named_parameters(), strict=True)
    def logits(phi, x): return functional_call(net, dict(zip(names, phi, strict=True)), (x,))
    for x, y, asked in zip(*task.support, task.query.x, strict=True):
        slopes = torch.autograd.grad(F.cross_entropy(logits(theta, x), y), theta,
                                     create_graph=True)
        phi = [p - 0.5 * g for p, g in zip(theta, slopes, strict=True)]
        p, q = (logits(at, asked).softmax(1) for at in (theta, phi))
        total = total + ((p * p.log()).sum(1) - (q * q.log()).sum(1)).mean() / 6
    J = ml.MetaLoss(net, F.cross_entropy, inner=ml.SGD(0.5), terms=ml.EntropyReduction())
    value, gradient = value_and_gradient(J, task)
    close(value, total.detach())
    close(gradient, torch.cat([g.flatten() for g in torch.autograd.grad(total, theta)]))


def test_entropy_of_padded_tasks_is_that_of_their_real_queries(sines):
    net = ml.models.mlp(1, 4, 3, activation=torch.nn.Tanh, seed=2).double()
    J = ml.MetaLoss(net, F.cross_entropy, inner=ml.SGD(0.5), terms=ml.EntropyReduction())
    task = labelled(sines)
    ones = [task.select([0]), ml.Task(task.support, task.query.select((slice(None), slice(2))))
            .select([1])]
    padded = ml.tasks.padded(ones)
    assert padded.query.mask is not None
    close(J(padded).detach(), torch.stack([J(one) for one in ones]).mean().detach(), 1e-14)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.Inequality("robin hood"), r"measure='robin hood': choose one of 'theil'"),
    (lambda: ml.Inequality("gini", 2), "order=2 has no effect with measure='gini'"),
    (lambda: ml.Inequality("atkinson", 0), "order=0: a finite number above 0"),
    (lambda: ml.Inequality("entropy", math.inf), "order=inf: a finite number is"),
    (lambda: ml.Inequality().pool(torch.ones(1)), "holds 1: use at least 2"),
    (lambda: ml.Inequality().pool(torch.tensor([1.0, 0.0])), "the loss of task 1 is 0, "),
    (lambda: ml.Inequality("gini").pool(torch.tensor([1.0, -2.0])), "the loss of task 1 is -2"),
    (lambda: ml.Inequality("gini").pool(torch.zeros(2)), "the loss of task 0 is 0"),
    (lambda: ml.TAML(Point(2), half_square, weight=-1), "weight=-1")])
def test_what_cannot_be_measured(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_some_losses_may_be_zero_for_gini():
    close(ml.Inequality("gini").pool(torch.tensor([1.0, 0.0])), 0.5)


def test_what_is_no_probability(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, terms=ml.EntropyReduction())
    with pytest.raises(ValueError, match=r"output is \(3, 1\): take ml.Inequality"): J(sines)


def test_their_lines():
    assert repr(ml.Inequality("atkinson", 0.5)) == "Inequality('atkinson', order=0.5)"
    assert repr(ml.Inequality()) == "Inequality('theil')"
