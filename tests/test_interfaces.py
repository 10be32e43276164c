"""What a user writes: inner loops, gradient rules, poolings and terms, each a few lines long.

Value and gradient are compared with loops over tasks that share no code with the library.
"""
import ast
import inspect
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.batching import grad
from metalit.inner.walk import as_it_is, held_constant
from metalit.tasks import curvature, half_square

# Inner loops, as a user writes them


class Momentum(ml.InnerLoop):
    "Heavy ball: v ← μ·v + ∇ℓ(φ), φ ← φ − α·v. Both α and μ are learned."
    def __init__(self, lr=0.1, momentum=0.8, steps=3):
        super().__init__(steps)
        self.lr = nn.Parameter(torch.tensor(lr, dtype=torch.float64))
        self.momentum = nn.Parameter(torch.tensor(momentum, dtype=torch.float64))

    def init(self, predict, theta, support):
        return theta, {name: torch.zeros_like(p) for name, p in theta.items()}

    def step(self, loss, phi, state, k):
        slope = grad(loss)(phi)
        v = {name: self.momentum * state[name] + slope[name] for name in phi}
        return {name: phi[name] - self.lr * v[name] for name in phi}, v


class Proximal(ml.InnerLoop):
    "Downhill, then a proximal step of λ/2·‖φ − θ‖²: φ ← (φ − α·∇ℓ(φ) + αλ·θ) / (1 + αλ)."
    def __init__(self, lr=0.2, towards=0.7, steps=3):
        super().__init__(steps)
        self.lr, self.towards = lr, towards

    def init(self, predict, theta, support):
        return theta, theta

    def step(self, loss, phi, theta, k):
        slope, pull = grad(loss)(phi), self.lr * self.towards
        return {name: (phi[name] - self.lr * slope[name] + pull * theta[name]) / (1 + pull)
                for name in phi}, theta


class Halving(ml.InnerLoop):
    "A step that is halved, up to four times, as long as the loss would not fall."
    def __init__(self, lr=4.0, steps=2):
        super().__init__(steps)
        self.lr = lr

    def step(self, loss, phi, state, k):
        now, slope = loss(phi), grad(loss)(phi)
        lr = torch.full_like(now, self.lr)
        for _ in range(4):
            there = {name: phi[name] - lr * slope[name] for name in phi}
            lr = torch.where(loss(there) < now, lr, lr / 2)
        return {name: phi[name] - lr * slope[name] for name in phi}, state


# Gradient rules


class Truncated(nn.Module):
    "Derivatives flow back through the last steps only; the earlier ones pass them on unchanged."
    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, walk, value, theta):
        def change(step, phi, state, k):
            late = k >= walk.inner.steps - self.last
            return (as_it_is if late else held_constant)(step, phi, state, k)
        return value(walk.changed(change))


class Implicit(nn.Module):
    "∂φ/∂θ = (I + H/λ)⁻¹, as at the end of a proximal inner loop, by a Neumann series."
    def __init__(self, towards, terms):
        super().__init__()
        self.towards, self.terms = towards, terms

    def forward(self, walk, value, theta):
        def points(split, start=None, steps=None):
            path = [{n: p.detach() for n, p in point.items()}
                    for point in walk(split, start, steps)]
            phi = end = path[-1]
            v = {n: p - p.detach() for n, p in (start or theta).items()}  # zero, but with a slope
            for _ in range(self.terms):
                phi = {n: p + v[n] for n, p in phi.items()}
                v = {n: -h / self.towards for n, h in walk.hvp(end, v, split).items()}
            return [*path[:-1], phi]
        return value(walk.with_points(points))


# Poolings and terms


class WorstShare(ml.Pooling):
    "The mean of the worst share of the tasks (CVaR)."
    def __init__(self, share=0.5):
        super().__init__()
        self.share = share

    def forward(self, values):
        return values.topk(max(1, round(self.share * len(values)))).values.mean()


class Learned(ml.Pooling):
    "A mean that weighs each task by a learned number of its own, and by its size."
    def __init__(self, tasks):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(0.5, 2.0, tasks, dtype=torch.float64))

    def forward(self, values, *, ids, sizes):
        weights = self.weights[ids] * sizes
        return (weights * values).sum() / weights.sum()


class OnTheWay(ml.Term):
    "The query loss after each step, later ones with more weight."
    def per_task(self, path, task):
        losses = [path.loss(phi, task.query) for phi in path.points[1:]]
        return sum(k * value for k, value in enumerate(losses, 1)) / len(losses)


