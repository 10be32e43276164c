"""Tasks of unequal size: a list of them, and one batch with padding.

The referee is a plain loop over tasks, one after another, of `torch.autograd.grad` in float64.
"""
import functools

import pytest
import torch
import torch.nn.functional as F
from helpers import close, counting, same, value_and_gradient
from referee import by_loop
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit import as_written
from metalit.losses import takes_mask
from metalit.tasks.unequal import Unequal, check_tasks, in_groups

SIZES = ((3, 4), (5, 2), (3, 4), (2, 6))                      # (support, query) of each task


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(sizes=SIZES):
    "Tasks of one feature and one target, a batch of one each."
    return [ml.tasks.one(*(draw(n, 1, seed=10 * i + j) for j, n in enumerate((s, s, q, q))))
            for i, (s, q) in enumerate(sizes)]


def classes(shots=(2, 3, 2, 4), queries=2, ways=3):
    "Tasks of so many shots of each class, (S, 4)."
    def split(i, n):
        y = torch.arange(ways).repeat(n)
        return draw(len(y), 4, seed=i) + 2 * F.one_hot(y, 4), y
    return [ml.tasks.one(*split(i, n), *split(50 + i, queries + i % 2))
            for i, n in enumerate(shots)]


def net(*sizes, seed=0):
    return ml.models.mlp(*(sizes or (1, 6, 1)), activation=nn.Tanh, seed=seed).double()


def mean_of(J, tasks):
    "Value and gradient of the mean of J over tasks, one by one."
    values, slopes = zip(*(value_and_gradient(J, task) for task in tasks), strict=True)
    return torch.stack(values).mean(), torch.stack(slopes).mean(0)


# A list

@pytest.mark.parametrize("first_order", [False, True])
def test_a_list_is_the_mean_of_its_tasks(first_order):
    tasks, model = regression(), net()
    found = [by_loop(model, F.mse_loss, task, first_order=first_order) for task in tasks]
    expected = [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.3, 2),
                    gradient=ml.FirstOrder() if first_order else ml.Exact())
    value, slope = value_and_gradient(J, tasks)
    close(value, expected[0], 1e-12)
    close(slope, torch.cat([part.flatten() for part in expected[1:]]), 1e-12)


def normed():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False),
                         nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"batching": "loop"}])
@pytest.mark.parametrize("kind", [ml.MAML, ml.ProtoNet, ml.ProtoMAML, ml.ANIL, ml.Reptile])
def test_a_list_is_exact_for_models_whose_examples_see_each_other(kind, options):
    tasks = classes()
    J = kind(normed(), F.cross_entropy, **options)
    value, slope = mean_of(J, tasks)
    found = value_and_gradient(J, tasks)
    close(found[0], value, 1e-12)
    close(found[1], slope, 1e-12)


def test_values_come_back_in_the_order_given():
    tasks, J = regression(), ml.MAML(net(), F.mse_loss, lr=0.1)
    alone = torch.cat([J.per_task(task)[0] for task in tasks])
    close(J.per_task(tasks)[0], alone, 1e-14)
    close(J.curve(tasks), torch.cat([J.curve(task) for task in tasks]), 1e-14)
    close(ml.evaluate(J, tasks, steps=(0, 1)).per_task, J.curve(tasks), 1e-14)
    assert [group.batch_size for group, _ in check_tasks(tasks).groups] == [2, 1, 1]
    assert J.report(tasks)["loss_after"] == pytest.approx(alone.mean().item())


def test_tasks_of_one_size_are_the_batch_that_they_make():
    one, two = regression(((3, 4), (3, 4)))
    batch = ml.Task(one.support.select([0]), one.query)
    both = check_tasks([one, two]).groups[0][0]
    J = ml.MAML(net(), F.mse_loss)
    assert same(value_and_gradient(J, [batch, two]), value_and_gradient(J, both))


def test_pooling_sees_all_tasks_their_sizes_and_ids():
    tasks = [ml.Task(task.support, task.query, ids=torch.tensor([i]))
             for i, task in enumerate(regression())]
    seen = {}

    class Seeing(ml.Pooling):
        def forward(self, values, *, sizes, ids):
            seen.update(values=values, sizes=sizes, ids=ids)
            return values.max()
    J = ml.MAML(net(), F.mse_loss, pooling=Seeing())
    close(J(tasks), J.per_task(tasks)[0].max())
    assert seen["sizes"].tolist() == [4, 2, 4, 6] and seen["ids"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="asks which tasks these are"): J(regression())


