"""The compiled step on images, kernel by kernel: the time of each, and the best that was found.

    python -m benchmarks.image_kernels

32 tasks on the strided Conv4 with 64 filters, one inner step, exact. Every convolution of the
compiled graph is timed alone as the graph calls it (the weights of all tasks in groups), and in
other ways: one task after another, that with channels last, and a gradient of weights as such where
the graph has it as a convolution. The profiler says what convolutions and the other kernels take
within the step, and so what is left. Kernels that are no convolutions can take no less than memory
needs for what they read and write. Written to results/image_kernels.json.
"""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, fx

import metalit as ml
from metalit.batching.compiled import can_change, cpu_options
from metalit.batching.products import Products, shape_of
from metalit.training.memory import keep_freed_memory

from . import measure
from .images import FILTERS, LR, episodes, network

aten = torch.ops.aten
CONVOLUTION, BACKWARD = aten.convolution.default, aten.convolution_backward.default
TASKS = 32
WAYS = ("as in the graph", "one task after another", "one after another, channels last",
        "as a gradient")


class Kernel(NamedTuple):
    """A convolution of a graph: what it computes, of which sizes.

    `images` and `weights` are sizes of what goes in; of a gradient, `images` are those of the
    convolution that it belongs to, and `results` the sizes of what came out of that.
    """
    what: str
    images: tuple[int, ...]
    weights: tuple[int, ...]
    results: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    tasks: int

    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.results[0] * math.prod(self.results[2:]) * math.prod(self.weights)


def kernels_of(node: fx.Node) -> Iterator[Kernel]:
    """The convolutions that an operation of a graph does."""
    if node.target not in (CONVOLUTION, BACKWARD): return
    tensors = [shape_of(arg) for arg in node.args[:3]]
    if node.target is CONVOLUTION:
        stride, padding, dilation, turned, _, tasks = node.args[3:]
        rest = tuple(map(tuple, (stride, padding, dilation)))
        if turned: yield Kernel("gradient by images", shape_of(node), tensors[1], tensors[0], *rest,
                                tasks)
        else: yield Kernel("convolution", *tensors[:2], shape_of(node), *rest, tasks)
        return
    result, images, weights = tensors
    stride, padding, dilation, _, _, tasks, wanted = node.args[4:]
    for what, asked in zip(("gradient by images", "gradient by weights"), wanted, strict=False):
        if asked: yield Kernel(what, images, weights, result, tuple(stride), tuple(padding),
                               tuple(dilation), tasks)


class Seen(Products):
    """The pass of `J.compile()`, which notes the convolutions that it leaves."""
    kernels: ClassVar[Counter[Kernel]] = Counter()  # the compiler works with a copy of the pass

    def __call__(self, graph: fx.Graph) -> None:
        super().__call__(graph)
        self.kernels.update(kernel for node in graph.nodes for kernel in kernels_of(node))

    def uuid(self) -> str:
        """Never from the disk: what is not compiled is not seen."""
        return f"benchmarks.image_kernels {time.time()}"


