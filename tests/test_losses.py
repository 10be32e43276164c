"""What a task loss may be: functions, modules, losses that ask the model, losses of the inner loop.

The referee is a loop over tasks and steps of `torch.autograd.grad`, in float64.
"""
import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch import nn

import metalit as ml
from metalit.losses import check_judge

LR = 0.1


def net(out=1): return ml.models.mlp(1, 4, out, activation=nn.Tanh, seed=1).double()


def waves(batch=3): return ml.tasks.Sinusoids(shots=4, queries=5).batch(batch).to(torch.float64)


def by_hand(p, x):
    "The network of `net`, written out."
    return torch.tanh(x @ p["0.weight"].mT + p["0.bias"]) @ p["2.weight"].mT + p["2.bias"]


def slope_by_hand(p, x):
    "Its derivative by x."
    inside = 1 - torch.tanh(x @ p["0.weight"].mT + p["0.bias"]) ** 2
    return (inside * p["0.weight"][:, 0]) @ p["2.weight"].mT


class Law(ml.TaskLoss):
    "Squared error, the law u' = −u, and a little weight decay."
    def forward(self, predict, split, phi):
        def u(x): return predict(phi, x)
        slope = torch.func.grad(lambda x: u(x).sum())(split.x)
        size = torch.stack([(p ** 2).sum() for p in phi.values()]).sum()
        return F.mse_loss(u(split.x), split.y) + ((slope + u(split.x)) ** 2).mean() + 0.01 * size


def law_by_hand(p, x, y):
    size = torch.stack([(v ** 2).sum() for v in p.values()]).sum()
    law = ((slope_by_hand(p, x) + by_hand(p, x)) ** 2).mean()
    return F.mse_loss(by_hand(p, x), y) + law + 0.01 * size


def squares_by_hand(p, x, y): return F.mse_loss(by_hand(p, x), y)


def looped(model, task, inside, outside, steps, learned=(), first_order=False):
    "The mean of `outside` after steps down `inside`, its gradients by θ and by what is learned."
    theta, values = dict(model.named_parameters()), []
    for i in range(task.batch_size):
        phi = dict(theta)
        for _ in range(steps):
            at = {k: v.detach().requires_grad_() for k, v in phi.items()} if first_order else phi
            value = inside(at, task.support.x[i], task.support.y[i])
            slopes = torch.autograd.grad(value, list(at.values()), create_graph=True)
            phi = {k: v - LR * s for (k, v), s in zip(phi.items(), slopes, strict=True)}
        values.append(outside(phi, task.query.x[i], task.query.y[i]))
    value = torch.stack(values).mean()
    return value, torch.autograd.grad(value, [*theta.values(), *learned])


def agree(J, task, expected):
    value, slopes = expected
    found = J(task)
    close(found, value, 1e-12)
    for one, other in zip(torch.autograd.grad(found, list(J.parameters())), slopes, strict=True):
        close(one, other, 1e-12)


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_that_asks_the_model(batching, steps):
    J = ml.MAML(net(), Law(), lr=LR, steps=steps, batching=batching)
    agree(J, waves(), looped(J.model, waves(), law_by_hand, law_by_hand, steps))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_inner_loop_has_a_loss_of_its_own(steps):
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(LR, steps, loss=Law()))
    agree(J, waves(), looped(J.model, waves(), law_by_hand, squares_by_hand, steps))


class Huber(nn.Module):
    "A loss with two numbers to be learned, where it bends and how much it counts."
    def __init__(self):
        super().__init__()
        self.bend, self.scale = (nn.Parameter(torch.tensor(v, dtype=torch.float64))
                                 for v in (0.3, 1.2))

    def forward(self, prediction, y):
        return (self.scale * (((prediction - y) ** 2 + self.bend ** 2).sqrt())).mean()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 2}], ids=str)
def test_what_the_inner_loop_descends_may_learn(first_order, options):
    inside, task = Huber(), waves()
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(LR, 2, loss=inside), **options,
                    gradient=ml.FirstOrder() if first_order else ml.Exact())
    learned = list(inside.parameters())
    value, slopes = looped(J.model, task, lambda p, x, y: inside(by_hand(p, x), y),
                           squares_by_hand, 2, learned, first_order)

    agree(J, task, (value, slopes))
    assert all(s.abs() > 1e-4 for s in slopes[-2:])