def after(model, theta, x, y, lr):
    slopes = torch.autograd.grad(F.mse_loss(functional_call(model, theta, (x,)), y),
                                 list(theta.values()), create_graph=True)
    return {name: p - lr * g for (name, p), g in zip(theta.items(), slopes, strict=True)}


def triplet_by_hand(model, tasks, lr, margin=1.0, weight=0.1):
    theta, ends, losses = dict(model.named_parameters()), [], []
    probe = tasks[0].query.x[0]
    for task in tasks:
        x, y, half = task.support.x[0], task.support.y[0], task.support.x.shape[1] // 2
        parts = [after(model, theta, x[part], y[part], lr)
                 for part in (slice(half), slice(half, None), slice(None))]
        losses.append(F.mse_loss(functional_call(model, parts[-1], (task.query.x[0],)),
                                 task.query.y[0]))
        ends.append([functional_call(model, phi, (probe,)) for phi in parts])
    def d(a, b): return (a - b).square().mean().sqrt()
    hinges = [torch.relu(margin + d(one[0], one[1]) - d(one[2], other[2]))
              for one in ends for other in ends if one is not other]
    return torch.stack(losses).mean() + weight * torch.stack(hinges).mean()


def conml_by_hand(model, tasks, lr, weight=0.1):
    theta, pairs, losses = dict(model.named_parameters()), [], []
    def flat(phi): return torch.cat([p.flatten() for p in phi.values()])
    for task in tasks:
        (x, y), (qx, qy) = ((split.x[0], split.y[0]) for split in task)
        phi = after(model, theta, x, y, lr)
        losses.append(F.mse_loss(functional_call(model, phi, (qx,)), qy))
        pairs.append((flat(phi), flat(after(model, theta, torch.cat([x, qx]), torch.cat([y, qy]),
                                            lr))))
    def d(a, b): return 1 - F.cosine_similarity(a, b, dim=0)
    near = torch.stack([d(*pair) for pair in pairs]).mean()
    far = torch.stack([d(a[1], b[1]) for a in pairs for b in pairs if a is not b]).mean()
    return torch.stack(losses).mean() + weight * (near - far)


BY_HAND = {ml.TripletMAML: triplet_by_hand, ml.ConML: conml_by_hand}


@pytest.mark.parametrize("kind", BY_HAND)
def test_terms_that_compare_tasks_see_the_whole_list(kind):
    tasks, model = regression(), net()
    expected = BY_HAND[kind](model, tasks, 0.1)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    value, slope = value_and_gradient(kind(model, F.mse_loss, lr=0.1), tasks)
    close(value, expected.detach(), 1e-12)
    close(slope, torch.cat([part.flatten() for part in slopes]), 1e-12)


@pytest.mark.parametrize("formula", [as_written.maml, as_written.reptile, as_written.contrastive,
                                     as_written.meta_curvature])
def test_formulas_as_written_take_a_list(formula):
    J = as_written.AsWritten(net(), F.mse_loss, formula)
    one, two = regression(((3, 4), (3, 4)))
    (task, _), = check_tasks([one, two]).groups
    close(J([one, two]), J(task), 1e-14)
    if formula is not as_written.contrastive:
        close(J(regression()), torch.stack([J(t) for t in regression()]).mean(), 1e-14)


def test_training_takes_lists():
    batches = [regression(), regression(((2, 2), (4, 1)))]
    J, seen = ml.MAML(net().float(), F.mse_loss), []
    ml.meta_train(J, batches, steps=3, progress=False, watch=seen.append)
    assert len(seen) == 3
    first = ml.MAML(net().float(), F.mse_loss)([task.to(torch.float32) for task in batches[0]])
    assert seen[0] == pytest.approx(first.item(), abs=1e-6)


