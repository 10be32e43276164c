"""The library as a package: quiet, light, typed, documented."""
import ast
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import metalit as ml

ROOT = Path(__file__).parent.parent


def test_import_is_quiet_light_and_leaves_random_numbers_alone():
    program = """
import sys, torch
loaded, before = set(sys.modules), torch.get_rng_state()
import metalit
assert torch.equal(before, torch.get_rng_state())
heavy = {"matplotlib", "tqdm", "click", "IPython", "fastcore", "nbdev", "pandas"}
heavy |= {"torch._dynamo", "torch._inductor", "sympy", "torch.utils.tensorboard"}
heavy &= set(sys.modules) - loaded
sys.exit(f"loaded {heavy}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True,
                            text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_library_never_imports_development_tools():
    for path in (ROOT / "metalit").rglob("*.py"):
        if path.name == "_modidx.py": continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"fastcore", "nbdev", "IPython",
                                                                 "execnb"}, path


def test_typed():
    assert (ROOT / "metalit" / "py.typed").exists()


def test_what_types_are_told_to_ignore_is_little_and_has_a_reason():
    "One kind of error, named, and a comment on the line above."
    found = []
    for path in (ROOT / "metalit").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for before, line in itertools.pairwise(lines):
            if "type: ignore" not in line: continue
            found.append(line)
            assert "type: ignore[" in line and before.strip().startswith("# "), (path.name, line)
    assert 0 < len(found) <= 10


PUBLIC = [(name, value) for name, value in vars(ml).items()
          if name in ml.__all__ and (inspect.isclass(value) or inspect.isfunction(value))]


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_every_public_name_is_documented_with_an_example(name, value):
    assert value.__doc__
    if issubclass(value if inspect.isclass(value) else object, Exception): return
    made_by_others_or_by_a_subclass = ("Split", "Path", "Sum", "Evaluation", "Family",
                                       "Preconditioned")
    if name in made_by_others_or_by_a_subclass: return
    assert "Example:" in value.__doc__


def test_all_names_what_is_there():
    assert {"MAML", "FOMAML", "MetaLoss", "QueryLoss", "Mean", "SGD", "Exact", "FirstOrder",
            "meta_train", "evaluate", "Task", "Split", "tasks", "models"} <= set(ml.__all__)
    for name in ml.__all__: assert hasattr(ml, name)
