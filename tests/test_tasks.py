"""Tasks as trees, and families: shapes, limits, tasks that depend on seed and step alone.

The referee for inputs of several parts is a plain loop over tasks and steps.
"""
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

import metalit as ml
from metalit.tasks import (
    Family,
    check_split,
    check_task,
    curvature,
    quadratic_task,
    seeded_generator,
)
from metalit.tasks.task import leaves, length, mapped


def test_sinusoids_are_sinusoids_within_the_limits_of_the_paper():
    family = ml.tasks.Sinusoids(shots=5, queries=7)
    task = family.batch(400, seed=0)
    assert task.support.x.shape == task.support.y.shape == (400, 5, 1)
    assert task.query.x.shape == task.query.y.shape == (400, 7, 1)
    for split in task: assert -5 <= split.x.min() < -4.9 and 4.9 < split.x.max() <= 5
    # y = a·sin x + b·cos x with a = A cos(phase), b = −A sin(phase): solve for both from the
    # support set.
    x, y = (t.double() for t in task.support)
    basis = torch.cat([x.sin(), x.cos()], -1)
    a, b = torch.linalg.lstsq(basis, y).solution.squeeze(-1).unbind(-1)
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    torch.testing.assert_close(
        amplitude[:, None, None] * torch.sin(task.query.x.double() - phase[:, None, None]),
        task.query.y.double(), rtol=0, atol=1e-4
    )
    assert 0.1 <= amplitude.min() < 0.2 and 4.9 < amplitude.max() <= 5
    assert -1e-4 <= phase.min() < 0.1 and math.pi - 0.1 < phase.max() <= math.pi + 1e-4


def test_held_out_queries_are_a_grid_and_support_is_random():
    task = ml.tasks.Sinusoids(shots=5).held_out(3, seed=0)
    assert task.query.x.shape == (3, 100, 1)
    torch.testing.assert_close(task.query.x[2, :, 0], torch.linspace(-5, 5, 100))
    assert not torch.equal(task.support.x[0], task.support.x[1])


def test_batches_depend_on_seed_and_step_alone():
    family = ml.tasks.Sinusoids()
    before = torch.get_rng_state()
    stream = list(family.stream(batch_size=2, steps=4, seed=7))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(stream[3].support.x, family.batch(2, seed=7, step=3).support.x)
    assert torch.equal(next(family.stream(2, 4, seed=7, start=3)).query.y, stream[3].query.y)
    xs = {batch.support.x.sum().item() for batch in stream}
    xs |= {family.batch(2, seed=8, step=step).support.x.sum().item() for step in range(4)}
    xs |= {family.held_out(2, seed=seed).support.x.sum().item() for seed in range(8)}
    assert len(xs) == 16


def test_held_out_generators_are_apart_from_every_training_stream():
    """Held-out generators have odd seeds, training ones even.

    PyTorch's CPU generator uses the lower 32 bits.
    """
    assert all(seeded_generator(seed, -1).initial_seed() % 2 == 1 for seed in range(50))
    assert all(seeded_generator(seed, step).initial_seed() % 2 == 0 for seed in range(5)
               for step in range(50))
    assert all(seeded_generator(seed, seed).initial_seed() < 2**32 for seed in range(50))


