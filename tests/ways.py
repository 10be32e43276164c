"""Ways of computing one and the same meta-loss: by chunks, twice, a list of tasks, and so on.

`make(**options)` makes the meta-loss; each way gives its value and its gradient as one vector.
"""
import torch
from helpers import flat, quick, value_and_gradient
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml

OPTIONS = {"loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
           "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}


def compiled(make, task):
    J = make()
    J.compile(backend="eager")
    return value_and_gradient(J, task)


def of_halves(make, task):
    """What DistributedDataParallel does with two processes: the mean of both gradients.

    Terms that compare tasks are in `test_distributed.py`, with two processes.
    """
    halves = [value_and_gradient(make(), task.select(half)) for half in (slice(3), slice(3, 6))]
    return [torch.stack(parts).mean(0) for parts in zip(*halves, strict=True)]


def of_function(make, task, transformed=lambda function, theta: function):
    J = make()
    theta = {name: p.detach() for name, p in J.named_parameters()}
    function = torch.func.grad_and_value(lambda p: torch.func.functional_call(J, p, (task,)))
    slopes, value = transformed(function, theta)(theta)
    return value, torch.cat([g.flatten() for g in slopes.values()])


def traced(make, task):
    return of_function(make, task, lambda function, theta: make_fx(function)(theta))


def twice(make, task):
    "The gradient of half the squared length of the gradient, which goes back once more."
    J = make()
    value, parameters = J(task), list(J.model.parameters())
    first = torch.autograd.grad(value, parameters, create_graph=True)
    second = torch.autograd.grad(sum((g ** 2).sum() for g in first) / 2, parameters)
    assert all(g.isfinite().all() for g in second)
    return value.detach(), torch.cat([g.detach().flatten() for g in first])


def of_list(make, task):
    "A list of the six tasks, as two groups of one shape would be."
    return value_and_gradient(make(), [task.select(slice(i, i + 1)) for i in range(6)])


def of_padded(make, task):
    "The six tasks, beside one with more examples, and padding for all others; without its part."
    def doubled(part): return ml.Split(*(torch.cat([t, t], 1)[:1] for t in (part.x, part.y)))
    ids = None if task.ids is None else task.ids[:1]
    longer = ml.Task(doubled(task.support), doubled(task.query), ids)
    batch = ml.tasks.padded([*(task.select(slice(i, i + 1)) for i in range(6)), longer])
    assert batch.support.mask is not None
    J = make()
    J.zero_grad()
    value = J.pool([values[:6] for values in J.per_task(batch)], task)
    value.backward()
    return value.detach(), flat(J.model)


WAYS = {"compiled": compiled, "processes": of_halves, "torch.func": of_function, "twice": twice,
        "traced": traced, "a list": of_list, "padded": of_padded}


def in_one_way(way, make, task):
    "The value and the gradient, computed in the way of this name."
    if way in WAYS: return WAYS[way](make, task)
    return value_and_gradient(make(**OPTIONS[way]), task)


def check_goes_on(fresh, folder):
    "A run that was stopped after its first step ends where one does that was not, to the last bit."
    whole, first, second = fresh(), fresh(), fresh()
    quick(whole, steps=5)
    quick(first, steps=5, checkpoint=folder, max_minutes=1e-9)
    assert not torch.equal(first.model[0].weight, whole.model[0].weight)
    quick(second, steps=5, checkpoint=folder)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
