"""Images: what a folder or tensors become, splits by class, and the search for a split that leaks.
"""
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import faults
from metalit.data.images import (
    Images,
    check_disjoint,
    from_folder,
    load_images,
    same_picture,
    save_images,
    stacked_files,
)
from metalit.tasks import Episodes


def pictures(n: int, side: int = 6, seed: int = 0) -> torch.Tensor:
    "Random bytes: no two images are alike."
    return torch.randint(256, (n, 1, side, side), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def ten_classes(each: int = 3) -> Images:
    return Images(pictures(10 * each), torch.arange(10).repeat_interleave(each),
                  [f"class {c}" for c in range(10)])


def with_turns(images: Images) -> Images:
    "Each class four times, turned."
    n = len(images.names)
    return Images(torch.cat([torch.rot90(images.images, k, (-2, -1)) for k in range(4)]),
                  torch.cat([images.labels + k * n for k in range(4)]),
                  [f"{name}, {k}" for k in range(4) for name in images.names])


def save(folder, name: str, array, **options) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(folder / name, **options)


@pytest.fixture
def folder(tmp_path):
    "Two classes, three and two images of 5 × 4 pixels."
    for name, count in {"b": 2, "a": 3}.items():
        for i in range(count):
            save(tmp_path / "letters" / name, f"{i}.png", np.full((5, 4), 10 * ord(name) % 256 + i))
    return tmp_path / "letters"


# What belongs together


@pytest.mark.parametrize(("images", "labels", "names", "words"), [
    (torch.zeros(2, 4, 4), torch.tensor([0, 1]), "ab", r"found \(2, 4, 4\) and \(2,\)"),
    (torch.zeros(3, 1, 4, 4), torch.tensor([0, 1]), "ab", r"found \(3, 1, 4, 4\) and \(2,\)"),
    (np.zeros((2, 1, 4, 4)), torch.tensor([0, 1]), "ab", "found ndarray"),
    (torch.zeros(2, 1, 4, 4), [0, 1], "ab", "and list"),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 1.0]), "ab", "whole numbers are needed"),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), "ab", "label 2 of image 1 is out of range"),
    (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 0]), "ab", "label -1 of image 0 is out of range"),
    (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]), "abc", r"class 1 \(b\) has no image"),
])
def test_what_does_not_belong_together_is_refused(images, labels, names, words):
    with pytest.raises(ValueError, match=words): Images(images, labels, list(names))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_select_numbers_the_classes_anew_in_the_order_given(dtype):
    images = ten_classes()
    images = Images(images.images, images.labels.to(dtype), images.names)
    some = images.select([7, 2])
    assert some.names == ["class 7", "class 2"] and some.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert torch.equal(some.images, torch.cat([images.images[6:9], images.images[21:24]]))


@pytest.mark.parametrize("classes", [[1, 1], [10], [-1]])
def test_select_refuses_classes_that_are_not_there_or_given_twice(classes):
    with pytest.raises(ValueError, match="different numbers from 0 to 9"):
        ten_classes().select(classes)


def test_two_lines_make_episodes(folder):
    family = from_folder(folder).episodes(ways=2, shots=1)
    task = family.batch(5, seed=0)
    assert isinstance(family, Episodes)
    assert task.support.x.shape == task.query.x.shape == (5, 2, 1, 5, 4)
    assert 0 < task.support.x.max() <= 1 and family.shots == family.queries == 1


@pytest.mark.parametrize(("counts", "words"), [
    ({"ways": 11}, "only 10 classes"), ({"shots": 3}, "3 \\+ 3 different images"),
])
def test_episodes_of_too_few_classes_or_images_are_refused(counts, words):
    with pytest.raises(ValueError, match=words): ten_classes().episodes(**counts)


# Folders


def test_a_folder_becomes_images_in_the_order_of_names(folder):
    images = from_folder(folder)
    assert images.names == ["a", "b"] and images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.images.shape == (5, 1, 5, 4) and images.images.dtype == torch.uint8
    assert images.images[:, 0, 0, 0].tolist() == [202, 203, 204, 212, 213]
    assert repr(images) == "Images(5 of 1×5×4, 2 classes)"
    assert from_folder(str(folder), size=3, channels=3).images.shape == (5, 3, 3, 3)


