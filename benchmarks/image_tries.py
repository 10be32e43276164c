"""What did not make the compiled step on images faster by much, and why half precision is far off.

    python -m benchmarks.image_tries

32 tasks on the strided Conv4 with 64 filters, one inner step, exact. A pass over the compiler's
graph lets strided convolutions whose weights differ from task to task go one task after another: a
gradient by the images from `WORTH` operations a task on, a convolution itself from four times as
many. Another attempt gives each of two threads half of the tasks. And the meta-gradient where
nothing but the weights is rounded to bfloat16, with all else in float64. Written to
results/image_tries.json.
"""
from __future__ import annotations

import math
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

import metalit as ml
from metalit.batching.products import Products, put, shape_of
from metalit.training.memory import keep_freed_memory

from . import measure
from .image_kernels import BACKWARD, CONVOLUTION, TASKS, options_with
from .image_step import error, reference
from .images import LR, build_autograd, build_half, episodes, in_half, network

WORTH, WORTH_FORWARD = 15e6, 60e6
THREADS = (1, 2)
OF_ERRORS = 8  # tasks


def one_by_one(of_one: Callable[..., Tensor], wholes: tuple[Tensor, ...], axes: tuple[int, ...],
               tasks: int, out: Tensor) -> Tensor:
    """What a function gives for the part of each task, side by side in `out`."""
    parts = [whole.chunk(tasks, axis) for whole, axis in zip(wholes, axes, strict=True)]
    for place, *part in zip(out.chunk(tasks, 1), *parts, strict=True): place.copy_(of_one(*part))
    return out


@torch.library.custom_op("benchmarks::by_images", mutates_args=())
def by_images(slope: Tensor, weights: Tensor, size: list[int], stride: list[int],
              padding: list[int], dilation: list[int], tasks: int) -> Tensor:
    """The gradient of a convolution by its images, one task after another."""
    out = slope.new_empty(len(slope), weights.shape[1] * tasks, *size)
    like = out[:, :weights.shape[1]]

    def of_one(slope: Tensor, weights: Tensor) -> Tensor:
        return BACKWARD(slope.contiguous(), like, weights, None, stride, padding, dilation, False,
                        [0] * len(stride), 1, [True, False, False])[0]
    return one_by_one(of_one, (slope, weights), (1, 0), tasks, out)


@by_images.register_fake
def _(slope: Tensor, weights: Tensor, size: list[int], stride: list[int], padding: list[int],
      dilation: list[int], tasks: int) -> Tensor:
    return slope.new_empty(len(slope), weights.shape[1] * tasks, *size)


@torch.library.custom_op("benchmarks::convolved", mutates_args=())
def convolved(images: Tensor, weights: Tensor, size: list[int], stride: list[int],
              padding: list[int], dilation: list[int], tasks: int) -> Tensor:
    """A convolution, one task after another."""
    def of_one(images: Tensor, weights: Tensor) -> Tensor:
        return CONVOLUTION(images.contiguous(), weights, None, stride, padding, dilation, False,
                           [0] * len(stride), 1)
    out = images.new_empty(len(images), len(weights), *size)
    return one_by_one(of_one, (images, weights), (1, 0), tasks, out)


@convolved.register_fake
def _(images: Tensor, weights: Tensor, size: list[int], stride: list[int], padding: list[int],
      dilation: list[int], tasks: int) -> Tensor:
    return images.new_empty(len(images), len(weights), *size)


def operations(result: fx.Node, weights: fx.Node, tasks: int) -> float:
    """Of one task's share of a convolution that gives this result."""
    examples, _, *size = shape_of(result)
    return 2 * examples * math.prod(size) * math.prod(shape_of(weights)) / tasks


def changed(graph: fx.Graph, node: fx.Node) -> None:
    """One convolution, or gradient of one, task by task, if that is worth it."""
    if node.target is BACKWARD:
        slope, images, weights, _, *rest, turned, _, tasks, wanted = node.args
        if turned or not worth(rest[0], tasks, operations(slope, weights, tasks), WORTH): return
        if wanted[0]: split(graph, node, slope, weights, list(shape_of(images)[2:]), rest, tasks)
    elif node.target is CONVOLUTION:
        images, weights, _, *rest, turned, _, tasks = node.args
        result, least = (images, WORTH) if turned else (node, WORTH_FORWARD)
        if not worth(rest[0], tasks, operations(result, weights, tasks), least): return
        way = torch.ops.benchmarks.by_images if turned else torch.ops.benchmarks.convolved
        with graph.inserting_before(node):
            new = put(graph, way.default, images, weights, list(shape_of(node)[2:]), *rest, tasks)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def worth(stride: list[int], tasks: int, count: float, least: float) -> bool:
    """Whether a convolution is strided, has weights for each task, and is large."""
    return tasks > 1 and max(stride) > 1 and count >= least


