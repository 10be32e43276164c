"""How much memory a meta-step takes: measured, predicted, and given back."""
import gc
import os
import sys

import forked
import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.models import Conv4
from metalit.training.memory import (
    Flops,
    Memory,
    exact_within,
    extended,
    flops,
    keep_freed_memory,
    measured_memory,
    memory_at_hand,
    peak_and_rest,
    predicted_memory,
    step_memory,
)


def images(batch_size: int, queries: int = 2) -> ml.Task:
    generator = torch.Generator().manual_seed(0)

    def split(each: int) -> ml.Split:
        x = torch.rand(batch_size, 3 * each, 1, 20, 20, generator=generator)
        return ml.Split(x, torch.arange(3).repeat(each).expand(batch_size, -1))
    return ml.Task(split(1), split(queries))


def conv(kind=ml.MAML, steps: int = 1, filters: int = 8, **options) -> ml.MetaLoss:
    return kind(Conv4(3, size=20, filters=filters), F.cross_entropy, lr=0.1, steps=steps, **options)


def mixed_mode(*arguments, **options) -> ml.MetaLoss:
    return ml.MAML(*arguments, gradient=ml.MixedMode(), **options)


def gradient(J: ml.MetaLoss, task: ml.Task) -> list[torch.Tensor]:
    return list(torch.autograd.grad(J(task), list(J.parameters()), allow_unused=True))


def test_peak_and_rest_of_three_tensors():
    def run() -> torch.Tensor:
        a = torch.empty(1000)
        b = a.sin()
        c = b.sin()
        del a, b
        return c
    assert peak_and_rest(run) == (12_000, 4_000)
    assert measured_memory(run) == 12_000
    assert peak_and_rest(lambda: None) == (0, 0)