def test_a_compiled_J_and_several_processes_ask_for_padding():
    from metalit.training.processes import Team, share
    J = ml.MAML(net(), F.mse_loss)
    J.compile(backend="eager")
    with pytest.raises(ValueError, match=r"4 tasks of 3 shapes.*compiled.*ml\.tasks\.padded"):
        J(regression())
    with pytest.raises(ValueError, match=r"2 processes share.*ml\.tasks\.padded"):
        share(check_tasks(regression()), Team(0, 2))


def bad(change):
    tasks = regression()
    change(tasks)
    return tasks


X, Y = torch.zeros(3, 1), torch.zeros(3, 1)


@pytest.mark.parametrize(("make", "words"), [
    (list, r"a list without a task.*ml\.tasks\.one"),
    (lambda: bad(lambda t: t.__setitem__(2, 5)), r"\[2\] of the tasks: a task is Task"),
    (lambda: bad(lambda t: t[1].support.x.fill_(torch.nan)),
     r"\[1\] of the tasks: support\.x holds"),
    (lambda: ml.tasks.one(X, Y, X[:0], Y[:0]), "no examples in it"),
    (lambda: ml.tasks.one(X, Y[:2], X, Y), "must agree"),
    (lambda: ml.tasks.one([1.0, 2.0], Y, X, Y), "support.x.* is a float; a tensor is needed"),
])
def test_mistakes_are_named_with_their_place(make, words):
    with pytest.raises(ValueError, match=words): ml.MAML(net(), F.mse_loss)(make())


def test_what_has_other_shapes_on_other_sizes_cannot_stand_side_by_side():
    tasks = Unequal(regression())
    with pytest.raises(ValueError, match=r"other shape.*\(2, 1\), \(4, 1\), \(6, 1\)"):
        in_groups(lambda task: [task.query.y], tasks)
    J = ml.MAML(net(), F.mse_loss, terms=ml.QueryLoss() + ml.Triplet())
    with pytest.raises(ValueError, match=r"\[3\].*example cannot|cannot be split"):
        J(regression(((3, 4), (2, 2), (2, 2), (1, 2))))


# Padding

def spoiled(tasks):
    "One batch with a mask, and NaN wherever it says that there is nothing."
    task = ml.tasks.padded(tasks)
    for split in task:
        split.x[~split.mask] = torch.nan
        y = split.y
        y[~split.mask] = torch.nan if y.is_floating_point() else 99
    return task


LIKE_MAML = [ml.MAML, ml.FOMAML, ml.Reptile, ml.MetaSGD, ml.MetaCurvature, ml.ANIL, ml.BOIL,
             ml.SharpMAML, ml.TripletMAML, ml.ConML]
LIKE_PROTONET = [ml.ProtoNet, ml.ProtoMAML]


@pytest.mark.parametrize("kind", [*LIKE_MAML, *LIKE_PROTONET])
def test_padded_tasks_are_the_list(kind):
    tasks = classes() if kind in LIKE_PROTONET else regression()
    model = net(4, 5, 3) if kind in LIKE_PROTONET else net()
    loss = F.cross_entropy if kind in LIKE_PROTONET else F.mse_loss
    J = kind(model, loss)
    expected = value_and_gradient(J, tasks)
    for options in ({}, {"chunk_size": 2}, {"batching": "loop"}):
        if kind is ml.SharpMAML and "chunk_size" in options: continue
        found = value_and_gradient(kind(model, loss, **options), spoiled(tasks))
        for a, b in zip(found, expected, strict=True): close(a, b, 1e-12)


def huber_sum(prediction, y): return F.huber_loss(prediction, y, reduction="sum")
def root(prediction, y): return F.mse_loss(prediction, y).sqrt()


def root_with_mask(prediction, y, mask):
    return ((prediction - y).square().mean(1) * mask).sum().div(mask.sum()).sqrt()


def decorated(function):
    @functools.wraps(function)
    def called(*args): return function(*args)
    return called


def power_with_mask(prediction, y, mask, power):
    return ((prediction - y).abs().pow(power).mean(1) * mask).sum() / mask.sum()