class Spread(ml.Term):
    "How far apart the predictions of the tasks lie, on inputs that they share."
    across_tasks = True

    def per_task(self, path, task):
        return path.predict(path.final, path.probe)

    def pool(self, values):
        return values.var(0, correction=0).mean()


WRITTEN = (Momentum, Proximal, Halving, Truncated, Implicit, WorstShare, Learned, OnTheWay, Spread)


def lines_of(thing) -> int:
    "Lines of code, without docstrings, comments and blank lines."
    source = textwrap.dedent(inspect.getsource(thing))
    tree, left_out = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            left_out |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.split("#")[0].strip()) and number not in left_out
               for number, line in enumerate(source.splitlines(), 1))


@pytest.mark.parametrize("thing", WRITTEN)
def test_fifteen_lines_are_enough(thing):
    assert 3 < lines_of(thing) <= 15


# The same by hand: plain loops over tasks; φ is a list of four tensors


def net(phi, x):
    first, bias, last, offset = phi
    return torch.tanh(x @ first.mT + bias) @ last.mT + offset


def error(phi, x, y):
    return (net(phi, x) - y).square().mean()


def slope(phi, x, y, constant):
    if not constant: return torch.autograd.grad(error(phi, x, y), phi, create_graph=True)
    at = [p.detach().requires_grad_() for p in phi]
    return torch.autograd.grad(error(at, x, y), at)


def sgd_by_hand(J, theta, x, y, constant):
    points = [theta]
    for _ in range(2):
        g = slope(points[-1], x, y, constant)
        points.append([p - 0.1 * d for p, d in zip(points[-1], g, strict=True)])
    return points


def momentum_by_hand(J, theta, x, y, constant):
    points, v = [theta], [0.0] * 4
    for _ in range(3):
        g = slope(points[-1], x, y, constant)
        v = [J.inner.momentum * a + b for a, b in zip(v, g, strict=True)]
        points.append([p - J.inner.lr * d for p, d in zip(points[-1], v, strict=True)])
    return points


def proximal_by_hand(J, theta, x, y, constant, steps=3):
    points = [theta]
    for _ in range(steps):
        g = slope(points[-1], x, y, constant)
        after = [(p - 0.2 * d + 0.14 * t) / 1.14
                 for p, d, t in zip(points[-1], g, theta, strict=True)]
        if constant:  # the value of the step, and the identity for its derivative
            after = [a.detach() + p - p.detach() for a, p in zip(after, points[-1], strict=True)]
        points.append(after)
    return points


def halving_by_hand(J, theta, x, y, constant, taken=None):
    points = [theta]
    for _ in range(2):
        now, g, lr = error(points[-1], x, y), slope(points[-1], x, y, constant), 4.0
        for _ in range(4):
            there = [p - lr * d for p, d in zip(points[-1], g, strict=True)]
            if error(there, x, y).item() < now.item(): break
            lr = lr / 2
        if taken is not None: taken.append(lr)
        points.append([p - lr * d for p, d in zip(points[-1], g, strict=True)])
    return points


def examples(task):
    return zip(task.support.x, task.support.y, task.query.x, task.query.y, strict=True)


def at_the_end(points, x, y, probe): return error(points[-1], x, y)


def by_hand(J, task, adapt, constant=False, measure=at_the_end, pool=torch.mean):
    "Value and gradient of J in all its parameters, one task after another."
    values = [measure(adapt(J, list(J.model.parameters()), x, y, constant), x_query, y_query,
                      task.query.x[0]) for x, y, x_query, y_query in examples(task)]
    value = pool(torch.stack(values))
    return value.detach(), torch.autograd.grad(value, list(J.parameters()))


WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
        "chunks in a loop": {"chunk_size": 1, "batching": "loop"}, "compiled": {}}
every_way = pytest.mark.parametrize("way", WAYS)
every_way_but_compiled = pytest.mark.parametrize("way", [way for way in WAYS if way != "compiled"])
# Compiling takes long. What the library has is compiled in `test_all_ways.py`; of what a user
# writes, one of a kind is compiled here: the parts named in `COMPILED`.
COMPILED = {"momentum", "halving", "learned", "spread"}


