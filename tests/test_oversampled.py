"""Oversampled: shares of the tail by hand, chances in the limit, runs of every kind, its errors."""
import copy
import subprocess
from pathlib import Path
from typing import ClassVar

import forked
import pytest
import torch
import torch.nn.functional as F
from helpers import close, quick
from test_whole_run import Plain, plain_loop

import metalit as ml
from metalit.batching import many_steps
from metalit.tasks.oversampled import chosen, tail_of
from metalit.training import whole_run
from metalit.training.identity import identity


class TwoParts(ml.tasks.InParts):
    "Constants to learn: 0 for nineteen tasks of twenty, 3 for one."
    chances = torch.tensor([0.95, 0.05], dtype=torch.float64)

    def of_parts(self, part, random):
        x = random.uniform((len(part), 2, 1))
        part_set = ml.Split(x, 3.0 * part[:, None, None] + 0 * x)
        return ml.Task(part_set, part_set)


def start(seed=0): return ml.MAML(ml.models.mlp(1, 4, 1, seed=seed), F.mse_loss, lr=0.05)


def test_the_tail_of_a_sample_with_weights_by_hand():
    values = torch.tensor([2.0, 5.0, 1.0, 3.0]).double()
    weights = torch.tensor([1.0, 2.0, 5.0, 2.0]).double()    # shares .1, .2, .5, .2
    for share, right in ((0.1, [0, 1, 0, 0]), (0.25, [0, 0.8, 0, 0.2]), (0.5, [0.2, 0.4, 0, 0.4]),
                         (1.0, [0.1, 0.2, 0.5, 0.2])):
        close(tail_of(values, weights, share), torch.tensor(right, dtype=torch.float64))
    as_pooled = (tail_of(values, torch.ones(4).double(), 0.6) * values).sum()
    close(as_pooled, ml.Tail(0.6)(values))


def test_parts_come_by_their_chances_and_never_by_one_of_zero():
    chances = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    parts = chosen(chances, 20_000, ml.tasks.Random.of_steps(0, [0], 20_000))
    found = torch.bincount(parts, minlength=6) / 20_000
    assert (found - chances).abs().max() < 0.012 and (found[chances == 0] == 0).all()


@pytest.mark.parametrize(("share", "aim"), [(0.05, 1.0), (0.02, 1.0), (0.1, 0.5), (1.0, 0.05)])
def test_chances_become_those_of_the_tail(share, aim):
    "Samples with exactly the chances that are drawn by: no chance is left, and no bias."
    family = ml.tasks.Oversampled(TwoParts(), share, step=0.5, kept=0.2)
    expected = 0.05
    for _ in range(3):
        q = 0.2 * 0.05 + 0.8 * expected
        close(family.chances[1], torch.tensor(q, dtype=torch.float64))
        # 10,000 tasks, so that all counts are whole to four digits
        hard = round(10_000 * q)
        parts = torch.cat([torch.ones(hard), torch.zeros(10_000 - hard)]).long()
        family.saw(parts, 3.0 * parts)
        expected = 0.5 * expected + 0.5 * aim
        assert family.aim[1].item() == pytest.approx(expected, abs=2e-3)
        expected = family.aim[1].item()
    if share == 0.05: assert family.chances[1] > 0.7


def test_importance_weights_take_back_what_is_drawn_more_often():
    "Twelve easy and eight hard tasks, drawn by .6 and .4, stand for nineteen and one."
    family = ml.tasks.Oversampled(TwoParts(), 0.05, kept=0.5, step=1.0)
    family.aim = torch.tensor([0.25, 0.75]).double()
    close(family.chances, torch.tensor([0.6, 0.4], dtype=torch.float64))
    parts = torch.tensor([0, 1] * 8 + [0] * 4)
    family.saw(parts, torch.where(parts == 1, 9.0, torch.arange(20.0) / 20))
    close(family.aim, torch.tensor([0.0, 1.0]).double())
    family = ml.tasks.Oversampled(TwoParts(), 0.1, kept=0.5, step=1.0)
    family.aim = torch.tensor([0.25, 0.75]).double()
    family.saw(parts, torch.where(parts == 1, 9.0, torch.arange(20.0) / 20))
    close(family.aim, torch.tensor([0.5, 0.5]).double())


def test_a_batch_has_what_the_chances_say_and_depends_on_them_seed_and_step_alone():
    family = ml.tasks.Oversampled(TwoParts())
    family.load_state_dict({"aim": torch.tensor([0.0, 1.0]).double()})
    one = family.batch(2000, seed=3, step=7)
    assert (one.ids == 1).double().mean() == pytest.approx(0.81, abs=0.03)
    assert torch.equal(one.support.x, family.batches(2000, 3, range(5, 9))[2].support.x)
    assert torch.equal(one.support.x, [*family.stream(2000, 8, 3)][7].support.x)
    assert torch.equal(one.support.y[:, 0, 0], 3.0 * one.ids)
    unseen = family.held_out(2000)
    assert torch.equal(unseen.ids, TwoParts().held_out(2000).ids)
    assert not torch.equal(family.asked(3, 10).support.x, family.batch(200, 3, 10).support.x)
    assert copy.deepcopy(family).chances.equal(family.chances)


