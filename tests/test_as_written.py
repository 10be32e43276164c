"""The article as printed: each formula is what it says, and each defect shows.

By closed form and gradcheck.
"""
import contextlib
import io
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times
from torch.func import functional_call

import metalit as ml
from metalit import as_written
from metalit.tasks import curvature, half_square, quadratic_task

LR = 0.2
FORMULAS = (as_written.maml, as_written.reptile, as_written.contrastive, as_written.meta_curvature)


def measure(formula, task, theta, loss=half_square, lr=LR, **options):
    "Value and θ-gradient of a formula for the model that is its parameter vector."
    model = ml.models.Point(theta)
    value = formula(model, loss, task, lr=lr, **options)
    return value.detach(), torch.autograd.grad(value, model.theta)[0]


def library(J, task):
    value = J(task)
    return value.detach(), torch.autograd.grad(value, J.model.theta)[0]


def bed(task):
    "A, s, C, q and M = I − αA."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    return A, s, C, q, torch.eye(A.shape[-1], dtype=A.dtype) - LR * A


def pairs(x): return (x[:, None] - x[None])[~torch.eye(len(x), dtype=torch.bool)]


# --- each formula, as printed ---------------------------------------------------------------------

def test_maml_is_maml_with_one_step(bowls, start):
    _, s, C, q, M = bed(bowls)
    end = s + times(M, start - s)
    value, gradient = measure(as_written.maml, bowls, start)
    close(value, (0.5 * (end - q) * times(C, end - q)).sum(1).mean())
    close(gradient, times(M, times(C, end - q)).mean(0))
    one, two = (library(ml.MAML(ml.models.Point(start), half_square, lr=LR, steps=k), bowls)
                for k in (1, 2))
    close(value, one[0])
    close(gradient, one[1])
    assert (value - two[0]).abs() > 1e-2


def test_reptile_is_the_squared_length_of_the_inner_gradient(bowls, start):
    A, s, *_ = bed(bowls)
    slope = times(A, start - s)
    value, gradient = measure(as_written.reptile, bowls, start)
    close(value, LR**2 * (slope**2).sum(1).mean())
    close(gradient, 2 * LR**2 * times(A, slope).mean(0))
    direction = library(ml.Reptile(ml.models.Point(start), half_square, lr=LR, steps=1), bowls)[1]
    close(direction, LR * slope.mean(0))
    assert F.cosine_similarity(gradient, direction, dim=0) < 0.999         # not even parallel


def test_contrastive_is_the_margin_plus_the_distance_between_tasks(bowls, start):
    A, s, _, _, M = bed(bowls)
    v = pairs(s + times(M, start - s))
    for m in (0.01, 1.0, 100.0):
        value, gradient = measure(as_written.contrastive, bowls, start, m=m)
        close(value, m + v.norm(dim=1).mean())                             # the hinge never closes
        close(gradient, -LR * times(pairs(A), v / v.norm(dim=1, keepdim=True)).mean(0))


def test_meta_curvature_is_a_gradient_penalty(bowls, start):
    _, s, C, q, M = bed(bowls)
    miss = s + times(M, start - s) - q
    lam, slope = 0.3, times(M, times(C, miss))
    value, gradient = measure(as_written.meta_curvature, bowls, start, lam=lam)
    close(value, (0.5 * miss * times(C, miss)).sum(1).mean() + 0.5 * lam * (slope**2).sum(1).mean())
    close(gradient, (slope + lam * times(M @ C @ M, slope)).mean(0))
    for at, same in (("init", True), ("adapted", False)):  # two readings, and they differ
        J = ml.MetaLoss(ml.models.Point(start), half_square, inner=ml.SGD(LR, 1),
                        terms=ml.QueryLoss() + lam * ml.GradientNorm(at=at))
        assert torch.allclose(library(J, bowls)[1], gradient, rtol=0, atol=1e-10) == same
    close(measure(as_written.meta_curvature, bowls, start, lam=0.0)[1],
          measure(as_written.maml, bowls, start)[1])


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradcheck_on_a_network(formula, small_net, sines):
    J = as_written.AsWritten(small_net, F.mse_loss, formula, lr=0.1)
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-7)