def test_hidden_and_other_files_are_left_alone(folder):
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / "a" / name).write_text("no image")
    (folder / ".git").mkdir()
    (folder / "README.md").write_text("no class")
    save(folder / "b", "9.PNG", np.zeros((5, 4)))
    images = from_folder(folder)
    assert images.names == ["a", "b"] and images.labels.bincount().tolist() == [3, 3]


def test_mistakes_in_a_folder_name_the_place(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"): from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a holds no class"): from_folder(folder / "a")
    with pytest.raises(ValueError, match="channels=2"): from_folder(folder, channels=2)
    with pytest.raises(ValueError, match="size=0"): from_folder(folder, size=0)
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="empty holds no image"): from_folder(folder)


def test_images_of_different_sizes_are_refused_or_scaled(folder):
    save(folder / "b", "large.png", np.zeros((7, 9)))
    with pytest.raises(ValueError, match=r"large.png has 7×9 pixels and .*0.png 5×4: give a size"):
        from_folder(folder)
    assert from_folder(folder, size=8).images.shape == (6, 1, 8, 8)


@pytest.mark.parametrize("content", [b"", b"no image", "cut", "flipped"])
def test_a_file_that_is_no_image_is_named(folder, content):
    path = folder / "b" / "1.png"
    whole = path.read_bytes()
    if content == "cut": content = whole[:len(whole) // 2]
    if content == "flipped":
        content = bytearray(whole)
        content[whole.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"): from_folder(folder)


def test_a_decoder_that_fails_in_its_own_way_is_answered_too(folder):
    "A broken TIFF or GIF makes Pillow raise TypeError, ValueError or DecompressionBombError."
    whole = bytearray((folder / "a" / "0.png").read_bytes())
    at = whole.index(b"IHDR") + 4
    whole[at:at + 8] = (60_000).to_bytes(4, "big") * 2  # 3.6 billion pixels, it says
    whole[at + 13:at + 17] = zlib.crc32(whole[at - 4:at + 13]).to_bytes(4, "big")
    (folder / "a" / "0.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"): from_folder(folder)


def test_one_drawing_is_one_picture_in_every_kind_of_file(tmp_path):
    "Ink on a transparent, coloured, palette or 16-bit ground: black on white each time."
    dot = np.full((8, 8), 255, np.uint8)
    dot[2:4, 2:5] = 0
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., 3] = 255 - dot
    kinds = {"grey": Image.fromarray(dot), "alpha": Image.fromarray(clear),
             "grey_alpha": Image.fromarray(clear).convert("LA"),
             "colour": Image.fromarray(dot).convert("RGB"),
             "palette": Image.fromarray(dot).convert("P"),
             "one_bit": Image.fromarray(dot).convert("1"),
             "sixteen": Image.fromarray(dot.astype(np.uint16) * 257)}
    for name, picture in kinds.items():
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "x.png")
    (tmp_path / "clear_palette").mkdir()
    palette = Image.fromarray(dot // 255).convert("P")
    palette.putpalette([0, 0, 0, 10, 20, 30])  # the second colour will be transparent
    palette.save(tmp_path / "clear_palette" / "x.png", transparency=1)
    for channels in (1, 3):
        images = from_folder(tmp_path, channels=channels)
        assert len(images.names) == 8
        for image in images.images:
            for channel in image: np.testing.assert_array_equal(channel.numpy(), dot)


def test_sixteen_bits_become_eight_and_are_not_cut_off(tmp_path):
    levels = np.arange(256).reshape(16, 16)
    (tmp_path / "a").mkdir()
    Image.fromarray((levels * 257).astype(np.uint16)).save(tmp_path / "a" / "x.png")
    np.testing.assert_array_equal(from_folder(tmp_path).images[0, 0].numpy(), levels)


def kept(folder, name, values, dtype, ending="tif"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values).astype(dtype)).save(folder / name / f"x.{ending}")


