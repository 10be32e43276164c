"""The adapted model: a plain module that has learned one task.

The referee is `J.adapt` with its task axis for what the inner loop does (which other tests hold
against plain loops), PyTorch's own SGD for what it does plainly, and the model for what stays.
"""
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from test_any_model import Backbone, Named, Residual, images, named_task, numbers, random, trained
from test_any_model import weighted as weighted_loss
from torch import nn

import metalit as ml
from metalit.adapted import delta, holding
from metalit.batching.slope import differentiated_once, hvp
from metalit.training.evaluation import measure

LR = 0.1


def contextual(): return ml.models.Contextual(ml.models.mlp(5, 6, 1, seed=1), 2).double()


def classifier(): return nn.Sequential(nn.Flatten(), ml.models.mlp(72, 6, 3, seed=1)).double()


def small(): return ml.models.mlp(3, 6, 1, activation=nn.Tanh, seed=1).double()


KINDS = {
    "MAML": (small, numbers, lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=3)),
    "FOMAML": (small, numbers, lambda m: ml.FOMAML(m, F.mse_loss, lr=LR, steps=3)),
    "Meta-SGD": (small, numbers, lambda m: ml.MetaSGD(m, F.mse_loss, lr=LR, steps=2)),
    "Meta-Curvature": (small, numbers, lambda m: ml.MetaCurvature(m, F.mse_loss, lr=LR, steps=2)),
    "ANIL": (small, numbers, lambda m: ml.ANIL(m, F.mse_loss, lr=LR, steps=2)),
    "CAVIA": (contextual, numbers, lambda m: ml.CAVIA(m, F.mse_loss, lr=LR, steps=3)),
    "Reptile": (small, numbers, lambda m: ml.Reptile(m, F.mse_loss, steps=4, batch_size=2)),
    "SAM": (small, numbers, lambda m: ml.SharpMAML(m, F.mse_loss, lr=LR, steps=2)),
    "Adam": (small, numbers, lambda m: ml.MetaLoss(m, F.mse_loss, inner=ml.Adam(LR, 3))),
    "ProtoNet": (classifier, images, lambda m: ml.ProtoNet(m, F.cross_entropy)),
    "ProtoMAML": (classifier, images, lambda m: ml.ProtoMAML(m, F.cross_entropy, lr=LR, steps=2)),
    "frozen body": (Backbone, numbers, lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2)),
    "statistics": (lambda: trained(Residual()), images,
                   lambda m: ml.MAML(m, F.cross_entropy, lr=LR, steps=2)),
    "a dictionary": (Named, named_task, lambda m: ml.MAML(m, weighted_loss, lr=LR, steps=2)),
    "one by one": (small, numbers,
                   lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2, batching="loop")),
}


def one(tree, i):
    return {k: v[i] for k, v in tree.items()} if isinstance(tree, dict) else tree[i]


def shaken(J):
    "With factors that are no longer what they were at the start."
    with torch.no_grad():
        for p in J.inner.parameters(): p.add_(0.1 * random(*p.shape, seed=5))
    return J


def answer(model, x): return model(**x) if isinstance(x, dict) else model(x)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_adapt_gives(kind):
    made, tasks, build = KINDS[kind]
    model, task = made(), tasks()
    J = shaken(build(model))
    before = copy.deepcopy(J.state_dict())
    phi = J.adapt(task.support)
    outputs = J.predict(phi, task.query.x)
    for i in (0, 2):
        module = J.adapted(one(task.support.x, i), one(task.support.y, i))
        assert type(module) is type(model) and not module.training
        there = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, value in phi.items(): close(there[name].detach(), value[i].detach(), 1e-13)
        close(answer(module, one(task.query.x, i)).detach(), outputs[i].detach(), 1e-12)
    assert all(torch.equal(J.state_dict()[key], value) for key, value in before.items())
    assert all(p.grad is None for p in J.parameters())