CHOICES = {
    "minibatches": {"inner": lambda: ml.SGD(0.1, 4, batch_size=3)},
    "Adam": {"inner": lambda: ml.Adam(0.1, 3)},
    "momentum": {"inner": lambda: ml.SGD(0.1, 3, momentum=0.5, clip=0.1)},
    "proximal": {"inner": lambda: ml.Proximal(0.1, 3)},
    "a network that says rates": {"inner": lambda: ml.ALFA(net(), 0.1, 3)},
    "forgetting": {"inner": lambda: ml.Forget(net(), 0.1, 3)},
    "another inner loss": {"inner": lambda: ml.SGD(0.1, 2, loss=huber_sum)},
    "every step": {"terms": lambda: ml.EveryStep()},
    "sharpness": {"terms": lambda: ml.QueryLoss() + 0.1 * ml.GradientNorm()},
    "contrast by predictions": {"terms": lambda: ml.Contrast("predictions")},
    "triplet, minibatches": {"terms": lambda: ml.Triplet() + ml.QueryLoss(),
                             "inner": lambda: ml.SGD(0.1, 2, batch_size=2)},
    "mixed mode": {"gradient": lambda: ml.MixedMode()},
    "worst": {"pooling": lambda: ml.Worst()},
}


def chosen(name):
    return {key: make() for key, make in CHOICES[name].items()}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_follows_the_mask(name):
    sizes = ((3, 4), (5, 2), (2, 6))
    model = net()
    J = ml.MetaLoss(model, F.mse_loss, **chosen(name))
    expected = value_and_gradient(J, regression(sizes))
    found = value_and_gradient(ml.MetaLoss(model, F.mse_loss, **chosen(name)),
                               spoiled(regression(sizes)))
    for a, b in zip(found, expected, strict=True): close(a, b, 1e-12)


def test_halves_of_classes_follow_the_mask():
    J = ml.TripletMAML(net(4, 5, 3), F.cross_entropy)
    expected = value_and_gradient(J, classes())
    for a, b in zip(value_and_gradient(J, spoiled(classes())), expected, strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("loss", [huber_sum, nn.L1Loss(), root_with_mask, F.smooth_l1_loss,
                                  decorated(root_with_mask),
                                  functools.partial(power_with_mask, power=3)])
def test_losses_that_are_sums_means_or_know_the_mask(loss):
    J = ml.MAML(net(), loss, lr=0.1, steps=2)
    found = value_and_gradient(J, spoiled(regression()))
    for a, b in zip(found, value_and_gradient(J, regression()), strict=True): close(a, b, 1e-12)


def sum_and_more(prediction, y): return (prediction - y).abs().sum() + 1.5
def median(prediction, y): return (prediction - y).abs().median()


class Asking(ml.TaskLoss):
    def forward(self, predict, split, phi): return F.mse_loss(predict(phi, split.x), split.y)


class Minding(ml.TaskLoss):
    padding = True

    def forward(self, predict, split, phi):
        mask = torch.ones(len(split.x), dtype=torch.bool) if split.mask is None else split.mask
        off = (predict(phi, split.x) - split.y).square().mean(1)
        return torch.where(mask, off, 0).sum() / mask.sum()


class OwnTerm(ml.Term):
    def per_task(self, path, task): return path.predict(path.final, task.query.x).mean()


class OwnInner(ml.SGD):
    def first(self, predict, theta, support): return theta


class Centred(nn.Module):
    def __init__(self, always=True):
        super().__init__()
        self.linear, self.always = nn.Linear(1, 1), always

    def forward(self, x):
        return self.linear(x - x.mean(0) if self.always or self.training else x)


WEIGHTED = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ml.MAML(net(), root), "neither their mean nor their sum.*mask.*J\\(\\[task"),
    (lambda: ml.MAML(net(), sum_and_more), "neither their mean nor their sum"),
    (lambda: ml.MAML(net(), median), "neither their mean nor their sum"),
    (lambda: ml.MAML(net(), Asking()), "Asking does not say whether it minds padding"),
    (lambda: ml.MAML(net(), F.mse_loss, terms=OwnTerm()), "OwnTerm does not say whether"),
    (lambda: ml.MetaLoss(net(), F.mse_loss, inner=OwnInner()), "OwnInner does not say whether"),
    (lambda: ml.MAML(Centred().double(), F.mse_loss), "Centred answers otherwise.*list"),
    (lambda: ml.MAML(Centred(always=False).double(), F.mse_loss), "Centred answers otherwise"),
])
def test_what_cannot_leave_padding_out_is_refused_and_takes_the_list(make, words):
    J = make()
    with pytest.raises(ValueError, match=words): J(spoiled(regression()))
    J = make()
    assert J(regression()).isfinite()


