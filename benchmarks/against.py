"""The meta-step of this checkout against that of an older revision, in turns.

    python -m benchmarks.against [REVISION] [--rounds N]

Each library lives in a process of its own, one thread each, and both are given the same tensors
for tasks. They take turns: a disturbance of the machine falls on both. The value and the gradients
must agree before anything is timed. Written to results/against.json.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import measure

ROOT = Path(__file__).parent.parent
WORKER = """
import json, sys, time
import torch
import torch.nn.functional as F
import metalit as ml

print(json.dumps(ml.__file__), flush=True)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x = torch.rand(25, 20, 1, generator=generator) * 10 - 5
y = torch.sin(x + torch.arange(25.0)[:, None, None])
task = ((x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:]))

def made(name, steps, compile):
    J = getattr(ml, name)(ml.models.mlp(1, 40, 40, 1, seed=0), F.mse_loss, lr=0.01, steps=steps)
    if compile: J.compile()
    return J

cases = {f"{name}, K = {steps}{', compiled' * compile}": made(name, steps, compile)
         for name, steps, compile in (("MAML", 1, False), ("MAML", 5, False), ("FOMAML", 1, False),
                                      ("FOMAML", 5, False), ("MAML", 1, True), ("MAML", 5, True))}
print(json.dumps({name: [J(task).item()] + [g.norm().item() for g in torch.autograd.grad(
    J(task), list(J.parameters()))] for name, J in cases.items()}), flush=True)
for line in sys.stdin:
    J, times = cases[line.strip()], []
    for _ in range(60):
        start = time.perf_counter()
        J(task).backward()
        times.append(time.perf_counter() - start)
    print(json.dumps(sorted(times)[len(times) // 2] * 1e3), flush=True)
"""


class Worker:
    """A process that has imported one library and times what it is asked for."""

    def __init__(self, library: Path):
        environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment,
                                        cwd=library, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        place = Path(self.answer())
        if library.resolve() not in place.parents:
            raise SystemExit(f"{place} was imported, not the library in {library}")
        self.found = self.answer()

    def answer(self) -> Any:
        """The next thing that it says."""
        return json.loads(self.process.stdout.readline())

    def milliseconds(self, case: str) -> float:
        """The median of sixty steps, now."""
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return self.answer()


def checked_out(revision: str, folder: str) -> Path:
    """The library as it was at a revision, in a folder."""
    archive = subprocess.run(["git", "archive", revision, "metalit"], cwd=ROOT, check=True,
                             capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", folder], input=archive, check=True)
    return Path(folder)


def compared(old: Worker, new: Worker, rounds: int) -> list[dict[str, Any]]:
    """For each case: milliseconds of both, and the ratio new / old, round by round."""
    rows = []
    for case, numbers in old.found.items():
        off = max(abs(a - b) for a, b in zip(numbers, new.found[case], strict=True))
        if off > 1e-5: raise SystemExit(f"{case}: values or gradients differ by {off:.1e}")
        pairs = [(old.milliseconds(case), new.milliseconds(case)) for _ in range(rounds)]
        before, after = (measure.spread(list(times)) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append({"case": case, "off": off, "old_ms": before, "new_ms": after, "ratio": ratio})
        print(f"{case:24} {before['median']:8.3f} {after['median']:8.3f} ms  × {ratio:.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("revision", nargs="?", default="85c965f", help="the last one of 0.1.0")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old, new = Worker(checked_out(args.revision, folder)), Worker(ROOT)
        rows = compared(old, new, args.rounds)
    record = {"what": "one meta-step, 25 sine tasks of 10 + 10, network 1-40-40-1, one thread; "
              "median of rounds of 60 steps, two libraries in turns", "old": args.revision,
              "command": f"python -m benchmarks.against {args.revision} --rounds {args.rounds}",
              "rounds": args.rounds, "machine": measure.machine(), "rows": rows}
    path = ROOT / measure.RESULTS / "against.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