def test_a_learned_loss_by_finite_differences():
    inside, task = Huber(), waves()
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(LR, 2, loss=inside))
    start = {name: p.detach().clone().requires_grad_() for name, p in J.named_parameters()}
    names, values = tuple(start), tuple(start.values())
    assert {"inner.loss.bend", "inner.loss.scale"} < set(names)
    assert torch.autograd.gradcheck(lambda *v: torch.func.functional_call(
        J, dict(zip(names, v, strict=True)), (task,)), values)


@pytest.mark.parametrize("make", [
    lambda m, **o: ml.Masked(m, LR, 2, only="2.*", **o), lambda m, **o: ml.Diagonal(m, LR, 2, **o),
    lambda m, **o: ml.SAM(LR, 2, rho=0.1, **o), lambda m, **o: ml.Adam(LR, 2, **o)])
def test_every_inner_loop_takes_one_and_gives_a_copy_a_loss_of_its_own(make):
    model, inside = net(), Huber()
    inner = make(model, loss=inside)
    with_it, without = (ml.MetaLoss(model, F.mse_loss, inner=i)(waves())
                        for i in (inner, make(model)))
    assert with_it != without
    with torch.no_grad(): inside.bend.fill_(0.7)
    twin = inner.for_model(net())
    assert twin.loss is not inside and twin.loss.bend == 0.7


def test_a_judge_must_not_learn():
    for build in (lambda: ml.MAML(net(), Huber()), lambda: ml.MAML(net(), F.mse_loss).on(
            net(), Huber()), lambda: ml.Learner(net(), Huber())):
        with pytest.raises(ValueError, match=r"Huber has parameters.*SGD\(loss=…\)"): build()
    fixed = Huber().requires_grad_(False)
    assert ml.MAML(net(), fixed)(waves()).isfinite()
    assert check_judge(nn.MSELoss())


@pytest.mark.parametrize(("loss", "message"), [
    (nn.MSELoss, r"the class MSELoss itself; one of its kind is needed: MSELoss\(\)"),
    (0.1, "loss is 0.1; a function"), (True, "loss is True"), (None, "loss is None")])
def test_what_is_no_loss(loss, message):
    with pytest.raises(TypeError, match=message): ml.MAML(net(), loss)
    if loss is not None:
        with pytest.raises(TypeError, match=message): ml.SGD(loss=loss)


def classes(y):
    x = torch.randn(2, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ml.Task(ml.Split(x, y), ml.Split(x, y))


@pytest.mark.parametrize(("change", "message"), [
    (lambda y: y + 2, r"3 outputs, so labels are 0 … 2"),
    (lambda y: y.int(), r"int64.*y\.long\(\)"),
    (lambda y: y[..., None], r"one axis too many: y\.squeeze\(-1\)"),
    (lambda y: y.double(), r"whole numbers: y\.long\(\)"),
    (lambda y: y > 0, r"yes or no.*y\.long")])
@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_labels(change, message, batching):
    y = torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0]])
    J = ml.MAML(net(3), F.cross_entropy, batching=batching)
    assert J(classes(y)).isfinite()
    with pytest.raises(ValueError, match=message): J(classes(change(y)))


def test_an_error_of_a_loss_comes_through_as_it_is():
    def broken(prediction, y): return prediction @ y
    with pytest.raises(RuntimeError, match="size for first two dimensions") as found:
        ml.MAML(net(), broken)(waves())
    assert "label" not in str(found.value)


def test_probabilities_are_targets_of_cross_entropy():
    y = torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0]])
    J = ml.MAML(net(3), F.cross_entropy)
    close(J(classes(F.one_hot(y, 3).double())), J(classes(y)), 1e-14)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, nn.SmoothL1Loss(), nn.HuberLoss()])
def test_shapes_that_would_be_compared_all_with_all(loss):
    task = waves()
    flat = ml.Task(*(ml.Split(part.x, part.y[..., 0]) for part in task))
    with pytest.raises(ValueError, match=r"output has shape \(4, 1\) and y \(4,\)"):
        ml.MAML(net(), loss)(flat)
    def own(prediction, y): return F.mse_loss(prediction[..., 0], y)
    close(ml.MAML(net(), own)(flat), ml.MAML(net(), F.mse_loss)(task), 1e-14)


def test_outputs_that_are_no_tensor_go_to_the_loss_as_they_are():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x): return {"mean": self.net(x), "size": self.net(x).abs().mean()}

    def loss(output, y): return F.mse_loss(output["mean"], y) + output["size"]
    J = ml.MAML(Both(), loss, lr=LR)
    def right(p, x, y):
        of_net = {name.removeprefix("net."): v for name, v in p.items()}
        return F.mse_loss(by_hand(of_net, x), y) + by_hand(of_net, x).abs().mean()
    agree(J, waves(), looped(J.model, waves(), right, right, 1))


