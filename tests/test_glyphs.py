"""Characters that are drawn from fonts."""
import numpy as np
import pytest
import torch

from metalit.data import glyphs as module
from metalit.data import images
from metalit.data.glyphs import alike, distinct_letters, drawn, fonts, glyphs, hand, letters
from metalit.data.images import check_disjoint


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return glyphs(tmp_path_factory.mktemp("glyphs"), per_class=3)


@pytest.fixture(scope="module")
def upright():
    return next(path for path in fonts() if path.stem == "DejaVuSans")


def test_hundreds_of_classes_all_with_ink_and_all_different(few):
    assert len(few.names) > 500
    assert len(set(few.names)) == len(few.names)
    assert torch.equal(few.labels, torch.arange(len(few.names)).repeat_interleave(3))
    assert few.images.shape[1:] == (1, 28, 28)
    assert few.images.dtype == torch.uint8
    assert (few.images.flatten(1).amax(1) > 100).all()
    assert len(few.images.flatten(1).unique(dim=0)) == len(few.images)


def test_letters_of_several_scripts(few):
    assert {"LATIN", "GREEK", "CYRILLIC", "GEORGIAN"} <= {name.split()[0] for name in few.names}


def test_letters_that_look_alike_are_one_class(upright):
    found = letters()
    kept = distinct_letters({letter: found[letter] for letter in "AΑАoOBш"})
    assert list(kept) == ["A", "o", "B", "ш"] or list(kept) == ["A", "O", "B", "ш"]
    np.testing.assert_allclose(alike("A", upright) @ alike("Α", upright), 1)
    np.testing.assert_allclose(np.linalg.norm(alike("B", upright)), 1)


def test_a_letter_without_ink_is_no_class(upright):
    assert not distinct_letters({" ": [upright]})


def test_the_same_seed_gives_the_same_images_and_another_does_not(monkeypatch, tmp_path):
    small = {letter: paths[:2] for letter, paths in letters().items() if letter in "abc"}
    monkeypatch.setattr(module, "letters", lambda: small)
    monkeypatch.setattr(images, "user_cache", lambda: tmp_path / "user")
    first, again, other = (glyphs(tmp_path / str(i), per_class=2, seed=seed)
                           for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_images_are_made_once(monkeypatch, tmp_path, few):
    small = {letter: paths[:1] for letter, paths in letters().items() if letter in "ab"}
    monkeypatch.setattr(module, "letters", lambda: small)
    made = glyphs(tmp_path, per_class=1)
    monkeypatch.setattr(module, "letters", lambda: pytest.fail("drawn again"))
    assert torch.equal(glyphs(tmp_path, per_class=1).images, made.images)
    assert len(list(tmp_path.iterdir())) == 1


def test_where_no_folder_can_be_written_they_are_made_all_the_same(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    small = {letter: paths[:1] for letter, paths in letters().items() if letter in "ab"}
    monkeypatch.setattr(module, "letters", lambda: small)
    monkeypatch.setattr(images, "user_cache", lambda: file / "user")
    assert len(glyphs(file / "data", per_class=2).images) == 4


def test_a_spoilt_file_is_said(monkeypatch, tmp_path):
    small = {letter: paths[:1] for letter, paths in letters().items() if letter in "ab"}
    monkeypatch.setattr(module, "letters", lambda: small)
    glyphs(tmp_path, per_class=1)
    next(tmp_path.iterdir()).write_bytes(b"spoilt")
    with pytest.raises(ValueError, match="delete it, and it will be made again"):
        glyphs(tmp_path, per_class=1)


def test_a_hand_without_shake_only_scales(upright):
    class Still:
        def normal(self, mean, spread, size=None):
            return np.zeros(np.shape(spread) if size is None else size)
    picture = drawn("ξ", upright, size=56)
    still = hand(picture, Still(), 28)
    np.testing.assert_allclose(still, picture.reshape(28, 2, 28, 2).mean((1, 3)), atol=1)


def test_a_hand_moves_what_it_copies(upright):
    random, picture = np.random.default_rng(0), drawn("ξ", upright)
    copies = np.stack([hand(picture, random, 28) for _ in range(50)]).astype(float)
    assert copies.std(0).max() > 40
    assert (copies.sum((1, 2)) > 0.5 * copies.sum((1, 2)).mean()).all()


def test_a_split_has_nothing_in_common(few):
    train, test = few.split((0.8, 0.2))
    check_disjoint(train.episodes(), test.episodes())
    assert not set(train.names) & set(test.names)


@pytest.mark.parametrize("options", [{"size": 0}, {"per_class": 0}])
def test_counts_below_one(options):
    with pytest.raises(ValueError, match="at least 1 is needed"): glyphs(**options)