def cases(names):
    "Each name, by each rule, in each way; compiled only some, and by the exact rule."
    return pytest.mark.parametrize(("name", "rule", "way"), [
        (name, rule, way) for name in names for rule in (ml.Exact, ml.FirstOrder) for way in WAYS
        if way != "compiled" or (rule is ml.Exact and name in COMPILED)])


def assert_agrees(J, way, task, expected, atol=1e-12):
    if way == "compiled": J.compile(backend="eager")
    value = J(task)
    found = value.detach(), torch.autograd.grad(value, list(J.parameters()))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    there = [g.abs().max().item() > 1e-4 for g in found[1]]
    assert all(there[:3] + there[4:])  # zeros prove little; an offset may cancel between tasks


def assert_slope_of_value(J, task):
    names, start = zip(*J.named_parameters(), strict=True)

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (task,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in start)
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


# Inner loops

INNER = {"momentum": (Momentum, momentum_by_hand), "proximal": (Proximal, proximal_by_hand),
         "halving": (Halving, halving_by_hand)}


@cases(INNER)
def test_an_inner_loop(name, rule, way, small_net, sines):
    inner, adapt = INNER[name]
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner(), gradient=rule(), **WAYS[way])
    assert_agrees(J, way, sines, by_hand(J, sines, adapt, constant=rule is ml.FirstOrder))


@pytest.mark.parametrize("name", INNER)
def test_an_inner_loop_by_finite_differences(name, small_net, sines):
    assert_slope_of_value(ml.MetaLoss(small_net, F.mse_loss, inner=INNER[name][0]()), sines)


class LearnedStart(Momentum):
    "Momentum that starts with a learned velocity, and does not forget θ."
    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def init(self, predict, theta, support):
        return theta, {name: self.start * p for name, p in theta.items()}


def learned_start_by_hand(J, theta, x, y, constant):
    points = [theta]
    v = [J.inner.start * (p.detach() if constant else p) for p in theta]
    for _ in range(3):
        g = slope(points[-1], x, y, constant)
        v = [J.inner.momentum * a + b for a, b in zip(v, g, strict=True)]
        points.append([p - J.inner.lr * d for p, d in zip(points[-1], v, strict=True)])
    return points


@pytest.mark.parametrize(("rule", "way"), [
    (rule, way) for rule in (ml.Exact, ml.FirstOrder) for way in WAYS
    if way != "compiled" or rule is ml.FirstOrder])
def test_what_an_inner_loop_remembers_from_the_start_is_learned(rule, way, small_net, sines):
    "To first order θ is a constant in it, and the parameters of the loop are none."
    J = ml.MetaLoss(small_net, F.mse_loss, inner=LearnedStart(), gradient=rule(), **WAYS[way])
    expected = by_hand(J, sines, learned_start_by_hand, constant=rule is ml.FirstOrder)
    assert_agrees(J, way, sines, expected)


def test_tasks_halve_their_steps_each_in_its_own_way(small_net, sines):
    taken = []
    for x, y, _, _ in examples(sines):
        halving_by_hand(None, list(small_net.parameters()), x, y, True, taken)
    assert len(set(taken)) > 2


# Gradient rules


def truncated_by_hand(J, theta, x, y, constant, last=1):
    points = [theta]
    for k in range(3):
        g = slope(points[-1], x, y, k < 3 - last)
        points.append([p - 0.1 * d for p, d in zip(points[-1], g, strict=True)])
    return points


@every_way_but_compiled
def test_a_truncated_rule(way, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 3), gradient=Truncated(1), **WAYS[way])
    assert_agrees(J, way, sines, by_hand(J, sines, truncated_by_hand))


@pytest.mark.parametrize(("last", "rule"), [(0, ml.FirstOrder), (3, ml.Exact), (9, ml.Exact)])
def test_truncated_nowhere_and_everywhere(last, rule, small_net, sines):
    J, K = (ml.MetaLoss(small_net, F.mse_loss, inner=Proximal(), gradient=gradient)
            for gradient in (Truncated(last), rule()))
    value = K(sines)
    assert_agrees(J, "vmap", sines, (value.detach(),
                                     torch.autograd.grad(value, list(K.parameters()))))


