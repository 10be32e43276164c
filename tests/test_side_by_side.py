"""Several runs in the same calls: each is what it is alone, whatever becomes of the others."""
from functools import partial
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from helpers import close
from test_all_ways import OTHER_TASKS, PARTS
from torch import nn

import metalit as ml
from metalit.training import side_by_side
from metalit.training.side_by_side import changing, computed_by, meta_train_many, parting

WAVES = ml.tasks.Sinusoids(shots=3)
HOW = {"batch_size": 3, "progress": False, "device": "cpu", "log_every": 2}
BY_THE_WAY = {  # no function of tensors, or none that vmap can take
    "Evolution": "cannot go side by side", "Implicit": "cannot go side by side"}


def maml(seed, lr=0.1, model=None, **choices):
    model = model or ml.models.mlp(1, 5, 1, activation=nn.Tanh, seed=seed)
    return ml.MAML(model, F.mse_loss, lr, **choices).double()


def same(many, alone, tolerance=1e-12):
    "All that runs hold is the same, to rounding."
    for one, other in zip(many, alone, strict=True):
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
            assert (p - q).abs().max() <= tolerance, name


def run_alone(several, steps=5, seeds=None, **how):
    "One after another, with the logs."
    return [ml.meta_train(J, WAVES, steps=steps, seed=seed, **HOW | how)
            for J, seed in zip(several, seeds or range(len(several)), strict=True)]


@pytest.mark.parametrize("name", [name for name in PARTS if name not in OTHER_TASKS])
def test_every_part_side_by_side_is_what_it_is_alone(name):
    make = PARTS[name]
    many, alone = ([make(), make()] for _ in range(2))
    if name in BY_THE_WAY:
        with pytest.raises(ValueError, match=BY_THE_WAY[name]):
            meta_train_many(many, WAVES, steps=5, **HOW)
        same(many, alone, 0.0)
        return
    ended = meta_train_many(many, WAVES, steps=5, seeds=[3, 4], **HOW)
    logs = run_alone(alone, seeds=[3, 4])
    same(many, alone)
    assert any((p - q).abs().max() > 1e-6 for p, q in zip(*(J.parameters() for J in many),
                                                           strict=True))
    for one, log in zip(ended, logs, strict=True):
        assert one.error is None
        assert [row["step"] for row in one.log] == [row["step"] for row in log] == [2, 4]
        close(*(torch.tensor([row["meta_loss"] for row in rows]).double()
                for rows in (one.log, log)))


def test_step_sizes_weights_and_schedules_may_differ():
    def made():
        rates = (0.05, 0.2, ml.schedule.Linear(0.1, 0.02))
        terms = (ml.QueryLoss() + 0.1 * ml.GradientNorm(), ml.QueryLoss() + 2.0 * ml.GradientNorm(),
                 ml.QueryLoss() + ml.schedule.Cosine(1.0, 0.0) * ml.GradientNorm())
        return [maml(i, rate, terms=term) for i, (rate, term) in enumerate(zip(rates, terms,
                                                                              strict=True))]
    many, alone = made(), made()
    assert len(changing(many)[0]) == 2
    ended = meta_train_many(many, WAVES, steps=5, **HOW)
    logs = run_alone(alone)
    same(many, alone)
    for one, log in zip(ended, logs, strict=True):
        assert [row["meta_loss"] for row in one.log] == pytest.approx(
            [row["meta_loss"] for row in log], rel=1e-12)
    assert [J.inner.lr for J in many] == [J.inner.lr for J in alone] == [0.05, 0.2, 0.02]


