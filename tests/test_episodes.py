"""Episodes of few-shot classification: what is drawn, how often, and from which classes."""
import pytest
import torch

from metalit.tasks import Episodes, Family, Quadratics, Random, Sinusoids, Task, check_task
from metalit.tasks.episodes import distinct
from metalit.training.identity import identity, label

SIZES = (6, 7, 8, 9, 10, 11)                                  # unequal classes
LABELS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
TURNS = (0, 90, 180, 270)


def numbered(n: int = len(LABELS)) -> torch.Tensor:
    "One-pixel images, whose value is their own number: so an episode says which images it holds."
    return torch.arange(float(n)).reshape(-1, 1, 1, 1)


def marked(classes: int = 4, copies: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    "2 × 2 pixels: the first is the class, from 1, the others 0; so a turned image says how far."
    images = torch.zeros(classes * copies, 1, 2, 2)
    images[:, 0, 0, 0] = torch.arange(classes).repeat_interleave(copies) + 1
    return images, torch.arange(classes).repeat_interleave(copies)


def which(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    "The images and labels of each task, support first: (B, examples)."
    return (torch.cat([split.x.flatten(1) for split in task], 1).long(),
            torch.cat([split.y for split in task], 1))


def class_and_turn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Of marked images: the class, and how many quarters they were turned (to the left)."
    value, corner = x.flatten(-3).max(-1)
    return value.long() - 1, torch.tensor([0, 3, 1, 2])[corner]  # 0 1 / 2 3 are the pixels


def same(a: Task, b: Task) -> bool:
    return all(torch.equal(t, u) for s, r in zip(a, b, strict=True)
               for t, u in zip(s, r, strict=True))


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.double().mean()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.fixture
def episodes() -> Episodes:
    return Episodes(numbered(), LABELS, ways=3, shots=2, queries=4)


# Structure

def test_shapes_and_types():
    images = torch.zeros(40, 3, 5, 7, dtype=torch.uint8)
    task = Episodes(images, torch.arange(40) // 8, ways=4, shots=2, queries=5).batch(6)
    assert task.support.x.shape == (6, 8, 3, 5, 7)
    assert task.query.x.shape == (6, 20, 3, 5, 7)
    assert task.support.y.shape == (6, 8)
    assert task.query.y.shape == (6, 20)
    assert task.query.x.dtype == torch.float32
    assert task.query.y.dtype == torch.int64
    assert check_task(task)


def test_queries_default_to_shots():
    assert Episodes(numbered(), LABELS, ways=2, shots=3).batch(2).query.y.shape == (2, 6)


def test_classes_come_in_turn(episodes):
    task = episodes.batch(5)
    assert torch.equal(task.support.y, torch.arange(3).repeat(5, 2))
    assert torch.equal(task.query.y, torch.arange(3).repeat(5, 4))


def test_images_of_an_episode_are_all_different_so_support_and_query_share_none(episodes):
    images, _ = which(episodes.batch(2000))
    assert (images.sort(1).values.diff(dim=1) > 0).all()


def test_a_label_means_one_class_throughout_an_episode_and_another_means_another(episodes):
    images, labels = which(episodes.batch(2000))
    classes = LABELS[images]
    of_label = classes[:, :3]
    assert torch.equal(classes, of_label.gather(1, labels))
    assert (of_label.sort(1).values.diff(dim=1) > 0).all()


def test_a_class_with_just_enough_images_gives_all_of_them(episodes):
    images, _ = which(episodes.batch(500))
    smallest = images[LABELS[images] == 0].reshape(-1, 6)
    assert len(smallest) > 100
    assert torch.equal(smallest.sort(1).values, torch.arange(6).expand(len(smallest), -1))


def test_labels_may_be_any_whole_numbers_in_any_order():
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))
    odd = torch.tensor([900, -4, 17, 3, 88, 0])[LABELS]
    episodes = Episodes(numbered()[order], odd[order].to(torch.int16), ways=6, shots=1, queries=5)
    images, labels = which(episodes.batch(200))
    assert torch.equal(odd[images], odd[images][:, :6].gather(1, labels))
    assert (images.sort(1).values.diff(dim=1) > 0).all()


# Frequencies: chi-square with a fixed seed, bounds at about one in a million

def test_each_class_has_each_label_equally_often(episodes):
    images, _ = which(episodes.batch(6000))
    counts = torch.stack([torch.bincount(column, minlength=6)
                          for column in LABELS[images[:, :3]].T])
    assert chi_square(counts) < 60                            # 17 degrees of freedom


def test_each_image_of_a_class_is_drawn_equally_often_also_as_support(episodes):
    images, _ = which(episodes.batch(6000))
    for part in (images, images[:, :6]):
        counts = torch.bincount(part[LABELS[part] == 5], minlength=len(LABELS))[LABELS == 5]
        assert len(counts) == 11
        assert chi_square(counts) < 55                        # 10 degrees of freedom


def test_distinct_gives_each_ordered_choice_equally_often():
    pairs = distinct(Random.of_steps(0, [0], 60_000), (60_000, 4), 2)
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    assert (counts[::5] == 0).all()
    assert chi_square(counts[counts > 0]) < 58                # 11 degrees of freedom
    assert len(counts[counts > 0]) == 12


# Rotations

def test_without_rotations_images_are_as_they_were():
    images, labels = marked()
    _, turn = class_and_turn(Episodes(images, labels, 3, 1, 2).batch(50).query.x)
    assert (turn == 0).all()


def test_a_turn_is_that_of_rot90():
    images, labels = marked()
    for quarter, angle in enumerate(TURNS):
        task = Episodes(images, labels, 3, 1, 2, rotations=(angle,)).batch(5)
        kind, turn = class_and_turn(task.support.x)
        assert (turn == quarter).all()
        torch.testing.assert_close(task.support.x, torch.rot90(images[kind * 5], quarter, (-2, -1)),
                                   rtol=0, atol=0)


def test_a_class_is_turned_by_one_angle_throughout_an_episode_and_drawn_anew_in_each():
    images, labels = marked()
    task = Episodes(images, labels, 3, 2, 3, rotations=TURNS).batch(3000)
    for split in task:
        kind, turn = class_and_turn(split.x)
        assert torch.equal(turn, turn[:, :3].gather(1, split.y))
        assert torch.equal(kind, kind[:, :3].gather(1, split.y))
    kind, turn = class_and_turn(task.support.x[:, :3])
    query_kind, query_turn = class_and_turn(task.query.x[:, :3])
    assert torch.equal(turn, query_turn)
    assert torch.equal(kind, query_kind)
    assert (kind.sort(1).values.diff(dim=1) > 0).all()        # never two turns of one character
    # classes turn independently
    assert chi_square(torch.bincount(4 * turn[:, 0] + turn[:, 1], minlength=16)) < 70
    # 15 degrees of freedom
    assert chi_square(torch.bincount((4 * kind + turn).flatten(), minlength=16)) < 70


def test_turns_as_classes_may_put_one_character_under_two_labels_but_never_one_turn():
    images, labels = marked()
    task = Episodes(images, labels, 3, 2, 3, rotations=TURNS, rotations_as_classes=True).batch(4000)
    kind, turn = class_and_turn(task.support.x)
    of_class = 4 * kind + turn
    assert torch.equal(of_class, of_class[:, :3].gather(1, task.support.y))
    assert (of_class[:, :3].sort(1).values.diff(dim=1) > 0).all()
    twice = (kind[:, :3].sort(1).values.diff(dim=1) == 0).any(1).double().mean().item()
    formula = 1 - (16 / 16) * (12 / 15) * (8 / 14)
    assert abs(twice - formula) < 4.9 * (formula * (1 - formula) / 4000) ** 0.5
    assert chi_square(torch.bincount(of_class[:, :3].flatten(), minlength=16)) < 70


def test_turns_as_classes_make_more_ways_possible():
    images, labels = marked()
    assert Episodes(images, labels, 16, 1, 1, rotations=TURNS,
                    rotations_as_classes=True).batch(2).support.y.max() == 15
    with pytest.raises(ValueError, match="only 4 classes"):
        Episodes(images, labels, 16, 1, 1, rotations=TURNS)


def test_long_images_turn_by_half_turns():
    images = torch.arange(60.0).reshape(10, 1, 2, 3)
    task = Episodes(images, torch.arange(10) // 5, 2, 1, 2, rotations=(180,)).batch(3)
    number = (task.support.x.flatten(2).amin(-1) / 6).long()
    torch.testing.assert_close(task.support.x, images[number].flip(-1, -2), rtol=0, atol=0)


# Seeds

def test_the_same_seed_and_step_give_the_same_episodes_and_others_give_others(episodes):
    batch = episodes.batch(8, seed=3, step=5)
    assert same(batch, episodes.batch(8, seed=3, step=5))
    assert same(batch, list(episodes.stream(8, steps=6, seed=3))[5])
    for other in (episodes.batch(8, seed=3, step=6), episodes.batch(8, seed=4, step=5),
                  episodes.held_out(8, seed=3)):
        assert not torch.equal(batch.support.x, other.support.x)


def test_held_out_episodes_repeat_and_no_global_random_state_is_touched(episodes):
    before = torch.get_rng_state()
    assert same(episodes.held_out(5, seed=1), episodes.held_out(5, seed=1))
    assert not same(episodes.held_out(5, seed=1), episodes.held_out(5, seed=2))
    assert torch.equal(before, torch.get_rng_state())


def test_bytes_and_floats_give_the_same_episodes_and_floats_keep_their_type():
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) // 8
    of_bytes = Episodes(images, labels, 3, 2, 2, rotations=TURNS).batch(20, seed=1)
    for dtype in (torch.float32, torch.float64):
        of_floats = Episodes(images.to(dtype) / 255, labels, 3, 2, 2, rotations=TURNS).batch(20,
                                                                                             seed=1)
        assert of_floats.query.x.dtype == dtype
        torch.testing.assert_close(of_floats.query.x, of_bytes.query.x.to(dtype), rtol=0, atol=1e-7)
    values = Episodes(images.float(), labels, 3, 2, 2).batch(20).query.x
    assert values.max() > 200                                 # floats are not divided by anything
    assert 0.9 < of_bytes.query.x.max() <= 1


# Other settings, other places

def test_having_changes_what_is_said_and_keeps_the_rest():
    images, labels = marked()
    first = Episodes(images, labels, 3, 1, 2, rotations=TURNS, rotations_as_classes=True)
    second = first.having(shots=2)
    assert (second.ways, second.shots, second.queries) == (3, 2, 2)
    assert (second.rotations, second.rotations_as_classes) == (TURNS, True)
    assert (first.shots, second.images is images) == (1, True)
    assert same(first.having().batch(3), first.batch(3))
    with pytest.raises(ValueError, match="different images of each class"): first.having(shots=10)


def test_to_makes_the_same_episodes(episodes):
    moved = episodes.to("cpu")
    assert isinstance(moved, Episodes)
    assert same(moved.batch(4), episodes.batch(4))
    assert identity(moved) == identity(episodes)


def test_to_moves_images_and_labels(episodes, monkeypatch):
    asked, plain = [], torch.Tensor.to
    def recorded(self, *args, **kwargs):
        asked.append((self is episodes.images, self is episodes.labels, args))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    episodes.to("cpu")
    assert (True, False, ("cpu",)) in asked
    assert (False, True, ("cpu",)) in asked


def test_identity_tells_settings_images_and_labels():
    images, labels = marked(4, 6)
    first = Episodes(images, labels, 3, 1, 2)
    altered = images.clone()
    altered[3, 0, 1, 1] = 0.5
    exchanged = labels.clone()
    exchanged[[0, 6]] = labels[[6, 0]]
    others = [first.having(ways=2), first.having(shots=2), first.having(queries=1),
              first.having(rotations=TURNS),
              first.having(rotations=TURNS, rotations_as_classes=True),
              first.having(images=altered),
              first.having(labels=exchanged), first.having(images=(255 * images).byte())]
    assert len({label(family) for family in [first, *others]}) == 9
    assert label(Episodes(images.clone(), labels.to(torch.int32), 3, 1, 2)) == label(first)


def test_families_from_formulas_stay_where_they_are_and_say_who_they_are():
    class Own(Family):
        pass

    waves = Sinusoids(shots=5)
    assert waves.to("cpu") is waves
    assert label(waves).startswith(f"{waves!r} ")
    assert label(Own()).startswith("Own ")
    assert identity(Quadratics()) == identity(Quadratics())
    assert identity(waves) != identity(Sinusoids(shots=6))


def test_repr_says_classes_and_settings(episodes):
    assert repr(episodes) == "Episodes(6 classes of 6 to 11 examples, ways=3, shots=2, queries=4)"


# Errors

IMAGES, FOUR = torch.zeros(20, 1, 4, 4), torch.arange(20) // 5

MISTAKES = {
    "one way": (lambda: Episodes(IMAGES, FOUR, 1), "ways=1: at least 2"),
    "no shot": (lambda: Episodes(IMAGES, FOUR, 2, 0), "shots=0: at least 1"),
    "no query": (lambda: Episodes(IMAGES, FOUR, 2, 1, 0), "queries=0: at least 1"),
    "more ways than classes": (lambda: Episodes(IMAGES, FOUR, 5),
                               "ways=5, but there are only 4 classes"),
    "too few images": (lambda: Episodes(IMAGES, FOUR, 2, 3, 3),
                       r"needs 3 \+ 3 different .* class 0 has 5"),
    "the smallest class is named": (lambda: Episodes(numbered(), 12 - LABELS, 2, 3, 4),
                                    "class 12 has 6"),
    "one image": (lambda: Episodes(IMAGES[0], FOUR), "each of the 1 examples"),
    "one number": (lambda: Episodes(IMAGES[:, 0, 0, 0], FOUR), r"found \(20,\)"),
    "words as bytes": (lambda: Episodes(IMAGES[:, 0, 0].byte(), FOUR),
                       r"examples are of type torch.uint8: whole numbers \(torch.int64\)"),
    "rows on their side": (lambda: Episodes(IMAGES[:, 0], FOUR, 2, rotations=(0, 180)),
                           "only images can be turned"),
    "no images": (lambda: Episodes(IMAGES[:0], FOUR[:0]), r"found \(0, 1, 4, 4\)"),
    "a list": (lambda: Episodes([1, 2], FOUR), "found list"),
    "whole numbers that are no bytes": (lambda: Episodes(IMAGES.int(), FOUR),
                                        "images are of type torch.int32"),
    "labels of other images": (lambda: Episodes(IMAGES, FOUR[:-1]),
                               r"of the 20 images .* shape \(19,\)"),
    "labels with an axis": (lambda: Episodes(IMAGES, FOUR[:, None]), r"shape \(20, 1\)"),
    "labels that are floats": (lambda: Episodes(IMAGES, FOUR.float()), "found torch.float32"),
    "labels in a list": (lambda: Episodes(IMAGES, FOUR.tolist()), "found list"),
    "half a quarter": (lambda: Episodes(IMAGES, FOUR, 2, rotations=(0, 45)), "multiples of 90"),
    "no rotations": (lambda: Episodes(IMAGES, FOUR, 2, rotations=()), r"\(0,\) for none"),
    "long images on their side": (lambda: Episodes(IMAGES[..., :3], FOUR, 2, rotations=(0, 90)),
                                  "4 × 3 pixels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message): make()
