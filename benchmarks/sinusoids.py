"""The contenders of the sinusoid problem: those of `peers`, and JAX, from the same arrays.

Each is made from the same NumPy arrays.

Every `build(params, steps, lr)` returns a step as in `peers`, for a task that `prepare` made of
NumPy arrays: so no conversion is timed.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml

from .peers import LABELS, STEPS, Step, autograd_step
from .problem import WIDTHS, Arrays

Params = dict[str, np.ndarray]


class Contender(NamedTuple):
    """One implementation: how it wants its tasks, and how its step is built."""

    prepare: Callable[[Arrays], Any]
    build: Callable[[Params, int, float], Step]


def torch_task(task: Arrays) -> ml.Task:
    """The arrays as tensors."""
    support_x, support_y, query_x, query_y = map(torch.from_numpy, task)
    return ml.Task(ml.Split(support_x, support_y), ml.Split(query_x, query_y))


def torch_model(params: Params, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The network as an ordinary module, with these parameters."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in params.items()})
    return model


def network(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as a function of its weights and biases, which come in turns."""
    *hidden, weight, bias = params.values()
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = F.linear(x, w, b).relu()
    return F.linear(x, weight, bias)


def build_autograd(params: Params, steps: int, lr: float,
                   dtype: torch.dtype = torch.float32) -> Step:
    """The plain loop, with the network as a function."""
    theta = {name: torch.tensor(a, dtype=dtype, requires_grad=True) for name, a in params.items()}
    return autograd_step(theta, network, F.mse_loss, steps, lr)


def of_module(name: str) -> Contender:
    """One of those that are given a module."""
    return Contender(torch_task, lambda params, steps, lr:
                     STEPS[name](torch_model(params), F.mse_loss, steps, lr))


def jax_task(task: Arrays) -> tuple[Any, ...]:
    """The arrays as JAX arrays."""
    import jax.numpy as jnp

    return tuple(jnp.asarray(a) for a in task)


def build_jax(params: Params, steps: int, lr: float) -> Step:
    """JAX: `jit` of `value_and_grad` of `vmap`, one compiled program; waits for the result."""
    import jax
    import jax.numpy as jnp

    theta = {name: jnp.asarray(a) for name, a in params.items()}
    layers = sorted({name.split(".")[0] for name in params}, key=int)

    def loss(phi, x, y):
        for layer in layers[:-1]:
            x = jax.nn.relu(x @ phi[f"{layer}.weight"].T + phi[f"{layer}.bias"])
        x = x @ phi[f"{layers[-1]}.weight"].T + phi[f"{layers[-1]}.bias"]
        return jnp.mean((x - y) ** 2)

    def query_loss(phi, support_x, support_y, query_x, query_y):
        for _ in range(steps):
            grads = jax.grad(loss)(phi, support_x, support_y)
            phi = {name: phi[name] - lr * grads[name] for name in phi}
        return loss(phi, query_x, query_y)

    def meta_loss(phi, task):
        return jax.vmap(query_loss, (None, 0, 0, 0, 0))(phi, *task).mean()

    value_and_grad = jax.jit(jax.value_and_grad(meta_loss))

    def step(task: tuple[Any, ...]):
        return jax.block_until_ready(value_and_grad(theta, task))

    return step


OTHERS = {"autograd": Contender(torch_task, build_autograd), "jax": Contender(jax_task, build_jax)}
CONTENDERS = {name: OTHERS.get(name) or of_module(name) for name in LABELS
              if name in OTHERS or name in STEPS}