def implicit_by_hand(J, task, terms, towards):
    "Σᵢ(−H/λ)ⁱ ∇ℓ_Q(φ), with the whole Hessian as a matrix."
    total, value = 0, 0
    for x, y, x_query, y_query in examples(task):
        phi = [p.detach().requires_grad_()
               for p in proximal_by_hand(J, list(J.model.parameters()), x, y, False)[-1]]
        sizes = [p.numel() for p in phi]

        def of_vector(vector, x=x, y=y, phi=phi, sizes=sizes):
            parts = [part.reshape(p.shape)
                     for part, p in zip(vector.split(sizes), phi, strict=True)]
            return error(parts, x, y)
        H = torch.autograd.functional.hessian(of_vector, torch.cat([p.flatten() for p in phi]))
        judged = error(phi, x_query, y_query)
        v = torch.cat([g.flatten() for g in torch.autograd.grad(judged, phi)])
        total = total + sum(torch.linalg.matrix_power(-H / towards, i) @ v for i in range(terms))
        value = value + judged.detach() / task.batch_size
    shapes = [p.shape for p in J.model.parameters()]
    return value, tuple(part.reshape(shape) / task.batch_size for part, shape in
                        zip(total.split([shape.numel() for shape in shapes]), shapes, strict=True))


@every_way
def test_an_implicit_rule(way, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=Proximal(), gradient=Implicit(2.0, 4), **WAYS[way])
    assert_agrees(J, way, sines, implicit_by_hand(J, sines, 4, 2.0))


def test_an_implicit_rule_is_exact_at_the_end_of_a_long_inner_loop(bowls, start):
    "φ* = (A + λ)⁻¹(As + λθ), with the gradient λ(A + λ)⁻¹C(φ* − q)."
    towards, identity = 6.0, torch.eye(4, dtype=torch.float64)
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    assert torch.linalg.eigvalsh(A).max() < 0.9 * towards  # where the series converges
    phi = torch.linalg.solve(A + towards * identity,
                             torch.einsum("bij,bj->bi", A, s) + towards * start)
    slopes = torch.einsum("bij,bj->bi", C, phi - q)
    gradient = towards * torch.linalg.solve(A + towards * identity, slopes).mean(0)
    J = ml.MetaLoss(ml.models.Point(start), half_square, inner=Proximal(0.2, towards, 120),
                    gradient=Implicit(towards, 400))
    J(bowls).backward()
    torch.testing.assert_close(J.model.theta.grad, gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(J(bowls).detach(), 0.5 * ((phi - q) * slopes).sum(-1).mean(), rtol=0,
                               atol=1e-10)


# Poolings and terms


def worst_half(values): return values.sort(descending=True).values[:3].mean()


def worst_share(values):
    "Of six values the worst two, and two fifths of the third."
    first, second, third = sorted(values, reverse=True)[:3]
    return (first + second + 0.4 * third) / 2.4


def tilted(values): return sum((0.7 * value).exp() for value in values).div(6).log() / 0.7


BY_HAND = {"tail": (ml.Tail(0.4), worst_share), "tilted": (ml.Tilted(0.7), tilted),
           "worst": (ml.Worst(), max)}


def numbered(task): return ml.Task(task.support, task.query, torch.tensor([2, 0, 1, 1, 3, 0]))


@cases([*BY_HAND, "learned"])
def test_a_pooling(name, rule, way, small_net, sines):
    task, pooling = numbered(sines), Learned(4)

    def weighed(values):
        weights = torch.stack([3 * pooling.weights[i] for i in task.ids.tolist()])  # 3 queries each
        return (weights * values).sum() / weights.sum()
    pooling, pool = BY_HAND.get(name, (pooling, weighed))
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), pooling=pooling, gradient=rule(),
                    **WAYS[way])
    expected = by_hand(J, task, sgd_by_hand, constant=rule is ml.FirstOrder, pool=pool)
    assert_agrees(J, way, task, expected)


@pytest.mark.parametrize("pooling", [ml.Tail(0.4), ml.Tilted(-0.7), Learned(4)])
def test_a_pooling_by_finite_differences(pooling, small_net, sines):
    assert_slope_of_value(ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), pooling=pooling),
                          numbered(sines))


def on_the_way(points, x, y, probe):
    return (error(points[1], x, y) + 2 * error(points[2], x, y)) / 2


def predictions(points, x, y, probe): return net(points[-1], probe)


def spread(values): return (values - values.mean(0)).square().mean()


TERMS = {"on the way": (OnTheWay, on_the_way, torch.mean), "spread": (Spread, predictions, spread)}


