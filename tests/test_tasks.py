"""Families: shapes, limits, and random numbers that depend on seed and step alone."""
import math

import pytest
import torch

import metalit as ml
from metalit.tasks import curvature, quadratic_task, seeded_generator


def test_sinusoids_are_sinusoids_within_the_limits_of_the_paper():
    family = ml.tasks.Sinusoids(shots=5, queries=7)
    task = family.batch(400, seed=0)
    assert task.support.x.shape == task.support.y.shape == (400, 5, 1)
    assert task.query.x.shape == task.query.y.shape == (400, 7, 1)
    for split in task: assert -5 <= split.x.min() < -4.9 and 4.9 < split.x.max() <= 5
    # y = a·sin x + b·cos x with a = A cos(phase), b = −A sin(phase): solve for both from the
    # support set.
    x, y = (t.double() for t in task.support)
    basis = torch.cat([x.sin(), x.cos()], -1)
    a, b = torch.linalg.lstsq(basis, y).solution.squeeze(-1).unbind(-1)
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    torch.testing.assert_close(
        amplitude[:, None, None] * torch.sin(task.query.x.double() - phase[:, None, None]),
        task.query.y.double(), rtol=0, atol=1e-4
    )
    assert 0.1 <= amplitude.min() < 0.2 and 4.9 < amplitude.max() <= 5
    assert -1e-4 <= phase.min() < 0.1 and math.pi - 0.1 < phase.max() <= math.pi + 1e-4


def test_held_out_queries_are_a_grid_and_support_is_random():
    task = ml.tasks.Sinusoids(shots=5).held_out(3, seed=0)
    assert task.query.x.shape == (3, 100, 1)
    torch.testing.assert_close(task.query.x[2, :, 0], torch.linspace(-5, 5, 100))
    assert not torch.equal(task.support.x[0], task.support.x[1])


def test_batches_depend_on_seed_and_step_alone():
    family = ml.tasks.Sinusoids()
    before = torch.get_rng_state()
    stream = list(family.stream(batch_size=2, steps=4, seed=7))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(stream[3].support.x, family.batch(2, seed=7, step=3).support.x)
    assert torch.equal(next(family.stream(2, 4, seed=7, start=3)).query.y, stream[3].query.y)
    xs = {batch.support.x.sum().item() for batch in stream}
    xs |= {family.batch(2, seed=8, step=step).support.x.sum().item() for step in range(4)}
    xs |= {family.held_out(2, seed=seed).support.x.sum().item() for seed in range(8)}
    assert len(xs) == 16


def test_held_out_tasks_are_apart_from_every_training_stream():
    """Held-out generators have odd seeds, training ones even.

    PyTorch's CPU generator uses the lower 32 bits.
    """
    assert all(seeded_generator(seed, -1).initial_seed() % 2 == 1 for seed in range(50))
    assert all(seeded_generator(seed, step).initial_seed() % 2 == 0 for seed in range(5)
               for step in range(50))
    assert all(seeded_generator(seed, seed).initial_seed() < 2**32 for seed in range(50))


def test_quadratic_task_is_the_quadratic_that_was_asked_for(bowls):
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    again = quadratic_task(A, s, C, q)
    for (x, y), (x2, y2) in zip(bowls, again, strict=True):
        torch.testing.assert_close(x, x2, rtol=0, atol=1e-12)
        torch.testing.assert_close(y, y2, rtol=0, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(A)
    assert eigenvalues.min() >= 0.3 - 1e-9 and eigenvalues.max() <= 2 + 1e-9
    assert (A[0] - A[1]).abs().max() > 0.01 and (A - C).abs().max() > 0.01


def test_shared_curvature_is_shared():
    task = ml.tasks.Quadratics(dim=3, shared_curvature=True).batch(4)
    A, C = curvature(task.support)[0], curvature(task.query)[0]
    torch.testing.assert_close(A, A[:1].expand_as(A), rtol=0, atol=1e-12)
    torch.testing.assert_close(A, C, rtol=0, atol=1e-12)


def test_select_and_to_keep_task_axis_and_label_dtype():
    labels = torch.zeros(3, 2, dtype=torch.long)
    task = ml.Task(ml.Split(torch.ones(3, 2, 4), labels), ml.Split(torch.ones(3, 2, 4), labels))
    assert task.select(1).support.x.shape == (1, 2, 4) and task.select(-1).batch_size == 1
    assert task.select(slice(0, 2)).query.y.shape == (2, 2)
    moved = task.to(dtype=torch.float64)
    assert moved.support.x.dtype == torch.float64 and moved.support.y.dtype == torch.long


@pytest.mark.parametrize(("init", "std"),
                         [("uniform", 1 / math.sqrt(3 * 40)), ("finn", 0.01 * 0.88)])
def test_initialisations(init, std):
    "A uniform ±1/√40 has standard deviation 1/√120; a normal cut at two σ has 0.88 σ."
    before = torch.get_rng_state()
    layer = ml.models.mlp(1, 40, 40, 1, init=init, seed=5)[2]
    assert torch.equal(before, torch.get_rng_state())
    assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert (layer.bias.abs().max() == 0) == (init == "finn")
    assert torch.equal(layer.weight, ml.models.mlp(1, 40, 40, 1, init=init, seed=5)[2].weight)
    assert not torch.equal(layer.weight, ml.models.mlp(1, 40, 40, 1, init=init, seed=6)[2].weight)
