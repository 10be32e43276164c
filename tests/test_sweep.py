"""Every layer and loss of `torch.nn`: nothing is silently wrong, and the list says what is true."""
import inspect
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import layers

CASES = layers.cases()
RECORD = Path(__file__).parent.parent / "results/layers.json"
# What is not simply right, for the exact gradient; all else is.
KNOWN = {
    "Hardsigmoid()": "not differentiable twice by PyTorch",
    "CrossMapLRN2d(2)": "not differentiable twice by PyTorch",
    "MultiMarginLoss()": "not differentiable twice by PyTorch",
    "MultiMarginLoss(p=2)": "not differentiable twice by PyTorch",
    "MultiLabelMarginLoss()": "not differentiable twice by PyTorch",
    "CTCLoss()": "not differentiable twice by PyTorch",
    "RReLU().eval()": "by a loop only", "GaussianNLLLoss()": "by a loop only",
    "Embedding(7, 4, max_norm=1.0)": "by a loop only",
}
ONCE = {"CrossMapLRN2d(2)": "by a loop only", "RReLU().eval()": "by a loop only",
        "GaussianNLLLoss()": "by a loop only", "Embedding(7, 4, max_norm=1.0)": "by a loop only"}


@pytest.fixture(scope="module")
def record():
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    return {layer["name"]: layer for layer in found["layers"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_each_is_what_the_list_says(name, case, record):
    exact, first = layers.outcome(case, False), layers.outcome(case, True)
    assert {exact["outcome"], first["outcome"]} <= {"right", "refused", "by a loop only",
                                                    "not differentiable twice by PyTorch"}
    assert exact["outcome"] == KNOWN.get(name, "right") == record[name]["exact"]["outcome"]
    assert first["outcome"] == ONCE.get(name, "right") == record[name]["first_order"]["outcome"]
    if exact["outcome"] == "by a loop only": assert "batching='loop'" in exact["why"]


def test_no_layer_is_missing(record):
    classes = {name for name, kind in vars(nn).items()
               if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    tried = {name.partition("(")[0] for name, _ in CASES}
    known = tried | layers.LEFT_OUT.keys() | {name for name in classes if name.startswith("Lazy")}
    assert classes <= known and len(CASES) == len({name for name, _ in CASES})
    assert record.keys() == {name for name, _ in CASES}


def test_the_sweep_sees_what_is_wrong(monkeypatch):
    "With PyTorch's own operations, three layers are found out, each in its way."
    monkeypatch.setattr("metalit.batching.plain.PLAIN", {})
    cases = dict(CASES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {name: layers.outcome(cases[name], False)["outcome"] for name in (
            "BatchNorm2d(4, track_running_stats=False)", "Embedding(7, 4, padding_idx=2)",
            "LSTM(6, 3, batch_first=True)", "Linear(6, 5)")}
    assert list(found.values()) == ["wrong", "wrong", "by a loop only", "right"]
    torch.manual_seed(0)