def test_reptile_and_curvature_on_a_network(small_net, sines):
    """The seed's identities without a closed form.

    α²‖∇ℓ_S‖², and the query loss plus the norm of MAML's gradient.
    """
    theta = dict(small_net.named_parameters())
    squares, penalised = [], []
    for i in range(sines.batch_size):
        one = sines.select(i)
        loss = F.mse_loss(functional_call(small_net, theta, (one.support.x[0],)), one.support.y[0])
        squares.append(sum((g**2).sum() for g in torch.autograd.grad(loss, list(theta.values()))))
        after = ml.MAML(small_net, F.mse_loss, lr=0.1)(one)
        slopes = torch.autograd.grad(after, list(theta.values()))
        penalised.append(after.detach() + 0.5 * 0.7 * sum((g**2).sum() for g in slopes))
    close(as_written.reptile(small_net, F.mse_loss, sines, lr=0.1).detach(),
          0.1**2 * torch.stack(squares).mean())
    close(as_written.meta_curvature(small_net, F.mse_loss, sines, lr=0.1, lam=0.7).detach(),
          torch.stack(penalised).mean())


# --- each defect ----------------------------------------------------------------------------------

def saddle(prediction, y): return 0.5 * (y * prediction**2).sum()


def test_reptile_formula_finds_the_saddle_that_reptile_leaves():
    split = ml.Split(torch.eye(2).double()[None], torch.tensor([[1.0, -1.0]]).double())
    task, begin, ends = ml.Task(split, split), torch.tensor([1.6, 0.1]).double(), {}
    for name, lr in (("printed", 1.0), ("meant", 0.3)):
        theta = begin.clone()
        for _ in range(200):
            gradient = (
                measure(as_written.reptile, task, theta, saddle)[1] if name == "printed"
                else library(ml.Reptile(ml.models.Point(theta), saddle, lr=LR, steps=1), task)[1]
            )
            theta = theta - lr * gradient
        ends[name] = theta
    assert ends["printed"].norm() < 1e-6 and ends["meant"][1] > 100


def test_reptile_formula_rewards_not_adapting(bowls):
    "Its best start is the mean with weights A²; for adaptation joint training's is better."
    A, s, *_, M = bed(bowls)
    same = quadratic_task(A, s)
    def best(W): return torch.linalg.solve(W.sum(0), times(W, s).sum(0))
    close(measure(as_written.reptile, same, best(A @ A))[1], torch.zeros(4, dtype=torch.float64))
    losses = [measure(as_written.maml, same, best(W))[0] for W in (A @ A, A, M @ A @ M)]
    assert losses[0] > losses[1] > losses[2]
    at_the_minimum = measure(as_written.reptile, same.select(0), s[0])
    close(at_the_minimum[0], 0.0)  # no adaptation is a perfect score


def test_contrastive_pulls_different_tasks_together(bowls, start):
    _, s, _, _, M = bed(bowls)
    def apart(theta): return pairs(s + times(M, theta - s)).norm(dim=1).mean()
    gradient = measure(as_written.contrastive, bowls, start)[1]
    assert gradient.norm() > 1e-2
    assert apart(start - 0.1 * gradient) < apart(start) - 0.05 * gradient.norm() ** 2


def test_contrastive_is_constant_where_curvature_is_shared(start):
    task = ml.tasks.Quadratics(dim=4, shared_curvature=True).batch(5, seed=0)
    A, s = curvature(task.support)
    constant = 1 + LR * pairs(times(A, s)).norm(dim=1).mean()
    for theta in (start, -10 * start):
        value, gradient = measure(as_written.contrastive, task, theta)
        close(value, constant)
        close(gradient, torch.zeros(4, dtype=torch.float64))


def test_contrastive_ignores_the_query_set(bowls, start):
    other = replace(bowls, query=ml.Split(bowls.query.x + 1, bowls.query.y - 5))
    for a, b in zip(measure(as_written.contrastive, bowls, start),
                    measure(as_written.contrastive, other, start), strict=True):
        assert torch.equal(a, b)


def test_larger_lambda_makes_the_loss_less_sensitive():
    bowls = ml.tasks.Quadratics(dim=4, eigenvalues=(0.05, 5.0), shift=0.3).batch(6, seed=0)
    _, s, C, q, M = bed(bowls)
    sizes, losses = [], []
    for lam in (0.0, 0.5, 2.0, 10.0):
        zero, basis = torch.zeros(4).double(), torch.eye(4).double()
        at_zero = measure(as_written.meta_curvature, bowls, zero, lam=lam)[1]
        H = torch.stack(
            [measure(as_written.meta_curvature, bowls, e, lam=lam)[1] - at_zero for e in basis], 1
        )
        best = torch.linalg.solve(H, -at_zero)
        close(measure(as_written.meta_curvature, bowls, best, lam=lam)[1], zero)
        miss = s + times(M, best - s) - q
        sizes.append((times(M, times(C, miss)) ** 2).sum(1).mean().item())
        losses.append(measure(as_written.maml, bowls, best)[0].item())
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert sizes[3] < 0.9 * sizes[0]


