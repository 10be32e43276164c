"""What a user can get wrong in a meta-loss or a task: the message names the thing and the mend."""
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from metalit.tasks import quadratic_task

NAN = float("nan")


def net() -> nn.Module: return ml.models.mlp(1, 4, 1)


def task(support=(2, 3), query=(2, 3)) -> ml.Task:
    return ml.Task(*(ml.Split(torch.ones(*shape, 1), torch.ones(*shape, 1))
                     for shape in (support, query)))


def with_value(field: str, value: float) -> ml.Task:
    bad = task()
    which, name = field.split(".")
    getattr(getattr(bad, which), name)[1, 2] = value
    return bad


BAD_TASKS = {
    "empty support": (task(support=(2, 0)), r"support.x has shape \(2, 0, 1\): no examples in it"),
    "no tasks": (task((0, 3), (0, 3)), "no tasks in it"),
    "lengths": (ml.Task(ml.Split(torch.ones(2, 3, 1), torch.ones(2, 4, 1)), task().query),
                r"support.x has shape \(2, 3, 1\) and support.y \(2, 4, 1\)"),
    "batch sizes": (task((2, 3), (3, 3)), "support holds 2 tasks and query 3"),
    "no task axis": (ml.Task(ml.Split(torch.ones(3), torch.ones(3)), task().query),
                     r"support.x has shape \(3,\), and no task axis.*tensor\[None\]"),
    "not a task": (torch.ones(3), r"a task is Task\(Split\(x, y\), Split\(x, y\)\)"),
    "one split only": (ml.Split(torch.ones(2, 3, 1), torch.ones(2, 3, 1)), r"found Split"),
    "not tensors": (([[1.0]], [[2.0]]), "a task is Task"),
    "numbers in place of tensors": ((([1.0], [1.0]), ([1.0], [1.0])),
                                    r"support.x\[0\] is a float; a tensor is needed"),
    "NaN in support": (with_value("support.x", NAN),
                       "support.x holds values that are not finite.* first in task 1"),
    "infinite query target": (with_value("query.y", math.inf),
                              "query.y holds values that are not finite"),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_task(name):
    bad, message = BAD_TASKS[name]
    J = ml.MAML(net(), F.mse_loss)
    with pytest.raises(ValueError, match=message): J(bad)
    with pytest.raises(ValueError, match=message): J.curve(bad)
    with pytest.raises(ValueError, match=message): J.report(bad)


def test_missing_task_axis_of_samples_with_features():
    "x of shape (S, features) looks like a batch of S tasks; the model cannot read their shape."
    bad = ml.Task(ml.Split(torch.ones(5, 1), torch.ones(5, 1)),
                  ml.Split(torch.ones(5, 1), torch.ones(5, 1)))
    J = ml.MAML(ml.models.mlp(3, 4, 1), F.mse_loss)
    with pytest.raises(RuntimeError, match=r"x of shape \(1,\): .*is the task axis missing"):
        J(bad)


def test_wrong_input_size_names_the_shapes():
    J = ml.MAML(ml.models.mlp(3, 4, 1), F.mse_loss)
    message = r"(?s)\(6x1 and 3x4\).*on the examples of one task, x of shape \(3, 1\): model"
    with pytest.raises(RuntimeError, match=message) as found: J(task())
    assert "axis" not in str(found.value.__notes__) if hasattr(found.value, "__notes__") else True


def test_adapt_looks_at_the_support_set():
    J = ml.MAML(net(), F.mse_loss)
    with pytest.raises(ValueError, match="no examples"): J.adapt(task(support=(2, 0)).support)


BAD_MODELS = {"no module": (lambda x: x, TypeError, "the model is a function"),
              "no parameters": (nn.ReLU(), ValueError, "ReLU has nothing to learn: of its 0 par"),
              "frozen": (net().requires_grad_(False), ValueError, "of its 4 parameters none asks"),
              "running statistics": (
                  nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), ValueError,
                  r"layer '1' \(BatchNorm2d\) keeps running statistics.*track_running_stats=False"
              ),
              "instance norm": (
                  nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True)),
                  ValueError, r"layer '1' \(InstanceNorm2d\)"
              )}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(name):
    model, error, message = BAD_MODELS[name]
    with pytest.raises(error, match=message): ml.MAML(model, F.mse_loss)(task())


