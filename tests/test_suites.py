"""Frozen suites: the same tasks everywhere, verified; looked at as a whole; taken as a family."""
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.judging import suites
from metalit.judging.suites import (
    SEED,
    SUITES,
    Frozen,
    Recorded,
    check_frozen,
    marks_of,
    tensors_of,
)
from metalit.training.identity import identity

OF_FORMULAS = [name for name in suites.names() if "omniglot" not in name]


@pytest.fixture(scope="module")
def waves():
    return ml.suites.get("sinusoids-5-shot")


@pytest.fixture
def J():
    return ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.05)


@pytest.mark.parametrize("name", OF_FORMULAS)
def test_a_suite_is_what_its_family_holds_out(name):
    suite, frozen = ml.suites.get(name), SUITES[name]
    train, judged = frozen.made(None)
    again = judged.held_out(frozen.n_tasks, SEED)
    assert all(torch.equal(one, other) for one, other in
               zip(tensors_of(suite.tasks).values(), tensors_of(again).values(), strict=True))
    for one, other in zip(suite.batch(3, 5, 7), train.batch(3, 5, 7), strict=True):
        assert torch.equal(one.x, other.x)
    assert suite.n_held_out == suite.tasks.batch_size == frozen.n_tasks
    assert suite.checksum == frozen.checksum(name)


def test_checksums_differ_and_are_a_hash_of_what_is_known():
    assert len({frozen.checksum(name) for name, frozen in SUITES.items()}) == len(SUITES)
    frozen = SUITES["bowls"]
    assert frozen.checksum("bowls") != frozen.checksum("bowl")
    assert frozen.checksum("bowls") != frozen._replace(words="0").checksum("bowls")


def changed(task, place):
    "One number of one tensor is another."
    which, part = place.split()
    split = getattr(task, which)
    tensor = getattr(split, part).clone()
    tensor[11] += 0.5
    return replace(task, **{which: replace(split, **{part: tensor})})


@pytest.mark.parametrize("place", ["support x", "support y", "query x", "query y"])
def test_what_differs_is_named(waves, place):
    frozen = SUITES["sinusoids-5-shot"]
    check_frozen("it", frozen, frozen.words, waves.tasks)
    with pytest.raises(ValueError, match=f"'it' is not what it was: {place} differ"):
        check_frozen("it", frozen, frozen.words, changed(waves.tasks, place))
    with pytest.raises(ValueError, match="not what it was: the random numbers drawn differ"):
        check_frozen("it", frozen, "0" * 64, waves.tasks)


def test_the_last_bit_is_no_difference(waves):
    "As another processor would round it: half of the numbers one unit in the last place up."
    tasks, frozen = waves.tasks, SUITES["sinusoids-5-shot"]
    up = torch.arange(tasks.query.y.numel()).reshape(tasks.query.y.shape) % 2 == 0
    y = torch.where(up, torch.nextafter(tasks.query.y, torch.tensor(9.0)), tasks.query.y)
    rounded = replace(tasks, query=replace(tasks.query, y=y))
    assert not torch.equal(y, tasks.query.y)
    check_frozen("it", frozen, frozen.words, rounded)


def test_words_are_those_of_random_and_depend_on_what_is_asked():
    one, other, plain = (kind.of_steps(3, [-1], 4) for kind in (Recorded, Recorded,
                                                                ml.tasks.Random))
    assert torch.equal(one.uniform((4, 2)), plain.uniform((4, 2)))
    assert one.checksum != other.checksum
    other.uniform((4, 2))
    assert one.checksum == other.checksum
    one.words((4, 6))
    other.words((4, 3, 2))
    assert one.checksum != other.checksum


def test_marks_are_what_one_computes_by_hand():
    cosines = torch.arange(2, dtype=torch.float64).cos()
    mean, square, by_place = marks_of(torch.tensor([[1.0], [3.0]]))
    assert (mean, square) == (2.0, 5.0)
    assert by_place == pytest.approx((cosines[0] + 3 * cosines[1]).item() / 2, abs=1e-15)


def test_each_part_of_the_bins_has_its_share():
    counts = ml.suites.get("amplitude-bins").tasks.ids.bincount()
    assert counts.tolist() == [20] * 100
    with pytest.raises(ValueError, match="150 tasks cannot be shared by 100 parts"):
        suites.InShares(ml.tasks.BinnedSinusoids()).held_out(150)


def test_evaluate_and_compare_take_a_suite(waves, J, tmp_path):
    found = ml.evaluate(J, waves, steps=(0, 1))
    at_hand = ml.evaluate(J, waves.tasks, steps=(0, 1))
    assert torch.equal(found.per_task, at_hand.per_task) and found.n_tasks == 600
    runs = ml.compare(waves, lambda seed: ml.models.mlp(1, 8, 1, seed=seed), F.mse_loss,
                      methods=["maml", "blind"], steps=1, seeds=[0], inner_steps=(1,),
                      folder=tmp_path, progress=False)
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss)
    ml.meta_train(J, waves.train, steps=1, progress=False)
    assert runs[0].rows[0]["loss"] == ml.evaluate(J, waves, steps=(1,)).mean[0]


def test_a_metric_of_its_own_is_the_default_and_compare_keeps_the_loss(waves, J, tmp_path):
    own = ml.suites.Suite("own", waves.train, waves.tasks, F.l1_loss, "0")
    assert ml.evaluate(J, own, steps=(1,)).metric == "l1_loss"
    assert ml.evaluate(J, own, steps=(1,), metric=F.mse_loss).metric == "mse_loss"
    run, = ml.compare(own, lambda seed: ml.models.mlp(1, 8, 1, seed=seed), F.mse_loss, seeds=[0],
                      methods=["maml"], steps=0, inner_steps=(1,), folder=tmp_path, progress=False)
    start = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss)
    assert run.rows[0]["loss"] == ml.evaluate(start, waves, steps=(1,)).mean[0]


def test_a_part_or_other_tasks_cannot_be_had(waves, J):
    for asked in ({"n_tasks": 2}, {"seed": 1}):
        with pytest.raises(ValueError, match="looked at as a whole"): ml.evaluate(J, waves, **asked)
    with pytest.raises(ValueError, match="2 of its 600 tasks cannot be had"):
        ml.meta_train(J, waves.train, steps=1, validation=ml.Validation(waves, n_tasks=2))
    with pytest.raises(ValueError, match=r"did you mean bowls\?"): ml.suites.get("bowl")


def test_a_suite_tells_what_it_is(waves):
    told = json.dumps(identity(waves))
    assert waves.checksum in told and "Sinusoids" in told
    assert repr(waves).startswith("Suite('sinusoids-5-shot', 600 tasks, ")
    assert waves.to("cpu").tasks is waves.tasks


def test_what_is_frozen_says_where_its_tasks_come_from():
    assert all(isinstance(frozen, Frozen) and len(frozen.words) == 64 and len(frozen.marks) == 4
               for frozen in SUITES.values())
