"""What people expect of an optimiser, in an inner loop: momentum, decay, clipping, rates.

The referee is a loop over tasks and steps of `torch.autograd.grad`, in float64, with the formulas
of `torch.optim.SGD` written out, and a network that is three lines of arithmetic.
"""
import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import close, same
from torch import nn

import metalit as ml
from metalit import as_written
from metalit.gradient import FirstOrder
from metalit.inner.momentum import clipped
from metalit.training.identity import identity

compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tasks(batch=3, ways=3):
    "Inputs of three numbers, labels of three classes."
    labels = torch.arange(2 * ways).remainder(ways).expand(batch, -1)
    return ml.Task(*(ml.Split(random(batch, 2 * ways, 3, seed=s), labels) for s in (0, 1)))


def network(context=0):
    model = ml.models.mlp(3 + context, 4, 3, activation=nn.Tanh, seed=1).double()
    return ml.models.Contextual(model, context) if context else model


def answer(phi, x):
    "The network's output, written out; a context is appended to every input."
    at = {name.removeprefix("model."): value for name, value in phi.items()}
    if "context" in at: x = torch.cat([x, at["context"].expand(len(x), -1)], 1)
    hidden = torch.tanh(x @ at["0.weight"].mT + at["0.bias"])
    return hidden @ at["2.weight"].mT + at["2.bias"]


def slopes(phi, names, x, y, graph=True):
    phi = {name: value.view_as(value) for name, value in phi.items()}  # each one by itself
    value = F.cross_entropy(answer(phi, x), y)
    found = torch.autograd.grad(value, [phi[name] for name in names], create_graph=graph)
    return dict(zip(names, found, strict=True))


class ByHand:
    "Plain gradient descent; what other inner loops do otherwise is overridden below."
    def __init__(self, inner): self.inner = inner
    def start(self, theta, x, y): return dict(theta), list(theta)
    def slope(self, phi, names, x, y): return slopes(phi, names, x, y)
    def direction(self, gradient): return gradient


class HandMasked(ByHand):
    def start(self, theta, x, y): return dict(theta), ["2.weight", "2.bias"]


class HandContext(ByHand):
    def start(self, theta, x, y):
        context = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        return dict(theta) | {"context": context}, ["context"]


class HandPrototypes(ByHand):
    def start(self, theta, x, y):
        features = torch.tanh(x @ theta["0.weight"].mT + theta["0.bias"])
        means = torch.stack([features[y == way].mean(0) for way in range(3)])
        return dict(theta) | {"2.weight": 2 * means, "2.bias": -means.square().sum(1)}, list(theta)


class HandDiagonal(ByHand):
    def direction(self, gradient):
        return {name: gradient[name] * factors[0]
                for (name, factors) in zip(gradient, self.inner.learned, strict=True)}


class HandKronecker(ByHand):
    def direction(self, gradient):
        return {name: factors[0] * gradient[name] if gradient[name].ndim == 1
                else factors[0] @ gradient[name] @ factors[1].mT
                for (name, factors) in zip(gradient, self.inner.learned, strict=True)}


class HandSAM(ByHand):
    def slope(self, phi, names, x, y):
        g = slopes(phi, names, x, y, graph=False)
        length = sum((v * v).sum() for v in g.values()).sqrt()
        return slopes({name: phi[name] + 0.05 * g[name] / length for name in names}, names, x, y)


class HandBent(ByHand):
    def direction(self, gradient): return {name: torch.tanh(g) for name, g in gradient.items()}


class HandMean(ByHand):
    def start(self, theta, x, y):
        self.before = None
        return super().start(theta, x, y)

    def direction(self, gradient):
        self.before = gradient if self.before is None else {
            name: (self.before[name] + g) / 2 for name, g in gradient.items()}
        return self.before


class HandAdam(ByHand):
    def start(self, theta, x, y):
        self.v, self.k = dict.fromkeys(theta, 0.0), 0
        return super().start(theta, x, y)

    def direction(self, gradient):
        self.k += 1
        self.v = {name: 0.9 * self.v[name] + 0.1 * g * g for name, g in gradient.items()}
        return {name: g / (self.v[name] / (1 - 0.9 ** self.k) + 0.01).sqrt()
                for name, g in gradient.items()}


