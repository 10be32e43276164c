"""Meta-SGD and Meta-Curvature: closed forms on the quadratic bed, gradcheck, limits, and bad input.
"""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import backward, close, flat, times
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metalit as ml
from metalit.inner.preconditioned import Preconditioned
from metalit.models import Point
from metalit.tasks import Quadratics, curvature, half_square, quadratic_task

LR = 0.2


class FullMatrix(Preconditioned):
    "A vector's gradient is multiplied by a learned matrix P: what the closed forms are about."
    def factors(self, parameter): return [torch.eye(parameter.numel(), dtype=parameter.dtype)]
    def act(self, gradient, factors): return factors[0] @ gradient


class Row(nn.Module):
    "The quadratic bed with θ as a weight (1, d): Meta-Curvature gives it full matrices."
    def __init__(self, theta):
        super().__init__()
        self.weight = nn.Parameter(theta.clone()[None])

    def forward(self, x): return (x @ self.weight.mT).squeeze(-1)


def lopsided(dim=4):
    "A matrix that is not symmetric: a transpose in the wrong place shows."
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return torch.eye(dim, dtype=torch.float64) + 0.4 * noise


def set_factor(inner, i, value, which=0):
    with torch.no_grad(): inner.learned[i][which].copy_(value)


def closed_form(task, theta, P, steps):
    """φ of each task, the slope C(φ − q), and its journey back.

    ((I − αPA)ᵀ)ᴷ C(φ − q) = (I − αAPᵀ)ᴷ C(φ − q).
    """
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    M = torch.linalg.matrix_power(torch.eye(len(theta), dtype=A.dtype) - LR * P @ A, steps)
    phi = s + times(M, theta - s)
    slope = times(C, phi - q)
    back = torch.linalg.matrix_power(torch.eye(len(theta), dtype=A.dtype) - LR * A @ P.mT, steps)
    return phi, slope, times(back, slope)


@pytest.mark.parametrize("steps", [1, 3])
def test_any_matrix(steps, bowls, start):
    model, P = Point(start), lopsided()
    inner = FullMatrix(model, LR, steps)
    set_factor(inner, 0, P)
    J = ml.MetaLoss(model, half_square, inner=inner)
    value = backward(J, bowls)
    phi, slope, back = closed_form(bowls, start, P, steps)
    _, q = curvature(bowls.query)
    close(J.adapt(bowls.support)["theta"], phi)
    close(value, 0.5 * ((phi - q) * slope).sum(-1).mean())
    close(model.theta.grad, back.mean(0))
    transposed = closed_form(bowls, start, P.mT, steps)[2].mean(0)
    assert (transposed - model.theta.grad).norm() > 0.1


