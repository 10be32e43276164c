"""Where the figures that move stand in their chapters, and what stands below them."""
import ast
import json
import re
import statistics
from pathlib import Path

import pytest
from check_book import tree_of

from metalit import widgets

NBS = Path(__file__).parent.parent / "nbs"
# Chapters that make a figure show it as its function makes it, with the caption of the function.
MAKERS = {"8_figures/81_sinusoid_figure", "8_figures/82_two_parameters",
          "8_figures/83_rewards_figure", "8_figures/84_episode_figure",
          "8_figures/85_training_figure", "8_figures/85a_patients_figure",
          "8_figures/85b_meta_training_figure"}


def is_figure(node):
    "Whether an expression makes a live figure, with a caption of its own or not."
    if not isinstance(node, ast.Call): return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return is_figure(node.func.value) if name == "captioned" else name in widgets.__all__


def shows(source):
    "Whether a cell ends with a live figure: made there, or made before under a name."
    if re.search(r"^#\| *export", source, re.MULTILINE): return False
    body = tree_of(source).body
    if not body or not isinstance(body[-1], ast.Expr): return False
    shown = body[-1].value
    if isinstance(shown, ast.Call) and getattr(shown.func, "attr", "") == "captioned":
        shown = shown.func.value
    named = {ast.unparse(line.targets[0]) for line in body
             if isinstance(line, ast.Assign) and is_figure(line.value)}
    return is_figure(shown) or ast.unparse(shown) in named


def first_figure(cells):
    "The share of a chapter's characters before its first live figure, and the figure's cell."
    sources = ["".join(cell["source"]) for cell in cells]
    for number, (cell, source) in enumerate(zip(cells, sources, strict=True)):
        if cell["cell_type"] == "code" and shows(source):
            return sum(map(len, sources[:number])) / sum(map(len, sources)), source
    return None


def chapters():
    "Every chapter with a live figure: its name, how deep the first is, and its cell."
    for path in sorted(NBS.glob("[1-8]_*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if found := first_figure(cells):
            yield path.relative_to(NBS).with_suffix("").as_posix(), *found


FOUND = {name: (depth, source) for name, depth, source in chapters()}


def test_a_live_figure_stands_right_behind_the_question():
    assert len(FOUND) > 60
    depths = {name: depth for name, (depth, _) in FOUND.items()}
    assert statistics.median(depths.values()) <= 0.15
    assert max(depths.values()) < 0.25


@pytest.mark.parametrize("name", FOUND)
def test_its_cell_is_folded_and_brings_its_own_imports(name):
    source = FOUND[name][1]
    assert source.startswith("#| code-fold: true\n")
    assert "metalit.widgets" in source or "from metalit import widgets" in source


def caption(source):
    "The words below a figure, or None where the function chooses them."
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call): continue
        said = [word.value for word in node.keywords if word.arg == "caption"]
        if getattr(node.func, "attr", "") == "captioned": said += node.args
        if said: return ast.literal_eval(said[0])
    return None


def without_magic(source):
    "A cell as Python reads it."
    return ast.unparse(tree_of(source))


def captions():
    "The words below every figure that a cell shows, but for the first of those who make them."
    for path in sorted(NBS.glob("[1-8]_*/*.ipynb")):
        name = path.relative_to(NBS).with_suffix("").as_posix()
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                 if cell["cell_type"] == "code"]
        found = [source for cell in cells if shows(source := "".join(cell["source"]))]
        yield from ((name, caption(without_magic(source)))
                    for source in found[name in MAKERS:] if "refused" not in source)


def test_each_has_a_caption_of_its_own():
    found = list(captions())
    assert all(words for _, words in found), [name for name, words in found if not words]
    assert len({words for _, words in found}) == len(found) > 70
    assert all(len(words.split()) >= 12 for _, words in found), found


def shown_name(source):
    "The name under which a cell shows a figure, or None."
    last = tree_of(source).body[-1].value
    return last.id if isinstance(last, ast.Name) else None


def moved_later(cells):
    "The names of figures that a later cell moves, although they are in sight."
    shown = set()
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        yield from (name for name in shown if re.search(rf"\b{name}\.move\(", source))
        shown = {name for name in shown if not re.search(rf"^{name} *=", source, re.MULTILINE)}
        if shows(source): shown.add(shown_name(source))


@pytest.mark.parametrize("path", sorted(NBS.glob("[1-8]_*/*.ipynb")), ids=lambda path: path.stem)
def test_after_all_cells_ran_a_figure_is_in_the_state_of_its_text(path):
    # That of the chapter on live figures is moved to show how, and put back.
    put_back = {"smallest"} if path.stem == "80_live_figures" else set()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert set(moved_later(cells)) - {None} <= put_back


def test_a_figure_that_is_moved_under_the_readers_eyes_is_found():
    cells = notebook("one = sinusoid()\none", "two = sinusoid()", "two.move(lr=1)",
                     "one.move(lr=1)")
    assert list(moved_later(cells)) == ["one"]


def notebook(*cells):
    "Cells of a notebook: code, and text where it begins with a hash and a space."
    return [{"cell_type": "markdown" if cell.startswith("# ") else "code", "source": cell}
            for cell in cells]


@pytest.mark.parametrize(("cell", "share"), [
    ("widgets.sinusoid()", 0.5), ("sinusoid(steps=0).captioned('Slide.')", 0.5),
    ("one = widgets.rewards()\none.move(steps=1)\none", 0.5),
    ("run = training_run(J, tasks)\nmeta_train(J)\nrun.captioned('Slide.')", 0.5),
    ("figure = sinusoid()", None), ("sinusoid().picture", None), ("x = 1\nx", None),
    ("#| export\ndef two(): return 2\nsinusoid()", None)])
def test_how_deep_a_figure_is(cell, share):
    before = "# " + "x" * (len(cell) - 2)
    found = first_figure(notebook(before, cell))
    assert (found is None and share is None) or found[0] == share