class Bent(ml.SGD):
    "Steps elsewhere."
    def direction(self, gradient): return {name: torch.tanh(g) for name, g in gradient.items()}


class Mean(ml.SGD):
    "A direction that remembers."
    def start(self):
        memory = {}
        def direction(gradient):
            for name, g in gradient.items():
                memory[name] = (memory[name] + g) / 2 if name in memory else g
            return dict(memory)
        return direction


class OwnStep(ml.SGD):
    "Its step knows nothing but a slope."
    def step(self, loss, phi, state, k):
        slope = self.slope(loss, phi)
        return {name: phi[name] - self.lr * slope[name] for name in phi}, state


class OwnBegin(ml.SGD):
    "It begins at θ, with nothing to remember."
    def init(self, predict, theta, support): return theta, ()


KINDS = {
    "SGD": (ml.SGD, ByHand), "Masked": (partial(ml.Masked, only="2"), HandMasked),
    "Context": (ml.Context, HandContext), "Prototypes": (ml.Prototypes, HandPrototypes),
    "Diagonal": (ml.Diagonal, HandDiagonal), "Kronecker": (ml.Kronecker, HandKronecker),
    "SAM": (ml.SAM, HandSAM), "Adam": (partial(ml.Adam, beta2=0.9, eps=0.1), HandAdam),
    "a direction": (Bent, HandBent), "a direction that remembers": (Mean, HandMean),
    "a step": (OwnStep, ByHand), "a beginning": (OwnBegin, ByHand)}
HABITS = {
    "momentum": {"momentum": 0.8}, "nesterov": {"momentum": 0.8, "nesterov": True},
    "decay": {"weight_decay": 0.3}, "clip": {"clip": 0.3}, "a clip that never cuts": {"clip": 99.0},
    "rates": {"lr": {"*.bias": 0.7, "*": 0.2}}, "learned": {"learn_lr": True},
    "learned rates": {"lr": {"*.bias": 0.7, "*": 0.2}, "learn_lr": True},
    "all": {"momentum": 0.6, "nesterov": True, "weight_decay": 0.2, "clip": 0.4,
            "lr": {"*.bias": 0.7, "*": 0.2}, "learn_lr": True}}
REFUSED = {"Adam": {"momentum", "nesterov"}, "a beginning": {"momentum", "nesterov"},
           "a step": {"momentum", "nesterov", "weight_decay", "clip", "rates"}}


def built(kind, lr=0.5, steps=3, **options):
    make, _ = KINDS[kind]
    model = network(2 if kind == "Context" else 0)
    of_model = {"Masked", "Context", "Prototypes", "Diagonal", "Kronecker"}
    if kind == "Context" and isinstance(lr, dict): lr = {"context": 0.4}
    inner = make(*([model] if kind in of_model else []), lr=lr, steps=steps, **options)
    if kind in ("Diagonal", "Kronecker"):
        with torch.no_grad():
            for p in inner.learned.parameters(): p.add_(0.2 * random(*p.shape, seed=7))
    return model, inner


def clipped_by_hand(g, clip):
    length = sum((v * v).sum() for v in g.values()).sqrt()
    return {name: v * min(1.0, clip / (length + 1e-6)) for name, v in g.items()}


def by_hand(kind, J, task, *, momentum=0.0, nesterov=False, weight_decay=0.0, clip=None,
            first_order=False, steps=3):
    "The mean query loss, and the parameters that each task arrives at."
    theta = {name.removeprefix("model."): p for name, p in J.model.named_parameters()}
    values, ends = [], []
    for i in range(task.batch_size):
        hand, (x, y) = KINDS[kind][1](J.inner), (task.support.x[i], task.support.y[i])
        phi, names = hand.start(theta, x, y)
        v = dict.fromkeys(names, 0.0)
        for _ in range(steps):
            at = phi
            if first_order:
                at = {name: value.detach().requires_grad_() for name, value in phi.items()}
            g = hand.slope(at, names, x, y)
            if clip is not None: g = clipped_by_hand(g, clip)
            g = {name: g[name] + weight_decay * at[name] for name in names}
            if first_order: g = {name: value.detach() for name, value in g.items()}
            v = {name: momentum * v[name] + g[name] for name in names}
            pushed = {n: g[n] + momentum * v[n] for n in names} if nesterov else v
            step = hand.direction(pushed)
            phi = phi | {name: phi[name] - rate_by_hand(J.inner.lr, name) * step[name]
                         for name in names}
        values.append(F.cross_entropy(answer(phi, task.query.x[i]), task.query.y[i]))
        ends.append(phi)
    return sum(values) / len(values), ends


