"""GradientNorm, SAM, SharpMAML: closed forms on the quadratic bed, gradcheck, limits, bad input."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.inner.sam import SAM, uphill
from metalit.models import Point
from metalit.tasks import curvature, half_square, quadratic_task

LR = 0.2


def bed(task, theta, steps):
    "Mᴷ, C and the query gradient C(φ − q) of each task."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    M = torch.linalg.matrix_power(torch.eye(A.shape[-1], dtype=A.dtype) - LR * A, steps)
    return M, C, times(C, s + times(M, theta - s) - q)


@pytest.mark.parametrize("gradient_rule", [ml.Exact, ml.FirstOrder])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("at", ["adapted", "init"])
def test_gradient_norm_closed_form(at, steps, gradient_rule, bowls, start):
    """½‖C(φ−q)‖² with gradient MᴷCC(φ−q); ½‖MᴷC(φ−q)‖² with gradient (MᴷCMᴷ)MᴷC(φ−q).

    First order: M = I in J.
    """
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, steps), terms=ml.GradientNorm(at),
                    gradient=gradient_rule())
    value, gradient = value_and_gradient(J, bowls)
    M, C, g = bed(bowls, start, steps)
    if gradient_rule is ml.FirstOrder: M = torch.eye(4, dtype=M.dtype).expand_as(M)
    if at == "init": g = times(M, g)
    slope = times(M @ C @ M if at == "init" else M @ C, g)
    close(value, 0.5 * (g**2).sum(-1).mean())
    close(gradient, slope.mean(0))


def test_the_two_readings_differ_after_a_step_and_agree_before(bowls, start):
    def both(steps):
        return [value_and_gradient(ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, steps),
                                               terms=ml.GradientNorm(at)), bowls)
                for at in ("adapted", "init")]
    for a, b in zip(*both(0), strict=True): close(a, b)
    for a, b in zip(*both(1), strict=True): assert (a - b).norm() > 0.1


@pytest.mark.parametrize("at", ["adapted", "init"])
def test_descent_on_the_penalty_lowers_sensitivity(at, bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR), terms=ml.GradientNorm(at))
    first = J(bowls).item()
    optimizer = torch.optim.SGD(J.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        J(bowls).backward()
        optimizer.step()
    assert J(bowls).item() < 0.8 * first


@pytest.mark.parametrize("at", ["adapted", "init"])
def test_gradient_norm_gradcheck(at, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2),
                    terms=ml.QueryLoss() + 0.3 * ml.GradientNorm(at))
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


@pytest.mark.parametrize("at", ["adapted", "init"])
def test_gradient_norm_weight_zero_is_maml_and_chunks_agree(at, small_net, sines):
    maml = value_and_gradient(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    def with_weight(weight, chunk_size=None):
        return value_and_gradient(
            ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), chunk_size=chunk_size,
                        terms=ml.QueryLoss() + weight * ml.GradientNorm(at)), sines
        )
    for a, b in zip(with_weight(0.0), maml, strict=True): close(a, b, 1e-14)
    for a, b in zip(with_weight(0.1), with_weight(0.1, 4), strict=True): close(a, b, 1e-12)
    assert (with_weight(0.1)[1] - maml[1]).norm() > 1e-3


def sam_end(task, theta, steps, rho):
    "φ_K of each task under SAM on bowls: the gradient at φ + ρĝ is A(φ − s) + ρAĝ."
    A, s = curvature(task.support)
    phi = theta.expand_as(s)
    for _ in range(steps):
        g = times(A, phi - s)
        phi = phi - LR * times(A, phi - s + rho * g / g.norm(dim=-1, keepdim=True))
    return phi


@pytest.mark.parametrize("steps", [1, 3])
def test_sam_inner_loop_closed_form(steps, bowls, start):
    "The shift counts as a constant, so the Jacobian stays Mᴷ: ∇ = MᴷC(φ − q) at SAM's own φ."
    rho = 0.3
    J = ml.MetaLoss(Point(start), half_square, inner=SAM(LR, steps, rho=rho))
    phi = sam_end(bowls, start, steps, rho)
    close(J.adapt(bowls.support)["theta"], phi)
    M, C, _ = bed(bowls, start, steps)
    _, q = curvature(bowls.query)
    value, gradient = value_and_gradient(J, bowls)
    close(value, 0.5 * ((phi - q) * times(C, phi - q)).sum(-1).mean())
    close(gradient, times(M, times(C, phi - q)).mean(0))
    assert (phi - sam_end(bowls, start, steps, 0.0)).norm() > 0.01


def test_uphill_goes_rho_far_along_the_gradient(start):
    two = torch.ones(2, dtype=start.dtype)
    point, gradient = {"a": start, "b": 0 * two}, {"a": start * 2, "b": two}
    moved = uphill(point, gradient, 0.7)
    shift = torch.cat([moved[k] - point[k] for k in point])
    flat = torch.cat([gradient[k] for k in gradient])
    close(shift, 0.7 * flat / flat.norm())


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_zero_gradient_moves_nothing_and_gives_no_nan(rho):
    A, s = torch.eye(3, dtype=torch.float64)[None], torch.ones(1, 3, dtype=torch.float64)
    task = quadratic_task(A, s)
    for J in (ml.MetaLoss(Point(s[0]), half_square, inner=SAM(LR, 2, rho=rho)),
              ml.SharpMAML(Point(s[0]), half_square, lr=LR, rho_inner=rho, rho_outer=rho)):
        value, gradient = value_and_gradient(J, task)
        close(value, torch.tensor(0.0, dtype=torch.float64))
        close(gradient, torch.zeros(3, dtype=torch.float64))


def test_sharp_maml_outer_closed_form(bowls, start):
    "J = ½(θ−c)ᵀG(θ−c) + const with G = mean of MᴷCMᴷ: the gradient is G(θ−c) + ρGĝ."
    rho = 0.3
    M, C, g = bed(bowls, start, 2)
    G, slope = (M @ C @ M).mean(0), times(M, g).mean(0)
    unit = slope / slope.norm()
    J = ml.SharpMAML(Point(start), half_square, lr=LR, steps=2, rho_inner=0.0, rho_outer=rho)
    value, gradient = value_and_gradient(J, bowls)
    close(gradient, slope + rho * G @ unit)
    flat = ml.MAML(Point(start), half_square, lr=LR, steps=2)(bowls)
    close(value, flat + rho * slope.norm() + 0.5 * rho**2 * unit @ G @ unit)
    close(J.model.theta.detach(), start, 0)


def test_sharp_maml_both(bowls, start):
    """Look uphill outside, adapt with SAM from there.

    Value and gradient of MAML with SAM, at the shifted point.
    """
    inner = ml.MetaLoss(Point(start), half_square, inner=SAM(LR, 2, rho=0.1))
    g = value_and_gradient(inner, bowls)[1]
    there = ml.MetaLoss(Point(start + 0.3 * g / g.norm()), half_square, inner=SAM(LR, 2, rho=0.1))
    J = ml.SharpMAML(Point(start), half_square, lr=LR, steps=2, rho_inner=0.1, rho_outer=0.3)
    for a, b in zip(value_and_gradient(J, bowls), value_and_gradient(there, bowls), strict=True):
        close(a, b)


def test_rho_zero_is_maml(small_net, sines):
    expected = value_and_gradient(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    for J in (ml.MetaLoss(small_net, F.mse_loss, inner=SAM(0.1, 2, rho=0.0)),
              ml.SharpMAML(small_net, F.mse_loss, lr=0.1, steps=2, rho_inner=0.0, rho_outer=0.0)):
        for a, b in zip(value_and_gradient(J, sines), expected, strict=True): close(a, b, 1e-14)


def test_sam_and_sharp_maml_on_a_network(small_net, sines):
    "Value and gradient against a plain loop over tasks with autograd.grad, shifts detached."
    rho_inner, rho_outer = 0.2, 0.1
    parameters = list(small_net.parameters())
    names = [name for name, _ in small_net.named_parameters()]

    def shift(point, slopes, rho):
        norm = torch.sqrt(sum((g.detach() ** 2).sum() for g in slopes))
        return [p + rho * g.detach() / norm for p, g in zip(point, slopes, strict=True)]

    def by_hand(theta):
        losses = []
        for i in range(sines.batch_size):
            def loss(phi, split, i=i):
                return F.mse_loss(functional_call(small_net, dict(zip(names, phi, strict=True)),
                                                  (split.x[i],)), split.y[i])
            phi = theta
            for _ in range(2):
                slopes = torch.autograd.grad(loss(phi, sines.support), phi, create_graph=True)
                there = shift(phi, slopes, rho_inner)
                slopes = torch.autograd.grad(loss(there, sines.support), there, create_graph=True)
                phi = [p - 0.1 * g for p, g in zip(phi, slopes, strict=True)]
            losses.append(loss(phi, sines.query))
        return torch.stack(losses).mean()
    there = shift(parameters, torch.autograd.grad(by_hand(parameters), parameters), rho_outer)
    expected = by_hand(there)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(expected, parameters)])
    J = ml.SharpMAML(small_net, F.mse_loss, lr=0.1, steps=2, rho_inner=rho_inner,
                     rho_outer=rho_outer)
    value, gradient = value_and_gradient(J, sines)
    close(value, expected.detach(), 1e-12)
    close(gradient, slope, 1e-12)
    assert (
        gradient - value_and_gradient(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)[1]
    ).norm() > 1e-3


def test_sharp_maml_reports(small_net, sines):
    "`report` and `curve` work without gradients, and the parameters stay where they were."
    J = ml.SharpMAML(small_net, F.mse_loss, lr=0.1)
    before = torch.cat([p.detach().flatten().clone() for p in J.parameters()])
    assert J.report(sines)["meta_loss"] == pytest.approx(J(sines).item(), abs=1e-12)
    close(torch.cat([p.detach().flatten() for p in J.parameters()]), before, 0)


def test_a_schedule_sets_what_the_norm_weighs(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1),
                    terms=ml.schedule.Linear(0.0, 1.0) * ml.GradientNorm())
    J.at(9, 10)
    for term in J.terms.terms: term.at(9, 10)  # has no number of its own, and no harm is done
    alone = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1), terms=ml.GradientNorm())
    close(J(sines), alone(sines), 1e-14)


@pytest.mark.parametrize("at", ["start", None, 0])
def test_bad_at(at):
    with pytest.raises(ValueError, match=r"choose 'adapted' .* or 'init'"): ml.GradientNorm(at)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_bad_rho(rho, small_net):
    with pytest.raises(ValueError, match=f"rho={rho}: a finite distance"): SAM(rho=rho)
    for options in ({"rho_inner": rho}, {"rho_outer": rho}):
        with pytest.raises(ValueError, match="a finite distance, 0 or more, is needed"):
            ml.SharpMAML(small_net, F.mse_loss, **options)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_bad_weight(weight):
    with pytest.raises(ValueError, match="the weight of GradientNorm is"):
        weight * ml.GradientNorm()
