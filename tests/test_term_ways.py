"""Which term works in which way of computing, as `test_rules.py` says it of gradient rules.

What works gives the value and the gradient that a plain call gives.
"""
import pytest
import torch
import torch.nn.functional as F
from helpers import close, flat, quick, value_and_gradient
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml

TERMS = {"path length": ml.PathLength, "alignment": ml.GradientAlignment,
         "inequality": ml.Inequality, "bootstrap": lambda: ml.Bootstrap(1),
         "bootstrap of predictions": lambda: ml.Bootstrap(1, "predictions", on="query")}
WAYS = ("loop", "chunks", "chunks in a loop", "processes", "torch.func", "twice", "a list",
        "padded")
OPTIONS = {"loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
           "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}


def meta_loss(term, net, **options):
    measured = sum(make() for make in TERMS.values()) if term == "all" else TERMS[term]()
    return ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.1, 2, momentum=0.5), **options,
                       terms=ml.QueryLoss() + 0.7 * measured)


def of_halves(term, net, task):
    """What DistributedDataParallel does with two processes: the mean of both gradients.

    Terms that compare tasks are in `test_distributed.py`, with two processes.
    """
    halves = [value_and_gradient(meta_loss(term, net), task.select(half))
              for half in (slice(0, 3), slice(3, 6))]
    return [torch.stack(parts).mean(0) for parts in zip(*halves, strict=True)]


def of_function(term, net, task, transformed=lambda function: function):
    J = meta_loss(term, net)
    theta = {name: p.detach() for name, p in J.named_parameters()}
    function = torch.func.grad_and_value(lambda p: torch.func.functional_call(J, p, (task,)))
    slopes, value = transformed(function)(theta)
    return value, torch.cat([g.flatten() for g in slopes.values()])


def twice(term, net, task):
    "The gradient of half the squared length of the gradient, which goes back once more."
    value = meta_loss(term, net)(task)
    first = torch.autograd.grad(value, list(net.parameters()), create_graph=True)
    second = torch.autograd.grad(sum((g ** 2).sum() for g in first) / 2, list(net.parameters()))
    assert all(g.isfinite().all() for g in second)
    return value.detach(), torch.cat([g.detach().flatten() for g in first])


def of_list(term, net, task):
    "A list of the six tasks, as two groups of one shape would be."
    ones = [task.select(slice(i, i + 1)) for i in range(6)]
    return value_and_gradient(meta_loss(term, net), ones)


def of_padded(term, net, task):
    "The six tasks, beside one with more examples, and padding for all others; without its part."
    def doubled(part): return ml.Split(*(torch.cat([t, t], 1)[:1] for t in (part.x, part.y)))
    longer = ml.Task(doubled(task.support), doubled(task.query))
    batch = ml.tasks.padded([*(task.select(slice(i, i + 1)) for i in range(6)), longer])
    J = meta_loss(term, net)
    J.zero_grad()
    value = J.terms.pool([values[:6] for values in J.per_task(batch)], torch.mean)
    value.backward()
    return value.detach(), flat(J.model)


def in_one_way(term, way, net, task):
    ways = {"processes": of_halves, "torch.func": of_function,
            "twice": twice, "a list": of_list, "padded": of_padded}
    if way in ways: return ways[way](term, net, task)
    return value_and_gradient(meta_loss(term, net, **OPTIONS[way]), task)


@pytest.mark.parametrize(("term", "way"), [
    (term, way) for term in TERMS for way in WAYS
    if way != "processes" or not TERMS[term]().across_tasks])
def test_a_term_in_a_way(term, way, small_net, sines):
    found = in_one_way(term, way, small_net, sines)
    right = value_and_gradient(meta_loss(term, small_net), sines)
    for one, other in zip(found, right, strict=True): close(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_all_terms_in_one_graph(small_net, sines):
    J = meta_loss("all", small_net)
    J.compile(backend="eager")
    theta = {f"model.{name}": p.detach() for name, p in small_net.named_parameters()}
    traced = of_function("all", small_net, sines, lambda function: make_fx(function)(theta))
    right = value_and_gradient(meta_loss("all", small_net), sines)
    for found in (value_and_gradient(J, sines), traced):
        for one, other in zip(found, right, strict=True): close(one, other)


@pytest.mark.parametrize("term", TERMS)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(term, tmp_path):
    def fresh(): return meta_loss(term, ml.models.mlp(1, 4, 1, seed=0))
    whole, first, second = fresh(), fresh(), fresh()
    quick(whole, steps=5)
    quick(first, steps=5, checkpoint=tmp_path, max_minutes=1e-9)
    assert not torch.equal(first.model[0].weight, whole.model[0].weight)
    quick(second, steps=5, checkpoint=tmp_path)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("term", [name for name in TERMS if TERMS[name]().holds_constant])
def test_what_holds_something_constant_is_refused_where_values_are_all_there_is(term, small_net):
    with pytest.raises(ValueError, match=r"holds a part of its value constant.*ml.FirstOrder"):
        meta_loss(term, small_net, gradient=ml.Evolution())
