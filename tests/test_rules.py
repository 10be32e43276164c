"""Which gradient rule works in which way of computing, and which is refused, by name.

What works gives the gradient that a plain call gives; what does not raises, and says what to do.
"""
import pytest
import torch
import torch.nn.functional as F
from helpers import close, flat, quick, value_and_gradient
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml

RULES = {"truncated": lambda: ml.Truncated(1), "implicit": lambda: ml.Implicit(5),
         "evolution": lambda: ml.Evolution(0.1, n=6)}
WORKS = True
TABLE = {
    ("truncated", "loop"): WORKS, ("truncated", "chunks"): WORKS,
    ("truncated", "chunks in a loop"): WORKS, ("truncated", "compiled"): WORKS,
    ("truncated", "processes"): WORKS, ("truncated", "resume"): WORKS,
    ("truncated", "torch.func"): WORKS, ("truncated", "twice"): WORKS,
    ("truncated", "traced"): WORKS, ("truncated", "a list"): WORKS,
    ("truncated", "padded"): WORKS,
    ("implicit", "loop"): WORKS, ("implicit", "chunks"): WORKS,
    ("implicit", "chunks in a loop"): WORKS,
    ("implicit", "compiled"): (ValueError, r"no part of a compiled graph.*ml.Truncated"),
    ("implicit", "processes"): WORKS, ("implicit", "resume"): WORKS,
    ("implicit", "a list"): WORKS, ("implicit", "padded"): WORKS,
    ("implicit", "torch.func"): (RuntimeError, r"differentiated once only.*ml.Exact"),
    ("implicit", "twice"): (RuntimeError, r"differentiated once only.*ml.Exact"),
    ("implicit", "traced"): (ValueError, r"ml.Implicit\(\) .* cannot be traced.*ml.Exact"),
    ("evolution", "loop"): WORKS, ("evolution", "chunks"): WORKS,
    ("evolution", "chunks in a loop"): WORKS,
    ("evolution", "compiled"): (ValueError, r"no part of a compiled graph.*ml.Exact"),
    ("evolution", "processes"): WORKS, ("evolution", "resume"): WORKS,
    ("evolution", "torch.func"): WORKS, ("evolution", "a list"): WORKS,
    ("evolution", "padded"): WORKS,
    ("evolution", "twice"): (RuntimeError, "does not require grad"),
    ("evolution", "traced"): (ValueError, r"ml.Evolution\(\) .* cannot be traced.*ml.Exact"),
}
OPTIONS = {"loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
           "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}


def meta_loss(rule, net, **options):
    return ml.MetaLoss(net, F.mse_loss, inner=ml.Proximal(0.02, 2, pull=20.0),
                       gradient=RULES[rule](), **options)


def of_whole(rule, net, task): return value_and_gradient(meta_loss(rule, net), task)


def compiled(rule, net, task):
    J = meta_loss(rule, net)
    J.compile(backend="eager")
    return value_and_gradient(J, task)


def of_halves(rule, net, task):
    "What DistributedDataParallel does with two processes: the mean of both gradients."
    halves = [value_and_gradient(meta_loss(rule, net), task.select(half))
              for half in (slice(0, 3), slice(3, 6))]
    return [torch.stack(parts).mean(0) for parts in zip(*halves, strict=True)]


def by_torch_func(rule, net, task):
    J = meta_loss(rule, net)
    theta = {name: p.detach() for name, p in J.named_parameters()}
    slopes, value = torch.func.grad_and_value(
        lambda p: torch.func.functional_call(J, p, (task,)))(theta)
    return value, torch.cat([g.flatten() for g in slopes.values()])


def twice(rule, net, task):
    "The gradient of half the squared length of the gradient, which goes back once more."
    value = meta_loss(rule, net)(task)
    first = torch.autograd.grad(value, list(net.parameters()), create_graph=True)
    second = torch.autograd.grad(sum((g ** 2).sum() for g in first) / 2, list(net.parameters()))
    assert all(g.isfinite().all() for g in second)
    return value.detach(), torch.cat([g.detach().flatten() for g in first])


def traced(rule, net, task):
    J = meta_loss(rule, net)
    theta = {name: p.detach() for name, p in J.named_parameters()}
    program = make_fx(torch.func.grad_and_value(
        lambda p: torch.func.functional_call(J, p, (task,))))(theta)
    slopes, value = program(theta)
    return value, torch.cat([g.flatten() for g in slopes.values()])


def of_list(rule, net, task):
    "A list of the six tasks, as two groups of one shape would be."
    ones = [task.select(slice(i, i + 1)) for i in range(6)]
    return value_and_gradient(meta_loss(rule, net), ones)


def of_padded(rule, net, task):
    "The six tasks, beside one with more examples, and padding for all others; without its part."
    def doubled(part): return ml.Split(*(torch.cat([t, t], 1)[:1] for t in (part.x, part.y)))
    longer = ml.Task(doubled(task.support), doubled(task.query))
    batch = ml.tasks.padded([*(task.select(slice(i, i + 1)) for i in range(6)), longer])
    J = meta_loss(rule, net)
    assert batch.support.mask is not None
    J.zero_grad()
    value = J.per_task(batch)[0][:6].mean()
    value.backward()
    return value.detach(), flat(J.model)


def in_one_way(rule, way, net, task):
    ways = {"compiled": compiled, "processes": of_halves, "torch.func": by_torch_func,
            "twice": twice, "traced": traced, "a list": of_list, "padded": of_padded}
    if way in ways: return ways[way](rule, net, task)
    return value_and_gradient(meta_loss(rule, net, **OPTIONS[way]), task)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize(("rule", "way"), [key for key in TABLE if key[1] != "resume"])
def test_a_rule_in_a_way(rule, way, small_net, sines):
    if TABLE[rule, way] is not WORKS:
        kind, words = TABLE[rule, way]
        with pytest.raises(kind, match=words): in_one_way(rule, way, small_net, sines)
        return
    found = in_one_way(rule, way, small_net, sines)
    for one, right in zip(found, of_whole(rule, small_net, sines), strict=True): close(one, right)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(rule, tmp_path):
    def fresh(): return meta_loss(rule, ml.models.mlp(1, 4, 1, seed=0))
    whole, first, second = fresh(), fresh(), fresh()
    quick(whole, steps=5)
    quick(first, steps=5, checkpoint=tmp_path, max_minutes=1e-9)
    assert not torch.equal(first.model[0].weight, whole.model[0].weight)
    quick(second, steps=5, checkpoint=tmp_path)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_in_one_process_group(rule, tmp_path, small_net, sines):
    "DistributedDataParallel itself, of one process."
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    right = of_whole(rule, small_net, sines)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        J = meta_loss(rule, small_net)
        J.zero_grad()
        value = DistributedDataParallel(J)(sines)
        value.backward()
    finally: dist.destroy_process_group()
    close(value.detach(), right[0])
    close(flat(J.model), right[1])


def test_the_table_is_whole():
    ways = {way for _, way in TABLE}
    assert {(rule, way) for rule in RULES for way in ways} == set(TABLE)
