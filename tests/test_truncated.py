"""Truncated: closed forms, both ends to the last bit, a plain loop, finite differences, errors."""
import pytest
import torch
import torch.nn.functional as F
from helpers import close, flat, times, value_and_gradient
from torch import nn

import metalit as ml
from metalit.batching.slope import grad
from metalit.tasks import curvature, half_square
from metalit.training.memory import step_memory

LR, STEPS = 0.2, 3
EYE = torch.eye(4, dtype=torch.float64)


def back(A, pull, k):
    "∂φ_K/∂θ through the last k steps: that of an inner loop of k steps."
    P = pull * torch.linalg.inv(A + pull * EYE)
    return P + torch.linalg.matrix_power(EYE - LR * (A + pull * EYE), k) @ (EYE - P)


@pytest.mark.parametrize("pull", [0.0, 0.7, 4.0])
@pytest.mark.parametrize("k", range(5))
def test_closed_form(k, pull, bowls, start):
    inner = ml.Proximal(LR, STEPS, pull=pull)
    J = ml.MetaLoss(ml.models.Point(start), half_square, inner=inner, gradient=ml.Truncated(k))
    (A, _), (C, q) = curvature(bowls.support), curvature(bowls.query)
    with torch.no_grad(): slope = times(C, J.adapt(bowls.support)["theta"] - q)
    value, gradient = value_and_gradient(J, bowls)
    assert value == ml.MetaLoss(J.model, half_square, inner=inner)(bowls)
    close(gradient, times(back(A, pull, min(k, STEPS)), slope).mean(0), atol=1e-12)


class Growing(ml.InnerLoop):
    "A step along the mean of all gradients so far, whose state grows."
    def step(self, loss, phi, state, k):
        state = (*state, grad(loss)(phi))
        mean = {name: sum(g[name] for g in state) / len(state) for name in phi}
        return {name: phi[name] - 0.1 * mean[name] for name in phi}, state


class Fading(ml.SGD):
    "A direction that remembers the last gradient, in a function."
    def start(self):
        last = {}

        def towards(gradient):
            found = {name: g + 0.5 * last.get(name, 0.0) for name, g in gradient.items()}
            last.update(gradient)
            return found
        return towards


INNER = {
    "sgd": lambda net: ml.SGD(0.1, STEPS), "no step": lambda net: ml.SGD(0.1, 0),
    "habits": lambda net: ml.SGD(0.1, STEPS, momentum=0.9, nesterov=True, weight_decay=0.1,
                                 clip=1.0),
    "learned rates": lambda net: ml.SGD({"0": 0.1, "*": 0.05}, STEPS, learn_lr=True, momentum=0.5),
    "batches": lambda net: ml.SGD(0.1, STEPS, batch_size=3), "adam": lambda net: ml.Adam(0.01, 3),
    "sam": lambda net: ml.SAM(0.1, STEPS, rho=0.1), "sign": lambda net: ml.Sign(0.01, STEPS),
    "kronecker": lambda net: ml.Kronecker(net, 0.1, STEPS),
    "masked": lambda net: ml.Masked(net, 0.1, STEPS, only="2.*"),
    "proximal": lambda net: ml.Proximal(0.1, STEPS, pull=1.5, momentum=0.5),
    "lslr": lambda net: ml.LSLR(net, 0.1, STEPS, momentum=0.5),
    "alfa": lambda net: ml.ALFA(net, 0.1, STEPS), "forget": lambda net: ml.Forget(net, 0.1, STEPS),
    "growing": lambda net: Growing(STEPS), "fading": lambda net: Fading(0.1, STEPS),
    "fading with momentum": lambda net: Fading(0.1, STEPS, momentum=0.5),
}


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("name", INNER)
def test_both_ends_to_the_last_bit(name, batching, small_net, sines):
    "No last step is first order, all of them are the exact rule."
    def found(rule):
        J = ml.MetaLoss(small_net, F.mse_loss, inner=INNER[name](small_net), gradient=rule,
                        batching=batching)
        value = J(sines)
        return value.detach(), *torch.autograd.grad(value, list(J.parameters()))
    for k, rule in ((0, ml.FirstOrder()), (STEPS, ml.Exact()), (9, ml.Exact())):
        assert all(map(torch.equal, found(ml.Truncated(k)), found(rule)))
    for k in (1, 2): assert torch.equal(found(ml.Truncated(k))[0], found(ml.Exact())[0])


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def by_loop(theta, task, k, inner=STEPS, pull=1.5, momentum=0.5):
    "The early steps with numbers; the last ones connected, the velocity a number where they begin."
    values = []
    for x, y, x_query, y_query in zip(*task.support[:2], *task.query[:2], strict=True):
        phi, velocity = theta, [torch.zeros_like(p) for p in theta]
        for step in range(inner):
            at = [p.detach().requires_grad_() for p in phi] if step < inner - k else phi
            home = [p.detach() for p in theta] if step < inner - k else theta
            g = torch.autograd.grad(error(at, x, y), at, create_graph=step >= inner - k)
            velocity = [momentum * v + d + pull * (p - t)
                        for v, d, p, t in zip(velocity, g, at, home, strict=True)]
            if step < inner - k: velocity = [v.detach() for v in velocity]
            phi = [p - 0.1 * v for p, v in zip(phi, velocity, strict=True)]
        values.append(error(phi, x_query, y_query))
    value = torch.stack(values).mean()
    return value.detach(), torch.autograd.grad(value, theta)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 4}], ids=str)
