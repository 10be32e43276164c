"""A head in closed form: the normal equations, their derivative, classes, padding, refusals."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from metalit.inner.ridge import ridge


def small(outputs=1, seed=0):
    return ml.models.mlp(1, 6, outputs, activation=nn.Tanh, seed=seed).double()


@pytest.fixture
def waves():
    return ml.tasks.Sinusoids(shots=4, queries=3).batch(3, seed=1).to(dtype=torch.float64)


@pytest.fixture
def classes():
    "Two features, four ways; in each task the class is the place of a blob."
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(4).repeat(3)[None].expand(2, -1)
    centres = torch.randn(2, 4, 1, generator=generator, dtype=torch.float64)

    def drawn():
        return centres[torch.arange(2)[:, None], y] + 0.1 * torch.randn(
            2, 12, 1, generator=generator, dtype=torch.float64)
    return ml.Task(ml.Split(drawn(), y), ml.Split(drawn(), y))


def plain(model, task, weight, loss, stretch=(1.0, 0.0), ways=None):
    "Task by task, by least squares on features with a penalty appended; shares no code."
    total = 0.0
    for i in range(len(task.support.x)):
        f = model[:-1](task.support.x[i])
        y = task.support.y[i]
        if ways: y = torch.eye(ways, dtype=f.dtype)[y]
        X = torch.cat([f, torch.ones(len(f), 1, dtype=f.dtype)], 1)
        penalty = torch.eye(X.shape[1], dtype=f.dtype) * (len(f) * weight) ** 0.5
        head = torch.linalg.lstsq(torch.cat([X, penalty]), torch.cat(
            [y, torch.zeros(X.shape[1], y.shape[1], dtype=f.dtype)])).solution
        q = model[:-1](task.query.x[i])
        answer = torch.cat([q, torch.ones(len(q), 1, dtype=f.dtype)], 1) @ head
        total = total + loss(stretch[0] * answer + stretch[1], task.query.y[i])
    return total / len(task.support.x)


@pytest.mark.parametrize("examples", [2, 7, 8, 30])
def test_the_head_solves_the_normal_equations_on_both_sides_of_the_number_of_features(examples):
    f, y = torch.randn(examples, 7).double(), torch.randn(examples, 2).double()
    weight, bias = ridge(f, y, 0.2)
    residual = f @ weight.T + bias - y
    torch.testing.assert_close(residual.T @ f / examples + 0.2 * weight, torch.zeros(2, 7).double(),
                               rtol=0, atol=1e-12)
    torch.testing.assert_close(residual.mean(0) + 0.2 * bias, torch.zeros(2).double(),
                               rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 2},
                                     {"gradient": ml.FirstOrder()}])
def test_value_and_gradient_are_those_of_a_plain_loop(options, waves):
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.05), **options)
    right = plain(model, waves, 0.05, F.mse_loss)
    torch.testing.assert_close(J(waves), right, rtol=0, atol=1e-10)
    theta = list(model[:-1].parameters())
    pairs = zip(torch.autograd.grad(J(waves), theta), torch.autograd.grad(right, theta),
                strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    head = torch.autograd.grad(J(waves), list(model[-1].parameters()))
    assert not any(gradient.any() for gradient in head)  # zeros, and not None


def test_classes_are_stretched_by_two_numbers_that_learn(classes):
    model = small(4)
    J = ml.R2D2(model, F.cross_entropy, weight=0.01, scale=7.0)
    scale, shift = J.inner.scale, J.inner.shift
    right = plain(model, classes, 0.01, F.cross_entropy, (scale, shift), ways=4)
    torch.testing.assert_close(J(classes), right, rtol=0, atol=1e-9)
    found = torch.autograd.grad(J(classes), [scale, *model[:-1].parameters()])
    for one, other in zip(found, torch.autograd.grad(right, [scale, *model[:-1].parameters()]),
                          strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert {"inner.scale", "inner.shift"} <= {name for name, _ in J.named_parameters()}


def test_numbers_are_stretched_and_moved_where_a_scale_is_given(waves):
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.05, scale=1.5))
    with torch.no_grad(): J.inner.shift.fill_(0.4)
    own = [J.inner.scale, J.inner.shift]
    right = plain(model, waves, 0.05, F.mse_loss, own)
    torch.testing.assert_close(J(waves), right, rtol=0, atol=1e-10)
    for one, other in zip(torch.autograd.grad(J(waves), own), torch.autograd.grad(right, own),
                          strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
        assert one.abs() > 1e-3


def test_the_penalty_learns_by_its_logarithm(waves):
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.05, learn=True))
    slope, = torch.autograd.grad(J(waves), [J.inner.log_weight])

    def at(weight):
        return ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, weight))(waves).item()
    h = 1e-5
    difference = (at(0.05 * (1 + h)) - at(0.05 * (1 - h))) / (2 * h)
    assert abs(slope.item() - difference) < 1e-6 * abs(difference) + 1e-9
    assert abs(slope) > 1e-6


def test_anil_without_end_arrives_there(waves):
    model = small()
    aim = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.1)).adapt(waves.support)
    inner = ml.Masked(model, lr=0.2, steps=2000, only="2.*", weight_decay=0.2)
    found = ml.MetaLoss(model, F.mse_loss, inner=inner).adapt(waves.support)
    for name in found: torch.testing.assert_close(found[name], aim[name], rtol=0, atol=1e-9)


def test_steps_follow_from_the_head(waves):
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.1, lr=0.3, steps=1))
    start = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.1)).adapt(waves.support)
    found = J.adapt(waves.support)
    for i in range(3):
        phi = {name: value[i].detach().requires_grad_() for name, value in start.items()}
        output = torch.func.functional_call(model, phi, waves.support.x[i])
        slopes = torch.autograd.grad(F.mse_loss(output, waves.support.y[i]), list(phi.values()))
        for (name, value), slope in zip(phi.items(), slopes, strict=True):
            torch.testing.assert_close(found[name][i], value - 0.3 * slope, rtol=0, atol=1e-12)


def test_the_exact_rule_and_mixed_mode_agree(waves):
    found = []
    for rule in (ml.Exact(), ml.MixedMode()):
        model = small()
        J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.1, 0.3, 2), gradient=rule)
        found.append(torch.autograd.grad(J(waves), list(model[:-1].parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_other_ways_and_other_names_of_classes(classes):
    J = ml.R2D2(small(9), F.cross_entropy, weight=0.01)          # a head of nine, tasks of four
    renamed = ml.Task(*(ml.Split(split.x, (split.y + 1) % 4) for split in classes))
    torch.testing.assert_close(J(classes), J(renamed), rtol=0, atol=1e-12)
    torch.testing.assert_close(J(classes), ml.R2D2(small(4), F.cross_entropy, weight=0.01)(classes),
                               rtol=0, atol=1e-12)
    x, y = classes.support.x[0], classes.support.y[0]
    adapted = J.adapted(x[y < 3], y[y < 3])
    assert adapted(x).shape == (12, 3)


def test_padding_says_nothing():
    generator = torch.Generator().manual_seed(0)

    def some(n): return torch.randn(n, 1, generator=generator, dtype=torch.float64)
    tasks = [ml.tasks.one(some(n), some(n), some(3), some(3)) for n in (2, 5, 9)]
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.05))
    batch = ml.tasks.padded(tasks)
    right = torch.stack([plain(model, task, 0.05, F.mse_loss) for task in tasks]).mean()
    for found in (J(tasks), J(batch)): torch.testing.assert_close(found, right, rtol=0, atol=1e-10)


def test_one_task_is_learned_by_itself(waves):
    "Also where the largest target would make a number of classes."
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.05))
    x, y = waves.support.x[0], 3 + 10 * waves.support.y[0]
    task = ml.tasks.one(x, y, x, y)
    torch.testing.assert_close(J.adapted(x, y)(x), J.predict(J.adapt(task.support), x[None])[0])


def test_what_was_learned_goes_along_to_another_model(waves):
    model = small()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Ridge(model, 0.1, learn=True, scale=2.0))
    with torch.no_grad(): J.inner.log_weight.fill_(-1.0), J.inner.shift.fill_(0.5)
    other = J.on(small(seed=5), F.mse_loss)
    assert (other.inner.log_weight.item(), other.inner.shift.item()) == (-1.0, 0.5)
    assert other.inner.log_weight is not J.inner.log_weight
    assert "weight=0.1, scale=2.0, learn=True" in repr(J.inner)


@pytest.mark.parametrize(("make", "words"), [
    (lambda task: ml.Ridge(small(), 0.0), "weight=0"),
    (lambda task: ml.Ridge(small(), lambda step, steps: 1.0), "no schedule"),
    (lambda task: ml.MetaLoss(m := small(2), F.mse_loss, inner=ml.Ridge(m, 1.0))(task),
     "2 outputs"),
    (lambda task: ml.MetaLoss(m := nn.Sequential(small(), nn.Tanh()), F.mse_loss,
                              inner=ml.Ridge(m, 1.0))(task), "does something to the output"),
    (lambda task: ml.MetaLoss(m := nn.Linear(1, 1, bias=False).double(), F.mse_loss,
                              inner=ml.Ridge(m, 1.0))(task), "bias"),
])
def test_what_cannot_be_fitted_is_named(make, words, waves):
    with pytest.raises(ValueError, match=words): make(waves)