def test_quadratic_task_is_the_quadratic_that_was_asked_for(bowls):
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    again = quadratic_task(A, s, C, q)
    for (x, y), (x2, y2) in zip(bowls, again, strict=True):
        torch.testing.assert_close(x, x2, rtol=0, atol=1e-12)
        torch.testing.assert_close(y, y2, rtol=0, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(A)
    assert eigenvalues.min() >= 0.3 - 1e-9 and eigenvalues.max() <= 2 + 1e-9
    assert (A[0] - A[1]).abs().max() > 0.01 and (A - C).abs().max() > 0.01


def test_shared_curvature_is_shared():
    task = ml.tasks.Quadratics(dim=3, shared_curvature=True).batch(4)
    A, C = curvature(task.support)[0], curvature(task.query)[0]
    torch.testing.assert_close(A, A[:1].expand_as(A), rtol=0, atol=1e-12)
    torch.testing.assert_close(A, C, rtol=0, atol=1e-12)


def test_select_and_to_keep_task_axis_and_label_dtype():
    labels = torch.zeros(3, 2, dtype=torch.long)
    task = ml.Task(ml.Split(torch.ones(3, 2, 4), labels), ml.Split(torch.ones(3, 2, 4), labels))
    assert task.select(1).support.x.shape == (1, 2, 4) and task.select(-1).batch_size == 1
    assert task.select(slice(0, 2)).query.y.shape == (2, 2)
    moved = task.to(dtype=torch.float64)
    assert moved.support.x.dtype == torch.float64 and moved.support.y.dtype == torch.long


@pytest.mark.parametrize(("init", "std"),
                         [("uniform", 1 / math.sqrt(3 * 40)), ("finn", 0.01 * 0.88)])
def test_initialisations(init, std):
    "A uniform ±1/√40 has standard deviation 1/√120; a normal cut at two σ has 0.88 σ."
    before = torch.get_rng_state()
    layer = ml.models.mlp(1, 40, 40, 1, init=init, seed=5)[2]
    assert torch.equal(before, torch.get_rng_state())
    assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert (layer.bias.abs().max() == 0) == (init == "finn")
    assert torch.equal(layer.weight, ml.models.mlp(1, 40, 40, 1, init=init, seed=5)[2].weight)
    assert not torch.equal(layer.weight, ml.models.mlp(1, 40, 40, 1, init=init, seed=6)[2].weight)


# Who says how tasks are made

def filled(number, count):
    split = ml.Split(torch.full((count, 1, 1), float(number)), torch.zeros(count, 1, 1))
    return ml.Task(split, split)


class Draws(Family):
    def draw(self, n_tasks, random): return filled(1, n_tasks)


class Samples(Family):
    def sample(self, batch_size, generator): return filled(2, batch_size)


class DrawsApart(Draws):
    def draw_held_out(self, n_tasks, random): return filled(10, n_tasks)


class SamplesApart(Samples):
    def sample_held_out(self, batch_size, generator): return filled(20, batch_size)


def over(*parents, **numbers):
    "An instance of a subclass that overrides methods: its tasks are filled with their numbers."
    return type("Over", parents, {
        name: lambda self, count, _, number=number: filled(number, count)
        for name, number in numbers.items()})()


def made_by(family):
    "Who made the tasks of a batch, of the steps of a stream, and held-out ones."
    tasks = [family.batch(2), *family.batches(2, 0, [3, 4]), *family.stream(2, 2),
             family.held_out(2)]
    *trained, held_out = (int(task.query.x[0]) for task in tasks)
    assert len(set(trained)) == 1
    return trained[0], held_out


@pytest.mark.parametrize(("parents", "numbers", "expected"), [
    ((Draws,), {}, (1, 1)), ((Samples,), {}, (2, 2)),
    ((DrawsApart,), {}, (1, 10)), ((SamplesApart,), {}, (2, 20)),
    ((Draws,), {"draw": 3}, (3, 3)), ((Draws,), {"sample": 4}, (4, 4)),
    ((Samples,), {"draw": 3}, (3, 3)), ((Samples,), {"sample": 4}, (4, 4)),
    ((Draws,), {"sample": 4, "draw": 3}, (3, 3)), ((Samples,), {"sample": 4, "draw": 3}, (3, 3)),
    ((DrawsApart,), {"draw": 3}, (3, 10)), ((DrawsApart,), {"sample": 4}, (4, 10)),
    ((SamplesApart,), {"draw": 3}, (3, 20)), ((SamplesApart,), {"sample": 4}, (4, 20)),
    ((Draws,), {"draw_held_out": 30}, (1, 30)), ((Draws,), {"sample_held_out": 40}, (1, 40)),
    ((Samples,), {"draw_held_out": 30}, (2, 30)), ((Samples,), {"sample_held_out": 40}, (2, 40)),
    ((DrawsApart,), {"sample_held_out": 40}, (1, 40)),
    ((SamplesApart,), {"draw_held_out": 30}, (2, 30)),
    ((Draws,), {"sample": 4, "draw_held_out": 30}, (4, 30)),
    ((Samples,), {"draw": 3, "sample_held_out": 40}, (3, 40)),
    ((Draws, Samples), {}, (1, 1)), ((Samples, Draws), {}, (2, 2))])
def test_the_most_special_class_says_how_tasks_are_made(parents, numbers, expected):
    assert made_by(over(*parents, **numbers)) == expected
    again = type("Again", (type(over(*parents, **numbers)),), {})()  # inheriting changes nothing
    assert made_by(again) == expected


def test_a_mixin_that_is_no_family_counts_where_it_stands():
    class Mixin:
        def sample(self, batch_size, generator): return filled(5, batch_size)

    assert made_by(over(Mixin, Draws)) == (5, 5)
    assert made_by(over(Draws, Mixin)) == (1, 1)


def test_built_in_families_can_be_overridden_either_way():
    class Louder(ml.tasks.Sinusoids):
        def draw(self, n_tasks, random):
            return super().draw(n_tasks, random).map(lambda tensor: 2 * tensor)

    class Sampled(ml.tasks.Sinusoids):
        def sample(self, batch_size, generator):
            return super().sample(batch_size, generator).map(lambda tensor: 2 * tensor)

    plain = ml.tasks.Sinusoids(shots=3)
    assert torch.equal(Louder(shots=3).batch(4, 1, 2).query.y, 2 * plain.batch(4, 1, 2).query.y)
    by_generator = plain.sample(4, seeded_generator(1, 2))
    assert torch.equal(Sampled(shots=3).batch(4, 1, 2).query.y, 2 * by_generator.query.y)
    assert not torch.equal(by_generator.query.x, plain.batch(4, 1, 2).query.x)
    assert Sampled(shots=3).held_out(2).query.x.shape == (2, 100, 1)


def test_a_family_that_says_what_a_batch_is_is_asked_for_each_step():
    class Fixed(ml.tasks.Sinusoids):
        def batch(self, batch_size, seed=0, step=0): return filled(step, batch_size)

    assert [int(task.query.x[0]) for task in Fixed().stream(1, 7, start=4)] == [4, 5, 6]


def test_numbers_are_made_on_the_device_of_the_family():
    asked = []

    class Elsewhere(Family):
        device = "meta"

        def draw(self, n_tasks, random):
            asked.append(random.uniform((n_tasks, 1)).device.type)
            return filled(0, n_tasks)

    Elsewhere().batch(2)
    list(Elsewhere().stream(2, 3))
    Elsewhere().held_out(2)
    Elsewhere().sample(2, torch.Generator())
    assert asked == ["meta"] * 4


# A task is a tree

def tree(count=4, shots=3):
    "A task whose x is a dictionary, whose y is a tuple, and which says which tasks it holds."
    def split(first):
        number = first + torch.arange(float(count * shots)).reshape(count, shots)
        return ml.Split({"value": number[..., None], "kind": number.long()}, (number, -number))
    return ml.Task(split(0), split(100), ids=torch.arange(count) + 50)


def test_a_task_unpacks_indexes_and_counts_as_a_pair_of_pairs(sines):
    (x, y), (x_query, y_query) = sines
    assert x is sines.support.x and y is sines.support.y
    assert x_query is sines.query.x and y_query is sines.query.y
    assert sines[0] is sines.support and sines[-1] is sines.query and sines[1][0] is x_query
    assert len(sines) == len(sines.support) == 2
    assert sines[:] == (sines.support, sines.query)
    with pytest.raises(IndexError): sines[2]
    assert len([*tree()]) == len(tree()) == 2                       # ids are not among them


def test_what_is_none_is_no_leaf_and_stays_none(sines):
    assert len(leaves(sines)) == 4 and len(leaves(tree())) == 9
    doubled = sines.map(lambda tensor: 2 * tensor)
    assert doubled.ids is None and doubled.support.mask is None
    assert torch.equal(doubled.query.y, 2 * sines.query.y)
    masked = ml.Split(sines.support.x, sines.support.y, mask=torch.ones(6, 4))
    assert masked.select(slice(2)).mask.shape == (2, 4)


def test_vmap_sees_one_task_of_every_leaf():
    shapes = []

    def one(task):
        shapes.extend(tuple(leaf.shape) for leaf in leaves(task))
        assert (length(task.support), task.ids.shape) == (3, ())
        return task.map(lambda tensor: tensor + 1)

    after = vmap(one)(tree())
    assert sorted(shapes) == sorted([(3, 1), (3,), (3,), (3,)] * 2 + [()])
    assert isinstance(after, ml.Task) and isinstance(after.query, ml.Split)
    assert all(torch.equal(a, b + 1) for a, b in zip(leaves(after), leaves(tree()), strict=True))


def test_select_joined_map_and_to_reach_every_leaf():
    task = tree()
    some = task.select([2, 0])
    assert some.batch_size == 2 and some.ids.tolist() == [52, 50]
    assert torch.equal(some.query.x["kind"], task.query.x["kind"][[2, 0]])
    assert torch.equal(some.support.y[1], task.support.y[1][[2, 0]])
    assert task.select(-1).ids.tolist() == [53]
    both = vmap(lambda task: task.support.joined(task.query))(task)
    assert both.x["value"].shape == (4, 6, 1) and both.y[0].shape == (4, 6)
    double = task.to(torch.float64)
    assert double.support.x["value"].dtype == double.query.y[1].dtype == torch.float64
    assert double.support.x["kind"].dtype == double.ids.dtype == torch.int64
    total = mapped(lambda a, b: a + b, task, task)
    assert torch.equal(total.query.y[0], 2 * task.query.y[0])


def test_tasks_can_be_copied_and_kept():
    for again in (copy.deepcopy(tree()), pickle.loads(pickle.dumps(tree()))):
        assert isinstance(again, ml.Task) and again.support.x.keys() == {"value", "kind"}
        assert all(map(torch.equal, leaves(again), leaves(tree())))


def good(count=4, shots=3): return torch.zeros(count, shots, 1)


def of_support(x, y=None, **options):
    return ml.Task(ml.Split(x, good() if y is None else y, **options), ml.Split(good(), good()))


def with_ids(ids): return ml.Task(*[ml.Split(good(), good())] * 2, ids=ids)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: of_support({"value": good(), "ids": good(shots=2)}),
     r"support\.x\['value'\] has shape \(4, 3, 1\) and support\.x\['ids'\] \(4, 2, 1\)"),
    (lambda: of_support({"ids": good(3)}),
     r"support\.x\['ids'\] has shape \(3, 3, 1\) and support\.y \(4, 3, 1\)"),
    (lambda: of_support({"ids": torch.zeros(4)}), r"support\.x\['ids'\] has shape \(4,\), and no "),
    (lambda: of_support({"value": good(), "ids": 3}), r"support\.x\['ids'\] is a int; a tensor"),
    (lambda: of_support({"value": None}), r"support\.x\['value'\] is a NoneType; a tensor"),
    (lambda: of_support((good(), good() / 0)), r"support\.x\[1\] holds values that are not finite"),
    (lambda: of_support(good(), {"a": good(), "b": (good(), good() / 0)}),
     r"support\.y\['b'\]\[1\] holds .* first in task 0"),
    (lambda: of_support({}), r"support\.x is \{\}: there is no tensor in it"),
    (lambda: of_support(()), r"support\.x is \(\): there is no tensor in it"),
    (lambda: of_support({"a": {}}), r"support\.x is \{'a': \{\}\}: there is no tensor in it"),
    (lambda: of_support(None), r"support\.x is None: there is no tensor in it"),
    (lambda: of_support(good(), {}), r"support\.y is \{\}: there is no tensor in it"),
    (lambda: of_support({}, {}), r"support\.x is \{\}"),
    (lambda: of_support(good(), mask=torch.ones(4, 3)), r"support\.mask is of torch\.float32"),
    (lambda: with_ids(torch.arange(3)), r"ids has shape \(3,\)"),
    (lambda: with_ids(good()), r"ids has shape \(4, 3, 1\)")])