@cases(TERMS)
def test_a_term(name, rule, way, small_net, sines):
    term, measure, pool = TERMS[name]
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), terms=term(), gradient=rule(),
                    **WAYS[way])
    expected = by_hand(J, sines, sgd_by_hand, rule is ml.FirstOrder, measure, pool)
    assert_agrees(J, way, sines, expected)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_by_finite_differences(name, small_net, sines):
    assert_slope_of_value(ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2),
                                      terms=TERMS[name][0]()), sines)


# How they come together


def moved(points, x, y, probe):
    return sum((a - b).square().sum() for a, b in zip(points[-1], points[0], strict=True))


class Moved(ml.Term):
    "How far a task moves: ‖φ − θ‖²."
    def per_task(self, path, task):
        return sum((path.final[name] - p).square().sum() for name, p in path.theta.items())


@every_way_but_compiled
def test_a_sum_is_pooled_as_a_whole(way, small_net, sines):
    "J is the worst half of the sum, and not the sum of two worst halves of other tasks."
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), pooling=WorstShare(0.5),
                    terms=ml.QueryLoss() + -8.0 * Moved(), **WAYS[way])

    def both(points, *others): return at_the_end(points, *others) - 8.0 * moved(points, *others)
    expected = by_hand(J, sines, sgd_by_hand, measure=both, pool=worst_half)
    assert_agrees(J, way, sines, expected)
    apart = (by_hand(J, sines, sgd_by_hand, pool=worst_half)[0]
             + by_hand(J, sines, sgd_by_hand, measure=lambda *of: -8.0 * moved(*of),
                       pool=worst_half)[0])
    assert apart - expected[0] > 0.1


@every_way
def test_what_compares_tasks_stands_beside_the_pooling(way, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), pooling=WorstShare(0.5),
                    terms=ml.QueryLoss() + 0.5 * ml.Triplet(), **WAYS[way])
    theta, probe, ends = list(small_net.parameters()), sines.query.x[0], []
    for x, y, _, _ in examples(sines):
        ends.append([net(sgd_by_hand(J, theta, x[part], y[part], False)[-1], probe).flatten()
                     for part in (slice(0, 2), slice(2, 4), slice(0, 4))])

    def rms(a, b): return (a - b).square().mean().sqrt()
    hinges = [(1 + rms(one, other) - rms(whole, ends[j][2])).clamp(min=0)
              for i, (one, other, whole) in enumerate(ends) for j in range(6) if j != i]
    triplet = torch.stack(hinges).mean()
    value, gradient = by_hand(J, sines, sgd_by_hand, pool=worst_half)
    slopes = torch.autograd.grad(triplet, list(J.parameters()))
    gradient = tuple(g + 0.5 * h for g, h in zip(gradient, slopes, strict=True))
    assert_agrees(J, way, sines, (value + 0.5 * triplet.detach(), gradient))


# What a user can get wrong


def test_a_pool_that_is_not_announced():
    with pytest.raises(TypeError, match=r"Quiet has a way of its own .* across_tasks = True"):
        class Quiet(ml.Term):
            def pool(self, values): return values.max()


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_two_numbers_from_one_task(batching, small_net, sines):
    class Pair(ml.Term):
        def per_task(self, path, task): return path.predict(path.final, task.query.x)[:2, 0]
    J = ml.MetaLoss(small_net, F.mse_loss, terms=Pair(), batching=batching)
    with pytest.raises(ValueError, match=r"Pair.per_task returned a tensor of shape \(2,\)"):
        J(sines)


def test_share_and_tilt_may_be_tensors_as_in_a_compiled_graph():
    values = torch.tensor([1.0, 6.0, 2.0, 4.0], dtype=torch.float64)
    for pooling, number, right in ((ml.Tail(0.5), 0.5, 5.0), (ml.Tail(1.0), 1.0, 3.25),
                                   (ml.Tilted(1.0), 0.0, 3.25), (ml.Tilted(0.0), 1.0, 4.762461)):
        setattr(pooling, next(iter(vars(pooling).keys() & {"share", "t"})), torch.tensor(number))
        torch.testing.assert_close(pooling(values).item(), right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.Tail(0.0), "share=0.0: a share of the tasks"),
    (lambda: ml.Tail(1.5), "share=1.5: a share of the tasks"),
    (lambda: ml.Tail(float("nan")), "share=nan: a share of the tasks"),
    (lambda: ml.Tilted(float("inf")), "t=inf: a finite number")])