def test_training_looks_at_multiples_of_its_steps_and_after_the_step_before():
    family, J = ml.tasks.Oversampled(TwoParts(), looks_every=3, looked_at=40), start()
    quick(J, tasks=family, steps=7, batch_size=4, seed=5)
    again, K = ml.tasks.Oversampled(TwoParts(), looks_every=3, looked_at=40), start()
    optimizer = torch.optim.Adam(K.parameters(), lr=1e-3)
    for step in range(7):
        if step in (3, 6):
            asked = again.asked(5, step)
            again.saw(asked.ids, K.curve(asked, [1])[:, 0])
        optimizer.zero_grad()
        K(again.batch(4, seed=5, step=step)).backward()
        optimizer.step()
    assert torch.equal(family.aim, again.aim) and family.aim[1] > 0.05
    for one, other in zip(J.parameters(), K.parameters(), strict=True): close(one, other, 1e-6)


class Looks:
    "Small runs, plain, with a graph for each step, or in pieces of many steps without a compiler."
    def __init__(self, monkeypatch):
        monkeypatch.setattr(whole_run, "ManySteps", Plain)
        monkeypatch.setattr(many_steps, "_while", plain_loop)

    def run(self, way, steps, **options):
        family, J = ml.tasks.Oversampled(TwoParts(), looks_every=3, looked_at=20), start().double()
        if way == "a graph for each step": J.compile(backend="eager")
        watch = {"watch": abs} if way == "a graph for each step" else {}  # which forbids pieces
        quick(J, tasks=family, steps=steps, compile=way != "plain", **watch, **options)
        return [family.aim, *(p.detach() for p in J.parameters())]

    whole: ClassVar[dict] = {}

    def not_stopped(self, way):
        "What eight steps end at, computed once for each way."
        if way not in self.whole: self.whole[way] = self.run(way, 8)
        return self.whole[way]


@pytest.fixture
def looks(monkeypatch): return Looks(monkeypatch)


WAYS = ("plain", "a graph for each step", "pieces")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(way, stop, looks, tmp_path):
    whole = looks.not_stopped(way)
    looks.run(way, stop, checkpoint=tmp_path)
    rest = looks.run(way, 8, checkpoint=tmp_path)
    assert whole[0][1] > 0.3
    for one, other in zip(whole, rest, strict=True): assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("way", WAYS[1:])
def test_compiled_runs_are_the_same_run(way, looks, monkeypatch):
    pieces, real = [], whole_run.WholeRun.piece
    monkeypatch.setattr(whole_run.WholeRun, "piece",
                        lambda self, step: pieces.append(found := real(self, step)) or found)
    for one, other in zip(looks.not_stopped("plain"), looks.run(way, 8), strict=True):
        close(one, other, 1e-9)
    assert sum(map(len, pieces)) == (8 if way == "pieces" else 0)


TEAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from test_oversampled import TwoParts, ml, quick, start, torch

