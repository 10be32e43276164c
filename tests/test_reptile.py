"""Reptile: measure, limits, schedule, mini-batches, Adam inside, the article's program, mended."""
import contextlib
import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times
from torch import nn
from torch.func import functional_call, jacrev

import metalit as ml
from metalit import as_written
from metalit.tasks import curvature, half_square, quadratic_task

LR = 0.2


def point(theta, **options): return ml.Reptile(ml.models.Point(theta), half_square, **options)


def measure(J, task):
    value = J(task)
    return (value.detach(),
            torch.cat([g.flatten() for g in torch.autograd.grad(value, list(J.parameters()))]))


def flat(phi): return torch.cat([p.flatten(1) for p in phi.values()], 1)


# --- the measure ----------------------------------------------------------------------------------

@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_closed_form(steps, chunk_size, bowls, start):
    A, s = curvature(bowls.support)
    M = torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * A, steps)
    moved = (start - s) - times(M, start - s)                                    # (I − Mᴷ)e
    value, gradient = measure(point(start, lr=LR, steps=steps, chunk_size=chunk_size), bowls)
    close(value, 0.5 * (moved**2).sum(1).mean())
    close(gradient, moved.mean(0))


def test_it_is_the_gradient_of_the_distance_to_frozen_ends_and_of_no_other(small_net, sines):
    J = ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=3, batch_size=2)
    names = list(dict(J.named_parameters()))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    ends = [end.detach() for end in J.adapt(sines.support).values()]

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    def frozen(*parameters):
        return (sum(0.5 * ((p - end) ** 2).sum() for p, end in zip(parameters, ends, strict=True))
                / sines.batch_size)
    assert torch.autograd.gradcheck(frozen, inputs)
    close(value(*inputs).detach(), frozen(*inputs).detach())
    for a, b in zip(torch.autograd.grad(value(*inputs), inputs),
                    torch.autograd.grad(frozen(*inputs), inputs), strict=True):
        close(a, b)
    assert not torch.autograd.gradcheck(value, inputs, raise_exception=False)


def test_the_gradient_rule_makes_no_difference(small_net, sines):
    "φ_K is held constant by the term, so first order and exact agree."
    first = ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=3)
    exact = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 3), terms=ml.ParameterDistance())
    for a, b in zip(measure(first, sines), measure(exact, sines), strict=True): close(a, b)


@pytest.mark.parametrize(("stop_end", "stop_start"), [(True, False), (False, False), (False, True)])
def test_what_the_stop_does(stop_end, stop_start, bowls, start):
    class Distance(ml.Term):
        def per_task(self, path, task):
            a = path.theta["theta"].detach() if stop_start else path.theta["theta"]
            b = path.final["theta"].detach() if stop_end else path.final["theta"]
            return 0.5 * ((a - b) ** 2).sum()
    A, s = curvature(bowls.support)
    eye = torch.eye(4, dtype=A.dtype)
    M = torch.linalg.matrix_power(eye - LR * A, 5)
    matrix = {(True, False): eye - M, (False, False): (eye - M) @ (eye - M),
              (False, True): -M @ (eye - M)}
    J = ml.MetaLoss(ml.models.Point(start), half_square, inner=ml.SGD(LR, 5), terms=Distance())
    close(measure(J, bowls)[1], times(matrix[stop_end, stop_start], start - s).mean(0))


def test_zero_distance_gives_zero_and_no_nan(bowls, small_net, sines):
    _, s = curvature(bowls.support)
    for J, task in ((point(s[0], lr=LR, steps=5), bowls.select(0)),
                    (ml.Reptile(small_net, F.mse_loss, steps=0), sines)):
        value, gradient = measure(J, task)
        close(value, 0.0)
        close(gradient, torch.zeros_like(gradient))


# --- the limits -----------------------------------------------------------------------------------

@pytest.mark.parametrize("batch_size", [None, 4, 100])
def test_one_full_batch_step_is_joint_training(batch_size, small_net, sines):
    joint = (
        measure(ml.MAML(small_net, F.mse_loss, steps=0), ml.Task(sines.support, sines.support))[1]
    )
    one, two = (
        measure(ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=k, batch_size=batch_size), sines)[1]
        for k in (1, 2)
    )
    close(one, 0.1 * joint)
    assert F.cosine_similarity(two, joint, dim=0) < 1 - 1e-6


def test_one_step_is_joint_training_on_bowls(bowls, start):
    A, s = curvature(bowls.support)
    close(measure(point(start, lr=LR, steps=1), bowls)[1], LR * times(A, start - s).mean(0))


