"""SharedHead: names do not matter, its first step by hand, other ways, other models, its errors."""
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, value_and_gradient
from torch import nn
from ways import in_one_way

import metalit as ml

WAYS = ("loop", "chunks", "chunks in a loop", "processes", "torch.func", "twice", "a list",
        "padded")


def net(ways=4, seed=0): return ml.models.mlp(2, 5, ways, activation=nn.Tanh, seed=seed).double()


def classes(ways=4, batch=6, seed=0):
    "Two examples of each class in either set, in an order of their own."
    random = ml.tasks.Random.of_steps(seed, [0], batch)
    y = random.order((batch, 2 * ways)).argsort(1) % ways
    return ml.Task(*(ml.Split(random.normal((batch, 2 * ways, 2), torch.float64), y)
                     for _ in range(2)))


def unicorn(model, **options): return ml.Unicorn(model, F.cross_entropy, 0.3, 3, **options)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_names_do_not_matter(steps, batching):
    task, order = classes(), torch.tensor([2, 0, 3, 1])
    other = ml.Task(*(ml.Split(x, order[y]) for x, y in task))
    J = ml.Unicorn(net(), F.cross_entropy, 0.3, steps, batching=batching)
    for one, another in zip(value_and_gradient(J, task), value_and_gradient(J, other), strict=True):
        close(one, another, 1e-13)
    if not steps: close(J(task).detach(), torch.tensor(4.0).double().log(), 1e-14)
    else: assert (J(task) - torch.tensor(4.0).log()).abs() > 1e-3


def test_the_first_step_writes_class_means_and_leaves_the_body():
    task, model = classes(3), net(7)
    J = ml.MetaLoss(model, F.cross_entropy, inner=ml.SharedHead(model, 0.3, 1))
    after = J.adapt(task.support)
    for i in range(6):
        f, y = model[:-1](task.support.x[i]), task.support.y[i]
        rows = [f.mean(0) / 3 - (y == c).double() @ f / 6 for c in range(3)]
        close(after["2.weight"][i], model[2].weight.mean(0) - 0.3 * torch.stack(rows))
        close(after["2.bias"][i], model[2].bias.mean().expand(3))
        for name in ("0.weight", "0.bias"):
            close(after[name][i], model.get_parameter(name), 1e-15)


def test_rows_that_are_equal_are_those_of_maml():
    model = net()
    with torch.no_grad():
        for p in model[2].parameters(): p.copy_(p.mean(0).expand_as(p))
    maml = value_and_gradient(ml.MAML(model, F.cross_entropy, 0.3, 3), classes())
    found = value_and_gradient(unicorn(copy.deepcopy(model)), classes())
    close(found[0], maml[0], 1e-13)
    body = model[0].weight.numel() + model[0].bias.numel()
    close(found[1][:body], maml[1][:body], 1e-13)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_computing(way):
    def make(**options): return unicorn(net(), **options)
    found, right = in_one_way(way, make, classes()), value_and_gradient(make(), classes())
    for one, other in zip(found, right, strict=True): close(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("way", ["compiled", "traced"])
def test_in_one_graph(way):
    def make(**options): return unicorn(net(), **options)
    for one, other in zip(in_one_way(way, make, classes()), value_and_gradient(make(), classes()),
                          strict=True): close(one, other)


@pytest.mark.parametrize("rule", [ml.MixedMode, ml.FirstOrder, partial(ml.Truncated, 1)])
def test_rules(rule):
    found = value_and_gradient(unicorn(net(), gradient=rule()), classes())
    right = value_and_gradient(unicorn(net()), classes())
    close(found[0], right[0])
    assert ((found[1] - right[1]).norm() < 1e-12) == (rule is ml.MixedMode)


def test_a_run_goes_on_to_the_last_bit(tmp_path):
    class Fresh(ml.tasks.Family):
        def draw(self, n_tasks, random):
            y = (torch.arange(6) % 3).expand(n_tasks, -1)
            return ml.Task(*(ml.Split(random.normal((n_tasks, 6, 1)), y) for _ in range(2)))

    def run(steps, **more):
        J = ml.Unicorn(ml.models.mlp(1, 4, 3, seed=0), F.cross_entropy, 0.3, 3)
        ml.meta_train(J, Fresh(), steps=steps, batch_size=4, progress=False, **more)
        return J
    whole = run(5)
    run(2, checkpoint=tmp_path)
    again = run(5, checkpoint=tmp_path)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", [unicorn, partial(ml.R2D2, loss=F.cross_entropy, weight=0.1)])
@pytest.mark.parametrize("ways", [2, 4, 9])
def test_other_numbers_of_ways_are_those_of_a_head_with_as_many(make, ways):
    "A head of four rows that are equal, and tasks of two, four and nine classes."
    model, fits, task = net(4), net(ways), classes(ways)
    with torch.no_grad():
        for p, q in zip(model.parameters(), fits.parameters(), strict=True):
            if p.shape == q.shape: q.copy_(p)
            else: q.copy_(p.mean(0).expand_as(q))
    close(make(model)(task), make(fits)(task), 1e-12)
    found = ml.evaluate(make(model), task, steps=[3], metric=ml.accuracy)
    assert found.per_task.shape == (6, 1)
    adapted = make(model).adapted(*(part[0] for part in task.support[:2]))
    assert adapted(task.query.x[0]).shape == (2 * ways, ways)


def test_errors():
    model = net()
    model[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'2.weight' is frozen.*ml.Prototypes"):
        unicorn(model)(classes())
    with pytest.raises(ValueError, match="SharedHead makes a head for the classes of a task"):
        ml.Unicorn(ml.models.mlp(1, 4, 1), F.mse_loss)(ml.tasks.Sinusoids().batch(2))
    assert repr(ml.SharedHead(net(), steps=2)).startswith("SharedHead(")
    twin = unicorn(net()).on(net(9, seed=3), F.cross_entropy)
    assert twin(classes(2)).isfinite() and twin.inner.steps == 3
