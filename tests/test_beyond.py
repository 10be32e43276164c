"""One long task: derivatives of weights, of a jitter, of distilled examples; the command.

The classes are those of `reproduce.beyond`, which its chapter writes once more for readers.
"""
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch import nn

import metalit as ml
from reproduce import beyond


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


N, W = 8, 2.0


class Squared(beyond.Weighed):
    "The same weights before squared error, for which there are closed forms."
    def forward(self, prediction, y):
        weights = self.z[y["which"]].sigmoid()
        return (weights * (prediction - y["label"]).square()[:, 0]).sum() / weights.sum()


@pytest.fixture(scope="module")
def data():
    x = N**0.5 * torch.linalg.qr(normal(N, 3)).Q * torch.tensor([0.8, 1.0, 1.2])
    return x, normal(N, 1, seed=1), normal(5, 3, seed=2), normal(5, 1, seed=3)


def line(start: torch.Tensor) -> nn.Module:
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad(): model.weight.copy_(start.mT)
    return model


def query_slope(phi, x, y): return 2 * x.mT @ (x @ phi - y) / len(x)


def slope_of_weights(data, steps, lr, rule=None, numbers=None, count=N):
    x, y, x_q, y_q = data
    loss = Squared(count).double()
    with torch.no_grad(): loss.z.copy_(torch.linspace(-1, 1, count))
    numbers = torch.arange(N) if numbers is None else numbers
    task = ml.Task(ml.Split(x[None], {"label": y[None], "which": numbers[None]}),
                   ml.Split(x_q[None], y_q[None]))
    J = ml.MetaLoss(line(normal(3, 1, seed=4)), F.mse_loss, inner=ml.SGD(lr, steps, loss=loss),
                    gradient=rule)
    J(task).backward()
    return loss.z.grad, loss.z.detach().sigmoid()


def test_one_step_weighs_examples_by_how_their_gradients_agree(data):
    x, y, x_q, y_q = data
    found, w = slope_of_weights(data, 1, 0.1)
    theta = normal(3, 1, seed=4)
    g = 2 * (x @ theta - y) * x
    average = (w[:, None] * g).sum(0) / w.sum()
    there = query_slope(theta - 0.1 * average[:, None], x_q, y_q)
    close(found, -0.1 * w * (1 - w) / w.sum() * ((g - average) @ there)[:, 0])


@pytest.mark.parametrize("rule", [ml.Exact, ml.MixedMode])
def test_at_rest_it_is_the_influence_of_weighted_least_squares(data, rule):
    x, y, x_q, y_q = data
    found, w = slope_of_weights(data, 60, 0.4, rule())
    gram = x.mT @ (w[:, None] * x)
    phi = torch.linalg.solve(gram, x.mT @ (w[:, None] * y))
    g = 2 * (x @ phi - y) * x
    influence = -(g @ torch.linalg.solve(2 * gram / w.sum(), query_slope(phi, x_q, y_q)))[:, 0]
    close(found, w * (1 - w) * influence / w.sum(), 1e-8)


def test_examples_that_share_a_weight_share_its_slope(data):
    """The slope of a shared weight is the sum of the slopes of as many equal ones.

    Break it: let the numbers be forgotten, and each example takes the weight of its place.
    """
    pairs = torch.arange(N) % 2
    shared, _ = slope_of_weights(data, 3, 0.2, numbers=pairs, count=2)
    h = 1e-6

    def value(z):
        x, y, x_q, y_q = data
        loss = Squared(2).double()
        with torch.no_grad(): loss.z.copy_(z)
        task = ml.Task(ml.Split(x[None], {"label": y[None], "which": pairs[None]}),
                       ml.Split(x_q[None], y_q[None]))
        return ml.MetaLoss(line(normal(3, 1, seed=4)), F.mse_loss,
                           inner=ml.SGD(0.2, 3, loss=loss))(task).item()
    z = torch.linspace(-1, 1, 2, dtype=torch.float64)
    for i, e in enumerate(torch.eye(2, dtype=torch.float64)):
        assert shared[i].item() == pytest.approx((value(z + h * e) - value(z - h * e)) / (2 * h),
                                                 rel=1e-6)


def test_a_jitter_is_ridge_regression(data):
    x, y, x_q, y_q = data
    noise = N**0.5 * torch.linalg.qr(normal(N, 3, seed=5)).Q
    loss = beyond.Jittered(noise, 1).double()
    with torch.no_grad(): loss.log_sigma.fill_(torch.tensor(0.4).double().log())
    support = ml.Split(x[None], {"y": y[None], "which": torch.zeros(1, N, dtype=torch.long)})
    J = ml.MetaLoss(line(normal(3, 1)), F.mse_loss, inner=ml.SGD(0.3, 80, loss=loss))
    J(ml.Task(support, ml.Split(x_q[None], y_q[None]))).backward()
    s2 = loss.log_sigma.detach().exp().square()
    ridge = x.mT @ x + N * s2 * torch.eye(3)
    phi = torch.linalg.solve(ridge, x.mT @ y)
    close(J.adapt(support)["weight"][0].mT, phi, 1e-8)
    right = -2 * N * s2 * query_slope(phi, x_q, y_q).mT @ torch.linalg.solve(ridge, phi)
    close(loss.log_sigma.grad[0], right.squeeze(), 1e-6)


def test_distilled_examples_are_looked_up_by_their_number_and_learn():
    "Two sets: each task descends on its own, and the slope of one is nothing to the other."
    x = normal(2, 4, 2).float()
    loss = beyond.Distilled(x, torch.tensor([0, 1, 0, 1]))
    support = ml.Split(torch.zeros(2, 1, 2), torch.arange(2)[:, None])
    query = ml.Split(normal(2, 6, 2, seed=1).float(), torch.arange(6).expand(2, -1) % 2)
    J = ml.MetaLoss(beyond.net(0), F.cross_entropy, inner=ml.SGD(0.5, 2, loss=loss))
    model = beyond.net(0)
    for i in range(2):
        plain = ml.Learner(model, F.cross_entropy, inner=ml.SGD(0.5, 2))
        expected = plain.adapt(ml.Split(x[i:i + 1], torch.tensor([[0, 1, 0, 1]])))
        found = J.adapt(support)
        for name, value in expected.items(): torch.testing.assert_close(found[name][i], value[0])
    first = J.per_task(ml.Task(support, query))[0][0]
    slope, = torch.autograd.grad(first, [loss.x])
    assert slope[0].abs().max() > 0 and (slope[1] == 0).all()


def test_the_command_writes_each_experiment_and_keeps_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, small in {"STARTS": 2, "JITTERED_STEPS": 20, "LONG": 12}.items():
        monkeypatch.setattr(beyond, name, small)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "beyond.json").write_text('{"experiments": {"other": 1}}')
    for name in beyond.EXPERIMENTS:
        beyond.main(["--only", name, "--share", "0.03", "--seeds", "2"])
    found = json.loads((tmp_path / "results" / "beyond.json").read_text())["experiments"]
    assert found["other"] == 1
    rows = found["weights"]["rows"]
    assert rows["the clean set alone"]["less"] == {"mean": 0.0, "ci95": 0.0}
    assert rows["the right labels alone"]["mean"] > rows["all labels, equally"]["mean"]
    ridge = [row["mean"] for title, row in found["augmentation"]["rows"].items() if "best" in title]
    assert ridge[1] <= ridge[0] and "all 200, in 12 steps" in found["distillation"]["rows"]