def rate_by_hand(lr, name):
    if not isinstance(lr, nn.Module): return lr
    return lr.rate0 if name.endswith("bias") or len(lr.patterns) == 1 else lr.rate1


def agree(kind, J, task, atol=1e-12, **how):
    J.zero_grad()
    value = J(task)
    value.backward()
    named = dict(J.named_parameters())
    right, _ = by_hand(kind, J, task, **how)
    wanted = torch.autograd.grad(right, list(named.values()), allow_unused=True,
                                 materialize_grads=True)
    close(value.detach(), right.detach(), atol)
    for (name, p), slope in zip(named.items(), wanted, strict=True):
        close(torch.zeros_like(p) if p.grad is None else p.grad, slope, atol)
        assert slope.abs().max() > 1e-9 or (kind == "Prototypes" and "2." in name), name


def without_rates(habits): return {k: v for k, v in habits.items() if k not in ("lr", "learn_lr")}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_inner_loop_does_it_right_or_refuses_it(kind, habit):
    habits = HABITS[habit]
    asked = set(habits) - {"lr", "learn_lr"} | ({"rates"} if "lr" in habits else set())
    if refused := asked & REFUSED.get(kind, set()):
        with pytest.raises(TypeError, match="way to step of its own") as error:
            built(kind, **habits)
        said = {name: "lr={" if name == "rates" else f"{name}=" for name in refused}
        assert any(words in str(error.value) for words in said.values())
        return
    model, inner = built(kind, **habits)
    J = ml.MetaLoss(model, F.cross_entropy, inner=inner)
    agree(kind, J, tasks(), **without_rates(habits))


WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 2}}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("habit", ["momentum", "clip", "all"])
def test_each_way_to_compute_it(habit, way, first_order):
    model, inner = built("SGD", **HABITS[habit])
    J = ml.MetaLoss(model, F.cross_entropy, inner=inner, **WAYS[way],
                    **({"gradient": FirstOrder()} if first_order else {}))
    agree("SGD", J, tasks(), first_order=first_order, **without_rates(HABITS[habit]))


@pytest.mark.parametrize("habit", ["momentum", "nesterov", "decay", "clip", "rates", "all"])
def test_it_arrives_where_an_optimizer_does(habit):
    habits, task = HABITS[habit], tasks()
    model, inner = built("SGD", **habits)
    J = ml.MetaLoss(model, F.cross_entropy, inner=inner)
    learner = copy.deepcopy(model)
    rates = {name: torch.as_tensor(rate_by_hand(J.inner.lr, name), dtype=torch.float64)
             for name, _ in learner.named_parameters()}
    groups = [{"params": [p], "lr": rates[name].item()} for name, p in learner.named_parameters()]
    rest = {k: v for k, v in without_rates(habits).items() if k != "clip"}
    for i in range(3):
        learner.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(groups, **rest)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(learner(task.support.x[i]), task.support.y[i]).backward()
            if "clip" in habits: nn.utils.clip_grad_norm_(learner.parameters(), habits["clip"])
            optimizer.step()
        adapted = J.adapted(task.support.x[i], task.support.y[i])
        for name, p in learner.named_parameters():
            close(adapted.get_parameter(name).detach(), p.detach(), 1e-12)


def test_to_go_on_begins_with_no_velocity():
    model, inner = built("SGD", momentum=0.9)
    J, task = ml.MetaLoss(model, F.cross_entropy, inner=inner), tasks()
    x, y = task.support.x[0], task.support.y[0]
    first = J.adapted(x, y, steps=2)
    twice, anew = J.adapted(x, y, start=first, steps=2), copy.deepcopy(J)
    anew.model.load_state_dict(first.state_dict())
    close(twice(x), anew.adapted(x, y, steps=2)(x), 1e-14)
    assert (twice(x) - J.adapted(x, y, steps=4)(x)).abs().max() > 1e-3


