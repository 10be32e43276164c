"""Tables and arrays as people have them: of pandas, polars, Arrow, Hugging Face, scikit-learn."""
import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from pyarrow import parquet

import metalit as ml


def of_hugging_face(columns):
    "Imported where it is used: that takes as long as many tests."
    from datasets import Dataset
    return Dataset.from_dict(columns)


def digits():
    "Of scikit-learn, which is imported where it is used, too."
    from sklearn.datasets import load_digits
    return load_digits(return_X_y=True)


PLAIN = {"who": [name for name in "abcd" for _ in range(4)], "t": [3, 1, 2, 0] * 4,
         "v": [i / 8 for i in range(16)]}
FRAMES = {
    "pandas": pandas.DataFrame,
    "pandas, with gaps of its own": lambda columns: pandas.DataFrame(columns).convert_dtypes(),
    "pandas, on Arrow": lambda columns: pandas.DataFrame(columns).convert_dtypes(
        dtype_backend="pyarrow"),
    "pandas, categories": lambda columns: pandas.DataFrame(columns).astype({"who": "category"}),
    "polars": polars.DataFrame,
    "polars, lazy": polars.LazyFrame,
    "Arrow": pyarrow.table,
    "Hugging Face": of_hugging_face,
    "Hugging Face, of tensors": lambda columns: of_hugging_face(columns).with_format(
        "torch", columns=["t", "v"], output_all_columns=True),
}


def table(source, **changes):
    return ml.tasks.Table(source, **{"task": "who", "x": "t", "y": "v", "shots": 2,
                                     "test": ["b"]} | changes)


def in_file(columns, path):
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_frames_say_what_a_dictionary_says(make):
    found, wanted = table(make(PLAIN)), table(PLAIN)
    assert found.train.names == wanted.train.names == ("a", "c", "d")
    assert torch.equal(found.train.x, wanted.train.x)
    assert torch.equal(found.train.y, wanted.train.y)


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_gaps_of_a_frame_are_seen(make):
    gaps = make(PLAIN | {"v": [None, *PLAIN["v"][1:]]})
    with pytest.raises(ValueError, match="cells are empty: 1 in 'v'"): table(gaps)
    assert table(gaps, missing="drop").train.counts.tolist() == [3, 4, 4]


def test_a_parquet_file_is_a_table(tmp_path):
    file, wanted = in_file(PLAIN, tmp_path / "data.parquet"), table(PLAIN)
    for source in (file, str(file)):
        found = table(source)
        assert torch.equal(found.train.x, wanted.train.x)
        assert torch.equal(found.train.y, wanted.train.y)
    with pytest.raises(ValueError, match="there is no column 'w': there are 'who', 't', 'v'"):
        table(file, y="w")
    (broken := tmp_path / "broken.parquet").write_bytes(b"who,t,v\n")
    with pytest.raises(ValueError, match=r"(?i)parquet"): table(broken)


def test_without_its_reader_a_parquet_file_is_refused(tmp_path, monkeypatch):
    file = in_file(PLAIN, tmp_path / "data.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"data\.parquet is read by pyarrow, which is not"):
        table(file)


def test_arrays_of_scikit_learn_become_episodes():
    x, y = digits()
    train, test = ml.tasks.episodes_of(x.reshape(-1, 1, 8, 8) / 16, y, ways=2, shots=3)
    task = train.batch(4)
    assert task.support.x.shape == (4, 6, 1, 8, 8) and task.support.x.dtype == torch.float32
    held_out = test.held_out(4).support.x.reshape(-1, 64)
    rows = torch.from_numpy(x / 16).float()
    kinds = {int(y[int((rows == row).all(1).nonzero()[0])]) for row in held_out}
    assert len(kinds) == 2                                   # a fifth of ten classes


def test_a_frame_of_scikit_learn_becomes_tasks():
    from sklearn.datasets import load_diabetes
    frame = load_diabetes(as_frame=True, scaled=False).frame
    family = table(frame, task="sex", x=["age", "bmi"], y="target", shots=5, test=["2.0"])
    found = family.y_scale.back(family.train.y[0, :int(family.train.counts[0])].double())
    np.testing.assert_allclose(found.flatten(), frame[frame["sex"] == 1]["target"], rtol=1e-5)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_a_data_set_of_hugging_face_becomes_episodes(form):
    x, y = digits()
    rows = {"pixels": x[:300].tolist(), "label": [int(kind) for kind in y[:300]]}
    data = of_hugging_face(rows).with_format(form)
    found = ml.tasks.episodes_of(data["pixels"], data["label"], ways=2, shots=2)[0].batch(3)
    wanted = ml.tasks.episodes_of(x[:300], y[:300], ways=2, shots=2)[0].batch(3)
    assert torch.equal(found.support.x, wanted.support.x)
    assert torch.equal(found.query.y, wanted.query.y)
    with pytest.raises(ValueError, match="is a dict of 'pixels', 'label', and a pair"):
        ml.tasks.episodes_of(data)
