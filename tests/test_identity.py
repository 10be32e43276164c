"""What a run is made of: everything that makes a difference is told, and nothing else.

Every constructor argument of every public class, one at a time; one number in a part of one's own
of each kind; two processes; what may differ, and what is refused.
"""
import argparse
import enum
import inspect
import json
import logging
import os
import random
import subprocess
import sys
import types
from collections import deque
from functools import partial
from pathlib import Path
from typing import get_origin

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import maml, quick
from torch import nn

import metalit as ml
from metalit.training import Validation, identity
from metalit.training.checkpoints import CheckpointError, check_same_settings, load_checkpoint
from metalit.training.identity import differences, label, named_by, settings_of


def net(width=4, **options): return ml.models.mlp(1, width, 1, **options)


def contextual(size=2): return ml.models.Contextual(ml.models.mlp(1 + size, 4, 1), size)


def bottleneck(width=4):
    return ml.models.Bottleneck(ml.models.mlp(1, width, 4), ml.models.mlp(2, width, 1))


def twice(prediction, y): return 2 * F.mse_loss(prediction, y)


sines = ml.tasks.Sinusoids()
pictures = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
labels = torch.arange(4).repeat_interleave(3)
split = ml.Split(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))
shifted = ml.Split(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
zeros, ones = {"w": torch.zeros(2)}, {"w": torch.ones(2)}

# For each argument, by its name, a value and another one; of some classes their own.
def rows_of(i): return {f"task {i}": (torch.zeros(4, 1), torch.arange(4.0)[:, None] + i)}


columns = {"who": list("aaaabbbb"), "town": list("xxxxyyyy"), "t": list(range(8)),
           "v": [0, 1, 4, 9, 16, 25, 36, 49],
           "w": [0, 2, 5, 9, 1, 3, 8, 4]}
def pictures_of(ink): return dict.fromkeys("abxy", torch.full((1, 2, 2), ink))


VALUES = {
    "model": (net(), net(activation=nn.Tanh)), "loss": (F.mse_loss, F.l1_loss),
    "lr": (0.1, 0.1000001), "steps": (2, 3), "batch_size": (2, 3), "margin": (1.0, 2.0),
    "weight": (0.1, 0.2), "embedding": ("predictions", "parameters"), "at": ("adapted", "init"),
    "beta2": (0.9, 0.99), "eps": (1e-8, 1e-7), "rho": (0.1, 0.2), "rho_inner": (0.1, 0.2),
    "rho_outer": (0.1, 0.2), "only": ("0.*,2.*", "2.*"), "without": ("0.bias", "2.bias"),
    "head": ("2.*", "0.*"), "inner": (ml.SGD(), ml.SGD(lr=0.2)), "chunk_size": (2, 3),
    "terms": (ml.QueryLoss(), ml.QueryLoss() + 0.1 * ml.GradientNorm()),
    "pooling": (ml.Mean(), ml.Pooling()), "gradient": (ml.Exact(), ml.FirstOrder()),
    "batching": ("vmap", "loop"), "tasks": (sines, ml.tasks.Sinusoids(grid=99)),
    "every": (5, 6), "n_tasks": (20, 21), "metric": (F.mse_loss, F.l1_loss), "patience": (2, 3),
    "maximize": (False, True), "theta": (torch.zeros(2), torch.ones(2)), "size": (2, 3),
    "ways": (2, 3), "channels": (1, 2), "filters": (2, 3), "pool": ("stride", "max"),
    "context": (2, 3), "seed": (0, 1), "shots": (1, 2), "queries": (1, 2),
    "amplitude": ((0.1, 5.0), (0.1, 4.9)), "phase": ((0.0, 3.0), (0.1, 3.0)), "grid": (9, 10),
    "x": ((-5.0, 5.0), (-4.0, 5.0)), "dim": (2, 3), "eigenvalues": ((0.3, 2.0), (0.3, 1.9)),
    "spread": (1.0, 1.1), "shift": (0.0, 0.1), "shared_curvature": (True, False),
    "images": (pictures, 1 - pictures), "labels": (labels, labels.roll(1)),
    "names": (("a", "b", "c", "d"), ("a", "b", "c", "e")),
    "rotations": ((0, 90), (0, 180)), "rotations_as_classes": (False, True),
    "start": (0.1, 0.2), "end": (0.01, 0.02), "until": (0.5, 0.6), "factor": (2.0, 3.0),
    "schedule": (ml.schedule.Linear(1.0, 0.0), ml.schedule.Linear(1.0, 0.1)),
    "formula": (ml.as_written.contrastive, ml.as_written.maml), "support": (split, shifted),
    "query": (split, shifted), "y": (torch.zeros(2, 3, 1), torch.ones(2, 3, 1)),
    "mask": (None, torch.ones(2, 3)), "ids": (None, torch.arange(2)), "points": ([zeros], [ones]),
    "predict": (F.relu, F.gelu), "adapt": (F.relu, F.gelu),
    "probe": (torch.zeros(1), torch.ones(1)),
    "per_task": (torch.zeros(3, 1), torch.ones(3, 1)), "share": (0.2, 0.3), "t": (1.0, 2.0),
    "train": (False, True), "learn_lr": (False, True), "momentum": (0.5, 0.6),
    "nesterov": (False, True), "weight_decay": (0.1, 0.2), "clip": (1.0, 2.0),
    "weights": (1.0, 0.5), "pull": (2.0, 3.0), "damping": (0.0, 0.1),
    "sigma": (0.1, 0.2), "n": (2, 3), "decay": (0.1, 0.2), "detach": (True, False),
}
OF_INNER = [{"batch_size": 3}, {"loss": F.l1_loss}]
OF_J = [{"chunk_size": 2}, {"batching": "loop"}, {"pooling": ml.Pooling()}]
OWN = {
    ml.Split: {"x": (torch.zeros(2, 3, 1), torch.ones(2, 3, 1))},
    ml.Evaluation: {"tasks": ("a", "b"), "metric": ("loss", "accuracy"), "steps": ([1], [2])},
    ml.Path: {"theta": (zeros, ones), "loss": (F.relu, F.gelu)},
    ml.tasks.Random: {"steps": (torch.arange(2), torch.arange(1, 3)),
                      "tasks": (torch.arange(2), torch.arange(1, 3))},
    ml.Context: {"model": (contextual(), contextual(3))},
    ml.CAVIA: {"model": (contextual(), contextual(3))},
    ml.Prototypes: {"head": ("2", "0")},
    ml.models.Conv4: {"size": (16, 32), "pool": ("max", "stride")},
    ml.Sum: {"parts": [((1.0, ml.QueryLoss()),), ((1.0 + 1e-15, ml.QueryLoss()),)]},
    ml.as_written.AsWritten: {"options": [{"m": 1.0}, {"m": 2.0}]},
    ml.Reptile: {"inner": (None, ml.SGD(0.3))},
    ml.Ridge: {"scale": (1.0, 2.0), "learn": (False, True), "head": ("2", "0")},
    ml.R2D2: {"scale": (1.0, 2.0)},
    ml.PathLength: {"power": (1, 2), "loss": (True, False), "stabiliser": (True, False)},
    ml.Leap: {"power": (1, 2), "loss_part": (True, False), "stabiliser": (True, False)},
    ml.LossNetwork: {"width": (2, 3)}, ml.LossWeights: {"width": (2, 3)},
    ml.MAMLPlusPlus: dict.fromkeys(("multi_step", "step_rates", "step_norms", "annealed"),
                                   (True, False)),
    ml.ML3: {"width": (2, 3)},
    ml.WorstCase: {"tasks": (2, 3)},
    ml.Inequality: {"measure": ("atkinson", "entropy"), "order": (1.5, 2.5)},
    ml.TAML: {"measure": ("atkinson", "entropy"), "order": (1.5, 2.5)},
    ml.Bootstrap: {"distance": ("parameters", "predictions"), "on": ("support", "query")},
    ml.BMG: {"distance": ("parameters", "predictions"), "on": ("support", "query"),
             "more": (5, 6)},
    ml.tasks.Given: {"train": (rows_of(0), rows_of(1)), "test": (None, rows_of(2)),
                     "split": ("random", "first")},
    ml.tasks.Table: {"source": (columns, columns | {"v": columns["t"][::-1]}),
                     "task": ("who", "town"), "x": ("t", "w"), "y": ("v", "w"),
                     "test": (0.5, ("a",)), "groups": (None, "town"), "order": (None, "t"),
                     "missing": ("refuse", "drop"), "short": ("refuse", "drop"),
                     "scale": (True, False), "classes": (False, True),
                     "pictures": (pictures_of(0.0), pictures_of(1.0)), "key": ("town", "who")},
    ml.Patients: {"hours": ((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)), "dose": ((3.0, 6.0), (3.0, 5.0)),
                  "jitter": (0.1, 0.2), "body": ((1.0, 0.1, 0.5), (1.0, 0.1, 0.6)),
                  "spread": ((0.5, 0.3, 0.2), (0.5, 0.3, 0.3)), "noise": ((0.1, 0.2), (0.1, 0.3))},
    ml.tasks.NamedSinusoids: {"names": (5, 6), "used": (3, 4), "noise": (0.1, 0.2),
                              "asked": ((-4.5, 4.5), (-4.0, 4.5))},
    ml.tasks.Augmented: {"family": (sines, ml.tasks.Sinusoids(grid=99)), "shift": (1.0, 1.1),
                         "stretch": (0.0, 0.1)},
    ml.SharedHead: {"head": ("2", "0")},
    ml.tasks.InParts: {},
    ml.tasks.BinnedSinusoids: dict.fromkeys(("amplitudes", "frequencies"),
                                            ([(0.1, 1.0), (2.0, 3.0)], [(0.1, 1.0), (2.0, 4.0)])),
    ml.tasks.Oversampled: {"family": (ml.tasks.BinnedSinusoids(), ml.tasks.BinnedSinusoids(6)),
                           "looks_every": (5, 6), "looked_at": (20, 21), "step": (0.5, 0.6),
                           "kept": (0.2, 0.3)},
    ml.Noisy: {"only": ("2.*", "2.weight")},
    ml.MRMAML: {"information": ("weights", "activations"), "only": ("head", "head.0"),
                "model": (bottleneck(), bottleneck(7))},
    ml.models.Bottleneck: {"encoder": (net(), net(5)), "head": (net(), net(5))},
    ml.Run: {"J": (maml(), maml(lr=0.2)), "settings": ({"seed": 0}, {"seed": 1}), "step": (1, 2)},
}
UNFINISHED = {ml.Preconditioned}                              # its subclasses are, and are here
TAKES_ANYTHING = {"args", "kwargs"}                          # of nn.Module, which refuses them


def public_classes():
    rooms = (ml, ml.models, ml.tasks, ml.schedule, ml.as_written)
    found = {getattr(room, name) for room in rooms for name in room.__all__}
    classes = [kind for kind in found if isinstance(kind, type) and get_origin(kind) is None]
    kinds = [kind for kind in classes if kind not in UNFINISHED
             and not issubclass(kind, BaseException)]
    return sorted(kinds, key=lambda kind: kind.__qualname__)


def values_for(kind, name): return OWN.get(kind, {}).get(name) or VALUES[name]


def arguments(kind):
    "The plain arguments of a class, and those that stand for many, by name."
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    there = inspect.signature(kind).parameters.values()
    many = [p.name for p in there if p.kind in several and p.name not in TAKES_ANYTHING]
    return [p.name for p in there if p.kind not in several], many


def told(kind, positional=(), **given):
    thing = kind(*positional, **given)
    if issubclass(kind, ml.InnerLoop) and "model" in given:  # of which J tells
        thing = ml.MetaLoss(given["model"], F.mse_loss, inner=thing)
    return identity(thing, weights=True)


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__qualname__)
def test_every_argument_of_every_public_class_is_told(kind):
    "A class, or an argument, that this test does not know fails it: say what it may be, above."
    plain, many = arguments(kind)
    base = {name: values_for(kind, name)[0] for name in plain}
    if "parts" in many:
        trees = [told(kind, parts) for parts in OWN[kind]["parts"]]
        assert trees[0] != trees[1]
        return
    before = told(kind, **base)
    assert told(kind, **base) == before
    json.dumps(before, allow_nan=False)
    for name in plain:
        assert told(kind, **base | {name: values_for(kind, name)[1]}) != before, name
    for more in (more for name in many for more in changes_of(kind, name)):
        assert told(kind, **base | more) != before, more


