"""Execute the examples of the library's docstrings.

    python tools/run_examples.py [--missing] [MODULE]

An example is what follows "Example:", up to a blank line, in the docstring of a public class or
function, or of a public method of such a class. Pieces in back-ticks are its code:

    Example: `call(x)`; `look()`, with `x = 1` and `y = 2`. Here `words` begin.

The first stands directly after "Example:"; one after "; " runs after it, those after "with" before
it. In "`short(2 / 3)` is `0.667`" (or "which is") the two are compared. Other words end the code.

Each example runs in an empty folder, without network, at most LIMIT seconds, with random numbers
from seed 0, made shorter by SHORTER. It knows what its module defines and imports and what
`metalit` exports, by name; `ml`, `torch`, `F`, `nn`, `Tensor`, `partial`, but no `Path` of pathlib;
and the stand-ins of `names_for`. The folder holds `letters/`, two images for each of ten letters,
dealt by train.txt, val.txt and test.txt.

With --missing, public classes and functions without an example are named, not only counted.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import os
import pathlib
import pkgutil
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from functools import cached_property, partial
from itertools import product
from types import FunctionType, ModuleType
from typing import NamedTuple
from unittest import mock

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn

import metalit as ml

LIMIT = 60
# What is replaced in an example before it runs: nothing is trained or measured for long.
SHORTER = {r"\bsteps=\d{3,}": "steps=2", r"\bn_tasks=\d{3,}": "n_tasks=4"}
# Examples that are only parsed, each with the reason. An entry without an example is an error.
LEFT_OUT = {
    "metalit.data.omniglot.omniglot": "downloads the data set",
    "metalit.data.omniglot.omniglot_images": "downloads the data set",
}
if shutil.which("c++") is None and shutil.which("g++") is None:
    LEFT_OUT["metalit.batching.compiled.one_graph"] = "needs a C++ compiler"
    LEFT_OUT["metalit.meta_loss.MetaLoss.compile"] = "needs a C++ compiler"

COMMON = {"ml": ml, "torch": torch, "F": F, "nn": nn, "Tensor": Tensor, "partial": partial}
METHODS = (FunctionType, classmethod, staticmethod, property, cached_property)
JOINED = re.compile("(;|,? with|,? and|,? is|,? which is) `([^`]+)`")


class TooLongError(BaseException):
    """An example took too long; no Exception, so that code that catches those lets it through."""


class Example(NamedTuple):
    """A place in the library, by its full name, and what its docstring says after "Example:"."""

    name: str
    module: ModuleType
    text: str


# ---- find ------------------------------------------------------------------------------------


def modules_of(name):
    """A module and all below it; private ones, such as nbdev's index, are left out."""
    module = importlib.import_module(name)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not found.name.startswith("_"):
            yield from modules_of(f"{name}.{found.name}")


