"""Tasks per second of one process and of two that divide a meta-batch, and what talk costs.

Each process has one thread. The meta-step is that of `metalit train` under `torchrun`:
DistributedDataParallel over gloo, which averages the gradients; with the outer optimizer. The time
of an all-reduce is modelled as latency + bytes / bandwidth, from a very small and a large message.
That model is then checked where messages are long: on a network of two wide layers, whose gradient
is 67 MB.
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
from .image_step import step_flops
from .images import FILTERS, LR, QUERIES, SHOTS, SIZE, WAYS, episodes, network

TASKS = 32
WIDE, WIDE_TASKS = 4096, 2
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


def bed(wide: bool, tasks: int, filters: int) -> tuple[ml.MAML, ml.Task]:
    """Images and the strided network; or waves, and two layers that are wide."""
    if not wide: return ml.MAML(network(filters), F.cross_entropy, lr=LR, steps=1), episodes(tasks)
    model = ml.models.mlp(1, WIDE, WIDE, 1, seed=0)
    return ml.MAML(model, F.mse_loss, lr=0.01, steps=1), ml.tasks.Sinusoids().batch(tasks, seed=0)


def meta_step(wide: bool, tasks: int, filters: int) -> tuple[Callable[[], None], int]:
    """One step of training on this process's share of the tasks, and the bytes of its gradient."""
    J, whole = bed(wide, tasks, filters)
    together, optimizer, task = (parallel(J), torch.optim.Adam(J.parameters()),
                                 share(whole, team()))

    def step() -> None:
        optimizer.zero_grad()
        together(task).backward()
        optimizer.step()

    return step, sum(p.numel() * p.element_size() for p in J.parameters())


def all_reduce_seconds(size: int, repeats: int) -> float:
    """The time until all processes have the sum of a message of so many bytes."""
    message = torch.zeros(size // 4)
    return median_seconds(lambda: dist.all_reduce(message), repeats)


def work(wide: bool, tasks: int, filters: int, repeats: int) -> dict[str, Any]:
    """What one process of the team measures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    step, size = meta_step(wide, tasks, filters)
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


def in_turns(arguments: list[str], rounds: int) -> dict[int, list[dict[str, Any]]]:
    """What teams of one and two measure, in turns."""
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for count in COUNTS: found[count].append(start(count, arguments, folder))
    return found


def middle(turns: list[dict[str, Any]], name: str) -> float:
    """The median of what was measured in turns."""
    return statistics.median(turn[name] for turn in turns)


def measured(found: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each number of processes."""
    return [{"processes": count, "tasks_per_second": middle(turns, "tasks_per_second"),
             "seconds_per_step": middle(turns, "seconds_per_step"),
             "rounds": [turn["tasks_per_second"] for turn in turns]}
            for count, turns in found.items()]


def checked(rows: list[dict[str, Any]], size: int, latency: float, bandwidth: float
            ) -> dict[str, float]:
    """The model's time of a step on two processes, from that on one, beside the measured one."""
    one, two = (row["seconds_per_step"] for row in rows)
    return {"gradient_bytes": size, "predicted_seconds": one / 2 + latency + size / bandwidth,
            "measured_seconds": two}


def run(repeats: int = 20, rounds: int = 3, tasks: int = TASKS, filters: int = FILTERS) -> None:
    """Measure teams of one and two in turns, print, and write `results/processes.json`."""
    found = in_turns(["--repeats", str(repeats), "--filters", str(filters), "--tasks", str(tasks)],
                     rounds)
    wide = in_turns(["--repeats", str(repeats), "--tasks", str(WIDE_TASKS), "--wide"], rounds)
    two, rows = found[max(COUNTS)], measured(found)
    latency, size = middle(two, "small"), two[0]["gradient_bytes"]
    bandwidth = (LARGE - SMALL) / (middle(two, "large") - latency)
    record = {"what": f"one training step, {tasks} tasks divided over processes of one thread "
              f"each, strided Conv4 with {filters} filters, {WAYS}-way {SHOTS}-shot, {QUERIES} "
              f"queries per class, {SIZE} × {SIZE} pixels; `wide`: {WIDE_TASKS} waves, two layers "
              f"of {WIDE}", "command": "python -m benchmarks.processes", "measured": rows,
              "tasks": tasks, "gradient_bytes": size,
              "flops_per_second": step_flops(filters) * rows[0]["tasks_per_second"],
              "allreduce_seconds": middle(two, "gradient"), "latency_seconds": latency,
              "bandwidth_bytes_per_second": bandwidth, "messages": f"gloo on one machine, "
              f"{max(COUNTS)} processes; latency from {SMALL} bytes, bandwidth from {LARGE}",
              "model": {"images": checked(rows, size, latency, bandwidth),
                        "wide": checked(measured(wide), wide[max(COUNTS)][0]["gradient_bytes"],
                                        latency, bandwidth)}, "wide": measured(wide),
              "budget": {"rounds": rounds, "steps_per_round": repeats},
              "machine": measure.machine(), "versions": measure.versions("metalit", "torch")}
    show(record)
    print(f"wrote {measure.write_json('processes', record)}")


def show(record: dict[str, Any]) -> None:
    """Print what was measured."""
    for row in record["measured"]:
        print(f"{row['processes']} processes: {row['tasks_per_second']:8.1f} tasks per second")
    print(f"all-reduce of {record['gradient_bytes']} bytes: "
          f"{1e3 * record['allreduce_seconds']:.2f} ms; latency "
          f"{1e6 * record['latency_seconds']:.0f} µs, "
          f"{record['bandwidth_bytes_per_second'] / 1e9:.2f} GB/s")
    for name, found in record["model"].items():
        print(f"{name}: a step on two {1e3 * found['measured_seconds']:.0f} ms, by the model "
              f"{1e3 * found['predicted_seconds']:.0f}")


def main() -> None:
    """`python -m benchmarks.processes`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20,
                        help="steps that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--filters", type=int, default=FILTERS)
    parser.add_argument("--wide", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        found = work(arguments.wide, arguments.tasks, arguments.filters, arguments.repeats)
        if int(os.environ.get("RANK", 0)) == 0:
            arguments.worker.write_text(json.dumps(found), encoding="utf-8")
    else:
        run(arguments.repeats, arguments.rounds, arguments.tasks, arguments.filters)


if __name__ == "__main__":
    main()