def test_a_task_loss_as_a_metric():
    J, task = ml.MAML(net(), F.mse_loss, lr=LR), waves()
    found = J.curve(task, (0,), Law())[:, 0]
    p = {k: v.detach() for k, v in J.model.named_parameters()}
    right = [law_by_hand(p, x, y) for x, y in zip(*task.query, strict=True)]
    close(found, torch.stack(right), 1e-12)
    with pytest.raises(ValueError, match="Law asks the model itself"):
        J.curve(task, (0,), Law(), transductive=False)
    with pytest.raises(TypeError, match="does not say what it measures"):
        ml.MAML(net(), ml.TaskLoss())(task)


def test_a_copy_of_J_has_losses_of_its_own():
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(LR, 2, loss=Huber()))
    twin = copy.deepcopy(J)
    with torch.no_grad(): J.inner.loss.bend.fill_(2.0)
    assert twin(waves()) != J(waves())


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize(("wrap", "chosen"), [
    (lambda out: {"logits": out, "other": out}, r"output\['logits'\]"),
    (lambda out: (out, out), r"output\[0\]")])
def test_a_loss_that_does_not_choose_is_told_to(wrap, chosen, batching):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x): return wrap(self.net(x))
    message = rf"(?s)several things, and the loss has to choose.*lambda output, y: loss\({chosen}"
    with pytest.raises((AttributeError, TypeError), match=message):
        ml.MAML(Several(), F.mse_loss, batching=batching)(waves())


def test_partial_losses_are_looked_at_as_what_they_are_made_of():
    task = waves()
    flat = ml.Task(*(ml.Split(part.x, part.y[..., 0]) for part in task))
    with pytest.raises(ValueError, match=r"output has shape \(4, 1\) and y \(4,\)"):
        ml.MAML(net(), functools.partial(F.huber_loss, delta=0.5))(flat)
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"Class labels are whole numbers: y.long\(\)"):
        ml.MAML(net(3), smooth)(classes(torch.zeros(2, 4)))


def and_its_slope(f, x):
    "A function of x and its derivative by x, taken the plain way, added up."
    with torch.enable_grad():
        y = f(x)
        return y + torch.autograd.grad(y.sum(), x, create_graph=True)[0]


class Slope(ml.TaskLoss):
    "Squared error of the model and its derivative by its input."
    def forward(self, predict, split, phi):
        found = and_its_slope(lambda x: predict(phi, x), split.x.requires_grad_())
        return ((found - split.y) ** 2).mean()


class Sloped(nn.Module):
    "A model that adds its own derivative."
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x): return and_its_slope(self.net, x.requires_grad_())


@pytest.mark.parametrize("steps", [1, 3])
def test_a_derivative_by_an_input_is_of_one_call(steps):
    "Not of what earlier steps have learned from this input."
    def right(p, x, y):
        own = x.detach().clone().requires_grad_()
        return ((and_its_slope(lambda x: by_hand(p, x), own) - y) ** 2).mean()
    J, task = ml.MAML(net(), Slope(), lr=LR, steps=steps, batching="loop"), waves()
    agree(J, task, looped(J.model, task, right, right, steps))
    assert not task.support.x.requires_grad
    twin = ml.MAML(Sloped(), F.mse_loss, lr=LR, steps=steps, batching="loop")
    twin.model.net.load_state_dict(J.model.state_dict())
    close(twin(task), J(task), 1e-12)


def test_a_judge_is_looked_at_whenever_it_judges():
    judge = Huber().requires_grad_(False)
    J = ml.MAML(net(), judge)
    assert J(waves()).isfinite()
    judge.requires_grad_(True)
    with pytest.raises(ValueError, match="has parameters, and would learn to call everything good"):
        J(waves())
    J.loss = judge.requires_grad_(False)
    J(waves())


@pytest.mark.parametrize("metric", [nn.MSELoss, "mse", 3])
def test_what_is_no_metric(metric):
    J = ml.MAML(net(), F.mse_loss)
    for call in (lambda: J.curve(waves(), metric=metric),
                 lambda: ml.evaluate(J, waves(), metric=metric)):
        with pytest.raises(TypeError, match="loss is"): call()