def changes_of(kind, name):
    if name in OWN.get(kind, {}): return OWN[kind][name]
    return {"options": OF_INNER, "choices": OF_J}[name] if kind is not ml.SharpMAML else OF_J[1:]


class MyTerm(ml.Term):
    power = 2

    def __init__(self, factor=1.0):
        super().__init__()
        self._factor = factor

    def per_task(self, path, task): return self._factor * path.loss(path.final, task.query)


class MyPooling(ml.Pooling):
    def __init__(self, share=0.5):
        super().__init__()
        self.share = share


class MyRule(ml.Exact):
    def __init__(self, mix=0.5):
        super().__init__()
        self.mix = [mix]


class MyLoop(ml.SGD):
    def __init__(self, tables=(1, 2)):
        super().__init__()
        self.tables = {"rates": np.array(tables)}


class MyTasks(ml.tasks.Sinusoids):
    noise = 0.1


class MyDecay(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, rate=0.9):
        self.rate = rate
        super().__init__(optimizer)

    def get_lr(self): return [lr * self.rate**self.last_epoch for lr in self.base_lrs]


class MyAdam(torch.optim.Adam):
    def __init__(self, parameters, pull=0.1):
        self.pull = pull
        super().__init__(parameters)


class MyNet(nn.Module):
    def __init__(self, slope=0.1):
        super().__init__()
        self.layer, self.act = nn.Linear(1, 1), partial(F.leaky_relu, negative_slope=slope)

    def forward(self, x): return self.act(self.layer(x))


