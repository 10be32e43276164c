"""The image problem that is timed.

5-way 1-shot episodes, and the four convolutions of the few-shot literature.

A task has 5 support and 25 query images of 28 × 28 pixels, as in Finn et al. (2017, section 5.2)
with five queries per class; the inner step size is 0.4. Which pixels they are does not matter for
time and memory: they are noise.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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


def in_half(step: Step) -> Step:
    """The same step, its convolutions and products in bfloat16."""
    def half(task: ml.Task) -> tuple[Any, dict[str, Any]]:
        with torch.autocast("cpu", torch.bfloat16): return step(task)
    return half


def build_half(model: nn.Module, steps: int) -> Step:
    """The compiled step of metalit in bfloat16."""
    return in_half(of_module("metalit_compiled")(model, steps))


def jax_logits(theta: dict[str, Any], x: Any) -> Any:
    """The strided network in JAX: convolution, batch normalisation, ReLU; the mean; the head."""
    import jax
    import jax.numpy as jnp

    for layer in range(4):
        x = jax.lax.conv_general_dilated(x, theta[f"convolutions.{layer}.weight"], (2, 2),
                                         [(1, 1), (1, 1)])
        x = x - x.mean((0, 2, 3), keepdims=True)
        x = x * jax.lax.rsqrt((x**2).mean((0, 2, 3), keepdims=True) + 1e-5)
        scale, offset = (theta[f"norms.{layer}.{part}"] for part in ("weight", "bias"))
        x = jax.nn.relu(x * scale[:, None, None] + offset[:, None, None])
    return jnp.mean(x, (2, 3)) @ theta["head.weight"].T + theta["head.bias"]


def build_jax(together: bool) -> Callable[[nn.Module, int], Step]:
    """JAX, jitted: all tasks at once by `vmap`, or one after another by `lax.map`."""
    def build(model: nn.Module, steps: int) -> Step:
        import jax

        jax.config.update("jax_enable_x64", True)  # for the check; float32 stays float32

        def loss(phi: Any, x: Any, y: Any) -> Any:
            chosen = jax.nn.log_softmax(jax_logits(phi, x))
            return -chosen[jax.numpy.arange(len(y)), y].mean()

        def query_loss(theta: Any, task: Any) -> Any:
            phi, (support_x, support_y, query_x, query_y) = theta, task
            for _ in range(steps):
                slopes = jax.grad(loss)(phi, support_x, support_y)
                phi = {name: phi[name] - LR * slopes[name] for name in phi}
            return loss(phi, query_x, query_y)

        def meta_loss(theta: Any, tasks: Any) -> Any:
            if together: return jax.vmap(query_loss, (None, 0))(theta, tasks).mean()
            return jax.lax.map(lambda task: query_loss(theta, task), tasks).mean()

        run = jax.jit(jax.value_and_grad(meta_loss))
        theta = {name: jax.numpy.asarray(p.detach().numpy())
                 for name, p in model.named_parameters()}

        def step(task: ml.Task) -> tuple[Any, dict[str, Any]]:
            arrays = tuple(jax.numpy.asarray(t.numpy()) for t in (*task.support, *task.query))
            value, slopes = jax.block_until_ready(run(theta, arrays))
            return torch.tensor(float(value)), {name: torch.from_numpy(np.array(slope))
                                                for name, slope in slopes.items()}
        return step
    return build


CONTENDERS = {"autograd": build_autograd} | {name: of_module(name) for name in STEPS} | {
    "metalit_half": build_half, "jax_vmap": build_jax(True), "jax_map": build_jax(False)}
