"""A whole training run, sampling and Adam included: eager, compiled, many steps at once, JAX.

    python -m benchmarks.whole_run

25 sinusoid tasks of 5 + 5 points, a network 1-40-40-1, milliseconds for each step of a run, in
turns. JAX, where it is installed: one `jit` of `lax.scan` over 1,000 steps, sampling inside, its
state donated, on one core. The first call of each compiles; its seconds are measured apart. Beside
that, the time of a step's products of matrices alone; and, to see that both learn the same, the
loss on held-out tasks after 10,000 steps from several starts.
"""
from __future__ import annotations

import contextlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml
from metalit.batching.products import BMM, MM, Products
from metalit.training.whole_run import OuterStep, first_numbers, graph_of

from . import measure
from .problem import LR, TASKS, initial_params
from .products import as_written
from .sinusoids import torch_model

SHOTS, META_LR, STEPS, SCANNED = 5, 1e-3, (1, 5), 1000
LABELS = {"eager": "step by step", "compiled": "each step compiled",
          "as_written": "one graph, as written", "whole": "one graph", "jax": "JAX, scan"}
TAKES = {"eager": 200, "compiled": 500, "as_written": 2000, "whole": 2000, "jax": 2000}  # of a call
LEARNED, SEEDS = 10_000, 5                                   # steps until the loss is looked at
HAS_JAX = importlib.util.find_spec("jax") is not None
ONE_CORE = "--xla_cpu_multi_thread_eigen=false"
Run = Callable[[int], None]


def meta_loss(steps: int, seed: int = 0) -> ml.MetaLoss:
    """MAML, from the start of a seed."""
    return ml.MAML(torch_model(initial_params(seed)), F.mse_loss, lr=LR, steps=steps)


def ours(steps: int, **options: Any) -> Run:
    """`ml.meta_train` of one J, again and again."""
    J, tasks = meta_loss(steps), ml.tasks.Sinusoids(shots=SHOTS)

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


def jax_scan(steps: int) -> Callable[[Any, Any], Any]:
    """Many steps of the same run in JAX, Adam written out (Kingma & Ba 2015)."""
    import jax
    import jax.numpy as jnp

    theta = initial_params()
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

    return jax.jit(lambda state, keys: jax.lax.scan(step, state, keys), donate_argnums=0)


def jax_start(seed: int = 0) -> tuple[Any, ...]:
    """Parameters, the two means of Adam, and a count."""
    import jax.numpy as jnp

    theta = {name: jnp.asarray(a) for name, a in initial_params(seed).items()}
    return theta, *({name: jnp.zeros_like(p) for name, p in theta.items()} for _ in "mv"), \
        jnp.zeros(())


def jax_run(scan: Callable[[Any, Any], Any]) -> Run:
    """A run of JAX, which goes on at each call."""
    import jax

    now = [jax_start()]

    def run(n: int) -> None:
        for first in range(0, n, SCANNED):
            keys = jax.random.split(jax.random.PRNGKey(first), SCANNED)
            now[0], values = scan(now[0], keys)
            jax.block_until_ready(values)
    return run


def runs(steps: int) -> dict[str, Run]:
    """All ways, ready to be called with a number of steps."""
    found = {"eager": ours(steps), "compiled": ours(steps, compile=True, watch=lambda loss: None),
             "as_written": ours(steps, compile=True), "whole": ours(steps, compile=True)}
    return found | ({"jax": jax_run(jax_scan(steps))} if HAS_JAX else {})


def compare(steps: int, rounds: int) -> dict[str, Any]:
    """Compile each, then time them in turns."""
    found, first = runs(steps), {}
    for way, run in found.items():
        begin = time.perf_counter()
        with as_written() if way == "as_written" else contextlib.nullcontext():
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