@pytest.mark.parametrize("kind", ["MAML", "CAVIA", "ProtoMAML", "Meta-SGD", "frozen body"])
def test_it_goes_on_from_where_it_was(kind):
    made, tasks, build = KINDS[kind]
    J, task = shaken(build(made())), tasks()
    x, y = task.support.x[0], task.support.y[0]
    twice = J.adapted(x, y, start=J.adapted(x, y, steps=2), steps=3)
    whole = J.adapted(x, y, steps=5)
    for name, tensor in whole.state_dict().items(): close(twice.state_dict()[name], tensor, 1e-13)
    still = J.adapted(x, y, start=whole, steps=0)
    assert not delta(still, whole)


def test_steps_and_lr_replace_those_of_the_inner_loop():
    J, task = ml.MAML(small(), F.mse_loss, lr=0.5, steps=9), numbers()
    x, y = task.support.x[1], task.support.y[1]
    found = J.adapted(x, y, steps=4, lr=0.05)
    plain = copy.deepcopy(J.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(plain(x), y).backward()
        optimizer.step()
    for name, p in plain.named_parameters(): close(found.get_parameter(name), p, 1e-14)
    assert J.inner.lr == 0.5 and J.inner.steps == 9


def test_a_rate_that_was_scheduled_is_as_it_is_now():
    J = ml.MetaLoss(small(), F.mse_loss, inner=ml.SGD(ml.schedule.Linear(0.2, 0.1), 2))
    x, y = numbers().support.x[0], numbers().support.y[0]
    J.at(9, 10)
    close(J.adapted(x, y)(x), ml.MAML(J.model, F.mse_loss, lr=0.1, steps=2).adapted(x, y)(x), 1e-14)


def test_shared_weights_stay_shared_and_frozen_ones_frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    task = numbers(out=3)
    module = ml.MAML(model, F.mse_loss, lr=LR).adapted(task.support.x[0], task.support.y[0])
    assert module[2].weight is module[0].weight and module[0].weight is not model[0].weight
    assert [p.requires_grad for p in module.parameters()] == [True, True, False]
    assert set(delta(module, model)) == {"0.weight", "0.bias", "2.weight"}


def test_a_head_of_another_shape():
    model = small()
    module = holding(model, {"2.weight": random(4, 6), "2.bias": random(4)})
    assert module(random(5, 3)).shape == (5, 4) and model(random(5, 3)).shape == (5, 1)


def test_dropout_is_off_and_modes_are_put_back():
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    model[1].train()
    model[2].eval()
    J, task = ml.MAML(model, F.mse_loss, lr=LR), numbers()
    a, b = (J.adapted(task.support.x[0], task.support.y[0]) for _ in range(2))
    assert not delta(a, b) and [part.training for part in model] == [True, True, False]
    with pytest.raises(ValueError, match="steps=-1"):
        J.adapted(random(5, 3), random(5, 1), steps=-1)
    assert [part.training for part in model] == [True, True, False]


def test_it_saves_copies_and_exports():
    J, task = ml.MAML(small(), F.mse_loss, lr=LR), numbers()
    module = J.adapted(task.support.x[0], task.support.y[0])
    file, x = io.BytesIO(), random(4, 3)
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), module(x))
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    close(torch.export.export(module, (x,)).module()(x), module(x), 1e-14)
    again = small()
    again.load_state_dict(delta(module, J.model), strict=False)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x), module(x))