def test_a_share_or_a_tilt_that_is_none(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_a_pooling_that_gives_no_number(small_net, sines):
    class Sorted(ml.Pooling):
        def forward(self, values): return values.sort().values
    with pytest.raises(ValueError, match=r"Sorted pooled 6 tasks into a tensor of shape \(6,\)"):
        ml.MetaLoss(small_net, F.mse_loss, pooling=Sorted())(sines)


def test_a_pooling_that_asks_for_ids_where_there_are_none(small_net, sines):
    with pytest.raises(ValueError, match="give its Task ids, one number for each task"):
        ml.MetaLoss(small_net, F.mse_loss, pooling=Learned(6))(sines)


@pytest.mark.parametrize("kind", [ml.InnerLoop, ml.Term, ml.Pooling])
def test_a_class_that_forgot_its_method(kind, small_net, sines):
    part = {ml.InnerLoop: "inner", ml.Term: "terms", ml.Pooling: "pooling"}[kind]
    with pytest.raises(TypeError, match=r"Empty does not say .* give it a method"):
        ml.MetaLoss(small_net, F.mse_loss, **{part: type("Empty", (kind,), {})()})(sines)


def test_an_inner_loop_that_overrides_adapt_is_refused():
    "Nobody would call it: a meta-loss walks step by step."
    with pytest.raises(TypeError, match=r"Old overrides adapt.*say what one step does"):
        type("Old", (ml.SGD,), {"adapt": lambda self, loss, theta, support: [theta]})


def test_a_meta_loss_whose_task_loss_is_a_module_goes_to_another_model():
    J = ml.MAML(ml.models.mlp(1, 5, 1), torch.nn.MSELoss())
    twin = J.on(ml.models.mlp(1, 3, 1), F.mse_loss)
    assert twin.loss is F.mse_loss and isinstance(J.loss, torch.nn.MSELoss)
    assert isinstance(J.on(ml.models.mlp(1, 3, 1), torch.nn.L1Loss()).loss, torch.nn.L1Loss)


# A part that holds the model


class Holding(ml.Term):
    "A term that asks the model itself."
    def __init__(self, model):
        super().__init__()
        self.parts = [{"model": model}]                                 # deep in a plain list

    def per_task(self, path, task):
        return self.parts[0]["model"](task.query.x).square().mean()


class HoldingPiece(Holding):
    def per_task(self, path, task): return self.parts[0]["model"].weight.square().sum()


class MadeAnew(HoldingPiece):
    def for_model(self, model): return MadeAnew(model[2])


class Rule(ml.Exact):
    def __init__(self, model):
        super().__init__()
        self.model = model


def test_a_part_that_holds_the_model_holds_the_new_one(small_net, sines):
    other = ml.models.mlp(1, 3, 1, seed=5).double()

    inner = ml.SGD(0.1)
    inner.anchor = small_net
    J = ml.MetaLoss(small_net, F.mse_loss, terms=ml.QueryLoss() + Holding(small_net), inner=inner,
                    gradient=Rule(small_net), pooling=ml.Mean())
    twin = J.on(other, F.mse_loss)
    assert twin.model is other and twin.inner.anchor is other and twin.gradient.model is other
    assert list(twin.terms.each())[1].parts[0]["model"] is other and J.model is small_net
    fresh = ml.MetaLoss(other, F.mse_loss, terms=ml.QueryLoss() + Holding(other), inner=ml.SGD(0.1))
    torch.testing.assert_close(twin(sines), fresh(sines), rtol=0, atol=0)


def test_a_part_that_holds_a_piece_of_the_model_is_refused_or_made_anew(small_net):
    other = ml.models.mlp(1, 3, 1, seed=5).double()
    for parts, who in (({"terms": HoldingPiece(small_net[2])}, "HoldingPiece holds '2'"),
                       ({"terms": HoldingPiece(small_net[2].weight)}, "holds '2.weight'"),
                       ({"gradient": Rule(small_net[0])}, "Rule holds '0' of the old model")):
        J = ml.MetaLoss(small_net, F.mse_loss, **parts)
        with pytest.raises(ValueError, match=who + r".*for_model\(self, model\)"):
            J.on(other, F.mse_loss)
    J = ml.MetaLoss(small_net, F.mse_loss, terms=ml.QueryLoss() + MadeAnew(small_net[2]))
    assert list(J.on(other, F.mse_loss).terms.each())[1].parts[0]["model"] is other[2]
