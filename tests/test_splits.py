"""Published splits: their files are read or refused by name, by the library, the command and
`reproduce.natural`, on a folder of noise with as many classes as mini-ImageNet and CIFAR-FS have.
"""
import json
import re
import shutil
import sys

import numpy as np
import pytest
import tables
import torch
from helpers import metalit
from PIL import Image

import metalit as ml
from metalit.data.splits import from_splits, listed_in, pictures_of, split_files
from metalit.judging.recipes import build, complete
from reproduce import natural

ENDS = {"train": range(64), "val": range(64, 80), "test": range(80, 100)}
EACH = 3


def noise(place, number: int) -> None:
    "A picture of three colours that is like no other."
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Both protocols, with the same pictures."
    root = tmp_path_factory.mktemp("natural")
    for part, classes in ENDS.items():
        for c in classes:
            for i in range(EACH):
                noise(root / "fs" / "data" / f"k{c:02}" / f"{i}.png", EACH * c + i)
        rows = [f"k{c:02}-{i}.png,k{c:02}" for c in classes for i in range(EACH)]
        (root / "fs" / f"{part}.txt").write_text("".join(f"k{c:02}\n" for c in classes))
        (root / "mini").mkdir(exist_ok=True)
        (root / "mini" / f"{part}.csv").write_text("\n".join(["filename,label", *rows, ""]))
    for place in (root / "fs" / "data").glob("*/*.png"):
        (root / "mini" / "images").mkdir(exist_ok=True)
        shutil.copy(place, root / "mini" / "images" / f"{place.parent.name}-{place.name}")
    return root


@pytest.fixture
def copied(made, tmp_path):
    "The files of both splits alone, to be spoilt; pictures are looked for where they were."
    for kind, ending in ("mini", "csv"), ("fs", "txt"):
        (tmp_path / kind).mkdir()
        for part in ENDS: shutil.copy(made / kind / f"{part}.{ending}", tmp_path / kind)
    return tmp_path


def test_both_ways_of_writing_give_the_same_pictures_on_the_same_sides(made):
    for one, two, classes in zip(from_splits(made / "mini", size=16, channels=3),
                                 from_splits(made / "fs", size=16, channels=3),
                                 ENDS.values(), strict=True):
        assert one.names == two.names == [f"k{c:02}" for c in classes]
        assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    first = np.random.default_rng(EACH * 80).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(one.images[0].permute(1, 2, 0), first)


def test_a_protocol_says_how_large_pictures_are_and_what_is_said_counts_more(made):
    small = {"family": str(made / "fs"), "protocol": "cifar-fs", "method": "maml", "seed": 0}
    assert [complete(small)[name] for name in ("size", "channels")] == [32, 3]
    assert complete(small | {"size": 16, "channels": 1})["size"] == 16
    mini = complete(small | {"protocol": "mini-imagenet"})
    assert [mini[name] for name in ("size", "channels", "splits")] == [84, 3, None]
    built = build(small | {"size": 8, "queries": 1, "filters": 2})
    assert built.train.images.shape == (64 * EACH, 3, 8, 8)
    assert [len(built[i].classes) for i in (1, 2, 3)] == [64, 16, 20]


SPOILT = [
    ("fs/train.txt", "k00\n", "", "train.txt names 63 classes, and cifar-fs of Bertinetto"),
    ("fs/val.txt", "k64\n", "k64\nk64\n", "val.txt, line 2: k64 stands there twice"),
    ("fs/val.txt", "k64\n", "k99\n", "k99 is in val.txt and in test.txt: a class belongs to one"),
    ("fs/test.txt", "k80\n", "apple\n", "apple of test.txt has no folder: looked for"),
    ("fs/test.txt", None, "\n", "test.txt names no class"),
    ("mini/train.csv", "filename,label", "image,class", "'image,class', and 'filename,label' is"),
    ("mini/train.csv", "filename,label\n", "", "first line is 'k00-0.png,k00'"),
    ("mini/train.csv", "k00-0.png,k00", "k00-0.png;k00", "line 2: a file and its class are needed"),
    ("mini/train.csv", "k00-1.png", "k00-0.png", "train.csv, line 3: k00-0.png stands there twice"),
    ("mini/test.csv", "k80-0.png", "k00-0.png", "k00-0.png is in train.csv and in test.csv"),
    ("mini/test.csv", "k80-0.png", "k80.png", "k80.png of test.csv is not there"),
    ("mini/val.csv", ",k64", ",k65", "val.csv names 15 classes, and mini-imagenet of Ravi"),
    ("mini/val.csv", None, b"\xff\xfe", "val.csv is no text"),
]


@pytest.mark.parametrize(("file", "old", "new", "words"), SPOILT)
def test_a_split_that_is_not_as_published_is_refused_by_name(made, copied, file, old, new, words):
    kind, path = file.split("/")[0], copied / file
    text = path.read_text()
    if old is None: path.write_bytes(new if isinstance(new, bytes) else new.encode())
    else:
        assert old in text
        path.write_text(text.replace(old, new))
    protocol = {"fs": "cifar-fs", "mini": "mini-imagenet"}[kind]
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        from_splits(made / kind, copied / kind, protocol)
    assert path.name in str(refusal.value)


