"""Models as people bring them: frozen parts, adapters, trained statistics, trees of inputs.

The referee is a loop over tasks and steps of `torch.autograd.grad`, in float64, without `vmap` and
without `torch.func`: a model is run with other parameters by hand, one attribute after another.
"""
import contextlib
import copy
import dataclasses
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch import nn

import metalit as ml
from metalit.inner.masked import HEAD, head_of

LR = 0.1
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None,
                                    reason="needs a C++ compiler")
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own


@contextlib.contextmanager
def other_parameters(model, phi):
    "Inside, the module holds these tensors in the places of its parameters of the same names."
    ids = {id(p): name for name, p in model.named_parameters()}
    kept = [(part, key, p) for part in model.modules() for key, p in part._parameters.items()
            if p is not None and ids[id(p)] in phi]
    for part, key, p in kept: part._parameters[key] = phi[ids[id(p)]]
    try: yield
    finally:
        for part, key, p in kept: part._parameters[key] = p


def output(model, phi, x):
    with other_parameters(model, phi):
        if isinstance(x, dict): return model(**x)
        return model(*x) if isinstance(x, tuple) else model(x)


def part_of(tree, i):
    if isinstance(tree, dict): return {name: value[i] for name, value in tree.items()}
    return tuple(value[i] for value in tree) if isinstance(tree, tuple) else tree[i]


def by_loop(model, loss, task, *, steps=1, first_order=False, adapts=lambda name: True):
    "The mean query loss and its gradient by the parameters that ask for one, task after task."
    theta = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = []
    for i in range(task.batch_size):
        phi = dict(theta)
        for _ in range(steps):
            names = [name for name in phi if adapts(name)]
            value = loss(output(model, phi, part_of(task.support.x, i)), part_of(task.support.y, i))
            slopes = torch.autograd.grad(value, [phi[name] for name in names],
                                         create_graph=not first_order, allow_unused=True)
            for name, slope in zip(names, slopes, strict=True):
                if slope is not None: phi[name] = phi[name] - LR * slope
        values.append(loss(output(model, phi, part_of(task.query.x, i)), part_of(task.query.y, i)))
    value = sum(values) / len(values)
    slopes = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return value.detach(), {name: torch.zeros_like(p) if slope is None else slope
                            for (name, p), slope in zip(theta.items(), slopes, strict=True)}


def found_by(J, task):
    "The same of a meta-loss; parameters that do not ask for a gradient must have got none."
    J.zero_grad()
    value = J(task)
    value.backward()
    assert all(p.grad is None for p in J.model.parameters() if not p.requires_grad)
    return value.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad
                            for name, p in J.model.named_parameters() if p.requires_grad}


def agree(J, task, loss=F.mse_loss, atol=1e-12, **how):
    (value, slopes), (right, right_slopes) = found_by(J, task), by_loop(J.model, loss, task, **how)
    close(value, right, atol)
    assert slopes.keys() == right_slopes.keys()
    for name, slope in slopes.items(): close(slope, right_slopes[name], atol)
    assert any(slope.abs().max() > 1e-6 for slope in slopes.values())


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(width=3, batch=4, out=1):
    parts = [ml.Split(random(batch, n, width, seed=n), random(batch, n, out, seed=10 + n))
             for n in (5, 6)]
    return ml.Task(*parts)


def images(batch=3, ways=3):
    labels = torch.arange(2 * ways).remainder(ways).expand(batch, -1)
    return ml.Task(*(ml.Split(random(batch, 2 * ways, 2, 6, 6, seed=s), labels) for s in (0, 1)))


class Backbone(nn.Module):
    "A small network that somebody has trained, and a head of one's own."
    def __init__(self, frozen=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)
        self.body.requires_grad_(not frozen)
        self.double()

    def forward(self, x): return self.head(self.body(x))


class LoRA(nn.Module):
    "A frozen linear layer and a learned correction of low rank."
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(random(rank, base.in_features, seed=3))
        self.b = nn.Parameter(0.3 * random(base.out_features, rank, seed=4))

    def forward(self, x): return self.base(x) + x @ self.a.mT @ self.b.mT


def with_adapters():
    model = Backbone()
    model.head.requires_grad_(False)
    model.body[0], model.body[2] = LoRA(model.body[0]), LoRA(model.body[2])
    return model