def products_alone(steps: int) -> dict[str, Any]:
    """Milliseconds of the products of matrices in a step, each timed for itself."""
    J = meta_loss(steps)
    descent = OuterStep(J, torch.optim.Adam(J.parameters(), lr=META_LR))
    like = ml.tasks.Sinusoids(shots=SHOTS).batch(TASKS, seed=0)
    own = [*(each[0] for each in first_numbers(descent)), like.support.x, like.support.y,
           like.query.x, like.query.y]
    written = graph_of(descent, like)[0]
    graph = make_fx(written, decomposition_table=select_decomp_table(), tracing_mode="fake")(
        descent.state(), list(descent.shared().values()), own).graph
    Products()(graph)
    nodes = [node for node in graph.nodes if node.target in (MM, BMM)]
    return {"products": len(nodes), "ms": sum(map(product_ms, nodes))}


def product_ms(node: Any) -> float:
    """Milliseconds of one product, of numbers that lie as they do in the graph."""
    def like(value: Any) -> torch.Tensor:
        return torch.empty_strided(value.shape, value.stride()).normal_()
    a, b, out = (like(each.meta["val"]) for each in (*node.args, node))
    product = torch.mm if node.target is MM else torch.bmm
    return statistics.median(measure.timed(lambda: product(a, b, out=out), 200) for _ in range(9))


def held_out(J: ml.MetaLoss) -> float:
    """The loss on held-out tasks, after the inner steps."""
    found = ml.evaluate(J, ml.tasks.Sinusoids(shots=SHOTS), n_tasks=1000, steps=[J.inner.steps])
    return found.per_task[:, 0].mean().item()


def learned(steps: int) -> dict[str, list[float]]:
    """The loss on held-out tasks after so many steps, from several starts."""
    found: dict[str, list[float]] = {"whole": []}
    J = meta_loss(steps)                                     # one, so that one graph does for all
    for seed in range(SEEDS):
        J.load_state_dict(meta_loss(steps, seed).state_dict())
        ml.meta_train(J, ml.tasks.Sinusoids(shots=SHOTS), steps=LEARNED, batch_size=TASKS,
                      seed=seed, progress=False, device="cpu", compile=True)
        found["whole"].append(held_out(J))
    return found | ({"jax": jax_learned(steps)} if HAS_JAX else {})


def jax_learned(steps: int) -> list[float]:
    """The same of JAX, with its own tasks."""
    import jax
    import numpy as np

    scan, found = jax_scan(steps), []
    for seed in range(SEEDS):
        keys = jax.random.split(jax.random.PRNGKey(seed), LEARNED)
        (theta, *_), _ = scan(jax_start(seed), keys)
        J = meta_loss(steps)
        J.model.load_state_dict({name: torch.from_numpy(np.array(p)) for name, p in theta.items()})
        found.append(held_out(J))
    return found


def main() -> None:
    """Measure, and write `results/whole_run.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 7))
    if arguments is None: return
    os.environ.setdefault("XLA_FLAGS", ONE_CORE)
    measured, bound, losses = {}, {}, {}
    for steps in STEPS:
        print(f"{steps} inner step{'s' * (steps > 1)}", flush=True)
        measured[steps] = compare(steps, arguments.rounds)
        bound[steps] = products_alone(steps)
        print(f"  its {bound[steps]['products']} products alone {bound[steps]['ms']:.3f} ms")
        losses[steps] = learned(steps)
        print("  held-out loss after", LEARNED, losses[steps], flush=True)
    packages = ["metalit", "torch", *(["jax"] if HAS_JAX else [])]
    measure.write_json("whole_run", {
        "what": "one step of a training run (sampling, value, gradient, Adam), network 1-40-40-1, "
        "25 sine tasks of 5 + 5 points", "command": "python -m benchmarks.whole_run",
        "labels": LABELS, "steps_of_a_call": TAKES, "rounds": arguments.rounds,
        "machine": measure.machine(), "versions": measure.versions(*packages),
        "inner_steps": measured, "products_alone": bound, "after": LEARNED, "held_out": losses})


if __name__ == "__main__":
    main()