# --- the listing ----------------------------------------------------------------------------------

class TaskGenerator:
    "What the listing forgets to define: y = x·w with its own w for each task."
    def __init__(self): self.generator = torch.Generator().manual_seed(0)

    def sample_task(self):
        w = torch.randn(10, 5, generator=self.generator)
        def sample_batch():
            x = torch.randn(20, 10, generator=self.generator)
            return x, x @ w
        return types.SimpleNamespace(input_size=10, output_size=5, sample_batch=sample_batch)


def run(program, **names):
    with contextlib.redirect_stderr(io.StringIO()): exec(program, {"__name__": "listing", **names})


def test_the_listing_does_not_run():
    with pytest.raises(NameError, match="TaskGenerator"): run(as_written.LISTING)
    with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for -: .*OrderedDict"):
        run(as_written.LISTING, TaskGenerator=TaskGenerator)


def test_behind_its_first_fault_the_listing_has_more():
    subtract = "(model.state_dict() - task_model.state_dict())"
    assert as_written.LISTING.count(subtract) == 1
    as_dict = "{k: v - task_model.state_dict()[k] for k, v in model.state_dict().items()}"
    as_vector = "nn.utils.parameters_to_vector([p.detach() for p in model.parameters()])"
    short = as_written.LISTING.replace("num_tasks=32", "num_tasks=1")
    with pytest.raises(TypeError, match=r"\+=: 'int' and 'dict'"):
        run(short.replace(subtract, as_dict), TaskGenerator=TaskGenerator)
    with pytest.raises(RuntimeError, match="assign"):
        run(short.replace(subtract, as_vector), TaskGenerator=TaskGenerator)


# --- what a user can get wrong --------------------------------------------------------------------

def test_contrastive_needs_two_tasks(bowls, start):
    with pytest.raises(ValueError, match="holds 1: use at least 2"):
        measure(as_written.contrastive, bowls.select(0), start)


@pytest.mark.parametrize("m", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_margin(m, bowls, start):
    with pytest.raises(ValueError, match=f"m={m}: the margin"):
        measure(as_written.contrastive, bowls, start, m=m)


@pytest.mark.parametrize("lam", [-0.1, float("nan"), float("inf")])
def test_bad_lambda(lam, bowls, start):
    with pytest.raises(ValueError, match=f"lam={lam}: λ is"):
        measure(as_written.meta_curvature, bowls, start, lam=lam)


def test_equal_tasks_give_no_nan(bowls, start):
    A, s = curvature(bowls.support)
    value, gradient = measure(as_written.contrastive, quadratic_task(A[[0, 0]], s[[0, 0]]), start,
                              m=2.0)
    close(value, 2.0)
    close(gradient, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("formula", FORMULAS)
def test_models_and_tasks_are_looked_at(formula):
    x = torch.ones(2, 3, 1)
    task = ml.Task(ml.Split(x, x), ml.Split(x, x))
    net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"layer '1'.*running statistics"):
        formula(net, F.mse_loss, task)
    with pytest.raises(ValueError, match="no task axis"):
        formula(ml.models.mlp(1, 1), F.mse_loss,
                ml.Task(ml.Split(x[0, :, 0], x[0, :, 0]), task.query))


def test_as_written_is_a_meta_loss(bowls, start):
    "It can be trained and evaluated like any other, and `on` keeps formula and options."
    J = as_written.AsWritten(ml.models.Point(start), half_square, as_written.contrastive, lr=LR,
                             m=3.0)
    close(J(bowls).detach(), measure(as_written.contrastive, bowls, start, m=3.0)[0])
    close(J.curve(bowls, (1,)).mean(), measure(as_written.maml, bowls, start)[0])
    twin = J.on(ml.models.Point(-start), half_square)
    close(twin(bowls).detach(), measure(as_written.contrastive, bowls, -start, m=3.0)[0])
    with pytest.raises(ValueError, match="lr=-1"):
        as_written.AsWritten(ml.models.Point(start), half_square, as_written.maml, lr=-1.0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("formula", [as_written.maml, as_written.reptile, as_written.contrastive,
                                     as_written.meta_curvature])
def test_every_formula_compiles_into_one_graph(formula, small_net, sines):
    J = as_written.AsWritten(small_net, F.mse_loss, formula, lr=0.1)
    J(sines).backward()
    eager = [p.grad.clone() for p in J.parameters()]
    J.zero_grad()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph
    J.compile(backend=counting)
    value = J(sines)
    value.backward()
    assert len(graphs) == 1
    for p, g in zip(J.parameters(), eager, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-10)
