"""A table of examples: what is read, grouped, scaled and refused."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.data.images import Images
from metalit.tasks import table as of_tables
from metalit.tasks.table import Scale, columns_of, lines_in

LINES = ["who,t,v,town,kind", *[f"{who},{t},{10 * t + ord(who)},{'x' if who < 'c' else 'y'},"
                                f"{'even' if t % 2 == 0 else 'odd'}"
                                for who in "abcd" for t in (3, 1, 2, 0)]]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def table(source, **changes):
    return ml.tasks.Table(source, **{"task": "who", "x": "t", "y": "v", "shots": 2} | changes)


def rows_of(pile, family):
    return {(name, *family.x_scale.back(pile.x[i, j].double()).tolist(),
             *family.y_scale.back(pile.y[i, j].double()).tolist())
            for i, name in enumerate(pile.names) for j in range(int(pile.counts[i]))}


def test_what_is_read_is_what_was_written(file):
    family = table(file, test=["b"])
    assert (family.train.names, family.test.names) == (("a", "c", "d"), ("b",))
    found = rows_of(family.train, family) | rows_of(family.test, family)
    cells = [line.split(",") for line in LINES[1:]]
    wanted = {(who, float(t), float(v)) for who, t, v, *_ in cells}
    assert {(a, round(b, 4), round(c, 3)) for a, b, c in found} == wanted


def test_files_dictionaries_and_frames_say_the_same(file, tmp_path):
    columns = columns_of(file, ["who", "t", "v"])
    plain = {"who": columns["who"], "t": [int(t) for t in columns["t"]],
             "v": [float(v) for v in columns["v"]]}
    tabbed = tmp_path / "data.tsv"
    tabbed.write_text("\ufeff" + "\n".join(line.replace(",", "\t") for line in LINES) + "\n\n",
                      encoding="utf-8")

    class Frame:
        "What data frames have in common."
        columns = tuple(plain)

        def __getitem__(self, name): return np.array(plain[name])
    first = table(file, seed=3)
    for source in (plain, tabbed, str(file), Frame()):
        other = table(source, seed=3)
        assert (other.train.names, other.test.names) == (first.train.names, first.test.names)
        assert torch.equal(other.train.x, first.train.x)
        assert torch.equal(other.train.y, first.train.y)


def test_scales_come_from_the_training_rows_alone(file):
    family = table(file, test=["d"])
    values = torch.tensor([[10.0 * t + ord(who)] for who in "abc" for t in range(4)]).double()
    torch.testing.assert_close(family.y_scale.mean, values.mean(0))
    torch.testing.assert_close(family.y_scale.size, values.std(0, unbiased=False))
    raw = table(file, test=["d"], scale=False)
    assert raw.train.y[0].flatten().tolist() == [10 * t + ord("a") for t in (3, 1, 2, 0)]
    assert Scale.of(torch.ones(3, 1)).to(torch.ones(3, 1)).tolist() == [[0.0]] * 3


def test_rows_in_order_are_learned_from_first(file):
    family = table(file, order="t", scale=False, test=["a"])
    task = family.held_out()
    assert task.support.x.flatten().tolist() == [0, 1] and task.query.x.flatten().tolist() == [2, 3]


def test_groups_are_held_out_whole(file):
    for seed in range(4):
        family = table(file, groups="town", test=0.5, seed=seed)
        assert family.test.names in (("a", "b"), ("c", "d"))


def test_classes_are_numbered_in_the_order_of_their_names(file):
    family = table(file, y="kind", classes=True, test=["a"])
    assert family.classes == ("even", "odd")
    assert family.train.y[0].tolist() == [1, 1, 0, 0]
    J = ml.MAML(ml.models.mlp(1, 4, 2), F.cross_entropy)
    assert math.isfinite(J(family.batch(3)).item())


def test_several_columns_stand_side_by_side(file):
    columns = columns_of(file, ["who", "t", "v"])
    columns["w"] = [-float(v) for v in columns["v"]]
    family = table(columns, x=["t", "v"], y=["w"], test=0)
    assert family.train.x.shape == (4, 4, 2) and family.n_held_out == 0
    back = family.x_scale.back(family.train.x[0].double())
    assert back[:, 1].round().tolist() == [float(v) for v in columns["v"][:4]]


@pytest.mark.parametrize("value", [0.1, 98.6, 1e-30])
def test_a_constant_column_has_size_one(value):
    "Also where its mean is another number, by rounding."
    assert all(Scale.of(torch.full((n, 1), value).double()).size == 1 for n in range(1, 40))


def test_masked_cells_are_gaps():
    columns = {"who": list("aabb"), "t": np.ma.array([1, 2, 3, 4], mask=[0, 1, 0, 0]), "v": [1] * 4}
    with pytest.raises(ValueError, match="empty: 1 in 't'"): table(columns, shots=1)


@pytest.mark.parametrize("cell", [math.inf, "-inf", 1e300])
def test_a_number_that_is_not_finite_is_found_where_it_stands(cell):
    columns = {"who": list("aabb"), "t": [1, 2, 3, 4], "v": [1, 2, 3, cell]}
    for scale in (True, False):
        with pytest.raises(ValueError, match=r"'v' holds .* in row 4, and a finite number"):
            table(columns, shots=1, scale=scale)


def test_a_group_is_not_parted_by_names(file):
    assert table(file, groups="town", test=["a", "b"]).test.names == ("a", "b")
    with pytest.raises(ValueError, match="names 'a', and not 'b' of the same group, 'x'"):
        table(file, groups="town", test="a")


def test_gaps_are_refused_or_left_out(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("\n".join([*LINES[:-1], "d,0,,y,odd", "e,1,2,y,odd", "b,,5,x,odd",
                               ",1,2,x,odd"]))
    with pytest.raises(ValueError, match=r"empty: 1 in 'who', 1 in 't', 1 in 'v'\. missing='drop'"):
        table(path, short="drop")
    with pytest.raises(ValueError, match="task 'e' has 1 examples"): table(path, missing="drop")
    family = table(path, missing="drop", short="drop", test=["a"])
    assert family.train.names == ("b", "c", "d") and family.train.counts.tolist() == [4, 4, 3]


def test_a_gap_in_the_order_or_the_group_is_one(tmp_path):
    columns = {"who": list("aaaabbbb"), "t": list(range(8)), "v": list(range(8)),
               "day": [3, None, 2, 1, 4, 5, 6, 7], "town": ["x"] * 4 + ["y", "y", None, "y"]}
    for more in ({"order": "day"}, {"groups": "town"}):
        with pytest.raises(ValueError, match="empty: 1 in"): table(columns, **more)
    family = table(columns, order="day", missing="drop", test=["b"], scale=False)
    assert family.train.y[0].flatten().tolist() == [3, 2, 0]


def test_a_single_name_is_held_out_as_a_whole(file):
    lines = file.read_text(encoding="utf-8").replace("\na,", "\nab,")
    file.write_text(lines, encoding="utf-8")
    assert table(file, test="ab").test.names == ("ab",)
    with pytest.raises(ValueError, match="test names 'bc'"): table(file, test="bc")


@pytest.mark.parametrize(("changes", "words"), [
    ({"y": "vv"}, "no column 'vv': did you mean 'v'"), ({"x": "qqqq"}, "there are 'who', 't'"),
    ({"y": "kind"}, "column 'kind' holds 'odd' in row 1.* classes=True"),
    ({"x": ["t", "v"]}, "column 'v' is x and y: its answer would be known"),
    ({"y": "who", "classes": True}, "column 'who' is the task and y"),
    ({"y": ["kind", "v"], "classes": True}, "of classes, one column"),
    ({"task": "patient"}, "no column 'patient'"), ({"x": []}, "name one column"),
    ({"test": ["z"]}, "test names 'z'"), ({"missing": "skip"}, "missing='skip'"),
    ({"short": "skip"}, "short='skip'"), ({"shots": 4}, "'a' has 4 examples, and 4 \\+ 1"),
    ({"groups": "kind"}, "'a' has rows in the groups 'odd' and"),
    ({"shots": 9, "short": "drop"}, "no task has 9 \\+ 1 rows"), ({"test": 1.5}, "test=1.5"),
    ({"test": 1}, "test=1"),
])
def test_what_cannot_be_read_is_named(changes, words, file):
    with pytest.raises(ValueError, match=words): table(file, **changes)


def test_a_file_that_is_no_table_is_named(tmp_path):
    path = tmp_path / "torn.csv"
    path.write_text("who,t,v\na,1,2\na,1\n")
    with pytest.raises(ValueError, match=r"line 3 of torn\.csv has 2 cells, the first line 3"):
        table(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no column 'who'"): table(path)
    path.write_text("who,t,t,v\na,1,2,3\n")
    with pytest.raises(ValueError, match="column 't' stands twice"): table(path)
    path.write_bytes(b"who,t,v\na,1,\xff\n")
    with pytest.raises(ValueError, match=r"torn\.csv is no text with commas"): table(path)
    path.write_text("who,t,v\n")
    with pytest.raises(ValueError, match="the table has no row"): table(path)
    with pytest.raises(FileNotFoundError): table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="'t' 2, 'v' 3 rows"):
        table({"who": ["a", "a"], "t": [1, 2], "v": [1, 2, 3]})


def test_a_model_learns_from_a_table(file):
    family = table(file, test=["d"])
    J = ml.MAML(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss, lr=0.1)
    before = J(family.batch(3)).item()
    ml.meta_train(J, family, steps=100, batch_size=3, progress=False)
    assert J(family.batch(3)).item() < 0.9 * before


# Files that are larger than memory


def test_a_file_that_memory_does_not_hold_is_refused_with_its_size(file, tmp_path, monkeypatch):
    "Two gigabytes, of which the disk holds the first line alone: nothing is read through."
    large = tmp_path / "large.csv"
    large.write_text("\n".join([LINES[0], *LINES[1:] * 400]))
    with open(large, "r+b") as content: content.truncate(2 * 10**9)
    monkeypatch.setattr(of_tables, "memory_here", lambda: 16e9)
    with pytest.raises(ValueError, match=r"large\.csv has 2\.0 GB, about [\d,]+ rows: 3 columns of "
                                         r"them need up to \d+ GB of memory, and this .* 16 GB"):
        table(large)
    assert table(file).n_held_out == 1
    monkeypatch.setattr(of_tables, "memory_here", lambda: 100.0)
    with pytest.raises(ValueError, match="Give a part of the rows"): table(file)


@pytest.mark.parametrize("rows", [1, 10, 100_000])
def test_lines_are_estimated_by_the_beginning(tmp_path, rows):
    (tmp_path / "a.csv").write_text("12,34\n" * rows)
    assert lines_in(tmp_path / "a.csv") == pytest.approx(rows, rel=0.01)


# Pictures beside the numbers


PICTURES = {f"{i}.png": torch.full((1, 2, 2), i, dtype=torch.uint8) for i in range(6)}
SHOWN = {"who": list("aaabbb"), "t": [2, 0, 1, 0, 1, 2], "v": [0.0] * 6,
         "file": [f"{i}.png" for i in (2, 0, 1, 3, 4, 5)]}


def shown(pictures=PICTURES, key="file", **changes):
    return table(SHOWN | changes, pictures=pictures, key=key, order="t", test=("b",), shots=1)


def test_each_row_keeps_its_picture_whatever_the_order():
    for names in (shown(), shown(Images(torch.stack([*PICTURES.values()]), torch.arange(6),
                                        [*PICTURES]))):
        for task, first in ((names.batch(1), 0), (names.held_out(), 3)):
            pictures = torch.cat([split.x[1][0, :, 0, 0, 0] for split in task]) * 255
            assert pictures.tolist() == pytest.approx([first, first + 1, first + 2])
            times = torch.cat([split.x[0][0, :, 0] for split in task])
            assert names.x_scale.back(times).tolist() == pytest.approx([0, 1, 2], abs=1e-6)
    twice = shown(file=["1.png"] * 6).held_out().query.x[1] * 255
    assert twice.unique().tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: shown(key=None), "pictures and key belong together"),
    (lambda: shown(pictures=None), "pictures and key belong together"),
    (lambda: shown(key="flie"), "no column 'flie': did you mean 'file'"),
    (lambda: shown(file=["7.png"] * 6), "names '7.png', and there is no such picture"),
    (lambda: shown(file=[None, *SHOWN["file"][1:]]), "cells are empty: 1 in 'file'"),
    (lambda: shown(PICTURES | {"3.png": torch.zeros(1, 3, 3)}), r"'3.png' has the shape \(1, 3, 3"),
    (lambda: shown(Images(torch.rand(2, 1, 2, 2), torch.tensor([0, 0]), ["2.png"])),
     "'2.png' has 2 images"),
    (lambda: shown().new_inputs({"t": [1]}), "give the adapted model x and pictures yourself")])
def test_what_has_no_picture_is_named(make, words):
    with pytest.raises(ValueError, match=words): make()
