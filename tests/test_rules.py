"""Gradient rules in a process group; all other ways of computing are in `test_all_ways.py`."""
import pytest
import torch.nn.functional as F
from helpers import close, flat, value_and_gradient

import metalit as ml

RULES = {"truncated": lambda: ml.Truncated(1), "implicit": lambda: ml.Implicit(5),
         "evolution": lambda: ml.Evolution(0.1, n=6), "annealed": ml.AnnealedOrder}


def meta_loss(rule, net, **options):
    return ml.MetaLoss(net, F.mse_loss, inner=ml.Proximal(0.02, 2, pull=20.0),
                       gradient=RULES[rule](), **options)


def of_whole(rule, net, task): return value_and_gradient(meta_loss(rule, net), task)


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
