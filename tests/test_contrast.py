"""Triplet and ConML: closed forms on the quadratic bed, gradcheck, limits, and bad input."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, value_and_gradient
from torch.func import functional_call

import metalit as ml
from metalit.models import Point
from metalit.tasks import Quadratics, Split, Task, half_square
from metalit.terms.contrast import cosine_distance, rms_distance

LR = 0.2


def end(x, y, theta, steps):
    "φ_K = θ after descent on ½‖xφ − y‖², and the Jacobian ∂φ_K/∂θ = (I − αxᵀx)ᴷ."
    M, phi = torch.eye(len(theta), dtype=theta.dtype) - LR * x.mT @ x, theta
    for _ in range(steps): phi = M @ phi + LR * x.mT @ y
    return phi, torch.linalg.matrix_power(M, steps)


def embedded(phi, jacobian, theta, embedding, probe):
    "ψ(φ) and ∂ψ/∂θ."
    if embedding == "predictions": return probe @ phi, probe @ jacobian
    if embedding == "change":
        return phi - theta, jacobian - torch.eye(len(theta), dtype=theta.dtype)
    return phi, jacobian


def distance(a, b):
    "The root-mean-square distance of two pairs (ψ, ∂ψ/∂θ), and its gradient."
    gap, slope = a[0] - b[0], a[1] - b[1]
    rms = gap.norm() / math.sqrt(len(gap))
    return rms, slope.mT @ gap / (math.sqrt(len(gap)) * gap.norm())


def triplet(task, theta, steps, margin, embedding):
    "Value and gradient of the mean hinge, by hand, pair by pair."
    B, half = task.batch_size, task.support.x.shape[1] // 2
    def ends(part):
        return [embedded(*end(task.support.x[i, part], task.support.y[i, part], theta, steps),
                         theta, embedding, task.query.x[0]) for i in range(B)]
    one, other, whole = ends(slice(half)), ends(slice(half, None)), ends(slice(None))
    value, gradient = 0.0, torch.zeros_like(theta)
    for i in range(B):
        for j in range(B):
            if i == j: continue
            (near, d_near), (far, d_far) = distance(one[i], other[i]), distance(whole[i], whole[j])
            if margin + near - far > 0:
                value, gradient = value + margin + near - far, gradient + d_near - d_far
    return value / (B * (B - 1)), gradient / (B * (B - 1))


def cosine(a, b):
    """1 − cos of two pairs (ψ, ∂ψ/∂θ).

    With ∂/∂u = −(v̂ − (û·v̂)û)/‖u‖ chained with ∂u/∂θ, for both sides.
    """
    (u, du), (v, dv) = a, b
    u_hat, v_hat = u / u.norm(), v / v.norm()
    cos = u_hat @ v_hat
    return (1 - cos,
            -du.mT @ (v_hat - cos * u_hat) / u.norm() - dv.mT @ (u_hat - cos * v_hat) / v.norm())


def conml(task, theta, steps, embedding):
    "D_in − D_out and its gradient, by hand."
    B, parts = task.batch_size, {}
    for name, (x, y) in (("S", task.support),
                         ("SQ", [torch.cat(p, 1) for p in zip(*task, strict=True)])):
        parts[name] = [embedded(*end(x[i], y[i], theta, steps), theta, embedding, task.query.x[0])
                       for i in range(B)]
    inside = [cosine(parts["S"][i], parts["SQ"][i]) for i in range(B)]
    outside = [cosine(parts["SQ"][i], parts["SQ"][j]) for i in range(B) for j in range(B) if i != j]
    return tuple(sum(p[k] for p in inside) / len(inside) - sum(p[k] for p in outside) / len(outside)
                 for k in (0, 1))


@pytest.mark.parametrize("embedding", ["predictions", "parameters", "change"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("margin", [0.3, 5.0])
def test_triplet_closed_form(margin, steps, embedding, bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, steps),
                    terms=ml.Triplet(margin, embedding))
    value, gradient = value_and_gradient(J, bowls)
    expected, slope = triplet(bowls, start, steps, margin, embedding)
    close(value, expected)
    close(gradient, slope)
    assert gradient.norm() > 1e-3


def test_some_hinges_are_open_and_some_closed(bowls, start):
    "The small margin above really tests the kink: both kinds of pairs are in the batch."
    values = [triplet(bowls, start, 1, margin, "predictions")[0] for margin in (0.3, 0.4)]
    growth = (values[1] - values[0]) / 0.1
    assert 0 < growth < 0.99


@pytest.mark.parametrize("embedding", ["predictions", "parameters", "change"])
@pytest.mark.parametrize("steps", [1, 3])
def test_conml_closed_form(steps, embedding, bowls, start):
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, steps),
                    terms=ml.Contrast(embedding))
    value, gradient = value_and_gradient(J, bowls)
    expected, slope = conml(bowls, start, steps, embedding)
    close(value, expected)
    close(gradient, slope)
    assert gradient.norm() > 1e-3


@pytest.mark.parametrize("embedding", ["predictions", "parameters", "change"])
@pytest.mark.parametrize("term", [ml.Triplet, ml.Contrast])
def test_gradcheck_on_a_network(term, embedding, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2),
                    terms=ml.QueryLoss() + 0.5 * term(embedding=embedding))
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


@pytest.mark.parametrize("method", [ml.TripletMAML, ml.ConML])
def test_weight_zero_is_maml(method, small_net, sines):
    expected = value_and_gradient(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    for a, b in zip(value_and_gradient(method(small_net, F.mse_loss, lr=0.1, steps=2, weight=0.0),
                                       sines),
                    expected, strict=True):
        close(a, b, 1e-14)
    changed = (
        value_and_gradient(method(small_net, F.mse_loss, lr=0.1, steps=2, weight=0.5), sines)[1]
    )
    assert (changed - expected[1]).norm() > 1e-3


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
@pytest.mark.parametrize("method", [ml.TripletMAML, ml.ConML])
def test_chunks_agree_with_all_at_once(method, chunk_size, small_net, sines):
    "Pairs reach across chunks, and the probe is that of the whole batch."
    for embedding in ("predictions", "parameters"):
        whole, parts = (value_and_gradient(method(small_net, F.mse_loss, lr=0.1,
                                                  embedding=embedding, chunk_size=size), sines)
                        for size in (None, chunk_size))
        for a, b in zip(whole, parts, strict=True): close(a, b, 1e-12)


def same_inputs_in_both_halves(tasks=4, dim=3):
    "Tasks that share one curvature, and whose halves share another: only the targets differ."
    g = torch.Generator().manual_seed(5)
    x = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    support = torch.cat([x, x]).expand(tasks, -1, -1)
    y = torch.randn(tasks, 2 * dim, generator=g, dtype=torch.float64)
    return Task(Split(0.4 * support, y), Split(0.4 * support, y.flip(1)))


@pytest.mark.parametrize("embedding", ["parameters", "predictions"])
def test_blind_on_shared_curvature(embedding):
    """φ^κ − φ^κ′ and φ_τ − φ_τ′ do not depend on θ.

    The hinge is open, its value not zero, its gradient is.
    """
    task = same_inputs_in_both_halves()
    values = []
    for theta in (torch.zeros(3), torch.tensor([3.0, -4.0, 9.0])):
        J = ml.MetaLoss(Point(theta.double()), half_square, inner=ml.SGD(LR, 3),
                        terms=ml.Triplet(2.0, embedding))
        value, gradient = value_and_gradient(J, task)
        close(gradient, torch.zeros(3, dtype=torch.float64), 1e-12)
        values.append(value)
    close(*values)
    assert values[0] > 0.1


def test_difference_of_adapted_parameters_on_shared_curvature(start):
    "φ^κ − φ^κ′ = (I − Mᴷ)(s^κ − s^κ′)."
    tasks = Quadratics(dim=4, shared_curvature=True).batch(2, seed=0)
    (A, _), (s, s_other) = ml.tasks.curvature(tasks.support)
    phi = ml.MAML(Point(start), half_square, lr=LR, steps=3).adapt(tasks.support)["theta"]
    M = torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * A, 3)
    close(phi[0] - phi[1], (s - s_other) - M @ (s - s_other))


def test_cosine_of_raw_parameters_depends_on_the_origin_and_of_changes_does_not(bowls, start):
    shift = torch.tensor([5.0, 0.0, -3.0, 1.0], dtype=torch.float64)
    moved = Task(*(Split(x, y + x @ shift) for x, y in bowls))

    def value(task, theta, embedding):
        return ml.MetaLoss(Point(theta), half_square, inner=ml.SGD(LR),
                           terms=ml.Contrast(embedding))(task)
    close(value(bowls, start, "change"), value(moved, start + shift, "change"))
    assert (value(bowls, start, "parameters") - value(moved, start + shift,
                                                      "parameters")).abs() > 0.01


def test_one_descent_step_pulls_halves_together_and_pushes_tasks_apart(small_net, sines):
    term = ml.Triplet(margin=10.0)
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), terms=term)

    def gap():
        one, other, whole = J.per_task(sines)[0].unbind(1)
        far = rms_distance(whole[:, None], whole[None]).sum() / (len(whole) * (len(whole) - 1))
        return (rms_distance(one, other).mean() - far).item()
    before = gap()
    J(sines).backward()
    with torch.no_grad():
        for p in J.parameters(): p -= 0.01 * p.grad
    assert gap() < before


@pytest.mark.parametrize("embedding", ["predictions", "parameters", "change"])
@pytest.mark.parametrize("term", [ml.Triplet, ml.Contrast])
@pytest.mark.parametrize("steps", [0, 1])
def test_zero_distance_has_a_finite_gradient(steps, term, embedding, small_net, sines):
    "All tasks are one task, and with K = 0 nothing has moved."
    same = sines.select(torch.zeros(3, dtype=torch.long))
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, steps),
                    terms=term(embedding=embedding))
    value, gradient = value_and_gradient(J, same)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_distances_at_zero():
    a = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    for distance_of in (rms_distance, cosine_distance):
        gradient, = torch.autograd.grad(distance_of(a, a.detach().clone()).sum(), a)
        close(gradient, torch.zeros_like(a), 1e-15)
    zeros = torch.zeros(3, requires_grad=True)
    close(cosine_distance(zeros, torch.ones(3)), torch.tensor(1.0))
    gradient, = torch.autograd.grad(cosine_distance(zeros, torch.ones(3)), zeros)
    assert torch.isfinite(gradient).all()
    close(rms_distance(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])),
          torch.tensor(5.0 / math.sqrt(2)))


class Worst(ml.Pooling):
    "The worst task speaks for all."
    def forward(self, values): return values.max()


@pytest.mark.parametrize("term", [ml.Triplet(0.3), ml.Contrast()])
def test_outside_the_pooling(term, bowls, start):
    "Beside the worst query loss there is still the mean over tasks: value and gradient."
    def found(terms, **choices):
        J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR), terms=terms, **choices)
        return value_and_gradient(J, bowls)
    both, worst = (found(terms, pooling=Worst())
                   for terms in (ml.QueryLoss() + 0.5 * term, ml.QueryLoss()))
    for total, query, own in zip(both, worst, found(term), strict=True):
        close(total, query + 0.5 * own)
    assert worst[0] > found(ml.QueryLoss())[0]


@pytest.mark.parametrize("margin", [0, -1.0, math.nan, math.inf])
def test_bad_margin(margin):
    with pytest.raises(ValueError, match="a finite number above 0 is needed"): ml.Triplet(margin)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("method", [ml.TripletMAML, ml.ConML])
def test_bad_weight(method, weight, small_net):
    with pytest.raises(ValueError, match=f"weight={weight}: the factor of the second term"):
        method(small_net, F.mse_loss, weight=weight)


@pytest.mark.parametrize("make",
                         [lambda name: ml.Triplet(embedding=name), lambda name: ml.Contrast(name)])
def test_bad_embedding(make):
    with pytest.raises(
        ValueError, match=r"embedding='outputs': choose one of .*predictions.*parameters.*change"
    ):
        make("outputs")


@pytest.mark.parametrize(("method", "name"), [(ml.TripletMAML, "Triplet"), (ml.ConML, "Contrast")])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_one_task_is_too_few(method, name, chunk_size, small_net, sines):
    J = method(small_net, F.mse_loss, chunk_size=chunk_size)
    with pytest.raises(ValueError,
                       match=f"{name} compares tasks with each other, and this batch holds 1"):
        J(sines.select(0))


def test_support_too_small_to_split(small_net):
    one_shot = ml.tasks.Sinusoids(shots=1).batch(3).to(dtype=torch.float64)
    with pytest.raises(ValueError, match="a support set of 1 example cannot be split"):
        ml.TripletMAML(small_net, F.mse_loss)(one_shot)
    assert torch.isfinite(ml.ConML(small_net, F.mse_loss)(one_shot))


def test_odd_support_is_split(small_net):
    odd = ml.tasks.Sinusoids(shots=5).batch(3).to(dtype=torch.float64)
    assert torch.isfinite(ml.TripletMAML(small_net, F.mse_loss)(odd))
