"""Shared by all tests: small models, the quadratic bed and its closed forms."""
import gc

import pytest
import torch

import metalit as ml

torch.set_num_threads(1)  # the tensors are small, and CI has few cores


def pytest_collection_finish():
    "What was imported stays: to look through it at each collection was a tenth of the tests' time."
    gc.collect()
    gc.freeze()


@pytest.fixture
def bowls() -> ml.Task:
    "Five tasks in four dimensions; curvatures differ between tasks, support and query."
    return ml.tasks.Quadratics(dim=4, shift=1.0).batch(5, seed=3)


@pytest.fixture
def start() -> torch.Tensor:
    "A start that is nobody's optimum."
    return torch.tensor([0.7, -1.3, 2.1, 0.4], dtype=torch.float64)


@pytest.fixture
def sines() -> ml.Task:
    "Six sine tasks in float64."
    return ml.tasks.Sinusoids(shots=4, queries=3).batch(6, seed=1).to(dtype=torch.float64)


@pytest.fixture
def small_net() -> torch.nn.Module:
    "Smooth, so that finite differences are exact to their order."
    return ml.models.mlp(1, 5, 1, activation=torch.nn.Tanh, seed=2).double()