def test_gradient_of_the_matrix_is_the_mean_of_rank_one_matrices(bowls, start):
    "K = 1: ∇_P = −α ∇ℓ_Q(φ) ∇ℓ_S(θ)ᵀ, for one task of rank one."
    P, (A, s) = lopsided(), curvature(bowls.support)
    for tasks in (slice(None), slice(2, 3)):
        model = Point(start)
        inner = FullMatrix(model, LR, 1)
        set_factor(inner, 0, P)
        backward(ml.MetaLoss(model, half_square, inner=inner), bowls.select(tasks))
        slope, inner_slope = closed_form(bowls, start, P, 1)[1], times(A, start - s)
        close(inner.learned[0][0].grad,
              (-LR * slope[:, :, None] * inner_slope[:, None])[tasks].mean(0))
    assert torch.linalg.matrix_rank(inner.learned[0][0].grad, atol=1e-10) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_curvature_of_a_row(steps, bowls, start):
    "A weight (1, d): G ↦ M_out G M_inᵀ with M_out a number, so P = M_out · M_in."
    model = Row(start)
    inner = ml.Kronecker(model, LR, steps)
    assert [tuple(f.shape) for f in inner.learned[0]] == [(1, 1), (4, 4)]
    set_factor(inner, 0, torch.tensor([[1.3]], dtype=torch.float64), which=0)
    set_factor(inner, 0, lopsided(), which=1)
    J = ml.MetaLoss(model, half_square, inner=inner)
    backward(J, bowls)
    phi, slope, back = closed_form(bowls, start, 1.3 * lopsided(), steps)
    close(J.adapt(bowls.support)["weight"][:, 0], phi)
    close(model.weight.grad[0], back.mean(0))
    if steps == 1:
        A, s = curvature(bowls.support)
        expected = (-LR * slope[:, :, None] * times(A, start - s)[:, None]).mean(0)
        close(inner.learned[0][1].grad, 1.3 * expected)
        close(inner.learned[0][0].grad.squeeze(), (expected * lopsided()).sum())


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_sgd_closed_form(first_order, bowls, start):
    "∇_a = −∇ℓ_S(θ) ⊙ ∇ℓ_Q(φ); first order trains the step sizes just the same."
    scale = torch.tensor([1.5, -0.3, 0.7, 2.0], dtype=torch.float64)
    model = Point(start)
    inner = ml.Diagonal(model, LR)
    set_factor(inner, 0, scale)
    rule = ml.FirstOrder() if first_order else ml.Exact()
    backward(ml.MetaLoss(model, half_square, inner=inner, gradient=rule), bowls)
    A, s = curvature(bowls.support)
    _, slope, back = closed_form(bowls, start, torch.diag(scale), 1)
    close(model.theta.grad, (slope if first_order else back).mean(0))
    close(inner.learned[0][0].grad / LR, -(times(A, start - s) * slope).mean(0))  # a = lr · scale


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
def test_first_order_trains_the_factors_of_a_network(make, small_net, sines):
    inner = make(small_net, 0.1, 2)
    backward(ml.MetaLoss(small_net, F.mse_loss, inner=inner, gradient=ml.FirstOrder()), sines)
    assert all(factor.grad.abs().max() > 0 for factor in inner.parameters())


def test_solves_a_quadratic_in_one_step(start):
    "αP = A⁻¹ for all tasks that share A; αa = 1/A_ii where A is diagonal."
    tasks = Quadratics(dim=4, shared_curvature=True).batch(5, seed=0)
    A, s = curvature(tasks.support)
    full, row = FullMatrix(Point(start), LR), ml.Kronecker(Row(start), LR)
    set_factor(full, 0, torch.linalg.inv(A[0]) / LR)
    set_factor(row, 0, torch.linalg.inv(A[0]) / LR, which=1)
    for model, inner in ((Point(start), full), (Row(start), row)):
        end = next(iter(ml.MetaLoss(model, half_square, inner=inner).adapt(tasks.support).values()))
        close(end.reshape(5, 4), s)
    eigenvalues = torch.tensor([0.3, 0.9, 1.4, 2.0], dtype=torch.float64)
    diagonal = quadratic_task(torch.diag(eigenvalues).expand(5, -1, -1), s)
    inner = ml.Diagonal(Point(start), LR)
    set_factor(inner, 0, 1 / eigenvalues / LR)
    close(ml.MetaLoss(Point(start), half_square, inner=inner).adapt(diagonal.support)["theta"], s)


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
def test_identity_factors_are_maml(make, small_net, sines):
    value = backward(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    gradient = flat(small_net)
    close(backward(ml.MetaLoss(small_net, F.mse_loss, inner=make(small_net, 0.1, 2)), sines), value,
          1e-14)
    close(flat(small_net), gradient, 1e-13)


def test_equal_step_sizes_are_maml_with_that_step_size(small_net, sines):
    "a = α·1."
    value = backward(ml.MAML(small_net, F.mse_loss, lr=0.3, steps=2), sines)
    gradient = flat(small_net)
    inner = ml.Diagonal(small_net, 0.1, 2)
    for i in range(len(inner.learned)): set_factor(inner, i, torch.tensor(3.0))
    close(backward(ml.MetaLoss(small_net, F.mse_loss, inner=inner), sines), value, 1e-13)
    close(flat(small_net), gradient, 1e-12)


def test_diagonal_factors_on_a_vector_are_meta_sgd(bowls, start):
    scale = torch.tensor([1.5, -0.3, 0.7, 2.0], dtype=torch.float64)
    found = []
    for make in (ml.Diagonal, ml.Kronecker):
        model = Point(start)
        inner = make(model, LR, 2)
        set_factor(inner, 0, scale)
        found.append((backward(ml.MetaLoss(model, half_square, inner=inner), bowls),
                      model.theta.grad, inner.learned[0][0].grad))
    for a, b in zip(*found, strict=True): close(a, b, 1e-14)
    model, other = Row(start), Point(start)                      # and as a diagonal matrix
    row, diagonal = ml.Kronecker(model, LR, 2), ml.Diagonal(other, LR, 2)
    set_factor(row, 0, torch.diag(scale), which=1)
    set_factor(diagonal, 0, scale)
    close(backward(ml.MetaLoss(model, half_square, inner=row), bowls),
          backward(ml.MetaLoss(other, half_square, inner=diagonal), bowls), 1e-14)
    close(row.learned[0][1].grad.diagonal(), diagonal.learned[0][0].grad, 1e-12)


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
def test_gradcheck_of_weights_and_factors(make, sines):
    net = ml.models.mlp(1, 3, 1, activation=nn.Tanh, seed=2).double()
    inner = make(net, 0.1, 2)
    J = ml.MetaLoss(net, F.mse_loss, inner=inner)
    g = torch.Generator().manual_seed(0)
    names, inputs = [], []
    for name, p in J.named_parameters():
        noise = (0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype) if name.startswith("inner.")
                 else 0.0)
        names.append(name)
        inputs.append((p.detach() + noise).requires_grad_())

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    assert torch.autograd.gradcheck(value, tuple(inputs), atol=1e-8)
    J.chunk_size = 4
    assert torch.autograd.gradcheck(value, tuple(inputs), atol=1e-8)