def test_by_finite_differences():
    model, inner = built("SGD", steps=2, **HABITS["all"])
    J, task = ml.MetaLoss(model, F.cross_entropy, inner=inner), tasks(batch=2)
    names, values = zip(*((name, p.detach().clone().requires_grad_())
                          for name, p in J.named_parameters()), strict=True)

    def value(*values):
        return torch.func.functional_call(J, dict(zip(names, values, strict=True)), (task,))
    assert torch.autograd.gradcheck(value, values)


def test_a_clip_can_be_differentiated_again_and_again():
    long = random(5).requires_grad_()
    def clip(g): return clipped({"a": g[:3], "b": g[3:]}, 0.5)["a"]
    assert torch.autograd.gradcheck(clip, long) and torch.autograd.gradgradcheck(clip, long)
    zero = torch.zeros(5, dtype=torch.float64)
    jacobian = torch.func.jacrev(clip)
    assert torch.equal(jacobian(zero), torch.eye(5, dtype=torch.float64)[:3])
    assert torch.func.jacrev(jacobian)(zero).abs().max() == 0


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_no_nan_where_nothing_is_left_to_learn(batching):
    model = ml.models.mlp(3, 4, 1, activation=nn.Tanh).double()
    x = random(2, 5, 3)
    y = model(x).detach()
    task = ml.Task(ml.Split(x, y), ml.Split(x, y + 1))
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.1, 2, clip=1.0, momentum=0.9),
                    batching=batching)
    first = torch.autograd.grad(J(task), list(J.parameters()), create_graph=True)
    plain = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.1, 2, momentum=0.9))
    wanted = torch.autograd.grad(plain(task), list(J.parameters()), create_graph=True)
    second, right = (torch.autograd.grad(sum((g * g).sum() for g in of), list(J.parameters()))
                     for of in (first, wanted))
    for a, b in zip([*first, *second], [*wanted, *right], strict=True): close(a, b, 1e-12)


def test_each_task_is_clipped_by_itself():
    x, y = random(3, 5, 3), random(3, 5, 1, seed=1)
    wild = y.clone()
    wild[1] *= 1e6
    model = ml.models.mlp(3, 4, 1, activation=nn.Tanh).double()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.1, 3, clip=5.0))
    plain = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.1, 3))
    calm, spoiled = J.adapt(ml.Split(x, y)), J.adapt(ml.Split(x, wild))
    for name, value in calm.items():
        close(spoiled[name][[0, 2]], value[[0, 2]], 1e-12)
        close(value, plain.adapt(ml.Split(x, y))[name], 1e-12)   # none of these is that steep
        moved = (spoiled[name][1] - dict(model.named_parameters())[name]).norm()
        assert moved <= 3 * 0.1 * 5.0


def test_a_clip_in_half_precision_does_not_overflow():
    g = {"w": torch.full((4,), 1000.0, dtype=torch.float16)}
    close(clipped(g, 1.0)["w"].double(), torch.full((4,), 0.5).double(), 1e-3)


class OldSGD(ml.InnerLoop):
    "Gradient descent with nothing around it."
    def step(self, loss, phi, state, k):
        slope = torch.func.grad(loss)(phi)
        return {name: phi[name] - 0.1 * slope[name] for name in phi}, state


def nodes(scalar):
    "The kinds of all nodes of a graph."
    seen, todo = {}, [scalar.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen: continue
        seen[node] = type(node).__name__
        todo += [following for following, _ in node.next_functions]
    return sorted(seen.values())


def test_without_any_of_it_the_graph_and_the_bits_are_those_of_plain_descent():
    model, task = network(), tasks()
    found = []
    for inner in (OldSGD(3), ml.SGD(0.1, 3), ml.SGD(0.1, 3, momentum=0.0, weight_decay=0)):
        J = ml.MetaLoss(model, F.cross_entropy, inner=inner)
        value = J(task)
        assert getattr(J.inner, "push", None) is None
        found.append((nodes(value), [value.detach(), *torch.autograd.grad(value, J.parameters())]))
    assert found[0][0] == found[1][0] == found[2][0]
    assert same(found[0][1], found[1][1]) and same(found[0][1], found[2][1])


# Rates


@pytest.mark.parametrize(("lr", "expected"), [
    ({"0": 0.1, "2": 0.2}, [0.1, 0.1, 0.2, 0.2]),
    ({"2.bias": 0.3, "*.bias": 0.2, "*": 0.1}, [0.1, 0.2, 0.1, 0.3]),
    ({"0.weight": 1, "*": np.float32(0.5)}, [1.0, 0.5, 0.5, 0.5])])
def test_the_first_pattern_that_matches_counts(lr, expected):
    J = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD(lr))
    found = [J.inner.lr.of(name) for name, _ in J.model.named_parameters()]
    assert found == expected and all(type(rate) is float for rate in found)


