"""The scripts behind make: each is shown something wrong, and has to say so."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bootstrap
import check_style
import check_sync
import clean_notebooks
import nbformat
import pytest
import run_notebooks as run_notebooks_script

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"


# ---- a small project to check ----------------------------------------------------------------


def write_notebook(path, *cells, **extra):
    """A clean notebook of code cells; `extra` goes into the last one."""
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"{number:08x}",
            "metadata": {},
            "outputs": [],
            "source": source.splitlines(keepends=True),
        }
        for number, source in enumerate(cells)
    ]
    cells[-1].update(extra)
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(notebook, sort_keys=True, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def good_project(tmp_path_factory):
    root = tmp_path_factory.mktemp("a project")
    shutil.copy(ROOT / "settings.ini", root)
    write_notebook(root / "nbs/01_one.ipynb", "#| default_exp one", "#| export\nx = 1")
    write_notebook(root / "nbs/02_two.ipynb", "#| default_exp inner.two", "#| export\ny = 2", "y")
    check_sync.nbdev("nbdev.doclinks:nbdev_export", root)
    (root / "metalit/py.typed").touch()
    return root


@pytest.fixture
def project(good_project, tmp_path):
    return Path(shutil.copytree(good_project, tmp_path / "copy"))


# ---- check_sync.py ---------------------------------------------------------------------------


def test_a_good_project_passes_and_is_left_alone(project, capsys):
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    assert check_sync.main(project) == 0
    assert "2 notebooks are clean" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_stale_edited_and_missing_modules_are_named(project, tmp_path):
    (project / "metalit/inner/old.py").write_text("z = 3\n")
    one = project / "metalit/one.py"
    one.write_text(one.read_text().replace("x = 1", "x = 10"))
    (project / "metalit/inner/two.py").unlink()

    problems = check_sync.sync_problems(project, tmp_path)

    assert problems[:2] == [
        "metalit/inner/old.py is stale: no notebook exports it",
        "metalit/inner/two.py is missing",
    ]
    assert problems[2].startswith("metalit/one.py is not what the notebook exports")
    assert "-x = 10\n+x = 1" in problems[2]
    assert len(problems) == 3


def test_a_notebook_edited_but_not_exported_fails(project, capsys):
    write_notebook(project / "nbs/01_one.ipynb", "#| default_exp one", "#| export\nx = 7")
    assert check_sync.main(project) == 1
    error = capsys.readouterr().err
    assert "-x = 1\n+x = 7" in error
    assert "make export" in error


def test_dirty_notebooks_are_named_with_the_reason(project, tmp_path):
    output = {"name": "stdout", "output_type": "stream", "text": ["2"]}
    two = project / "nbs/02_two.ipynb"
    write_notebook(two, "y", "y", outputs=[output], execution_count=3, metadata={"scrolled": True})
    one = project / "nbs/01_one.ipynb"
    notebook = json.loads(one.read_text())
    notebook["metadata"]["kernelspec"] = {"language": "python", "name": "other"}
    one.write_text(json.dumps(notebook))

    problems = check_sync.clean_problems(project, tmp_path)

    assert any("01_one.ipynb asks for the kernel 'other'" in p for p in problems)
    assert "nbs/02_two.ipynb is not clean (cell 1: outputs, execution_count, metadata)" in problems


def test_what_a_page_folds_is_folded_in_a_notebook_and_stays_so(project, tmp_path):
    closed, whole = {"source_hidden": True}, {"outputs_hidden": True, "source_hidden": True}
    folded = {"#| hide\nx = 1": closed, "#| code-fold: true\nx = 1": closed,
              "import torch": closed, "#| export\nimport torch\n\nfrom a import b": closed,
              "#| solution: 2\nx = 1": whole, "x = 1": None, "import torch\nx = 1": None,
              "#| code-fold: false\nx = 1": None}
    two = project / "nbs/02_two.ipynb"
    write_notebook(two, *folded)
    found, = check_sync.clean_problems(project, tmp_path)
    assert re.findall(r"cell (\d)", found) == ["0", "1", "2", "3", "4"]

    clean_notebooks.fold(project / "nbs")
    said = [cell["metadata"] for cell in json.loads(two.read_text())["cells"]]
    assert said == [{"jupyter": about} if about else {} for about in folded.values()]
    (tmp_path / "again").mkdir()
    assert check_sync.clean_problems(project, tmp_path / "again") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cells": [', "01_one.ipynb is not a notebook"),
        ('{"cells": [{}], "metadata": {}}', "nbdev_clean failed"),
    ],
)
def test_a_broken_notebook_fails(project, capsys, content, message):
    (project / "nbs/01_one.ipynb").write_text(content)
    assert check_sync.main(project) == 1
    assert message in capsys.readouterr().err


def test_an_export_without_a_module_fails(project, capsys):
    write_notebook(project / "nbs/03_three.ipynb", "#| export\nz = 3")
    assert check_sync.main(project) == 1
    assert "default_exp" in capsys.readouterr().err


def test_every_notebook_finds_the_library_where_colab_opens_it():
    nbs, found = ROOT / "nbs", {}
    for path in check_sync.notebooks_in(nbs):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        if not sources: continue                # a page to be read, with nothing to run
        found[path], = [source for source in sources if "google.colab" in source]
    assert len(found) > 70
    searches = {path for path in found if "designing." in path.read_text(encoding="utf-8")}
    for path, source in found.items():          # all the same, but for the folder and for a search
        folder = path.parent.relative_to(ROOT).as_posix()
        if path in searches: source = source.replace("[widgets,design]", "[widgets]")
        assert source == found[nbs / "index.ipynb"].replace("metalit/nbs", f"metalit/{folder}")


# ---- check_style.py --------------------------------------------------------------------------

WIDE = f"x = {'1' * 97}"
LONG = "def f():\n" + "    x = 1\n" * 50


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (WIDE, "nbs/03_three.ipynb:0:1: a line of 101 characters, more than 100"),
        (f"y = 1\n{WIDE[:-1]}", None),
        (f"#| fig-alt: {WIDE}\nplot()", None),
        (f"# fig-alt: {WIDE}", "nbs/03_three.ipynb:0:1: a line of 112 characters"),
        (f"%time x\n@cached\n{LONG}", "nbs/03_three.ipynb:0:3: f has 51 lines, more than 50"),
        (f"@cached\n{LONG[:-10]}\n\ny = f()", None),
        ("#| export\n" + "x = 1\n" * 51, "nbs/03_three.ipynb:0: an exported cell of 51 lines"),
        ("#|exporti\n" + "x = 1\n" * 51, "nbs/03_three.ipynb:0: an exported cell of 51 lines"),
        ("#| export\n" + "x = 1\n" * 50, None),
        ("x = 1\n" * 51, None),
    ],
)
def test_what_is_too_wide_or_too_long_in_a_notebook_is_named(project, capsys, cell, found):
    write_notebook(project / "nbs/03_three.ipynb", cell)
    assert check_style.main(project) == (0 if found is None else 1)
    error = capsys.readouterr().err
    assert (error == "") if found is None else (found in error and error.count("error:") == 1)


def test_what_is_too_wide_or_too_long_in_a_file_is_named(project, capsys):
    (project / "tests").mkdir()
    (project / "tests/test_it.py").write_text(f"{LONG}\n{WIDE}\n")
    for folder in ("metalit", ".venv", "build"):  # the library's lines are those of the notebooks
        (project / folder).mkdir(exist_ok=True)
        (project / folder / "other.py").write_text(f"{LONG}\n{WIDE}\n")
    assert check_style.main(project) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: tests/test_it.py:53: a line of 101 characters, more than 100",
        "error: tests/test_it.py:1: f has 51 lines, more than 50",
    ]


# ---- run_notebooks.py ------------------------------------------------------------------------


LIVE = """
import ipywidgets, json, traitlets
class Figure(ipywidgets.DOMWidget):
    "What a live figure gives a notebook: a view, and a page with its data."
    _view_name = traitlets.Unicode("View").tag(sync=True)
    spec, state, answer = (traitlets.Dict().tag(sync=True) for _ in range(3))
    def _repr_mimebundle_(self, **options):
        data = {"spec": self.spec, "state": self.state, "answer": {"picture": {"y": [0.333333333]}}}
        page = f'<script type="application/json" id="metalit-0-data">{json.dumps(data)}</script>'
        return super()._repr_mimebundle_(**options) | {"text/html": page}