def test_the_mend_that_the_batch_norm_error_names_works():
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="replace_all_batch_norm_modules_"):
        ml.MAML(model, F.mse_loss)(ml.tasks.Sinusoids().batch(2))
    torch.func.replace_all_batch_norm_modules_(model)
    assert torch.isfinite(ml.MAML(model, F.mse_loss)(ml.tasks.Sinusoids().batch(2)))


@pytest.mark.parametrize(("loss", "found"), [
    (lambda prediction, y: (prediction - y) ** 2, r"a tensor of shape \(3, 1\)"),
    (lambda prediction, y: 0.5, "float"),
    (lambda prediction, y: None, "NoneType")])
def test_task_loss_that_is_no_scalar(loss, found):
    with pytest.raises(ValueError,
                       match=f"the task loss returned {found}; it must return one number per task"):
        ml.MAML(net(), loss)(task())


@pytest.mark.parametrize("lr", [0.0, -0.1, NAN, math.inf])
def test_step_size(lr):
    with pytest.raises(ValueError, match="must be a finite number above 0"): ml.SGD(lr=lr)


@pytest.mark.parametrize("steps", [-1, 1.5, True, "two"])
def test_number_of_steps(steps):
    with pytest.raises(ValueError, match="whole number, 0 or more"): ml.SGD(steps=steps)
    with pytest.raises(ValueError, match="whole number, 0 or more"):
        ml.MAML(net(), F.mse_loss).adapt(task().support, steps=steps)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_examples_of_a_step(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"): ml.SGD(batch_size=batch_size)


@pytest.mark.parametrize("chunk_size", [0, -2])
def test_chunk_size(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size={chunk_size}"):
        ml.MAML(net(), F.mse_loss, chunk_size=chunk_size)


def test_terms():
    with pytest.raises(TypeError, match="does not say what it measures"):
        ml.MetaLoss(net(), F.mse_loss, terms=ml.Term())(task())
    with pytest.raises(ValueError, match="the weight of QueryLoss is nan"): NAN * ml.QueryLoss()
    with pytest.raises(ValueError, match=r"the weight of QueryLoss is '0\.1'; a finite"):
        "0.1" * ml.QueryLoss()
    with pytest.raises(TypeError): ml.QueryLoss() + 3
    with pytest.raises(TypeError, match="a meta-loss is a sum of terms; found ReLU"):
        ml.Sum((1.0, nn.ReLU()))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.tasks.Sinusoids(shots=0), "shots=0"),
    (lambda: ml.tasks.Sinusoids(queries=0), "queries=0"),
    (lambda: ml.tasks.Sinusoids(grid=0), "grid=0"),
    (lambda: ml.tasks.Sinusoids(amplitude=(5, 1)), "amplitude=.*lower limit comes first"),
    (lambda: ml.tasks.Quadratics(dim=0), "dim=0"),
    (lambda: ml.tasks.Quadratics(eigenvalues=(0, 1)), "two positive limits"),
    (lambda: ml.models.mlp(3), "an input and an output size"),
    (lambda: ml.models.mlp(3, 0, 1), "an input and an output size"),
    (lambda: ml.models.mlp(1, 1, init="zeros"), "init='zeros'")])
