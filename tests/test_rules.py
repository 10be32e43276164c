"""Which gradient rule works in which way of computing, and which is refused, by name.

What works gives the gradient that a plain call gives; what does not raises, and says what to do.
"""
from functools import partial

import pytest
import torch.nn.functional as F
from helpers import close, flat, value_and_gradient
from ways import check_goes_on, in_one_way

import metalit as ml

RULES = {"truncated": lambda: ml.Truncated(1), "implicit": lambda: ml.Implicit(5),
         "evolution": lambda: ml.Evolution(0.1, n=6), "annealed": ml.AnnealedOrder}
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
    ("annealed", "loop"): WORKS, ("annealed", "chunks"): WORKS,
    ("annealed", "chunks in a loop"): WORKS, ("annealed", "compiled"): WORKS,
    ("annealed", "processes"): WORKS, ("annealed", "resume"): WORKS,
    ("annealed", "torch.func"): WORKS, ("annealed", "twice"): WORKS,
    ("annealed", "traced"): WORKS, ("annealed", "a list"): WORKS,
    ("annealed", "padded"): WORKS,
}


def meta_loss(rule, net, **options):
    return ml.MetaLoss(net, F.mse_loss, inner=ml.Proximal(0.02, 2, pull=20.0),
                       gradient=RULES[rule](), **options)


def of_whole(rule, net, task): return value_and_gradient(meta_loss(rule, net), task)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize(("rule", "way"), [key for key in TABLE if key[1] != "resume"])
def test_a_rule_in_a_way(rule, way, small_net, sines):
    make = partial(meta_loss, rule, small_net)
    if TABLE[rule, way] is not WORKS:
        kind, words = TABLE[rule, way]
        with pytest.raises(kind, match=words): in_one_way(way, make, sines)
        return
    found = in_one_way(way, make, sines)
    for one, right in zip(found, of_whole(rule, small_net, sines), strict=True): close(one, right)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(rule, tmp_path):
    check_goes_on(lambda: meta_loss(rule, ml.models.mlp(1, 4, 1, seed=0)), tmp_path)


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
