"""Many steps of a run in one call of a graph: the same run, to rounding, as step by step."""
import copy
import logging
import math
import shutil
import warnings
import weakref
from functools import partial
from weakref import WeakValueDictionary

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import metalit as ml
from metalit.batching import many_steps
from metalit.judging.comparison import forget_compiled
from metalit.training import whole_run

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None,
                                    reason="needs a C++ compiler")
WAVES = ml.tasks.Sinusoids(shots=3)
train = partial(ml.meta_train, batch_size=3, device="cpu", progress=False, log_every=7)


class Plain(many_steps.ManySteps):
    "The steps of the graph in a plain loop, so that nothing has to be compiled."
    def __init__(self, graph, length, dtype):
        self.length, self.run = length, many_steps.loop_of(graph, length, dtype)


def plain_loop(more, once, state):
    while more(*state): state = once(*state)
    return state


@pytest.fixture
def quick(monkeypatch):
    "Without a compiler, and without the graphs that other tests have compiled."
    monkeypatch.setattr(whole_run, "SHARED", WeakValueDictionary())
    monkeypatch.setattr(whole_run, "ManySteps", Plain)
    monkeypatch.setattr(many_steps, "_while", plain_loop)


@pytest.fixture
def pieces(monkeypatch):
    "How many steps each call has taken."
    found, real = [], whole_run.WholeRun.piece

    def counted(self, step):
        values = real(self, step)
        if values: found.append(len(values))
        return values
    monkeypatch.setattr(whole_run.WholeRun, "piece", counted)
    monkeypatch.setattr(whole_run, "SECONDS", 1e6)          # else a busy machine takes short pieces
    return found


def maml(seed=0, **options):
    return ml.MAML(ml.models.mlp(1, 5, 1, seed=seed), F.mse_loss, **{"lr": 0.01} | options).double()


def apart(one, other):
    return max((a - b).abs().max().item() for a, b in zip(
        one.state_dict().values(), other.state_dict().values(), strict=True))


def states_apart(one, other):
    one, other = (optimizer.state_dict() for optimizer in (one, other))
    assert one["state"].keys() == other["state"].keys()
    assert one["param_groups"] == other["param_groups"]
    pairs = [(kept[name], there[name]) for kept, there in zip(
        one["state"].values(), other["state"].values(), strict=True) for name in there]
    return max([(a.double() - b.double()).abs().max().item() for a, b in pairs], default=0.0)


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "SGD": (SGD, {"lr": 0.02}), "decay": (SGD, {"lr": 0.02, "weight_decay": 0.1}),
    "Nesterov": (SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "dampening": (SGD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.5}),
    "up": (SGD, {"lr": 1e-4, "maximize": True, "momentum": 0.5}), "Adam": (Adam, {"lr": 0.02}),
    "AMSGrad": (Adam, {"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "betas": (0.4, 0.9)}),
    "AdamW": (AdamW, {"lr": 0.02, "eps": 1e-3})}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_pytorchs_own(quick, pieces, name):
    kind, options = OPTIMIZERS[name]
    found = []
    for compile in (False, True):
        J = maml()
        optimizer = kind(J.parameters(), **options)
        log = train(J, WAVES, steps=30, optimizer=optimizer, compile=compile)
        found.append((J, optimizer, [row["meta_loss"] for row in log]))
    assert pieces == [1, 29]
    assert apart(found[0][0], found[1][0]) < 1e-13
    assert states_apart(found[0][1], found[1][1]) < 1e-12
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-12, atol=0)


def test_a_thousand_steps_of_adam(quick):
    one, other = maml(), maml()
    for J, compile in ((one, False), (other, True)): train(J, WAVES, steps=1000, compile=compile)
    assert apart(maml(), one) > 0.1 and apart(one, other) < 1e-11


def test_scheduler_clipping_and_groups(quick, pieces):
    found = []
    for compile in (False, True):
        J = maml()
        weights, biases = list(J.parameters())[::2], list(J.parameters())[1::2]
        optimizer = Adam([{"params": weights, "lr": 0.05}, {"params": biases}], lr=0.01)
        train(J, WAVES, steps=20, optimizer=optimizer, clip=0.5, compile=compile,
              scheduler=partial(CosineAnnealingLR, T_max=20))
        found.append((J, optimizer))
    assert pieces == [1, 19] and apart(found[0][0], found[1][0]) < 1e-13
    assert states_apart(found[0][1], found[1][1]) < 1e-13


