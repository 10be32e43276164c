"""Tasks that one has: which come, what is dealt, what is held out, and what is refused."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.tasks.given import leave_one_out, parted, visited


def numbered(counts):
    "Tasks whose y says which task and which row it is: task i, row j is 100 i + j."
    return {f"task {i}": (torch.rand(n, 2), 100.0 * i + torch.arange(float(n))[:, None])
            for i, n in enumerate(counts)}


def rows(split, i):
    real = slice(None) if split.mask is None else split.mask[i]
    return split.y[i][real].flatten().tolist()


@pytest.mark.parametrize(("count", "size"), [(5, 2), (5, 7), (1, 3), (12, 12)])
def test_an_epoch_visits_each_task_once_whatever_the_size_of_a_batch(count, size):
    ids = torch.cat([visited(count, 3, range(step * size, (step + 1) * size))
                     for step in range(3 * count)])
    for epoch in ids[:len(ids) // count * count].reshape(-1, count):
        assert epoch.sort().values.tolist() == list(range(count))
    torch.testing.assert_close(visited(count, 3, range(4, 9)), ids[4:9])


def test_orders_of_epochs_and_seeds_differ():
    one = visited(30, 0, range(60)).reshape(2, 30)
    assert one[0].tolist() != one[1].tolist()
    assert one[0].tolist() != visited(30, 1, range(30)).tolist()


@pytest.mark.parametrize("queries", [None, 2])
@pytest.mark.parametrize("split", ["random", "first"])
def test_what_is_dealt_are_different_rows_of_the_task_itself(split, queries):
    counts = [6, 9, 5, 6]
    family = ml.tasks.Given(numbered(counts), shots=3, queries=queries, split=split)
    for step in range(4):
        task = family.batch(4, seed=1, step=step)
        for i, number in enumerate(task.ids.tolist()):
            seen, asked = rows(task.support, i), rows(task.query, i)
            left = queries or counts[number] - 3
            assert (len(seen), len(asked), len({*seen, *asked})) == (3, left, 3 + left)
            assert all(100 * number <= value < 100 * number + counts[number]
                       for value in (*seen, *asked))
            if split == "first":
                assert [*seen, *asked] == [100.0 * number + j for j in range(3 + left)]


def test_every_way_to_deal_comes_about_as_often():
    family = ml.tasks.Given(numbered([4]), shots=2)
    ways = [tuple(sorted(rows(family.batch(1, step=step).support, 0))) for step in range(600)]
    counts = [ways.count(way) for way in set(ways)]
    assert len(counts) == 6 and min(counts) > 60 and max(counts) < 140


def test_a_stream_is_its_batches_and_goes_on_anywhere():
    family = ml.tasks.Given(numbered([6, 9, 5]), shots=3, queries=2)
    whole = list(family.stream(2, 6, seed=4))
    for step, task in enumerate(family.stream(2, 6, seed=4, start=3), 3):
        for one, other in zip(ml.tasks.task.leaves(task), ml.tasks.task.leaves(whole[step]),
                              strict=True):
            assert torch.equal(one, other)


def test_evaluation_looks_at_exactly_the_tasks_that_are_held_out():
    tasks = numbered([6] * 9)
    family = ml.tasks.Given(dict(list(tasks.items())[:4]), dict(list(tasks.items())[4:]), shots=3)
    assert [family.name(i) for i in family.held_out().ids] == list(tasks)[4:]
    J = ml.MAML(ml.models.mlp(2, 3, 1), F.mse_loss)
    assert ml.evaluate(J, family, steps=(0, 1)).n_tasks == 5
    assert ml.evaluate(J, family, n_tasks=3, steps=(0,)).n_tasks == 3
    validation = ml.Validation(family, every=1)
    ml.meta_train(J, family, steps=2, batch_size=4, validation=validation, progress=False)
    with pytest.raises(ValueError, match="n_tasks=600, but 5 tasks are held out"):
        ml.evaluate(J, family, n_tasks=600)


def test_unequal_tasks_have_the_value_of_a_loop_over_them():
    tasks = {name: (x.double(), y.double() / 500) for name, (x, y) in numbered([5, 8, 6]).items()}
    family = ml.tasks.Given(tasks, shots=3, split="first")
    J = ml.MAML(ml.models.mlp(2, 4, 1).double(), F.mse_loss, lr=0.1, steps=2)
    batch = family.batch(3)
    single = [ml.tasks.one(x[:3], y[:3], x[3:], y[3:])
              for x, y in (tasks[family.name(i)] for i in batch.ids)]
    torch.testing.assert_close(J(batch), torch.stack([J(one) for one in single]).mean(),
                               rtol=0, atol=1e-12)


def test_groups_stay_together_and_both_sides_have_some():
    tasks, of = numbered([5] * 12), {f"task {i}": i // 3 for i in range(12)}
    for seed in range(6):
        family = parted(tasks, 0.3, groups=of, seed=seed, shots=2)
        out, inside = ({of[name] for name in pile.names} for pile in (family.test, family.train))
        assert len(out) == 1 and out.isdisjoint(inside) and len(family.test) == 3
    assert len({parted(tasks, seed=seed, shots=2).test.names for seed in range(6)}) > 1
    assert parted(tasks, 0.01, shots=2).n_held_out == 1
    assert parted(tasks, 0.99, shots=2).n_held_out == 11


def test_each_task_is_left_out_once():
    tasks = numbered([5, 6, 7])
    found = dict(leave_one_out(tasks, shots=2))
    assert list(found) == list(tasks)
    for out, family in found.items():
        assert family.test.names == (out,)
        assert set(family.train.names) == set(tasks) - {out}
        assert set(rows(family.held_out().support, 0)) <= set(tasks[out][1].flatten().tolist())


def test_arrays_lists_and_trees_are_welcome():
    arrays = {"a": (np.arange(8.0).reshape(4, 2), np.arange(4)),
              "b": (np.ones((5, 2)), np.ones(5, int))}
    task = ml.tasks.Given(arrays, shots=2).batch(2)
    assert (task.support.x.dtype, task.support.y.dtype) == (torch.float32, torch.int64)
    lists = [([[0.5], [1.0], [2.0]], [[1.0], [2.0], [4.0]])]
    assert ml.tasks.Given(lists, shots=1).batch(1).query.x.shape == (1, 2, 1)
    trees = [({"a": torch.rand(5, 2), "b": torch.rand(5, 3)}, torch.rand(5, 1)) for _ in range(3)]
    task = ml.tasks.Given(trees, shots=2).batch(3)
    assert task.query.x["b"].shape == (3, 3, 3)


def test_settings_change_and_the_tasks_stay():
    tasks = numbered([6, 7, 8])
    family = ml.tasks.Given(tasks, {"another": tasks.pop("task 2")}, shots=2)
    other = family.having(shots=4)
    assert (other.batch(2).support.x.shape[1], other.train, family.shots) == (4, family.train, 2)
    assert family.to("cpu").batch(2).support.x.equal(family.batch(2).support.x)


def test_two_lists_are_numbered_on():
    pairs = list(numbered([4, 5, 6]).values())
    family = ml.tasks.Given(pairs[:2], pairs[2:], shots=2)
    assert (family.train.names, family.test.names) == (("0", "1"), ("2",))
    held = family.held_out()
    assert held.ids.tolist() == [2] and family.name(held.ids[0]) == "2"
    assert set(rows(held.support, 0)) <= set(pairs[2][1].flatten().tolist())


def test_groups_go_by_the_names_as_they_were_given():
    tasks = dict(enumerate(numbered([4] * 6).values()))
    family = parted(tasks, 0.5, groups={i: i % 2 for i in range(6)}, shots=2)
    assert sorted(family.test.names) in (["0", "2", "4"], ["1", "3", "5"])


X, Y = torch.rand(6, 1), torch.rand(6, 1)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ml.tasks.Given({}), "no task to train on"),
    (lambda: ml.tasks.Given({"ann": (X, Y), "bob": (X[:0], Y[:0])}), "'bob' has no example"),
    (lambda: ml.tasks.Given({"ann": (X, Y), "bob": (X[:1], Y[:1])}), "'bob' has 1 examples"),
    (lambda: ml.tasks.Given({"ann": (X, Y[:5])}), "'ann' has 5 and 6 rows"),
    (lambda: ml.tasks.Given({"ann": (X, Y / 0)}), "'ann' has a value that is not finite .* in y"),
    (lambda: ml.tasks.Given({"ann": (X, Y), "bob": (torch.rand(6, 2), Y)}), "'bob' has shapes"),
    (lambda: ml.tasks.Given({"ann": (X, Y.double()), "bob": (X, Y)}), "'bob' has shapes and types"),
    (lambda: ml.tasks.Given({"ann": (X, ["low"] * 6)}), "'ann' holds something that is no number"),
    (lambda: ml.tasks.Given({1: (X, Y), "1": (X, Y)}), "two tasks have the same name, '1'"),
    (lambda: ml.tasks.Given({"ann": X}), "'ann' is Tensor; a pair"),
    (lambda: ml.tasks.Given({"ann": (X, Y, X)}), "'ann' is 3 things; a pair"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}, {"ann": (X, Y)}), "'ann' is to be trained on and"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}, shots=6), "6 \\+ 1 are needed"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}, shots=0), "shots=0"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}, queries=1.5), "queries=1.5"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}, split="last"), "split='last'"),
    (lambda: ml.tasks.Given({"ann": (X, Y)}).held_out(), "no task is held out"),
    (lambda: parted({"ann": (X, Y)}), "1 group cannot be parted"),
    (lambda: parted({"ann": (X, Y), "bob": (X, Y)}, test=1.5), "test=1.5"),
    (lambda: parted({"ann": (X, Y), "bob": (X, Y)}, groups={"ann": 1}), "no group for task 'bob'"),
])
def test_what_cannot_be_a_finite_set_is_named(make, words):
    with pytest.raises(ValueError, match=words): make()