def options_with(change: Products) -> dict[str, Any]:
    """What `J.compile()` asks of the compiler, with another pass over the graph."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    CustomGraphPass.register(type(change))
    return {"guard_filter_fn": can_change} | cpu_options() | {"post_grad_custom_pre_pass": change}


@contextmanager
def looked_at() -> Iterator[None]:
    """Inside, what is compiled says how many bytes it moves, and its kernels have names."""
    from torch._inductor import compile_fx, config

    with (patch.object(compile_fx, "inductor_metrics_log"),  # it counts bytes where this is on
          config.patch({"cpp.enable_kernel_profile": True})): yield


def called(kernel: Kernel, tasks: int, result: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """A kernel on these tensors, for so many tasks."""
    rest = (kernel.stride, kernel.padding, kernel.dilation, False, [0] * len(kernel.stride), tasks)
    if kernel.what == "convolution": return CONVOLUTION(images, weights, None, *rest)
    by_images = kernel.what == "gradient by images"
    return BACKWARD(result, images, weights, None, *rest, [by_images, not by_images, False])[
        0 if by_images else 1]


def by_task(kernel: Kernel, tensors: tuple[Tensor, ...], layout: torch.memory_format
            ) -> list[Callable[[], Tensor]]:
    """A call for each task, on tensors of its own."""
    tasks = kernel.tasks
    each = [[part.contiguous(memory_format=layout) for part in whole.chunk(tasks, axis)]
            for whole, axis in zip(tensors, (1, 1, 0), strict=True)]
    return [lambda of_task=of_task: called(kernel, 1, *of_task)
            for of_task in zip(*each, strict=True)]


def as_gradient(kernel: Kernel) -> Kernel | None:
    """A convolution over the examples of all tasks, which is a gradient of shared weights."""
    if kernel.what != "convolution" or kernel.dilation == (1,) * len(kernel.dilation): return None
    turned = [(shape[1], shape[0], *shape[2:])
              for shape in (kernel.images, kernel.results, kernel.weights)]
    turned[1] = (kernel.weights[0], kernel.images[0], *kernel.results[2:])
    return Kernel("gradient by weights", *turned, kernel.dilation, kernel.padding, kernel.stride, 1)


def ways_of(kernel: Kernel) -> dict[str, Callable[[], Any]]:
    """All that compute a kernel, ready to be called."""
    def drawn(kind: Kernel) -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape) for shape in (kind.results, kind.images, kind.weights))
    tensors = drawn(kernel)
    found: dict[str, Callable[[], Any]] = {WAYS[0]: lambda: called(kernel, kernel.tasks, *tensors)}
    if kernel.tasks > 1:
        for way, layout in zip(WAYS[1:3], (torch.contiguous_format, torch.channels_last),
                               strict=True):
            calls = by_task(kernel, tensors, layout)
            found[way] = lambda calls=calls: [call() for call in calls]
    if gradient := as_gradient(kernel):
        others = drawn(gradient)
        found[WAYS[3]] = lambda: called(gradient, 1, *others)
    return found


def quickest(call: Callable[[], Any], rounds: int) -> float:
    """Milliseconds of the quickest of so many calls, and two more."""
    return min(measure.timed(call, 1) for _ in range(rounds + 2))


def timed_kernel(kernel: Kernel, count: int, rounds: int) -> dict[str, Any]:
    """A row of the table; milliseconds are of all the times that the step calls it."""
    ms = {way: count * quickest(call, rounds) for way, call in ways_of(kernel).items()}
    best = min(ms, key=ms.__getitem__)
    row = {**kernel._asdict(), "times": count, "gflop": count * kernel.flops() / 1e9, "ms": ms,
           "best": best}
    print(f"  {kernel.what:20} {kernel.images!s:20} → {kernel.results!s:20} "
          + ", ".join(f"{way} {value:.2f}" for way, value in ms.items()), flush=True)
    return row


def in_step(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Milliseconds of a step in convolutions and in the other kernels, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as watched:
        start = time.perf_counter()
        for _ in range(steps): step()
        whole = (time.perf_counter() - start) / steps * 1e3
    sums: Counter[str] = Counter()
    for event in watched.key_averages():
        if event.key.startswith("aoti_torch_cpu_convolution"):
            sums["convolutions"] += event.cpu_time_total
        elif event.key.startswith("graph_"): sums["other kernels"] += event.cpu_time_total
    return {"step": whole} | {what: us / steps / 1e3 for what, us in sums.items()}


def bytes_moved() -> int:
    """Bytes that kernels other than convolutions read and write in the graph compiled last."""
    from torch._inductor import metrics
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    return sum(4 * numbers for node, numbers in metrics.nodes_num_elem
               if not isinstance(node, ExternKernelSchedulerNode))


def bandwidth(rounds: int) -> float:
    """Bytes per second of the quickest copy of 40 MB."""
    a = torch.randn(10_000_000)
    b = torch.empty_like(a)
    return 8 * len(a) / (quickest(lambda: b.copy_(a), rounds) / 1e3)


def measured(rounds: int) -> dict[str, Any]:
    """The step, its kernels within it, and each alone."""
    keep_freed_memory()
    task = episodes(TASKS)
    J = ml.MAML(network(), F.cross_entropy, lr=LR, steps=1)

    def step() -> None:
        J(task).backward()

    J.compile(options=options_with(Seen()))
    with looked_at(): step()
    moved = bytes_moved()
    alone = quickest(step, rounds)
    found = in_step(step, rounds)
    rows = [timed_kernel(kernel, count, rounds) for kernel, count in Seen.kernels.items()]
    return {"ms of the step": alone, "profiled": found, "bytes of other kernels": moved,
            "bytes per second": bandwidth(rounds), "kernels": rows}


def told(result: dict[str, Any]) -> dict[str, float]:
    """The sums: what the kernels explain, and the step with the best that is known of each."""
    rows, profiled = result["kernels"], result["profiled"]
    other = result["bytes of other kernels"] / result["bytes per second"] * 1e3
    best = sum(min(row["ms"].values()) for row in rows)
    return {"explained": (profiled["convolutions"] + profiled["other kernels"]) / profiled["step"],
            "convolutions alone": sum(row["ms"][WAYS[0]] for row in rows),
            "convolutions at best": best, "other kernels at best": other,
            "step at best": best + other}


def main() -> None:
    """Measure, and write `results/image_kernels.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", rounds=11))
    if arguments is None: return
    result = measured(arguments.rounds)
    sums = told(result)
    for what, value in (result["profiled"] | sums).items(): print(f"{what:24}{value:10.3f}")
    measure.write_json("image_kernels", {
        "what": f"one compiled MAML step on images, {TASKS} tasks, {FILTERS} filters, by kernels; "
        "milliseconds, the quickest of the rounds", "command": "python -m benchmarks.image_kernels",
        "rounds": arguments.rounds, "machine": measure.machine(),
        "versions": measure.versions("metalit", "torch"), **result, "sums": sums})


if __name__ == "__main__":
    main()
