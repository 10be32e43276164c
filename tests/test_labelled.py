"""Episodes from labelled examples of any shape: what is dealt, held out and refused."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import metalit as ml
from metalit.tasks import Episodes, episodes_of

X = torch.arange(120.0).reshape(40, 3)                       # each row is another
LABELS = [f"kind {i % 8}" for i in range(40)]


class Pairs(Dataset):
    "Rows with their words, without an end that it says by an IndexError."
    def __len__(self): return len(X)
    def __getitem__(self, i): return X[i % len(X)], LABELS[i % len(X)]


def dealt(family, batch=30):
    "For each class of each episode the labels of its examples, found by their first number."
    task, found = family.batch(batch), []
    for b in range(batch):
        x, y = (torch.cat([getattr(split, name)[b] for split in (task.support, task.query)])
                for name in "xy")
        rows = [int(row.flatten()[0]) // 3 for row in x]
        assert len(set(rows)) == len(rows)                   # no example twice
        found.append({c: {LABELS[row] for row, k in zip(rows, y.tolist(), strict=True) if k == c}
                      for c in range(family.ways)})
    return found


@pytest.mark.parametrize("source", [(Pairs(),), (X, LABELS), (X.numpy(), np.array(LABELS)),
                                    (X.tolist(), LABELS)])
def test_an_episode_holds_examples_of_its_classes_alone(source):
    train, test = episodes_of(*source, ways=2, shots=2, test=0.25)
    sides = []
    for family in (train, test):
        classes = [c for episode in dealt(family) for c in episode.values()]
        assert all(len(c) == 1 for c in classes)
        sides.append(set.union(*classes))
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(LABELS) and len(sides[1]) == 2


def test_numbers_and_words_and_sources_say_the_same():
    numbers = TensorDataset(X, torch.arange(40) % 8)
    first = episodes_of(Pairs(), ways=2)[0].batch(5)
    assert torch.equal(episodes_of(X, LABELS, ways=2)[0].batch(5).support.x, first.support.x)
    one, other = (episodes_of(*source, ways=2)[0].batch(5).support.x
                  for source in ((numbers,), (X, np.arange(40) % 8)))
    assert torch.equal(one, other)


def test_the_same_seed_holds_out_the_same_classes_in_any_order_of_rows():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [(X[i], LABELS[i]) for i in order]
    for seed in range(4):
        sides = [{c for episode in dealt(episodes_of(source, ways=2, seed=seed)[1])
                  for kinds in episode.values() for c in kinds} for source in (Pairs(), shuffled)]
        assert sides[0] == sides[1]


def test_groups_of_classes_are_held_out_whole():
    groups = {f"kind {i}": i // 2 for i in range(8)}
    for seed in range(4):
        test = episodes_of(Pairs(), groups=groups, test=0.3, ways=2, seed=seed)[1]
        held = {c for episode in dealt(test) for kinds in episode.values() for c in kinds}
        assert len(held) == 2 and len({groups[c] for c in held}) == 1
    with pytest.raises(ValueError, match="no group for task 'kind 0'"):
        episodes_of(Pairs(), groups={"kind 1": 0}, ways=2)


def test_a_class_with_too_few_examples_is_named_or_left_out():
    labels = ["rare", "scarce", "scarce", *LABELS[3:]]
    with pytest.raises(ValueError, match=r"needs 2 \+ 1 .* and 'rare' has 1, 'scarce' has 2: take"):
        episodes_of(X, labels, shots=2, queries=1, ways=2)
    families = episodes_of(X, labels, shots=2, queries=1, ways=2, short="drop")
    assert sum(len(family.classes) for family in families) == 8
    with pytest.raises(ValueError, match="and 5 others have too few"):
        episodes_of(X, [*LABELS[:-2], "a", "b"], shots=9, short="drop")


@pytest.mark.parametrize("x", [torch.randint(0, 9, (40, 5)), torch.rand(40, 7, 2),
                               torch.randint(0, 9, (40, 5), dtype=torch.int32),
                               torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)])
def test_examples_keep_their_shape_and_words_stay_whole(x):
    task = episodes_of(x, LABELS, ways=2, shots=2)[0].batch(3)
    assert task.support.x.shape == (3, 4, *x.shape[1:])
    whole = x.dtype in (torch.int32, torch.int64)
    assert task.support.x.dtype == (torch.int64 if whole else torch.float32)
    assert task.support.x.max() <= (8 if whole else 1)


def test_a_model_with_an_embedding_learns_words():
    torch.manual_seed(0)
    words = torch.randint(0, 30, (40, 5))
    train, _ = episodes_of(words, LABELS, ways=2, shots=2)
    model = nn.Sequential(nn.Embedding(30, 8), nn.Flatten(), nn.Linear(40, 2))
    J = ml.MAML(model, F.cross_entropy, lr=0.1)
    before = J(train.batch(20)).item()
    ml.meta_train(J, train, steps=40, batch_size=4, progress=False,
                  optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    assert J(train.batch(20)).item() < 0.9 * before


@pytest.mark.parametrize(("source", "words"), [
    ((X, LABELS[:-1]), "40 examples and 39 labels"),
    ((X, [None, *LABELS[1:]]), "example 0 has no label"),
    ((X, ["", *LABELS[1:]]), "example 0 has no label"),
    ((X, torch.eye(8).repeat(5, 1)), r"label of example 0 has shape \(8,\): .* argmax"),
    ((X, np.eye(8)[[0] * 40]), r"label of example 0 has shape \(8,\)"),
    ((X / 0, LABELS), r"example 0 has a value that is not finite"),
    (([{"x": X[0]}],), r"\[0\] of the dataset is a dict"),
    (([(X[0], 1), (X[1, :2], 1)],), r"found \[1\] \(2,\) and \[0\] \(3,\)"),
    (([],), "the dataset has no example"), (([("word", 1)],), "an example is no tensor")])
def test_what_cannot_be_learned_from_is_named(source, words):
    with pytest.raises(ValueError, match=words): episodes_of(*source)


def test_rules_and_shares_are_checked():
    with pytest.raises(ValueError, match="short='skip'"): episodes_of(X, LABELS, short="skip")
    with pytest.raises(ValueError, match="test=2"): episodes_of(X, LABELS, test=2)
    with pytest.raises(ValueError, match="only 2 classes"):
        episodes_of(X, LABELS, ways=3, test=0.25)
    with pytest.raises(ValueError, match="class 0 has 5 and class 1 has 5 and class 2 has 5 "
                       r"\(8 classes have too few\)"):
        Episodes(X, torch.arange(40) % 8, 2, 3, 3)