class MyLoss(nn.Module):
    def __init__(self, delta=1.0):
        super().__init__()
        self.register_buffer("delta", torch.tensor(delta), persistent=False)

    def forward(self, prediction, y): return F.huber_loss(prediction, y, delta=self.delta.item())


def run_of(model=None, loss=F.mse_loss, optimizer=torch.optim.Adam, scheduler=None, tasks=sines,
           steps=5, **choices):
    J = ml.MAML(net() if model is None else model, loss, **choices)
    optimizer = optimizer(J.parameters())
    decay = scheduler(optimizer) if scheduler else None
    return settings_of(J, optimizer, decay, steps, tasks=tasks)


def looped(tables): return ml.MetaLoss(net(), F.mse_loss, inner=MyLoop(tables))


def loop_run(tables):
    J = looped(tables)
    return settings_of(J, torch.optim.SGD(J.parameters()), None, 5)


PAIRS = {
    "term": (lambda x: run_of(terms=ml.QueryLoss() + MyTerm(x)), (1.0, 1.5)),
    "weight": (lambda x: run_of(terms=x * MyTerm()), (0.1, 0.1 + 1e-15)),
    "pooling": (lambda x: run_of(pooling=MyPooling(x)), (0.5, 0.6)),
    "rule": (lambda x: run_of(gradient=MyRule(x)), (0.5, 0.6)),
    "inner loop": (loop_run, ((1, 2), (1, 3))),
    "scheduler": (lambda x: run_of(scheduler=partial(MyDecay, rate=x)), (0.9, 0.8)),
    "optimizer": (lambda x: run_of(optimizer=partial(MyAdam, pull=x)), (0.1, 0.2)),
    "betas": (lambda x: run_of(optimizer=partial(torch.optim.Adam, betas=(0.9, x))), (0.9, 0.99)),
    "momentum": (lambda x: run_of(optimizer=partial(torch.optim.SGD, momentum=x)), (0.0, 0.9)),
    "model": (lambda x: run_of(MyNet(x)), (0.1, 0.2)),
    "heads": (lambda x: run_of(nn.TransformerEncoderLayer(8, x, 8)), (2, 4)),
    "loss": (lambda x: run_of(loss=MyLoss(x)), (1.0, 2.0)),
    "partial loss": (lambda x: run_of(loss=partial(F.huber_loss, delta=x)), (1.0, 2.0)),
    "named": (lambda x: run_of(loss=ml.named(x, lambda p, y: 0)), ("huber-1", "huber-2")),
    "schedule": (lambda x: run_of(lr=ml.schedule.Linear(0.1, x)), (0.01, 0.02)),
    "steps of a schedule": (lambda x: run_of(lr=ml.schedule.Linear(0.1, 0.0), steps=x), (5, 6)),
    "tasks": (lambda x: run_of(tasks=ml.tasks.Sinusoids(phase=(0.0, x))), (1.0, 2.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_number_in_any_part_of_a_run_is_told_with_its_place(name):
    of, (one, other) = PAIRS[name]
    assert differences(of(one), of(one)) == []
    found, *more = differences(of(one), of(other))
    assert [difference.place for difference in more] == (
        ["J.model.self_attn.head_dim"] if name == "heads" else [])
    assert found.was != found.now
    assert str(found).startswith(f"{found.place} was ")


@pytest.mark.parametrize(("change", "place"), [
    (lambda m: m.setattr(MyTerm, "power", 3), "MyTerm.power"),
    (lambda m: m.setattr(MyTerm, "per_task", lambda self, path, task: 0), "MyTerm.per_task"),
    (lambda m: m.setattr(sys.modules[__name__], "twice", F.l1_loss), "uses.twice")],
    ids=["number of a class", "method", "function used"])
def test_the_source_of_ones_own_classes_and_what_it_uses_is_told(monkeypatch, change, place):
    class Uses(MyTerm):
        def per_task(self, path, task): return twice(path, task)
    before = identity(Uses())
    change(monkeypatch)
    assert any(f"{place}." in f"{found.place}." for found in differences(before, identity(Uses())))


NORMALS = [torch.distributions.Normal(0.0, scale) for scale in (1.0, 2.0)]


def made_of(source: str, **around):
    "A function as another file, or another version of a file, would have it."
    scope = {"F": F, "torch": torch, "__name__": "__main__"} | around
    exec(source, scope)
    return scope["f"]


@pytest.mark.parametrize(("one", "other"), [
    (made_of("def f(p, y): return (p - y).abs().mean()"),
     made_of("def f(p, y): return (p - y).abs().sum()")),
    (made_of("def f(p, y): return D * F.mse_loss(p, y)", D=1),
     made_of("def f(p, y): return D * F.mse_loss(p, y)", D=2)),
    (made_of("def f(p, y, d=D): return d", D=1), made_of("def f(p, y, d=D): return d", D=2)),
    (made_of("def g(d):\n def f(p, y): return d * p\n return f\nf = g(1)"),
     made_of("def g(d):\n def f(p, y): return d * p\n return f\nf = g(2)")),
    (made_of("def f(p, y): return loss(p, y)", loss=F.mse_loss),
     made_of("def f(p, y): return loss(p, y)", loss=F.l1_loss)),
    (made_of("def f(p, y): return F.nll_loss(p, y, W)", W=torch.tensor([1.0, 2.0])),
     made_of("def f(p, y): return F.nll_loss(p, y, W)", W=torch.tensor([1.0, 3.0]))),
    (made_of("def f(p, y): return s.D", s=types.SimpleNamespace(D=1)),
     made_of("def f(p, y): return s.D", s=types.SimpleNamespace(D=1))),
    (made_of("def f(p, y): return a.D", a=argparse.Namespace(D=1, of=[torch.ones(1)])),
     made_of("def f(p, y): return a.D", a=argparse.Namespace(D=2, of=[torch.ones(1)]))),
    (made_of("def g(n):\n def f(p, y): return n.log_prob(p)\n return f\nf = g(n)", n=NORMALS[0]),
     made_of("def g(n):\n def f(p, y): return n.log_prob(p)\n return f\nf = g(n)", n=NORMALS[1])),
    (made_of("def f(p, y): return q[0]", q=deque([1, 2])),
     made_of("def f(p, y): return q[0]", q=deque([1, 3])))],
    ids=["source", "global", "default", "caught", "function", "tensor", "library thing",
         "namespace", "distribution", "deque"])
def test_functions_of_ones_own(request, one, other):
    differ = "library thing" not in request.node.callspec.id
    assert (identity(one) != identity(other)) == differ
    assert identity(one) == identity(one)


def test_a_number_in_a_module_of_ones_own_is_told():
    settings = types.ModuleType("my_settings")
    f, trees = made_of("def f(p, y): return s.D * p", s=settings), []
    for settings.D in (1, 2): trees.append(identity(f))
    assert trees[0] != trees[1]
    package = types.ModuleType("my_package")
    package.settings, package.itself = settings, package
    g, trees = made_of("def f(p, y): return k.settings.D * k.itself.settings.D", k=package), []
    for settings.D in (1, 2): trees.append(identity(g))
    assert trees[0] != trees[1]


def test_what_a_function_uses_of_a_library_and_changes_is_told_by_its_class():
    log = logging.getLogger("mine")
    f = made_of("def f(p, y): log.info(p)", log=log)
    before = identity(f)
    log.addHandler(logging.NullHandler())
    assert identity(f) == before


@pytest.mark.parametrize("make", [
    lambda: {F.mse_loss: 1}, lambda: {twice: 1}, lambda: {(twice, 1): 1}, lambda: {Slotted(1): 1},
    lambda: {"a": {Slotted: {twice: 1}}}, lambda: {Path("a"): 1, 2: 3}])
def test_a_key_of_a_dictionary_is_told_without_an_address(make):
    one, other = MyTerm(make()), MyTerm(make())
    assert identity(one) == identity(other)
    assert "0x" not in json.dumps(identity(one))
    assert identity(MyTerm({Slotted(1): 1})) != identity(MyTerm({Slotted(2): 1}))


def test_what_does_not_say_what_it_is_asks_for_a_name(tmp_path):
    weight = torch.ones(2)
    def caught(prediction, y): return (weight * prediction).mean()
    model = net()
    def holds(prediction, y): return sum(p.sum() for p in model.parameters()) + prediction.mean()
    for loss, what in ((lambda p, y: F.mse_loss(p, y), "is a lambda"), (caught, "caught a tensor"),
                       (holds, "caught a tensor or a model"),
                       (partial(lambda p, y, d: p.mean(), d=1), "is a lambda")):
        with pytest.raises(ValueError, match=rf"J.loss.* {what}.*ml.named\(.*-1"):
            quick(ml.MAML(net(), loss), steps=1, checkpoint=tmp_path / "run")
        quick(ml.MAML(net(), loss), steps=1)                 # without a folder nothing is asked
    assert not (tmp_path / "run").exists()
    square = ml.named("square", lambda p, y: F.mse_loss(p, y))
    quick(ml.MAML(net(), square), steps=1, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"J.loss was square\(\), now cube"):
        quick(ml.MAML(net(), ml.named("cube", square.function)), steps=2,
              checkpoint=tmp_path / "run")
    for wrong in (("", F.mse_loss), (F.mse_loss, "a"), ("a", nn.MSELoss()), ("a", 3)):
        with pytest.raises(TypeError): ml.named(*wrong)


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a): self.a = a


class Says:
    "Counts, which is not what it is."
    def __init__(self, number): self.number, self.calls = number, 0

    def identity(self): return {"number": self.number}


@pytest.mark.parametrize(("make", "values"), [
    (lambda x: Slotted(x), (1, 2)), (lambda x: {"a": [x, (x,)]}, (1, 2)),
    (lambda x: {x, "b"}, ("a", "c")), (lambda x: complex(x), (1, 2)), (lambda x: range(x), (1, 2)),
    (lambda x: torch.Generator().manual_seed(x), (1, 2)), (lambda x: Says(x), (1, 2)),
    (lambda x: torch.tensor(x), (1.0, 2.0)), (lambda x: torch.tensor([x]).to_sparse(), (1.0, 2.0)),
    (lambda x: np.float32(x), (1.0, 2.0)), (lambda x: bytes([x]), (1, 2)),
    (lambda x: torch.tensor([x], dtype=torch.bfloat16), (1.0, 2.0)),
    (lambda x: x, (Colour.RED, 1)), (lambda x: x, (float("nan"), float("inf"))),
    (lambda x: nn.Linear(1, 1, dtype=x), (torch.float32, torch.float64)),
    (lambda x: [nn.Linear(1, 1).requires_grad_(x)], (True, False)), (lambda x: x, (str, int)),
    (lambda x: x.add, (set(), {1})), (lambda x: Slotted(1).__init__, (1, 1)),
    (lambda x: nn.utils.parametrizations.weight_norm(nn.Linear(1, 1), dim=x), (0, 1))])
def test_things_of_all_kinds(make, values):
    one, other = (identity(make(value)) for value in values)
    assert one == identity(make(values[0]))
    assert (one != other) == (values[0] is not values[1])
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    assert "0x" not in json.dumps(one)


def test_what_changes_while_a_run_goes_on_is_no_part_of_it():
    things = (ml.ANIL(net(), F.mse_loss, lr=ml.schedule.Linear(0.1, 0.0)),
              ml.MAML(contextual(), F.mse_loss), ml.FOMAML(nn.Linear(1, 1), F.mse_loss))
    for J in things:
        optimizer = torch.optim.AdamW(J.parameters())
        for make in (None, partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9),
                     lambda o: torch.optim.lr_scheduler.SequentialLR(o, [
                         torch.optim.lr_scheduler.ConstantLR(o),
                         torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [2])):
            before = settings_of(J, optimizer, make(optimizer) if make else None, 9)
            quick(J, steps=3, optimizer=optimizer, scheduler=make)
            J._compiled = J._value                           # as after `J.compile()`
            assert differences(before, settings_of(J, optimizer, make(optimizer) if make else None,
                                                   9)) == []


def test_shared_things_and_circles():
    layer = nn.Linear(2, 2)
    shared, apart = nn.Sequential(layer, layer), nn.Sequential(layer, nn.Linear(2, 2))
    assert identity(shared) != identity(apart)
    circle = types.SimpleNamespace()
    circle.me = circle
    assert identity(circle)["me"] == "as it"


def test_equal_things_in_processes_with_other_hash_seeds_are_equal():
    program = """
import json, torch, torch.nn.functional as F
import metalit as ml
from metalit.training.identity import settings_of
words = {"slow", "fast", "deep", "wide", "new", "old"}
def weighted(p, y): return len(words & {"slow", "old", "red"}) * F.mse_loss(p, y)
class Mine(ml.Term):
    known = frozenset(words)
    def per_task(self, path, task): return path.loss(path.final, task.query) * len(self.known)
J = ml.TripletMAML(ml.models.mlp(1, 8, 1), weighted, lr=ml.schedule.Cosine(0.1, 0.0))
K = ml.MAML(torch.nn.TransformerEncoderLayer(8, 2, 8), weighted, terms=Mine() + ml.GradientNorm())
adam = torch.optim.AdamW(J.parameters())
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 9)
print(json.dumps([settings_of(L, adam, cosine, 9, tasks=ml.tasks.Quadratics(shared_curvature=True))
                  for L in (J, K)]))
"""
    found = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            check=True, env=os.environ | {"PYTHONHASHSEED": seed}).stdout
             for seed in ("0", "4")]
    assert found[0] == found[1]
    assert "0x" not in found[0]


