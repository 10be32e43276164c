"""Tasks of unequal size under inner loops that learn rates: which go together, in which way.

The referee is a plain loop over tasks and steps, with `torch.autograd.grad`: value, and gradients
in θ and in all that the inner loop learns.
"""
import pytest
import torch
import torch.nn.functional as F
from test_unequal import regression, spoiled
from torch import nn
from torch.func import functional_call

import metalit as ml

SIZES, LR, STEPS = ((3, 4), (5, 2), (2, 6)), 0.1, 3


def net(layer=nn.Identity):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), layer(4), nn.Tanh(), nn.Linear(4, 1)).double()


def by_place(inner, factors):
    "Numbers of one step by the names of their tensors."
    return dict(zip(inner.names, factors, strict=True))


# What is taken away from φ at step k, where the slope, or its velocity, is v


def rate(inner, k, phi, v): return {n: inner.lr * g for n, g in v.items()}


def rates(inner, k, phi, v):
    return {n: (inner.lr.rate0 if n.startswith("0") else inner.lr.rate1) * g for n, g in v.items()}


def diagonal(inner, k, phi, v): return {n: LR * inner.by_name()[n][0] * g for n, g in v.items()}


def by_step(inner, k, phi, v):
    factors = by_place(inner, inner.scale[k])
    return {n: LR * factors[n] * g for n, g in v.items()}


def said(inner, k, phi, v):
    seen = [phi[n].mean() for n in inner.names] + [v[n].detach().mean() for n in inner.names]
    first, second = inner.net(torch.stack(seen)).chunk(2)
    a, b = (by_place(inner, both) for both in (first * inner.scale[k], second * inner.decays[k]))
    return {n: LR * (a[n] * g + 0.3 * b[n] * phi[n]) for n, g in v.items()}


def plainly(inner, k, phi, v): return {n: LR * g for n, g in v.items()}


KINDS = {
    "learned rate": (lambda net, **o: ml.SGD(LR, STEPS, learn_lr=True, **o), rate),
    "learned rates by name": (lambda net, **o: ml.SGD({"0": LR, "*": 0.05}, STEPS, learn_lr=True,
                                                      **o), rates),
    "Meta-SGD": (lambda net, **o: ml.Diagonal(net, LR, STEPS, **o), diagonal),
    "LSLR": (lambda net, **o: ml.LSLR(net, LR, STEPS, **o), by_step),
    "StepNorms": (lambda net, **o: ml.StepNorms(net, LR, STEPS, **o), by_step),
    "ALFA": (lambda net, **o: ml.ALFA(net, LR, STEPS, decay=0.3, **o), said),
    "L2F": (lambda net, **o: ml.Forget(net, LR, STEPS, **o), plainly)}
WAYS = {"a list": {}, "a list, in a loop": {"batching": "loop"}, "padded": {},
        "padded, in a loop": {"batching": "loop"}, "padded, in chunks": {"chunk_size": 2},
        "padded, in chunks in a loop": {"chunk_size": 2, "batching": "loop"},
        "padded, mixed mode": {"gradient": ml.MixedMode()}}
REFUSED = {("ALFA", 0.8): (TypeError, "ALFA.*momentum")}


def made(kind, model, momentum, **options):
    "What is learned is no longer what it was at the start."
    inner = KINDS[kind][0](model, **({"momentum": momentum} if momentum else {}))
    J = ml.MetaLoss(model, F.mse_loss, inner=inner, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in inner.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return J


def start(inner, theta, slopes):
    "θ, or the part of it that `Forget` leaves."
    if not isinstance(inner, ml.Forget): return theta
    seen = torch.stack([slopes[n].detach().mean() for n in inner.names])
    kept = by_place(inner, inner.net(seen).sigmoid())
    return {n: kept[n] * p for n, p in theta.items()}


def learned(J, turn, momentum, task):
    "φ_K of one task."
    inner, model = J.inner, J.model
    moves = dict(zip(getattr(inner, "norms", ()), getattr(inner, "moves", ()), strict=True))

    def slope(phi):
        names = [n for n in phi if n not in moves]
        loss = F.mse_loss(functional_call(model, phi, (task.support.x[0],)), task.support.y[0])
        return dict(zip(names, torch.autograd.grad(loss, [phi[n] for n in names],
                                                   create_graph=True), strict=True))
    theta = dict(model.named_parameters())
    phi, v = start(inner, theta, slope(theta)), dict.fromkeys(theta, 0.0)
    for k in range(STEPS):
        v = {n: momentum * v[n] + g for n, g in slope(phi).items()}
        phi = ({n: phi[n] - d for n, d in turn(inner, k, phi, v).items()}
               | {n: phi[n] + move[k] for n, move in moves.items()})
    return phi


def plain(J, kind, momentum, tasks):
    "Value and gradients of the mean over tasks."
    total = 0
    for task in tasks:
        phi = learned(J, KINDS[kind][1], momentum, task)
        answer = functional_call(J.model, phi, (task.query.x[0],))
        total = total + F.mse_loss(answer, task.query.y[0]) / len(tasks)
    return [total, *torch.autograd.grad(total, list(J.parameters()))]


def found(J, tasks):
    value = J(tasks)
    return [value, *torch.autograd.grad(value, list(J.parameters()))]


def layer_of(kind): return nn.LayerNorm if kind == "StepNorms" else nn.Identity


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_is_the_plain_loop(kind, momentum):
    if (kind, momentum) in REFUSED:
        error, words = REFUSED[kind, momentum]
        with pytest.raises(error, match=words): made(kind, net(), momentum)
        return
    model, tasks = net(layer_of(kind)), regression(SIZES)
    right = plain(made(kind, model, momentum), kind, momentum, tasks)
    learns = [g.abs().max() > 1e-6 for g in right[1:]]
    assert sum(learns) >= len(learns) - 3                    # a bias before a norm learns nothing
    for way, options in WAYS.items():
        J = made(kind, model, momentum, **options)
        given = spoiled(tasks) if "padded" in way else tasks
        torch.testing.assert_close(found(J, given), right, rtol=0, atol=1e-10, msg=way)


def test_compiled_they_want_padding():
    tasks, J = regression(SIZES), made("ALFA", model := net(), 0.0)
    J.compile(backend="eager")
    with pytest.raises(ValueError, match=r"compiled.*ml\.tasks\.padded"): J(tasks)
    torch.testing.assert_close(found(J, spoiled(tasks)),
                               plain(made("ALFA", model, 0.0), "ALFA", 0.0, tasks),
                               rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_that_see_each_other_want_a_list(kind):
    "Batch normalisation takes its numbers from all examples, and would take them from padding."
    def of_batch(width): return nn.BatchNorm1d(width, track_running_stats=False)
    model, tasks = net(of_batch), regression(SIZES)
    right = plain(made(kind, model, 0.0), kind, 0.0, tasks)
    J = made(kind, model, 0.0)
    torch.testing.assert_close(found(J, tasks), right, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm1d\).*list"): J(spoiled(tasks))
    one_by_one = made(kind, model, 0.0, batching="loop")
    torch.testing.assert_close(found(one_by_one, spoiled(tasks)), right, rtol=0, atol=1e-10)
