"""A model that uses one layer, or one weight, under two names.

Right values, right gradients, and it is never damaged.

The referee is a loop over tasks and steps of `torch.autograd.grad`, with the model written out by
hand.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metalit as ml
from metalit import as_written

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own

LR, STEPS = 0.1, 2


class SharedModule(nn.Module):
    "One layer under two names, and three times in a list."
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(1, 3), nn.Linear(3, 1)
        self.a = self.b = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([self.a] * 3)

    def forward(self, x):
        x = self.b(torch.tanh(self.a(torch.tanh(self.into(x)))))
        for block in self.blocks: x = torch.tanh(block(x))
        return self.out(x)

    @staticmethod
    def by_hand(p, x):
        def linear(name, x): return x @ p[name + ".weight"].T + p[name + ".bias"]
        x = linear("a", torch.tanh(linear("a", torch.tanh(linear("into", x)))))
        for _ in range(3): x = torch.tanh(linear("a", x))
        return linear("out", x)


class SharedParameter(nn.Module):
    "Two layers with one weight and a bias each; a buffer under two names."
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(1, 3), nn.Linear(3, 1)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("shift", torch.tensor(0.5))
        self.register_buffer("again", self.shift)

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.into(x))))))
                        + self.shift * self.again)

    @staticmethod
    def by_hand(p, x):
        x = torch.tanh(x @ p["into.weight"].T + p["into.bias"])
        x = torch.tanh(x @ p["a.weight"].T + p["a.bias"])
        x = torch.tanh(x @ p["a.weight"].T + p["b.bias"])
        return (x + 0.5**2) @ p["out.weight"].T + p["out.bias"]


class Both(nn.Module):
    "A layer under two names that shares its weight with another one."
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(1, 3), nn.Linear(3, 1)
        self.a = self.b = nn.Linear(3, 3)
        self.c = nn.Linear(3, 3, bias=False)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.out(self.c(torch.tanh(self.b(torch.tanh(self.a(self.into(x)))))))

    @staticmethod
    def by_hand(p, x):
        x = x @ p["into.weight"].T + p["into.bias"]
        for _ in range(2): x = torch.tanh(x @ p["a.weight"].T + p["a.bias"])
        return x @ p["a.weight"].T @ p["out.weight"].T + p["out.bias"]


class Kept(ml.Term):
    "A term that keeps the model, and measures it at θ."
    def __init__(self, model):
        super().__init__()
        self.model = model

    def per_task(self, path, task):
        return path.loss(path.final, task.query) + F.mse_loss(self.model(task.query.x),
                                                              task.query.y)


class LossThatKeeps(nn.Module):
    "A task loss that keeps the model, and weighs down its first weights."
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, prediction, y):
        return F.mse_loss(prediction, y) + 0.1 * self.model.into.weight.square().sum()


MODELS = {"module": SharedModule, "parameter": SharedParameter, "both": Both}
FORMS = {"whole": {}, "chunked": {"chunk_size": 4}, "one by one": {"chunk_size": 1}}
WITH_COMPILED = [*((kind, form) for kind in MODELS for form in FORMS), ("both", "compiled")]


def made(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[kind]().double()


def by_loop(model: nn.Module, task: ml.Task, *, keeps: bool = False) -> tuple[Tensor, list[Tensor]]:
    "MAML, with the loss at θ added where a term keeps the model."
    theta, total = dict(model.named_parameters()), 0
    for x, y, x_query, y_query in zip(*task.support, *task.query, strict=True):
        phi = theta
        for _ in range(STEPS):
            loss = F.mse_loss(model.by_hand(phi, x), y)
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), slopes, strict=True)}
        total = total + F.mse_loss(model.by_hand(phi, x_query), y_query)
        if keeps: total = total + F.mse_loss(model.by_hand(theta, x_query), y_query)
    value = total / task.batch_size
    return value.detach(), list(torch.autograd.grad(value, list(theta.values())))


class Untouched:
    "Inside, a model may be used; afterwards it has the same tensors, and they the same bits."
    def __init__(self, model):
        self.model = model

    def tensors(self):
        return {(name, key): tensor
                for name, part in self.model.named_modules(remove_duplicate=False)
                for key, tensor in [*part._parameters.items(), *part._buffers.items()]
                if tensor is not None}

    def __enter__(self):
        self.before, self.bits = self.tensors(), copy.deepcopy(self.model.state_dict())

    def __exit__(self, *error):
        after = self.tensors()
        assert after.keys() == self.before.keys()
        assert all(after[place] is tensor for place, tensor in self.before.items())
        assert all(torch.equal(self.bits[name], tensor)
                   for name, tensor in self.model.state_dict().items())
        assert not any(torch._C._functorch.is_functorch_wrapped_tensor(tensor)
                       for tensor in after.values())


def assert_equal_to_loop(J: ml.MetaLoss, task: ml.Task, *, keeps: bool = False) -> None:
    expected, gradients = by_loop(J.model, task, keeps=keeps)
    for _ in range(2):  # the second call meets what the first one left
        with Untouched(J.model): value = J(task)
        with Untouched(J.model): found = torch.autograd.grad(value, list(J.model.parameters()))
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(list(found), gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_a_loop_and_the_model_is_untouched(kind, form, sines):
    J = ml.MAML(made(kind), F.mse_loss, lr=LR, steps=STEPS, **FORMS[form])
    assert_equal_to_loop(J, sines)
    with Untouched(J.model):
        phi = J.adapt(sines.support)
        J.predict(phi, sines.query.x)
        J.curve(sines, (0, 2))
        J.report(sines)


@pytest.mark.parametrize(("kind", "form"), WITH_COMPILED)
def test_a_term_that_keeps_the_model(kind, form, sines):
    model = made(kind)
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(LR, STEPS), terms=Kept(model),
                    **FORMS.get(form, {}))
    if form == "compiled": J.compile(backend="eager")
    assert_equal_to_loop(J, sines, keeps=True)


@pytest.mark.parametrize("form", [*FORMS, "compiled"])
def test_a_loss_that_keeps_the_model(form, sines):
    "The loss keeps the module, whose weights are θ whenever the model itself is not being called."
    model = made("both")
    J = ml.MetaLoss(model, LossThatKeeps(model), inner=ml.SGD(LR, STEPS), **FORMS.get(form, {}))
    if form == "compiled": J.compile(backend="eager")
    expected, gradients = by_loop(model, sines)
    penalty = 0.1 * model.into.weight.square().sum()
    gradients[0] = gradients[0] + torch.autograd.grad(penalty, model.into.weight)[0]
    for _ in range(2):
        with Untouched(model):
            value = J(sines)
            found = torch.autograd.grad(value, list(model.parameters()))
        torch.testing.assert_close(value.detach(), expected + penalty.detach(), rtol=0, atol=1e-14)
        torch.testing.assert_close(list(found), gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", MODELS)
def test_as_written(kind, sines):
    model = made(kind)
    theta, total = dict(model.named_parameters()), 0
    for x, y, x_query, y_query in zip(*sines.support, *sines.query, strict=True):
        slopes = torch.autograd.grad(F.mse_loss(model.by_hand(theta, x), y), list(theta.values()),
                                     create_graph=True)
        phi = {name: p - LR * g for (name, p), g in zip(theta.items(), slopes, strict=True)}
        total = total + F.mse_loss(model.by_hand(phi, x_query), y_query) / sines.batch_size
    for _ in range(2):
        with Untouched(model): value = as_written.maml(model, F.mse_loss, sines, lr=LR)
        torch.testing.assert_close(value.detach(), total.detach(), rtol=0, atol=1e-14)
        torch.testing.assert_close(
            torch.autograd.grad(value, list(theta.values())),
            torch.autograd.grad(total, list(theta.values()), retain_graph=True), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize(("kind", "form"), WITH_COMPILED)
def test_untouched_when_the_call_raises(kind, form, sines):
    calls = []

    def fails(prediction, y):
        calls.append(1)
        if len(calls) > 2: raise ArithmeticError("in the middle")
        return F.mse_loss(prediction, y)

    J = ml.MAML(made(kind), fails, lr=LR, steps=STEPS, **FORMS.get(form, {}))
    if form == "compiled": J.compile(backend="eager")
    with Untouched(J.model), pytest.raises(Exception, match="in the middle"): J(sines)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_that_is_tied_between_calls_is_adapted_in_both_places(compiled):
    "No name is new, but one stands in one more place of the model."
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x): return self.b(self.a(x))

    def shared():
        torch.manual_seed(0)
        model = Twice().double()
        return ml.MAML(model, F.mse_loss, lr=LR, steps=STEPS), model
    task = ml.tasks.Sinusoids(shots=3).batch(4).to(torch.float64)
    (J, model), (fresh, other) = shared(), shared()
    other.b.weight = other.a.weight
    if compiled: J.compile(backend="eager")
    J(task)
    model.b.weight = model.a.weight
    J(task).backward()
    fresh(task).backward()
    torch.testing.assert_close(J(task), fresh(task), rtol=1e-12, atol=0)
    for one, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, right.grad, rtol=1e-12, atol=0)
