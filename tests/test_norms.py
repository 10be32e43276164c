"""Normalisation layers: their values are PyTorch's, and meta-gradients through them are right."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.batching.plain import PlainOperations


class Pooled(nn.Module):
    def forward(self, x): return x.mean((-2, -1))


def network(middle):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), middle, nn.Tanh(), nn.Conv2d(4, 4, 3, 2, 1),
                          nn.Tanh(), Pooled(), nn.Linear(4, 3)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


LAYERS = {
    "batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch, not affine": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "layer": lambda: nn.LayerNorm([4, 5, 5]),
    "layer without bias": lambda: nn.LayerNorm(5, bias=False),
    "group": lambda: nn.GroupNorm(2, 4),
}
MODELS = {name: lambda make=make: network(make()) for name, make in LAYERS.items()} | {
    "Conv4": lambda: ml.models.Conv4(3, size=10, filters=3, seed=1).double()}


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(24, 1, 10, 10, generator=generator, dtype=torch.float64)
    return ml.tasks.Episodes(images, torch.arange(6).repeat_interleave(4), ways=3, shots=1,
                             queries=2).batch(3)


def by_loop(model, task, lr, steps):
    "Value and meta-gradient by torch.autograd, one task after another."
    names, theta = zip(*model.named_parameters(), strict=True)
    total = 0
    for b in range(task.batch_size):
        def loss(phi, split, b=b):
            prediction = functional_call(model, dict(zip(names, phi, strict=True)), (split.x[b],))
            return F.cross_entropy(prediction, split.y[b])
        phi = theta
        for _ in range(steps):
            slope = torch.autograd.grad(loss(phi, task.support), phi, create_graph=True)
            phi = [value - lr * g for value, g in zip(phi, slope, strict=True)]
        total = total + loss(phi, task.query) / task.batch_size
    return total.detach(), torch.autograd.grad(total, theta)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_meta_gradient_equals_that_of_a_loop(name, steps, task):
    model = MODELS[name]()
    value = ml.MAML(model, F.cross_entropy, lr=0.4, steps=steps)(task)
    value.backward()
    expected, gradient = by_loop(model, task, 0.4, steps)
    torch.testing.assert_close(value.detach(), expected, rtol=1e-11, atol=1e-12)
    for p, g in zip(model.parameters(), gradient, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_meta_gradient_by_finite_differences(name, task):
    model = MODELS[name]()
    J = ml.MAML(model, F.cross_entropy, lr=0.4)
    J(task).backward()
    generator = torch.Generator().manual_seed(2)
    start = [p.detach().clone() for p in model.parameters()]
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in start]
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))

    def at(t):
        with torch.no_grad():
            for p, s, d in zip(model.parameters(), start, direction, strict=True):
                p.copy_(s + t * d)
        return J(task).detach()
    torch.testing.assert_close((at(1e-5) - at(-1e-5)) / 2e-5, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_and_chunked_are_the_same(name, task):
    model = MODELS[name]()
    gradients = []
    for kind in ("plain", "chunked", "compiled"):
        J = ml.MAML(model, F.cross_entropy, lr=0.4, chunk_size=2 if kind == "chunked" else None)
        if kind == "compiled": J.compile(backend="aot_eager" if name == "batch" else "eager")
        model.zero_grad()
        J(task).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.BatchNorm1d(4, track_running_stats=False), (7, 4)),
    (nn.BatchNorm1d(4, track_running_stats=False), (7, 4, 3)),
    (nn.BatchNorm2d(4, eps=0.1, track_running_stats=False), (7, 4, 3, 5)),
    (nn.InstanceNorm1d(4, affine=True), (7, 4, 6)), (nn.InstanceNorm2d(4), (7, 4, 3, 5)),
    (nn.LayerNorm([3, 5], eps=0.1), (7, 4, 3, 5)),
    (nn.LayerNorm(5, elementwise_affine=False), (7, 5)), (nn.BatchNorm2d(4).eval(), (7, 4, 3, 5))
])
def test_values_are_those_of_pytorch(layer, shape):
    layer, generator = layer.double(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = 3 + torch.randn(shape, generator=generator, dtype=torch.float64)
    expected = layer(x)
    with PlainOperations(): found = layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_outside_the_mode_nothing_has_changed():
    x = torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    with PlainOperations(): inside = layer(x).grad_fn.name()
    assert "BatchNorm" not in inside
    assert "BatchNorm" in layer(x).grad_fn.name()


def test_constant_images_have_finite_gradients():
    model = ml.models.Conv4(3, size=10, filters=3)
    blank = ml.tasks.Episodes(torch.zeros(12, 1, 10, 10), torch.arange(6).repeat_interleave(2),
                              ways=3).batch(2)
    ml.MAML(model, F.cross_entropy, lr=0.4)(blank).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
