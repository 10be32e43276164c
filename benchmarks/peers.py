"""The same meta-step, written as the users of each library would write it.

Every `build(params, steps, lr)` returns `step(task)`, which gives the mean query loss after
`steps` inner steps and its gradient by the name of the parameter, second order included. `task`
is what `prepare` makes of NumPy arrays, so that no conversion is timed. The gradients of one call
are overwritten by the next.
"""
from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .problem import WIDTHS, Arrays

Params = dict[str, np.ndarray]
Step = Callable[[Any], tuple[Any, dict[str, Any]]]


class Contender(NamedTuple):
    """One implementation: its label, how it wants its tasks, how its step is built."""

    label: str
    prepare: Callable[[Arrays], Any]
    build: Callable[[Params, int, float], Step]


def torch_model(params: Params, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The network as an ordinary module, with these parameters."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in params.items()})
    return model


def torch_task(task: Arrays) -> tuple[Tensor, ...]:
    """The arrays as tensors."""
    return tuple(torch.from_numpy(a) for a in task)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The `.grad` of every parameter by its name."""
    return {name: p.grad for name, p in model.named_parameters()}


def network(x: Tensor, params: list[Tensor]) -> Tensor:
    """The network as a function of `[weight, bias, weight, bias, …]`."""
    *hidden, weight, bias = params
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = F.linear(x, w, b).relu()
    return F.linear(x, weight, bias)


def build_autograd(
    params: Params, steps: int, lr: float, dtype: torch.dtype = torch.float32
) -> Step:
    """A Python loop over tasks with `torch.autograd.grad(create_graph=True)`."""
    theta = {k: torch.tensor(a, dtype=dtype, requires_grad=True) for k, a in params.items()}

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        phi = list(theta.values())
        for _ in range(steps):
            loss = F.mse_loss(network(support_x, phi), support_y)
            grads = torch.autograd.grad(loss, phi, create_graph=True)
            phi = [p - lr * g for p, g in zip(phi, grads, strict=True)]
        return F.mse_loss(network(query_x, phi), query_y)

    def step(task: tuple[Tensor, ...]):
        losses = [query_loss(*one) for one in zip(*task, strict=True)]
        value = torch.stack(losses).mean()
        grads = torch.autograd.grad(value, list(theta.values()))
        return value.detach(), dict(zip(theta, grads, strict=True))

    return step


def build_higher(params: Params, steps: int, lr: float) -> Step:
    """higher: a patched copy of the module and of its optimizer for every task."""
    import higher

    model = torch_model(params)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        context = higher.innerloop_ctx(model, optimizer, copy_initial_weights=False)
        with context as (fast_model, fast_optimizer):
            for _ in range(steps):
                fast_optimizer.step(F.mse_loss(fast_model(support_x), support_y))
            return F.mse_loss(fast_model(query_x), query_y)

    def step(task: tuple[Tensor, ...]):
        model.zero_grad()
        value = torch.stack([query_loss(*one) for one in zip(*task, strict=True)]).mean()
        value.backward()
        return value.detach(), gradients(model)

    return step


def build_torchopt(params: Params, steps: int, lr: float) -> Step:
    """TorchOpt: `MetaSGD`, and the module put back after every task."""
    import torchopt

    model = torch_model(params)
    names = [name for name, _ in model.named_parameters()]
    theta = list(model.parameters())
    optimizer = torchopt.MetaSGD(model, lr=lr)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (model, optimizer)]

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        for _ in range(steps):
            optimizer.step(F.mse_loss(model(support_x), support_y))
        loss = F.mse_loss(model(query_x), query_y)
        for part, state in zip((model, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, state)
        return loss

    def step(task: tuple[Tensor, ...]):
        value = torch.stack([query_loss(*one) for one in zip(*task, strict=True)]).mean()
        grads = torch.autograd.grad(value, theta)
        return value.detach(), dict(zip(names, grads, strict=True))

    return step


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


PEERS = {
    "autograd": Contender("plain autograd loop", torch_task, build_autograd),
    "higher": Contender("higher", torch_task, build_higher),
    "torchopt": Contender("TorchOpt", torch_task, build_torchopt),
    "jax": Contender("JAX, jitted", jax_task, build_jax),
}


def require_peers() -> None:
    """Import every library that is compared with.

    Raises:
        SystemExit: one is missing; the message says what to install.
    """
    missing = []
    for module in ("higher", "torchopt", "jax"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing.append(f"  {module}: {error}")
    if missing:
        raise SystemExit(
            "These libraries of the comparison cannot be imported:\n" + "\n".join(missing)
            + "\nInstall them with: pip install -e '.[bench]'   (JAX needs Python 3.11 or newer)"
        )
