"""What people put around an outer step, and batches that one has."""
import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import maml, quick, same
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

import metalit as ml
from metalit.training import CheckpointError, Validation, evaluate, load_checkpoint, meta_train
from metalit.training.outer import Batches

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None,
                                    reason="needs a C++ compiler")
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
# What Python says since 3.12 of PyTorch, which forks the workers of a loader.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
WAVES = ml.tasks.Sinusoids(shots=4)
BATCHES = [WAVES.batch(4, seed=7, step=i) for i in range(5)]
HALF = torch.bfloat16
sgd = partial(torch.optim.SGD, lr=0.02)


def with_dropout(seed=0, **options):
    net = ml.models.mlp(1, 8, 1, seed=seed)
    return ml.MAML(torch.nn.Sequential(net[0], torch.nn.Dropout(0.3), net[1], net[2]), F.mse_loss,
                   **options)


def contents(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def moved(J, start):
    return torch.cat([(p - q).detach().flatten() for p, q in
                      zip(J.parameters(), start.parameters(), strict=True)]).norm().item()


def equal(a, b): return all(map(torch.equal, a.parameters(), b.parameters()))


@pytest.mark.parametrize("clip", [0.01, 1e9])
def test_a_step_is_as_long_as_the_clip_says(clip):
    J, free = maml(), maml()
    quick(J, steps=1, optimizer=partial(torch.optim.SGD, lr=1.0), clip=clip)
    quick(free, steps=1, optimizer=partial(torch.optim.SGD, lr=1.0))
    length = moved(free, maml())
    assert 0.01 < length < 1e9
    assert moved(J, maml()) == pytest.approx(min(clip, length), rel=1e-4)


def by_hand(J, steps, decay):
    "What descends, and its average."
    optimizer = sgd(J.parameters())
    average = AveragedModel(J, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for task in WAVES.stream(4, steps, 0):
        optimizer.zero_grad()
        J(task).backward()
        optimizer.step()
        average.update_parameters(J)
    return average.module


def test_what_is_kept_is_the_average(tmp_path):
    J, raw = maml(), maml()
    look = Validation(WAVES, every=2, n_tasks=5)
    quick(J, tasks=WAVES, steps=4, optimizer=sgd, ema=0.8, checkpoint=tmp_path, validation=look)
    average = by_hand(raw, 4, 0.8)
    assert equal(J, average) and not equal(J, raw)
    state = contents(tmp_path)
    assert same(state["J"], average.state_dict()) and same(state["descends"], raw.state_dict())
    looks = state["progress"]["validation"]
    assert looks[1]["validation"] == evaluate(average, WAVES, n_tasks=5, steps=(1,),
                                              seed=look.seed).mean[0]
    best = maml(seed=3)
    load_checkpoint(tmp_path / "best.pt", best)
    assert equal(best, by_hand(maml(), int(state["progress"]["best"]["step"]), 0.8))


def test_an_average_follows_the_schedules_of_what_descends():
    J = maml(lr=ml.schedule.Linear(0.1, 0.01))
    seen = []
    class Look(Validation):
        def look(self, J, state):
            seen.append(J.inner.lr)
            return super().look(J, state)
    quick(J, steps=3, ema=0.5, validation=Look(WAVES, every=1, n_tasks=2))
    assert seen == pytest.approx([0.1, 0.055, 0.01])


def plateau(optimizer):
    "For which no look is better than the first."
    return ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs")


EXTRAS = {"clip": {"clip": 0.1}, "ema": {"ema": 0.9}, "autocast": {"autocast": HALF},
          "plateau": {"scheduler": plateau, "validation": Validation(WAVES, every=2, n_tasks=2)},
          "all": {"clip": 0.1, "ema": 0.9, "autocast": HALF, "scheduler": plateau,
                  "validation": Validation(WAVES, every=2, n_tasks=2)}}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_run_that_stops_goes_on_bit_for_bit(tmp_path, name):
    run = partial(quick, tasks=WAVES, log_every=2, **EXTRAS[name])
    run(with_dropout(), steps=12, checkpoint=tmp_path / "whole")

    losses = []

    def stop(loss):
        losses.append(loss)
        if len(losses) == 5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(with_dropout(), steps=12, checkpoint=tmp_path / "parts", save_every=1, watch=stop)
    assert contents(tmp_path / "parts")["progress"]["step"] == 4
    run(J := with_dropout(seed=9), steps=12, checkpoint=tmp_path / "parts")
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert same(whole, parts) and same(whole["J"], J.state_dict())
    quick(plain := with_dropout(), tasks=WAVES, steps=12)
    assert not same(whole["J"], plain.state_dict())


@pytest.mark.parametrize(("name", "one", "other"), [
    ("clip", 1.0, 2.0), ("clip", None, 2.0), ("ema", 0.9, None), ("autocast", None, HALF)])
def test_a_run_does_not_go_on_with_another_one(tmp_path, name, one, other):
    quick(maml(), steps=2, checkpoint=tmp_path, **{name: one})
    with pytest.raises(CheckpointError, match=rf"\n  {name} was {one}, now {other}\nUse.*allow="):
        quick(maml(), steps=4, checkpoint=tmp_path, **{name: other})


@pytest.mark.parametrize(("options", "message"), [
    ({"clip": 0.0}, "clip=0.0: the largest length"), ({"ema": 1.0}, "ema=1.0: the share of the"),
    ({"autocast": torch.float16}, "choose torch.bfloat16. In float16 the small gradients"),
    ({"autocast": True}, "autocast=True: choose torch.bfloat16"),
    ({"scheduler": plateau}, "give meta_train a validation"),
    ({"scheduler": plateau, "validation": Validation(WAVES, maximize=True)},
     "has mode='min', and of this validation more is better: mode='max'")])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message): quick(maml(), steps=1, **options)


def test_a_plateau_lowers_the_step_size():
    optimizer = sgd((J := maml()).parameters())
    quick(J, steps=7, optimizer=optimizer, scheduler=plateau,  # looks at 2, 4, 6, and 7 at the end
          validation=Validation(WAVES, every=2, n_tasks=2))
    assert optimizer.param_groups[0]["lr"] == 0.005


def half_gradient(autocast=True, compiled=False, **options):
    J = maml(steps=2, lr=0.1, **options)
    if compiled: J.compile(backend="aot_eager")
    with torch.autocast("cpu", HALF, enabled=autocast): value = J(BATCHES[0])
    value.backward()
    assert value.dtype == torch.float32
    return torch.cat([p.grad.flatten() for p in J.parameters()])


@pytest.mark.parametrize(("options", "near"), [
    ({"batching": "loop"}, 0.03), ({"chunk_size": 2}, 1e-3),
    pytest.param({"compiled": True}, 1e-6, marks=[needs_compiler, compiles])], ids=str)
def test_half_precision_is_the_same_in_every_way_of_computing(options, near):
    "Eight digits of a product are kept: 0.7 % off here, and chunks are not computed in other ones."
    exact, whole, other = half_gradient(False), half_gradient(), half_gradient(**options)
    assert 3e-3 < (whole - exact).norm() / exact.norm() < 0.03
    assert (other - whole).norm() / exact.norm() < near


def test_what_a_function_is_told():
    losses = []
    log = quick(maml(), steps=3, log_every=1, watch=losses.append)
    assert losses == [row["meta_loss"] for row in log]
    for wrong in (ml.Watcher, "print"):
        with pytest.raises(TypeError, match="give a Watcher, or a function that is told"):
            quick(maml(), steps=1, watch=wrong)


class Asked(IterableDataset):
    "Batches without a length."
    def __iter__(self): return iter(BATCHES)


def as_they_are(batch): return batch


MANY = {"list": lambda: BATCHES, "function": lambda: (batch for batch in BATCHES * 3),
        "loader": lambda: DataLoader(BATCHES, batch_size=None, collate_fn=as_they_are),
        "loader without length": lambda: DataLoader(Asked(), batch_size=None),
        "tuples": lambda: [((b.support.x, b.support.y), (b.query.x, b.query.y)) for b in BATCHES]}


@pytest.mark.parametrize("name", MANY)
def test_any_batches_give_what_a_plain_loop_gives(name):
    J, mine = maml(), maml()
    meta_train(J, MANY[name](), steps=12, optimizer=sgd, progress=False)
    optimizer = sgd(mine.parameters())
    for i in range(12):
        optimizer.zero_grad()
        mine(BATCHES[i % 5]).backward()
        optimizer.step()
    assert equal(J, mine)


@forks
def test_a_loader_with_workers_that_shuffles_goes_on_bit_for_bit(tmp_path):
    def run(folder, steps, seed=0, **options):
        loader = DataLoader(BATCHES, batch_size=None, shuffle=True, num_workers=1,
                            collate_fn=as_they_are)
        meta_train(J := with_dropout(), loader, steps=steps, seed=seed, progress=False, **options,
                   checkpoint=tmp_path / folder)
        return J
    run("parts", 3)
    assert equal(run("whole", 8), run("parts", 8))
    assert same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    assert not equal(run("whole", 8, seed=1, resume=False), run("parts", 8))


def test_batches_that_end_and_what_is_none(tmp_path):
    with pytest.raises(ValueError, match="tasks ended after 5 batches, and steps=6"):
        meta_train(maml(), iter(BATCHES), steps=6, progress=False)
    with pytest.raises(ValueError, match="tasks ended after 0 batches"):
        meta_train(maml(), [], steps=6, progress=False)
    with pytest.raises(ValueError, match="gone through once only"):
        meta_train(maml(), iter(BATCHES), steps=3, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="batch_size=4, but the batches are there"):
        meta_train(maml(), BATCHES, steps=3, batch_size=4, progress=False)
    for wrong in (BATCHES[0], 3, torch.ones(2)):
        with pytest.raises(TypeError, match=r"such as \[task\]"): meta_train(maml(), wrong, steps=1)
    with pytest.raises(ValueError, match="a task is Task"):
        meta_train(maml(), [1, 2], steps=1, progress=False)
    with pytest.raises(TypeError, match="LBFGS asks for J several times"):
        quick(maml(), steps=1, optimizer=torch.optim.LBFGS)


def test_a_run_does_not_go_on_with_other_batches(tmp_path):
    assert Batches(BATCHES).identity() == Batches(list(BATCHES)).identity()
    meta_train(maml(), BATCHES, steps=2, checkpoint=tmp_path, progress=False)
    for others in (BATCHES[:4], BATCHES[::-1]):
        with pytest.raises(CheckpointError, match=r"tasks.identity was list of 5, .*, now list of"):
            meta_train(maml(), others, steps=4, checkpoint=tmp_path, progress=False)


def test_what_can_be_gone_through_once_is_tried_and_not_lost(tmp_path):
    J, plain = maml(), maml()
    meta_train(J, iter(BATCHES), steps=5, optimizer=sgd, checkpoint=tmp_path, resume=False,
               progress=False)
    meta_train(plain, BATCHES, steps=5, optimizer=sgd, progress=False)
    assert equal(J, plain)


def loader(data=BATCHES, **options):
    return DataLoader(data, **{"batch_size": None, "collate_fn": as_they_are} | options)


@pytest.mark.parametrize("other", [
    loader(BATCHES[::-1]), loader(shuffle=True), loader(collate_fn=tuple), BATCHES,
    loader(sampler=[0, 1, 2]), loader(generator=torch.Generator().manual_seed(3))])
def test_a_run_does_not_go_on_with_another_loader(tmp_path, other):
    meta_train(maml(), loader(), steps=2, checkpoint=tmp_path, progress=False)
    meta_train(maml(), loader(), steps=3, checkpoint=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"tasks.identity.*was"):
        meta_train(maml(), other, steps=4, checkpoint=tmp_path, progress=False)


@forks
def test_other_workers_are_warned_of(tmp_path):
    meta_train(maml(), loader(), steps=2, checkpoint=tmp_path, progress=False)
    with pytest.warns(UserWarning, match=r"tasks.identity.num_workers was 0, now 1"):
        meta_train(maml(), loader(num_workers=1), steps=3, checkpoint=tmp_path, progress=False)


def test_an_average_that_comes_or_goes_where_it_is_allowed(tmp_path):
    run = partial(quick, tasks=WAVES, optimizer=sgd, checkpoint=tmp_path, allow={"ema"})
    quick(plain := maml(), tasks=WAVES, optimizer=sgd, steps=6)
    for steps, ema in enumerate((None, 0.9, None, 0.5, None), 2):
        if steps == 2: run(J := maml(), steps=2)
        else:
            with pytest.warns(UserWarning, match="ema was"):
                run(J := maml(seed=steps), steps=steps, ema=ema)
    assert equal(J, plain)                                   # what descends went on all the time


def half_frozen(seed=0):
    J = maml(seed=seed)
    J.model[0].load_state_dict(maml().model[0].state_dict())
    J.model[0].requires_grad_(False)
    return J


def test_an_average_without_the_frozen_base(tmp_path):
    run = partial(quick, tasks=WAVES, ema=0.9, trainable_only=True)
    run(whole := half_frozen(), steps=5, checkpoint=tmp_path / "whole")
    run(half_frozen(), steps=2, checkpoint=tmp_path / "parts")
    run(parts := half_frozen(seed=1), steps=5, checkpoint=tmp_path / "parts")
    assert equal(whole, parts)
    state = contents(tmp_path / "parts")
    assert same(state, contents(tmp_path / "whole"))
    assert sorted(state["descends"]) == sorted(state["J"]) == ["model.2.bias", "model.2.weight"]


def test_what_fails_at_the_first_step_leaves_no_trace(tmp_path):
    "Batches, clip, an average and half precision are tried, too."
    wrong = WAVES.batch(4).map(lambda tensor: tensor.expand(*tensor.shape[:-1], 2))
    J, start = maml(), maml()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        meta_train(J, [wrong], steps=2, clip=1.0, ema=0.9, autocast=HALF, progress=False,
                   checkpoint=tmp_path / "run")
    assert equal(J, start) and not (tmp_path / "run").exists()
