"""Mixed mode: the exact gradient by forward over reverse, with the path and no graph kept."""
import pytest
import torch
import torch.nn.functional as F
from helpers import close
from referee import Mean, by_loop, drawn, off, series, slope_by_difference
from torch import nn
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml
from metalit.batching.slope import grad
from metalit.training.memory import step_memory


def slopes(J, task, **options):
    "Value and gradient in all parameters; they depend on a seed where the model draws numbers."
    torch.manual_seed(0)
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(J.parameters()), allow_unused=True,
                                                 materialize_grads=True, **options)]


def both(model, loss, task, inner, **options):
    "What mixed mode finds, and what the exact rule finds, with two inner loops made alike."
    return [slopes(ml.MetaLoss(model, loss, inner=inner(), gradient=rule(), **options), task)
            for rule in (ml.MixedMode, ml.Exact)]


class Bent(nn.Module):
    "An inner loss with numbers to be learned."
    def __init__(self):
        super().__init__()
        self.bend, self.scale = (nn.Parameter(torch.tensor(v, dtype=torch.float64))
                                 for v in (0.3, 1.2))

    def forward(self, prediction, y):
        return (self.scale * ((prediction - y) ** 2 + self.bend ** 2).sqrt()).mean()


class Polyak(ml.InnerLoop):
    "A step as long as the loss is high: the value of the loss is used, not its gradient alone."
    def step(self, loss, phi, state, k):
        slope = grad(loss)(phi)
        length = loss(phi) / (1 + torch.stack([(g ** 2).sum() for g in slope.values()]).sum())
        return {name: phi[name] - length * g for name, g in slope.items()}, state


INNER = {
    "sgd": lambda net: ml.SGD(0.1, 3), "no step": lambda net: ml.SGD(0.1, 0),
    "habits": lambda net: ml.SGD(0.1, 3, momentum=0.9, nesterov=True, weight_decay=0.1, clip=1.0),
    "learned rate": lambda net: ml.SGD(0.1, 3, learn_lr=True),
    "learned rates": lambda net: ml.SGD({"0": 0.1, "*": 0.05}, 3, learn_lr=True, momentum=0.5),
    "batches": lambda net: ml.SGD(0.1, 3, batch_size=3), "sam": lambda net: ml.SAM(0.1, 3, rho=0.1),
    "adam": lambda net: ml.Adam(0.01, 3), "diagonal": lambda net: ml.Diagonal(net, 0.1, 3),
    "kronecker": lambda net: ml.Kronecker(net, 0.1, 3),
    "masked": lambda net: ml.Masked(net, 0.1, 3, only="2.*"),
    "body": lambda net: ml.Masked(net, 0.1, 3, without="2.*"),
    "learned loss": lambda net: ml.SGD(0.1, 3, loss=Bent()),
    "value used": lambda net: Polyak(3),
}


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("name", INNER)
def test_every_inner_loop_has_the_exact_gradient(name, batching, small_net, sines):
    inner = INNER[name]
    found, expected = both(small_net, F.mse_loss, sines, lambda: inner(small_net),
                           batching=batching)
    assert torch.equal(found[0], expected[0])
    assert off(found, expected) < 1e-13


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_contexts_and_prototypes(batching, sines):
    model = ml.models.Contextual(ml.models.mlp(3, 5, 1, activation=nn.Tanh), 2).double()
    assert off(*both(model, F.mse_loss, sines, lambda: ml.Context(model, 1.0, 2),
                     batching=batching)) < 1e-13
    x = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = ml.Task(*(ml.Split(part, torch.arange(6).remainder(3).expand(3, 6))
                     for part in (x, x.flip(1))))
    net = ml.models.mlp(4, 5, 3, activation=nn.Tanh).double()
    assert off(*both(net, F.cross_entropy, task, lambda: ml.Prototypes(net, 0.1, 2),
                     batching=batching)) < 1e-13


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_plain_loop_finds_the_same(batching):
    model, task = drawn(Mean(lambda layer, x: layer(x), nn.Linear(4, 4))), series()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.3, 2), gradient=ml.MixedMode(),
                    batching=batching)
    assert off(slopes(J, task), by_loop(model, F.mse_loss, task)) < 1e-13


