"""The same meta-step, written as the users of each library would write it.

Every `…_step(model, loss, steps, lr)` returns `step(task)`, which gives the mean query loss after
`steps` inner steps and its gradient by the name of the parameter, second order included. The
gradients of one call may be overwritten by the next.
"""
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import metalit as ml

Step = Callable[[Any], tuple[Any, dict[str, Any]]]
Loss = Callable[[Tensor, Tensor], Tensor]

LABELS = {
    "autograd": "plain autograd loop",
    "higher": "higher",
    "torchopt": "TorchOpt",
    "jax": "JAX, jitted",
    "metalit": "metalit, eager",
    "metalit_compiled": "metalit, compiled",
    "metalit_half": "compiled, bfloat16",
    "jax_vmap": "JAX, vmap",
    "jax_map": "JAX, lax.map",
}


def loop_over_tasks(theta: dict[str, Tensor], query_loss: Callable[..., Tensor]) -> Step:
    """A loop over tasks around the loss of one: of its support x and y, its query x and y."""
    def step(task: ml.Task):
        value = torch.stack([query_loss(*one)
                             for one in zip(*task.support, *task.query, strict=True)]).mean()
        grads = torch.autograd.grad(value, list(theta.values()))
        return value.detach(), dict(zip(theta, grads, strict=True))

    return step


def autograd_step(theta: dict[str, Tensor], predict: Callable[[dict[str, Tensor], Tensor], Tensor],
                  loss: Loss, steps: int, lr: float) -> Step:
    """Plain PyTorch: a network `predict(phi, x)`, `torch.autograd.grad(create_graph=True)`.

    No `vmap`.
    """
    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        phi = theta
        for _ in range(steps):
            value = loss(predict(phi, support_x), support_y)
            grads = torch.autograd.grad(value, list(phi.values()), create_graph=True)
            phi = {name: p - lr * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        return loss(predict(phi, query_x), query_y)

    return loop_over_tasks(theta, query_loss)


def higher_step(model: nn.Module, loss: Loss, steps: int, lr: float) -> Step:
    """higher: a patched copy of the module and of its optimizer for every task."""
    import higher

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        context = higher.innerloop_ctx(model, optimizer, copy_initial_weights=False)
        with context as (fast_model, fast_optimizer):
            for _ in range(steps):
                fast_optimizer.step(loss(fast_model(support_x), support_y))
            return loss(fast_model(query_x), query_y)

    return loop_over_tasks(dict(model.named_parameters()), query_loss)


def torchopt_step(model: nn.Module, loss: Loss, steps: int, lr: float) -> Step:
    """TorchOpt: `MetaSGD`, and the module put back after every task."""
    import torchopt

    theta = dict(model.named_parameters())
    optimizer = torchopt.MetaSGD(model, lr=lr)
    start = [torchopt.extract_state_dict(part, by="reference") for part in (model, optimizer)]

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor):
        for _ in range(steps):
            optimizer.step(loss(model(support_x), support_y))
        value = loss(model(query_x), query_y)
        for part, state in zip((model, optimizer), start, strict=True):
            torchopt.recover_state_dict(part, state)
        return value

    return loop_over_tasks(theta, query_loss)


def metalit_step(model: nn.Module, loss: Loss, steps: int, lr: float,
                 compiled: bool = False) -> Step:
    """metalit's public interface: `J(task).backward()`; with `J.compile()` one compiled graph."""
    J = ml.MAML(model, loss, lr=lr, steps=steps)
    if compiled:
        J.compile()

    def step(task: ml.Task):
        J.zero_grad()
        value = J(task)
        value.backward()
        return value.detach(), {name: p.grad for name, p in model.named_parameters()}

    return step


def compiled_step(model: nn.Module, loss: Loss, steps: int, lr: float) -> Step:
    """The same after `J.compile()`."""
    return metalit_step(model, loss, steps, lr, compiled=True)


# Those that are given a module. What is missing needs a network of its own.
STEPS = {"higher": higher_step, "torchopt": torchopt_step, "metalit": metalit_step,
         "metalit_compiled": compiled_step}


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