def test_a_difference_names_old_and_new_and_the_ways_on(tmp_path):
    quick(maml(), steps=2, checkpoint=tmp_path)
    with pytest.raises(CheckpointError) as error:
        quick(maml(lr=0.5), steps=4, checkpoint=tmp_path, batch_size=5,
              optimizer=partial(torch.optim.Adam, betas=(0.8, 0.9)))
    assert str(error.value).split("of another run:\n")[1] == """\
  J.inner.lr was 0.01, now 0.5
  batch_size was 4, now 5
  optimizer.betas was [0.9, 0.999], now [0.8, 0.9]
Use the old values, another folder, \
allow={'J.inner.lr', 'batch_size', 'optimizer.betas'} to go on with the new ones, \
or resume=False to start over"""


@pytest.mark.parametrize("scheduled", [False, True])
def test_what_is_allowed_to_differ_takes_effect(tmp_path, scheduled):
    "Also with a scheduler, which keeps a copy of the old rate."
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5) if scheduled else None
    quick(maml(), steps=2, checkpoint=tmp_path, scheduler=decay,
          optimizer=partial(torch.optim.Adam, lr=0.1))
    J = maml()
    optimizer = torch.optim.Adam(J.parameters(), lr=0.4, betas=(0.5, 0.5))
    with pytest.raises(CheckpointError, match=r"optimizer\.betas"):
        quick(J, steps=3, checkpoint=tmp_path, scheduler=decay, optimizer=optimizer, allow={"lr"})
    assert optimizer.param_groups[0]["lr"] == 0.4
    with pytest.warns(UserWarning, match=r"no longer bit for bit:\n  .*lr"):
        quick(J, steps=4, checkpoint=tmp_path, scheduler=decay, optimizer=optimizer,
              allow={"lr", "betas", *["base_lrs"] * scheduled})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * (0.5**4 if scheduled else 1))


