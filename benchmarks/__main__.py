"""`python -m benchmarks`: run all benchmarks, and write their results to `results/`.

First those beside other libraries, then, each in a process of its own, those of single parts.
`benchmarks.against`, which needs an earlier commit to compare with, is called by itself.
"""
from __future__ import annotations

import argparse
import subprocess
import sys

import torch

from . import image_step, memory, processes, scaling, sinusoid_step
from .peers import require_peers

OF_ONE_THREAD = ("whole_run", "products", "one_graph", "long_loops", "unequal")
OTHERS = ("many_runs", "image_kernels", "image_tries", "layers", "adapted", "faults", "pages")


def alone(name: str, *options: str) -> None:
    """One benchmark in a process of its own; an error there ends this one, too."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="few rounds and small sizes: does everything run? (a few minutes)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's choice)")
    arguments = parser.parse_args()
    require_peers()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.quick:
        sinusoid_step.run(rounds=3, budget=0.1)
        scaling.run(rounds=2, budget=0.05, largest=16, most_steps=2)
        image_step.run(rounds=2, budget=0.1, tasks=(2,), filters=4, compiled=False)
        memory.run(tasks=(9,), steps=(2,), filters=4, repeats=1)
        processes.run(repeats=2, rounds=1, tasks=4, filters=4)
    else:
        sinusoid_step.run()
        scaling.run()
        image_step.run()
        memory.run()
        processes.run()
        for name in OF_ONE_THREAD: alone(name, "--threads", "1")
        for name in OTHERS: alone(name)


if __name__ == "__main__":
    main()
