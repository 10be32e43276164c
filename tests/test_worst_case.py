"""WorstCase: the projection, value and gradients, TR-MAML by hand, a run, processes, its errors."""
import pytest
import torch
import torch.nn.functional as F
from helpers import backward, close, flat, quick
from torch import nn

import metalit as ml
from metalit.pooling.worst_case import on_simplex


def nearest(u):
    "The nearest distribution, by halving an interval for the number that is taken from all."
    low, high = u.min() - 1, u.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (u - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (u - low).clamp_min(0)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_the_projection(n):
    generator = torch.Generator().manual_seed(n)
    for scale in (0.01, 1.0, 100.0):
        u = scale * torch.randn(n, generator=generator, dtype=torch.float64)
        close(on_simplex(u), nearest(u), 1e-12)


def numbered(task, ids): return ml.Task(task.support, task.query, torch.tensor(ids))


def weighed(net, scores, **options):
    J = ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.1, 2), pooling=ml.WorstCase(8).double(),
                    **options)
    J.pooling.scores.data = scores.clone()
    return J


IDS = [3, 1, 4, 1, 0, 7]
SCORES = torch.tensor([0.3, -0.1, 0.0, 0.2, -2.0, 0.1, 0.0, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"batching": "loop"},
                                     {"gradient": ml.FirstOrder()}], ids=str)
def test_value_and_gradients(options, small_net, sines):
    J = weighed(small_net, SCORES, **options)
    value = backward(J, numbered(sines, IDS))
    found, scores = flat(small_net), J.pooling.scores.grad
    maml = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2,
                   **{k: v for k, v in options.items() if k == "gradient"})
    shares, parts, slopes = nearest(1 / 8 + SCORES), [], []
    for b in range(6):
        parts.append(backward(maml, sines.select([b])))
        slopes.append(flat(small_net))
    weights = 8 / 6 * shares[IDS]
    assert weights[2] == 0 and weights[0] > 0.3
    close(value, (weights * torch.stack(parts)).sum())
    close(found, weights @ torch.stack(slopes))
    above = torch.stack(parts) - torch.stack(parts).mean()
    right = torch.zeros(8).double()
    for i, name in enumerate(IDS): right[name] -= above[i]
    close(scores, right)


def test_as_long_as_no_share_is_zero_it_is_tr_maml(small_net, sines):
    "p ← Π(p + η·loss), of all tasks, as the authors have it."
    tasks, eta, p = numbered(sines, range(6)), 0.003, torch.full((6,), 1 / 6).double()
    J = ml.MetaLoss(small_net, F.mse_loss, pooling=ml.WorstCase(6).double())
    descent = torch.optim.SGD(J.pooling.parameters(), lr=eta)
    losses = J.per_task(tasks)[0].detach()
    for _ in range(5):
        descent.zero_grad()
        J(tasks).backward()
        descent.step()
        p = nearest(p + eta * losses)
        close(J.pooling.distribution(), p, 1e-14)
    assert p.min() > 0 and p.max() > 0.2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_compiled(small_net, sines):
    J, eager = weighed(small_net, SCORES), weighed(small_net, SCORES)
    J.compile(backend="eager")
    close(backward(J, numbered(sines, IDS)), backward(eager, numbered(sines, IDS)))
    close(J.pooling.scores.grad, eager.pooling.scores.grad)
    for wrong in (-1, 8):                                    # a graph does not count from the end
        with pytest.raises(ValueError, match=f"a task has the id {wrong}, and WorstCase knows 8"):
            J(numbered(sines, [0, 1, 2, wrong, 3, 4]))


def test_a_run_over_tasks_that_one_has_goes_on_where_it_was(tmp_path):
    rows = torch.linspace(-1, 1, 6)[:, None]
    tasks = ml.tasks.Given([(rows, torch.sin(k * rows)) for k in range(5)], shots=3)

    def fresh():
        return ml.MetaLoss(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss, pooling=ml.WorstCase(5))
    whole, first, second = fresh(), fresh(), fresh()
    quick(whole, steps=6, tasks=tasks)
    quick(first, steps=6, tasks=tasks, checkpoint=tmp_path, max_minutes=1e-9)
    quick(second, steps=6, tasks=tasks, checkpoint=tmp_path)
    assert whole.pooling.scores.abs().min() > 0
    assert torch.equal(whole.pooling.scores, second.pooling.scores)


def test_what_has_no_share(small_net, sines):
    J = weighed(small_net, SCORES)
    with pytest.raises(ValueError, match="give its Task ids"): J(sines)
    with pytest.raises(ValueError, match="has the id 8, and WorstCase knows 8 tasks, 0 to 7"):
        J(numbered(sines, [0, 1, 2, 8, 3, 4]))
    with pytest.raises(ValueError, match="tasks=0: how many"): ml.WorstCase(0)


def test_ids_of_another_type(small_net, sines):
    "Bytes name tasks, and do not choose them, as a mask would; what names none is refused."
    J = ml.MetaLoss(small_net, F.mse_loss, pooling=ml.WorstCase(6).double())
    J.pooling.scores.data = SCORES[:6].clone()
    ids = torch.tensor([1, 5, 1, 2, 3, 4])
    right = backward(J, numbered(sines, ids.tolist())), J.pooling.scores.grad.clone()
    task = ml.Task(sines.support, sines.query, ids.to(torch.uint8))
    J.pooling.scores.grad = None
    for one, other in zip((backward(J, task), J.pooling.scores.grad), right, strict=True):
        close(one, other)
    for wrong in (torch.bool, torch.float32):
        with pytest.raises(ValueError, match=f"ids are of {wrong}.*ids.long"):
            J(ml.Task(sines.support, sines.query, ids.to(wrong)))


def test_it_is_a_part_with_parameters():
    pooling = ml.WorstCase(3)
    assert repr(pooling) == "WorstCase(tasks=3)"
    assert isinstance(pooling.scores, nn.Parameter)