def test_measuring_leaves_the_environment_alone_and_passes_errors_on(monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    with pytest.raises(ZeroDivisionError):
        measured_memory(lambda: 1 / 0)
    assert "KINETO_LOG_LEVEL" not in os.environ
    monkeypatch.setenv("KINETO_LOG_LEVEL", "5")
    measured_memory(lambda: None)
    assert os.environ["KINETO_LOG_LEVEL"] == "5"


def test_total_is_the_larger_of_two_peaks():
    assert Memory(10, 4, 5).total == 10
    assert Memory(10, 8, 5).total == 13
    assert str(Memory(2**20, 0, 0)) == "1.0 MiB (forward 1.0, graph 0.0, backward 0.0)"


def test_extended_measures_up_to_three_and_goes_on_in_a_straight_line():
    asked = []

    def measure(count: int) -> Memory:
        asked.append(count)
        return Memory(count**2, 7, 3 * count)
    assert extended(measure, 1) == (1, 7, 3)
    assert extended(measure, 3) == (9, 7, 9)
    assert extended(measure, 10) == (9 + 7 * 5, 7, 30)
    assert max(asked) == 3


@pytest.mark.parametrize("kind", [ml.MAML, ml.FOMAML, mixed_mode])
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize(("tasks", "steps"), [(2, 1), (7, 5), (12, 1)])
def test_prediction_is_within_five_per_cent(kind, chunk_size, tasks, steps):
    J, task = conv(kind, steps, chunk_size=chunk_size), images(tasks)
    gradient(J, task)
    assert predicted_memory(J, task).total == pytest.approx(
        measured_memory(lambda: gradient(J, task)), rel=0.05
    )


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_prediction_for_a_network_that_is_no_image_network(steps):
    J = ml.MAML(ml.models.mlp(1, 20, 1), F.mse_loss, steps=steps)
    task = ml.tasks.Sinusoids().batch(40)
    gradient(J, task)
    assert predicted_memory(J, task).total == pytest.approx(
        measured_memory(lambda: gradient(J, task)), rel=0.05
    )


def test_prediction_sees_parameters_of_the_inner_loop_and_other_terms():
    model = Conv4(3, size=20, filters=8)
    for J in (ml.MetaLoss(model, F.cross_entropy, inner=ml.Diagonal(model, lr=0.1, steps=4)),
              conv(ml.SharpMAML)):
        task = images(5)
        gradient(J, task)
        measured = measured_memory(lambda: gradient(J, task))  # noqa: B023
        assert predicted_memory(J, task).total == pytest.approx(measured, rel=0.05)


def test_prediction_grows_as_it_should():
    def total(tasks: int = 8, steps: int = 2, queries: int = 2, **options) -> int:
        return predicted_memory(conv(steps=steps, **options), images(tasks, queries)).total
    of_tasks = [total(tasks=n) for n in (1, 2, 4, 8, 16)]
    of_steps = [total(steps=n) for n in (0, 1, 2, 4, 8)]
    of_queries = [total(queries=n) for n in (1, 2, 4)]
    of_width = [total(filters=n) for n in (4, 8, 16)]
    of_chunk = [total(chunk_size=n) for n in (1, 2, 4, 8)]
    for row in (of_tasks, of_steps, of_queries, of_width, of_chunk):
        assert row == sorted(set(row))
    assert of_tasks[-1] == pytest.approx(2 * of_tasks[-2], rel=0.01)
    assert of_steps[4] - of_steps[3] == pytest.approx(2 * (of_steps[3] - of_steps[2]), rel=0.01)


def test_mixed_mode_takes_first_order_and_the_path():
    "One copy of φ for each task and step; the exact rule, more than twice as much."
    task = images(8, queries=5)
    Js = [conv(kind, 10, filters=16) for kind in (ml.FOMAML, mixed_mode, ml.MAML)]
    path = 10 * 8 * sum(p.nbytes for p in Js[0].parameters())
    first, mixed, exact = (predicted_memory(J, task).total for J in Js)
    assert first + 0.6 * path < mixed < first + 1.05 * path and exact > 2 * first


def test_first_order_keeps_no_graph_of_inner_steps():
    task = images(4)
    exact = [predicted_memory(conv(ml.MAML, steps), task).graph for steps in (1, 8)]
    first = [predicted_memory(conv(ml.FOMAML, steps), task).graph for steps in (1, 8)]
    assert first[1] == first[0]
    assert exact[1] > 2 * exact[0]
    assert exact[0] > first[0]


def test_prediction_changes_nothing():
    J, task = conv(steps=5, chunk_size=4), images(6)
    state = {name: value.clone() for name, value in J.state_dict().items()}
    random = torch.get_rng_state()
    predicted_memory(J, task)
    assert (J.inner.steps, J.chunk_size) == (5, 4)
    assert all(p.grad is None for p in J.parameters())
    torch.testing.assert_close(dict(J.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_random_state_is_kept_with_dropout():
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    random = torch.get_rng_state()
    predicted_memory(ml.MAML(model, F.mse_loss), ml.tasks.Sinusoids().batch(5))
    assert torch.equal(torch.get_rng_state(), random)


def test_prediction_takes_small_steps_only(monkeypatch):
    seen = []
    monkeypatch.setattr("metalit.training.memory.step_memory", lambda J, task:
                        seen.append((task.batch_size, J.inner.steps)) or Memory(1, 1, 1))
    predicted_memory(conv(steps=50), images(40))
    assert max(seen) == (3, 3)


def test_prediction_works_without_gradients_enabled():
    J, task = conv(), images(2)
    with torch.no_grad(): within = predicted_memory(J, task)
    assert within == predicted_memory(J, task)
    assert within.graph > 0


def test_prediction_names_what_is_wrong_with_a_task():
    with pytest.raises(ValueError, match="a task is Task"):
        predicted_memory(conv(), torch.zeros(3))


def test_nothing_grows_over_50_evaluations():
    J, task = conv(filters=4), images(2)

    def evaluations(count: int):
        for _ in range(count): J.curve(task, (0, 1))

    def tensors() -> int:
        "Collected until nothing is left to collect: what other tests left goes in several rounds."
        while gc.collect(): pass
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    evaluations(1)
    before = tensors()
    evaluations(50)
    assert tensors() == before
    once, many = (peak_and_rest(lambda count=count: evaluations(count)) for count in (1, 20))
    assert once[1] == many[1] == 0
    assert many[0] == once[0]


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_nothing_grows_over_meta_steps(chunk_size):
    J, task = conv(filters=4, chunk_size=chunk_size), images(2)

    def steps(count: int):
        for _ in range(count): gradient(J, task)
    steps(1)
    once, many = (peak_and_rest(lambda count=count: steps(count)) for count in (2, 10))
    assert once[1] == many[1] == 0
    assert many[0] == once[0]


def test_a_list_of_values_is_a_leak_and_is_seen():
    J, task = conv(), images(2)
    graph = step_memory(J, task).graph
    assert peak_and_rest(lambda: [J(task) for _ in range(10)])[1] == pytest.approx(10 * graph,
                                                                                   rel=0.01)
    assert peak_and_rest(lambda: [J(task).item() for _ in range(10)])[1] == 0


@pytest.mark.parametrize(("examples", "ins", "outs"), [(1, 1, 1), (7, 5, 3), (32, 40, 10)])
def test_flops_of_a_linear_layer_are_counted_by_hand(examples, ins, outs):
    "A product of (n, in) and (in, out) is n·in·out products and as many sums; backward has two."
    layer, x = torch.nn.Linear(ins, outs), torch.randn(examples, ins, requires_grad=True)
    one = 2 * examples * ins * outs
    with Flops() as counter: y = layer(x)
    assert counter.total == one
    with Flops() as counter: y.sum().backward()
    assert counter.total == 2 * one
    assert flops(lambda: layer(x).sum()) == 3 * one
    # where nobody asks for the gradient of x, its product is not taken
    assert flops(lambda: layer(x.detach()).sum()) == 2 * one


def test_flops_count_a_meta_step_under_vmap():
    "In proportion to tasks; and first order leaves the products of the second derivatives out."
    def of(kind, tasks: int, steps: int) -> int:
        J = kind(ml.models.mlp(1, 16, 1), F.mse_loss, steps=steps)
        task = ml.tasks.Sinusoids(shots=10).batch(tasks)
        return flops(lambda: J(task))
    assert of(ml.MAML, 8, 1) == 2 * of(ml.MAML, 4, 1)
    exact, first = ([of(kind, 4, steps) for steps in (1, 2, 3)] for kind in (ml.MAML, ml.FOMAML))
    for counts in (exact, first): assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    assert exact[1] - exact[0] > first[1] - first[0]


def test_keep_freed_memory_says_whether_it_did():
    program = """if True:
        import torch
        from metalit.training.memory import keep_freed_memory, measured_memory
        print(keep_freed_memory(), keep_freed_memory())
        assert measured_memory(lambda: torch.empty(8)) == 32
        """
    done = forked.run("-c", program, check=True)
    assert "profiler" not in done.stderr  # measuring does not write to the terminal
    assert done.stdout.split() in (["True", "True"], ["False", "False"])
    if sys.platform.startswith("linux"):
        import ctypes
        assert done.stdout.split()[0] == str(hasattr(ctypes.CDLL(None), "mallopt"))


def test_keep_freed_memory_does_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)                 # not even looked for
    assert keep_freed_memory() is False


def gradients(J: ml.MetaLoss, task: ml.Task) -> list[torch.Tensor]:
    return list(torch.autograd.grad(J(task), list(J.parameters())))


def on_waves(**options) -> ml.MetaLoss:
    "A network whose path weighs little beside what it keeps of a hundred points."
    return ml.MAML(ml.models.mlp(1, 40, 40, 1), F.mse_loss, steps=5, **options)


@pytest.mark.parametrize(("rule", "at_once"), [
    (ml.Exact, True), (ml.MixedMode, True), (ml.MixedMode, False)])
def test_the_exact_gradient_within_a_limit(rule, at_once):
    "It takes what was predicted, gives the same gradient, and one task more would not fit."
    J, task = on_waves(), ml.tasks.Sinusoids(shots=100, queries=1).batch(8, seed=0)
    whole, path = (predicted_memory(on_waves(**options), task).total
                   for options in ({}, {"gradient": ml.MixedMode()}))
    limit = {(ml.Exact, True): whole, (ml.MixedMode, True): path}.get((rule, at_once), 0.5 * path)
    expected = gradients(J, task)
    way = exact_within(J, task, limit)
    assert type(J.gradient) is ml.Exact and J.chunk_size is None and J.inner.steps == 5
    assert type(way.gradient) is rule and (way.chunk_size is None) == at_once
    J.gradient, J.chunk_size = way.gradient, way.chunk_size
    found = measured_memory(lambda: torch.testing.assert_close(gradients(J, task), expected,
                                                               rtol=1e-3, atol=1e-5))
    assert way.memory.total <= limit and found <= 1.05 * limit
    if not at_once:
        J.chunk_size = way.chunk_size + 1
        assert predicted_memory(J, task).total > limit
        assert f"{way.chunk_size} tasks at a time" in str(way)


class NoForwardMode(torch.autograd.Function):
    "A square whose derivative on the way forward nobody has written."
    generate_vmap_rule = True

    @staticmethod
    def forward(x): return x**2

    @staticmethod
    def setup_context(ctx, inputs, output): ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g): return 2 * ctx.saved_tensors[0] * g


def test_without_forward_derivatives_there_are_chunks():
    class Net(torch.nn.Linear):
        def forward(self, x): return NoForwardMode.apply(super().forward(x))
    J, task = ml.MAML(Net(1, 1), F.mse_loss, steps=3), ml.tasks.Sinusoids(shots=5000).batch(6)
    way = exact_within(J, task, 0.6 * predicted_memory(J, task).total)
    assert type(way.gradient) is ml.Exact and way.chunk_size in (2, 3)


def test_what_does_not_fit_and_what_is_not_exact_is_said():
    task = ml.tasks.Sinusoids().batch(3)
    J = ml.MAML(ml.models.mlp(1, 4, 1), F.mse_loss)
    with pytest.raises(MemoryError, match=r"one task at a time takes .*ml\.FirstOrder\(\)"):
        exact_within(J, task, 10)
    with pytest.raises(ValueError, match="rule FirstOrder, which is another gradient"):
        exact_within(ml.FOMAML(J.model, F.mse_loss), task)
    with pytest.raises(RuntimeError, match="on the examples of one task"):
        exact_within(ml.MAML(torch.nn.Linear(7, 1), F.mse_loss), task)
    assert type(exact_within(J, task).gradient) is ml.Exact
    assert 2**20 < memory_at_hand() < 2**60 or not os.path.exists("/proc/meminfo")
