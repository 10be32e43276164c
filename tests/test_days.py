"""`reproduce.days` on a stand-in for its data: 30 days that follow a rule, and one that is cut."""
import numpy as np
import pandas
import pytest
import torch

from reproduce import days

STEPS = 3  # of networks, which here need not be good


@pytest.fixture(scope="module")
def all_days():
    """log NOx = the hour's + traffic − wind + the day's own number; the last day ends at noon."""
    random, rows = np.random.default_rng(0), []
    for day in range(31):
        own = random.normal()
        for hour in range(24 if day < 30 else 12):
            traffic, wind = random.normal(7, 1), random.uniform(0.5, 2)
            row = 24 * day + hour + (day > 14)               # clocks were changed
            rows.append((row, 373 + day, own + np.sin(hour) + traffic - wind,
                         traffic, wind))
    names = ["rownames", "julday", "LNOx", "LNOxEm", "sqrtWS"]
    return days.whole_days(pandas.DataFrame(rows, columns=names).sample(frac=1, random_state=0))


def test_days_are_whole_in_order_and_of_one_week(all_days):
    assert all_days.x.shape == (30, 24, 3) and all_days.y.shape == (30, 24)
    assert torch.equal(all_days.x[..., 0], torch.arange(24.0).expand(30, -1).double())
    assert all_days.week.tolist() == [day // 7 for day in range(30)]
    support, query = all_days.task()
    assert torch.equal(torch.cat([support.y, query.y], 1)[..., 0], all_days.y)


def test_no_week_is_dealt_to_two_sides(all_days):
    sides = [set(part.week.tolist()) for part in days.dealt(all_days)]
    assert set.union(*sides) == {0, 1, 2, 3, 4} and sum(map(len, sides)) == 5


def test_errors_are_those_of_the_rule(all_days):
    """Who knows the rule but for the day's number errs by its square; who moves, by nothing."""
    def rule(support, x): return torch.sin(x[..., 0]) + x[..., 1] - x[..., 2]
    own = (all_days.y - rule(None, all_days.x))[:, 0]
    torch.testing.assert_close(days.error(rule, all_days), own.square())
    moved = days.error(days.with_offset(rule, 1.0), all_days)
    torch.testing.assert_close(moved, torch.zeros_like(moved))
    half = days.error(days.with_offset(rule, 0.5), all_days)
    torch.testing.assert_close(half, (own / 2).square())


def test_a_ridge_of_weight_zero_is_least_squares(all_days):
    inputs = days.features(all_days.x).flatten(0, 1)
    found = days.solved(inputs, all_days.y.flatten(), 1e-9)
    wanted = torch.linalg.lstsq(inputs, all_days.y.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(inputs @ found, inputs @ wanted, atol=1e-5, rtol=0)
    weight = 3.0
    padded = torch.cat([inputs, weight**0.5 * torch.eye(inputs.shape[1]).double()])
    y = torch.cat([all_days.y.flatten(), torch.zeros(inputs.shape[1]).double()])
    torch.testing.assert_close(days.solved(inputs, all_days.y.flatten(), weight),
                               torch.linalg.lstsq(padded, y[:, None]).solution[:, 0])


def test_last_value_and_mean_of_the_hour(all_days):
    support, query = all_days.task()
    last = days.last_value(all_days)(support, query.x)
    assert torch.equal(last, all_days.y[:, 11:12].expand(-1, 12))
    assert torch.equal(days.by_hour(all_days)(support, query.x)[0], all_days.y.mean(0)[12:])


@pytest.mark.parametrize("name", days.PLAIN)
def test_rivals_without_a_network_forecast_each_evening(name, all_days):
    make, tried = days.PLAIN[name]
    error = days.error(make(all_days, *tried[0]), all_days)
    assert error.shape == (30,) and error.isfinite().all()
    if "moved" in name:
        assert error.mean() < days.error(days.by_hour(all_days), all_days).mean()


@pytest.mark.parametrize("name", days.NETWORKS)
def test_networks_forecast_each_evening(name, all_days):
    make, tried = days.NETWORKS[name]
    one, two = (days.error(make(all_days, tried[0][0], STEPS, seed), all_days) for seed in (0, 1))
    assert one.shape == (30,) and one.isfinite().all() and not torch.equal(one, two)


def test_a_table_sets_all_beside_the_trees(all_days):
    answers = {name: [days.by_hour(all_days)] for name in ("trees on the morning", "mean")}
    answers["last value"] = [days.last_value(all_days)]
    table = days.table(answers, all_days)
    assert table["mean"]["less trees"] == 0 and table["mean"]["interval less trees"] == [0, 0]
    apart = table["last value"]["mean"] - table["trees on the morning"]["mean"]
    assert table["last value"]["less trees"] == pytest.approx(apart)
    low, high = table["last value"]["interval"]
    assert low < table["last value"]["mean"] < high
