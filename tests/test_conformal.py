"""Intervals that hold a share of new tasks: their rank, their promise, and who gets none."""
import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.judging.conformal import (
    Conformal,
    conformal_quantile,
    conformal_rank,
    forecasts,
    tasks_needed,
)


class Zero:
    "Forecasts 0 for everything."
    loss = staticmethod(F.mse_loss)

    def predict(self, support, x): return torch.zeros_like(x)


class Last:
    "Forecasts the last number that was seen."
    loss = staticmethod(F.mse_loss)

    def predict(self, support, x): return support.y[:, -1:].expand_as(x)


class Diverged(Zero):
    "Forecasts of the fifth task are no numbers."
    def predict(self, support, x): return x * torch.ones(len(x), 1, 1).index_fill(
        0, torch.tensor(4), torch.nan)


def normal(count, queries=4, shots=2, seed=0):
    "Tasks of standard normal numbers, which nothing foretells."
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, shots + queries, 1, generator=draw, dtype=torch.float64)
            for _ in range(2))
    return ml.Task(ml.Split(x[:, :shots], y[:, :shots]), ml.Split(x[:, shots:], y[:, shots:]))


@pytest.mark.parametrize(("count", "cover", "rank"), [
    (9, 0.9, 9), (19, 0.95, 19), (99, 0.9, 90), (99, 0.55, 55), (12, 0.9, 12), (3, 0.5, 2)])
def test_the_rank_is_the_ceiling_of_the_share_of_one_more(count, cover, rank):
    assert conformal_rank(count, cover) == rank
    scores = torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
    assert conformal_quantile(scores, cover) == rank - 1
    both = torch.stack([scores, 10 * scores], 1)
    assert conformal_quantile(both, cover).tolist() == [rank - 1, 10 * (rank - 1)]


def test_shares_are_counted_in_hundredths_and_not_in_binary_numbers():
    for hundredths in range(1, 100):
        cover, share = hundredths / 100, Fraction(hundredths, 100)
        needed = tasks_needed(cover)
        assert needed == math.ceil(share / (1 - share))
        assert conformal_rank(needed, cover) <= needed
        for count in range(needed, 150):
            assert conformal_rank(count, cover) == math.ceil((count + 1) * share)


@pytest.mark.parametrize(("count", "cover", "needed"), [
    (8, 0.9, 9), (18, 0.95, 19), (98, 0.99, 99), (11, 0.95, 19), (1, 0.75, 3)])
def test_too_few_tasks_say_how_many_are_needed(count, cover, needed):
    message = f"needs {needed} calibration tasks, and there are {count}.*{count}/{count + 1}"
    with pytest.raises(ValueError, match=message): conformal_rank(count, cover)
    with pytest.raises(ValueError, match=message): Conformal(Zero(), normal(count), cover=cover)


@pytest.mark.parametrize("cover", [0, 1, 1.5, -0.1, 90, "0.9", None])
def test_a_share_is_between_none_and_all(cover):
    with pytest.raises(ValueError, match="between 0 and 1"): conformal_rank(50, cover)


@pytest.mark.parametrize("cover", [0.5, 0.6, 0.75, 0.8])
def test_of_all_orders_exactly_the_promised_share_is_held(cover):
    values = [0.3, 2.0, 7.0, 0.1, 5.0, 1.0]
    held = [order[-1] <= conformal_quantile(torch.tensor(order[:-1]), cover)
            for order in itertools.permutations(torch.tensor(values).tolist())]
    assert Fraction(int(sum(held)), len(held)) == Fraction(conformal_rank(5, cover), 6) >= cover


@pytest.mark.parametrize("count", [9, 30, 99])
def test_what_one_set_holds_is_distributed_as_a_uniform_number_of_that_rank(count):
    "Normal scores |z|: the share that is held is 2Φ(q) − 1, Beta(k, n + 1 − k)."
    draw = torch.Generator().manual_seed(count)
    scores = torch.randn(count, 20_000, generator=draw, dtype=torch.float64).abs()
    held = torch.special.erf(conformal_quantile(scores, 0.9) / 2**0.5)
    k = conformal_rank(count, 0.9)
    beta = torch.distributions.Beta(torch.tensor(float(k)), torch.tensor(float(count + 1 - k)))
    assert abs(held.mean() - k / (count + 1)) < 4 * beta.stddev / 20_000**0.5
    torch.testing.assert_close(held.std(), beta.stddev.double(), rtol=0.03, atol=0)


