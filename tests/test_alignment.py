"""GradientAlignment: closed form, a plain loop, finite differences."""
import torch
import torch.nn.functional as F
from helpers import close, times, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square


def test_closed_form(bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(0.2, 3), terms=ml.GradientAlignment())
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    learned, asked = times(A, start - s), times(C, start - q)
    value, gradient = value_and_gradient(J, bowls)
    close(value, -(learned * asked).sum(-1).mean())
    close(gradient, -(times(A, asked) + times(C, learned)).mean(0))


def test_a_plain_loop(small_net, sines):
    names, theta = zip(*small_net.named_parameters(), strict=True)
    total = 0
    for b in range(sines.batch_size):
        slopes = []
        for split in sines:
            answer = functional_call(small_net, dict(zip(names, theta, strict=True)),
                                     (split.x[b],))
            slopes.append(torch.autograd.grad(F.mse_loss(answer, split.y[b]), theta,
                                              create_graph=True))
        total = total - sum((g * h).sum() for g, h in zip(*slopes, strict=True)) / 6
    J = ml.MetaLoss(small_net, F.mse_loss, terms=ml.GradientAlignment())
    value, gradient = value_and_gradient(J, sines)
    close(value, total.detach())
    close(gradient, torch.cat([g.flatten() for g in torch.autograd.grad(total, theta)]))


def test_by_finite_differences(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(steps=0),
                    terms=ml.QueryLoss() + 0.3 * ml.GradientAlignment())
    names = list(dict(J.named_parameters()))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(
        lambda *p: functional_call(J, dict(zip(names, p, strict=True)), (sines,)), inputs,
        fast_mode=True)
