"""Omniglot: archives that are cut, altered or not there; the kept file; the protocols.

One file is kept, and the protocols are those of the papers.
"""
import errno
import hashlib
import io
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import torch
from helpers import metalit
from PIL import Image

import metalit as ml
from metalit.data import images as of_images
from metalit.data import omniglot as om
from metalit.data.images import Images, check_disjoint

NAMES = ("images_background.zip", "images_evaluation.zip")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawing(seed: int, side: int = 105) -> np.ndarray:
    "Black strokes on white, one bit each."
    pixels = np.ones((side, side), bool)
    rows, columns = np.random.default_rng(seed).integers(10, side - 10, (2, 3))
    for row, column in zip(rows, columns, strict=True):
        pixels[row - 8:row + 8, column:column + 3] = False
    return pixels


def contents(name: str) -> dict[str, bytes]:
    "Three characters (background) or two (evaluation), four drawings each, in the official layout."
    first, count = (0, 3) if "background" in name else (3, 2)
    return {f"{name.removesuffix('.zip')}/Alphabet/character{c:02}/{c:04}_{d:02}.png":
            png(drawing(10 * c + d)) for c in range(first, first + count) for d in range(1, 5)}


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items(): archive.writestr(name, content)
    return path


def digest(files: dict[str, bytes]) -> str:
    "Written once more, so that a change of the one in the library is seen."
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(name.encode()
                     + np.packbits(~np.array(Image.open(io.BytesIO(files[name])))).tobytes())
    return found.hexdigest()


@pytest.fixture
def little(tmp_path, monkeypatch):
    "A folder with two little archives, which pass for Omniglot, and a cache folder of its own."
    folder = tmp_path / "data"
    folder.mkdir()
    for name in NAMES: pack(folder / name, contents(name))
    monkeypatch.setattr(om, "ARCHIVES",
                        {name: om.Archive("0" * 32, characters, digest(contents(name)))
                         for name, characters in zip(NAMES, (3, 2), strict=True)})
    monkeypatch.setattr(of_images, "user_cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("METALIT_DATA", raising=False)
    return folder


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    "No test reaches for the network, whatever goes wrong."
    def retrieve(url, *args, **kwargs): raise requests.ConnectionError(f"no route to {url}")
    monkeypatch.setattr(pooch, "retrieve", retrieve)


@pytest.fixture(scope="session")
def true_data(tmp_path_factory):
    "A folder of links to the true archives, or the test is skipped."
    given = os.environ.get("METALIT_DATA")
    for place in [Path(given)] if given else [
        Path(__file__).parents[2] / "shared" / "data" / "omniglot"
    ]:
        if all((place / name).is_file() for name in NAMES):
            folder = tmp_path_factory.mktemp("omniglot")
            for name in NAMES: (folder / name).symlink_to((place / name).resolve())
            return folder
    pytest.skip("the archives of Omniglot are not at hand: point METALIT_DATA at a folder that "
                "holds them")


@pytest.fixture(scope="session")
def true_images(true_data):
    return om.omniglot_images(true_data)


# What is read


def test_little_archives_become_images_with_bright_ink(little):
    images = om.omniglot_images(little)
    assert images.images.shape == (20, 1, 28, 28) and images.images.dtype == torch.uint8
    assert images.names == [f"{part}/Alphabet/character{c:02}"
                            for part, c in zip(["background"] * 3 + ["evaluation"] * 2, range(5),
                                               strict=True)]
    assert images.labels.tolist() == [c for c in range(5) for _ in range(4)]
    ink = Image.fromarray((~drawing(32)).astype(np.uint8) * 255).resize((28, 28),
                                                                        Image.Resampling.LANCZOS)
    # character 3, drawing 2
    np.testing.assert_array_equal(images.images[13, 0].numpy(), np.asarray(ink))
    assert images.images.amax() == 255 and images.images.float().mean() < 30


def test_scaled_keeps_what_is_full_and_what_is_empty():
    assert (om.scaled(np.ones((105, 105), bool)) == 255).all()
    assert (om.scaled(np.zeros((105, 105), bool)) == 0).all()
    assert om.scaled(~drawing(0), size=14).shape == (14, 14)


def test_an_archive_that_was_packed_again_passes(little):
    before = om.omniglot_images(little)
    (little / om.KEPT).unlink()
    path = little / NAMES[0]
    old = path.read_bytes()
    # grey, not one bit
    again = dict(reversed([(name, png(np.array(Image.open(io.BytesIO(content)).convert("L"))))
                           for name, content in contents(path.name).items()]))
    pack(path, again | {"images_background/": b"", "LICENSE.txt": b"MIT"}, zipfile.ZIP_STORED)
    assert path.read_bytes() != old
    after = om.omniglot_images(little)
    assert torch.equal(before.images, after.images) and before.names == after.names


def test_nothing_is_written_but_the_one_file(little, tmp_path):
    om.omniglot_images(little)
    assert {path.name for path in tmp_path.rglob("*")} == {"data", *NAMES, om.KEPT}


# Archives that are not what they should be


def outcome(read, path: Path):
    """What a function makes of a file, or None and the words of its ValueError.

    Other errors go through.
    """
    try: return read(path), ""
    except ValueError as error: return None, str(error)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(little, share):
    path = little / NAMES[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(ValueError,
                       match=r"images_evaluation\.zip was cut short or altered.*Delete it"):
        om.omniglot_images(little)
    assert not (little / om.KEPT).exists()


def test_no_altered_byte_of_an_archive_goes_unseen(little):
    "Whatever byte is off: the same drawings, or the archive is refused, never another error."
    path = little / NAMES[1]
    whole, before = path.read_bytes(), om.drawings(path)
    refused = 0
    for at in random.Random(0).sample(range(len(whole)), 300):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1:])
        after, words = outcome(om.drawings, path)
        refused += after is None
        if after is None: assert "Delete it, and it will be downloaded again" in words
        else:
            assert list(after) == list(before)
            for name in after: np.testing.assert_array_equal(after[name], before[name])
    assert refused > 150


