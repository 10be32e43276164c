"""The image problem that is timed: 5-way 1-shot episodes, and the four convolutions of the few-shot literature.

A task has 5 support and 25 query images of 28 × 28 pixels, as in Finn et al. (2017, section 5.2) with five queries per
class; the inner step size is 0.4. Which pixels they are does not matter for time and memory: they are noise.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metalit as ml
from metalit.models import Conv4

from .peers import Step, gradients

WAYS, SHOTS, QUERIES, SIZE = 5, 1, 5, 28
FILTERS = 64
LR = 0.4


def episodes(tasks: int, seed: int = 0) -> ml.Task:
    """So many tasks of noise."""
    generator = torch.Generator().manual_seed(seed)

    def split(each: int) -> ml.Split:
        x = torch.rand(tasks, WAYS * each, 1, SIZE, SIZE, generator=generator)
        return ml.Split(x, torch.arange(WAYS).repeat(each).expand(tasks, -1).contiguous())

    return ml.Task(split(SHOTS), split(QUERIES))


def network(filters: int = FILTERS) -> Conv4:
    """The strided network, the same at every call."""
    return Conv4(WAYS, filters=filters, seed=0)


def build_metalit(model: nn.Module, steps: int, compiled: bool = False) -> Step:
    """metalit's public interface: `J(task).backward()`."""
    J = ml.MAML(model, F.cross_entropy, lr=LR, steps=steps)
    if compiled:
        J.compile()

    def step(task: ml.Task):
        J.zero_grad()
        value = J(task)
        value.backward()
        return value.detach(), gradients(model)

    return step


def build_compiled(model: nn.Module, steps: int) -> Step:
    """The same after `J.compile()`."""
    return build_metalit(model, steps, compiled=True)


def tasks_of(task: ml.Task) -> list[tuple[Tensor, ...]]:
    """The tasks one by one: support x, support y, query x, query y."""
    return list(zip(*task.support, *task.query, strict=True))


def stepping(theta: dict[str, Tensor], query_loss: Callable[..., Tensor]) -> Step:
    """A Python loop over tasks around the loss of one task."""
    def step(task: ml.Task):
        value = torch.stack([query_loss(*one) for one in tasks_of(task)]).mean()
        grads = torch.autograd.grad(value, list(theta.values()))
        return value.detach(), dict(zip(theta, grads, strict=True))

    return step


def build_autograd(model: nn.Module, steps: int) -> Step:
    """Plain PyTorch: `functional_call` and `torch.autograd.grad(create_graph=True)`, no `vmap`."""
    theta = dict(model.named_parameters())

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        phi = theta
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, phi, (support_x,)), support_y)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        return F.cross_entropy(functional_call(model, phi, (query_x,)), query_y)

    return stepping(theta, query_loss)


def build_higher(model: nn.Module, steps: int) -> Step:
    """higher: a patched copy of the module and of its optimizer for every task."""
    import higher

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        context = higher.innerloop_ctx(model, optimizer, copy_initial_weights=False)
        with context as (fast_model, fast_optimizer):
            for _ in range(steps):
                fast_optimizer.step(F.cross_entropy(fast_model(support_x), support_y))
            return F.cross_entropy(fast_model(query_x), query_y)

    return stepping(dict(model.named_parameters()), query_loss)


def build_torchopt(model: nn.Module, steps: int) -> Step:
    """TorchOpt: `MetaSGD`, and the module put back after every task."""
    import torchopt

    theta = dict(model.named_parameters())
    optimizer = torchopt.MetaSGD(model, lr=LR)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (model, optimizer)]

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        for _ in range(steps):
            optimizer.step(F.cross_entropy(model(support_x), support_y))
        loss = F.cross_entropy(model(query_x), query_y)
        for part, state in zip((model, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, state)
        return loss

    return stepping(theta, query_loss)


CONTENDERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "autograd": ("plain autograd loop", build_autograd),
    "higher": ("higher", build_higher),
    "torchopt": ("TorchOpt", build_torchopt),
    "metalit": ("metalit, eager", build_metalit),
    "metalit_compiled": ("metalit, compiled", build_compiled),
}