CHANGING = {
    "rate": lambda: maml(lr=ml.schedule.Linear(0.1, 0.001)),
    "weight": lambda: ml.MetaLoss(
        ml.models.mlp(1, 5, 1, seed=0), F.mse_loss, inner=ml.SGD(0.02, 2),
        terms=ml.QueryLoss() + ml.schedule.Cosine(0.5, 0.0) * ml.GradientNorm()).double(),
    "every step": lambda: ml.MetaLoss(ml.models.mlp(1, 5, 1, seed=0), F.mse_loss,
                                      inner=ml.SGD(0.02, 3), terms=ml.EveryStep()).double(),
    "both": lambda: ml.MetaLoss(
        ml.models.mlp(1, 5, 1, seed=0), F.mse_loss, inner=ml.SGD(ml.schedule.Linear(0.1, 0.01), 2),
        terms=ml.schedule.Linear(1.0, 2.0) * ml.QueryLoss()).double()}


@pytest.mark.parametrize("ema", [None, 0.9])  # the first step is seen after thirty
@pytest.mark.parametrize("name", CHANGING)
def test_numbers_with_a_schedule_and_an_average(quick, pieces, tmp_path, name, ema):
    found, seen = [], []
    for compile in (False, True):
        J, folder = CHANGING[name](), tmp_path / str(compile)
        log = train(J, WAVES, steps=30, compile=compile, ema=ema, save_every=11, checkpoint=folder,
                    optimizer=partial(Adam, lr=0.02),
                    validation=ml.Validation(WAVES, every=10, n_tasks=5))
        seen.append([float(row.split(",")[1]) for row in
                     (folder / "validation.csv").read_text().splitlines()[1:]])
        kept = torch.load(folder / "checkpoint.pt", weights_only=True)
        found.append((J, kept, [row["meta_loss"] for row in log], ml.schedule.numbers_of(J)))
    assert len(pieces) > 3 and sum(pieces) == 30
    assert apart(CHANGING[name](), found[0][0]) > 0.01 and apart(found[0][0], found[1][0]) < 1e-12
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-11, atol=0)
    assert found[0][3] == found[1][3] and len(seen[0]) == 3
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)       # looks are taken in float32's digits
    for part in ("J", *(["descends"] if ema is not None else [])):
        torch.testing.assert_close(found[0][1][part], found[1][1][part], rtol=1e-11, atol=1e-12)


def test_with_schedule_and_average_the_bits_are_the_same_however_a_run_is_cut(
        quick, pieces, monkeypatch, tmp_path):
    "In pieces, and in two runs of which the second goes on."
    def run(steps, folder, log_every, stop=None):
        J = CHANGING["both"]()
        train(J, WAVES, steps=steps, compile=True, ema=0.7, log_every=log_every, checkpoint=folder,
              save_every=log_every, max_minutes=stop)
        return J
    whole = run(40, tmp_path / "a", 40)
    assert apart(run(40, tmp_path / "b", 7), whole) == 0
    monkeypatch.setattr(whole_run, "SECONDS", 1e-9)          # pieces of a single step
    run(40, tmp_path / "c", 5, stop=1e-9)
    monkeypatch.setattr(whole_run, "SECONDS", 1e6)
    assert apart(run(40, tmp_path / "c", 5), whole) == 0


def test_a_second_run_with_a_schedule_compiles_nothing(quick):
    J = CHANGING["both"]()
    for _ in range(2): train(J, WAVES, steps=9, compile=True, ema=0.9)
    assert len(whole_run.GRAPHS[J]) == 1


def test_the_bits_are_the_same_however_a_run_is_cut(quick, pieces, tmp_path):
    whole, cut = maml(), maml()
    train(whole, WAVES, steps=30, compile=True)
    train(cut, WAVES, steps=30, compile=True, checkpoint=tmp_path / "cut", save_every=4)
    for steps in (13, 30):
        log = train(J := maml(), WAVES, steps=steps, compile=True, save_every=4,
                    checkpoint=tmp_path / "stopped")
        stopped = J
    assert pieces[:2] == [1, 29] and pieces[2:11] == [1, 3, *[4] * 6, 2]
    assert pieces[11:] == [1, 3, 4, 4, 1, 1, 2, 4, 4, 4, 2]
    assert apart(whole, cut) == apart(whole, stopped) == 0
    assert [row["step"] for row in log] == [7, 14, 21, 28]