torch.set_num_threads(1)
rank, store, out = int(sys.argv[2]), *sys.argv[3:]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
family, J = ml.tasks.Oversampled(TwoParts(), looks_every=3, looked_at=20), start().double()
quick(J, tasks=family, steps=8)
torch.save([family.aim, *(p.detach() for p in J.parameters())], f"{out}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_draw_by_the_same_chances_as_one(looks, tmp_path):
    (tmp_path / "run.py").write_text(TEAM)
    both = [forked.python(tmp_path / "run.py", Path(__file__).parent, rank, tmp_path / "store",
                          tmp_path / "found", stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in both:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    right = looks.not_stopped("plain")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found.{rank}", weights_only=True)
        for one, other in zip(found, right, strict=True): close(one, other, 1e-12)


def test_chances_are_a_runs_state_and_no_part_of_what_it_is(tmp_path):
    family = ml.tasks.Oversampled(ml.tasks.BinnedSinusoids())
    before = identity(family)
    family.saw(family.batch(50).ids, torch.arange(50.0))
    assert identity(family) == before
    quick(start(), tasks=family, steps=2, batch_size=4, checkpoint=tmp_path)
    with pytest.raises(ml.CheckpointError, match=r"tasks.*share.*0.05.*0.1"):
        quick(start(), tasks=ml.tasks.Oversampled(family.family, 0.1), steps=3, batch_size=4,
              checkpoint=tmp_path)
    kept = ml.load_checkpoint(tmp_path / "checkpoint.pt", start())["tasks"]
    assert torch.equal(kept["aim"], family.aim)


def test_waves_have_the_sizes_and_frequencies_of_their_parts():
    bins = ml.tasks.bins
    family = ml.tasks.BinnedSinusoids(amplitudes=[(1.0, 1.0), (3.0, 3.0)], shots=30,
                                      frequencies=bins(1.0, 4.0, 3), phase=(0.0, 0.0))
    close(family.chances, torch.full((6,), 1 / 6, dtype=torch.float64))
    task = family.of_parts(torch.tensor([0, 5, 2]), ml.tasks.Random.of_steps(0, [0], 3))
    for i, (size, low) in enumerate(((1.0, 1.0), (3.0, 3.0), (1.0, 3.0))):
        x, y = (part[i, :, 0].double() for part in task.support[:2])
        asked = torch.linspace(low, low + 1, 4001).double()
        errors = (y - size * torch.sin(asked[:, None] * x)).abs().amax(1)
        assert errors.min() < 0.01
    as_published = ml.tasks.BinnedSinusoids()
    close(as_published.chances, torch.full((100,), 0.01).double(), 1e-9)
    large = as_published.held_out(500)
    assert large.query.x.shape == (500, 100, 1)
    top = large.query.y.abs().amax((1, 2))
    assert ((top > 4.9) == (large.ids >= 95)).all() and (top[large.ids < 95] < 1.0501).all()


def test_the_distribution_over_tasks_takes_these_ids():
    J = ml.MetaLoss(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss, pooling=ml.WorstCase(tasks=100))
    J(ml.tasks.BinnedSinusoids().batch(6)).backward()
    assert J.pooling.scores.grad.count_nonzero() > 1


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: ml.tasks.Oversampled(ml.tasks.Sinusoids()), TypeError, "give it a family in parts"),
    (lambda: ml.tasks.Oversampled(TwoParts(), 0.0), ValueError, "share=0.0: a share, above 0"),
    (lambda: ml.tasks.Oversampled(TwoParts(), kept=float("nan")), ValueError, "kept=nan: a share"),
    (lambda: ml.tasks.Oversampled(TwoParts(), looks_every=0), ValueError, "looks_every=0"),
    (lambda: ml.tasks.Oversampled(TwoParts(), looked_at=1), ValueError, "looked_at=1"),
    (lambda: ml.tasks.Augmented(ml.tasks.Oversampled(TwoParts())), TypeError,
     "learns from how its own"),
    (lambda: ml.tasks.InParts().of_parts(None, None), TypeError, "of_parts"),
    (lambda: ml.tasks.bins(0.0, 1.0, 0), ValueError, "count=0"),
    (lambda: ml.tasks.BinnedSinusoids(amplitudes=[]), ValueError, "amplitudes is empty"),
    (lambda: ml.tasks.BinnedSinusoids(x=(1.0, -1.0)), ValueError, "x has the interval"),
    (lambda: ml.tasks.BinnedSinusoids(frequencies=[(1.0, 1.0), (1.0, 2.0)]), ValueError,
     "an interval without length"),
    (lambda: ml.tasks.BinnedSinusoids(shots=0), ValueError, "shots=0")])
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message): make()


def test_what_was_seen_is_checked():
    saw = ml.tasks.Oversampled(TwoParts()).saw
    for parts, values, message in (([0, 1], [1.0], "both have one number for each task"),
                                   ([0, 1], [1.0, float("nan")], "1 of 2 tasks is no number"),
                                   ([0, 2], [1.0, 2.0], "a task is of part 2, and there are 2")):
        with pytest.raises(ValueError, match=message):
            saw(torch.tensor(parts), torch.tensor(values))
    family = ml.tasks.Oversampled(TwoParts())
    with pytest.raises(ValueError, match="chances of 3 parts, and the family has 2"):
        family.load_state_dict({"aim": torch.ones(3) / 3})


class Uneven(TwoParts):
    chances = torch.tensor([0.9, 0.05])


def test_chances_have_to_be_some():
    with pytest.raises(ValueError, match=r"the chances of Uneven are .* 1 together"):
        ml.tasks.Oversampled(Uneven())


def test_values_of_float32_and_an_infinite_one_are_sorted_as_they_are():
    family = ml.tasks.Oversampled(TwoParts(), 0.5, step=1.0)
    family.saw(torch.tensor([0, 0, 1, 0]), torch.tensor([1.0, 2.0, float("inf"), 0.0]))
    assert family.aim.dtype == torch.float64 and family.aim.sum() == pytest.approx(1)




def test_the_experiment_judges_on_all_parts_and_compares_seed_by_seed():
    from reproduce import tails
    task = tails.unseen(tails.FEW_ARE_LARGE)
    assert torch.equal(task.ids.bincount(), torch.full((100,), 20))
    J = ml.MAML(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss)
    found = tails.measured(J, task)
    whole = 0.95 * found["small waves"][1] + 0.05 * found["large waves"][1]
    assert whole == pytest.approx(found["mean"][1])
    lower = {kind: [value - 1 for value in of] for kind, of in found.items()}
    runs = {"MAML": [found, found], "Tail": [lower, lower]}
    less = tails.beside(runs)["Tail"]["worst 5 %"]["4"]
    assert less["mean"] == pytest.approx(-1) and less["below"] == less["seeds"] == 2