def test_batch_normalisation_and_class_weights_are_refused_with_padding():
    tasks = classes()
    for J, words in ((ml.MAML(normed(), F.cross_entropy), r"layer '1' \(BatchNorm1d\)"),
                     (ml.MAML(net(4, 5, 3), WEIGHTED), "neither their mean nor their sum")):
        with pytest.raises(ValueError, match=words): J(spoiled(tasks))
        looped = ml.MAML(J.model, J.loss, batching="loop")
        for a, b in zip(value_and_gradient(looped, spoiled(tasks)), value_and_gradient(J, tasks),
                        strict=True): close(a, b, 1e-12)
    trained = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    J = ml.MAML(trained.eval(), F.cross_entropy)
    close(J(spoiled(tasks)), J(tasks), 1e-12)


@pytest.mark.parametrize(("loss", "takes", "needs"), [
    (F.mse_loss, False, False), (nn.MSELoss(), False, False), (torch.add, False, False),
    (root_with_mask, True, True), (decorated(root_with_mask), True, True),
    (lambda prediction, y, mask=None: prediction.mean(), True, False),
    (functools.partial(power_with_mask, power=2), True, True),
    (functools.partial(power_with_mask, mask=None, power=2), False, False)])
def test_who_takes_a_mask(loss, takes, needs):
    assert (takes_mask(loss), takes_mask(loss, needs=True)) == (takes, needs)


def test_a_task_loss_that_minds_the_mask():
    J = ml.MAML(net(), Minding())
    for a, b in zip(value_and_gradient(J, spoiled(regression())),
                    value_and_gradient(J, regression()), strict=True): close(a, b, 1e-12)


def test_what_is_measured_follows_the_mask():
    tasks, J = classes(), ml.ProtoMAML(net(4, 5, 3), F.cross_entropy, lr=0.1, steps=2)
    for metric in (None, ml.accuracy):
        expected = torch.cat([J.curve(task, (0, 2), metric) for task in tasks])
        close(J.curve(spoiled(tasks), (0, 2), metric), expected, 1e-12)
        close(J.curve(spoiled(tasks), (0, 2), metric, transductive=False), expected, 1e-12)
        close(ml.evaluate(J, spoiled(tasks), steps=(0, 2), metric=metric).per_task, expected, 1e-12)
    assert 0 < expected.mean() < 1
    assert J.report(spoiled(tasks)) == pytest.approx(J.report(tasks), abs=1e-12)
    phi, padded = J.adapt(spoiled(tasks).support), ml.tasks.padded(tasks)
    for i, task in enumerate(tasks):
        for name, value in J.adapt(task.support).items(): close(phi[name][i], value[0], 1e-12)
    looped = ml.ProtoMAML(J.model, F.cross_entropy, lr=0.1, steps=2, batching="loop")
    for name, value in looped.adapt(padded.support).items(): close(phi[name], value, 1e-12)


def test_sizes_and_ids_of_padded_tasks():
    tasks = [ml.Task(task.support, task.query, ids=torch.tensor([7 + i]))
             for i, task in enumerate(regression())]
    task, seen = spoiled(tasks), []

    def pool(values, *, sizes, ids):
        seen.append((sizes.tolist(), ids.tolist()))
        return values.mean()
    ml.MAML(net(), F.mse_loss, pooling=pool)(task)
    assert seen == [([4, 2, 4, 6], [7, 8, 9, 10])]
    for one, other in zip(ml.tasks.unpadded(task), tasks, strict=True):
        for a, b in zip(ml.tasks.task.leaves(one), ml.tasks.task.leaves(other), strict=True):
            assert torch.equal(a, b)
    again = ml.tasks.padded([task, *regression(((7, 7),))[:0], ml.tasks.padded(tasks)])
    assert again.batch_size == 8 and again.support.mask.sum(1).tolist() == 2 * [3, 5, 3, 2]


