"""All tasks at once, or one after another: the same numbers, and what only a loop can run."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import metalit as ml
from metalit.batching import grad, hvp, looped, vmapped


def found(J, task) -> list[torch.Tensor]:
    "Value and gradient in all parameters; zeros where J does not depend on one."
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(J.parameters()), allow_unused=True,
                                                 materialize_grads=True)]


def classes(tasks: int = 4, ways: int = 3, each: int = 2) -> ml.Task:
    "Points in the plane, three classes: (tasks, 6, 2)."
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, tasks, ways * each, 2, generator=generator, dtype=torch.float64)
    y = torch.arange(ways).repeat(tasks, each)
    return ml.Task(ml.Split(x[0], y), ml.Split(x[1], y))


def regression(method, **options):
    def make(batching):
        model = ml.models.mlp(1, 5, 1, activation=nn.Tanh, seed=2).double()
        return method(model, F.mse_loss, lr=0.1, steps=2, batching=batching, **options)
    return make


def classification(method, **options):
    def make(batching):
        model = ml.models.mlp(2, 6, 3, activation=nn.Tanh, seed=2).double()
        return method(model, F.cross_entropy, batching=batching, **options)
    return make


def with_terms(terms, inner=None):
    def make(batching):
        model = ml.models.mlp(1, 5, 1, activation=nn.Tanh, seed=2).double()
        return ml.MetaLoss(model, F.mse_loss, inner=inner(model) if inner else ml.SGD(0.1, 2),
                           terms=terms(), batching=batching)
    return make


REGRESSION = {
    "MAML": regression(ml.MAML), "FOMAML": regression(ml.FOMAML),
    "Reptile": regression(ml.Reptile), "Reptile, three at a time": regression(ml.Reptile,
                                                                              batch_size=3),
    "ConML": regression(ml.ConML), "TripletMAML": regression(ml.TripletMAML),
    "SharpMAML": regression(ml.SharpMAML), "ANIL": regression(ml.ANIL),
    "BOIL": regression(ml.BOIL),
    "Adam": with_terms(ml.QueryLoss, lambda model: ml.Adam(0.1, 3)),
    "Diagonal": with_terms(ml.QueryLoss, lambda model: ml.Diagonal(model, 0.1, 2)),
    "Kronecker": with_terms(ml.QueryLoss, lambda model: ml.Kronecker(model, 0.1, 2)),
    "GradientNorm": with_terms(ml.GradientNorm),
    "GradientNorm at the start": with_terms(lambda: ml.QueryLoss() + 0.1 * ml.GradientNorm("init")),
}
CLASSIFICATION = {
    "ProtoNet": classification(ml.ProtoNet), "ProtoMAML": classification(ml.ProtoMAML, steps=2),
    "CAVIA": lambda batching: ml.CAVIA(ml.models.Contextual(ml.models.mlp(5, 6, 3, seed=1), 3)
                                       .double(), F.cross_entropy, steps=2, batching=batching),
}


@pytest.mark.parametrize("name", [*REGRESSION, *CLASSIFICATION])
def test_a_loop_equals_vmap(name, sines):
    task, make = ((sines, REGRESSION[name]) if name in REGRESSION
                  else (classes(), CLASSIFICATION[name]))
    at_once, one_by_one = found(make("vmap"), task), found(make("loop"), task)
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-14, atol=1e-14)
    assert max(g.abs().max() for g in at_once[1:]) > 1e-3


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_adapt_predict_curve_and_report(batching, small_net, sines):
    J = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2, batching=batching)
    plain = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2)
    phi = J.adapt(sines.support, steps=3)
    torch.testing.assert_close(phi, plain.adapt(sines.support, steps=3), rtol=0, atol=1e-14)
    torch.testing.assert_close(J.predict(phi, sines.query.x), plain.predict(phi, sines.query.x),
                               rtol=0, atol=1e-14)
    for transductive in (True, False):
        torch.testing.assert_close(J.curve(sines, (0, 3), transductive=transductive),
                                   plain.curve(sines, (0, 3), transductive=transductive), rtol=0,
                                   atol=1e-14)
    assert J.report(sines) == pytest.approx(plain.report(sines), abs=1e-14)
    assert not J.curve(sines).requires_grad


def test_both_ways_by_themselves():
    def one(shared, part): return {"sum": shared * part["x"].sum(), "first": part["x"][0]}
    own = {"x": torch.arange(6.0).reshape(3, 2)}
    torch.testing.assert_close(looped(one, 2.0, own), vmapped(one, 2.0, own), rtol=0, atol=0)
    assert looped(one, 2.0, own)["sum"].tolist() == [2.0, 10.0, 18.0]


# What only a loop can run


class Sign(torch.autograd.Function):
    "An autograd function of the old style, whose backward is no derivative: straight through."
    @staticmethod
    def forward(ctx, x): return x.sign()

    @staticmethod
    def backward(ctx, weight): return weight.clone()


class StraightThrough(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(1, 6), nn.Linear(6, 1)

    def forward(self, x): return self.last(0.7 * Sign.apply(self.first(x)) + self.first(x).tanh())


class Sine(torch.autograd.Function):
    "A sine that numpy computes; its derivative is one of the same kind, so it has a second one."
    @staticmethod
    def forward(ctx, x, shift):
        ctx.save_for_backward(x)
        ctx.shift = shift
        return torch.from_numpy(np.sin(x.detach().numpy() + shift))

    @staticmethod
    def backward(ctx, weight): return weight * Sine.apply(ctx.saved_tensors[0],
                                                          ctx.shift + np.pi / 2), None


class ThroughNumpy(nn.Module):
    "Rounded by numpy, straight through, and a sine by numpy."
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(1, 6), nn.Linear(6, 1)

    def forward(self, x):
        h = self.first(x)
        rounded = torch.from_numpy(np.round(h.detach().numpy()))
        return self.last(Sine.apply(h + (rounded - h).detach(), 0.0))


class Alone(nn.Module):
    "Looks at a number, and at what is around it: no vmap, and no torch.func."
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        assert torch._C._functorch.maybe_current_level() is None
        assert not torch._C._functorch.is_functorch_wrapped_tensor(self.layer.weight)
        y = self.layer(x)
        return y if y.sum().item() > 0 else y.tanh()


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Linear(1, 6), nn.Tanh()), nn.Linear(6, 1)

    def forward(self, x): return self.last(checkpoint(self.body, x, use_reentrant=False))


class Recurrent(nn.Module):
    "Reads the examples one after the other."
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4), nn.Linear(4, 1)

    def forward(self, x):
        whole = nn.utils.rnn.pack_sequence([x])
        return self.last(nn.utils.rnn.unpack_sequence(self.lstm(whole)[0])[0])


def impatient(prediction, y):
    "A decision in Python that depends on a value."
    loss = F.mse_loss(prediction, y)
    return loss if loss.item() < 4 else 2 * loss


ONLY_A_LOOP = {"straight through": (StraightThrough, F.mse_loss),
               "checkpoint": (Checkpointed, F.mse_loss), "packed": (Recurrent, F.mse_loss),
               "numpy": (ThroughNumpy, F.mse_loss), "no torch.func": (Alone, F.mse_loss),
               "item": (lambda: ml.models.mlp(1, 5, 1, activation=nn.Tanh), impatient)}


def by_hand(model, loss, task, constant):
    "MAML with two steps of 0.1: value and gradient, by nothing but torch.autograd.grad."
    theta, values = dict(model.named_parameters()), []
    for i in range(task.batch_size):
        phi = theta
        for _ in range(2):
            at = {n: p.detach().requires_grad_() for n, p in phi.items()} if constant else phi
            value = loss(functional_call(model, at, (task.support.x[i],)), task.support.y[i])
            slopes = torch.autograd.grad(value, list(at.values()), create_graph=not constant)
            phi = {name: p - 0.1 * g for (name, p), g in zip(phi.items(), slopes, strict=True)}
        values.append(loss(functional_call(model, phi, (task.query.x[i],)), task.query.y[i]))
    value = torch.stack(values).mean()
    return [value.detach(), *torch.autograd.grad(value, list(theta.values()))]


@pytest.mark.parametrize("method", [ml.MAML, ml.FOMAML])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("name", ONLY_A_LOOP)
def test_a_loop_runs_what_vmap_refuses(name, chunk_size, method, sines):
    make, loss = ONLY_A_LOOP[name]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        model = make().double()
    with pytest.raises(Exception, match=r"."):
        found(method(model, loss, lr=0.1, steps=2), sines)
    J = method(model, loss, lr=0.1, steps=2, batching="loop", chunk_size=chunk_size)
    torch.testing.assert_close(found(J, sines), by_hand(model, loss, sines, method is ml.FOMAML),
                               rtol=0, atol=1e-13)
    assert J.curve(sines).shape == (6, 2)


def test_what_a_function_closes_over_is_constant_in_a_loop():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def one(phi, task):
        at = {"w": phi["w"] * 1.0}
        return hvp(lambda p: (p["w"] ** 4).sum())(at, at)["w"]  # 12·w²·w
    tasks = torch.zeros(1, 1)
    torch.testing.assert_close(looped(one, {"w": w}, tasks), vmapped(one, {"w": w}, tasks))


# Dropout


def dropout_net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_dropout_in_a_loop(chunk_size, sines):
    "Each task draws its own numbers, and a recomputation draws them again."
    model = dropout_net()
    J = ml.MAML(model, F.mse_loss, lr=0.1, batching="loop", chunk_size=chunk_size)
    whole = ml.MAML(model, F.mse_loss, lr=0.1, batching="loop")
    same = sines.select(torch.zeros(6, dtype=torch.long))
    with torch.random.fork_rng(devices=()):
        runs = []
        for which in (J, whole):
            torch.manual_seed(1)
            runs.append(found(which, sines))
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-13, atol=1e-13)
        assert len(set(J.per_task(same)[0].tolist())) == 6


# Numbers with a schedule, and recomputation


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_recomputation_sees_the_numbers_of_its_forward_pass(batching, small_net, sines):
    "J moves on between the forward and the backward pass, as in a run that looks ahead."
    def make(chunk_size):
        J = ml.MetaLoss(small_net, F.mse_loss, chunk_size=chunk_size, batching=batching,
                        inner=ml.SGD(ml.schedule.Linear(0.1, 0.5), 2),
                        terms=ml.QueryLoss() + ml.schedule.Linear(1.0, 0.0) * ml.GradientNorm())
        J.at(0, 3)
        return J

    def moving_on(J):
        value = J(sines)
        J.at(2, 3)
        gradient = torch.autograd.grad(value, list(J.parameters()))
        assert (J.inner.lr, J.terms.weights) == (0.5, [1.0, 0.0])  # and they are as set afterwards
        return [value.detach(), *gradient]
    expected = found(make(None), sines)
    torch.testing.assert_close(moving_on(make(4)), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(moving_on(make(None)), expected, rtol=0, atol=1e-13)
    later = make(4)
    later.at(2, 3)
    assert (found(later, sines)[1] - expected[1]).abs().max() > 1e-3


def test_an_error_in_a_recomputation_leaves_the_numbers_alone(small_net, sines):
    failing = []

    def loss(prediction, y):
        if failing: raise ZeroDivisionError
        return F.mse_loss(prediction, y)
    J = ml.MetaLoss(small_net, loss, chunk_size=2, inner=ml.SGD(ml.schedule.Linear(0.1, 0.5)))
    value = J(sines)
    J.at(1, 2)
    failing.append(True)
    with pytest.raises(ZeroDivisionError): value.backward()
    assert J.inner.lr == 0.5


# Refused


def test_another_way_is_refused(small_net):
    with pytest.raises(ValueError, match=r"batching='other': choose 'vmap', .* or 'loop'"):
        ml.MAML(small_net, F.mse_loss, batching="other")


def test_a_loop_is_not_compiled(small_net):
    J = ml.MAML(small_net, F.mse_loss, batching="loop")
    with pytest.raises(ValueError, match="'loop' runs one task after another, which is no single"):
        J.compile()
    assert not J.is_compiled


# Compiled by the user


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("inner", [ml.SGD, ml.Adam])
def test_torch_compile_of_a_meta_loss(inner, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner(0.1, 2),
                    terms=ml.QueryLoss() + 0.1 * ml.GradientNorm())
    expected = found(J, sines)
    compiled = torch.compile(J, backend="aot_eager" if inner is ml.SGD else "eager", fullgraph=True)
    torch.testing.assert_close(found(compiled, sines), expected, rtol=0, atol=1e-12)


def test_the_gradient_inside_is_that_of_the_place_where_it_stands():
    "Under vmap, in a loop, and without gradients: one number."
    def one(phi, x): return grad(lambda p: (p["w"] * x).pow(3).sum())(phi)["w"]
    w, x = torch.tensor([2.0], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    for each in (vmapped, looped):
        assert each(one, {"w": w}, x).flatten().tolist() == [12.0] * 3
        with torch.no_grad(): assert each(one, {"w": w}, x).flatten().tolist() == [12.0] * 3