def test_what_is_wrong_is_said():
    J, x, y = ml.MAML(small(), F.mse_loss, lr=LR), random(5, 3), random(5, 1)
    for call, message in (
        (lambda: J.adapted(x, y[:3]), r"task.x has shape \(1, 5, 3\) and task.y"),
        (lambda: J.adapted(x, y, lr=0.0), "lr=0.0: the inner step size"),
        (lambda: J.adapted(x, y, start=ml.models.mlp(3, 5, 1)), r"no '0.weight' of shape \(6, 3\)"),
        (lambda: J.adapted(x / 0, y), "task.x holds values that are not finite"),
        (lambda: J.adapted(x, y, lr=float("inf")), "lr=inf: the inner step size"),
        (lambda: delta(nn.Linear(3, 1), J.model), "was not adapted from this Sequential"),
        (lambda: J.adapted(x[:0], y[:0]), "no examples")):
        with pytest.raises(ValueError, match=message): call()
    with pytest.raises(TypeError, match=r"start is 'model\.pt'; a model that J\.adapted gave"):
        J.adapted(x, y, start="model.pt")

    class Still(ml.InnerLoop):
        def step(self, loss, phi, state, k): return phi, state
    still = ml.MetaLoss(small(), F.mse_loss, inner=Still())
    assert not delta(still.adapted(x, y), still.model)
    with pytest.raises(TypeError, match="Still has no step size lr"): still.adapted(x, y, lr=0.1)


def test_a_rate_that_is_a_whole_number_can_be_replaced():
    J = ml.MAML(small(), F.mse_loss, lr=1)
    x, y = random(5, 3), random(5, 1)
    close(J.adapted(x, y, lr=0.1)(x), ml.MAML(J.model, F.mse_loss, lr=0.1).adapted(x, y)(x), 0)


class Series(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)
        self.double()

    def forward(self, x): return self.head(self.net(x)[0][:, -1])


def test_a_recurrent_net_is_adapted_with_the_weights_that_it_uses():
    model, x, y = Series(), random(5, 6, 3), random(5, 1)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=LR)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(plain(x), y).backward()
        optimizer.step()
    close(ml.MAML(model, F.mse_loss, lr=LR, steps=2).adapted(x, y)(x), plain(x), 1e-12)


# Saved, loaded, exported


class Tied(nn.Module):
    "Two layers with one weight, a frozen one between them, and a buffer that is not saved."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.c.weight = self.a.weight
        self.b.requires_grad_(False)
        self.register_buffer("shift", torch.ones(3), persistent=False)
        self.double()

    def forward(self, x): return self.c(torch.tanh(self.b(torch.tanh(self.a(x + self.shift)))))


def series():
    def split(): return ml.Split(random(3, 5, 4, 3, seed=3), random(3, 5, 1, seed=4))
    return ml.Task(split(), split())


def seven_ways():
    x, y = images().support.x, torch.arange(7).expand(3, 7)
    return ml.Task(*[ml.Split(random(3, 7, *x.shape[2:], seed=6), y)] * 2)


SHIPPED = {name: KINDS[name] for name in ("MAML", "CAVIA", "Meta-SGD", "frozen body")} | {
    "tied": (Tied, lambda: numbers(out=3), lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2)),
    "LSTM": (Series, series, lambda m: ml.MAML(m, F.mse_loss, lr=LR, steps=2)),
    "ProtoNet, 7 ways": (classifier, seven_ways, lambda m: ml.ProtoNet(m, F.cross_entropy)),
    "ProtoMAML, 7 ways": (classifier, seven_ways,
                          lambda m: ml.ProtoMAML(m, F.cross_entropy, lr=LR, steps=2)),
}


def shipped(kind):
    "A model that learned a task, the meta-loss that it is of, and what it is asked."
    made, tasks, build = SHIPPED[kind]
    J, task = build(made()), tasks()
    return J.adapted(task.support.x[0], task.support.y[0]), J, task.query.x[0]


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # an exported LSTM, by PyTorch
@pytest.mark.parametrize("kind", SHIPPED)
def test_it_is_saved_loaded_and_told_by_its_delta(kind):
    module, J, x = shipped(kind)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    for tensors in (torch.load(file), delta(module, J.model)):
        again = holding(SHIPPED[kind][0]() if kind != "Meta-SGD" else J.model, tensors)
        assert torch.equal(again(x), module(x)) and not torch.equal(again(x), J.model(x))
        assert not delta(again, module)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    close(torch.export.export(module, (x,)).module()(x), module(x), 1e-14)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("kind", ["tied", "CAVIA", "LSTM", "ProtoMAML, 7 ways"])
