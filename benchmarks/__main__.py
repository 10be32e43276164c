"""`python -m benchmarks`: run all benchmarks, and write their results to `results/`."""
from __future__ import annotations

import argparse

import torch

from . import image_step, memory, processes, scaling, sinusoid_step
from .peers import require_peers


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


if __name__ == "__main__":
    main()
