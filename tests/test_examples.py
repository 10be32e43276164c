"""tools/run_examples.py: a small package whose examples are right and wrong in every way."""

import sys
import warnings
from pathlib import Path

import pytest
import run_examples
import torch

MODULE = '''
"""A made-up module."""
import contextlib
import os
import socket
import time
import warnings
from pathlib import Path
__all__ = ["double", "Shape", "Shown", "SQUARE", "Path"]

def double(x, steps=1):
    """Twice x.

    Example: EXAMPLE

    After the blank line `1 / 0` does not count.
    """
    print("double", x, "in", steps)
    return 2 * x

class Shape:
    "No example of its own."
    def area(self):
        """An area.

        Example: `Shape().area()`.
        """
        return 1

    def _hidden(self):
        "Example: `1 / 0`."

class Shown:
    "A figure. Example: `Shown({})`."
    def __init__(self, picture):
        self.picture = picture

SQUARE = Shape()

def private():
    "Example: `1 / 0`."
'''


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the tool on a package with one example; gives exit code, what it printed, its errors."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files written in one second look alike
    monkeypatch.setattr(run_examples, "LEFT_OUT", {})
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_private.py").write_text("1 / 0")

    def run(example, *arguments):
        forget()
        example = example.replace("\n", "\n    ")
        (package / "one.py").write_text(MODULE.replace("EXAMPLE", example))
        code = run_examples.main(["made_up", *arguments])
        return code, *capsys.readouterr()

    yield run
    forget()


@pytest.mark.parametrize(
    "example",
    [
        "`double(3)`.",
        "`x = double(3); assert x == 6`, whatever `1 / 0` is.",
        "`assert double(\n3) == 6`, `1 / 0`.",
        "`x = 3`; `y = double(x)`; `assert y == 6`.",
        "`x = 3`; `x += 1` and `assert double(x) == 8`.",
        "`assert double(x) == 6`, with `x = 3`.",
        "`double(3)` is `6`, with `1 / 0`.",
        "`assert double(y) == 6` with `x = 2` and `y = x + 1`; `assert y == 3`.",
        "`double(\n3)`, which is\n`6`.",
    ],
)
def test_examples_that_hold(run, example):
    code, out, err = run(example)
    assert (code, err) == (0, "")
    assert "3 examples executed" in out and "double" not in out
    assert "0 left out, 0 errors; 1 public names have none" in out


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("`double(3)\n/ 0`.", "`double(3) / 0`.\n  ZeroDivisionError: division by zero"),
        ("`double(x)`.", "NameError: name 'x' is not defined"),
        ("`double(x)`. Later `x = 3`.", "NameError: name 'x' is not defined"),
        ("`double(3)` is `7`.", "ValueError: it is 6, not 7"),
        ("`double(`.", "SyntaxError"),
        ("double(3).", "ValueError: no code in back-ticks directly after"),
        ("`raise SystemExit`.", "SystemExit"),
        ("`Shown({'message': 'a bad slope'})`.", "the figure shows an error: a bad slope"),
        ("`socket.create_connection(('127.0.0.1', 9))`.", "OSError: examples have no network"),
        ("`with socket.socket() as s: s.connect(('127.0.0.1', 9))`.", "OSError: examples have no"),
        ("`Path('x').touch()`.", "TypeError"),  # a path of the inner loop, and not of pathlib
    ],
)
def test_an_example_that_fails_is_named(run, example, message):
    code, out, err = run(example)
    assert code == 1
    assert err.startswith("error: made_up.one.double: ") and message in err
    assert "0 left out, 1 errors" in out


def test_an_example_may_not_take_long(run, monkeypatch):
    monkeypatch.setattr(run_examples, "LIMIT", 0.1)
    code, _, err = run("`with contextlib.suppress(Exception): time.sleep(5)`.")
    assert code == 1 and "TooLongError: not done after 0.1 s" in err


@pytest.mark.parametrize(
    ("written", "executed"),
    [
        ("steps=2000, inner_steps=500, lr=100", {"steps": 2, "inner_steps": 500, "lr": 100}),
        ("steps=10, n_tasks=600", {"steps": 10, "n_tasks": 4}),
    ],
)
def test_long_training_is_made_short(run, written, executed):
    code, _, err = run(f"`assert 0, dict({written})`.")
    assert code == 1 and f"AssertionError: {executed}" in err


def test_an_example_has_what_a_reader_has(run):
    code, _, err = run(
        "`MAML(model, loss)(task).backward(); J(task); evaluate(J, train, n_tasks=600)`, with\n"
        "`assert MetaLoss is ml.MetaLoss`, and `F.relu(torch.ones(1)), nn.ReLU, Tensor, partial`\n"
        "and `tasks.batch(2); episodes.batch(3); Images(images, labels, 'abcde')` and\n"
        "`assert len(from_folder('letters').split((0.8, 0.2))) == 2`."
    )
    assert (code, err) == (0, "")


def test_examples_know_nothing_of_each_other(run):
    fresh = "`assert os.listdir() == ['letters']; os.mkdir('runs')`"
    example = f"`assert 0, f'{{os.getcwd()}} {{torch.rand(1)}}'`, with {fresh}."
    here, found = Path.cwd(), []
    with torch.random.fork_rng():
        for seed in range(2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(run(example)[2].split()[-2:])
            assert torch.equal(torch.get_rng_state(), before)
    (one, first), (other, second) = found
    assert one != other and first == second
    assert not Path(one).exists() and Path.cwd() == here


def test_warnings_are_shown(run):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run("`warnings.warn('old', stacklevel=1)`.")
    assert (code, err) == (0, "warning: made_up.one.double: UserWarning: old\n")


def test_an_example_left_out_is_parsed(run, monkeypatch):
    monkeypatch.setattr(run_examples, "LEFT_OUT", {"made_up.one.double": "takes long"})
    code, out, err = run("`double(1 / 0)`.")
    assert (code, err) == (0, "") and "2 examples executed" in out and "1 left out" in out
    code, _, err = run("`double(`.")
    assert code == 1 and "made_up.one.double: `double(`.\n  SyntaxError" in err


def test_what_is_left_out_must_be_there(run, monkeypatch):
    entries = {"made_up.one.gone": "downloads a file", "elsewhere.place": "is not asked for"}
    monkeypatch.setattr(run_examples, "LEFT_OUT", entries)
    code, _, err = run("`double(1)`.")
    assert (code, err) == (1, "error: made_up.one.gone of LEFT_OUT has no example\n")


def test_names_without_an_example_are_listed(run):
    assert "made_up.one: 1 without an example: Shape\n" in run("`double(1)`.", "--missing")[1]