def test_check_task_names_the_leaf(wrong, message):
    with pytest.raises(ValueError, match=message): check_task(wrong())
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss)
    with pytest.raises(ValueError, match=message): J(wrong())


def test_check_split_names_the_set():
    empty = ml.Split({}, good())
    with pytest.raises(ValueError, match=r"query\.x is \{\}"): check_split(empty, "query")
    with pytest.raises(ValueError, match=r"support\.x is \{\}"):
        ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss).adapt(empty)


def test_pairs_are_welcome_and_a_task_keeps_its_ids():
    x, y = good(), good() + 1
    for task in (((x, y), (x, y)), [[x, y], [x, y]], ml.Task((x, y), (x, y)),
                 (ml.Split(x, y), (x, y))):
        checked = check_task(task)
        assert isinstance(checked.support, ml.Split) and checked.query.y is y
        assert checked.ids is None
    assert check_task(tree()).ids.tolist() == [50, 51, 52, 53]


# Models that read a tree

class Parts(nn.Module):
    "Reads a number, and an embedding of its kind; smooth."
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64))
        self.net = ml.models.mlp(3, 4, 1, activation=nn.Tanh, seed=2).double()

    def forward(self, value, kind):
        return self.net(torch.cat([value, self.table[kind]], -1))


LR, STEPS, BATCH = 0.1, 3, 2


