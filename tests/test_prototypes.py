"""Prototypical networks and ProtoMAML: identities, closed forms, finite differences, and bad input.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.inner.prototypes import Prototypes, class_means
from metalit.methods import ProtoMAML, ProtoNet
from metalit.models import Contextual, Conv4, mlp


def points(n_tasks=5, counts=(3, 1, 2), queries=7, seed=0) -> ml.Task:
    "Classes of points in the plane: `counts` support examples each, in random order, float64."
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(n_tasks, len(counts), 2, generator=g, dtype=torch.float64)

    def split(y):
        y = torch.stack([y[torch.randperm(len(y), generator=g)] for _ in range(n_tasks)])
        own = centre.gather(1, y[..., None].expand(-1, -1, 2))
        return ml.Split(own + 0.5 * torch.randn(own.shape, generator=g, dtype=torch.float64), y)
    return ml.Task(split(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))),
                   split(torch.arange(queries) % len(counts)))


@pytest.fixture
def task() -> ml.Task: return points()


@pytest.fixture
def net() -> nn.Module: return mlp(2, 5, 4, 3, activation=nn.Tanh, seed=1).double()


def distances(body, x, y, x_query, ways=3):
    "The logits of a prototypical network, written down from the paper."
    prototypes = torch.stack([body(x[y == k]).mean(0) for k in range(ways)])
    return torch.stack([torch.stack([-((f - c) ** 2).sum() for c in prototypes])
                        for f in body(x_query)])


def test_class_means():
    g = torch.Generator().manual_seed(0)
    features, y = (torch.randn(6, 4, generator=g, dtype=torch.float64),
                   torch.tensor([2, 0, 2, 1, 0, 2]))
    expected = torch.stack([features[[1, 4]].mean(0), features[3], features[[0, 2, 5]].mean(0)])
    close(class_means(features, y, 3), expected, 1e-14)
    assert not class_means(features, y, 4)[3].any()
    order = torch.randperm(6, generator=g)
    close(class_means(features[order], y[order], 3), expected, 1e-14)
    assert torch.autograd.gradcheck(lambda f: class_means(f, y, 3), features.requires_grad_())


def test_logits_are_those_of_a_prototypical_network_up_to_a_constant(net, task):
    J = ProtoNet(net, F.cross_entropy)
    logits = J.predict(J.adapt(task.support), task.query.x)
    by_hand = torch.stack([distances(net[:-1], *one)
                           for one in zip(*task.support, task.query.x, strict=True)])
    gap = logits - by_hand
    close(gap, gap[..., :1].expand_as(gap))
    close(gap[..., 0], net[:-1](task.query.x).square().sum(-1))
    assert (logits - by_hand).abs().max() > 0.01
    each = torch.stack([F.cross_entropy(z, y) for z, y in zip(by_hand, task.query.y, strict=True)])
    close(J.per_task(task)[0], each)
    close(J(task), each.mean())


def test_gradient_is_that_of_a_prototypical_network(net, task):
    expected = torch.autograd.grad(torch.stack([
        F.cross_entropy(distances(net[:-1], x, y, x_query), y_query) for x, y, x_query, y_query
        in zip(*task.support, *task.query, strict=True)]).mean(), list(net[:-1].parameters()))
    ProtoNet(net, F.cross_entropy)(task).backward()
    for p, g in zip(net[:-1].parameters(), expected, strict=True): close(p.grad, g)


def test_gradient_in_closed_form_for_linear_features(task):
    """The gradient for the features, by hand: e = p − [y = k].

    ∂J/∂c = (2/n) Σ e (f − c), ∂J/∂f_s = ∂J/∂c / |S|, ∂J/∂f_q = −(2/n) Σ e (f − c).
    """
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.7, -1.0], [1.3, 0.2], [-0.4, 0.9], [0.1, 0.6]]))
    ProtoNet(model, F.cross_entropy)(task).backward()
    E, expected = model[0].weight.detach(), 0
    for x, y, x_query, y_query in zip(*task.support, *task.query, strict=True):
        f, f_query, members = x @ E.mT, x_query @ E.mT, F.one_hot(y, 3).double()
        c = members.mT @ f / members.sum(0)[:, None]
        gaps = f_query[:, None] - c
        e = torch.softmax(-gaps.square().sum(-1), 1) - F.one_hot(y_query, 3)
        d_means = 2 / len(y_query) * (e[..., None] * gaps).sum(0)
        d_support = (d_means / members.sum(0)[:, None])[y]
        d_query = -2 / len(y_query) * (e[..., None] * gaps).sum(1)
        expected = expected + (d_support.mT @ x + d_query.mT @ x_query) / 5
    close(model[0].weight.grad, expected)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_finite_differences(steps, chunk_size, net):
    few = points(2, seed=4)
    J = ml.MetaLoss(net, F.cross_entropy, inner=Prototypes(net, 0.1, steps), chunk_size=chunk_size)
    names, values = zip(*((name, p.detach().clone().requires_grad_())
                          for name, p in J.named_parameters()), strict=True)
    assert torch.autograd.gradcheck(
        lambda *values: functional_call(J, dict(zip(names, values, strict=True)), (few,)), values,
        atol=1e-8
    )


@pytest.mark.parametrize("kind", [ProtoNet, ProtoMAML])
def test_the_head_of_the_model_is_used_for_its_shape_only(kind, net, task):
    J = kind(net, F.cross_entropy)
    value = J(task)
    value.backward()
    assert not net[-1].weight.grad.any() and not net[-1].bias.grad.any()
    assert all(p.grad.abs().max() > 0 for p in net[:-1].parameters())
    with torch.no_grad():
        for p in net[-1].parameters(): p.add_(3.0)
    close(J(task), value, 0)


def test_protomaml_goes_on_from_the_class_means(net, task):
    "Its path is MAML's for a model whose head is 2c and −‖c‖²; without a step it is ProtoNet."
    J = ProtoMAML(net, F.cross_entropy, lr=0.1, steps=2)
    phi = J.adapt(task.support)
    for i in range(5):
        x, y = task.support.x[i], task.support.y[i]
        c = torch.stack([net[:-1](x[y == k]).mean(0) for k in range(3)])
        at = {name: p.clone() for name, p in net.named_parameters()} | {
            "4.weight": 2 * c, "4.bias": -(c**2).sum(1)
        }
        for _ in range(2):
            slope = torch.func.grad(lambda at, x=x, y=y: F.cross_entropy(
                functional_call(net, at, (x,)), y
            ))(at)
            at = {name: p - 0.1 * slope[name] for name, p in at.items()}
        for name, p in at.items(): close(phi[name][i], p, 1e-12)
    close(ProtoMAML(net, F.cross_entropy, steps=0)(task), ProtoNet(net, F.cross_entropy)(task), 0)
    assert (J(task) - ProtoNet(net, F.cross_entropy)(task)).abs() > 1e-3


def test_first_order_keeps_the_gradient_through_the_means(net, task):
    "Inner gradients are constants; the start of a task is none."
    body = list(net[:-1].parameters())
    exact, first = (torch.autograd.grad(ProtoNet(net, F.cross_entropy, gradient=rule)(task), body)
                    for rule in (ml.Exact(), ml.FirstOrder()))
    for a, b in zip(first, exact, strict=True): close(a, b, 0)
    values = [ProtoMAML(net, F.cross_entropy, 0.3, gradient=rule)(task)
              for rule in (ml.Exact(), ml.FirstOrder())]
    close(*values, 0)
    with_step = [torch.autograd.grad(value, net[0].weight)[0] for value in values]
    assert (with_step[0] - with_step[1]).norm() > 1e-3


def test_first_order_gradient_by_hand(net):
    "φ₁ = φ₀(θ) − α·sg∇ℓ: the gradient flows through φ₀ as for ProtoNet, from the step's end."
    one = points(1, seed=2)
    found = torch.autograd.grad(ProtoMAML(net, F.cross_entropy, 0.3, gradient=ml.FirstOrder())(one),
                                net[0].weight)[0]
    (x, y), (x_query, y_query) = (tuple(t[0] for t in split) for split in one)
    c = torch.stack([net[:-1](x[y == k]).mean(0) for k in range(3)])
    at = dict(net.named_parameters()) | {"4.weight": 2 * c, "4.bias": -(c**2).sum(1)}
    slope = torch.func.grad(lambda at: F.cross_entropy(functional_call(net, at, (x,)), y))(
        {name: p.detach() for name, p in at.items()})
    end = {name: p - 0.3 * slope[name].detach() for name, p in at.items()}
    expected = torch.autograd.grad(F.cross_entropy(functional_call(net, end, (x_query,)),
                                                   y_query), net[0].weight)[0]
    close(found, expected)


def test_order_of_examples_and_names_of_classes(net, task):
    "Support examples may come in any order; whoever exchanges the labels exchanges the logits."
    J = ProtoNet(net, F.cross_entropy)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    mixed = ml.Task(ml.Split(*(t[:, order] for t in task.support)), task.query)
    close(J(mixed), J(task), 1e-13)
    close(ProtoMAML(net, F.cross_entropy, 0.2, 2)(mixed),
          ProtoMAML(net, F.cross_entropy, 0.2, 2)(task), 1e-13)
    renamed = task.map(lambda t: t if t.is_floating_point() else (t + 1) % 3)
    close(J(renamed), J(task), 1e-13)
    logits, others = (J.predict(J.adapt(t.support), t.query.x) for t in (task, renamed))
    close(others, logits.roll(1, -1), 1e-13)
    assert (others - logits).abs().max() > 0.01


@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("context", [0, 3])
def test_conv4(pool, context):
    g = torch.Generator().manual_seed(0)
    model = Conv4(3, size=16, filters=4, pool=pool, context=context).double()
    x, y = (torch.rand(2, 2, 6, 1, 16, 16, generator=g, dtype=torch.float64),
            torch.arange(3).repeat(2).expand(2, -1))
    J = ProtoNet(model, F.cross_entropy)
    assert J.inner.head == "head"
    phi = J.adapt(ml.Split(x[0], y))
    for i in range(2):
        c = class_means(model.features(x[0, i]), y[i], 3)
        close(phi["head.weight"][i], 2 * c, 1e-12)
        close(phi["head.bias"][i], -(c**2).sum(1), 1e-12)


def test_other_heads(task):
    """A single linear layer: its features are the inputs.

    A named head. A head inside of another module.
    """
    single = nn.Linear(2, 3).double()
    phi = ProtoNet(single, F.cross_entropy).adapt(task.support)
    close(phi["weight"][0], 2 * class_means(task.support.x[0], task.support.y[0], 3))
    named = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)).double()
    inner = Prototypes(named, head="1")
    close(ml.MetaLoss(named, F.cross_entropy, inner=inner)(task),
          ProtoNet(named, F.cross_entropy)(task), 0)
    inside = Contextual(mlp(3, 4, 3).double(), 1)
    assert Prototypes(inside).head == "model.2"
    assert ProtoNet(inside, F.cross_entropy)(task).isfinite()


def gradients(J, task):
    "Value, and gradients with zeros where there is none."
    value = J(task)
    found = torch.autograd.grad(value, list(J.parameters()), allow_unused=True)
    return [value.detach(), *(torch.zeros_like(p) if g is None else g
                              for p, g in zip(J.parameters(), found, strict=True))]


@pytest.mark.parametrize("steps", [0, 2])
def test_loop_is_vmap_is_chunks_is_compiled(steps, net, task):
    def make(**options):
        return ml.MetaLoss(net, F.cross_entropy, inner=Prototypes(net, 0.1, steps), **options)
    expected, compiled = gradients(make(), task), make()
    one_by_one = [gradients(make(), task.select(i)) for i in range(5)]
    compiled.compile(backend="eager")
    for found in ([torch.stack(parts).mean(0) for parts in zip(*one_by_one, strict=True)],
                  gradients(make(chunk_size=2), task), gradients(compiled, task)):
        for a, b in zip(found, expected, strict=True): close(a, b, 1e-12)


def test_a_class_without_an_example(net):
    task = points(2)
    without = task.support.y.clone()
    without[0][without[0] == 1] = 0  # the only example of class 1 in the first task
    J = ProtoNet(net, F.cross_entropy)
    logits = J.predict(J.adapt(ml.Split(task.support.x, without)), task.query.x)
    assert not logits.softmax(-1)[0, :, 1].any() and logits.isfinite().all()
    close(logits[0, :, [0, 2]].softmax(-1), logits.softmax(-1)[0, :, [0, 2]], 0)
    with pytest.raises(ValueError, match="in task 0 a query is of class 1, and no"):
        J(ml.Task(ml.Split(task.support.x, without), task.query))


def test_bad_heads(net, task):
    normed = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    for model, options, message in (
        (normed, {}, "head='1' is a LayerNorm: the head must be a nn.Linear with a bias"),
        (nn.Linear(2, 3, bias=False), {}, "head='' is a Linear without bias"),
        (net, {"head": "classifier"}, "head='classifier' is no layer of the model"),
        (net, {"head": "1"}, "head='1' is a Tanh")
    ):
        with pytest.raises(ValueError, match=message):
            ml.MetaLoss(model.double(), F.cross_entropy, inner=Prototypes(model, **options))(task)
    met = Prototypes(net)
    ml.MetaLoss(net, F.cross_entropy, inner=met)(task)
    with pytest.raises(ValueError,
                       match=r"made for another model: this one has no parameter '4\.weight'"):
        ml.MetaLoss(mlp(2, 5, 3).double(), F.cross_entropy, inner=met)(task)
    narrow = mlp(2, 5, 2).double()                           # its own head does not matter
    close(ProtoNet(narrow, F.cross_entropy)(task),
          F.cross_entropy(torch.cat([distances(narrow[:-1], *support, x) for *support, x in
                                     zip(*task.support, task.query.x, strict=True)]),
                          task.query.y.flatten()), 1e-10)


def test_for_model_on_and_options(net, task):
    inner = Prototypes(net, 0.3, 2, head="4", batch_size=2)
    twin = inner.for_model(mlp(2, 6, 6, 3))
    assert (twin.lr, twin.steps, twin.batch_size, twin.head) == (0.3, 2, 2, "4")
    shallow = mlp(2, 6, 3).double()                                    # its head has another name
    J = ProtoMAML(net, F.cross_entropy, 0.3, 2).on(shallow, F.cross_entropy)
    assert J.inner.head == "2" and (J.inner.lr, J.inner.steps) == (0.3, 2) and J(task).isfinite()
    assert copy.deepcopy(J)(task) == J(task)
    for options in ({"lr": 0.0}, {"steps": -1}, {"steps": 1.5}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))): Prototypes(net, **options)
    twin = Prototypes(net, ml.schedule.Linear(0.5, 0.25), 2).for_model(mlp(2, 6, 6, 3))
    twin.at(9, 10)
    assert twin.lr == 0.25


def test_float32_agrees(net, task):
    double = ProtoMAML(net, F.cross_entropy, 0.1, 2)
    single = copy.deepcopy(double).float()
    assert all(p.dtype == torch.float32
               for p in single.adapt(task.to(torch.float32).support).values())
    torch.testing.assert_close(single(task.to(torch.float32)).double(), double(task), rtol=1e-5,
                               atol=1e-5)