figure = Figure(spec={"caption": "<"}, state={"lr": 0.1}, answer={"picture": {"y": [1 / 3]}})
"""


def run_notebooks(root, *arguments):
    command = [sys.executable, TOOLS / "run_notebooks.py", "--root", root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def notebook_run(tmp_path_factory):
    """One run over notebooks that pass, raise, die and skip."""
    root = tmp_path_factory.mktemp("notebooks")
    shutil.copy(ROOT / "settings.ini", root)
    nbs = root / "nbs"
    write_notebook(nbs / "good.ipynb", "a = 1", "import os\nos.stat('good.ipynb')",
                   "import subprocess, sys\nprogram = [sys.executable, '-c', 'raise "
                   "SystemExit(3)']\nassert subprocess.run(program).returncode == 3")
    write_notebook(nbs / "raises.ipynb", "a = 1", "raise ValueError('this went wrong')", "a = 2")
    write_notebook(nbs / "dies.ipynb", "import os", "os._exit(1)")
    write_notebook(nbs / "fresh.ipynb", "assert 'a' not in globals()", "import sys\n"
                   "assert not sys.path[0].endswith('tools') and 'test' not in sys.argv[0]",
                   "import threading\nassert threading.main_thread() is threading.current_thread()")
    write_notebook(
        nbs / "skips.ipynb",
        "#| slow\nraise ValueError('ran slow')",
        "#| hide\n#| gpu\nraise ValueError('ran gpu')",
        "#|net\nraise ValueError('ran net')",
        "#| eval: false\nraise ValueError('ran eval')",
        "ran = True  #| slow",
        "assert ran",
    )
    write_notebook(nbs / "restores.ipynb", LIVE, "figure", "figure.state = {'lr': 0.3}",
                   "figure.state = {'lr': 0.1}")
    write_notebook(nbs / "moves.ipynb", LIVE, "figure", "figure.state = {'lr': 0.3}")
    before = {p: p.read_bytes() for p in nbs.iterdir()}
    done = run_notebooks(root)
    assert {p: p.read_bytes() for p in nbs.iterdir()} == before
    return done


def test_one_bad_notebook_fails_the_run(notebook_run):
    assert notebook_run.returncode == 1
    assert "3 of 7 notebooks failed" in notebook_run.stderr


@pytest.mark.parametrize("name", ["good", "fresh", "skips", "restores"])
def test_good_notebooks_pass_with_their_seconds(notebook_run, name):
    assert re.search(rf"^ok +\d+\.\d s  nbs/{name}\.ipynb", notebook_run.stdout, re.MULTILINE)
    assert f"nbs/{name}.ipynb" not in notebook_run.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"failed in cell 1\n(.|\n)*ValueError: this went wrong"),
        ("dies", "its kernel died"),
        ("moves", r"moves the figure that cell 1 shows: lr of its state changed afterwards"),
    ],
)
def test_bad_notebooks_are_named_with_the_reason(notebook_run, name, message):
    assert re.search(rf"^FAILED +\d+\.\d s  nbs/{name}\.ipynb", notebook_run.stdout, re.MULTILINE)
    assert re.search(rf"error: nbs/{name}\.ipynb {message}", notebook_run.stderr)


@pytest.mark.parametrize(("part", "value", "told"), [
    ("state", {"lr": 0.1, "steps": 2}, "steps of its state"),
    ("spec", {"caption": "another"}, "caption of its spec"),
    ("answer", {"picture": {"x": [0, 1 / 3], "y": None}}, "y of its answer"),
    ("answer", {"picture": {"message": "ValueError: no"}}, "x, y, message of its answer"),
    ("answer", {"asked": 3, "picture": {"x": (0.0, 1 / 3 + 1e-10), "y": [2]}}, None)])
def test_what_is_left_of_a_figure_is_what_was_shown(part, value, told):
    shown = {"spec": {"caption": "<"}, "state": {"lr": 0.1, "steps": 1},
             "answer": {"asked": 0, "picture": {"x": [0.0, 0.333333333], "y": [2.0]}}}
    page = json.dumps(shown).replace("<", "\\u003c")
    data = {run_notebooks_script.VIEW: {"model_id": "m"}, "text/html": (
        f'<div><script type="application/json" id="metalit-0-data">{page}</script></div>')}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", data)])])
    assert run_notebooks_script.moved(notebook, {"m": shown}) is None
    message = run_notebooks_script.moved(notebook, {"m": shown | {part: value}})
    assert bool(message) == bool(told) and (told or "") in (message or "")
    notebook.cells[0].source = "#| moves\nfigure"
    assert run_notebooks_script.moved(notebook, {"m": shown | {part: value}}) is None


def test_skipped_cells_are_counted(notebook_run):
    assert "nbs/skips.ipynb  (4 cells skipped)" in notebook_run.stdout


def test_a_notebook_that_hangs_is_ended(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    write_notebook(tmp_path / "nbs/hangs.ipynb", "import time; time.sleep(600)")
    write_notebook(tmp_path / "nbs/quick.ipynb", "a = 1")
    done = run_notebooks(tmp_path, "--limit", "3")
    assert done.returncode == 1
    assert re.search(r"hangs.ipynb did not end within 3 s\n(.|\n)*time.sleep\(600\)", done.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels start one by one")
def test_kernels_that_are_forked_end_with_the_process_that_forks(tmp_path):
    from nursery import Nursery
    with Nursery() as nursery:
        order = {"folder": str(tmp_path), "environment": dict(os.environ)}
        one, other = (nursery.fork(arguments=["-f", str(tmp_path / f"{i}.json")], **order)
                      for i in range(2))
        assert one.pid != other.pid and one.poll() is None
        one.kill()
        assert one.wait() == 0 and other.poll() is None
        nursery.process.kill()
        with pytest.raises((RuntimeError, BrokenPipeError)): nursery.fork(arguments=[], **order)
    assert other.wait() == 0  # it looks every second whether that process is there


def test_a_book_without_notebooks_fails(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    done = run_notebooks(tmp_path)
    assert done.returncode == 1
    assert "no notebooks" in done.stderr


def test_executed_copies_are_kept_and_used_until_something_changes(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    write_notebook(tmp_path / "nbs/a.ipynb", "1 + 1")
    write_notebook(tmp_path / "nbs/b.ipynb", "#| slow\nraise ValueError", "2 + 2")
    (tmp_path / "metalit").mkdir()
    (tmp_path / "metalit/one.py").write_text("x = 1\n")
    keep = ("--keep", tmp_path / "kept")
    copy = tmp_path / "kept/nbs/a.ipynb"

    assert "a.ipynb" in run_notebooks(tmp_path, *keep, "--reuse").stdout
    first = json.loads(copy.read_text())
    assert first["cells"][0]["outputs"][0]["data"]["text/plain"] == ["2"]
    again = run_notebooks(tmp_path, *keep, "--reuse")
    assert "2 of 2 notebooks were executed before" in again.stdout and "ok  " not in again.stdout

    def usable(reuse=True):
        kept = run_notebooks_script.Kept(tmp_path, tmp_path / "kept", reuse)
        return [kept.has(tmp_path / f"nbs/{name}.ipynb") for name in "ab"]
    assert usable() == [True, True]
    assert usable(reuse=False) == [False, False]  # a test executes, copies or not
    (tmp_path / "metalit/one.py").write_text("x = 2\n")
    assert usable() == [False, False]
    (tmp_path / "metalit/one.py").write_text("x = 1\n")
    write_notebook(tmp_path / "nbs/a.ipynb", "1 / 0")
    assert usable() == [False, True]
    failed = run_notebooks(tmp_path, *keep, "--reuse")
    assert failed.returncode == 1 and "1 of 2 notebooks were executed before" in failed.stdout
    assert usable() == [False, True]  # a failure is not remembered as done
    assert json.loads(copy.read_text()) == first


def test_kept_copies_hold_their_figures_as_drawings(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for name in "ab":
        write_notebook(tmp_path / f"nbs/{name}.ipynb",
                       "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    # more notebooks than jobs: the kernels are forked
    assert run_notebooks(tmp_path, "--keep", tmp_path / "kept", "--jobs", "1").returncode == 0
    for name in "ab":
        copy = json.loads((tmp_path / f"kept/nbs/{name}.ipynb").read_text())
        assert ["image/svg+xml" in output["data"]
                for output in copy["cells"][0]["outputs"]] == [True]


# ---- bootstrap.py ----------------------------------------------------------------------------


def test_an_old_python_is_told_what_is_needed():
    with pytest.raises(bootstrap.Problem, match=r"3\.10 or newer.*old/python is Python 3\.9\.18"):
        bootstrap.check_version((3, 9, 18), (3, 10), "old/python")
    bootstrap.check_version((3, 10, 0), (3, 10), "python")
    assert bootstrap.minimum_python(ROOT) == (3, 10)


def test_old_pythons_can_read_the_script():
    source = (TOOLS / "bootstrap.py").read_text(encoding="ascii")
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr | ast.Nonlocal)
        assert not (isinstance(node, ast.Raise) and node.cause)
        assert not (isinstance(node, ast.FunctionDef) and node.returns)
        assert not (isinstance(node, ast.arguments) and (node.kwonlyargs or node.posonlyargs))
        assert not (isinstance(node, ast.arg) and node.annotation)


def test_a_python_without_ensurepip_is_told_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # importing it now fails
    with pytest.raises(bootstrap.Problem, match=r"`ensurepip`(.|\n)*apt install python3\.11-venv"):
        bootstrap.check_venv_modules((3, 11, 2))


RETRY = "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'\n"
NOT_FOUND = "ERROR: No matching distribution found for torch==2.13.0\n"
CONFLICT = "ERROR: ResolutionImpossible: for help visit the documentation\n"
TIMEOUT = "ERROR: Could not install packages due to an OSError: Read timed out.\n"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (RETRY + NOT_FOUND, "no network"),
        (RETRY + CONFLICT, "no network"),
        (TIMEOUT, "no network"),
        (NOT_FOUND, "no release of torch==2.13.0 for Python"),
        (CONFLICT, "messages of pip"),
        # The network came back, then something else failed.
        (RETRY + "error: command 'g++' failed with exit code 1\n", "messages of pip"),
        (RETRY + "ERROR: [Errno 28] No space left on device\n", "disk is full"),
    ],
)
def test_the_reason_of_a_pip_failure(output, reason):
    assert reason in bootstrap.explain_pip(output)


class FakeVenv(bootstrap.Venv):
    """A .venv that is only a folder with its state."""

    made = 0

    def version(self):
        return self.read_state().get("python") or sys.version.split()[0]

    def create(self):
        self.remove()
        os.mkdir(self.path)
        self.write_state(unfinished=True)
        FakeVenv.made += 1


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder whose .venv is made without venv and pip; returns (root, what pip was asked)."""
    for name in bootstrap.PINS:
        shutil.copy(ROOT / name, tmp_path)
    asked = []
    monkeypatch.setattr(bootstrap, "Venv", FakeVenv)
    monkeypatch.setattr(bootstrap, "pip_install", lambda *arguments: asked.append(arguments[2:]))
    monkeypatch.setattr(FakeVenv, "made", 0)
    return str(tmp_path), asked