def split(graph: fx.Graph, node: fx.Node, slope: fx.Node, weights: fx.Node, size: list[int],
          rest: list[Any], tasks: int) -> None:
    """The gradient by the images on its own; that by the weights stays as it is."""
    with graph.inserting_before(node):
        new = put(graph, torch.ops.benchmarks.by_images.default, slope, weights, size, *rest, tasks)
        args = (*node.args[:3], None, *node.args[4:-1], [False, *node.args[-1][1:]])
        other = put(graph, BACKWARD, *args) if any(node.args[-1][1:]) else None
    for user in list(node.users):
        if user.args[1] == 0: user.replace_all_uses_with(new)
        else:
            with graph.inserting_before(user):
                user.replace_all_uses_with(put(graph, operator.getitem, other, user.args[1]))
        graph.erase_node(user)
    graph.erase_node(node)


class OneByOne(Products):
    """The pass of `J.compile()`, and then this one."""
    def __call__(self, graph: fx.Graph) -> None:
        super().__call__(graph)
        for node in list(graph.nodes): changed(graph, node)

    def uuid(self) -> str:
        """Tells compiled graphs on disk apart."""
        return "benchmarks.image_tries 1 " + super().uuid()


def ready(task: ml.Task, threads: int = 1, **options: Any) -> Callable[[], Any]:
    """A compiled step, which has been called once."""
    torch.set_num_threads(threads)
    J = ml.MAML(network(), F.cross_entropy, lr=LR, steps=1)
    J.compile(**options)

    def step() -> None:
        J(task).backward()

    step()
    return step


def in_halves(task: ml.Task) -> Callable[[], Any]:
    """A step of which each of two threads takes half."""
    count = task.batch_size // 2
    halves = [task.select(slice(0, count)), task.select(slice(count, None))]
    steps = [ready(half) for half in halves]
    pool = ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(1))
    return lambda: list(pool.map(lambda step: step(), steps))


def tries(threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step on so many threads: as it is, one task after another, in halves."""
    keep_freed_memory()
    task = episodes(TASKS)
    calls = {"as it is": ready(task, threads),
             "one task after another": ready(task, threads, options=options_with(OneByOne()))}
    if threads == 2: calls["half on each thread"] = in_halves(task)
    torch.set_num_threads(threads)
    times = measure.in_turns(calls, rounds, 0.5)
    return {way: measure.spread(ms) for way, ms in times.items()}


def errors() -> dict[str, float]:
    """Relative errors of the meta-gradient, by what is in half precision."""
    task = episodes(OF_ERRORS)
    expected = reference(task, 64)
    rounded = network().double()
    for weights in rounded.parameters(): weights.data = weights.data.bfloat16().double()
    return {"metalit, compiled": error(build_half(network(), 1), task, expected),
            "plain loop": error(in_half(build_autograd(network(), 1)), task, expected),
            "weights alone rounded": error(build_autograd(rounded, 1),
                                           task.to(dtype=torch.float64), expected)}


def main() -> None:
    """Measure, and write `results/image_tries.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", rounds=9), tries)
    if arguments is None: return
    ms = {str(threads): measure.fresh("benchmarks.image_tries", threads, arguments.rounds)
          for threads in THREADS}
    record = {"what": f"a compiled MAML step on images, {TASKS} tasks, by threads; errors of the "
              f"meta-gradient in half precision, {OF_ERRORS} tasks",
              "command": "python -m benchmarks.image_tries", "rounds": arguments.rounds, "ms": ms,
              "errors": errors(), "machine": measure.machine(),
              "versions": measure.versions("metalit", "torch")}
    print(record)
    measure.write_json("image_tries", record)


if __name__ == "__main__":
    main()
