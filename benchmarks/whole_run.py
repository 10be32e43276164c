"""A whole training run, sampling and Adam included: eager, compiled, many steps at once, JAX.

    python -m benchmarks.whole_run

25 sinusoid tasks of 5 + 5 points, a network 1-40-40-1, milliseconds for each step of a run, in
turns. JAX, where it is installed: one `jit` of `lax.scan` over 1,000 steps, sampling inside, its
state donated. The first call of each compiles; its seconds are measured apart.
"""
from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

import metalit as ml

from . import measure
from .problem import LR, TASKS, initial_params
from .sinusoids import torch_model

SHOTS, META_LR, STEPS, SCANNED = 5, 1e-3, (1, 5), 1000
LABELS = {"eager": "step by step", "compiled": "each step compiled",
          "whole": "many steps, one graph", "jax": "JAX, scan"}
TAKES = {"eager": 200, "compiled": 500, "whole": 2000, "jax": 2000}  # steps of one call
Run = Callable[[int], None]


def ours(steps: int, **options: Any) -> Run:
    """`ml.meta_train` of one J, again and again."""
    J = ml.MAML(torch_model(initial_params()), F.mse_loss, lr=LR, steps=steps)
    tasks = ml.tasks.Sinusoids(shots=SHOTS)

    def run(n: int) -> None:
        ml.meta_train(J, tasks, steps=n, batch_size=TASKS, progress=False, device="cpu", **options)
    return run


def jax_waves(key: Any) -> tuple[Any, ...]:
    """A batch of sine waves."""
    import jax
    import jax.numpy as jnp

    of_a, of_p, of_x = jax.random.split(key, 3)
    amplitude = jax.random.uniform(of_a, (TASKS, 1, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(of_p, (TASKS, 1, 1), maxval=jnp.pi)
    x = jax.random.uniform(of_x, (2, TASKS, SHOTS, 1), minval=-5.0, maxval=5.0)
    y = amplitude * jnp.sin(x - phase)
    return x[0], y[0], x[1], y[1]


def jax_run(steps: int) -> Run:
    """The same run in JAX, Adam written out (Kingma & Ba 2015)."""
    import jax
    import jax.numpy as jnp

    theta = {name: jnp.asarray(a) for name, a in initial_params().items()}
    layers = sorted({name.split(".")[0] for name in theta}, key=int)

    def loss(phi: Any, x: Any, y: Any) -> Any:
        for layer in layers[:-1]:
            x = jax.nn.relu(x @ phi[f"{layer}.weight"].T + phi[f"{layer}.bias"])
        x = x @ phi[f"{layers[-1]}.weight"].T + phi[f"{layers[-1]}.bias"]
        return jnp.mean((x - y) ** 2)

    def query_loss(phi: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        for _ in range(steps):
            grads = jax.grad(loss)(phi, support_x, support_y)
            phi = {name: phi[name] - LR * grads[name] for name in phi}
        return loss(phi, query_x, query_y)

    def meta_loss(theta: Any, batch: tuple[Any, ...]) -> Any:
        return jax.vmap(query_loss, (None, 0, 0, 0, 0))(theta, *batch).mean()

    def step(state: Any, key: Any) -> tuple[Any, Any]:
        theta, m, v, t = state
        value, grads = jax.value_and_grad(meta_loss)(theta, jax_waves(key))
        t = t + 1
        m = {name: 0.9 * m[name] + 0.1 * grads[name] for name in m}
        v = {name: 0.999 * v[name] + 0.001 * grads[name] ** 2 for name in v}
        theta = {name: p - META_LR / (1 - 0.9**t) * m[name]
                 / (jnp.sqrt(v[name] / (1 - 0.999**t)) + 1e-8) for name, p in theta.items()}
        return (theta, m, v, t), value

    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys), donate_argnums=0)
    zeros = {name: jnp.zeros_like(p) for name, p in theta.items()}
    now = [(theta, zeros, {name: p + 0 for name, p in zeros.items()}, jnp.zeros(()))]

    def run(n: int) -> None:
        for first in range(0, n, SCANNED):
            keys = jax.random.split(jax.random.PRNGKey(first), SCANNED)
            now[0], values = scan(now[0], keys)
            jax.block_until_ready(values)
    return run


def runs(steps: int) -> dict[str, Run]:
    """All ways, ready to be called with a number of steps."""
    found = {"eager": ours(steps), "compiled": ours(steps, compile=True, watch=lambda loss: None),
             "whole": ours(steps, compile=True)}
    return found | ({"jax": jax_run(steps)} if importlib.util.find_spec("jax") else {})


def compare(steps: int, rounds: int) -> dict[str, Any]:
    """Compile each, then time them in turns."""
    found, first = runs(steps), {}
    for way, run in found.items():
        begin = time.perf_counter()
        run(SCANNED if way == "jax" else 1)
        first[way] = time.perf_counter() - begin
    times: dict[str, list[float]] = {way: [] for way in found}
    for _ in range(rounds):
        for way, run in found.items():
            begin = time.perf_counter()
            run(TAKES[way])
            times[way].append((time.perf_counter() - begin) / TAKES[way] * 1e3)
    record = {way: measure.spread(ms) | {"first_call_seconds": first[way]}
              for way, ms in times.items()}
    for way, row in record.items():
        print(f"  {LABELS[way]:24} {row['median']:7.3f} ms a step, the first call "
              f"{row['first_call_seconds']:5.1f} s", flush=True)
    return record


def main() -> None:
    """Measure, and write `results/whole_run.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 7))
    if arguments is None: return
    measured = {}
    for steps in STEPS:
        print(f"{steps} inner step{'s' * (steps > 1)}", flush=True)
        measured[steps] = compare(steps, arguments.rounds)
    packages = ["metalit", "torch", *(["jax"] if importlib.util.find_spec("jax") else [])]
    measure.write_json("whole_run", {
        "what": "one step of a training run (sampling, value, gradient, Adam), network 1-40-40-1, "
        "25 sine tasks of 5 + 5 points", "command": "python -m benchmarks.whole_run",
        "labels": LABELS, "steps_of_a_call": TAKES, "rounds": arguments.rounds,
        "machine": measure.machine(), "versions": measure.versions(*packages),
        "inner_steps": measured})


if __name__ == "__main__":
    main()