def test_padded_tasks_compile():
    J = ml.ConML(net(4, 5, 3), F.cross_entropy)
    expected, graphs = value_and_gradient(J, classes()), []
    J.compile(backend=counting(graphs))
    for size in (12, 15, 12):                                # a graph for each size of a batch
        task = ml.tasks.padded([spoiled(classes())], support=size)
        for a, b in zip(value_and_gradient(J, task), expected, strict=True): close(a, b, 1e-12)
    assert len(graphs) == 2


def test_padding_to_a_size():
    task = ml.tasks.padded(regression(), support=7, query=6)
    assert task.support.x.shape == (4, 7, 1) and task.query.mask.shape == (4, 6)
    with pytest.raises(ValueError, match="a set of 5 examples is larger than 4"):
        ml.tasks.padded(regression(), support=4)


def test_a_compiled_graph_does_not_know_the_shared_inputs():
    J = ml.TripletMAML(net(), F.mse_loss)
    J.compile(backend="eager")
    with pytest.raises(ValueError, match=r"Triplet predicts on.*embedding='parameters'"):
        J(spoiled(regression(((3, 4), (2, 2)))))


def test_a_model_that_divides_by_the_length_of_its_input():
    class Directed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x): return self.linear(x / x.norm(dim=-1, keepdim=True))
    J = ml.MAML(Directed().double(), F.mse_loss)
    for a, b in zip(value_and_gradient(J, ml.tasks.padded(regression())),
                    value_and_gradient(J, regression()), strict=True): close(a, b, 1e-12)


class Named(nn.Module):
    "Reads a number and a kind, with dropout in training, and says two things."
    def __init__(self):
        super().__init__()
        self.kinds, self.out, self.drop = nn.Embedding(4, 2), nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, value, kind):
        seen = self.out(torch.cat([value, self.kinds(kind)], -1))
        return {"mean": self.drop(seen[:, :1]), "log": seen[:, 1]}


def likelihood(answer, y):
    off = (answer["mean"][:, 0] - y["target"]) * torch.exp(-answer["log"])
    return (off.square() + answer["log"]).mean()


def by_name(n, q, seed):
    def split(count, seed):
        kind = torch.arange(count) % 4
        x = {"value": draw(count, 1, seed=seed), "kind": kind}
        return x, {"target": draw(count, seed=seed)}
    return ml.tasks.one(*split(n, seed), *split(q, seed + 50))


def test_inputs_and_answers_that_are_trees():
    torch.manual_seed(0)                                     # with some starts it runs away
    tasks, model = [by_name(3, 2, 1), by_name(5, 4, 2), by_name(1, 1, 3)], Named().double()
    J = ml.MAML(model.eval(), likelihood, lr=0.1, steps=2)
    task = ml.tasks.padded(tasks)
    for split in task:
        split.x["value"][~split.mask], split.x["kind"][~split.mask] = torch.nan, 1000
    for a, b in zip(value_and_gradient(J, task), value_and_gradient(J, tasks), strict=True):
        close(a, b, 1e-12)
    assert ml.MAML(model.train(), likelihood)(task).isfinite()


def test_looking_at_padded_tasks_takes_no_random_numbers():
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    J, found = ml.MAML(model, F.mse_loss), []
    for _ in range(2):                                       # the first call looks, the second not
        torch.manual_seed(0)
        found.append(value_and_gradient(J, spoiled(regression())))
    assert same(*found)


def test_a_family_may_draw_lists_and_padded_tasks():
    class Few(ml.Family):
        def sample(self, batch_size, generator):
            sizes = torch.randint(2, 5, (batch_size, 2), generator=generator).tolist()
            return self.made([task.to(torch.float32) for task in regression(sizes)])
    for made in (list, ml.tasks.padded):
        family, seen = Few(), []
        family.made = made
        J = ml.MAML(net().float(), F.mse_loss)
        ml.meta_train(J, family, steps=2, batch_size=3, progress=False, watch=seen.append,
                      validation=ml.Validation(family, every=1, n_tasks=4))
        found = ml.evaluate(J, family, n_tasks=5, steps=(0, 1))
        assert len(seen) == 2 and found.per_task.shape == (5, 2) and found.per_task.isfinite().all()