def test_each_place_is_held_in_its_share_and_a_whole_task_in_its():
    "Known normal numbers: each place 2Φ(q) − 1, all four at once its fourth power."
    shares = {False: [], True: []}
    for seed in range(300):
        calibration = normal(19, seed=seed)
        for together in shares:
            width = Conformal(Zero(), calibration, together=together).width
            share = torch.special.erf(width / 2**0.5)
            shares[together].append(share**4 if together else share.mean())
    for found in shares.values():
        found = torch.stack(found)
        assert abs(found.mean() - 18 / 20) < 4 * found.std() / 300**0.5


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("scale", [None, lambda x, said: 0.1 + x.abs()])
def test_what_is_held_lies_in_the_interval(together, scale):
    about = Conformal(Last(), normal(50, seed=1), cover=0.8, together=together, scale=scale)
    new = normal(200, seed=2)
    low, high = about.interval(new.support, new.query.x)
    inside = (low <= new.query.y) & (new.query.y <= high)
    assert torch.equal(about.holds(new), inside.all(1)[:, 0] if together else inside)
    torch.testing.assert_close((low + high) / 2, Last().predict(new.support, new.query.x))
    factor = 1 if scale is None else scale(new.query.x, low)
    torch.testing.assert_close(high - low, 2 * (about.width * factor).expand_as(low))
    assert about.width.shape == (() if together else (4, 1))


def test_the_width_is_that_of_the_scores_in_order():
    task = normal(10, queries=1)
    about = Conformal(Zero(), task, cover=0.8)
    assert about.width[0, 0] == task.query.y.abs().flatten().sort().values[8]
    assert (about.count, about.rank) == (10, 9)


def test_an_adapted_model_forecasts_as_it_does_elsewhere():
    tasks = ml.tasks.Sinusoids(shots=3)
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.05, steps=2)
    new = tasks.batch(4)
    said = forecasts(J, new.support, new.query.x)
    torch.testing.assert_close(said, J.predict(J.adapt(new.support), new.query.x).detach())
    about = Conformal(J, tasks.batch(30, seed=1))
    assert not about.width.requires_grad and about.holds(new).shape == (4, 3, 1)


def test_tasks_of_unequal_size_and_padding_are_held_as_a_whole():
    parts = [normal(6, queries=2), normal(5, queries=5, seed=1)]
    about = Conformal(Zero(), parts, cover=0.8, together=True)
    padded = Conformal(Zero(), ml.tasks.padded(parts), cover=0.8, together=True)
    largest = torch.cat([part.query.y.abs().amax((1, 2)) for part in parts])
    assert about.width == padded.width == largest.sort().values[9]
    with pytest.raises(ValueError, match="2, 5 queries"):
        Conformal(Zero(), parts, cover=0.8)
    with pytest.raises(ValueError, match="together=True"):
        Conformal(Zero(), ml.tasks.padded(parts), cover=0.8)


def test_a_task_that_learned_from_more_is_promised_nothing():
    about = Conformal(Zero(), normal(9, shots=2))
    more, longer = normal(3, shots=3), normal(3, queries=6)
    with pytest.raises(ValueError, match="learns from 3 examples, and those of calibration from 2"):
        about.holds(more)
    with pytest.raises(ValueError, match="6 queries, and there are widths for 4"):
        about.interval(longer.support, longer.query.x)
    free = Conformal(Zero(), normal(9), together=True)
    assert free.interval(longer.support, longer.query.x)[0].shape == (3, 6, 1)


def test_what_has_no_distance_has_no_interval():
    classes = ml.tasks.one(torch.rand(2, 3), torch.tensor([0, 1]), torch.rand(2, 3),
                           torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="about numbers"): Conformal(Zero(), [classes] * 9)
    with pytest.raises(ValueError, match="calibration task 4 is not a number"):
        Conformal(Diverged(), normal(9))
    for scale, message in ((lambda x, said: said, "0 somewhere"),
                           (lambda x, said: said[:, :1] + 1, "one number for each")):
        with pytest.raises(ValueError, match=message): Conformal(Zero(), normal(9), scale=scale)