def test_it_goes_to_onnx(kind, tmp_path):
    from onnx.reference import ReferenceEvaluator
    module, J, x = shipped(kind)
    path = tmp_path / "adapted.onnx"
    torch.onnx.export(module, (x,), path, dynamo=True, verbose=False, external_data=False)
    program = ReferenceEvaluator(str(path))
    found = torch.from_numpy(program.run(None, {program.input_names[0]: x.numpy()})[0])
    close(found, module(x).detach(), 1e-6)
    before = J.model(x).detach()
    assert found.shape == (7, 7) or (found - before).abs().max() > 1e-4


def test_a_context_is_in_what_is_saved_and_in_the_delta():
    module, J, _ = shipped("CAVIA")
    assert set(delta(module, J.model)) == {"context"} and "context" in module.state_dict()
    assert "context" not in J.model.state_dict() and J.model.context.sum() == 0


def test_a_head_of_as_many_ways_as_the_task_has():
    module, J, x = shipped("ProtoMAML, 7 ways")
    assert module[1][2].out_features == 7 and J.model[1][2].out_features == 3
    assert J.inner.ways == 0
    two = ml.ProtoNet(J.model, F.cross_entropy).adapted(x[:4], torch.tensor([0, 1, 0, 1]))
    assert two(x).shape == (7, 2) and two(x).isfinite().all()
    more = J.adapted(x[:2], torch.tensor([0, 1]), start=module)        # 7 ways, two of them shown
    assert more(x).shape == (7, 7) and more(x).isfinite().all()
    with pytest.raises(ValueError, match="Prototypes takes no steps, so it cannot go on"):
        ml.ProtoNet(J.model, F.cross_entropy).adapted(x[:4], torch.tensor([0, 1, 0, 1]), start=two)


def test_tensors_of_another_model_are_not_put_in():
    with pytest.raises(ValueError, match=r"has no parameter and no buffer 'head\.weight'"):
        holding(small(), {"head.weight": random(1, 6)})


def test_many_users_in_one_call_and_ten_thousand_deltas():
    model, users = ml.models.mlp(1, 8, 1, seed=1), 10_000
    J = ml.ANIL(model, F.mse_loss, lr=LR, steps=2)
    x = torch.rand(users, 5, 1, generator=torch.Generator().manual_seed(0))
    phi = J.adapt(ml.Split(x, x.sin()))
    deltas = [{"2.weight": w, "2.bias": b} for w, b in zip(phi["2.weight"], phi["2.bias"],
                                                          strict=True)]
    for i in (0, 9_999):
        alone = J.adapted(x[i], x[i].sin())
        close(holding(model, deltas[i])(x[i]), alone(x[i]), 1e-5)
        assert delta(alone, model).keys() == deltas[i].keys()


# Modes


class Dropping(nn.Module):
    "Dropout that is told to fail, and says in which mode it was called."
    def __init__(self):
        super().__init__()
        self.layer, self.drop, self.modes, self.fails = nn.Linear(3, 1), nn.Dropout(0.5), [], False

    def forward(self, x):
        self.modes.append(self.drop.training)
        if self.fails: raise KeyError("mine")
        return self.layer(self.drop(x))


USES = {
    "adapt": lambda J, task, **how: J.adapt(task.support, **how),
    "predict": lambda J, task, **how: J.predict({"layer.bias": random(4, 1)}, task.query.x, **how),
    "adapted": lambda J, task, **how: J.adapted(task.support.x[0], task.support.y[0], **how),
    "evaluate": lambda J, task, **how: ml.evaluate(J, task, steps=(1,), **how),
    "Validation": lambda J, task, **how: measure(ml.Validation(Same(task), n_tasks=3, **how), J),
}


class Same(ml.Family):
    "The same tasks whenever they are asked for."
    def __init__(self, task): self.task = task
    def sample(self, batch_size, generator): return self.task


