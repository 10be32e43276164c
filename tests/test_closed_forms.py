"""The quadratic bed: each meta-loss and its gradient in closed form, to 1e-10 in float64."""
import pytest
import torch
from helpers import close

import metalit as ml
from metalit.tasks import curvature, half_square, quadratic_task

LR = 0.2


def closed_form(task: ml.Task, theta: torch.Tensor, steps: int, first_order: bool):
    """Value and gradient of the mean query loss.

    φ = s + Mᴷ(θ − s), ∇ = Mᴷ C(φ − q), with M = I − αA.
    """
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    M = torch.linalg.matrix_power(torch.eye(A.shape[-1], dtype=A.dtype) - LR * A, steps)
    phi = s + torch.einsum("bij,bj->bi", M, theta - s)
    slope = torch.einsum("bij,bj->bi", C, phi - q)
    value = 0.5 * ((phi - q) * slope).sum(-1).mean()
    return value, (slope if first_order else torch.einsum("bji,bj->bi", M, slope)).mean(0)


def finite_differences(J: ml.MetaLoss, task: ml.Task, h: float = 1e-5) -> torch.Tensor:
    theta, slopes = J.model.theta.data, []
    for i in range(len(theta)):
        values = []
        for sign in (1, -1):
            theta[i] += sign * h
            values.append(J(task).item())
            theta[i] -= sign * h
        slopes.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(slopes, dtype=theta.dtype)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 50])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("method", [ml.MAML, ml.FOMAML])
def test_maml_and_fomaml(method, steps, chunk_size, bowls, start):
    J = method(ml.models.Point(start), half_square, lr=LR, steps=steps, chunk_size=chunk_size)
    value, gradient = closed_form(bowls, start, steps, first_order=method is ml.FOMAML)
    J(bowls).backward()
    close(J(bowls), value)
    close(J.model.theta.grad, gradient)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_exact_gradient_is_the_slope_of_the_value(steps, bowls, start):
    J = ml.MAML(ml.models.Point(start), half_square, lr=LR, steps=steps)
    J(bowls).backward()
    torch.testing.assert_close(J.model.theta.grad, finite_differences(J, bowls), rtol=0, atol=1e-8)


def test_first_order_gradient_is_not_the_slope_where_curvature_is_not_zero(bowls, start):
    J = ml.FOMAML(ml.models.Point(start), half_square, lr=LR, steps=1)
    J(bowls).backward()
    assert (J.model.theta.grad - finite_differences(J, bowls)).abs().max() > 0.1


def test_first_order_equals_exact_where_the_inner_hessian_is_zero(bowls, start):
    def linear(prediction, y): return (prediction * y).sum()
    gradients = []
    for method in (ml.MAML, ml.FOMAML):
        J = method(ml.models.Point(start), linear, lr=LR, steps=3)
        J(bowls).backward()
        gradients.append(J.model.theta.grad)
    close(*gradients)
    assert gradients[0].abs().max() > 0.1


def test_unequal_curvatures_move_the_optimum_away_from_the_mean(start):
    "θ* = (ΣW)⁻¹ΣWc with W = Mᴷ A Mᴷ; descent on J ends there, not at the mean of the optima."
    tasks = ml.tasks.Quadratics(dim=3).batch(6, seed=0)
    A, c = curvature(tasks.support)
    task = quadratic_task(A, c)
    M = torch.linalg.matrix_power(torch.eye(3, dtype=A.dtype) - LR * A, 2)
    W = M @ A @ M
    optimum = torch.linalg.solve(W.sum(0), (W @ c[..., None]).sum(0)).squeeze(-1)
    J = ml.MAML(ml.models.Point(optimum), half_square, lr=LR, steps=2)
    J(task).backward()
    close(J.model.theta.grad, torch.zeros(3, dtype=torch.float64))
    assert (optimum - c.mean(0)).norm() > 0.05


def test_first_order_diverges_where_exact_converges():
    "One dimension, a = 1.5, α = 1, K = 1: slopes −0.75 and 0.375 per distance from the optimum."
    task = quadratic_task(torch.tensor([[[1.5]]]).double(), torch.zeros(1, 1).double())
    slopes = {}
    for method in (ml.MAML, ml.FOMAML):
        J = method(ml.models.Point(torch.ones(1, dtype=torch.float64)), half_square, lr=1.0,
                   steps=1)
        J(task).backward()
        slopes[method] = J.model.theta.grad.item()
    assert slopes == {ml.MAML: pytest.approx(0.375, abs=1e-12),
                      ml.FOMAML: pytest.approx(-0.75, abs=1e-12)}


def test_adapt_predict_curve_and_report_agree_with_the_closed_form(bowls, start):
    J = ml.MAML(ml.models.Point(start), half_square, lr=LR, steps=3)
    A, s = curvature(bowls.support)
    M = torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * A, 3)
    phi = s + torch.einsum("bij,bj->bi", M, start - s)
    adapted = J.adapt(bowls.support)
    close(adapted["theta"], phi)
    close(J.predict(adapted, bowls.query.x), torch.einsum("bsd,bd->bs", bowls.query.x, phi))
    values = [closed_form(bowls, start, k, False)[0] for k in (0, 2, 3)]
    close(J.curve(bowls, steps=(0, 2, 3)).mean(0), torch.stack(values))
    report = J.report(bowls)
    assert report == pytest.approx(
        {"meta_loss": values[2].item(), "QueryLoss": values[2].item(),
         "loss_before": values[0].item(), "loss_after": values[2].item()}, abs=1e-10
    )
    close(J.adapt(bowls.support, steps=0)["theta"], start.expand(5, -1))
