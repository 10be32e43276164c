"""`find_lr`: where the best is known, what may not matter, and what is refused."""
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import same

import metalit as ml
from metalit.judging.step_size import best_of_all, closer, find_lr, rung, up_and_down
from metalit.training.evaluation import Evaluation
from reproduce import step_size

BOWLS = ml.tasks.Quadratics(dim=3, spread=2.0)
QUICK = {"steps": 2, "n_tasks": 200, "batch_size": 4}


def bowl(lr=0.1, steps=1) -> ml.MetaLoss:
    return ml.MAML(ml.models.Point(3), ml.tasks.half_square, lr=lr, steps=steps)


def left_over(alpha: float, steps: int, low: float = 0.3, high: float = 2.0) -> float:
    "The mean of (1 − αλ)^2K over λ."
    power = 2 * steps + 1
    return ((1 - alpha * low)**power - (1 - alpha * high)**power) / (alpha * (high - low) * power)


def right(steps: int) -> float:
    return min((k / 5000 for k in range(50, 5000)), key=lambda alpha: left_over(alpha, steps))


def test_the_closed_form_has_its_two_ends():
    "One step: E λ / E λ². Many: 2 / (a + b)."
    assert right(1) == pytest.approx(1.15 / ((8 - 0.027) / (3 * 1.7)), abs=1e-3)
    assert right(400) == pytest.approx(2 / 2.3, abs=0.02)


@pytest.mark.parametrize(("steps", "own"), [(1, 0.1), (5, 0.1), (1, 0.002), (5, 20.0)])
def test_on_bowls_it_comes_as_near_as_its_ladder(steps, own):
    found = find_lr(bowl(own, steps), BOWLS, **QUICK)
    assert 1 / 1.26 < found.rate / right(steps) < 1.26
    assert found.own == own and not found.is_at_end and found.rate in found.level


def test_the_same_seed_gives_the_same_and_nothing_else_moves():
    J, task = bowl(), BOWLS.batch(2)
    torch.manual_seed(3)
    before, state = J.state_dict(), torch.get_rng_state()
    value = J(task).item()
    asked = {"steps": 2, "n_tasks": 20, "batch_size": 4, "rates": [0.1, 0.5]}
    once, again, other = (find_lr(J, BOWLS, seed=seed, **asked) for seed in (0, 0, 1))
    assert once.tried == again.tried != other.tried
    assert J.inner.lr == 0.1 and J(task).item() == value and same(before, J.state_dict())
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in J.parameters())


class Unread(ml.tasks.Quadratics):
    "A family whose held-out tasks nobody may see."
    def held_out(self, n_tasks, seed=0): raise AssertionError("these are for judging")


def test_no_held_out_task_is_read():
    assert find_lr(bowl(), Unread(3), rates=[0.1, 0.5], **QUICK).rate == 0.5


def ladder(low: float, high: float):
    "Losses of a valley between two numbers, about which others diverge."
    def look(lr):
        if lr > 4 * high: return None
        return Evaluation([1], torch.tensor([[abs(math.log(lr / math.sqrt(low * high)))]] * 2), 0)
    return look


@pytest.mark.parametrize("best", [1e-4, 0.03, 0.7, 300.0])
def test_a_ladder_walks_to_where_the_valley_is(best):
    look = ladder(best, best)
    found = closer(look, closer(look, up_and_down(look, 0.03)))
    assert 1 / 1.26 < best_of_all(found) / best < 1.26