@pytest.mark.parametrize("use", USES)
def test_dropout_is_off_in_use_and_every_mode_is_put_back(use):
    model, task = Dropping().double(), numbers()
    J = ml.MAML(model, F.mse_loss, lr=LR)
    model.layer.eval()

    def modes(): return [part.training for part in model.modules()]
    before = modes()
    USES[use](J, task)
    assert not model.modes[-1] and modes() == before == [True, False, True]
    USES[use](J, task, train=True)
    assert model.modes[-1] and modes() == before
    model.fails = True
    with pytest.raises(KeyError, match="mine"): USES[use](J, task)
    assert not model.modes[-1] and modes() == before


def test_the_path_of_one_task_is_one_line(sines):
    J = ml.MAML(ml.models.mlp(1, 5, 1, seed=2).double(), F.mse_loss, lr=LR)
    task = sines.select(2).map(lambda t: t[0])
    path = [J.adapted(task.support.x, task.support.y, steps=k) for k in range(4)]
    losses = torch.stack([F.mse_loss(model(task.query.x), task.query.y) for model in path])
    close(J.curve(sines, range(4))[2], losses.detach(), 1e-13)


def test_a_model_that_keeps_a_computed_tensor_is_refused_by_name():
    with pytest.warns(FutureWarning): model = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 1)))
    J = ml.MetaLoss(model, F.mse_loss, batching="loop")
    x, y = torch.rand(3, 5, 2), torch.rand(3, 5, 1)
    J(((x, y), (x, y)))
    with pytest.raises(ValueError, match=r"layer '0'.*'weight'.*parametrizations"):
        J.adapted(x[0], y[0])


class Told(nn.Module):
    "A model that notes whether its call is known to be differentiated once only."
    def __init__(self):
        super().__init__()
        self.layer, self.notes = nn.Linear(1, 1).double(), []

    def forward(self, x):
        self.notes.append(differentiated_once())
        return self.layer(x)


def test_where_a_derivative_is_the_last_one_is_known():
    J = ml.MAML(Told(), F.mse_loss, lr=0.1, steps=2)
    waves = ml.tasks.Sinusoids(shots=4).batch(2).to(torch.float64)
    alone = ml.MetaLoss(J.model, F.mse_loss, inner=J.inner, batching="loop")
    def once(): return alone(waves).backward()
    def stays(): return hvp(lambda phi: J.walk()(phi).loss(phi, waves.support.select(0)))(
        *[dict(J.theta())] * 2)
    for call, wanted in ((lambda: J.adapted(*waves.support.select(0)), {True}), (once, {False}),
                         (lambda: J(waves).backward(), {False}), (stays, {False})):
        J.model.notes.clear()
        call()
        assert set(J.model.notes) == wanted
    J.model.notes.clear()
    with torch.no_grad(): stays()                            # its outer derivative is the last one
    assert set(J.model.notes) == {False}


class Slopes(ml.TaskLoss):
    "Squared error, and the derivative of the answer by its input, which the model's kernels need."
    def __call__(self, predict, split, phi):
        x = split.x.clone().requires_grad_()
        slope = torch.autograd.grad(predict(phi, x).sum(), x, create_graph=True)[0]
        return F.mse_loss(predict(phi, split.x), split.y) + slope.square().mean()


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.head = nn.Linear(2, 12), nn.Linear(4, 1)

    def forward(self, x):
        parts = self.into(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(*parts)[:, 0, -1])


@pytest.mark.parametrize("loss", [F.mse_loss, Slopes()])
def test_kernels_without_a_second_derivative_are_used_where_they_may_be(loss):
    model = Attends().double()
    x, y = torch.rand(4, 5, 2).double(), torch.rand(4, 1).double()
    J = ml.MAML(model, loss, lr=0.1, steps=3, batching="loop")
    plain = ml.MAML(model, loss, lr=0.1, steps=3)
    found = J.adapted(x, y)(x)
    wanted = plain.predict(plain.adapt(ml.Split(x[None], y[None])), x[None])[0] \
        if loss is F.mse_loss else J.predict(J.adapt(ml.Split(x[None], y[None])), x[None])[0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