def state_of(root):
    return FakeVenv(root).read_state()


def test_a_finished_environment_is_left_alone(checkout):
    root, asked = checkout
    assert bootstrap.ensure(root, exact=False)
    assert asked == [("setuptools",), ("--no-build-isolation", "-e", ".[dev]")]
    assert not bootstrap.ensure(root, exact=True)
    assert (len(asked), FakeVenv.made) == (2, 1)


def test_changed_pins_are_installed_into_the_same_environment(checkout):
    root, asked = checkout
    bootstrap.ensure(root, exact=False)
    with open(os.path.join(root, "constraints.txt"), "a") as file:
        file.write("# changed\n")
    assert bootstrap.ensure(root, exact=False)
    assert (len(asked), FakeVenv.made) == (4, 1)


@pytest.mark.parametrize("update", [False, True])
def test_an_interrupted_installation_starts_afresh(checkout, monkeypatch, update):
    root, _ = checkout
    if update:
        bootstrap.ensure(root, exact=False)
        with open(os.path.join(root, "constraints.txt"), "a") as file:
            file.write("# changed\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "pip_install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.ensure(root, exact=False)
    assert state_of(root) == {"unfinished": True}
    assert bootstrap.ensure(root, exact=False)
    assert FakeVenv.made == 2
    assert not bootstrap.ensure(root, exact=False)


def test_without_network_a_good_environment_is_kept(checkout, monkeypatch):
    root, _ = checkout
    bootstrap.ensure(root, exact=False)
    before = state_of(root)
    with open(os.path.join(root, "constraints.txt"), "a") as file:
        file.write("# changed\n")

    def offline(*_):
        raise bootstrap.Problem("pip failed: no network")

    monkeypatch.setattr(bootstrap, "pip_install", offline)
    with pytest.raises(bootstrap.Problem, match="no network"):
        bootstrap.ensure(root, exact=False)
    assert state_of(root) == before


def test_another_python_replaces_the_environment_only_when_asked_for(checkout):
    root, _ = checkout
    bootstrap.ensure(root, exact=False)
    FakeVenv(root).write_state(**{**state_of(root), "python": "3.99.0"})
    assert not bootstrap.ensure(root, exact=False)
    assert bootstrap.ensure(root, exact=True)
    assert state_of(root)["python"] == sys.version.split()[0]


def test_a_moved_checkout_gets_a_new_environment(checkout):
    root, _ = checkout
    bootstrap.ensure(root, exact=False)
    FakeVenv(root).write_state(**{**state_of(root), "root": "/elsewhere"})
    assert bootstrap.ensure(root, exact=False)
    assert FakeVenv.made == 2


def test_an_environment_made_by_someone_else_is_not_removed(checkout):
    root, _ = checkout
    theirs = Path(root, ".venv", "precious")
    theirs.parent.mkdir()
    theirs.touch()
    with pytest.raises(bootstrap.Problem, match="was not made by this command"):
        bootstrap.ensure(root, exact=False)
    assert theirs.exists()


# ---- Makefile --------------------------------------------------------------------------------


def make(*arguments):
    command = ["make", "--no-print-directory", "-C", ROOT, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lists_its_commands():
    listed = re.findall(r"^  ([a-z]+) ", make().stdout, re.MULTILINE)
    assert {"lab", "test", "export", "clean"} <= set(listed)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_names_a_python_that_is_missing():
    done = make("setup", "PYTHON=/no/such/python")
    assert done.returncode != 0
    assert "no Python starts under the name '/no/such/python'" in done.stderr