def test_a_run_of_steps_and_one_of_pieces_go_on_from_each_other(quick, tmp_path):
    "No longer bit for bit, which is said; but to rounding."
    whole = maml()
    train(whole, WAVES, steps=20)
    for first in (False, True):
        folder = tmp_path / str(first)
        train(maml(), WAVES, steps=9, compile=first, checkpoint=folder)
        with pytest.warns(UserWarning, match="compiled was"):
            train(J := maml(seed=1), WAVES, steps=20, compile=not first, checkpoint=folder)
        assert apart(whole, J) < 1e-13


def test_validation_looks_at_the_same_steps(quick, pieces, tmp_path):
    found = []
    for compile in (False, True):
        validation = ml.Validation(WAVES, every=8, n_tasks=5)
        folder = tmp_path / str(compile)
        train(maml(), WAVES, steps=20, compile=compile, validation=validation, checkpoint=folder)
        found.append((folder / "validation.csv").read_text().splitlines())
    assert pieces == [1, 7, 8, 4] and len(found[0]) == 4
    assert [row.split(",")[0] for row in found[0]] == [row.split(",")[0] for row in found[1]]


class Breaks(ml.tasks.Sinusoids):
    "From step 5 on a target is no number, or very large."
    bad, first = math.nan, 5

    def batch(self, batch_size, seed=0, step=0):
        task = super().batch(batch_size, seed, step)
        if step >= self.first: task.query.y[0, 0] = self.bad
        return task


def test_numbers_with_a_schedule_are_those_of_the_step_that_fails(quick):
    found = []
    for compile in (False, True):
        J = maml(lr=ml.schedule.Linear(0.1, 0.01))
        tasks = Breaks(shots=3)
        tasks.bad = 3e38
        with pytest.raises(ml.DivergedError): train(J.float(), tasks, steps=12, compile=compile)
        found.append(J.inner.lr)
    assert found[0] == found[1] == ml.schedule.Linear(0.1, 0.01)(5, 12)


@pytest.mark.parametrize(("bad", "error"), [(math.nan, ValueError), (3e38, ml.DivergedError)])
def test_what_is_no_number_ends_the_run_before_it(quick, bad, error):
    "As step by step: J after five steps, the scheduler, too, and the error of that step."
    found = []
    for compile in (False, True):
        family, J = Breaks(shots=3), maml().float()
        family.bad = bad
        optimizer = Adam(J.parameters(), lr=0.01)
        schedule = CosineAnnealingLR(optimizer, T_max=20)
        with pytest.raises(error) as raised:
            train(J, family, steps=20, compile=compile, optimizer=optimizer,
                  scheduler=lambda optimizer, schedule=schedule: schedule)
        found.append((J, str(raised.value), schedule.last_epoch))
    assert apart(found[0][0], found[1][0]) < 1e-6
    assert found[0][1:] == found[1][1:] and found[0][2] == 5


class Classes(ml.tasks.Sinusoids):
    "Which side of 0 a wave is on; from step `first` on there is a class too many."
    first = 5

    def batch(self, batch_size, seed=0, step=0):
        waves = super().batch(batch_size, seed, step)
        task = ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long()) for part in waves))
        if step >= self.first: task.query.y[0, 0] = 7
        return task


@pytest.mark.parametrize("first", [0, 1, 5, 19])
def test_a_label_out_of_range_is_the_error_of_its_own_step(quick, monkeypatch, first):
    "As step by step: the same words, and J, optimizer and scheduler as they are before that step."
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    found = []
    for compile in (False, True):
        family = Classes(shots=3)
        J = ml.MAML(ml.models.mlp(1, 5, 2, seed=0), F.cross_entropy).double()
        optimizer = Adam(J.parameters(), lr=0.01)
        schedule = CosineAnnealingLR(optimizer, T_max=20)
        family.first = first
        with pytest.raises(ValueError, match=r"2 outputs, so labels are 0 … 1") as raised:
            train(J, family, steps=20, compile=compile, optimizer=optimizer,
                  scheduler=lambda optimizer, schedule=schedule: schedule)
        found.append((J, optimizer, str(raised.value), schedule.state_dict()))
    assert apart(found[0][0], found[1][0]) < 1e-13
    assert states_apart(found[0][1], found[1][1]) < 1e-13
    assert found[0][2:] == found[1][2:] and found[0][3]["last_epoch"] == first