def test_meta_curvature_acts_as_a_kronecker_product():
    "vec(P(G)) = (M_out ⊗ M_in ⊗ M_rest) vec(G), for matrices and for convolution kernels."
    g = torch.Generator().manual_seed(0)
    for shape in ((3, 4), (3, 2, 2, 2)):
        gradient = torch.randn(shape, generator=g, dtype=torch.float64)
        inner = ml.Kronecker(nn.Linear(1, 1))
        factors = [torch.randn(f.shape, generator=g, dtype=torch.float64)
                   for f in inner.factors(gradient)]
        whole = factors[0]
        for factor in factors[1:]: whole = torch.kron(whole, factor)
        close(inner.act(gradient, factors), (whole @ gradient.flatten()).reshape(shape))


def test_number_of_factors():
    "1-40-40-1: 1² + 4·40² + 1² in matrices, 81 for the biases (Park & Oliva's construction)."
    net = ml.models.mlp(1, 40, 40, 1)
    assert sum(p.numel() for p in ml.Kronecker(net).parameters()) == 1 + 4 * 40**2 + 1 + 81
    assert (sum(p.numel() for p in ml.Diagonal(net).parameters())
            == sum(p.numel() for p in net.parameters()) == 1761)


def test_convolution():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)).double()
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, 1, 4, 4, generator=g).double(),
            torch.randn(2, 3, 5, 1, generator=g).double())
    task = ml.Task(ml.Split(x[0], y[0]), ml.Split(x[1], y[1]))
    inner = ml.Kronecker(net, 0.1)
    assert [tuple(f.shape) for f in inner.learned[0]] == [(2, 2), (1, 1), (9, 9)]
    value = backward(ml.MetaLoss(net, F.mse_loss, inner=inner), task)
    close(value, backward(ml.MAML(net, F.mse_loss, lr=0.1), task), 1e-12)


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
def test_model_whose_shapes_changed(make, sines):
    inner = make(ml.models.mlp(1, 5, 1).double())
    wider = ml.models.mlp(1, 6, 1).double()
    name = make.__name__
    with pytest.raises(ValueError, match=rf"{name} was made for another model, or while this "
                       rf"parameter was frozen: at '0.weight' it knows \(5, 1\), and "
                       rf"the model has \(6, 1\). Make it anew: {name}\(model"):
        ml.MetaLoss(wider, F.mse_loss, inner=inner)(sines)
    deeper = ml.models.mlp(1, 5, 5, 1).double()
    with pytest.raises(ValueError, match=r"at '2\.weight'"):
        ml.MetaLoss(deeper, F.mse_loss, inner=inner)(sines)
    with pytest.raises(ValueError, match=r"at '4\.weight' it knows nothing"):
        ml.MetaLoss(deeper, F.mse_loss, inner=make(nn.Sequential(*deeper[:4])))(sines)
    fresh = inner.for_model(wider)
    assert torch.isfinite(ml.MetaLoss(wider, F.mse_loss, inner=fresh)(sines))