class Residual(nn.Module):
    "Two convolutions with batch normalisation around a shortcut, as in a ResNet."
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = (nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList([norm(2), norm(2)])
        self.head = nn.Linear(2, 3)
        self.double()

    def forward(self, x):
        y = torch.relu(self.norms[0](self.first(x)))
        return self.head(torch.relu(self.norms[1](self.last(y)) + x).mean((-2, -1)))


def trained(model):
    "With statistics of something it has seen, and in evaluation mode."
    with torch.no_grad(): model.train()(3 * random(20, 2, 6, 6, seed=7) + 1)
    return model.eval()


class FrozenNorm(nn.Module):
    "Batch normalisation that is a constant whatever the mode, as detection models have it."
    def __init__(self, channels):
        super().__init__()
        for name, value in (("weight", 1.3), ("bias", 0.2), ("running_mean", 0.1),
                            ("running_var", 2.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        scale = self.weight / (self.running_var + 1e-5).sqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


MODELS = {"frozen body": (Backbone, numbers, F.mse_loss),
          "LoRA": (with_adapters, numbers, F.mse_loss),
          "nothing frozen": (lambda: Backbone(False), numbers, F.mse_loss),
          "trained statistics": (lambda: trained(Residual()), images, F.cross_entropy),
          "frozen norm": (lambda: Residual(FrozenNorm), images, F.cross_entropy)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [
    {}, {"steps": 3}, {"first_order": True}, {"batching": "loop"}, {"chunk_size": 2, "steps": 2}],
    ids=str)
def test_it_is_what_a_loop_gives(name, options):
    made, tasks, loss = MODELS[name]
    model, task = made(), tasks()
    kept = copy.deepcopy(model.state_dict())
    steps, first = options.get("steps", 1), options.get("first_order", False)
    choices = {key: options[key] for key in ("batching", "chunk_size") if key in options}
    J = ml.MetaLoss(model, loss, inner=ml.SGD(LR, steps), **choices,
                    gradient=ml.FirstOrder() if first else ml.Exact())
    agree(J, task, loss, steps=steps, first_order=first)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in kept.items())


@needs_compiler
@compiles
@pytest.mark.parametrize("name", ["frozen body", "LoRA", "trained statistics"])
def test_it_compiles(name):
    made, tasks, loss = MODELS[name]
    J = ml.MAML(made(), loss, lr=LR, steps=2)
    J.compile(backend="aot_eager" if name == "trained statistics" else "eager")
    agree(J, tasks(), loss, steps=2)


@needs_compiler
@compiles
def test_freezing_between_two_calls(caplog):
    model, task = Backbone(frozen=False), numbers()
    plain, fast = ml.MAML(model, F.mse_loss, lr=LR), ml.MAML(model, F.mse_loss, lr=LR)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph
    fast.compile(backend=counting)
    for frozen, count in ((False, 1), (True, 2), (True, 2), (False, 2)):
        model.body.requires_grad_(not frozen)
        agree(plain, task)
        agree(fast, task)
        assert len(graphs) == count


def test_what_is_frozen_stays_constant_when_all_values_are_given_from_outside():
    model, task = Backbone(), numbers()
    J = ml.MAML(model, F.mse_loss, lr=LR)
    values = {name: p.detach().clone() for name, p in J.named_parameters()}
    wanted = by_loop(model, F.mse_loss, task)[0]
    close(torch.func.functional_call(J, values, (task,)), wanted, 1e-12)
    slopes = torch.func.grad(lambda v: torch.func.functional_call(J, v, (task,)))(values)
    for name, slope in by_loop(model, F.mse_loss, task)[1].items():
        close(slopes[f"model.{name}"], slope, 1e-12)


def test_a_chunk_is_recomputed_with_what_was_frozen_then():
    model, task = Backbone(), numbers()
    J = ml.MAML(model, F.mse_loss, lr=LR, chunk_size=2)
    right = by_loop(model, F.mse_loss, task)[1]
    value = J(task)
    model.body.requires_grad_()
    J(task)  # a call with other parameters between a value and its gradient
    value.backward()
    for name in ("head.weight", "head.bias"):
        close(dict(model.named_parameters())[name].grad, right[name], 1e-12)


def test_nothing_to_learn_is_an_error():
    with pytest.raises(ValueError, match="nothing to learn: of its 6 parameters none asks"):
        ml.MAML(Backbone().requires_grad_(False), F.mse_loss)
    J = ml.MAML(model := Backbone(), F.mse_loss)
    model.requires_grad_(False)
    for call in (J, lambda task: J.adapt(task.support), J.curve):
        with pytest.raises(ValueError, match="nothing to learn"): call(numbers())


def test_statistics_are_refused_only_in_training_mode():
    J, task = ml.MAML(model := Residual(), F.cross_entropy, lr=LR), images()
    kept = copy.deepcopy(model.state_dict())
    train = {"train": True}
    for call in (J, lambda task: J.adapt(task.support, **train), J.curve, J.report):
        with pytest.raises(ValueError, match=r"layer 'norms.0' \(BatchNorm2d\).*into eval mode"):
            call(task)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in kept.items())
    J.eval()
    agree(J, task, F.cross_entropy)


class Named(nn.Module):
    "A model that is called with keywords, one of which is optional."
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.place, self.time = nn.Linear(2, 4).double(), nn.Linear(1, 4).double()
        self.head = nn.Linear(4, 1).double()

    def forward(self, place, time=None):
        inside = self.place(place) if time is None else self.place(place) + self.time(time)
        return self.head(torch.tanh(inside))


def named_task(batch=4, kind=dict):
    def split(n):
        place, time = random(batch, n, 2, seed=n), random(batch, n, 1, seed=n + 1)
        x = {"place": place, "time": time} if kind is dict else (place, time)
        return ml.Split(x, {"value": random(batch, n, 1, seed=n + 2),
                            "weight": random(batch, n, 1, seed=n + 3).abs()})
    return ml.Task(split(5), split(6))


def weighted(prediction, y): return (y["weight"] * (prediction - y["value"]) ** 2).mean()


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 3}], ids=str)
def test_inputs_and_targets_are_trees(kind, options):
    agree(ml.MAML(Named(), weighted, lr=LR, steps=2, **options), named_task(kind=kind), weighted,
          steps=2)


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor


class OfPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def forward(self, x): return self.layer(x.first + x.second)


def test_a_dataclass_is_a_tree_once_pytorch_knows_it():
    def split(seed):
        return ml.Split(Pair(random(3, 5, 3, seed=seed), random(3, 5, 3, seed=seed + 9)),
                        random(3, 5, 1, seed=seed + 20))
    task = ml.Task(split(0), split(1))
    message = r"support\.x is a Pair; .*torch\.export\.register_dataclass\(Pair\)"
    with pytest.raises(ValueError, match=message): ml.MAML(OfPair(), F.mse_loss)(task)
    torch.export.register_dataclass(Pair)
    J = ml.MAML(OfPair(), F.mse_loss, lr=LR)
    plain = ml.MAML(copy.deepcopy(J.model.layer), F.mse_loss, lr=LR)
    close(J(task), plain(((task.support.x.first + task.support.x.second, task.support.y),
                          (task.query.x.first + task.query.x.second, task.query.y))), 1e-12)


def test_trees_everywhere(tmp_path):
    task, model = named_task(), Named()
    model.place.requires_grad_(False)
    J = ml.MetaLoss(model, weighted, inner=ml.SGD(LR, 2, batch_size=3),
                    terms=ml.QueryLoss() + 0.1 * ml.Contrast() + 0.1 * ml.Triplet())
    J(task).backward()
    assert J.curve(task, (0, 2), transductive=False).shape == (4, 2)
    close(J.curve(task, (0, 2), transductive=False), J.curve(task, (0, 2)), 1e-12)
    task.support.x["time"][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"support.x\['time'\] holds values that are not finite"):
        J(task)


@pytest.mark.parametrize("method", [ml.MetaSGD, ml.MetaCurvature])
def test_factors_are_made_for_what_learns(method):
    model, task = Backbone(), numbers()
    J = method(model, F.mse_loss, lr=LR, steps=2)
    assert sum(p.numel() for p in J.inner.parameters()) == (
        7 if method is ml.MetaSGD else 6 * 6 + 1 + 1)
    value, slopes = by_loop(model, F.mse_loss, task, steps=2)
    found, found_slopes = found_by(J, task)
    close(found, value, 1e-12)                                     # factors start as the identity
    for name, slope in slopes.items(): close(found_slopes[name], slope, 1e-12)
    model.head.bias.requires_grad_(False)                          # fewer: the others' factors fit
    close(J(task), by_loop(model, F.mse_loss, task, steps=2)[0], 1e-12)
    model.body[2].bias.requires_grad_()
    with pytest.raises(ValueError, match=r"'body.2.bias' it knows nothing.*Make it anew"): J(task)


class HeadFirst(nn.Module):
    "The head is registered before the body."
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.head, self.body = nn.Linear(6, 1).double(), nn.Linear(3, 6).double()

    def forward(self, x): return self.head(torch.tanh(self.body(x)))


@pytest.mark.parametrize(("method", "of_head"), [(ml.ANIL, True), (ml.BOIL, False)])
def test_the_head_is_the_last_layer_that_is_used(method, of_head):
    J = method(HeadFirst(), F.mse_loss, lr=LR, steps=2)
    agree(J, numbers(), steps=2, adapts=lambda name: name.startswith("head") == of_head)
    named = method(HeadFirst(), F.mse_loss, lr=LR, steps=2, head="head.*")
    close(named(numbers()), J(numbers()), 0)
    for several in (["head.weight", "head.bias"], "head.weight, head.bias"):
        listed = method(HeadFirst(), F.mse_loss, lr=LR, steps=2, head=several)
        close(listed(numbers()), J(numbers()), 0)
        close(listed.on(HeadFirst(), F.mse_loss)(numbers()), J(numbers()), 0)
    with pytest.raises(TypeError, match=r"\{'head'\} is no pattern of names"):
        method(HeadFirst(), F.mse_loss, head={"head"})


