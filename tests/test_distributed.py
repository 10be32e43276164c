"""DistributedDataParallel(J) on two processes gives the gradient of one."""
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import metalit as ml

PROGRAM = """
import sys, torch
import torch.distributed as dist
import torch.nn.functional as F
import metalit as ml
torch.set_num_threads(1)
rank, store, kind, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.1, steps=2, chunk_size=2 if kind == "chunked" else None)
if kind == "compiled": J.compile(backend="aot_eager")
shard = ml.tasks.Sinusoids().batch(8, seed=0).select(slice(4 * rank, 4 * rank + 4))
parallel = torch.nn.parallel.DistributedDataParallel(J)
parallel(shard).backward()
torch.save([p.grad for p in J.parameters()], f"{out}.{rank}")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["plain", "chunked", "compiled"])
def test_two_processes_give_the_gradient_of_one(tmp_path, kind):
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store"), kind,
                                   str(tmp_path / "grads")], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.1, steps=2)
    J(ml.tasks.Sinusoids().batch(8, seed=0)).backward()
    for rank in (0, 1):
        for parallel, p in zip(torch.load(tmp_path / f"grads.{rank}", weights_only=True), J.parameters(), strict=True):
            torch.testing.assert_close(parallel, p.grad, rtol=1e-5, atol=1e-6)