@pytest.mark.parametrize("kind", [
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1), torch.optim.Adam])
def test_optimizers_schedulers_and_clipping_are_those_of_each_run(kind):
    how = {"clip": 0.5, "scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)}
    many, alone = ([maml(seed) for seed in range(3)] for _ in range(2))
    rates = (0.1, 0.01, 0.001)
    meta_train_many(many, WAVES, steps=5, optimizer=[partial(kind, lr=lr) for lr in rates],
                    **HOW, **how)
    for seed, (J, lr) in enumerate(zip(alone, rates, strict=True)):
        run_alone([J], seeds=[seed], optimizer=partial(kind, lr=lr), **how)
    same(many, alone)


def test_a_scheduler_that_waits_for_a_validation_is_refused_and_changes_nothing():
    many, before = ([maml(seed) for seed in range(2)] for _ in range(2))
    with pytest.raises(ValueError, match="give meta_train a validation"):
        meta_train_many(many, WAVES, steps=2, **HOW,
                        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    same(many, before, 0.0)


def test_one_that_diverges_stays_where_it_was_and_hurts_nobody():
    many, alone = ([maml(0), maml(1, 1e200), maml(2)] for _ in range(2))
    ended = meta_train_many(many, WAVES, steps=5, **HOW)
    assert [one.error is None for one in ended] == [True, False, True]
    assert "at step 0" in str(ended[1].error) and ended[1].log == []
    same([many[1]], [maml(1, 1e200)], 0.0)
    with pytest.raises(ml.DivergedError, match="at step 0"): run_alone([alone[1]], seeds=[1])
    run_alone([alone[0], alone[2]], seeds=[0, 2])
    same([many[0], many[2]], [alone[0], alone[2]])


def test_one_that_diverges_later_has_the_steps_before_it():
    leaps = [partial(torch.optim.SGD, lr=lr) for lr in (1e-3, 1e60)]
    many, alone = ([maml(0), maml(1)] for _ in range(2))
    ended = meta_train_many(many, WAVES, steps=7, optimizer=leaps, **HOW)
    with pytest.raises(ml.DivergedError) as error:
        run_alone([alone[1]], 7, seeds=[1], optimizer=leaps[1])
    assert str(ended[1].error) == str(error.value) and "at step 0" not in str(error.value)
    scale = max(p.abs().max().item() for p in alone[1].parameters())
    assert scale > 1e50
    same([many[1]], [alone[1]], 1e-12 * scale)
    assert [row["step"] for row in ended[0].log] == [2, 4, 6]


def leap(step, steps): return 1e200 if step == 3 else 0.1


def test_one_that_diverged_does_not_come_back(monkeypatch):
    "Not even where its next step would be finite again, in the same piece of the run."
    ticks = count()
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: 1e-9 * next(ticks))
    many, alone = ([maml(0), maml(1, leap)] for _ in range(2))
    ended = meta_train_many(many, WAVES, steps=9, **HOW | {"log_every": 9})
    assert "at step 3" in str(ended[1].error)
    with pytest.raises(ml.DivergedError, match="at step 3"): run_alone([alone[1]], 9, seeds=[1])
    same([many[1]], [alone[1]])


def test_frozen_parameters_are_those_of_each_run_and_stay():
    def made():
        several = [maml(seed) for seed in range(2)]
        for J in several: next(J.model.parameters()).requires_grad_(False)
        return several
    many, alone = made(), made()
    meta_train_many(many, WAVES, steps=3, **HOW)
    run_alone(alone, 3)
    same(many, alone)
    for J, first in zip(many, made(), strict=True):
        assert torch.equal(next(J.model.parameters()), next(first.model.parameters()))


def test_single_precision_stays_single_and_the_optimizer_may_go_on():
    many = [maml(seed).float() for seed in range(2)]
    kept = []
    def adam(parameters): return kept.append(torch.optim.Adam(parameters)) or kept[-1]
    meta_train_many(many, WAVES, steps=2, optimizer=adam, **HOW)
    assert all(p.dtype == torch.float32 for J in many for p in J.parameters())
    assert all(int(state["step"]) == 2 for one in kept for state in one.state.values())
    meta_train_many(many[:1], WAVES, steps=2, optimizer=lambda parameters: kept[0], **HOW)
    assert all(int(state["step"]) == 4 for state in kept[0].state.values())


class Noisy(nn.Module):
    "Draws at random."
    def __init__(self):
        super().__init__()
        self.net = ml.models.mlp(1, 5, 1)

    def forward(self, x): return F.dropout(self.net(x), 0.5)


TIED = maml(0)
REFUSED = {
    "no run": ([], {}, "no meta-loss"),
    "other K": ([maml(0), maml(1, steps=2)], {}, r"0 and 1 are not the same at J\.inner\.steps"),
    "other width": ([maml(0), maml(1, model=ml.models.mlp(1, 6, 1))], {}, r"at J\..*model"),
    "other terms": ([maml(0), maml(1, terms=ml.EveryStep())], {}, r"at J\.terms"),
    "tied": ([TIED, TIED], {}, "share parameters"),
    "in a loop": ([maml(i, batching="loop") for i in range(2)], {}, "batching=\"loop\""),
    "dropout": ([maml(i, model=Noisy()) for i in range(2)], {}, "cannot go side by side.*random"),
    "RMSprop": ([maml(0)], {"optimizer": torch.optim.RMSprop}, "the optimizer is RMSprop"),
    "one optimizer": ([maml(0), maml(1)], {"optimizer": [torch.optim.SGD]}, "1 optimizers for 2"),
    "two kinds": ([maml(0), maml(1)], {"optimizer": [torch.optim.SGD, torch.optim.Adam]},
                  "not of one kind"),
    "one seed": ([maml(0), maml(1)], {"seeds": [1]}, "1 seeds for 2 runs"),
    "steps": ([maml(0)], {"steps": -1}, "steps=-1")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_changed(name):
    several, how, words = REFUSED[name]
    before = [p.clone() for J in several for p in J.parameters()]
    with pytest.raises(ValueError, match=words):
        meta_train_many(several, WAVES, **HOW | {"steps": 2} | how)
    after = [p for J in several for p in J.parameters()]
    assert all(map(torch.equal, before, after))


def test_tasks_that_are_no_family_or_have_several_shapes_are_refused():
    with pytest.raises(ValueError, match="a family such as"):
        meta_train_many([maml(0)], [WAVES.batch(2)], steps=1, **HOW)
    class Growing(ml.tasks.Sinusoids):
        def batch(self, batch_size, seed=0, step=0):
            return ml.tasks.Sinusoids(shots=3 + step).batch(batch_size, seed, step)
    with pytest.raises(ValueError, match="several shapes"):
        meta_train_many([maml(0), maml(1)], Growing(), steps=3, **HOW)


def test_weight_decay_does_not_shrink_what_a_run_does_not_use():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle = ml.models.mlp(1, 4, 1), nn.Parameter(torch.ones(2))

        def forward(self, x): return self.net(x)
    many = [maml(seed, model=Idle()) for seed in range(2)]
    with pytest.raises(ValueError, match=r"does not depend on 'model\.idle'"):
        meta_train_many(many, WAVES, steps=2, optimizer=torch.optim.AdamW, **HOW)
    meta_train_many(many, WAVES, steps=2, **HOW)
    assert all(torch.equal(J.model.idle, torch.ones(2)) for J in many)


def test_an_optimizer_that_is_made_is_one_runs_own():
    J = maml(0)
    with pytest.raises(TypeError, match="each run needs its own"):
        meta_train_many([J, maml(1)], WAVES, steps=1, optimizer=torch.optim.SGD(J.parameters()),
                        **HOW)


def test_what_a_meta_loss_computes_is_told_without_its_numbers_and_they_come_back():
    one, other = maml(0, 0.1), maml(1, ml.schedule.Linear(0.1, 0.0))
    assert parting(computed_by(one), computed_by(other)) == ""
    assert one.inner.lr == 0.1 and other.inner.schedules.keys() == {"lr"}
    assert parting({"a": {"b": 1}}, {"a": {"b": 2}}) == "J.a.b"
    assert parting({"a": 1}, {"b": 1}) == "J"


def test_no_steps_change_nothing():
    J = maml(0)
    assert meta_train_many([J], WAVES, steps=0, **HOW)[0] == ([], None)
    same([J], [maml(0)], 0.0)