def test_options_reach_the_inner_loop_and_its_copy(small_net):
    inner = ml.Diagonal(small_net, 0.1, 3, batch_size=2)
    twin = inner.for_model(ml.models.mlp(1, 4, 1))
    assert inner.batch_size == twin.batch_size == 2 and twin.steps == 3 and twin.lr == 0.1
    with pytest.raises(TypeError, match="moment"): ml.Diagonal(small_net, moment=0.9)


def test_a_schedule_of_the_rate_reaches_the_copy(small_net):
    inner = ml.Diagonal(small_net, ml.schedule.Linear(0.5, 0.25))
    twin = inner.for_model(ml.models.mlp(1, 4, 1))
    assert inner.lr == twin.lr == 0.5
    twin.at(9, 10)
    assert (inner.lr, twin.lr) == (0.5, 0.25)


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
@pytest.mark.parametrize("options",
                         [{"lr": 0.0}, {"lr": float("nan")}, {"steps": -1}, {"steps": 1.5}])
def test_bad_numbers(make, options, small_net):
    with pytest.raises(ValueError, match=next(iter(options))): make(small_net, **options)


def test_a_subclass_must_say_what_it_learns_and_how_it_acts(small_net, sines):
    with pytest.raises(TypeError, match="does not say what it learns"): Preconditioned(small_net)

    class Idle(Preconditioned):
        def factors(self, parameter): return [torch.ones_like(parameter)]
    with pytest.raises(TypeError, match="does not say how it acts"):
        ml.MetaLoss(small_net, F.mse_loss, inner=Idle(small_net))(sines)


# To another model


@pytest.mark.parametrize("make", [ml.Diagonal, ml.Kronecker])
def test_what_was_learned_goes_to_a_model_of_the_same_shapes(make, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=make(small_net, 0.1))
    with torch.no_grad():
        for p in J.inner.parameters(): p.mul_(1.5)
    twin = J.on(copy.deepcopy(small_net), F.mse_loss)              # no warning: they are errors
    for mine, old in zip(twin.inner.parameters(), J.inner.parameters(), strict=True):
        assert torch.equal(mine, old) and mine is not old
    close(twin(sines), J(sines), 0)
    wider = ml.models.mlp(1, 5, 2, activation=nn.Tanh).double()
    with pytest.warns(UserWarning, match=rf"{make.__name__} starts anew at '2.weight', '2.bias'"):
        other = J.on(wider, F.mse_loss).inner
    factors = other.by_name()
    assert torch.equal(factors["0.bias"][0], torch.full((5,), 1.5))
    assert torch.equal(factors["2.bias"][0], torch.ones(2).double())
    fresh = ml.MetaLoss(small_net, F.mse_loss, inner=make(small_net, 0.1))
    fresh.on(wider, F.mse_loss)                                         # nothing is lost


def test_a_learned_rate_goes_along_as_a_parameter_of_its_own(small_net):
    rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    other = ml.models.mlp(1, 5, 1).double()
    inner = ml.SGD(0.1)
    del inner.lr
    inner.lr = rate
    twin = ml.MetaLoss(small_net, F.mse_loss, inner=inner).on(other, F.mse_loss).inner
    assert twin.lr is not rate and isinstance(twin.lr, nn.Parameter) and twin.lr == 0.3


class Largest(TorchDispatchMode):
    "Remembers how many numbers the largest tensor holds that an operation makes."
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
        return made


def test_no_product_of_all_pairs_is_made():
    "All factors in one einsum: without opt_einsum it starts with all pairs, 174 GB for Conv4."
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.LazyLinear(2))
    model((x := torch.randn(1, 3, 4, 4, 4))[0])
    task = ml.Task(*(ml.Split(x, torch.tensor([[0, 1, 0]])) for _ in range(2)))
    J = ml.MetaCurvature(model, F.cross_entropy, steps=2)
    with Largest() as largest: J(task).backward()
    assert largest.numbers < model[0].weight.numel() ** 2 / 3