def test_families_and_models(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_curvature_must_be_positive_definite():
    with pytest.raises(torch.linalg.LinAlgError):
        quadratic_task(-torch.eye(2)[None], torch.zeros(1, 2))


def test_a_draw_asks_for_one_row_of_numbers_per_task():
    class Wrong(ml.tasks.Family):
        def draw(self, n_tasks, random): return random.uniform((5, 1))

    with pytest.raises(ValueError, match=r"shape \(5, 1\): its first axis is that of the 3 tasks"):
        Wrong().batch(3)


@pytest.mark.parametrize("ask", [lambda family: family.batch(1), lambda family: family.held_out(1),
                                 lambda family: list(family.stream(1, 1))])
def test_family_without_a_way_to_make_tasks(ask):
    with pytest.raises(TypeError, match=r"Family does not say how to make tasks.*draw.*sample"):
        ask(ml.tasks.Family())


def test_large_finite_values_whose_sum_overflows_are_welcome():
    large = task()
    large.query.x.fill_(3e38)
    assert large.query.x.sum().isinf()
    ml.tasks.check_task(large)


@pytest.mark.parametrize(("steps", "message"), [
    (3, r"steps=3: after how many"), ((), r"steps=\(\): after how many"),
    ((0, -1), "steps=-1: the"),
    ((1.5,), "steps=1.5: the number"), ((True,), "steps=True")])
def test_after_how_many_steps_to_look(steps, message):
    J = ml.MAML(net(), F.mse_loss)
    with pytest.raises(ValueError, match=message): J.curve(task(), steps)
    with pytest.raises(ValueError, match=message):
        ml.evaluate(J, ml.tasks.Sinusoids(), n_tasks=2, steps=steps)


def test_numbers_of_numpy_are_numbers():
    assert ml.SGD(steps=np.int64(3)).steps == 3 and type(ml.SGD(steps=np.int64(3)).steps) is int
    with pytest.raises(ValueError, match="whole number"): ml.SGD(steps=np.float64(3))


@pytest.mark.parametrize(("inner", "message"), [
    (ml.SGD, r"the class SGD itself; one of its kind is needed: write inner=ml.SGD\(lr=0.01"),
    (torch.optim.SGD, r"torch.optim's SGD, which writes.*write inner=ml.SGD\(lr=0.01, steps=1\)"),
    (torch.optim.Adam([torch.zeros(1)]), "torch.optim's Adam"), ("sgd", "inner is 'sgd'"),
    (0.01, "inner is 0.01, which is no inner loop")])
def test_what_is_no_inner_loop(inner, message):
    with pytest.raises(TypeError, match=message): ml.MetaLoss(net(), F.mse_loss, inner=inner)


@pytest.mark.parametrize("size", [0, 2.0, 1.5, True, -1])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match=f"batch_size={size}: how many support"):
        ml.SGD(batch_size=size)
    with pytest.raises(ValueError, match=f"chunk_size={size}: how many tasks"):
        ml.MAML(net(), F.mse_loss, chunk_size=size)


# One task without its task axis


class Pooled(nn.Module):
    "Adds the axis of features itself, and has a linear layer of what all examples have in common."
    def __init__(self):
        super().__init__()
        self.each, self.whole = nn.Linear(1, 4), nn.Linear(4, 1)

    def forward(self, x):
        each = self.each(x[:, None])
        return (each + self.whole(each.mean(0)))[:, 0]


NO_AXIS = {
    "one feature": (net, (10, 1), (10, 1), r"shape \(10, 1\), which says 10 tasks with 1 exam"),
    "three features": (lambda: ml.models.mlp(3, 4, 3), (5, 3), (5, 3), r"layer '0' \(Linear\)"),
    "behind another layer": (lambda: nn.Sequential(nn.Tanh(), nn.LayerNorm(1), net()), (10, 1),
                             (10, 1), r"layer '2.0' \(Linear\) would take the examples"),
    "pictures": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(0), nn.Linear(9, 1)),
                 (10, 1, 5, 5), (10, 1), r"layer '0' \(Conv2d\) would"),
}


@pytest.mark.parametrize("name", NO_AXIS)
def test_one_task_is_not_taken_for_many(name):
    make, x, y, message = NO_AXIS[name]
    x, y = torch.ones(x), torch.ones(y)
    J = ml.MAML(make(), F.mse_loss)
    for call in (lambda: J.adapt((x, y)), lambda: J(((x, y), (x, y))), lambda: J.predict({}, x)):
        for _ in range(2):
            with pytest.raises(ValueError, match=message): call()
    with pytest.raises(ValueError, match=r"by J\.adapted\(x, y\); x\[None\].*x\[:, None\]"):
        J.adapt((x, y))
    if name != "pictures": J.adapt((x[:, None], y[:, None]))         # many tasks of one example


