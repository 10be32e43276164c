"""The image problem that is timed.

5-way 1-shot episodes, and the four convolutions of the few-shot literature.

A task has 5 support and 25 query images of 28 × 28 pixels, as in Finn et al. (2017, section 5.2)
with five queries per class; the inner step size is 0.4. Which pixels they are does not matter for
time and memory: they are noise.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.models import Conv4

from .peers import STEPS, Step, autograd_step

WAYS, SHOTS, QUERIES, SIZE = 5, 1, 5, 28
FILTERS = 64
LR = 0.4


def episodes(tasks: int, seed: int = 0, size: int = SIZE) -> ml.Task:
    """So many tasks of noise."""
    generator = torch.Generator().manual_seed(seed)

    def split(each: int) -> ml.Split:
        x = torch.rand(tasks, WAYS * each, 1, size, size, generator=generator)
        return ml.Split(x, torch.arange(WAYS).repeat(each).expand(tasks, -1).contiguous())

    return ml.Task(split(SHOTS), split(QUERIES))


def network(filters: int = FILTERS, size: int = SIZE) -> Conv4:
    """The strided network, the same at every call."""
    return Conv4(WAYS, filters=filters, size=size, seed=0)


def build_autograd(model: nn.Module, steps: int) -> Step:
    """The plain loop, by `functional_call`."""
    return autograd_step(dict(model.named_parameters()),
                         lambda phi, x: functional_call(model, phi, (x,)), F.cross_entropy, steps,
                         LR)


def of_module(name: str) -> Callable[[nn.Module, int], Step]:
    """One of those that are given a module."""
    return lambda model, steps: STEPS[name](model, F.cross_entropy, steps, LR)


CONTENDERS = {"autograd": build_autograd} | {name: of_module(name) for name in STEPS}