def altered(name: str, content: bytes) -> dict[str, bytes]:
    files = contents(NAMES[0])
    assert name in files
    return files | {name: content}


FIRST = "images_background/Alphabet/character00/0000_01.png"


@pytest.mark.parametrize(
    ("files", "words"),
    [(altered(FIRST, png(drawing(999))), "its drawings are not those of Omniglot"),
     (altered(FIRST, png(drawing(1) ^ (np.arange(105 * 105).reshape(105, 105) == 5000))),
      "its drawings are not those"),
     (altered(FIRST, png(drawing(1, side=50))), f"{FIRST} has 50×50 pixels, not 105×105"),
     # the same bits, another shape
     (altered(FIRST, png(drawing(1).reshape(49, 225))), f"{FIRST} has 49×225 pixels"),
     (altered(FIRST, b"no image"), f"{FIRST} is no image"),
     (altered(FIRST, png(drawing(1))[:60]), f"{FIRST} is no image"),
     (altered(FIRST, b"\0" * 200_000), f"{FIRST} is larger than 100000 bytes"),
     ({name: content for name, content in contents(NAMES[0]).items() if name != FIRST},
      "its drawings are not those"),
     ({name.replace("r02", "r09"): c for name, c in contents(NAMES[0]).items()},
      "its drawings are not those"),
     ({}, "its drawings are not those")]
)
def test_an_altered_archive_is_refused_though_its_checksums_hold(little, files, words):
    pack(little / NAMES[0], files)
    with pytest.raises(ValueError, match=f"images_background.zip was altered: {words}"):
        om.omniglot_images(little)
    assert not (little / om.KEPT).exists()


def test_one_byte_of_a_drawing_is_seen(little):
    "In a PNG that was packed anew, so that the archive's own checksum holds."
    content = bytearray(contents(NAMES[0])[FIRST])
    content[content.index(b"IDAT") + 9] ^= 0x10
    pack(little / NAMES[0], altered(FIRST, bytes(content)))
    with pytest.raises(ValueError, match="was altered"): om.omniglot_images(little)