def public(module):
    """The public classes and functions that a module itself defines, by name."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        here = getattr(value, "__module__", None) == module.__name__
        if here and hasattr(value, "__qualname__"):  # an object of one of its classes has none
            yield name, value


def texts(value):
    """What stands after each "Example:" of a docstring."""
    docstring = inspect.cleandoc(value.__doc__ or "")
    found = re.findall(r"\bExample:\s*(.*?)(?:\n\s*\n|\Z)", docstring, re.DOTALL)
    return [" ".join(text.split()) for text in found]


def examples_of(module):
    """All examples of a module, and the names of its classes and functions that have none."""
    examples, missing = [], []
    for name, value in public(module):
        parts = vars(value).items() if inspect.isclass(value) else ()
        methods = [(f"{name}.{n}", v) for n, v in parts if n[0] != "_" and isinstance(v, METHODS)]
        for place, documented in [(name, value), *methods]:
            full = f"{module.__name__}.{place}"
            examples += [Example(full, module, text) for text in texts(documented)]
        if not texts(value):
            missing.append(name)
    return examples, missing


def code_of(text):
    """The code of an example in the order in which it runs; what it is said to give, or None."""
    found = re.match("`([^`]+)`", text)
    if not found:
        raise ValueError('no code in back-ticks directly after "Example:"')
    before, after, word = [], [found[1]], ";"
    while found := JOINED.match(text, found.end()):
        word = word if "and" in found[1] else found[1].split()[-1]
        if word == "is":
            return "\n".join(before + after), found[2]
        (before if word == "with" else after).append(found[2])
    return "\n".join(before + after), None


# ---- execute ---------------------------------------------------------------------------------


def names_for(module):
    """A fresh namespace: `metalit`'s exports, stand-ins, the module's own; the later ones win."""
    model, loss, tasks = ml.models.mlp(1, 8, 1), F.mse_loss, ml.tasks.Sinusoids(shots=5)
    images, labels = torch.rand(50, 1, 28, 28), torch.arange(5).repeat(10)
    stand_ins = {"model": model, "loss": loss, "J": ml.MAML(model, loss)}
    stand_ins |= {"tasks": tasks, "train": tasks, "task": tasks.batch(4)}
    stand_ins |= {"images": images, "labels": labels}
    stand_ins |= {"episodes": ml.tasks.Episodes(images, labels, ways=5)}
    exported = {name: getattr(ml, name) for name in ml.__all__}
    own = {name: value for name, value in vars(module).items() if name[0] != "_"}
    if own.get("Path") is pathlib.Path:
        del own["Path"]
    return {"__name__": "example", **COMMON, **exported, **stand_ins, **own}


def execute(code, names):
    """Execute statements; returns the value of the last one, None where it has none."""
    *body, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], ast.parse("None").body[0]
    exec(compile(ast.Module(body, []), "<example>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<example>", "eval"), names)


def check(example):
    """Run an example; raises what it raises, and `ValueError` where it does not do what it says."""
    code, said = code_of(example.text)
    for pattern, shorter in SHORTER.items():
        code = re.sub(pattern, shorter, code)
    if example.name in LEFT_OUT:
        ast.parse(code)
        return
    names = names_for(example.module)
    value = execute(code, names)
    if "message" in getattr(value, "picture", ()):  # a live figure shows errors in its place
        raise ValueError(f"the figure shows an error: {value.picture['message']}")
    if said and repr(value) != repr(execute(said, names)):
        raise ValueError(f"it is {value!r}, not {said}")


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise TooLongError(f"not done after {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def alone():
    """A folder of its own, no network, no data of the user's, random numbers from seed 0."""
    here, offline = pathlib.Path.cwd(), mock.Mock(side_effect=OSError("examples have no network"))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.chdir(folder)
        stack.callback(os.chdir, here)
        for grey, (name, number) in enumerate(product("abcdefghij", (1, 2))):
            pathlib.Path("letters", name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), grey).save(f"letters/{name}/{number}.png")
        for part, names in {"train": "abcdef", "val": "gh", "test": "ij"}.items():
            pathlib.Path("letters", f"{part}.txt").write_text("\n".join(names))
        data = mock.patch.dict(os.environ, METALIT_DATA=folder, XDG_CACHE_HOME=folder)
        stack.enter_context(data)
        stack.enter_context(mock.patch.object(socket, "getaddrinfo", offline))
        stack.enter_context(mock.patch.object(socket.socket, "connect", offline))
        stack.enter_context(torch.random.fork_rng(devices=()))
        torch.manual_seed(0)
        stack.callback(plt.close, "all")
        yield


def problem_of(example):
    """What is wrong with an example, or None. Its warnings are shown, what it prints is not."""
    printed, heard = io.StringIO(), warnings.catch_warnings(record=True)
    out, err = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    try:
        with heard as warned, out, err, alone(), time_limit():
            check(example)
    except (Exception, SystemExit, TooLongError) as error:
        return f"{example.name}: {example.text}\n  {type(error).__name__}: {error}"
    for warning in warned:
        kind = warning.category.__name__
        print(f"warning: {example.name}: {kind}: {warning.message}", file=sys.stderr)
    return None


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("module", nargs="?", default="metalit", metavar="MODULE")
    parser.add_argument("--missing", action="store_true", help="name what has no example")
    asked = parser.parse_args(arguments)
    matplotlib.use("agg")
    torch.set_num_threads(1)
    start, examples, without = time.perf_counter(), [], 0
    for module in modules_of(asked.module):
        found, missing = examples_of(module)
        examples += found
        without += len(missing)
        if missing and asked.missing:
            count = f"{len(missing)} without an example"
            print(f"{module.__name__}: {count}: {', '.join(missing)}")
    names = [example.name for example in examples]
    entries = [name for name in LEFT_OUT if f"{name}.".startswith(f"{asked.module}.")]
    problems = [f"{name} of LEFT_OUT has no example" for name in entries if name not in names]
    problems += filter(None, map(problem_of, examples))
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    left_out = sum(name in LEFT_OUT for name in names)
    print(f"{len(names) - left_out} examples executed in {time.perf_counter() - start:.0f} s, "
          f"{left_out} left out, {len(problems)} errors; {without} public names have none")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
