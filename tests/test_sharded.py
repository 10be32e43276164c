"""J in `fully_shard` and `DistributedDataParallel`, in two processes, against one.

Started as a program, this file is one of the two.
"""
import os
import sys

import forked
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import metalit as ml

WAVES = ml.tasks.Sinusoids(shots=4)
METHODS = {"MAML": {}, "loop": {"batching": "loop"}, "first order": {"gradient": ml.FirstOrder()}}


def maml(**options):
    return ml.MetaLoss(ml.models.mlp(1, 6, 6, 1).double(), F.mse_loss, inner=ml.SGD(0.1, 2),
                       **options)


def protonet(): return ml.ProtoNet(ml.models.Conv4(3, size=8, filters=4).double(), F.cross_entropy)


def waves(): return WAVES.batch(4, seed=1).to(dtype=torch.float64)


def images():
    x = torch.rand(4, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(3).expand(4, -1)
    return ml.Task(ml.Split(x[:, :3], y), ml.Split(x[:, 3:], y))


def gradient(J):
    return [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in J.parameters()
            if p.grad is not None]


def assert_as_alone(make, put, task):
    "Two backward passes of a J that is put into something, each of half of the tasks."
    alone, J = make(), make()
    shared, half = put(J), slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    alone(task()).backward()
    for _ in range(2):
        J.zero_grad()
        shared(task().select(half)).backward()
        found, wanted = gradient(J), gradient(alone)
        assert len(found) == len(wanted) and found
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    return J


def refused(fully_shard):
    "Sharding what is inside of J."
    J = maml()
    for layer in J.model[::2]: fully_shard(layer)
    try: fully_shard(J)(waves())
    except ValueError as error: return str(error)
    return "it ran"


def both():
    from torch.distributed.fsdp import fully_shard
    for options in METHODS.values():
        J = assert_as_alone(lambda options=options: maml(**options), fully_shard, waves)
    J.unshard()                                              # for what is not a call of J
    torch.testing.assert_close(J.curve(waves(), (0, 2)), maml().curve(waves(), (0, 2)))
    assert_as_alone(protonet, fully_shard, images)
    assert "inside of J is sharded by itself" in refused(fully_shard)
    assert_as_alone(protonet, DistributedDataParallel, images)
    print("equal")


def test_two_processes_have_the_gradient_of_one():
    done = forked.run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
                      __file__, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    both()
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # what gloo does while a process ends may abort it, when all is said