def test_tasks_that_one_has_are_trained_on_and_judged_with_what_they_have():
    mine = {str(i): (draw(n, 1, seed=i), draw(n, 1, seed=i + 9)) for i, n in enumerate((4, 7, 5))}
    family = ml.tasks.Given(mine, test={"t": mine["1"], "u": mine["0"]}, shots=3,
                            split="first")
    J = ml.MAML(net(), F.mse_loss, lr=0.1)
    parts = [ml.tasks.one(x[:3], y[:3], x[3:], y[3:]) for x, y in (mine["1"], mine["0"])]
    close(J.curve(family.held_out(), (1,)), J.curve(parts, (1,)), 1e-12)


def test_a_model_for_one_task_with_a_loss_that_takes_a_mask():
    (task, *_), J = regression(), ml.MAML(net(), root_with_mask, lr=0.1)
    x, y = task.support.x[0], task.support.y[0]
    phi = J.adapt(task.support)
    for name, p in J.adapted(x, y).named_parameters(): close(p.detach(), phi[name][0].detach())


def masked(mask, x=None):
    x = torch.zeros(2, 3, 1) if x is None else x
    return ml.Task(ml.Split(x, x, mask), ml.Split(x, x))


YES = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: masked(YES.float()), r"support\.mask is of torch\.float32.*mask\.bool\(\)"),
    (lambda: masked([[True]]), r"support\.mask is of list"),
    (lambda: masked(YES[:, :2]), r"support\.mask has shape \(2, 2\), and support\.x \(2, 3, 1\)"),
    (lambda: masked(YES & torch.tensor([[True], [False]])), "no real example of task 1"),
    (lambda: masked(YES, torch.full((2, 3, 1), torch.inf)), r"support\.x holds values that"),
    (lambda: ml.tasks.padded([]), "a list without a task"),
    (lambda: ml.tasks.padded([*regression(), ml.tasks.one(X, Y, X, Y)]),
     r"\[4\] of the tasks is x \(1, 3, 1\) torch\.float32.*padding makes the numbers of examples"),
])
def test_bad_masks_are_named(make, words):
    with pytest.raises(ValueError, match=words): ml.MAML(net(), F.mse_loss)(make())


# Ways that differ

def mixed():
    "Tasks of two, four and three ways."
    return [classes(shots=(2,), ways=2)[0], classes(shots=(1, 3), ways=4)[1], classes()[2]]


def protonet_by_hand(model, task, lr, steps):
    "The query loss of one task, from a head of its class means and as many classes as it has."
    x, y, far, asked = task.support.x[0], task.support.y[0], task.query.x[0], task.query.y[0]
    means = torch.stack([model[:-1](x[y == k]).mean(0) for k in range(int(y.max()) + 1)])
    names, body = zip(*model[:-1].named_parameters(), strict=True)
    phi = [*(p.clone() for p in body), 2 * means, -means.square().sum(1)]

    def answer(phi, x):
        features = functional_call(model[:-1], dict(zip(names, phi[:-2], strict=True)), (x,))
        return features @ phi[-2].mT + phi[-1]
    for _ in range(steps):
        slopes = torch.autograd.grad(F.cross_entropy(answer(phi, x), y), phi, create_graph=True)
        phi = [p - lr * g for p, g in zip(phi, slopes, strict=True)]
    return F.cross_entropy(answer(phi, far), asked)


@pytest.mark.parametrize("outputs", [2, 3, 7])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_head_of_class_means_has_the_ways_of_its_tasks(steps, outputs):
    tasks, model = mixed(), net(4, 5, outputs)
    expected = torch.stack([protonet_by_hand(model, task, 0.1, steps) for task in tasks]).mean()
    slopes = torch.autograd.grad(expected, list(model[:-1].parameters()))
    slopes = torch.cat([slope.flatten() for slope in slopes])
    def make(**options):
        return ml.ProtoMAML(model, F.cross_entropy, lr=0.1, steps=steps, **options)
    for J, given in ((make(), tasks), (make(), spoiled(tasks)), (make(chunk_size=2), tasks),
                     (make(batching="loop"), spoiled(tasks))):
        value, slope = value_and_gradient(J, given)
        close(value, expected.detach(), 1e-12)
        close(slope[:len(slopes)], slopes, 1e-12)
        assert not slope[len(slopes):].any()                              # the model's own head
    alone = torch.stack([make().curve(task, (steps,), ml.accuracy) for task in tasks]).flatten(1)
    close(make().curve(spoiled(tasks), (steps,), ml.accuracy), alone)
    wide = classes(shots=(2,), ways=4)[0]
    assert J.predict(J.adapt(wide.support), wide.query.x).shape[-1] == 4