LEVELS = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(("values", "dtype", "ending", "white"), [
    (LEVELS / 255, np.float32, "tif", "1"), (LEVELS, np.float32, "tif", "255"),
    (LEVELS * 257, np.float32, "tif", "65535"), (LEVELS * 16 + 15, np.uint16, "png", "4095"),
    (LEVELS * 4 + 3, np.uint16, "png", "1023"), (LEVELS * 64 + 63, np.uint16, "tif", "16383"),
    (LEVELS, np.uint16, "png", "255"),
    (LEVELS, np.int32, "tif", "255"), (LEVELS * 257, np.int32, "tif", None),
    (LEVELS * 16 + 15, ">u2", "tif", "4095"),
])
def test_images_of_more_than_8_bits_keep_their_levels_and_the_range_is_said(
    tmp_path, values, dtype, ending, white
):
    kept(tmp_path, "a", values, dtype, ending)
    if white is None: images = from_folder(tmp_path)
    else:
        said = f" {white} was taken for white.*white={white} or --white {white}$"
        with pytest.warns(UserWarning, match=said):
            images = from_folder(tmp_path)
    np.testing.assert_array_equal(images.images[0, 0].numpy(), LEVELS)
    if white is None: return
    again = from_folder(tmp_path, white=float(white), channels=3)  # said: no warning
    for channel in again.images[0]: np.testing.assert_array_equal(channel.numpy(), LEVELS)