class Growing(ml.tasks.Sinusoids):
    "Every third batch has more examples."
    def batch(self, batch_size, seed=0, step=0):
        return ml.tasks.Sinusoids(shots=4 if step % 3 == 2 else 3).batch(batch_size, seed, step)


def test_a_batch_of_another_shape_is_a_step_of_its_own(quick, pieces, monkeypatch):
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    one, other = maml(), maml()
    train(one, Growing(), steps=8)
    train(other, Growing(), steps=8, compile=True)
    assert pieces == [1, 1, 2, 2] and apart(one, other) < 1e-14


def test_graphs_go_with_their_meta_loss(quick):
    for _ in range(3):
        train(J := maml(), WAVES, steps=3, compile=True)
        gone = weakref.ref(J)
        assert J in whole_run.GRAPHS
        del J
        forget_compiled()
        assert gone() is None


def test_a_second_run_compiles_nothing_and_a_changed_one_does(quick):
    J = maml()
    for _ in range(2): train(J, WAVES, steps=3, compile=True)
    assert len(whole_run.GRAPHS[J]) == 1
    before = apart(maml(), J)
    J.inner.lr = 0.5
    train(J, WAVES, steps=3, compile=True)
    assert len(whole_run.GRAPHS[J]) == 2 and before != apart(maml(), J)
    twin = maml()
    for _ in range(2): train(twin, WAVES, steps=3)
    twin.inner.lr = 0.5
    train(twin, WAVES, steps=3)
    assert apart(twin, J) < 1e-14


def graph_in(J):
    "The one graph that a meta-loss keeps."
    made, = whole_run.GRAPHS[J].values()
    return made


def test_meta_losses_of_one_kind_share_a_graph_and_others_do_not(quick):
    "Weights may differ, and what is a constant in the graph may not."
    class Shifted(nn.Module):
        def __init__(self, shift, seed):
            super().__init__()
            self.net, self.shift = ml.models.mlp(1, 4, 1, seed=seed), shift

        def forward(self, x): return self.net(x) + self.shift
    def made(): return [ml.MAML(Shifted(shift, seed), F.mse_loss, lr).double()
                        for shift, seed, lr in ((1.0, 0, 0.1), (1.0, 1, 0.1), (2.0, 0, 0.1),
                                                (1.0, 0, 0.2))]
    shared, alone = made(), made()
    for J in shared: train(J, WAVES, steps=4, compile=True)
    assert graph_in(shared[0]) is graph_in(shared[1])
    assert len({id(graph_in(J)) for J in shared}) == 3
    for J, twin in zip(shared, alone, strict=True):
        train(twin, WAVES, steps=4)
        assert apart(J, twin) < 1e-14


def test_frozen_parameters_and_buffers_may_have_other_values_in_a_second_run(quick):
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = ml.models.mlp(1, 4, 3, seed=0), ml.models.mlp(3, 1, seed=1)
            self.body.requires_grad_(False)
            self.register_buffer("shift", torch.ones(3))

        def forward(self, x): return self.head(self.body(x) + self.shift)
    found = []
    for compile in (False, True):
        J = ml.MAML(Body(), F.mse_loss).double()
        for value in (1.0, 2.0):
            with torch.no_grad():
                J.model.shift.fill_(value)
                J.model.body[0].weight.mul_(value)
            train(J, WAVES, steps=4, compile=compile)
        found.append(J)
    assert len(whole_run.GRAPHS[found[1]]) == 1 and apart(*found) < 1e-14


def test_who_hears_of_begin_and_end_alone_does_not_stand_in_the_way(quick, pieces):
    class Door(ml.Watcher):
        def begin(self, progress, steps, batch_size): self.opened = True
    train(maml(), WAVES, steps=5, compile=True, watch=(door := Door()))
    assert sum(pieces) == 5 and door.opened


def of_run(J, optimizer=None, **options):
    "Whether a run takes many steps at once, and what the log says."
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    whole_run.LOG.addHandler(handler)
    level = whole_run.LOG.level
    whole_run.LOG.setLevel(logging.INFO)
    tasks = options.pop("tasks", WAVES)
    try: train(J, tasks, steps=2, optimizer=optimizer, compile=True, **options)
    finally:
        whole_run.LOG.removeHandler(handler)
        whole_run.LOG.setLevel(level)
    return lines


class Regularised(ml.MetaLoss):
    "A meta-loss with a line of its own."
    def forward(self, tasks):
        return super().forward(tasks) + 0.1 * sum(p.square().sum() for p in self.parameters())