@pytest.mark.parametrize(("options", "place"), [
    ({"log_every": 7}, "log_every"), ({"optimizer": partial(torch.optim.Adam, foreach=True)},
                                      "optimizer.foreach")])
def test_what_may_differ_is_warned_of(tmp_path, options, place):
    quick(maml(), steps=2, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=rf"goes on with other values, .*:\n  {place} was"):
        quick(maml(), steps=3, checkpoint=tmp_path, **options)
    quick(maml(), steps=4, checkpoint=tmp_path, **options)   # from then on it is the same


def test_chunks_and_patience_may_differ(tmp_path):
    watch = partial(Validation, sines, n_tasks=2, every=2)
    quick(maml(), steps=2, checkpoint=tmp_path, validation=watch(patience=3))
    with pytest.warns(UserWarning, match="goes on with other values") as told:
        quick(maml(chunk_size=2, batching="loop"), steps=3, checkpoint=tmp_path,
              validation=watch(patience=9))
    assert [line.split()[0] for line in str(told[0].message).splitlines()[1:]] == [
        "J.chunk_size", "J.batching", "validation.patience"]


def test_an_older_best_does_not_outlive_a_change_of_validation(tmp_path):
    from metalit.training.checkpoints import parameters_file
    quick(maml(), steps=4, checkpoint=tmp_path, validation=Validation(sines, every=2, n_tasks=2))
    assert parameters_file(tmp_path).name == "best.pt"
    other = Validation(sines, every=50, n_tasks=3)
    with pytest.raises(CheckpointError, match=r"validation.every was 2, now 50"):
        quick(maml(), steps=6, checkpoint=tmp_path, validation=other)
    with pytest.warns(UserWarning, match="validation"), pytest.raises(KeyboardInterrupt):
        quick(maml(), steps=40, checkpoint=tmp_path, validation=other, watch=Stops(),
              allow={"validation"})
    assert (tmp_path / "best.pt").exists()
    assert parameters_file(tmp_path).name == "checkpoint.pt"
    assert load_checkpoint(tmp_path / "checkpoint.pt", maml())["progress"]["best"] is None