def parts(shots=5, queries=4, count=6):
    "Tasks with two inputs, as x a pair."
    generator = torch.Generator().manual_seed(0)
    def split(examples):
        value, y = torch.randn(2, count, examples, 1, generator=generator, dtype=torch.float64)
        return ml.Split((value, torch.randint(5, (count, examples), generator=generator)), y)
    return ml.Task(split(shots), split(queries))


def by_name(task):
    "The same tasks, x a dictionary, in another order than the model's arguments."
    return ml.Task(*(ml.Split({"kind": x[1], "value": x[0]}, y) for x, y in task))


FORMS = {"tuple": lambda task: task, "dict": by_name}


def descended(model, theta, split, batch_size=None):
    "φ_K of one task, by hand."
    phi, count = theta, len(split.y)
    for k in range(STEPS):
        which = (torch.arange(count) if batch_size is None
                 else torch.arange(k * batch_size, (k + 1) * batch_size) % count)
        inputs = tuple(part[which] for part in split.x)
        loss = F.mse_loss(torch.func.functional_call(model, phi, inputs), split.y[which])
        slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {name: p - LR * g for (name, p), g in zip(phi.items(), slopes, strict=True)}
    return phi


def by_loop(model, task, batch_size=None):
    "MAML: its value, and the gradient of each parameter."
    theta, total = dict(model.named_parameters()), 0
    for i in range(task.batch_size):
        one = task.map(lambda tensor, i=i: tensor[i])
        phi = descended(model, theta, one.support, batch_size)
        answer = torch.func.functional_call(model, phi, one.query.x)
        total = total + F.mse_loss(answer, one.query.y)
    value = total / task.batch_size
    return value.detach(), list(torch.autograd.grad(value, list(theta.values())))


