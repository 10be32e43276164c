"""The referee: a loop over tasks of `torch.autograd.grad`, without `vmap` and without the library.

It calls PyTorch's own operations. Attention takes the kernel that can be differentiated twice.
"""
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import metalit as ml


def descended(loss, phi, names, *, lr, steps, constant):
    "φ after so many steps, connected to where it started."
    for _ in range(steps):
        at = [p.detach().requires_grad_() for p in phi] if constant else phi
        slopes = torch.autograd.grad(loss(dict(zip(names, at, strict=True))), at,
                                     create_graph=not constant, allow_unused=True)
        phi = [p if g is None else p - lr * g for p, g in zip(phi, slopes, strict=True)]
    return phi


def by_loop(model, loss, task, *, first_order=False, lr=0.3, steps=2):
    "MAML's value and gradient; zeros for parameters that are not used."
    names, theta = zip(*model.named_parameters(), strict=True)
    values = []
    with sdpa_kernel(SDPBackend.MATH):
        for b in range(len(task.support.y)):
            def measure(phi, split, b=b):
                return loss(functional_call(model, phi, (split.x[b],)), split.y[b])
            phi = descended(lambda at, m=measure: m(at, task.support), theta, names, lr=lr,
                            steps=steps, constant=first_order)
            values.append(measure(dict(zip(names, phi, strict=True)), task.query))
        value = torch.stack(values).mean()
        slopes = torch.autograd.grad(value, theta, allow_unused=True, materialize_grads=True)
    return [value.detach(), *(slope.to_dense() for slope in slopes)]


def by_library(model, loss, task, *, first_order=False, lr=0.3, steps=2, compiled=None, **options):
    "The same by metalit; `compiled` names a backend."
    J = ml.MetaLoss(model, loss, inner=ml.SGD(lr, steps), **options,
                    gradient=ml.FirstOrder() if first_order else ml.Exact())
    if compiled: J.compile(backend=compiled)
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(model.parameters()), allow_unused=True,
                                                 materialize_grads=True)]


def off(found, expected):
    "The largest difference, against the length of all that is expected."
    length = torch.cat([part.flatten() for part in expected]).norm()
    largest = max((a - b).abs().max() for a, b in zip(found, expected, strict=True))
    return (largest / length).item()


def slope_by_difference(value, parameters, direction, h=1e-5):
    "The slope of a scalar along a direction, by a central difference."
    start, ends = [p.detach().clone() for p in parameters], []
    for t in (h, -h):
        with torch.no_grad():
            for p, s, d in zip(parameters, start, direction, strict=True): p.copy_(s + t * d)
        ends.append(value().detach())
    with torch.no_grad():
        for p, s in zip(parameters, start, strict=True): p.copy_(s)
    return float((ends[0] - ends[1]) / (2 * h))


class Mean(torch.nn.Module):
    "A linear layer, any function with the layers it needs, and the mean of a last layer."
    def __init__(self, function, layer=None, width=4, out=None):
        super().__init__()
        self.first, self.layer = torch.nn.Linear(4, width), layer
        self.last = torch.nn.Linear(out or width, 1)
        self.function = function

    def forward(self, x):
        inputs = self.first(x) if x.is_floating_point() else x
        answer = self.function(self.layer, inputs)
        return self.last(torch.tanh(answer)).flatten(1).mean(1, keepdim=True)


def drawn(model, seed=0):
    "The model in float64, with parameters of its own."
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def series(tasks=3, examples=4, steps=5, width=4, seed=1):
    "Random series (tasks, examples, steps, width), and a number for each."
    generator = torch.Generator().manual_seed(seed)
    def split():
        return ml.Split(*(torch.randn(*shape, generator=generator, dtype=torch.float64)
                          for shape in ((tasks, examples, steps, width), (tasks, examples, 1))))
    return ml.Task(split(), split())


def words(tasks=3, examples=4, steps=5, count=7, seed=1):
    "Random words, and a number for each text."
    task, generator = series(tasks, examples, steps), torch.Generator().manual_seed(seed)
    def split(old):
        x = torch.randint(0, count, (tasks, examples, steps), generator=generator)
        x[:, 0, 0] = 2
        return ml.Split(x, old.y)
    return ml.Task(split(task.support), split(task.query))
