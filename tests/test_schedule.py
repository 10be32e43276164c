"""Numbers that change with the meta-step: their ends, J.at, compiled, chunked, saved, trained."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import counting
from torch import nn

import metalit as ml
from metalit.schedule import (
    Cosine,
    Linear,
    Scheduled,
    Times,
    lifted,
    number_times,
    numbers_of,
    scheduled,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return ml.models.mlp(1, 8, 1, activation=nn.Tanh)


def two_numbers(**options) -> ml.MetaLoss:
    "A rate and a weight with a schedule."
    return ml.MAML(network(), F.mse_loss, lr=Linear(0.1, 0.01),
                   terms=ml.QueryLoss() + Cosine(0.5, 0.0) * ml.ParameterDistance(), **options)


def value_and_gradients(J: nn.Module, task: ml.Task) -> list[torch.Tensor]:
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(J.parameters()))]


@pytest.fixture(scope="module")
def waves() -> ml.Task:
    return ml.tasks.Sinusoids(shots=4).batch(4)


@pytest.mark.parametrize("shape", [Linear, Cosine])
def test_ends_and_middle(shape):
    number = shape(1.0, 0.2)
    assert number(0, 11) == 1.0
    assert math.isclose(number(5, 11), 0.6, abs_tol=1e-15)
    assert number(10, 11) == 0.2                             # to the last bit
    assert number(0, 1) == 1.0                               # one step: it is the first
    assert {shape(0.3, 0.3)(step, 7) for step in range(7)} == {0.3}


def test_a_quarter_of_the_way():
    assert Linear(1.0, 0.0)(1, 5) == 0.75
    assert math.isclose(Cosine(1.0, 0.0)(1, 5), (1 + math.cos(math.pi / 4)) / 2, abs_tol=1e-15)


@pytest.mark.parametrize("shape", [Linear, Cosine])
def test_until(shape):
    number = shape(1.0, 0.2, until=0.5)
    assert number(4, 11) > 0.2
    for step in range(5, 11): assert math.isclose(number(step, 11), 0.2, abs_tol=1e-15)
    for until in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="a share of the run"): shape(1.0, 0.2, until=until)


def test_times_and_repr():
    assert isinstance(number_times(2.0, Linear(1.0, 0.5)), Times)
    for one in (number_times(2.0, Linear(1.0, 0.5)), number_times(Linear(1.0, 0.5), 2.0)):
        assert one(0, 5) == 2.0
    assert number_times(2.0, 3.0) == 6.0
    assert repr(number_times(2.0, Linear(1.0, 0.5))) == "2.0 * Linear(1.0, 0.5, until=1.0)"
    assert repr(Cosine(1.0, 0.0, until=0.3)) == "Cosine(1.0, 0.0, until=0.3)"
    with pytest.raises(TypeError, match="the product of two schedules"):
        number_times(Linear(1.0, 0.5), Cosine(1.0, 0.0))


def test_a_sum_times_a_number_follows_its_schedule():
    terms = 2.0 * (ml.QueryLoss() + Linear(1.0, 0.0) * ml.ParameterDistance())
    terms.at(1, 5)
    assert terms.weights == [2.0, 1.5]
    with pytest.raises(TypeError, match="the product of two schedules"): Linear(1.0, 0.0) * terms


def test_J_at_sets_weights_and_rates():
    J = two_numbers()
    assert J.inner.lr == 0.1
    assert J.terms.weights == [1.0, 0.5]
    assert len(scheduled(J)) == 2
    J.at(4, 5)
    assert math.isclose(J.inner.lr, 0.01, abs_tol=1e-15)
    assert J.terms.weights == [1.0, 0.0]
    J.at(2, 5)
    assert math.isclose(J.inner.lr, 0.055, abs_tol=1e-15)
    assert math.isclose(J.terms.weights[1], 0.25, abs_tol=1e-15)


def test_its_value_is_that_of_plain_numbers(waves):
    J = two_numbers()
    J.at(2, 5)
    plain = ml.MAML(J.model, F.mse_loss, lr=J.inner.lr,
                    terms=ml.QueryLoss() + J.terms.weights[1] * ml.ParameterDistance())
    for found, right in zip(value_and_gradients(J, waves), value_and_gradients(plain, waves),
                            strict=True):
        assert torch.equal(found, right)


def test_a_number_set_anew_has_no_schedule():
    J = two_numbers()
    J.inner.numbers(lr=0.3)
    J.at(4, 5)
    assert J.inner.lr == 0.3
    assert scheduled(J) == [J.terms]
    J.inner.numbers(lr=Cosine(0.2, 0.1))
    assert J.inner.lr == 0.2
    J.at(4, 5)
    assert math.isclose(J.inner.lr, 0.1, abs_tol=1e-15)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_an_error(number):
    J = ml.MAML(network(), F.mse_loss, lr=lambda step, steps: 0.1 if step < 3 else number)
    J.at(2, 5)
    with pytest.raises(ValueError, match=rf"schedule of SGD\.lr gives {number} at step 3 of 5"):
        J.at(3, 5)
    assert J.inner.lr == 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_compiled_once_for_all_values():
    "In float64 exactly as uncompiled: 0.01 must not become the float32 next to it."
    waves = ml.tasks.Sinusoids(shots=4).batch(4).to(torch.float64)
    eager, fast, graphs = two_numbers().double(), two_numbers().double(), []
    fast.load_state_dict(eager.state_dict())
    fast.compile(backend=counting(graphs))
    for step in range(10):
        for J in (eager, fast): J.at(step, 10)
        for found, right in zip(value_and_gradients(fast, waves),
                                value_and_gradients(eager, waves), strict=True):
            assert torch.equal(found, right)
        assert isinstance(fast.inner.lr, float)
        assert fast.inner.lr == eager.inner.lr
    assert math.isclose(fast.inner.lr, 0.01, abs_tol=1e-15)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_a_number_changes_no_type(dtype):
    "Also where it meets a scalar: a term across tasks, a parameter without an axis."
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.net = nn.Parameter(torch.tensor(0.5)), network()

        def forward(self, x): return self.scale * self.net(x)

    def made():
        inner = ml.SGD(Linear(0.1, 0.01), 2)
        return ml.MetaLoss(Scaled().to(dtype), F.mse_loss, inner=inner,
                           terms=ml.QueryLoss() + Linear(0.3, 0.1) * ml.Contrast())

    waves, graphs = ml.tasks.Sinusoids(shots=4).batch(4).to(dtype), []
    eager, fast = made(), made()
    fast.compile(backend=counting(graphs))
    for step in (0, 4, 9):
        for J in (eager, fast): J.at(step, 10)
        for found, right in zip(value_and_gradients(fast, waves),
                                value_and_gradients(eager, waves), strict=True):
            assert found.dtype == dtype
            assert torch.equal(found, right)
    assert len(graphs) == 1


def test_lifted_numbers_are_plain_again_also_after_an_error():
    J = two_numbers().double()
    before = numbers_of(J)

    def fails():
        with lifted(J):
            assert J.inner.lr.dtype == J.terms.weights[1].dtype == torch.float64
            assert J.terms.weights[0] == 1.0
            raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError, match="inside"): fails()
    assert numbers_of(J) == before
    assert type(J.inner.lr) is float


def test_chunked_backward_sees_the_numbers_of_its_forward(waves):
    whole, chunked = two_numbers(), two_numbers(chunk_size=2)
    chunked.load_state_dict(whole.state_dict())
    undisturbed = value_and_gradients(chunked, waves)
    value = chunked(waves)
    chunked.at(4, 5)
    found = torch.autograd.grad(value, list(chunked.parameters()))
    for one, other in zip([value.detach(), *found], undisturbed, strict=True):
        assert torch.equal(one, other)
    assert chunked.terms.weights == [1.0, 0.0]               # what was set last stays
    for one, other in zip(undisturbed, value_and_gradients(whole, waves), strict=True):
        torch.testing.assert_close(one, other)


def test_a_checkpoint_keeps_the_numbers(tmp_path):
    J, other = two_numbers(), two_numbers()
    J.at(2, 5)
    ml.save_checkpoint(tmp_path / "J.pt", J)
    ml.load_checkpoint(tmp_path / "J.pt", other)
    assert numbers_of(other) == numbers_of(J)
    assert other.inner.lr == J.inner.lr != two_numbers().inner.lr


def test_a_checkpoint_without_numbers_loads(tmp_path):
    plain = ml.MAML(network(), F.mse_loss, lr=0.3)
    with torch.no_grad():
        for p in plain.parameters(): p.fill_(0.25)
    assert numbers_of(plain) == {}
    state = {"metalit": 1, "J": plain.state_dict()}         # as older versions wrote it
    torch.save(state, tmp_path / "plain.pt")
    J = two_numbers()
    J.at(1, 5)
    before = numbers_of(J)
    ml.load_checkpoint(tmp_path / "plain.pt", J)
    assert numbers_of(J) == before
    assert all((p == 0.25).all() for p in J.parameters())


def test_numbers_of_parts_without_a_schedule_are_ignored(tmp_path):
    J, plain = two_numbers(), ml.MAML(network(), F.mse_loss, lr=0.3)
    J.at(2, 5)
    ml.save_checkpoint(tmp_path / "J.pt", J)
    ml.load_checkpoint(tmp_path / "J.pt", plain)
    assert plain.inner.lr == 0.3
    assert plain.terms.weights == [1.0]


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"batching": "loop"}])
def test_meta_train_follows(options):
    waves = ml.tasks.Sinusoids(shots=4)
    trained, by_hand = two_numbers(**options), two_numbers(**options)
    ml.meta_train(trained, waves, steps=5, batch_size=4, seed=3, device="cpu", progress=False)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    for step, task in enumerate(waves.stream(4, 5, 3, 0)):
        by_hand.at(step, 5)
        optimizer.zero_grad()
        by_hand(task).backward()
        optimizer.step()
    for one, other in zip(trained.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
    assert numbers_of(trained) == numbers_of(by_hand)
    constant = ml.MAML(network(), F.mse_loss, lr=0.1)
    ml.meta_train(constant, waves, steps=5, batch_size=4, seed=3, device="cpu", progress=False)
    assert any(not torch.equal(one, other) for one, other in
               zip(trained.parameters(), constant.parameters(), strict=True))


def test_a_run_that_was_stopped_goes_on_with_its_numbers(tmp_path):
    class Stop(ml.Watcher):
        left = 4

        def step(self, loss):
            self.left -= 1
            if self.left == 0: raise KeyboardInterrupt

    def go(J, **options):
        ml.meta_train(J, ml.tasks.Sinusoids(shots=4), steps=8, batch_size=4, device="cpu",
                      progress=False, save_every=1, **options)

    whole, first, second = two_numbers(), two_numbers(), two_numbers()
    go(whole)
    with pytest.raises(KeyboardInterrupt): go(first, checkpoint=tmp_path, watch=Stop())
    state = ml.load_checkpoint(tmp_path / "checkpoint.pt", second)
    assert 0 < state["progress"]["step"] < 8
    assert 0.01 < second.inner.lr < 0.1
    go(second, checkpoint=tmp_path)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert numbers_of(second) == numbers_of(whole)
    assert second.inner.lr == 0.01


def test_a_part_of_ones_own():
    class Part(Scheduled):
        def __init__(self, size):
            super().__init__()
            self.numbers(size=size)
    part = Part(Linear(0.0, 1.0))
    part.at(3, 5)
    assert part.size == 0.75
    assert numbers_of(nn.Sequential(part)) == {"0": {"size": 0.75}}