@pytest.mark.parametrize("name", ["../evil.png", "images_background/../../evil.png", "/evil.png",
                                  "..\\evil.png", "C:\\evil.png", "C:/evil.png", "../evil.txt"])
def test_a_member_that_points_outside_is_refused_and_writes_nothing(little, tmp_path, name):
    pack(little / NAMES[0], contents(NAMES[0]) | {name: b"x"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="points outside its folder"): om.omniglot_images(little)
    assert set(tmp_path.rglob("*")) == before


# Folders and the network


def test_where_data_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("METALIT_DATA", raising=False)
    assert of_images.data_folder() == of_images.user_cache()
    assert of_images.user_cache().name == "metalit"
    monkeypatch.setenv("METALIT_DATA", str(tmp_path))
    assert of_images.data_folder() == tmp_path and of_images.data_folder("~/x") == Path.home() / "x"


def test_the_archives_are_found_by_the_environment(little, monkeypatch):
    monkeypatch.setenv("METALIT_DATA", str(little))
    assert len(om.omniglot_images().names) == 5


def test_without_internet_the_error_says_what_to_do(little):
    (little / NAMES[1]).unlink()
    with pytest.raises(
        OSError, match=r"images_evaluation\.zip could not be downloaded from "
        r"https://raw.*\(ConnectionError\)"
        r".*put the archives .* into .*data, or point --root or METALIT_DATA"
    ) as error:
        om.omniglot_images(little)
    assert isinstance(error.value.__cause__, requests.ConnectionError)
    assert sorted(path.name for path in little.iterdir()) == [NAMES[0]]


def test_a_data_folder_that_cannot_be_written_is_named(little, monkeypatch):
    "A folder below a file: not even root can make it. Nothing is asked of the network then."
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("asked the network"))
    below = little / NAMES[0] / "x"
    with pytest.raises(OSError,
                       match=r"the data folder .*x cannot be written \(.*METALIT_DATA") as error:
        om.omniglot_images(below)
    assert error.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_a_download_asks_for_the_official_file_and_its_checksum(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pooch, "retrieve", lambda *args, **kwargs: asked.append((args, kwargs)))
    folder = tmp_path / "new" / "data"
    assert om.fetch(NAMES[0], folder, progress=False) == folder / NAMES[0]
    official = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
    where = (official + "images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718")
    assert asked == [(where, {"fname": NAMES[0], "path": folder, "progressbar": False})]
    assert list(folder.iterdir()) == []
    assert om.ARCHIVES[NAMES[1]].md5 == "6b91aef0f799c5bb55b94e3f2daec811"


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    "With pooch itself, and a file instead of the network."
    monkeypatch.undo()
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__",
                        lambda self, url, file, *a, **k: Path(file).write_bytes(b"x")
                        if isinstance(file, (str, Path)) else file.write(b"x"))
    with pytest.raises(ValueError, match="does not match the known hash"):
        om.fetch(NAMES[0], tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_library_loads_no_download_library_until_it_downloads():
    code = ("import sys, metalit.data.omniglot, metalit.data.images; print([name for name in "
            "('pooch', 'platformdirs', 'requests', 'PIL') if name in sys.modules])")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# The one file


def test_the_second_time_no_archive_is_read(little):
    before = om.omniglot_images(little)
    for name in NAMES: (little / name).unlink()
    after = om.omniglot_images(little)
    assert torch.equal(before.images, after.images) and torch.equal(before.labels, after.labels)
    assert list(before.names) == list(after.names)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_file_that_cannot_be_kept_there_is_kept_elsewhere_or_not_at_all(little, tmp_path,
                                                                          monkeypatch, fails):
    save, tried = of_images.save_images, []

    def sometimes(path, images):
        tried.append(path)
        if len(tried) <= fails: raise OSError(errno.EROFS, "read-only")
        save(path, images)

    monkeypatch.setattr(of_images, "save_images", sometimes)
    assert len(om.omniglot_images(little).names) == 5
    assert tried == [little / om.KEPT, tmp_path / "cache" / om.KEPT]
    assert not (little / om.KEPT).exists() and tried[1].exists() == (fails == 1)
    if fails == 1:                                                               # … and found there
        monkeypatch.setattr(om, "members", None)
        assert len(om.omniglot_images(little).names) == 5


def test_a_kept_file_of_which_a_byte_is_off_is_never_used(tmp_path):
    pixels = torch.randint(256, (20, 1, 6, 6), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(20) // 2, [str(c) for c in range(10)])
    path = tmp_path / "kept.pt"
    of_images.save_images(path, images)
    whole, refused = path.read_bytes(), 0
    for at in random.Random(0).sample(range(len(whole)), 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1:])
        after, words = outcome(of_images.load_images, path)
        refused += after is None
        if after is None: assert "delete it, and it will be made again" in words
        else:
            assert torch.equal(after.images, images.images)
            assert torch.equal(after.labels, images.labels)
            assert list(after.names) == list(images.names)
    assert refused > 100
    for content in (b"", b"x", b"PK", whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"kept\.pt was cut short or altered"):
            of_images.load_images(path)
    for other in ([1], {"images": 1}, {"images": [1], "labels": 2, "names": 3}):
        torch.save(other, path)
        with pytest.raises(ValueError, match=r"kept\.pt was .* or is something else"):
            of_images.load_images(path)


# Protocols


@pytest.fixture
def marked(monkeypatch):
    """1,623 classes of two images.

    The first pixel and the second say which class it is, the corner how it is turned.
    """
    n = 1623
    x = torch.zeros(2 * n, 1, 5, 5, dtype=torch.uint8)
    labels = torch.arange(n).repeat_interleave(2)
    x[:, 0, 2, 2], x[:, 0, 0, 0] = labels % 251, 255
    # the same in all turns
    x[:, 0, 1, 1] = x[:, 0, 3, 3] = x[:, 0, 1, 3] = x[:, 0, 3, 1] = labels // 251
    images = Images(x, labels, [str(c) for c in range(n)])
    monkeypatch.setattr(om, "omniglot_images", lambda *args: images)


CORNERS = {(0, 0): 0, (4, 0): 90, (4, 4): 180, (0, 4): 270}


def look(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "Which character images show, and by how much they are turned."
    x = (x * 255).round().long()[..., 0, :, :]
    return (x[..., 2, 2] + 251 * x[..., 1, 1],
            sum(angle * (x[..., r, c] == 255) for (r, c), angle in CORNERS.items()))


@pytest.mark.parametrize(("protocol", "sizes"), [
    ("finn", [1100, 100, 423]), ("vinyals", [1028, 172, 423]), ("reptile", [1200, 423]),
])
def test_sizes_of_the_protocols_and_splits_that_do_not_leak(marked, protocol, sizes):
    data = om.omniglot(protocol=protocol)
    parts = [part for part in data[:3] if part is not None]
    assert [len(part.names) for part in parts] == sizes
    assert (data.validation is None) == (len(sizes) == 2)
    assert sorted(int(name) for part in parts for name in part.names) == list(range(1623))
    families = [family for family in data.episodes(shots=1) if family is not None]
    for i, one in enumerate(families):
        for other in families[:i]: check_disjoint(one, other)
    again, other = om.omniglot(protocol=protocol), om.omniglot(protocol=protocol, seed=1)
    assert again.test.names == data.test.names != other.test.names
    assert data.test.names == om.omniglot().test.names  # one test set for all protocols


@pytest.mark.parametrize("protocol", ["finn", "vinyals", "reptile"])
def test_images_are_turned_as_the_protocol_says(marked, protocol):
    families = om.omniglot(protocol=protocol).episodes(ways=20, shots=1)
    for family, turned in zip(families, (True, True, protocol != "reptile"), strict=True):
        if family is None: continue
        task = family.batch(60, seed=0)
        support, query = (split.x if protocol != "reptile" else 1 - split.x for split in task)
        characters, angles = look(support)
        same, same_angles = look(query)
        # turned alike in both sets
        assert torch.equal(characters, same) and torch.equal(angles, same_angles)
        assert set(angles.unique().tolist()) == ({0, 90, 180, 270} if turned else {0})
        twice = (characters.sort().values.diff() == 0).any()
        assert twice == (protocol == "vinyals" or (protocol == "reptile" and turned))
        # a turn for each class, not each task
        if not twice and turned: assert (angles != angles[:, :1]).any()


@pytest.mark.parametrize(("protocol", "dark"),
                         [("finn", False), ("vinyals", False), ("reptile", True)])
def test_ink_is_bright_but_for_reptile(marked, protocol, dark):
    for part in om.omniglot(protocol=protocol)[:3]:
        if part is not None:
            assert (part.images[:, 0, 0, 1].unique().tolist() == ([255] if dark else [0]))


def test_an_unknown_protocol_is_answered_before_any_data_are_read(monkeypatch):
    monkeypatch.setattr(om, "omniglot_images", lambda *args: pytest.fail("read the data"))
    with pytest.raises(ValueError,
                       match="protocol='original': choose one of finn, vinyals, reptile"):
        om.omniglot(protocol="original")


# The true data, where they are at hand


def test_omniglot_is_1623_characters_by_twenty_hands(true_images):
    assert true_images.images.shape == (32460, 1, 28, 28) and len(set(true_images.names)) == 1623
    assert (true_images.labels.bincount() == 20).all()
    assert sum(name.startswith("background/")
               for name in true_images.names) == om.ARCHIVES[NAMES[0]].characters == 964
    assert om.ARCHIVES[NAMES[1]].characters == 659
    assert len({name.rsplit("/", 1)[0] for name in true_images.names}) == 50           # alphabets


def test_ink_of_omniglot_is_bright_and_little(true_images):
    x = true_images.images
    assert 0.05 < float(x.float().mean()) / 255 < 0.12 and int(x.max()) == 255
    assert (x.float().mean((1, 2, 3)) < 128).all() and (x.amax((1, 2, 3)) > 100).all()


def test_the_second_load_of_omniglot_reads_one_file(true_data, true_images, monkeypatch):
    monkeypatch.setattr(om, "members", None)
    again = om.omniglot_images(true_data)
    assert torch.equal(again.images, true_images.images)
    assert list(again.names) == list(true_images.names)


def test_the_standard_split_of_omniglot_does_not_leak(true_data, true_images):
    data = om.omniglot(true_data)
    assert [len(part.names) for part in data[:3]] == [1100, 100, 423]
    check_disjoint(data.train.episodes(), data.test.episodes())
    names = [name for part in data[:3] for name in part.names]
    assert sorted(names) == sorted(true_images.names)


@pytest.mark.parametrize("ways", [5, 20])
def test_the_suites_of_omniglot_are_what_they_were(true_data, true_images, ways):
    suite = ml.suites.get(f"omniglot-{ways}-way-1-shot", root=true_data)
    assert suite.metric is ml.accuracy and suite.tasks.query.y.shape == (600, ways)
    assert (suite.train.ways, suite.train.queries) == (ways, 1)


def test_from_drawn_characters_to_omniglot(true_data, true_images, tmp_path):
    metalit("train", "glyphs", "--method", "protonet", "--root", true_data, "--out", tmp_path,
            "--filters", 2, "--steps", 1, "--batch-size", 2, "--test-tasks", 4, "--quiet")
    said = metalit("evaluate", tmp_path, "--root", true_data, "--tasks", 20, "--shift", "omniglot")
    assert "blind, omniglot" in said


def test_one_changed_pixel_of_the_true_archive_is_seen(true_data, tmp_path):
    with zipfile.ZipFile(true_data / NAMES[1]) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
    name = sorted(files)[5000]
    pixels = np.array(Image.open(io.BytesIO(files[name])))
    pixels[50, 50] ^= True
    pack(tmp_path / NAMES[1], files | {name: png(pixels)}, zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match="its drawings are not those of Omniglot"):
        om.drawings(tmp_path / NAMES[1])