class Idle(nn.Module):
    "A network with a parameter that it does not use."
    def __init__(self):
        super().__init__()
        self.net, self.idle = ml.models.mlp(1, 5, 1, seed=0), nn.Parameter(torch.ones(3))

    def forward(self, x): return self.net(x)


def with_hooks(J, on_parameters=False):
    if on_parameters: J.model[0].bias.register_post_accumulate_grad_hook(halved)
    else: J.register_forward_hook(lambda module, args, value: 2 * value)
    return J


def halved(p): p.grad.mul_(0.5)


OWN_WAY = {
    "a forward": lambda: Regularised(ml.models.mlp(1, 5, 1, seed=0), F.mse_loss).double(),
    "a hook on J": lambda: with_hooks(maml()),
    "a hook on a parameter": lambda: with_hooks(maml(), on_parameters=True),
    "an idle parameter": lambda: ml.MAML(Idle(), F.mse_loss).double()}


@pytest.mark.parametrize("way", OWN_WAY)
def test_what_is_not_in_the_graph_is_not_left_out(quick, pieces, monkeypatch, way):
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    found = [OWN_WAY[way](), OWN_WAY[way]()]
    for J, compile in zip(found, (False, True), strict=True):
        train(J, WAVES, steps=5, compile=compile,
              optimizer=partial(AdamW, lr=0.05, weight_decay=0.1))
    assert not pieces and apart(*found) == 0


@pytest.mark.parametrize("kept", [False, True])
def test_parameters_that_were_frozen_are_counted_anew(quick, pieces, monkeypatch, tmp_path, kept):
    "Adam has taken fewer steps with them: in this process, or in what a folder holds."
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    found = []
    for compile in (False, True):
        J, folder = maml(), tmp_path / str(compile)
        optimizer = Adam(J.parameters(), lr=0.05)
        J.model[0].requires_grad_(False)
        train(J, WAVES, steps=4, optimizer=optimizer)
        J.model[0].requires_grad_(True)
        if kept:
            train(J, WAVES, steps=2, optimizer=optimizer, checkpoint=folder)
            optimizer = Adam(J.parameters(), lr=0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                  # that compiled is another than it was
            train(J, WAVES, steps=5, optimizer=optimizer, compile=compile,
                  checkpoint=folder if kept else None)
        found.append(J)
    assert not pieces and apart(*found) == 0


class Restless(ml.MetaLoss):
    "Does more than its parts do, when a step begins."
    def at(self, step, steps):
        super().at(step, steps)
        self.inner.lr = 0.1 / (1 + step)


class Derived(ml.SGD):
    "A number that follows from another one, and is no number of its own."
    def at(self, step, steps):
        super().at(step, steps)
        self.twice = 2 * self.lr


STEPWISE = {
    "is another program at another step": lambda: of_run(ml.MetaLoss(
        ml.models.mlp(1, 5, 1, seed=0), F.mse_loss,
        inner=Derived(ml.schedule.Linear(0.1, 0.01))).double()),
    "somebody looks on": lambda: of_run(maml(), watch=print),
    "autocast": lambda: of_run(maml(), autocast=torch.bfloat16),
    "the optimizer is RMSprop": lambda: of_run(maml(), partial(torch.optim.RMSprop, lr=0.01)),
    "another program at another step": lambda: of_run(maml(gradient=ml.AnnealedOrder(0.5))),
    "sets its numbers in a way of its own": lambda: of_run(Restless(
        ml.models.mlp(1, 5, 1, seed=0), F.mse_loss).double()),
    "the tasks are no family": lambda: of_run(maml(), tasks=[WAVES.batch(3)], batch_size=None),
    "other parameters than J": lambda: (lambda J: of_run(J, Adam(J.model[0].parameters())))(maml()),
    "its convolutions take the time": lambda: of_run(
        ml.MAML(nn.Sequential(nn.Unflatten(-1, (1, 1)), nn.Conv1d(1, 1, 1), nn.Flatten(-2)),
                F.mse_loss).double()),
    "J draws random numbers": lambda: of_run(ml.MAML(nn.Sequential(
        nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)), F.mse_loss).double())}


@pytest.mark.parametrize("why", STEPWISE)
def test_other_runs_go_step_by_step_and_the_log_says_why(quick, pieces, monkeypatch, why):
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    lines = STEPWISE[why]()
    assert len(lines) == 1 and why in lines[0] and not pieces