@pytest.mark.parametrize(("lr", "text"), [
    ({"0": 0.1, "haed": 0.2}, "'haed' matches no tensor; there are 0.weight, 0.bias, 2.w"),
    ({"*": 0.1, "2": 0.2}, "all that '2' matches has its rate by a pattern before it"),
    ({"0": 0.1}, "no rate for '2.weight', only for 0; one for all others is the last"),
    ({"0": 0.1, "*": 0}, r"lr\['\*'\]=0: the inner step size must be a finite number above 0"),
    ({"0": 0.1, "*": "x"}, r"lr\['\*'\]='x': the inner step size"), ({}, "lr={}: from names"),
    ({0: 0.1}, "lr={0: 0.1}: from names or patterns")])
def test_a_name_that_leads_to_nothing(lr, text):
    with pytest.raises(ValueError, match=text):
        ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD(lr))(tasks())


def test_names_are_checked_without_a_meta_loss_too():
    theta = {"w": torch.ones(2)}
    def loss(phi, split): return (phi["w"] ** 2).sum()
    assert ml.SGD({"w": 0.5}).adapt(loss, theta, None)[-1]["w"].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="'v' matches no tensor"):
        ml.SGD({"v": 0.5, "*": 0.1}).adapt(loss, theta, None)


def test_frozen_parameters_may_have_rates_and_be_unfrozen():
    model, task = network(), tasks()
    model[0].requires_grad_(False)
    J = ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD({"0": 0.3, "2": 0.5}, 2))
    head = ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD(0.5, 2))
    close(J(task), head(task), 1e-14)
    model[0].requires_grad_(True)
    assert "0.weight" in J.adapt(task.support) and (J(task) - head(task)).abs() > 1e-6


def test_rates_with_a_schedule():
    lr = {"0": ml.schedule.Linear(0.4, 0.2), "*": 0.1}
    J, task = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD(lr)), tasks()
    for step, now in ((0, 0.4), (9, 0.2)):
        J.at(step, 10)
        plain = ml.MetaLoss(J.model, F.cross_entropy, inner=ml.SGD({"0": now, "*": 0.1}))
        close(J(task), plain(task), 1e-15)
    rates = "inner=SGD(lr={'0': Linear(0.4, 0.2, until=1.0), '*': 0.1}, steps=1)"
    assert rates in repr(J)
    other = ml.SGD(lr | {"0": ml.schedule.Linear(0.4, 0.1)})
    other.join(J.model)
    assert identity(J.inner) != identity(other)
    twin = J.on(network(), F.cross_entropy)
    twin.at(0, 10)
    assert (twin.inner.lr.of("0.bias"), J.inner.lr.of("0.bias")) == (0.4, 0.2)


@compiles
def test_scheduled_habits_compile_once():
    habits = {"momentum": ml.schedule.Linear(0.9, 0.5), "clip": ml.schedule.Linear(0.5, 0.2),
              "weight_decay": ml.schedule.Linear(0.1, 0.0)}
    lr = {"0": ml.schedule.Linear(0.4, 0.2), "2.bias": nn.Parameter(torch.tensor(0.3)), "*": 0.1}
    model, task = network(), tasks()
    eager, fast = (ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD(lr, 2, **habits))
                   for _ in range(2))
    fast.compile(backend="eager")
    torch._dynamo.utils.counters.clear()
    for step in range(3):
        for J in (eager, fast): J.at(step, 3)
        values = [J(task) for J in (eager, fast)]
        slopes = [torch.autograd.grad(v, list(eager.parameters())) for v in values]
        close(values[1], values[0], 1e-14)
        for a, b in zip(*slopes, strict=True): close(a, b, 1e-14)
    assert len(slopes[0]) == 5 and slopes[0][-1].abs() > 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert eager.inner.push.momentum == 0.5 and eager.inner.push.weight_decay == 0.0