def test_a_plain_loop(options, k, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=INNER["proximal"](small_net),
                    gradient=ml.Truncated(k), **options)
    value, gradient = value_and_gradient(J, sines)
    right, slopes = by_loop(list(small_net.parameters()), sines, k)
    close(value, right, 1e-13)
    close(gradient, torch.cat([g.flatten() for g in slopes]), 1e-13)


@pytest.mark.parametrize("k", [1, 2])
def test_finite_differences_of_the_last_steps(k, small_net, sines):
    "From θ + c, with c fixed and the spring at θ."
    theta = torch.cat([p.detach().flatten() for p in small_net.parameters()])
    shapes = [p.shape for p in small_net.parameters()]

    def parts(vector):
        sizes = [shape.numel() for shape in shapes]
        return [part.reshape(s) for part, s in zip(vector.split(sizes), shapes, strict=True)]

    def walked(phi, home, x, y, count):
        for _ in range(count):
            at = [p.detach().requires_grad_() for p in parts(phi)]
            g = torch.cat([d.flatten() for d in torch.autograd.grad(error(at, x, y), at)])
            phi = phi - 0.1 * (g + 1.5 * (phi - home))
        return phi
    tasks = list(zip(*sines.support[:2], *sines.query[:2], strict=True))
    moved = [walked(theta, theta, x, y, STEPS - k) - theta for x, y, _, _ in tasks]

    def value(at):
        return sum(error(parts(walked(at + c, at, x, y, k)), xq, yq)
                   for c, (x, y, xq, yq) in zip(moved, tasks, strict=True)) / len(tasks)
    along = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0)).double()
    slope = (value(theta + 1e-5 * along) - value(theta - 1e-5 * along)) / 2e-5
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Proximal(0.1, STEPS, pull=1.5),
                    gradient=ml.Truncated(k))
    value_and_gradient(J, sines)
    close(flat(small_net) @ along, slope.item(), 1e-8)


class Twice(ml.Term):
    "The query loss after other inner loops of one task, with other numbers of steps."
    def per_task(self, path, task):
        ends = [path.adapt(task.support, steps=n)[-1] for n in (2, 5)]
        return sum(path.loss(end, task.query) for end in ends)


def test_the_last_steps_of_every_inner_loop_of_a_term(bowls, start):
    J = ml.MetaLoss(ml.models.Point(start), half_square, inner=ml.SGD(LR, 3), terms=Twice(),
                    gradient=ml.Truncated(3))
    value_and_gradient(J, bowls)
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    M = EYE - LR * A
    expected = sum(times(torch.linalg.matrix_power(M, min(n, 3)) @ C,
                         s + times(torch.linalg.matrix_power(M, n), start - s) - q)
                   for n in (2, 5))
    close(flat(J.model), expected.mean(0))


def test_early_steps_keep_no_graph():
    net, tasks = ml.models.mlp(1, 20, 20, 1), ml.tasks.Sinusoids(shots=20).batch(4)
    copy = 4 * sum(p.numel() * p.element_size() for p in net.parameters())

    def kept(rule, steps):
        J = ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.01, steps), gradient=rule)
        return step_memory(J, tasks).graph
    one_more = kept(ml.Truncated(1), 5) - kept(ml.Truncated(1), 4)
    assert one_more < 1.05 * copy < kept(ml.Exact(), 5) - kept(ml.Exact(), 4)


@pytest.mark.parametrize("steps", [-1, 1.5, None, True])
def test_what_is_no_number_of_steps(steps):
    with pytest.raises(ValueError, match="the number of inner steps is a whole number"):
        ml.Truncated(steps)


def test_its_line(small_net):
    assert repr(ml.Truncated(2)) == "Truncated(steps=2)"
    assert "gradient=Truncated(steps=2)" in repr(ml.MAML(small_net, nn.functional.mse_loss,
                                                         gradient=ml.Truncated(2)))