def test_rungs():
    assert [rung(0.01, place) for place in (-3, -2, -1, 0, 1, 2, 3)] == [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert rung(0.037, 0) == 0.037


def test_where_all_or_some_diverge():
    with pytest.raises(ml.DivergedError, match="each of the step sizes"):
        find_lr(bowl(), BOWLS, rates=[1e200, 1e250], **QUICK)
    found = find_lr(bowl(), BOWLS, rates=[0.5, 1e200], **QUICK)
    assert found.rate == 0.5 and found.tried[1].loss is None and not found.tried[1].is_level
    assert "diverges" in str(found) and "beyond" in repr(found)


def test_fewer_steps_where_time_is_short():
    found = find_lr(bowl(), BOWLS, rates=[0.1, 0.5], seconds=1e-9, n_tasks=20)
    assert found.meta_steps == 1 and "1 meta-steps" in repr(found)


def test_differences_are_those_of_the_same_tasks():
    "With hundreds of tasks of unlike size the losses overlap, and their differences do not."
    found = find_lr(bowl(), BOWLS, rates=[0.6, 0.7], **QUICK)
    worse = next(one for one in found.tried if one.lr != found.rate)
    assert worse.above == pytest.approx(worse.loss - min(one.loss for one in found.tried))
    assert worse.above_ci95 < worse.ci95


def of(inner) -> ml.MetaLoss:
    return ml.MetaLoss(ml.models.mlp(1, 4, 1), F.mse_loss, inner=inner)


class NoRate(ml.InnerLoop):
    def step(self, loss, phi, state, k): return phi, state


@pytest.mark.parametrize(("make", "says"), [
    (lambda: ml.SGD(learn_lr=True), "is learned by the outer loop"),
    (lambda: ml.SGD(lambda step, steps: 0.1), "follows a schedule"),
    (lambda: ml.SGD({"0": 0.1, "*": 0.2}), "several step sizes"),
    (lambda: ml.SGD(steps=0), "takes no steps"),
    (lambda: NoRate(1), "has no step size lr")])
def test_who_has_no_plain_rate_is_told_the_way_out(make, says):
    with pytest.raises(ValueError, match=says): find_lr(of(make()), ml.tasks.Sinusoids())


class Deaf(ml.SGD):
    "A step whose length is its own."
    def step(self, loss, phi, state, k): return {name: 0.9 * p for name, p in phi.items()}, state


def test_a_step_size_that_nobody_reads_is_noticed():
    with pytest.raises(ValueError, match="Deaf does not use its lr"):
        find_lr(of(Deaf()), ml.tasks.Sinusoids(), rates=[0.01, 0.1], **QUICK)


def test_learned_factors_start_where_it_says():
    J = ml.MetaSGD(ml.models.mlp(1, 4, 1), F.mse_loss, lr=0.01)
    assert find_lr(J, ml.tasks.Sinusoids(), rates=[0.01, 0.02], **QUICK).own == 0.01


def test_tasks_of_unequal_size_and_a_model_in_double():
    rows = {f"{i}": (torch.rand(5 + i, 1), torch.rand(5 + i, 1)) for i in range(6)}
    J = ml.MAML(ml.models.mlp(1, 4, 1).double(), F.mse_loss)
    for family in (ml.tasks.Given(rows, shots=3), ml.tasks.Sinusoids()):
        assert len(find_lr(J, family, rates=[0.01, 0.02], **QUICK).tried) == 2


def test_other_mistakes():
    sines = ml.tasks.Sinusoids()
    with pytest.raises(TypeError, match="a family of tasks"): find_lr(bowl(), BOWLS.batch(4))
    with pytest.raises(TypeError, match="found Sequential"): find_lr(ml.models.mlp(1, 1), sines)
    J = bowl()
    with pytest.raises(TypeError, match="belongs to J"):
        find_lr(J, BOWLS, optimizer=torch.optim.SGD(J.parameters(), 0.1))


def test_the_measurement_is_a_command(tmp_path, monkeypatch):
    "What was measured of other settings stays; a choice costs what the grid says."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "step_size.json").write_text('{"settings": {"5": {"as": "it was"}}}')
    step_size.main(["--only", "1", "--share", "0.004", "--seeds", "2"])
    settings = json.loads((tmp_path / "results" / "step_size.json").read_text())["settings"]
    assert settings["5"] == {"as": "it was"}
    last = settings["1"]["grid"][str(settings["1"]["meta_steps"])]
    for losses, row in zip(last, settings["1"]["costs"], strict=True):
        assert row["loss"] == min(losses) and row["costs"]["0.01"] >= 0
        for name, rate in row["rates"].items():
            assert row["costs"][name] == step_size.at(rate, losses) - row["loss"]
    assert step_size.at(0.01, range(10)) == 3 and 3 < step_size.at(0.012, range(10)) < 4


def test_it_prints_in_a_terminal_and_in_a_notebook():
    found = find_lr(bowl(), BOWLS, rates=[0.1, 0.5, 0.6], **QUICK)
    assert all(len(line) <= 80 for line in str(found).splitlines())
    assert found._repr_markdown_().count("\n|") == 4 and "J has 0.1" in repr(found)
    assert replace(found, own=found.rate).__repr__().count("as J's own") == 1
    ax = found.picture()
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "inner step size α"