def assert_same_as(expected, J, task, atol=1e-14):
    value = J(task)
    found = torch.autograd.grad(value, list(J.parameters()))
    torch.testing.assert_close(value.detach(), expected[0], rtol=0, atol=atol)
    torch.testing.assert_close(list(found), list(expected[1]), rtol=0, atol=atol)


WAYS = {"whole": {}, "in chunks": {"chunk_size": 4}, "by a loop": {"batching": "loop"},
        "compiled": {}, "minibatches": {}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_several_parts_equal_a_plain_loop(form, way):
    task, batch_size = parts(), BATCH if way == "minibatches" else None
    inner = ml.SGD(LR, STEPS, batch_size=batch_size)
    J = ml.MetaLoss(Parts(), F.mse_loss, inner=inner, **WAYS[way])
    expected = by_loop(J.model, task, batch_size)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected[1])
    if way == "compiled": J.compile(backend="eager")
    for _ in range(2): assert_same_as(expected, J, FORMS[form](task))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_curve_with_and_without_transduction(form, chunk_size):
    "The model has no batch normalisation, so both are the loss of each task after k steps."
    task = parts()
    J = ml.MAML(Parts(), F.mse_loss, lr=LR, steps=STEPS, chunk_size=chunk_size)
    losses = [F.mse_loss(torch.func.functional_call(
        J.model, descended(J.model, dict(J.model.named_parameters()), one.support), one.query.x),
        one.query.y) for one in (task.map(lambda tensor, i=i: tensor[i]) for i in range(6))]
    for transductive in (True, False):
        curve = J.curve(FORMS[form](task), (0, STEPS), transductive=transductive)
        torch.testing.assert_close(curve[:, 1], torch.stack(losses).detach(), rtol=0, atol=1e-14)
        assert (curve[:, 1] != curve[:, 0]).all()
    phi = J.adapt(FORMS[form](task).support)
    answers = J.predict(phi, FORMS[form](task).query.x)
    measured = (answers - task.query.y).square().mean((1, 2))
    torch.testing.assert_close(measured, curve[:, 1], rtol=0, atol=1e-14)