GOOD = {
    "features": (net, (4, 10, 1), (4, 10, 1)), "one example": (net, (4, 1, 1), (4, 1, 1)),
    "words": (lambda: nn.Embedding(7, 1), (4, 5), (4, 5, 1)),
    "no features": (Pooled, (4, 5), (4, 5)),
    "as many examples as neurons": (Pooled, (5, 4), (5, 4)),
    "one example without features": (Pooled, (4, 1), (4, 1)),
    "pictures": (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(9, 1)),
                 (4, 3, 1, 5, 5), (4, 3, 1)),
    "series": (lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 5), nn.Flatten()),
               (4, 3, 5), (4, 3, 1)),
}


@pytest.mark.parametrize("name", GOOD)
def test_no_false_alarm(name):
    make, x, y = GOOD[name]
    x = torch.ones(x, dtype=torch.int64) if name == "words" else torch.ones(x)
    y = torch.ones(y)
    assert ml.MAML(make(), F.mse_loss)(((x, y), (x, y))).isfinite()


MANY = nn.Sequential(*(nn.Linear(1, 1) for _ in range(200)))
TABLE = torch.zeros(300, 20)
LONG = {
    "a loss": lambda: ml.MAML(net(), TABLE),
    "an inner loop that is a model": lambda: ml.MetaLoss(net(), F.mse_loss, inner=MANY),
    "a pooling": lambda: ml.MetaLoss(net(), F.mse_loss, pooling=list(range(1000))),
    "a weight": lambda: ml.QueryLoss() * TABLE,
    "a part of a sum": lambda: ml.terms.Sum([TABLE, MANY]),
    "weights of steps": lambda: ml.EveryStep([*[0.1] * 500, math.nan]),
    "steps": lambda: ml.SGD(0.1, TABLE),
    "steps to look at": lambda: ml.MAML(net(), F.mse_loss).curve(task(), [*[0] * 500, -1]),
    "a rate": lambda: ml.SGD(lr=list(range(1000))),
    "no rates": lambda: ml.SGD(lr=dict.fromkeys(range(500), 0.1)),
    "patterns": lambda: ml.ANIL(MANY, F.mse_loss, inner=ml.Masked(MANY, only="no such")),
    "names of tensors": lambda: ml.MAML(MANY, F.mse_loss, lr={"no such": 0.1, "*": 0.2}),
    "momentum": lambda: ml.SGD(0.1, momentum=list(range(1000))),
    "an optimizer": lambda: ml.meta_train(
        ml.MAML(net(), F.mse_loss), ml.tasks.Sinusoids(), steps=1, optimizer=list(range(1000))),
    "who looks on": lambda: ml.meta_train(
        ml.MAML(net(), F.mse_loss), ml.tasks.Sinusoids(), steps=1, watch=list(range(1000))),
    "a number of steps of a run": lambda: ml.meta_train(
        ml.MAML(net(), F.mse_loss), ml.tasks.Sinusoids(), steps=list(range(1000))),
    "no tensor": lambda: ml.MAML(net(), F.mse_loss)(
        ml.Task(ml.Split(torch.ones(2, 3, 1), {}), task().query)),
    "a cell": lambda: ml.tasks.Table(
        {"who": ["a"] * 3, "x": ["word " * 100] * 3, "y": [1, 2, 3]}, task="who", x="x", y="y"),
    "columns": lambda: ml.tasks.Table({f"column {i}": [1] for i in range(300)},
                                      task="who", x="x", y="y")}


@pytest.mark.parametrize("name", LONG)
def test_a_message_stays_a_sentence_whatever_was_given(name):
    "No pasted tensor, no dictionary of many lines, no two hundred names."
    with pytest.raises((TypeError, ValueError)) as raised: LONG[name]()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 450, message
    assert "  " not in message and "0., 0., 0." not in message


@pytest.mark.parametrize("old", ["comparison", "compiled", "judge"])
def test_what_an_old_module_has_not_is_said_with_its_name(old):
    module = importlib.import_module(f"metalit.{old}")
    with pytest.raises(AttributeError, match=rf"metalit.{old} has no '__nothing__'"):
        _ = module.__nothing__
