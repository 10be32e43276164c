"""The rooms of the library: who knows the sentence of seven choices knows where things are.

A file imports only from files above it in `ORDER`, counted with the imports that stand inside
functions and under `TYPE_CHECKING`; so there is no circle.
"""
import ast
from pathlib import Path

import pytest

import metalit

LIBRARY = Path(metalit.__file__).parent
ROWS = (
    "tasks.task tasks.unequal tasks.random tasks.family tasks.sinusoids tasks.quadratics",
    "tasks.memorised tasks.oversampled tasks.episodes tasks.given tasks.table tasks.labelled tasks",
    "models checks schedule",
    "batching.slope batching.modes batching.norms batching.embedding batching.recurrent",
    "batching.attention batching.plain batching.refused batching.chunks batching.products",
    "batching.compiled batching.many_steps batching.by_steps batching",
    "losses",
    "inner.walk inner.momentum inner.rates inner.sgd inner.adam inner.sam inner.masked",
    "inner.proximal inner.sign inner.preconditioned inner.learned_loss",
    "inner.adaptive inner.forgetting",
    "inner.prototypes inner.ridge inner.shared_head inner",
    "pooling.mean pooling.tail pooling.worst_case pooling",
    "terms.term terms.query terms.every_step terms.distance terms.contrast terms.sharpness",
    "terms.path_length terms.bootstrap terms.alignment terms.inequality terms.information terms",
    "gradient.exact gradient.first_order gradient.mixed gradient.truncated gradient.annealed",
    "gradient.implicit gradient.evolution gradient",
    "adapted learner compat program meta_loss methods as_written",
    "training.identity training.checkpoints training.evaluation training.processes training.memory",
    "training.watching training.outer training.whole_run training.loop",
    "training.side_by_side training",
    "plots",
    "data data.images data.splits data.glyphs data.omniglot data.patients data.other_patients",
    "judging.judge judging.step_size judging.diagnosis judging.recipes judging.baselines",
    "judging.conformal judging.comparison",
    "judging.suites judging.runs judging",
    "designing.space designing.search designing.honest designing.report",
    "designing.scoring designing",
    "widgets.figure widgets.sinusoids widgets.plane widgets.landscape widgets.episodes",
    "widgets.patients widgets.meta_training widgets.explorer widgets.training widgets",
    "cli",
    "comparison compiled judge",
    "__init__ __main__",
)
ORDER = " ".join(ROWS).split()

FIGURE = "each live figure has its own, and only its own file uses it"
COMMAND = "the command is called as the function that it runs"
TWICE = {"_all_": "what a room shows", "__getattr__": "the old names of a module that has moved",
         "one_graph": "of version 0.1.0, which took J, beside the function that took its place",
         "compare": COMMAND, "design": COMMAND, "evaluate": COMMAND,
         "score": COMMAND,
         **dict.fromkeys(("CAPTION", "DEFAULT", "GRID", "LABELS", "LIMIT", "LRS", "MOST_STEPS",
                          "Start", "_draw", "_show", "described", "readable", "specification",
                          "start", "still", "trained"), FIGURE)}


def name_of(path: Path, library: Path) -> str:
    "`inner.sgd` for inner/sgd.py, `inner` for inner/__init__.py."
    parts = path.relative_to(library).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def files(library: Path) -> dict[str, Path]:
    return {name_of(path, library): path for path in sorted(library.rglob("*.py"))
            if path.name != "_modidx.py"}


def imported(source: str, package: list[str], known: set[str]) -> set[str]:
    "The files of the library that a file imports, wherever in it the import stands."
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wholes = [alias.name.split(".") for alias in node.names]
            ours = [parts[1:] for parts in wholes if parts[0] == "metalit"]
            found |= {".".join(parts) or "__init__" for parts in ours}
        if not isinstance(node, ast.ImportFrom): continue
        module = (node.module or "").split(".") if node.module else []
        if node.level: module = ["metalit", *package[:len(package) - node.level + 1], *module]
        if module[:1] != ["metalit"]: continue
        within = ".".join(module[1:])
        for alias in node.names:
            inside = f"{within}.{alias.name}".lstrip(".")
            found.add(inside if inside in known else within or "__init__")
    return found


def imports(library: Path) -> dict[str, set[str]]:
    "For each file, the files that it imports; a room's own `__init__` sees its files."
    paths = files(library)
    return {name: imported(path.read_text(encoding="utf-8"),
                           list(path.relative_to(library).parts[:-1]), set(paths)) - {name}
            for name, path in paths.items()}


def test_every_file_has_its_place():
    assert sorted(ORDER) == sorted(files(LIBRARY))
    assert len(set(ORDER)) == len(ORDER)


def test_a_file_imports_only_from_files_above_it():
    place = {name: number for number, name in enumerate(ORDER)}
    below = {name: sorted(other for other in others if place[other] > place[name])
             for name, others in imports(LIBRARY).items()}
    assert {name: others for name, others in below.items() if others} == {}


@pytest.mark.parametrize(("source", "package", "expected"), [
    ("import metalit.models", [], {"models"}),
    ("import metalit", [], {"__init__"}),
    ("from metalit import models", [], {"models"}),
    ("from metalit import __version__", [], {"__init__"}),
    ("from metalit.inner.sgd import SGD", [], {"inner.sgd"}),
    ("from metalit.inner import SGD", [], {"inner"}),
    ("from ..models import Params", ["inner"], {"models"}),
    ("from .sgd import SGD", ["inner"], {"inner.sgd"}),
    ("from . import models", [], {"models"}),
    ("def f():\n    from .sgd import SGD", ["inner"], {"inner.sgd"}),
    ("if TYPE_CHECKING:\n    from metalit.models import Params", [], {"models"}),
    ("import torch\nfrom torch import nn", [], set()),
])
def test_imports_are_seen_wherever_they_stand(source, package, expected):
    known = {"models", "inner", "inner.sgd"}
    assert imported(source, package, known) == expected


def defined(body: list[ast.stmt]) -> set[str]:
    "The names that a file makes: functions, classes and what is assigned; not what it imports."
    names = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): names.add(node.name)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        names |= {part.id for target in targets if target for part in ast.walk(target)
                  if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With, ast.For)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                names |= defined(getattr(node, part, []))
    return names


def test_a_name_means_one_thing():
    "One that stands in two files has a reason, and a reason is one for a name that does."
    places: dict[str, list[str]] = {}
    for file, path in files(LIBRARY).items():
        names = defined(ast.parse(path.read_text(encoding="utf-8")).body) - {"__all__"}
        for name in names: places.setdefault(name, []).append(file)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in TWICE} == {}
    assert TWICE.keys() <= twice.keys()
    of_figures = [name for name, why in TWICE.items() if why == FIGURE]
    assert all(file.startswith("widgets.") for name in of_figures for file in twice[name])


@pytest.mark.parametrize(("source", "expected"), [
    ("def f():\n    inside = 1", {"f"}), ("class A:\n    part = 1", {"A"}),
    ("a = b = 1", {"a", "b"}), ("a, (b, *c) = 1, (2, 3)", {"a", "b", "c"}),
    ("a: int = 1\nb: int", {"a", "b"}), ("a += 1", {"a"}), ("a.part = a[0] = 1", set()),
    ("import a\nfrom b import c", set()), ("f(x)", set()),
    ("try:\n    import a\nexcept ImportError:\n    a = None", {"a"}),
    ("if x: a = 1\nelse: b = [y for y in x]", {"a", "b"}),
])
def test_names_that_a_file_makes(source, expected):
    assert defined(ast.parse(source).body) == expected