def test_the_range_is_that_of_all_images_and_not_of_each(tmp_path):
    kept(tmp_path, "day", LEVELS * 16, np.uint16)
    kept(tmp_path, "night", LEVELS // 8 * 16, np.uint16)
    with pytest.warns(UserWarning, match="4095"): day, night = from_folder(tmp_path).images[:, 0]
    assert day.max() == 255 and night.max() == 31
    kept(tmp_path, "share", LEVELS / 255, np.float32)  # whole numbers and fractions: one each
    with pytest.warns(UserWarning, match="white") as said:
        images = from_folder(tmp_path).images[:, 0]
    assert [one.max().item() for one in images] == [255, 31, 255] and len(said) == 2


@pytest.mark.parametrize(("values", "dtype", "words"), [
    (LEVELS - 1, np.float32, "holds values from -1 to 254"),
    (LEVELS - 9, np.int32, "holds values from -9 to 246"),
    (LEVELS * np.nan, np.float32, "holds values from nan"),
    (LEVELS + np.inf, np.float32, "holds values from inf")])
def test_what_is_no_brightness_is_refused(tmp_path, values, dtype, words):
    kept(tmp_path, "a", values, dtype)
    with pytest.raises(ValueError, match=f"x.tif {words}"): from_folder(tmp_path)


def test_a_white_that_is_said_must_be_one(tmp_path):
    kept(tmp_path, "a", LEVELS * 16, np.uint16)
    with pytest.raises(ValueError, match=r"x\.tif holds 4080, which is above white=1023"):
        from_folder(tmp_path, white=1023)
    for white in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a number above 0"): from_folder(tmp_path, white=white)


def test_colour_stays_colour_and_its_deep_files_are_not_black(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "a" / "x.png")
    assert from_folder(tmp_path, channels=3).images[0, :, 0, 0].tolist() == [200, 100, 50]
    (tmp_path / "a" / "x.png").write_bytes(faults.sixteen_bit_colour(200))
    assert from_folder(tmp_path, channels=3).images.unique().tolist() == [200]
    (tmp_path / "a" / "x.png").write_bytes(faults.sixteen_bit_colour(15))
    with pytest.raises(ValueError, match=r"x\.png has room for 16 bits per colour"):
        from_folder(tmp_path, channels=3)


@pytest.mark.parametrize("place", ["image", "class"])
def test_a_pipe_is_no_image_and_does_not_hang(folder, place):
    if place == "image":
        os.mkfifo(folder / "a" / "pipe.png")
        with pytest.raises(ValueError, match=r"pipe\.png .* \(it is no file\)"):
            from_folder(folder)
    else:
        os.mkfifo(folder / "pipe")
        assert from_folder(folder).names == ["a", "b"]


@pytest.mark.parametrize("size", [100_000, 4097, 2.5, -1, True])
def test_a_size_that_no_network_takes_is_refused_at_once(folder, size):
    with pytest.raises(ValueError, match=f"size={size}: a whole number of pixels from 1 to 4096"):
        from_folder(folder, size=size)


def test_more_images_than_memory_holds_are_refused_before_they_are_read(folder):
    seen = []
    def read(path):
        seen.append(path)
        return np.broadcast_to(np.uint8(0), (4096, 4096, 3))
    with pytest.raises(ValueError, match="1000000 images of 4096 × 4096 pixels are more"):
        stacked_files([folder / "a" / "0.png"] * 10**6, read)
    assert len(seen) == 1


def test_colours_that_cannot_be_brought_to_grey_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4), "red").convert("LAB").save(tmp_path / "a" / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif has colours of the kind LAB"):
        from_folder(tmp_path)


@pytest.mark.parametrize("change", ["name", "images", "labels", "names"])
def test_a_kept_file_of_other_content_is_noticed_by_its_checksum(tmp_path, change):
    images, path = ten_classes(), tmp_path / "letters.pt"
    save_images(path, images)
    assert torch.equal(load_images(path).images, images.images)
    if change == "name": path = path.rename(tmp_path / "digits.pt")
    else:
        kept = torch.load(path, weights_only=True)
        kept[change] = {"images": kept["images"] ^ 1, "labels": kept["labels"].flip(0),
                        "names": kept["names"][::-1]}[change]
        torch.save(kept, path)
    with pytest.raises(ValueError, match="its checksum is another one, or that of another file"):
        load_images(path)
    kept = torch.load(path, weights_only=True)
    torch.save({name: kept[name] for name in ("images", "labels", "names")}, path)
    load_images(path)  # versions before wrote no checksum


def test_a_photograph_stands_upright(tmp_path):
    lying = Image.fromarray(np.repeat([[0, 255]], 2, 0).astype(np.uint8).repeat(8, 0).repeat(8, 1))
    note = lying.getexif()
    note[0x0112] = 6  # turn by 90 degrees, clockwise
    (tmp_path / "a").mkdir()
    lying.save(tmp_path / "a" / "x.jpg", exif=note, quality=100)
    image = from_folder(tmp_path).images[0, 0]
    assert image[:7].max() < 20 and image[9:].min() > 235


def test_a_thousand_images_keep_their_classes(tmp_path):
    for c in range(50):
        for i in range(20):
            save(tmp_path / f"{c:02}", f"{i:02}.png", np.full((3, 3), c * 5 + i % 2))
    images = from_folder(tmp_path, size=2)
    assert torch.equal(images.images[:, 0, 0, 0] // 5, images.labels.to(torch.uint8))
    assert len(images.labels) == 1000


# Splits


def test_a_split_is_by_class_and_fixed_by_its_seed():
    images = ten_classes()
    before = torch.get_rng_state()
    seen = set()
    for seed in range(20):
        parts, again = images.split((6, 1, 3), seed), images.split((6, 1, 3), seed)
        assert [len(part.names) for part in parts] == [6, 1, 3]
        assert [part.names for part in parts] == [part.names for part in again]
        assert sorted(name for part in parts for name in part.names) == images.names
        for part in parts:
            for label, name in enumerate(part.names):
                expected = images.images[images.labels == images.names.index(name)]
                assert torch.equal(part.images[part.labels == label], expected)
        seen.add(tuple(parts[2].names))
    assert len(seen) > 10 and torch.equal(before, torch.get_rng_state())
    assert images.split((6, 1, 3))[0].names == images.split((6, 1, 3), seed=0)[0].names
    assert images.split((6, 4))[1].names != images.split((6, 4), seed=1)[1].names


def test_a_split_is_the_same_on_every_machine():
    "The first numbers of the split of seed 0, written down: published figures depend on them."
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    assert order == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]
    small, large = ten_classes().split((2, 3))
    assert small.names == ["class 1", "class 4"]
    assert large.names == ["class 3", "class 5", "class 7"]


@pytest.mark.parametrize(("sizes", "counts"),
                         [((0.7, 0.1, 0.2), [7, 1, 2]), ((0.5, 0.5), [5, 5]),
                          ((1 / 3, 1 / 3, 1 / 3), [3, 4, 3]), ((0.55, 0.45), [6, 4]),
                          ((0.3, 0.3), [3, 3]), ((0.1,) * 10, [1] * 10),
                          ((0.25, 0.25, 0.25, 0.25), [2, 3, 3, 2]), ((6, 4), [6, 4]),
                          ((6.0, 4.0), [6, 4]), ((2, 3), [2, 3]), ((10,), [10]),
                          ((0.7 + 1e-12, 0.3), [7, 3]), ((0.7 - 1e-12, 0.3), [7, 3])])
def test_sizes_are_numbers_or_shares_and_shares_lose_no_class(sizes, counts):
    assert [len(part.names) for part in ten_classes().split(sizes)] == counts


@pytest.mark.parametrize("sizes", [(8, 3), (0.9, 0.6), (0.7, 0.5), (0.98, 0.02), (-1, 5), (0, 10),
                                   (2.5, 3), (0.5, 3), (), (11,)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match="of 10 classes"): ten_classes().split(sizes)


# Leaks


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 6, 6), (1, 4, 7)])
def test_the_number_of_a_picture_stays_when_it_is_turned_and_changes_with_a_pixel(shape):
    x = torch.randint(256, (20, *shape), dtype=torch.uint8,
                      generator=torch.Generator().manual_seed(1))
    number = same_picture(x)
    assert number.shape == (20,) and len(number.unique()) == 20
    for k in (0, 1, 2, 3) if shape[1] == shape[2] else (0, 2):
        assert torch.equal(same_picture(torch.rot90(x, k, (-2, -1))), number)
    x[:, 0, 1, 2] ^= 1
    assert not torch.isin(same_picture(x), number).any()