@pytest.mark.parametrize("name", ["habits", "learned rates", "kronecker", "adam", "learned loss"])
def test_finite_differences_of_the_value(name, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=INNER[name](small_net), gradient=ml.MixedMode())
    parameters = list(J.parameters())
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    _, *found = slopes(J, sines)
    slope = sum(float((g * d).sum()) for g, d in zip(found, along, strict=True))
    expected = slope_by_difference(lambda: J(sines), parameters, along)
    assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("terms", [
    ml.QueryLoss() + 0.1 * ml.GradientNorm(), ml.GradientNorm(at="init"),
    ml.QueryLoss() + ml.Triplet() - 0.2 * ml.Contrast(), ml.ParameterDistance()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 4}], ids=str)
def test_terms_and_ways(terms, options, small_net, sines):
    assert off(*both(small_net, F.mse_loss, sines, lambda: ml.SGD(0.1, 2, momentum=0.5),
                     terms=terms, **options)) < 1e-12


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_j_can_be_differentiated_twice(batching, small_net, sines):
    def product(rule):
        J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), gradient=rule,
                        batching=batching)
        first = torch.autograd.grad(J(sines), list(J.parameters()), create_graph=True)
        return torch.autograd.grad(sum((g ** 2).sum() for g in first), list(J.parameters()))
    assert off(product(ml.MixedMode()), product(ml.Exact())) < 1e-12


def test_data_that_ask_for_a_gradient_get_theirs(small_net, sines):
    def data_slopes(rule):
        x = sines.support.x.clone().requires_grad_()
        task = ml.Task(ml.Split(x, sines.support.y), sines.query)
        J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), gradient=rule)
        return torch.autograd.grad(J(task), x)
    assert off(data_slopes(ml.MixedMode()), data_slopes(ml.Exact())) < 1e-13


@pytest.mark.parametrize("loss", [
    F.huber_loss, nn.HuberLoss(delta=0.2), nn.MSELoss(reduction="sum"), nn.SmoothL1Loss(),
    lambda p, y: nn.HuberLoss(reduction="none")(p, y).sum()],
    ids=["huber", "narrow", "sum", "smooth", "own"])
def test_losses_that_pytorch_cannot_derive_forwards(loss, small_net, sines):
    assert off(*both(small_net, loss, sines, lambda: ml.SGD(0.02, 2))) < 1e-13


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_chance_is_drawn_again_as_it_was(batching, sines):
    net = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    J = ml.MAML(net, F.mse_loss, lr=0.1, steps=2, gradient=ml.MixedMode(), batching=batching)
    _, *found = slopes(J, sines)
    along = [torch.ones_like(p) for p in J.parameters()]

    def value():
        torch.manual_seed(0)
        return J(sines)
    expected = slope_by_difference(value, list(J.parameters()), along)
    assert float(sum(g.sum() for g in found)) == pytest.approx(expected, rel=1e-6)
    before = torch.get_rng_state()
    value = J(sines)
    after = torch.get_rng_state()
    net.eval()                                               # the way back is in the old mode
    torch.autograd.grad(value, list(J.parameters()))
    assert not net.training and torch.equal(torch.get_rng_state(), after)
    net.train()
    torch.set_rng_state(before)
    again = J(sines)
    first = torch.autograd.grad(again, list(J.parameters()), retain_graph=True)
    net.eval()
    for a, b in zip(first, torch.autograd.grad(again, list(J.parameters())), strict=True):
        assert torch.equal(a, b)


class Aliased(nn.Module):
    "The exact rule under another name."
    def forward(self, walk, value, theta): return ml.Exact()(walk, value, theta)


def kept_per_step(rule, batching="vmap"):
    "Bytes that one step more keeps, in copies of φ for each task."
    net, tasks = ml.models.mlp(1, 40, 40, 1), ml.tasks.Sinusoids(shots=40).batch(4)
    def graph(steps):
        J = ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.01, steps, momentum=0.5), gradient=rule,
                        batching=batching)
        return step_memory(J, tasks).graph
    copies = 4 * sum(p.numel() * p.element_size() for p in net.parameters())
    random = torch.get_rng_state().nbytes * (4 if batching == "loop" else 1)
    return (graph(4) - graph(2) - 2 * random) / 2 / copies


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_step_keeps_one_copy_of_phi_and_no_graph(batching):
    assert kept_per_step(ml.MixedMode(), batching) < 1.05
    assert kept_per_step(Aliased(), batching) > 2


