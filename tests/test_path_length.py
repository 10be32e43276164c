"""PathLength: closed forms by every rule, a plain loop, twice Reptile, rest, its errors."""
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import close, value_and_gradient

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square

KINDS = [(power, loss, stabiliser) for power in (1, 2)
         for loss, stabiliser in ((False, False), (True, False), (True, True))]
RULES = {"exact": ml.Exact, "first order": ml.FirstOrder, "mixed mode": ml.MixedMode,
         "truncated": lambda: ml.Truncated(1)}


def along(points, heights, slopes, power, stabiliser):
    "Value and gradient of one task: −p Σ (Δφ + Δf ∇f) ‖Δγ‖ᵖ⁻²."
    value = gradient = 0
    for k, (here, after) in enumerate(pairwise(points)):
        rise = heights[k + 1] - heights[k]
        squared = ((after - here) ** 2).sum() + rise**2
        pull = (after - here) + (-rise.abs() if stabiliser else rise) * slopes[k]
        value = value + squared ** (power / 2)
        gradient = gradient - power * pull * squared ** (power / 2 - 1)
    return value, gradient


@pytest.mark.parametrize("lr", [0.2, 1.3])                   # with 1.3 the loss rises
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("power", "loss", "stabiliser"), KINDS)
def test_closed_form(power, loss, stabiliser, rule, lr, bowls, start):
    A, s = curvature(bowls.support)
    found = []
    for A_b, s_b in zip(A, s, strict=True):
        points = [start]
        for _ in range(3): points.append(points[-1] - lr * A_b @ (points[-1] - s_b))
        off = [p - s_b for p in points]
        found.append(along(points, [loss * e @ A_b @ e / 2 for e in off], [A_b @ e for e in off],
                           power, stabiliser))
    values, gradients = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(lr, 3), gradient=RULES[rule](),
                    terms=ml.PathLength(power, loss=loss, stabiliser=stabiliser))
    value, gradient = value_and_gradient(J, bowls)
    torch.testing.assert_close(value, values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, gradients, rtol=1e-12, atol=1e-12)


def test_a_plain_loop(small_net, sines):
    names, theta = zip(*small_net.named_parameters(), strict=True)
    found = []
    for x, y in zip(*sines.support, strict=True):
        phi, points, heights, slopes = theta, [], [], []
        for _ in range(4):
            answer = torch.func.functional_call(small_net, dict(zip(names, phi, strict=True)), (x,))
            f = F.mse_loss(answer, y)
            g = torch.autograd.grad(f, phi)
            points.append(torch.cat([p.detach().flatten() for p in phi]))
            heights.append(f.detach())
            slopes.append(torch.cat([part.flatten() for part in g]))
            phi = [(p - 0.1 * part).detach().requires_grad_()
                   for p, part in zip(phi, g, strict=True)]
        found.append(along(points, heights, slopes, 1, True))
    right = [torch.stack(part).mean(0) for part in zip(*found, strict=True)]
    J = ml.Leap(small_net, F.mse_loss, lr=0.1, steps=3)
    for one, other in zip(value_and_gradient(J, sines), right, strict=True): close(one, other)


@pytest.mark.parametrize("steps", [1, 5])
def test_without_the_loss_it_is_twice_reptile(steps, small_net, sines):
    leap = ml.Leap(small_net, F.mse_loss, lr=0.1, steps=steps, power=2, loss_part=False,
                   batch_size=2)
    reptile = ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=steps, batch_size=2)
    close(value_and_gradient(leap, sines)[1], 2 * value_and_gradient(reptile, sines)[1], 1e-14)


def test_at_rest_a_way_has_no_direction():
    J = ml.MetaLoss(Point(torch.zeros(4).double()), half_square, inner=ml.SGD(0.2, 3),
                    terms=ml.PathLength())
    origin = ml.tasks.quadratic_task(torch.eye(4).double()[None], torch.zeros(1, 4).double())
    value, gradient = value_and_gradient(J, origin)
    assert value == 0 and torch.equal(gradient, torch.zeros(4).double())


def test_a_context_that_is_no_part_of_theta_counts_and_does_not_learn(sines):
    net = ml.models.Contextual(ml.models.mlp(3, 4, 1, seed=1), 2).double()
    J = ml.MetaLoss(net, F.mse_loss, inner=ml.Context(net, 0.3, 2),
                    terms=ml.PathLength(2, loss=False))
    J(sines).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    ends = [J.adapt(sines.support, steps=k)["context"] for k in range(3)]
    right = sum(((b - a) ** 2).sum() for a, b in pairwise(ends)) / 6
    close(J(sines).detach(), right.detach(), 1e-14)


@pytest.mark.parametrize("power", [0, 3, 1.5, True])
def test_what_is_no_power(power):
    with pytest.raises(ValueError, match="1, the length of the way, or 2"): ml.PathLength(power)


def test_no_way_at_all(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 0), terms=ml.PathLength())
    with pytest.raises(ValueError, match="it takes none: give it steps=1"): J(sines)


def test_its_line():
    assert repr(ml.PathLength(2)) == "PathLength(power=2, loss=True, stabiliser=True)"