def test_distances_between_heads_of_other_ways_are_no_numbers():
    J = ml.MetaLoss(net(4, 5, 3), F.cross_entropy, terms=ml.Contrast(),
                    inner=ml.ProtoNet(net(4, 5, 3), F.cross_entropy).inner)
    assert not J(spoiled(mixed())).isfinite()


def test_labels_beyond_the_ways_of_a_task_never_count_silently():
    J, (task,) = ml.ProtoNet(net(4, 5, 3), F.cross_entropy), classes(shots=(2,))
    for y, words in ((task.query.y + 1, "in task 0 a query is of class 3, and no"),
                     (task.query.y - 1, "in task 0 a query is of class -1, and no")):
        with pytest.raises(ValueError, match=words):
            J(ml.Task(task.support, ml.Split(task.query.x, y)))
    below = ml.Split(task.support.x, task.support.y - 1)
    with pytest.raises(ValueError, match="y has the label -1: labels are 0, 1, 2"):
        J(ml.Task(below, below))
    for label in (4, 3):
        y = torch.where(task.query.y == 2, label, task.query.y)
        with pytest.raises(ValueError, match="The model has 3 outputs, so labels are 0 … 2"):
            ml.MAML(net(4, 5, 3), F.cross_entropy)(
                ml.tasks.padded([ml.Task(ml.Split(task.support.x, task.support.y),
                                         ml.Split(task.query.x, y)), *classes()]))


def test_episodes_of_two_to_five_ways():
    images, labels = draw(40, 1, 2, 2).float(), torch.arange(40) % 8
    episodes = ml.tasks.Episodes(images, labels, ways=(2, 5), shots=2, queries=1)
    task = episodes.batch(200, seed=3)
    ways = task.support.mask.sum(1) // 2
    assert ways.unique(return_counts=True)[1].min() > 30 and ways.unique().tolist() == [2, 3, 4, 5]
    assert torch.equal(task.query.mask.sum(1), ways)
    assert torch.equal(task.support.y < ways[:, None], task.support.mask)
    fixed = episodes.having(ways=5).batch(200, seed=3)
    assert torch.equal(fixed.support.x, task.support.x) and fixed.support.mask is None
    halves = episodes.batches(100, seed=3, steps=range(2))
    again = episodes.batch(100, seed=3, step=1)
    assert same(ml.tasks.task.leaves(halves[1]), ml.tasks.task.leaves(again))
    J = ml.ProtoNet(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 5)), F.cross_entropy)
    assert J(task).isfinite() and episodes.held_out(3).batch_size == 3
    seen = []
    ml.meta_train(J, episodes, steps=2, batch_size=4, progress=False, watch=seen.append)
    assert len(seen) == 2
    for ways, words in (((5, 2), r"ways=\(5, 2\).*such as \(2, 5\)"), ((1, 3), "ways=1: at least"),
                        ((2, 9), "only 8 classes"), (2.5, "a whole number")):
        with pytest.raises(ValueError, match=words): episodes.having(ways=ways)


# Pooling

@pytest.mark.parametrize("make", [regression, lambda: spoiled(regression())])
def test_tasks_count_equally_or_by_their_examples(make):
    J = ml.MAML(net(), F.mse_loss, lr=0.1)
    values = J.per_task(regression())[0]
    close(J(make()), values.mean(), 1e-14)
    by_size = ml.MAML(J.model, F.mse_loss, lr=0.1, pooling=ml.ByExamples())
    sizes = torch.tensor([4.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    close(by_size(make()), (values * sizes).sum() / 16, 1e-14)
    whole = ml.MAML(J.model, huber_sum, steps=0)
    single = ml.MAML(J.model, F.huber_loss, steps=0, pooling=ml.ByExamples())
    close(single(make()) * 16 / 4, whole(make()), 1e-14)
