"""The problem that is timed: sinusoid regression (Finn et al. 2017, section 5.1).

A network 1-40-40-1 with ReLU, tasks of 10 support and 10 query points, inner step size 0.01.
Everything here is plain NumPy in float32, so that no library starts from another's arrays.
"""
from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

WIDTHS = (1, 40, 40, 1)
POINTS = 10  # in the support and in the query each
TASKS = 25
LR = 0.01


class Arrays(NamedTuple):
    """A batch of tasks, each array of shape `(tasks, points, 1)`."""

    support_x: np.ndarray
    support_y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray


def initial_params(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and biases under the names that `nn.Sequential` of `nn.Linear` and `nn.ReLU` has."""
    rng = np.random.default_rng(seed)
    params = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        bound = fan_in**-0.5
        weight = rng.uniform(-bound, bound, (fan_out, fan_in))
        bias = rng.uniform(-bound, bound, fan_out)
        params[f"{2 * layer}.weight"] = weight.astype(np.float32)
        params[f"{2 * layer}.bias"] = bias.astype(np.float32)
    return params


def sinusoids(tasks: int = TASKS, seed: int = 0) -> Arrays:
    """`tasks` sine waves, amplitude in [0.1, 5], phase in [0, π], inputs in [-5, 5]."""
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(0.1, 5.0, (tasks, 1, 1))
    phase = rng.uniform(0.0, np.pi, (tasks, 1, 1))
    support_x, query_x = rng.uniform(-5.0, 5.0, (2, tasks, POINTS, 1))
    support_y, query_y = (amplitude * np.sin(x - phase) for x in (support_x, query_x))
    return Arrays(*(a.astype(np.float32) for a in (support_x, support_y, query_x, query_y)))
