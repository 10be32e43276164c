"""J as a function that PyTorch transforms, traces and exports, and learning as one program."""
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from test_any_model import Named, images, named_task, numbers, random
from test_any_model import weighted as weighted_loss
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml
from metalit.program import as_program
from metalit.tasks.task import transformed

LR = 0.1


def small(): return ml.models.mlp(3, 6, 1, activation=nn.Tanh, seed=1).double()


def classifier(): return nn.Sequential(nn.Flatten(), ml.models.mlp(72, 6, 3, seed=1)).double()


def contextual(): return ml.models.Contextual(ml.models.mlp(5, 6, 1, seed=1), 2).double()


KINDS = {
    "MAML": (small, numbers, lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2)),
    "Meta-SGD": (small, numbers, lambda m: ml.MetaSGD(m, F.mse_loss, lr=LR, steps=2)),
    "ANIL": (small, numbers, lambda m: ml.ANIL(m, F.mse_loss, lr=LR, steps=2)),
    "CAVIA": (contextual, numbers, lambda m: ml.CAVIA(m, F.mse_loss, lr=LR, steps=2)),
    "Adam": (small, numbers, lambda m: ml.MetaLoss(m, F.mse_loss, inner=ml.Adam(LR, 2))),
    "ProtoNet": (classifier, images, lambda m: ml.ProtoNet(m, F.cross_entropy)),
    "ProtoMAML": (classifier, images, lambda m: ml.ProtoMAML(m, F.cross_entropy, lr=LR, steps=2)),
    "a dictionary": (Named, named_task, lambda m: ml.MAML(m, weighted_loss, lr=LR, steps=2)),
    "one by one": (small, numbers,
                   lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2, batching="loop")),
}


def one(tree, i):
    return {k: v[i] for k, v in tree.items()} if isinstance(tree, dict) else tree[i]


def answer(model, x): return model(**x) if isinstance(x, dict) else model(x)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # from torch.export.load
@pytest.mark.parametrize("kind", KINDS)
def test_learning_is_one_program(kind):
    "Traced with one task, it learns another, as `adapted` does; exported, saved and loaded, too."
    made, tasks, build = KINDS[kind]
    J, task = build(made()), tasks()
    parts = [(one(task.support.x, i), one(task.support.y, i), one(task.query.x, i)) for i in (0, 2)]
    module = as_program(J, *parts[0])
    expected = answer(J.adapted(*parts[1][:2]), parts[1][2]).detach()
    close(module(*parts[1]), expected, 1e-12)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, parts[0]), file)
    file.seek(0)
    close(torch.export.load(file).module()(*parts[1]).detach(), expected, 1e-12)
    assert J.training and all(p.grad is None for p in J.parameters())


def test_a_program_has_no_dropout_and_as_many_steps_as_it_is_told():
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    J, (x, y, q) = ml.MAML(model, F.mse_loss, lr=LR), (random(5, 3), random(5, 1), random(4, 3))
    close(as_program(J, x, y, q, steps=4)(x, y, q), J.adapted(x, y, steps=4)(q).detach(), 1e-13)
    with pytest.raises(ValueError, match=r"task\.x holds values that are not finite"):
        as_program(J, x / 0, y, q)


def test_torch_export_of_the_learner_itself_says_what_to_write():
    J = ml.MAML(small(), F.mse_loss, lr=LR)

    class Learning(nn.Module):
        def __init__(self):
            super().__init__()
            self.J = J

        def forward(self, x, y, q): return self.J.predict(self.J.adapt(ml.Split(x, y)), q)
    x, y, q = random(2, 5, 3), random(2, 5, 1), random(2, 4, 3)
    with pytest.raises(ValueError, match=r"metalit.program.as_program\(J, x, y, asked\)"):
        torch.export.export(Learning(), (x, y, q), strict=False)
    close(make_fx(Learning())(x, y, q)(x, y, q), Learning()(x, y, q), 1e-14)


# Transformations around J


def of_theta(J, task):
    "J as a function of its parameters, and these."
    theta = {name: p.detach() for name, p in J.named_parameters()}
    return lambda theta: functional_call(J, theta, (task,)), theta


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch itself, for jvp
def test_nothing_is_transformed_where_nothing_is():
    seen = []

    def look(x):
        seen.append(transformed())
        return x.sum()
    x = torch.ones(3)
    look(x)
    vmap(look)(x[None])
    grad(look)(x)
    jvp(look, (x,), (x,))
    make_fx(look)(x)
    make_fx(look, pre_dispatch=True)(x)
    torch.compile(look, backend="eager")(x)
    look(x)
    assert seen[0] is False and seen[-1] is False and all(seen[1:-1]) and len(seen) >= 7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["MAML", "ANIL", "ProtoMAML", "CAVIA", "a dictionary"])
def test_j_is_a_function_like_any_other(kind):
    made, tasks, build = KINDS[kind]
    J, task = build(made()), tasks()
    value, theta = of_theta(J, task)
    expected = build(made())(task).detach()
    slopes, plain = grad(value)(theta), torch.autograd.grad(J(task), list(J.parameters()),
                                                            allow_unused=True,
                                                            materialize_grads=True)
    for name, slope in zip(dict(J.named_parameters()), plain, strict=True):
        close(slopes[name], slope, 1e-12)
    found, along = jvp(value, (theta,), (slopes,))
    close(found, expected, 1e-13)
    close(along, sum((g * g).sum() for g in slopes.values()), 1e-12)
    close(vmap(value)({k: torch.stack([p, p / 2]) for k, p in theta.items()})[0], expected, 1e-13)
    twice = task.map(lambda t: torch.stack([t, t.flip(0)]))
    close(vmap(J)(twice).detach(), expected.expand(2), 1e-13)
    close(make_fx(J)(task)(task).detach(), expected, 1e-13)


def test_a_head_is_found_where_the_first_call_is_traced():
    J, task = ml.ANIL(small(), F.mse_loss, lr=LR), numbers()
    traced = make_fx(J)(task)
    assert J.inner.head == "2.*"
    close(traced(task), J(task), 1e-13)


def test_values_are_looked_at_where_they_can_be_seen():
    J, task = ml.MAML(small(), F.mse_loss, lr=LR), numbers()
    bad = task.map(lambda t: t / 0)
    with pytest.raises(ValueError, match="not finite"): J(bad)
    assert not vmap(J)(bad.map(lambda t: t[None])).isfinite().any()
    with pytest.raises(ValueError, match="the first axis counts tasks"):
        vmap(lambda t: J(ml.Task(t.support, t.query.select(slice(2)))))(task.map(lambda t: t[None]))


def ways(J, task):
    value, theta = of_theta(J, task)
    yield lambda: grad(value)(theta)
    yield lambda: vmap(J)(task.map(lambda t: t[None]))
    yield lambda: jvp(value, (theta,), (theta,))
    yield lambda: make_fx(J)(task)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_chunked_or_compiled_j_is_refused_under_a_transformation():
    task = numbers()
    chunked = ml.MAML(small(), F.mse_loss, lr=LR, chunk_size=2)
    compiled = ml.MAML(small(), F.mse_loss, lr=LR)
    compiled.compile(backend="aot_eager")
    for J, what in ((chunked, "with chunk_size J"), (compiled, "a compiled J")):
        for call in ways(J, task):
            with pytest.raises(ValueError, match=f"{what} takes its own derivatives"): call()
    assert vmap(copy.deepcopy(compiled))(task.map(lambda t: t[None])).shape == (1,)