def nodes(value):
    "The names of all nodes of the graph behind a value."
    seen, todo = set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen: continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
    return [type(node).__name__ for node in seen]


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_no_second_reverse_graph_is_built(batching, small_net, sines):
    def of(rule, steps):
        return nodes(ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, steps), gradient=rule,
                                 batching=batching)(sines))
    def products(names): return sum("mm" in name.lower() for name in names)
    assert products(of(ml.MixedMode(), 3)) == products(of(ml.MixedMode(), 1))
    assert products(of(Aliased(), 3)) > products(of(Aliased(), 1))
    assert not any("BackwardBackward" in name for name in of(ml.MixedMode(), 3))


class Cube(torch.autograd.Function):
    "x³, whose gradient PyTorch cannot differentiate backwards."
    generate_vmap_rule = True

    @staticmethod
    def forward(x): return x ** 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, weight): return 3 * ctx.saved_tensors[0] ** 2 * weight

    @staticmethod
    def jvp(ctx, moves): return 3 * ctx.saved_tensors[0] ** 2 * moves


class Cubes(nn.Module):
    def __init__(self, cube):
        super().__init__()
        self.layer, self.cube = nn.Linear(1, 1), cube

    def forward(self, x): return self.cube(self.layer(x))


def test_a_kernel_without_a_second_derivative_backwards(sines):
    model, plain = Cubes(Cube.apply).double(), Cubes(lambda x: x ** 3).double()
    plain.load_state_dict(model.state_dict())
    def with_rule(model, rule):
        return slopes(ml.MAML(model, F.mse_loss, lr=1e-4, steps=2, gradient=rule,
                              batching="loop"), sines)
    assert off(with_rule(model, ml.MixedMode()), with_rule(plain, ml.Exact())) < 1e-13
    J = ml.MAML(model, F.mse_loss, lr=1e-4, gradient=ml.Exact(), batching="loop")
    with pytest.raises(ValueError, match=r"Cube is marked with once_differentiable.*MixedMode"):
        J(sines)


def test_what_cannot_be_is_refused_by_name(small_net, sines):
    options = {"inner": ml.SGD(0.1, 2), "gradient": ml.MixedMode()}
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    J = ml.MetaLoss(small_net, lambda p, y: factor * F.mse_loss(p, y), **options)
    with pytest.raises(ValueError, match=r"neither in θ.*gradient=ml.Exact"): J(sines)
    with torch.no_grad(): J(sines)
    J = ml.MetaLoss(small_net, F.mse_loss, **options)
    with pytest.raises(ValueError, match=r"cannot be traced.*ml.Exact"):
        make_fx(lambda x: J(ml.Task(ml.Split(x, sines.support.y), sines.query)))(sines.support.x)
    J = ml.MetaLoss(small_net, lambda p, y: F.soft_margin_loss(p, y.sign()), **options,
                    batching="loop")
    with pytest.raises(NotImplementedError, match="forward AD") as raised: J(sines).backward()
    said = [*raised.value.args, *getattr(raised.value, "__notes__", [])]
    assert any("gradient=ml.Exact()" in words for words in said)


def test_a_change_before_the_way_back_is_an_error(small_net, sines):
    value = ml.MAML(small_net, F.mse_loss, lr=0.1, gradient=ml.MixedMode())(sines)
    with torch.no_grad(): small_net[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"): value.backward()


def test_under_torch_func(small_net, sines):
    def of(rule):
        J = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2, gradient=rule)
        theta = {name: p.detach() for name, p in J.named_parameters()}
        return list(torch.func.grad(lambda p: torch.func.functional_call(J, p, (sines,)))(
            theta).values())
    for one, other in zip(of(ml.MixedMode()), of(ml.Exact()), strict=True): close(one, other, 1e-13)
