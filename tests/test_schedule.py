"""Weights and rates that change with the meta-step: any loop, checkpoints, compiled graphs."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import maml, quick, same

import metalit as ml
from metalit.schedule import Cosine, Linear, Times, lifted, numbers_of, scheduled, times

RATE, WEIGHT = Linear(0.1, 0.01), Cosine(0.3, 0.0)
SINES = ml.tasks.Sinusoids(shots=4, queries=3)


def changing(dtype=torch.float64, lr=RATE, weight=WEIGHT, second=None, **options) -> ml.MetaLoss:
    "A smooth MAML with a rate and a weight that have schedules."
    model = ml.models.mlp(1, 5, 1, activation=torch.nn.Tanh, seed=2).to(dtype)
    terms = ml.QueryLoss() + weight * (ml.GradientNorm() if second is None else second)
    return ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(lr, 2), terms=terms, **options)


def constant(J: ml.MetaLoss, step: int, steps: int) -> ml.MetaLoss:
    "J with plain numbers: those that its schedules give at a step."
    weights = [weight(step, steps) if callable(weight) else weight for weight, _ in J.terms.parts()]
    parts = zip(weights, copy.deepcopy(J.terms.terms), strict=True)
    return ml.MetaLoss(J.model, F.mse_loss, inner=ml.SGD(RATE(step, steps), 2),
                       terms=ml.Sum(*parts))


def slopes(J, task):
    value = J(task)
    return value.detach(), torch.autograd.grad(value, list(J.model.parameters()))


# The schedules themselves

@pytest.mark.parametrize(("schedule", "expected"), [
    (Linear(1.0, 0.0), [1.0, 0.75, 0.5, 0.25, 0.0]),
    (Linear(0.1, 0.5), [0.1, 0.2, 0.3, 0.4, 0.5]),
    (Linear(1.0, 0.0, until=0.5), [1.0, 0.5, 0.0, 0.0, 0.0]),
    (Linear(1.0, 0.0, until=0.01), [1.0, 0.0, 0.0, 0.0, 0.0]),
    (Cosine(1.0, 0.0), [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
    (Cosine(0.0, 2.0, until=0.5), [0.0, 1.0, 2.0, 2.0, 2.0]),
    (Times(Linear(1.0, 0.0), 3.0), [3.0, 2.25, 1.5, 0.75, 0.0])])
def test_five_steps(schedule, expected):
    assert [schedule(step, 5) for step in range(5)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_run_of_one_step_has_the_start(kind):
    assert kind(0.3, 0.0)(0, 1) == 0.3


@pytest.mark.parametrize("until", [0.0, -0.5, 1.5])
def test_until_is_a_share_of_the_run(until):
    with pytest.raises(ValueError, match=f"until={until}"): Linear(1.0, 0.0, until=until)


def test_names():
    assert repr(Linear(1.0, 0.5)) == "Linear(1.0, 0.5, until=1.0)"
    assert repr(Cosine(1.0, 0.0, until=0.5)) == "Cosine(1.0, 0.0, until=0.5)"
    assert repr(times(0.5, Linear(1.0, 0.0))) == "0.5 * Linear(1.0, 0.0, until=1.0)"
    assert "Linear(0.1, 0.01" in repr(ml.SGD(RATE))


def test_products_of_a_number_and_a_schedule():
    assert times(2.0, 3.0) == 6.0
    assert times(2.0, RATE)(0, 2) == times(RATE, 2.0)(0, 2) == pytest.approx(0.2)
    terms = 2.0 * (RATE * ml.QueryLoss() + 0.5 * ml.GradientNorm())
    assert [weight(1, 2) if callable(weight) else weight for weight, _ in terms.parts()] == [
        pytest.approx(0.02), 1.0]
    terms.at(1, 2)
    assert terms.weights == [pytest.approx(0.02), 1.0]
    with pytest.raises(TypeError, match=r"Linear\(0.1.* times Cosine\(0.3.*written as one"):
        WEIGHT * (RATE * ml.QueryLoss())


# J.at, and any loop

def test_at_sets_every_number_and_the_first_ones_are_those_of_step_0():
    J = changing()
    assert (J.inner.lr, J.terms.weights) == (RATE(0, 10), [1.0, WEIGHT(0, 10)])
    for step in (3, 9, 0):
        J.at(step, 10)
        assert (J.inner.lr, J.terms.weights) == (RATE(step, 10), [1.0, WEIGHT(step, 10)])
    assert type(J.inner.lr) is float


def test_without_schedules_at_changes_nothing():
    J = maml()
    before = numbers_of(J)
    J.at(3, 10)
    assert before == numbers_of(J) == {} and scheduled(J) == []
    assert (J.inner.lr, J.terms.weights) == (0.01, [1.0])


@pytest.mark.parametrize("step", [0, 4, 9])
def test_the_value_is_that_of_plain_numbers(step, sines):
    J = changing()
    J.at(step, 10)
    assert same(slopes(J, sines), slopes(constant(J, step, 10), sines))


def test_a_plain_loop_and_meta_train_give_the_same():
    trained, looped, unchanged = changing(), changing(), changing(lr=0.1, weight=0.3)
    quick(trained, tasks=SINES, steps=6, seed=5)
    quick(unchanged, tasks=SINES, steps=6, seed=5)
    optimizer = torch.optim.Adam(looped.parameters(), lr=1e-3)
    for step, task in enumerate(SINES.stream(4, 6, seed=5)):
        looped.at(step, 6)
        optimizer.zero_grad()
        looped(task.to(dtype=torch.float64)).backward()
        optimizer.step()
    assert same(trained.state_dict(), looped.state_dict())
    assert not same(trained.state_dict(), unchanged.state_dict())
    assert trained.inner.lr == RATE(5, 6) == 0.01


def test_any_function_is_a_schedule_and_is_told_where_the_run_is():
    asked = []

    def own(step, steps):
        asked.append((step, steps))
        return 0.1 / (1 + step)

    J = changing(lr=own)
    quick(J, tasks=SINES, steps=3)
    assert asked == [(0, 1), (0, 3), (1, 3), (2, 3)]
    assert J.inner.lr == 0.1 / 3


def test_a_copy_and_the_same_choices_for_another_model_keep_their_schedules():
    J = changing()
    J.at(5, 10)
    for twin in (copy.deepcopy(J), J.on(ml.models.mlp(1, 3, 1).double(), F.mse_loss)):
        twin.at(9, 10)
        assert (twin.inner.lr, twin.terms.weights[1]) == (RATE(9, 10), WEIGHT(9, 10))
    assert J.inner.lr == RATE(5, 10)


def test_a_plain_number_ends_a_schedule():
    inner = ml.SGD(RATE)
    inner.numbers(lr=0.5)
    inner.at(9, 10)
    assert inner.lr == 0.5


def test_a_part_of_ones_own_may_have_numbers():
    class Powered(ml.Term):
        def __init__(self, power):
            super().__init__()
            self.numbers(power=power)

        def per_task(self, path, task): return path.loss(path.final, task.query) ** self.power

    J = ml.MetaLoss(ml.models.mlp(1, 3, 1), F.mse_loss, terms=Powered(Linear(1.0, 2.0)))
    task = SINES.batch(1)
    first = J(task)
    J.at(1, 2)
    torch.testing.assert_close(J(task), first ** 2)


# Errors

@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("option", "name"), [("lr", "SGD.lr"), ("weight", "Sum.weight_1")])
def test_a_number_that_is_not_finite_is_named_with_its_step(option, name, number):
    J = changing(**{option: lambda step, steps: number if step == 3 else 0.1})
    J.at(2, 10)
    message = f"the schedule of {name} gives {number} at step 3 of 10; a finite number is needed"
    with pytest.raises(ValueError, match=message): J.at(3, 10)
    with pytest.raises(ValueError, match=message): quick(J, tasks=SINES, steps=10)


# Checkpoints

def test_a_checkpoint_keeps_the_numbers(tmp_path, sines):
    J, other = changing(), changing()
    J.at(7, 10)
    expected = slopes(J, sines)
    ml.save_checkpoint(tmp_path / "J.pt", J)
    state = ml.load_checkpoint(tmp_path / "J.pt", other)
    assert state["numbers"] == numbers_of(J) == {"inner": {"lr": RATE(7, 10)},
                                                 "terms": {"weight_1": WEIGHT(7, 10)}}
    assert (other.inner.lr, other.terms.weights) == (J.inner.lr, J.terms.weights)
    assert same(slopes(other, sines), expected)


def test_plain_numbers_stay_what_they_were_built_as(tmp_path):
    J, other = changing(), changing(lr=0.5)
    J.at(7, 10)
    ml.save_checkpoint(tmp_path / "J.pt", J)
    ml.load_checkpoint(tmp_path / "J.pt", other)
    assert (other.inner.lr, other.terms.weights[1]) == (0.5, WEIGHT(7, 10))
    ml.save_checkpoint(tmp_path / "other.pt", maml(width=5).double())
    J.at(3, 10)
    ml.load_checkpoint(tmp_path / "other.pt", J)                # one that holds no numbers
    assert J.inner.lr == RATE(3, 10)


def test_a_run_that_was_stopped_goes_on_with_its_numbers(tmp_path):
    class Stop(ml.Watcher):
        left = 4

        def step(self, loss):
            self.left -= 1
            if self.left == 0: raise KeyboardInterrupt

    whole, first, second = changing(), changing(), changing()
    run = {"tasks": SINES, "steps": 8, "save_every": 1}
    quick(whole, **run)
    with pytest.raises(KeyboardInterrupt):
        quick(first, checkpoint=tmp_path, watch=Stop(), **run)
    assert 0 < ml.load_checkpoint(tmp_path / "checkpoint.pt", second)["progress"]["step"] < 8
    assert second.inner.lr not in (RATE(0, 8), RATE(7, 8))
    quick(second, checkpoint=tmp_path, **run)
    assert same(whole.state_dict(), second.state_dict()) and second.inner.lr == RATE(7, 8)


# Compiled

class Counting:
    "A backend that runs a graph as it is, and counts the graphs."
    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("second", [ml.GradientNorm(), ml.Contrast()], ids=["alone", "across"])
def test_compiled_there_is_one_graph_and_the_numbers_are_those_of_each_step(dtype, second, sines):
    task = sines.to(dtype=dtype)
    eager, fast, count = changing(dtype, second=second), changing(dtype, second=second), Counting()
    fast.compile(backend=count)
    values = []
    for step in (0, 1, 5, 9):
        for J in (eager, fast): J.at(step, 10)
        (value, gradients), (found, slope) = (slopes(J, task) for J in (eager, fast))
        assert found.dtype == dtype
        assert torch.equal(found, value) and same(slope, gradients)
        assert type(fast.inner.lr) is float and fast.inner.lr == RATE(step, 10)
        values.append(value.item())
    assert count.graphs == 1
    assert len(set(values)) == 4


def test_compiled_a_rate_is_not_rounded_to_float32(sines):
    "0.01 is 0.00999999978 in float32; the value of that rate differs, and is told apart."
    fast = changing(lr=Linear(0.01, 0.02))
    fast.compile(backend="aot_eager")
    plain = changing(lr=0.01)
    rounded = changing(lr=torch.tensor(0.01, dtype=torch.float32).item())
    value = plain(sines).item()
    assert abs(rounded(sines).item() - value) > 1e-9
    assert abs(fast(sines).item() - value) < 1e-15


def test_lifted_numbers_are_plain_again_afterwards_also_after_an_error():
    for dtype in (torch.float32, torch.float64):
        J = changing(dtype)
        with pytest.raises(ArithmeticError, match="inside"), lifted(J):
            assert isinstance(J.inner.lr, torch.Tensor) and J.inner.lr.dtype == dtype
            assert J.terms.weights[0] == 1.0 and isinstance(J.terms.weights[1], torch.Tensor)
            raise ArithmeticError("inside")
        assert (J.inner.lr, J.terms.weights[1]) == (RATE(0, 1), WEIGHT(0, 1))
        assert type(J.inner.lr) is float


# Recomputed chunks

@pytest.mark.parametrize("chunk_size", [1, 4])
def test_a_backward_pass_sees_the_numbers_of_its_forward_pass(chunk_size, sines):
    "Chunks are computed again in the backward pass: with the numbers that the value was made of."
    whole, chunked = changing(), changing(chunk_size=chunk_size)
    expected = slopes(whole, sines)
    value = chunked(sines)
    chunked.at(9, 10)
    found = torch.autograd.grad(value, list(chunked.parameters()))
    torch.testing.assert_close((value.detach(), found), expected, rtol=0, atol=1e-14)
    assert chunked.inner.lr == RATE(9, 10)                     # and they are left as they are
    whole.at(9, 10)
    torch.testing.assert_close(slopes(chunked, sines), slopes(whole, sines), rtol=0, atol=1e-14)