@compiles
def test_a_dictionary_under_torch_compile():
    J, task = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD({"2": 0.5, "*": 0.1})), tasks()
    close(torch.compile(J, backend="eager")(task), J(task), 1e-14)


# Learned rates


def test_a_learned_rate_is_a_parameter_of_j(tmp_path):
    J, task = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD(0.3, 2, learn_lr=True)), tasks()
    assert isinstance(J.inner.lr, nn.Parameter) and "inner.lr" in J.state_dict()
    close(J(task), ml.MAML(J.model, F.cross_entropy, lr=0.3, steps=2)(task), 1e-15)
    optimizer = torch.optim.SGD(J.parameters(), lr=0.5)
    J(task).backward()
    optimizer.step()
    learned = J.inner.lr.item()
    assert abs(learned - 0.3) > 1e-4
    ml.save_checkpoint(tmp_path / "a.pt", J)
    other = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD(0.9, 2, learn_lr=True))
    ml.load_checkpoint(tmp_path / "a.pt", other)
    for twin in (other, copy.deepcopy(J), J.on(network(), F.cross_entropy)):
        assert twin.inner.lr.item() == learned and twin.inner.lr is not J.inner.lr
        assert isinstance(twin.inner.lr, nn.Parameter)
    assert "lr=learned" in repr(J.inner)


@pytest.mark.parametrize("kind", ["Masked", "Context", "Prototypes", "Diagonal"])
def test_another_model_keeps_what_was_learned(kind):
    model, inner = built(kind, learn_lr=True, momentum=0.7)
    J = ml.MetaLoss(model, F.cross_entropy, inner=inner)
    with torch.no_grad(): J.inner.lr.fill_(-0.25)
    twin = J.on(copy.deepcopy(model), F.cross_entropy)
    assert twin.inner.lr.item() == -0.25 and twin.inner.lr is not J.inner.lr
    assert twin.inner.push.momentum == 0.7
    if kind != "Diagonal": close(twin(tasks()), J(tasks()), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learned_rate_has_the_precision_of_the_model(dtype):
    model = network().to(dtype)
    J = ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD({"2": 0.1, "*": 0.2}, learn_lr=True))
    assert all(rate.dtype == dtype for rate in J.inner.parameters())
    assert J.inner.lr.rate0.item() == torch.tensor(0.1, dtype=dtype).item()


class OneNumber(nn.Module):
    "A model with a parameter of no axis."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x): return self.scale * x


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_rate_of_another_precision_changes_none_of_the_model(batching):
    rate = nn.Parameter(torch.tensor(0.1))
    J = ml.MetaLoss(OneNumber(), F.mse_loss, inner=ml.SGD(rate), batching=batching)
    rate.data = rate.data.double()
    x = torch.ones(2, 3, 1)
    task = ml.Task(ml.Split(x, x), ml.Split(x, 2 * x))
    assert J.adapt(task.support)["scale"].dtype == torch.float32 and J(task).dtype == torch.float32
    J(task).backward()
    assert rate.grad.isfinite()


@pytest.mark.parametrize(("lr", "options", "text"), [
    (nn.Parameter(torch.tensor([0.1])), {}, r"lr is a tensor of shape \(1,\)"),
    (torch.tensor(1), {}, "of shape .* and type torch.int64; one number is needed"),
    (torch.tensor(0.1, requires_grad=True), {}, "no parameter, so that J would not know of it"),
    (ml.schedule.Linear(0.1, 0.0), {"learn_lr": True}, "learn_lr=True learns a rate from where"),
    ({"*": ml.schedule.Linear(0.1, 0.0)}, {"learn_lr": True}, "learn_lr=True learns a rate")])
def test_what_is_no_rate(lr, options, text):
    with pytest.raises(ValueError, match=text): ml.SGD(lr, **options)


def test_only_some_rates_may_be_learned():
    rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    J = ml.MetaLoss(network(), F.cross_entropy, inner=ml.SGD({"2": rate, "*": 0.1}, 2))
    assert list(J.inner.parameters()) == [rate] and J.inner.lr.rate0 is rate
    J(tasks()).backward()
    assert rate.grad.abs() > 1e-6 and repr(J.inner).count("learned") == 1
    assert ml.SGD(torch.tensor(0.5)).lr == 0.5


# The adapted model