def test_a_missing_file_an_empty_class_and_an_unknown_protocol(made, copied, tmp_path):
    (copied / "fs" / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"val\.txt is missing: a split has three files"):
        split_files(made, copied / "fs")
    with pytest.raises(ValueError, match=r"holds no split.*say where"): split_files(tmp_path)
    with pytest.raises(ValueError, match="there are mini-imagenet, cifar-fs"):
        from_splits(made / "fs", protocol="tiered")
    (tmp_path / "data" / "pear").mkdir(parents=True)
    with pytest.raises(ValueError, match="pear holds no image"):
        pictures_of(tmp_path, tmp_path / "test.txt", {"pear": []})


def test_a_split_of_ones_own_has_any_numbers(made, tmp_path):
    for part, names in {"train": "k01\nk02\n\n", "val": "k03", "test": "k04\r\nk05"}.items():
        (tmp_path / f"{part}.txt").write_text(names)
    assert [part.names for part in from_splits(made / "fs", tmp_path)] == [
        ["k01", "k02"], ["k03"], ["k04", "k05"]]
    assert list(listed_in(tmp_path / "test.txt")) == ["k04", "k05"]


def test_one_command_trains_on_the_split_and_another_split_is_another_run(made, copied, tmp_path):
    words = ["train", made / "fs", "--protocol", "cifar-fs", "--splits", copied / "fs", "--method",
             "protonet", "--ways", 3, "--queries", 1, "--filters", 2, "--size", 16, "--batch-size",
             2, "--test-tasks", 4, "--validate-every", 1, "--quiet", "--out", tmp_path / "run"]
    metalit(*words, "--steps", 1)
    run = ml.load(tmp_path / "run")
    assert (run.settings["protocol"], len(run.tasks.classes)) == ("cifar-fs", 20)
    assert "best on validation" in metalit("evaluate", tmp_path / "run", "--tasks", 4)
    (text := copied / "fs" / "test.txt").write_text("")
    assert "test.txt names no class" in metalit(*words, "--steps", 2, code=1)
    text.write_text("".join(f"k{c:02}\n" for c in ENDS["test"]))
    assert "--protocol does not go with sinusoids and maml" in metalit(
        "train", "sinusoids", "--protocol", "cifar-fs", code=1)
    assert "protocol='cifar-fs' does not go with omniglot" in metalit(
        "train", "omniglot", "--protocol", "cifar-fs", code=1)
    assert "protocol='finn' does not go with" in metalit(
        *[word if word != "cifar-fs" else "finn" for word in words], code=1)


def test_a_picture_on_two_sides_is_an_error_of_ones_own_split_and_a_note_of_a_published(
        made, tmp_path):
    shutil.copytree(made / "fs", tmp_path / "fs")
    shutil.copy(tmp_path / "fs" / "data" / "k00" / "0.png", tmp_path / "fs" / "data" / "k99")
    (tmp_path / "fs" / "data" / "k99" / "0.png").rename(tmp_path / "fs" / "data" / "k99" / "9.png")
    settings = {"family": str(tmp_path / "fs"), "method": "maml", "seed": 0, "size": 8,
                "channels": 3, "queries": 1, "filters": 2}
    with pytest.warns(UserWarning, match="cifar-fs, as it was published: the split leaks"):
        build(settings | {"protocol": "cifar-fs"})
    with pytest.raises(ValueError, match="the split leaks"):
        build(settings | {"splits": str(tmp_path / "fs")})


def test_a_command_sets_what_it_measures_beside_what_was_published(made, tmp_path, monkeypatch):
    monkeypatch.setattr(natural, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.measure.RESULTS", tmp_path)
    monkeypatch.setattr(natural, "QUERIES", 2)
    monkeypatch.setattr(natural, "train", lambda job: metalit(*job.command()[1:], "--quiet"))
    monkeypatch.setattr(natural, "SHOTS", {"5-way 1-shot": 1})
    call = ["natural", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", call)
    natural.main()
    said = tables.natural(json.loads((tmp_path / "natural.json").read_text()))
    assert said.count("not measured") == 16
    assert "Not measured: mini-imagenet and cifar-fs." in said
    monkeypatch.setattr(sys, "argv", [
        *call, str(made / "fs"), "--protocol", "cifar-fs", "--methods", "protonet", "--steps", "1",
        "--filters", "2", "--batch-size", "2", "--test-tasks", "4"])
    natural.main()
    record = json.loads((tmp_path / "natural.json").read_text())
    found = record["measured"]["cifar-fs"]["methods"]["5-way 1-shot"]
    assert set(found) == {"nearest-mean", "blind", "protonet"}
    said = tables.natural(record)
    assert f"cifar-fs: protonet | {found['protonet']['evaluation'][0]['accuracy']:.1f} ± " in said
    assert "cifar-fs: blind | 20.0 ± 0.0" in said and "Not measured: mini-imagenet." in said


def test_a_folder_that_is_none_is_one_sentence(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["natural", str(tmp_path), "--protocol", "cifar-fs"])
    with pytest.raises(SystemExit, match="holds no split"): natural.main()