def test_a_model_that_is_another_program_at_each_call_goes_step_by_step(quick, pieces, monkeypatch):
    class Tired(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.net = ml.models.mlp(1, 4, 1)

        def forward(self, x):
            self.calls += 1
            return self.net(x) / self.calls
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    assert "another program" in of_run(ml.MAML(Tired(), F.mse_loss))[0] and not pieces


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_in_cpp(pieces, tmp_path):
    "The real compiler: the same run to rounding, and the same bits in pieces."
    plain, whole = maml(), maml()
    train(plain, WAVES, steps=20)
    train(whole, WAVES, steps=20, compile=True)
    assert apart(plain, whole) < 1e-13
    found = copy.deepcopy(whole)
    whole.load_state_dict(maml().state_dict())
    train(whole, WAVES, steps=20, compile=True, checkpoint=tmp_path, save_every=7)
    assert pieces == [1, 19, 1, 6, 7, 6] and apart(found, whole) == 0


def test_what_the_compiler_cannot_do_is_done_step_by_step(quick, monkeypatch, tmp_path):
    def fails(self, *args): raise RuntimeError("no compiler here")
    monkeypatch.setattr(many_steps.ManySteps, "__call__", fails)
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    plain, J = maml(), maml()
    train(plain, WAVES, steps=5)
    assert of_run(maml()) == ["one step at a time, because no compiler here"]
    lines = of_run(J, checkpoint=tmp_path)
    assert lines == ["one step at a time, because no compiler here"]
    train(J, WAVES, steps=5, checkpoint=tmp_path, compile=True)
    assert apart(plain, J) == 0


def written(folder):
    return ml.load_checkpoint(folder / "checkpoint.pt", maml())["settings"]["compiled"]


def test_a_run_says_how_it_is_computed_and_not_how_it_was_to_be(quick, monkeypatch, tmp_path):
    "Where many steps are not compiled: each in a graph, and the run that goes on is the same one."
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    possible = many_steps.ManySteps.__call__
    def fails(self, *args): raise RuntimeError("no compiler here")
    monkeypatch.setattr(many_steps.ManySteps, "__call__", fails)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (4, 9, 9):                              # the last has nothing left to do
            train(J := maml(seed=steps), WAVES, steps=steps, compile=True, checkpoint=tmp_path)
            assert written(tmp_path) is True
    train(whole := maml(seed=4), WAVES, steps=9)
    assert apart(whole, J) == 0
    monkeypatch.setattr(many_steps.ManySteps, "__call__", possible)
    with warnings.catch_warnings():
        warnings.simplefilter("error")                       # nor has this
        train(maml(), WAVES, steps=9, compile=True, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match="compiled was True, now many steps"):
        train(maml(), WAVES, steps=12, compile=True, checkpoint=tmp_path)
    assert written(tmp_path) == "many steps"
    monkeypatch.setattr(many_steps.ManySteps, "__call__", fails)
    with pytest.warns(UserWarning, match="compiled was many steps, now True"):
        train(maml(), WAVES, steps=14, compile=True, checkpoint=tmp_path)
    assert written(tmp_path) is True


@pytest.mark.parametrize("lr", [0.01, 1e200])
def test_what_fails_at_the_first_step_leaves_no_trace(quick, tmp_path, lr):
    family = Breaks(shots=3)
    family.first = 0 if lr < 1 else 99
    with pytest.raises(ValueError if lr < 1 else ml.DivergedError):
        train(maml(lr=lr), family, steps=9, compile=True, checkpoint=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("clip", [0.05, 1e3])
def test_a_gradient_is_shortened_where_it_is_too_long_and_left_where_not(quick, clip):
    found = [maml(), maml()]
    for J, compile in zip(found, (False, True), strict=True):
        train(J, WAVES, steps=6, optimizer=SGD(J.parameters(), lr=0.02), clip=clip, compile=compile)
    assert apart(*found) < 1e-13 < apart(found[0], maml())


def test_a_graph_of_a_model_that_evaluates_is_none_of_one_that_trains(quick, pieces, monkeypatch):
    monkeypatch.setattr(ml.MetaLoss, "compile", lambda self: None)
    J = ml.MAML(nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)), F.mse_loss)
    J.eval()
    train(J, WAVES, steps=3, compile=True)
    assert sum(pieces) == 3
    J.train()
    train(J, WAVES, steps=3, compile=True)
    assert sum(pieces) == 3 and len(whole_run.GRAPHS[J]) == 1