def test_the_printed_formula_is_twice_the_measure_without_the_stop(bowls, start):
    "The article's §4.1: α²‖∇ℓ_S‖². The value of twice R with one step; another gradient."
    model = ml.models.Point(start)
    printed = as_written.reptile(model, half_square, bowls, lr=LR)
    slope, = torch.autograd.grad(printed, model.theta)
    value, gradient = measure(point(start, lr=LR, steps=1), bowls)
    close(printed.detach(), 2 * value)
    assert (slope - 2 * gradient).abs().max() > 0.01


def test_many_steps_point_to_the_mean_of_the_minima(bowls, start):
    _, s = curvature(bowls.support)
    close(measure(point(start, lr=LR, steps=400), bowls)[1], start - s.mean(0), atol=1e-7)


# --- mini-batches and the skew part ---------------------------------------------------------------

def two_bowls(order=(0, 1)):
    "One task with two mini-batches, bowls in two dimensions; their curvatures and minima."
    H = torch.tensor([[[1.9, 0.4], [0.4, 0.3]], [[0.5, -0.6], [-0.6, 1.4]]]).double()
    c = torch.tensor([[0.5, -0.2], [-0.3, 0.4]]).double()
    halves = quadratic_task(H, c).support
    support = ml.Split(*(torch.cat([t[i] for i in order])[None] for t in halves))
    return ml.Task(support, support), H, c


def field(theta, order=(0, 1), **options):
    return measure(point(theta, lr=0.4, steps=2, **options), two_bowls(order)[0])[1]


def linear_part(**options):
    zero, basis = torch.zeros(2).double(), torch.eye(2).double()
    return torch.stack([field(e, **options) - field(zero, **options) for e in basis], 1)


def test_two_mini_batches_make_a_field_that_is_no_gradient():
    _, H, _ = two_bowls()
    F1, F2 = linear_part(batch_size=2), linear_part(batch_size=2, order=(1, 0))
    close(F1, 0.4 * H.sum(0) - 0.4**2 * H[1] @ H[0])
    close(F1 - F1.T, 0.4**2 * (H[0] @ H[1] - H[1] @ H[0]))
    assert (F1 - F1.T).abs().max() > 0.05
    close(F1 + F2, (F1 + F2).T)  # both orders: the skew part cancels
    whole = linear_part()
    close(whole, whole.T)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_on_bowls_with_the_whole_support_set_the_field_is_a_gradient(steps, bowls, start):
    "Of ½eᵀ(I − Mᴷ)e, the mean over tasks: no loss has the field in general, but here one has."
    A, s = curvature(bowls.support)
    eye = torch.eye(4, dtype=A.dtype)
    far = eye - torch.linalg.matrix_power(eye - LR * A, steps)
    leaf = start.clone().requires_grad_()
    loss = 0.5 * ((leaf - s) * times(far, leaf - s)).sum(1).mean()
    close(measure(point(start, lr=LR, steps=steps), bowls)[1], torch.autograd.grad(loss, leaf)[0])


def test_both_orders_together_reward_gradients_that_agree():
    _, H, c = two_bowls()
    theta = torch.tensor([0.9, -0.7]).double()
    leaf = theta.clone().requires_grad_()
    slopes = times(H, leaf - c)
    losses = (0.5 * (leaf - c) * slopes).sum()
    rewarded, = torch.autograd.grad(0.4 * losses - 0.5 * 0.4**2 * slopes[0] @ slopes[1], leaf)
    close((field(theta, batch_size=2) + field(theta, (1, 0), batch_size=2)) / 2, rewarded)


def test_full_batch_on_a_network_is_no_gradient_either(small_net, sines):
    names, sizes = zip(*((n, p.numel()) for n, p in small_net.named_parameters()), strict=True)
    shapes = [p.shape for p in small_net.parameters()]
    vector = torch.cat([p.detach().flatten() for p in small_net.parameters()])

    def moved(vector, steps):
        theta = {n: part.view(shape)
                 for n, part, shape in zip(names, vector.split(sizes), shapes, strict=True)}
        def loss(phi, split):
            return F.mse_loss(functional_call(small_net, phi, (split.x,)), split.y)
        end = ml.SGD(0.1, steps).adapt(loss, theta, ml.Split(sines.support.x[0],
                                                             sines.support.y[0]))[-1]
        return torch.cat([(theta[n] - end[n]).flatten() for n in names])
    skew = [(J - J.T).abs().max().item() for J in (jacrev(moved)(vector, k) for k in (1, 2))]
    assert skew[0] < 1e-12 and skew[1] > 1e-4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_mini_batches_are_taken_in_turn_around_and_around(batch_size, small_net, sines):
    J = ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=5, batch_size=batch_size)
    for i, ours in enumerate(flat(J.adapt(sines.support))):
        learner = copy.deepcopy(small_net)
        optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
        for k in range(5):
            rows = [row % 4 for row in range(k * batch_size, (k + 1) * batch_size)]
            optimizer.zero_grad()
            F.mse_loss(learner(sines.support.x[i, rows]), sines.support.y[i, rows]).backward()
            optimizer.step()
        close(ours, torch.cat([p.detach().flatten() for p in learner.parameters()]))