def test_bytes_and_their_shares_of_255_are_one_picture():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for same in (x.float() / 255, x.double() / 255, x / 255, x.float() / 255 * (1 + 1e-7)):
        assert torch.equal(same_picture(same), same_picture(x))


def test_float_images_of_any_range_are_told_apart():
    x = torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for scale in (0.01, 1, 1e4): assert len(same_picture(x * scale).unique()) == 50
    assert torch.equal(same_picture(torch.zeros(1, 1, 2, 2)),
                       same_picture(-torch.zeros(1, 1, 2, 2)))


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
@pytest.mark.parametrize("as_float", [False, True])
def test_one_turned_image_on_the_other_side_is_found(turn, as_float):
    train, test = ten_classes().split((6, 4))
    pixels = test.images.clone()
    pixels[7] = torch.rot90(train.images[4], turn, (-2, -1))
    leaking = Images(pixels / 255 if as_float else pixels, test.labels, test.names).episodes(ways=2)
    check_disjoint(train.episodes(), test.episodes(ways=2))
    with pytest.raises(ValueError, match="1 images are in both families, turned or not, first "
                       "image 4 of class 1"):
        check_disjoint(train.episodes(), leaking)
    with pytest.raises(ValueError, match="first image 7 of class 2"):
        check_disjoint(leaking, train.episodes())


def test_classes_split_after_turning_leak_and_before_turning_do_not():
    images = ten_classes()
    for seed in range(5):
        train, test = with_turns(images).split((0.6, 0.4), seed)
        with pytest.raises(ValueError, match="the split leaks"):
            check_disjoint(train.episodes(), test.episodes())
        train, test = (with_turns(part) for part in images.split((0.6, 0.4), seed))
        check_disjoint(train.episodes(), test.episodes())


def test_families_that_cannot_be_compared_are_not_called_disjoint():
    small = Images(pictures(4, side=5), torch.tensor([0, 0, 1, 1]), ["a", "b"]).episodes(ways=2)
    with pytest.raises(ValueError, match="cannot be compared"):
        check_disjoint(ten_classes().episodes(), small)