def rms(a, b): return (a - b).square().mean().sqrt()


def contrasted(model, task):
    "The contrast of adapted parameters, by hand: D_in − D_out, in cosines."
    theta = dict(model.named_parameters())
    def vector(one, split): return torch.cat([p.flatten() for p in descended(model, theta,
                                                                            split).values()])
    ones = [task.map(lambda tensor, i=i: tensor[i]) for i in range(task.batch_size)]
    few = [vector(one, one.support) for one in ones]
    every = [vector(one, one.support.joined(one.query)) for one in ones]
    def apart(a, b): return 1 - F.cosine_similarity(a, b, dim=0)
    inside = [apart(a, b) for a, b in zip(few, every, strict=True)]
    between = [apart(a, b) for i, a in enumerate(every) for j, b in enumerate(every) if i != j]
    return torch.stack(inside).mean() - torch.stack(between).mean()


def triplets(model, task):
    "The triplet hinge of predictions on the first task's queries, by hand."
    theta = dict(model.named_parameters())
    probe = tuple(part[0] for part in task.query.x)
    def answers(split):
        phi = descended(model, theta, split)
        return torch.func.functional_call(model, phi, probe).flatten()
    supports = [task.map(lambda tensor, i=i: tensor[i]).support for i in range(task.batch_size)]
    halves = [(answers(s.select(slice(2))), answers(s.select(slice(2, None)))) for s in supports]
    whole = [answers(s) for s in supports]
    hinges = [(1 + rms(*halves[i]) - rms(whole[i], whole[j])).clamp_min(0)
              for i in range(6) for j in range(6) if i != j]
    return torch.stack(hinges).mean()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("term", "by_hand"), [(ml.Contrast(), contrasted),
                                               (ml.Triplet(margin=1.0), triplets)])
def test_terms_that_compare_tasks_read_inputs_of_several_parts(form, term, by_hand):
    task = parts()
    J = ml.MetaLoss(Parts(), F.mse_loss, inner=ml.SGD(LR, STEPS), terms=term)
    value = by_hand(J.model, task)
    expected = value.detach(), torch.autograd.grad(value, list(J.parameters()))
    assert all(gradient.abs().max() > 1e-4 for gradient in expected[1])
    assert_same_as(expected, J, FORMS[form](task))
    chunked = ml.MetaLoss(J.model, F.mse_loss, inner=ml.SGD(LR, STEPS), terms=term, chunk_size=4)
    assert_same_as(expected, chunked, FORMS[form](task))


def test_more_tasks_than_the_memory_holds_are_refused_before_they_are_drawn():
    sines = ml.tasks.Sinusoids(shots=5, queries=1)
    for draw, name in ((sines.held_out, "n_tasks"), (sines.batch, "batch_size"),
                       (lambda count: sines.batches(count, 0, [0, 1]), "batch_size")):
        with pytest.raises(MemoryError, match=f"{name}=9000000000: tasks of .* Take fewer"):
            draw(9 * 10**9)
    assert sines.held_out(100_001).batch_size == 100_001