@pytest.mark.parametrize("batch_size", [0, -2])
def test_bad_batch_size(batch_size, small_net):
    message = f"batch_size={batch_size}: how many support examples a step sees"
    with pytest.raises(ValueError, match=message):
        ml.Reptile(small_net, F.mse_loss, batch_size=batch_size)
    with pytest.raises(ValueError, match=message): ml.Adam(batch_size=batch_size)


# --- the schedule, and the article's program ------------------------------------------------------

def test_an_ordinary_optimizer_is_the_papers_update(small_net):
    J = ml.Reptile(small_net, F.mse_loss, lr=0.1, steps=4, batch_size=2)
    optimizer = torch.optim.SGD(J.parameters(), lr=0.8)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=8)
    by_hand = {name: p.detach().clone() for name, p in small_net.named_parameters()}
    before = copy.deepcopy(by_hand)
    for step, task in enumerate(ml.tasks.Sinusoids(shots=4).stream(3, 8)):
        task = task.to(torch.float64)
        epsilon = 0.8 * (1 - step / 8)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(epsilon, abs=1e-12)
        ends = J.adapt(task.support)
        by_hand = {name: p + epsilon * (ends[name].detach() - p).mean(0)
                   for name, p in by_hand.items()}
        optimizer.zero_grad()
        J(task).backward()
        optimizer.step()
        schedule.step()
        for name, p in small_net.named_parameters(): close(p.detach(), by_hand[name], atol=1e-12)
    assert max((by_hand[name] - before[name]).abs().max() for name in before) > 0.1


MENDS = [
    ("import torch\nimport torch.nn as nn", "import copy\nimport torch\nimport torch.nn as nn"),
    ("optim.Adam(model.parameters(), lr=beta)", "optim.SGD(model.parameters(), lr=beta)"),
    ("meta_gradient = 0",
     "meta_gradient = [torch.zeros_like(param) for param in model.parameters()]"),
    ("""task_model = MyModel(task.input_size, task.output_size)
            task_model.load_state_dict(model.state_dict())""", "task_model = copy.deepcopy(model)"),
    ("optim.Adam(task_model.parameters(), lr=alpha)", "{inner}"),
    ("meta_gradient += (model.state_dict() - task_model.state_dict())",
     """for total, start, end in zip(meta_gradient, model.parameters(), task_model.parameters()):
                total += (start - end).detach()"""),
    ("for param in model.parameters():\n            param.grad = meta_gradient / num_tasks",
     """for param, total in zip(model.parameters(), meta_gradient):
            param.grad = total / num_tasks"""),
]


@pytest.mark.parametrize(("optimizer", "inner"), [
    ("optim.SGD(task_model.parameters(), lr=alpha)", lambda: ml.SGD(0.02, 5, batch_size=3)),
    ("optim.Adam(task_model.parameters(), lr=alpha, betas=(0.0, 0.999), eps=1e-15)",
     lambda: ml.Adam(0.02, 5, batch_size=3, eps=1e-15)),
])
def test_the_articles_program_mended_agrees_with_the_library(optimizer, inner):
    program = as_written.LISTING.split("# 使用")[0]
    for was, becomes in MENDS:
        assert program.count(was) == 1
        program = program.replace(was, becomes.format(inner=optimizer) if "{inner}" in becomes
                                  else becomes)
    family = ml.tasks.Sinusoids(shots=4)

    class Served:
        def __init__(self, x, y): self.x, self.y, self.k = x, y, 0
        def sample_batch(self):
            rows = torch.arange(3 * self.k, 3 * self.k + 3) % 4
            self.k += 1
            return self.x[rows], self.y[rows]

    class TaskGenerator:
        drawn = 0
        def sample_task(self):
            step, which = divmod(self.drawn, 3)
            self.drawn += 1
            return Served(*(t[which].double() for t in family.batch(3, seed=5, step=step).support))

    names = {}
    exec(program, names)
    torch.manual_seed(0)
    model = names["MyModel"](1, 1).double()
    J = ml.Reptile(copy.deepcopy(model), F.mse_loss, inner=inner())
    begin = copy.deepcopy(model)
    with contextlib.redirect_stderr(io.StringIO()):
        names["reptile"](model, TaskGenerator(), num_tasks=3, inner_steps=5, outer_steps=6,
                         alpha=0.02, beta=0.5)
    outer = torch.optim.SGD(J.parameters(), lr=0.5)
    for task in family.stream(3, 6, seed=5):
        outer.zero_grad()
        J(task.to(torch.float64)).backward()
        outer.step()
    for a, b in zip(model.parameters(), J.model.parameters(), strict=True):
        close(a.detach(), b.detach())
    assert max((a - b).abs().max().item() for a, b in zip(model.parameters(), begin.parameters(),
                                                          strict=True)) > 1e-2