def test_the_rates_of_an_adapted_model():
    J, task = ml.MetaLoss(network(), F.cross_entropy,
                          inner=ml.SGD({"2": 0.5, "*": 0.1}, 2, learn_lr=True)), tasks()
    x, y = task.support.x[0], task.support.y[0]
    one = ml.MAML(J.model, F.cross_entropy, lr=0.3, steps=2)
    close(J.adapted(x, y, lr=0.3)(x), one.adapted(x, y)(x), 1e-14)
    close(one.adapted(x, y, lr={"2": 0.5, "*": 0.1})(x), J.adapted(x, y)(x), 1e-14)
    assert one.inner.lr == 0.3 and isinstance(J.inner.lr.rate0, nn.Parameter)
    learned = ml.MetaLoss(J.model, F.cross_entropy, inner=ml.SGD(0.9, 2, learn_lr=True))
    close(learned.adapted(x, y, lr=0.3)(x), one.adapted(x, y)(x), 1e-14)
    with pytest.raises(ValueError, match="a schedule, which belongs to a training"):
        J.adapted(x, y, lr=ml.schedule.Linear(0.1, 0.0))
    with pytest.raises(ValueError, match="'haed' matches no tensor"):
        J.adapted(x, y, lr={"haed": 0.1, "*": 0.1})
    own = ml.MetaLoss(J.model, F.cross_entropy, inner=OwnStep(0.1))
    with pytest.raises(TypeError, match="a rate for each tensor"):
        own.adapted(x, y, lr={"*": 0.1})


# Errors, and the line to write


@pytest.mark.parametrize(("options", "text"), [
    ({"momentum": -0.1}, "momentum=-0.1: a finite number, 0 or more"),
    ({"momentum": float("nan")}, "momentum=nan: a finite"), ({"momentum": "0.9"}, "momentum='0.9'"),
    ({"momentum": nn.Parameter(torch.tensor(0.0))}, "momentum=a Parameter"),
    ({"momentum": 0.9, "nesterov": "yes"}, "nesterov='yes': True or False"),
    ({"nesterov": True}, "nesterov=True looks ahead along the momentum, and there is none"),
    ({"weight_decay": -1}, "weight_decay=-1: a finite number, 0 or more"),
    ({"clip": 0}, "clip=0: a finite number, above 0"), ({"clip": float("inf")}, "clip=inf"),
    ({"clip": True}, "clip=True: a finite number, above 0"), ({"lr": True}, "lr=True: the inner"),
    ({"lr": "0.1"}, "lr='0.1': the inner"), ({"lr": float("inf")}, "lr=inf: the inner step")])
def test_numbers_that_are_none(options, text):
    with pytest.raises(ValueError, match=text): ml.SGD(**options)


MAKERS = {
    "SGD": lambda *a, **k: ml.SGD(*a, momentum=np.float32(0.5), clip=np.float64(2),
                                  weight_decay=np.float32(0.25), **k),
    "Adam": lambda *a, **k: ml.Adam(*a, beta2=np.float32(0.5), eps=np.float32(0.25), **k),
    "SAM": lambda *a, **k: ml.SAM(*a, rho=np.float32(0.5), **k),
    "Masked": lambda *a, **k: ml.Masked(network(), *a, only="2", **k),
    "Context": lambda *a, **k: ml.Context(network(2), *a, **k),
    "Diagonal": lambda *a, **k: ml.Diagonal(network(), *a, **k),
    "Kronecker": lambda *a, **k: ml.Kronecker(network(), *a, **k),
    "Prototypes": lambda *a, **k: ml.Prototypes(network(), *a, **k)}


@pytest.mark.parametrize("kind", MAKERS)
def test_numbers_of_numpy_are_numbers(kind):
    inner = MAKERS[kind](np.float32(0.5), np.int64(3), batch_size=np.int32(2))
    twin = MAKERS[kind](0.5, 3, batch_size=2)
    assert (inner.lr, inner.steps, inner.batch_size) == (0.5, 3, 2)
    assert identity(inner) == identity(twin) and repr(inner) == repr(twin)
    numbers = {name: type(value) for part in inner.modules() for name, value in vars(part).items()
               if isinstance(value, (float, int, np.number))}
    assert set(numbers.values()) <= {float, int, bool}, numbers
    scheduled = ml.SGD(lambda step, steps: np.float32(0.5))
    assert type(scheduled.lr) is float


