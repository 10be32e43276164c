"""Tasks per second of one process and of two that divide a meta-batch, and what talk costs.

Each process has one thread. The meta-step is that of `metalit train` under `torchrun`:
DistributedDataParallel over gloo, which averages the gradients; with the outer optimizer. The time
of an all-reduce is modelled as latency + bytes / bandwidth, from a very small and a large message.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

import metalit as ml
from metalit.training.memory import keep_freed_memory
from metalit.training.processes import parallel, share, team

from . import measure
from .images import FILTERS, LR, QUERIES, SHOTS, SIZE, WAYS, episodes, network

TASKS = 32
COUNTS = (1, 2)
SMALL, LARGE = 8, 2**26  # bytes


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The median time of a call that all processes begin together."""
    times = []
    for _ in range(repeats):
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def meta_step(tasks: int, filters: int) -> tuple[Callable[[], None], int]:
    """One step of training on this process's share of the tasks, and the bytes of its gradient."""
    J = ml.MAML(network(filters), F.cross_entropy, lr=LR, steps=1)
    together, optimizer, task = (parallel(J), torch.optim.Adam(J.parameters()),
                                 share(episodes(tasks), team()))

    def step() -> None:
        optimizer.zero_grad()
        together(task).backward()
        optimizer.step()

    return step, sum(p.numel() * p.element_size() for p in J.parameters())


def all_reduce_seconds(size: int, repeats: int) -> float:
    """The time until all processes have the sum of a message of so many bytes."""
    message = torch.zeros(size // 4)
    return median_seconds(lambda: dist.all_reduce(message), repeats)


def work(tasks: int, filters: int, repeats: int) -> dict[str, Any]:
    """What one process of the team measures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    step, size = meta_step(tasks, filters)
    median_seconds(step, 3)  # warms up
    seconds = median_seconds(step, repeats)
    found = {"processes": team().size, "tasks_per_second": tasks / seconds,
             "seconds_per_step": seconds, "gradient_bytes": size}
    if team().size > 1:
        all_reduce_seconds(size, 5)
        found |= {name: all_reduce_seconds(message, 5 * repeats) for name, message in
                  {"gradient": size, "small": SMALL, "large": LARGE}.items()}
    if dist.is_initialized():
        dist.barrier()
        # what averages gradients has threads of its own, which must end before the team does
        del step
        gc.collect()
        dist.destroy_process_group()
    return found


def start(count: int, arguments: list[str], folder: str) -> dict[str, Any]:
    """Run a team of so many processes; what its first one measured."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                if count > 1 else [])
    out = Path(folder) / f"{count}.json"
    command = [sys.executable, *torchrun, "-m", "benchmarks.processes", "--worker", str(out),
               *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{count} processes failed:\n{done.stderr}")
    return json.loads(out.read_text(encoding="utf-8"))


def run(repeats: int = 20, rounds: int = 3, tasks: int = TASKS, filters: int = FILTERS) -> None:
    """Measure teams of one and two in turns, print, and write `results/processes.json`."""
    arguments = ["--repeats", str(repeats), "--tasks", str(tasks), "--filters", str(filters)]
    with tempfile.TemporaryDirectory() as folder:
        found = [{count: start(count, arguments, folder) for count in COUNTS}
                 for _ in range(rounds)]

    def middle(count: int, name: str) -> float:
        return statistics.median(turn[count][name] for turn in found)

    most = max(COUNTS)
    latency = middle(most, "small")
    bandwidth = (LARGE - SMALL) / (middle(most, "large") - latency)
    record = {"what": f"one training step, {tasks} tasks divided over processes of one thread "
              f"each, strided Conv4 with {filters} filters, {WAYS}-way {SHOTS}-shot, {QUERIES} "
              f"queries per class, {SIZE} × {SIZE} pixels",
              "command": "python -m benchmarks.processes", "measured":
              [{"processes": count, "tasks_per_second": middle(count, "tasks_per_second"),
                "seconds_per_step": middle(count, "seconds_per_step"),
                "rounds": [turn[count]["tasks_per_second"] for turn in found]} for count in COUNTS],
              "tasks": tasks, "gradient_bytes": found[0][most]["gradient_bytes"],
              "allreduce_seconds": middle(most, "gradient"), "latency_seconds": latency,
              "bandwidth_bytes_per_second": bandwidth, "messages": f"gloo on one machine, {most} "
              f"processes; latency from {SMALL} bytes, bandwidth from {LARGE}",
              "budget": {"rounds": rounds, "steps_per_round": repeats},
              "machine": measure.machine(), "versions": measure.versions("metalit", "torch")}
    for row in record["measured"]:
        print(f"{row['processes']} processes: {row['tasks_per_second']:8.1f} tasks per second")
    print(f"all-reduce of {record['gradient_bytes']} bytes: "
          f"{1e3 * record['allreduce_seconds']:.2f} ms; latency {1e6 * latency:.0f} µs, "
          f"{bandwidth / 1e9:.2f} GB/s")
    print(f"wrote {measure.write_json('processes', record)}")


def main() -> None:
    """`python -m benchmarks.processes`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20,
                        help="steps that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--filters", type=int, default=FILTERS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        found = work(arguments.tasks, arguments.filters, arguments.repeats)
        if int(os.environ.get("RANK", 0)) == 0:
            arguments.worker.write_text(json.dumps(found), encoding="utf-8")
    else:
        run(arguments.repeats, arguments.rounds, arguments.tasks, arguments.filters)


if __name__ == "__main__":
    main()