def test_a_frozen_part_of_what_is_to_adapt_stays():
    J = ml.ANIL(Backbone(frozen=False), F.mse_loss, lr=LR)
    J.model.head.bias.requires_grad_(False)
    agree(J, numbers(), adapts=lambda name: name.startswith("head"))
    J.model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="none of these is in θ: unfreeze one"): J(numbers())


def test_the_look_for_a_head_leaves_random_numbers_alone():
    model = nn.Sequential(nn.Linear(3, 6), nn.Dropout(), nn.Linear(6, 1)).double()
    state = torch.get_rng_state()
    assert head_of(model, random(5, 3)) == "2.*"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shared_head_is_refused_by_name_and_may_be_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'2', shares '2.weight' with '0.weight'"):
        ml.ANIL(model, F.mse_loss)
    agree(ml.ANIL(model, F.mse_loss, lr=LR, head="2.bias"), numbers(out=3),
          adapts=lambda name: name == "2.bias")


@pytest.mark.parametrize("batching", ["vmap", "loop"])
def test_a_weight_normed_head(batching):
    model, task = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), numbers()
    nn.utils.parametrizations.weight_norm(model[2])
    J = ml.ANIL(model, F.mse_loss, lr=LR, steps=2, batching=batching)
    value, slopes = found_by(J, task)
    right = by_loop(model, F.mse_loss, task, steps=2, adapts=lambda name: name.startswith("2."))
    close(value, right[0], 1e-12)
    assert len(J.inner.names) == 3 and HEAD in repr(J.inner)
    # The derivative of PyTorch's own weight norm has a wrong derivative: differences decide.
    g = dict(model.named_parameters())[name := "2.parametrizations.weight.original1"]
    moved = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            g[0, 0] += step
            moved.append(J(task))
    close(slopes[name][0, 0], (moved[0] - moved[1]) / 2e-5, 1e-8)
    with pytest.raises(ValueError, match="'2' is a ParametrizedLinear whose weight is computed"):
        ml.ProtoNet(model, F.cross_entropy)(task)


def test_prototypes_need_no_learned_head_and_nothing_after_it():
    model, task = Residual(FrozenNorm), images()
    J = ml.ProtoNet(model, F.cross_entropy)
    value, slopes = found_by(J, task)
    model.head.requires_grad_(False)
    again, fewer = found_by(J, task)
    assert value == again and all(torch.equal(slopes[name], slope) for name, slope in fewer.items())
    for after in (nn.LogSoftmax(-1), nn.Dropout(0.5)):
        with pytest.raises(ValueError, match=r"does something to the output of its head '0\.head'"):
            ml.ProtoNet(nn.Sequential(model, after), F.cross_entropy)(task)


def test_parameter_distances_and_first_order_leave_frozen_parts_out():
    model, task = Backbone(), numbers()
    _, slopes = found_by(ml.Reptile(model, F.mse_loss, lr=LR, steps=2), task)
    ends = ml.Learner(model, F.mse_loss, inner=ml.SGD(LR, 2)).adapt(task.support)
    assert set(ends) == {"head.weight", "head.bias"}
    for name, slope in slopes.items():
        close(slope, (dict(model.named_parameters())[name] - ends[name]).mean(0).detach(), 1e-12)


def test_training_leaves_a_frozen_base_to_the_last_bit():
    model = nn.Sequential(ml.models.mlp(1, 8, 8), nn.Tanh(), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    J = ml.MAML(model, F.mse_loss)
    ml.meta_train(J, ml.tasks.Sinusoids(), steps=3, progress=False, device="cpu")
    changed = [name for name, p in model.state_dict().items() if not torch.equal(p, before[name])]
    assert changed == ["2.weight", "2.bias"]


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_is_without_dropout_and_leaves_each_layer_in_its_mode(fails):
    model = nn.Sequential(nn.Linear(1, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 1))
    model[2].eval()
    J, sines = ml.MAML(model, F.mse_loss, lr=LR), ml.tasks.Sinusoids()
    steps = (0, 1) if not fails else (0, -1)
    def look(**options): return ml.evaluate(J, sines, n_tasks=3, steps=steps, **options).per_task
    if fails:
        with pytest.raises(ValueError, match="inner steps"): look()
    else:
        assert torch.equal(look(), look()) and not torch.equal(look(), look(train=True))
    assert [layer.training for layer in model] == [True, True, False, True]
    assert J.training and model.training