# --- Adam inside ----------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"beta2": 0.5}, {"beta2": 0.0}, {"eps": 0.1}])
def test_adam_closed_form(options, bowls, start):
    A, s = curvature(bowls.support)
    beta2, eps = options.get("beta2", 0.999), options.get("eps", 1e-8)
    phi, v = start.expand(5, 4), 0.0
    for k in range(1, 7):
        g = times(A, phi - s)
        v = beta2 * v + (1 - beta2) * g**2
        phi = phi - 0.1 * g / (v / (1 - beta2**k) + eps**2).sqrt()
    J = point(start, inner=ml.Adam(0.1, 6, **options))
    close(J.adapt(bowls.support)["theta"], phi)
    close(measure(J, bowls)[1], (start - phi).mean(0))


def adam_by_torch(model, task, i, batch_size, eps, steps=5):
    learner = copy.deepcopy(model)
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05, betas=(0.0, 0.999), eps=eps)
    for k in range(steps):
        rows = torch.arange(k * batch_size, (k + 1) * batch_size) % 4
        optimizer.zero_grad()
        F.mse_loss(learner(task.support.x[i, rows]), task.support.y[i, rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


@pytest.mark.parametrize("batch_size", [3, 4])
def test_adam_agrees_with_torch_but_for_the_place_of_eps(batch_size, small_net, sines):
    def difference(eps):
        J = ml.Reptile(small_net, F.mse_loss,
                       inner=ml.Adam(0.05, 5, eps=eps, batch_size=batch_size))
        theirs = torch.stack([adam_by_torch(small_net, sines, i, batch_size, eps)
                              for i in range(sines.batch_size)])
        return (flat(J.adapt(sines.support)).detach() - theirs).abs().max().item()
    assert difference(1e-15) < 1e-10
    assert difference(1e-2) > 1e-4  # under the root, not beside it


def test_adams_memory_is_fresh_for_every_task(small_net, sines):
    J = ml.Reptile(small_net, F.mse_loss, inner=ml.Adam(0.05, 5))
    together = flat(J.adapt(sines.support))
    for i in range(sines.batch_size): close(flat(J.adapt(sines.select(i).support))[0], together[i])
    close(flat(J.adapt(sines.support)), together)  # nor does a call remember the last one
    close(flat(J.adapt(sines.select(torch.tensor([3, 1])).support)), together[[3, 1]])


def test_one_step_of_adam_is_a_sign(bowls, start):
    A, s = curvature(bowls.support)
    J = point(start, inner=ml.Adam(0.1, 1, eps=1e-15))
    close(measure(J, bowls)[1], 0.1 * times(A, start - s).sign().mean(0))


def test_adam_does_not_see_the_scale_of_the_loss(bowls, start):
    def end(scale):
        def loss(prediction, y): return scale * half_square(prediction, y)
        return ml.Reptile(ml.models.Point(start), loss,
                          inner=ml.Adam(0.1, 5, eps=1e-15)).adapt(bowls.support)["theta"]
    close(end(1.0), end(1000.0))


def test_gradcheck_through_adam(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Adam(0.05, 3, eps=0.1))
    names = list(dict(J.named_parameters()))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    assert torch.autograd.gradcheck(value, inputs, atol=1e-7)
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Adam(0.05, 3, eps=0.1),
                    gradient=ml.FirstOrder())
    assert not torch.autograd.gradcheck(value, inputs, atol=1e-7, raise_exception=False)


@pytest.mark.parametrize("gradient", [ml.Exact, ml.FirstOrder])
def test_a_weight_without_gradient_gives_no_nan(gradient, sines):
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad(): net[0].bias[:2] = -100
    J = ml.MetaLoss(net, F.mse_loss, inner=ml.Adam(0.05, 3), gradient=gradient())
    _, slopes = measure(J, sines)
    assert slopes.isfinite().all() and slopes.abs().max() > 0


@pytest.mark.parametrize(("options", "message"),
                         [({"beta2": 1.0}, "beta2=1.0"), ({"beta2": -0.1}, "beta2=-0.1"),
                          ({"beta2": math.nan}, "beta2=nan"),
                          ({"eps": 0.0}, "eps=0.0"), ({"eps": math.inf}, "eps=inf"),
                          ({"lr": 0.0}, "lr=0.0"), ({"steps": 1.5}, "steps=1.5")])
def test_bad_options_of_adam(options, message):
    with pytest.raises(ValueError, match=message): ml.Adam(**options)