class Stops(ml.Watcher):
    def step(self, loss):
        import signal
        signal.raise_signal(signal.SIGINT)


def test_other_versions_are_warned_of_and_what_they_did_not_say_is_taken_on_trust(monkeypatch):
    now = run_of()
    saved = json.loads(json.dumps(now))
    del saved["J"]["batching"]
    with pytest.warns(UserWarning, match=r"J.batching was nothing, now vmap"):
        check_same_settings(saved, now, "here")
    saved["versions"]["metalit"] = "0.9.0"
    del saved["J"]["inner"]["steps"]
    with pytest.warns(UserWarning, match=r"versions.metalit was 0.9.0, now"):
        check_same_settings(saved, now, "here")
    saved["J"]["inner"]["lr"] = 0.5
    with pytest.raises(CheckpointError, match=r"J.inner.lr was 0.5, now 0.01"):
        check_same_settings(saved, now, "here")


def test_names_of_places():
    assert named_by("optimizer.lr", {"lr"}) and named_by("optimizer.lr", {"optimizer"})
    assert named_by("J.inner.lr", {"inner.lr"}) and not named_by("J.inner.lr_min", {"lr"})
    assert not named_by("optimizer.lr", set())


def test_a_label_is_short_and_tells_families_apart():
    assert label(sines).startswith("Sinusoids(shots=5, queries=5) ")
    assert label(sines) != label(ml.tasks.Sinusoids(grid=99))
    class Own(ml.Family):
        scale = staticmethod(lambda x: x)
    assert label(Own()).startswith("Own ")
    assert ml.evaluate(maml(), sines, n_tasks=2, steps=(0,)).tasks == label(sines)


@pytest.mark.parametrize("make", [random.Random, np.random.default_rng, np.random.RandomState,
                                  lambda seed: np.random.Generator(np.random.MT19937(seed))])
def test_sources_of_random_numbers_are_told_by_their_seed(make):
    one, same, other = (identity({"of a part": make(seed)}) for seed in (1, 1, 2))
    assert one == same != other
    assert "0x" not in str(one)


def test_what_is_allowed_has_to_be_there(tmp_path):
    quick(maml(), steps=2, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for allow, hint in (({"optimiser.lr"}, r"did you mean 'optimizer\.lr'\?"),
                        ({"lrr"}, "did you mean 'lr'"), ({"weather"}, "there are 'J'")):
        with pytest.raises(ValueError, match=f"nothing that a run is made of: {hint}"):
            quick(maml(), steps=3, checkpoint=tmp_path, allow=allow)
    with pytest.raises(TypeError, match=r"allow=\{'lr'\}"):
        quick(maml(), steps=3, checkpoint=tmp_path, allow="lr")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    quick(maml(), steps=3, checkpoint=tmp_path, allow={"optimizer.lr", "device"})