def test_one_number_of_numpy_as_the_steps_of_a_curve():
    J = ml.MAML(network(), F.cross_entropy)
    with pytest.raises(ValueError, match="such as"): J.curve(tasks(), steps=np.int64(3))
    assert J.curve(tasks(), steps=np.array([0, 2])).shape == (3, 2)


def optimizer(kind, **options): return kind(network().parameters(), **options)


@pytest.mark.parametrize(("inner", "text"), [
    (ml.SGD, r"the class SGD itself; .*: write inner=ml.SGD\(lr=0.01, steps=1\)"),
    (ml.Masked, r"the class Masked .*: write inner=ml.Masked\(model, lr=0.01, steps=1\)"),
    (OwnStep, r"the class OwnStep itself; .*: write inner=OwnStep\(lr=0.01, steps=1\)"),
    ("sgd", r"inner is 'sgd', .* write inner=ml.SGD\(lr=0.01, steps=1\)"),
    ("adam", r"inner is 'adam', .* write inner=ml.Adam\(lr=0.001, steps=5\)"),
    (0.1, r"inner is 0.1, which is no inner loop: write inner=ml.SGD\("),
    (torch.optim.SGD, r"torch.optim's SGD, .* write inner=ml.SGD\(lr=0.01, steps=1\)"),
    (torch.optim.Adam, r"torch.optim's Adam, .* write inner=ml.Adam\(lr=0.001, steps=5\)"),
    (optimizer(torch.optim.SGD, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
     r"inner=ml.SGD\(lr=0.3, steps=1, momentum=0.9, weight_decay=0.1, nesterov=True\)"),
    (optimizer(torch.optim.AdamW, lr=0.3), r"write inner=ml.Adam\(lr=0.3, steps=5\)"),
    (optimizer(torch.optim.RMSprop, lr=0.3), r"write inner=ml.SGD\(lr=0.3, steps=1\)")])
def test_what_is_no_inner_loop(inner, text):
    with pytest.raises(TypeError, match=text): ml.MetaLoss(network(), F.cross_entropy, inner=inner)


@pytest.mark.parametrize(("dtype", "eps", "text"), [
    (torch.float16, 1e-8, "'0.weight' is of torch.float16, in which"),
    (torch.float16, 1e-2, "squares of small gradients are zero"),
    (torch.float32, 1e-20, "ε² = 1e-40")])
def test_adam_in_too_little_precision(dtype, eps, text):
    J, task = ml.MetaLoss(network().to(dtype), F.cross_entropy, inner=ml.Adam(eps=eps)), tasks()
    with pytest.raises(ValueError, match=text): J(task.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adam_in_enough_precision(dtype):
    J, task = ml.MetaLoss(network().to(dtype), F.cross_entropy, inner=ml.Adam()), tasks()
    assert J(task.to(dtype)).isfinite()


@pytest.mark.parametrize("formula", [as_written.maml, as_written.reptile, as_written.contrastive,
                                     as_written.meta_curvature])
@pytest.mark.parametrize("lr", [-0.1, float("nan"), "0.1", {"*": 0.1}])
def test_formulas_take_one_step_size_above_zero(formula, lr):
    with pytest.raises(ValueError, match="the inner step size must be a finite number above 0"):
        formula(network(), F.cross_entropy, tasks(), lr=lr)
    J = as_written.AsWritten(network(), F.cross_entropy, formula)
    J.inner.lr = lr
    with pytest.raises(ValueError, match="must be a finite number above 0"): J(tasks())
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        as_written.AsWritten(network(), F.cross_entropy, formula, lr=lr)


def test_a_formula_without_a_step_stands_still():
    "As a figure shows it, whose reader moves the step size to its left end."
    model, task = network(), tasks()
    close(as_written.maml(model, F.cross_entropy, task, lr=0.0),
          ml.MAML(model, F.cross_entropy, lr=0.1, steps=0)(task), 1e-12)


def test_a_formula_learns_its_rate():
    rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    J = as_written.AsWritten(network(), F.cross_entropy, as_written.maml, lr=rate)
    twin = ml.MetaLoss(J.model, F.cross_entropy, inner=ml.SGD(0.3, learn_lr=True))
    J(tasks()).backward()
    twin(tasks()).backward()
    close(rate.grad, twin.inner.lr.grad, 1e-14)
