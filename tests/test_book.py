"""The order of the book: what checks it is shown something wrong, and what changes it is undone."""
import hashlib
import json
import shutil
from pathlib import Path

import check_book
import move_chapter
import prose
import pytest
from check_book import (
    PICTURE,
    Chapter,
    contents_problems,
    link_problems,
    need_problems,
    number_problems,
    picture_problems,
    solution_problems,
    use_problems,
)

ROOT = Path(__file__).parent.parent


def chapter(nbs, name, *markdown, code=()):
    "A notebook with such cells, written and read."
    kinds = [("markdown", text) for text in markdown] + [("code", text) for text in code]
    path = nbs / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in kinds]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return Chapter(path, nbs)


def book(nbs, second):
    "Two chapters in two parts; the second one says this."
    return [chapter(nbs, "1_idea/01_tasks", "# Tasks: what is learned"),
            chapter(nbs, "2_trial/02_the_end", f"# The end\n\n{second}")]


@pytest.mark.parametrize(("text", "message"), [
    ("[tasks](../1_idea/01_tasks.ipynb#a)", None),
    ("[Tasks: what is learned](../1_idea/01_tasks.ipynb)", None),
    ("[end](02_the_end.ipynb)", None),
    ("![any text](../1_idea/01_tasks.ipynb)", None),
    ("[the last chapter](../1_idea/01_tasks.ipynb)", "call it so"),
    ("[tasks](01_nothing.ipynb)", "leads nowhere"),
])
def test_the_text_of_a_link_is_the_title_of_its_chapter(tmp_path, text, message):
    problems = list(link_problems(book(tmp_path, text)))
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


@pytest.mark.parametrize(("text", "count"), [
    ("See chapter 3.", 1), ("Chapters 3a to 5", 1), ("[chapter 3](x)", 1), ("chapter [3](x)", 1),
    ("three chapters", 0), ("chapter on tasks", 0)])
def test_no_chapter_is_called_by_its_number(tmp_path, text, count):
    assert len(list(number_problems(book(tmp_path, text), {}))) == count
    assert len(list(number_problems([], {"README.md": text}))) == count


@pytest.mark.parametrize(("text", "count"), [
    ("**You need** [the end](02_the_end.ipynb).", 1),
    ("**You need** [tasks](../1_idea/01_tasks.ipynb).", 0),
    ("You may like [the end](02_the_end.ipynb).", 0)])
def test_what_a_chapter_needs_stands_before_it(tmp_path, text, count):
    assert len(list(need_problems(book(tmp_path, text)))) == count


@pytest.mark.parametrize(("text", "message"), [
    ("[Tasks](1_idea/01_tasks.ipynb) [The end](2_trial/02_the_end.ipynb)", None),
    ("[The end](2_trial/02_the_end.ipynb) [Tasks](1_idea/01_tasks.ipynb)", "not in the order"),
    ("[Tasks](1_idea/01_tasks.ipynb)", "2_trial/02_the_end is missing")])
def test_the_front_page_lists_the_chapters(tmp_path, text, message):
    front = chapter(tmp_path, "index", "# Front", f"## The chapters\n\n{text}")
    problems = list(contents_problems([*book(tmp_path, ""), front]))
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


@pytest.mark.parametrize(("text", "message"), [
    ("![A line that falls and rises.](a.svg)", None),
    ("![A line.](a.svg)", "say in words"),
    ("![A line that falls and rises.](../a.svg)", "is not there")])
def test_a_picture_is_there_and_says_what_it_shows(tmp_path, text, message):
    chapters = book(tmp_path, text)
    (tmp_path / "2_trial/a.svg").write_text("<svg/>")
    problems = list(picture_problems(chapters, tmp_path))
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


ASKED = "## Exercises\n\n1. Why?\n2. When?"
WHY = "<details><summary>Solution of exercise 1 (argued)</summary>\n\n1. So.\n\n</details>"
WHEN = "<details><summary>Solution of exercise 2 (tested)</summary>\n\nNow.\n\n</details>"


@pytest.mark.parametrize(("texts", "code", "message"), [
    ((ASKED, WHY, WHEN), "#| solution: 2\nassert x", None),
    ((f"{ASKED}\n\n{WHY}", WHEN), "#| solution: 2\nassert x", None),
    (("# No exercises",), "x", None),
    ((ASKED, WHEN), "#| solution: 2\nassert x", "exercise 1 has 0 solutions"),
    ((ASKED, WHY, WHY, WHEN), "#| solution: 2\nassert x", "exercise 1 has 2 solutions"),
    ((ASKED, WHY, WHEN), "#| solution: 2, 3\nassert x", "there is no exercise 3"),
    ((ASKED, WHY, WHEN), "#| solution: 1, 2\nassert x", "exercise 1 is called argued, and a cell"),
    ((ASKED, WHY, WHEN), "assert x", "exercise 2 is called tested, and has no cell"),
    ((ASKED, WHY, WHEN), "x\n#| solution: 2", "does not say which it tests")])
def test_every_exercise_has_one_solution_tested_or_argued(tmp_path, texts, code, message):
    many = [chapter(tmp_path, "0_more/01_more", ASKED, WHEN.replace("2", "1"), WHEN,
                    code=["#| solution: 1, 2"])]
    problems = list(solution_problems([*many, chapter(tmp_path, "1_a/01_a", *texts, code=[code])]))
    assert message is None or message in problems[0]
    assert bool(problems) == (message is not None)


def test_less_than_two_thirds_of_the_solutions_tested_are_too_few(tmp_path):
    found = chapter(tmp_path, "1_a/01_a", ASKED, WHY, WHEN, code=["#| solution: 2"])
    assert list(solution_problems([found])) == ["1 of 2 solutions are tested, less than two thirds"]


def test_three_chapters_show_the_same_picture_of_the_way_from_theta_to_J():
    nbs = ROOT / "nbs"
    shown = [[found for found in PICTURE.findall("\n".join(Chapter(nbs / name, nbs).prose()))
              if "θ" in found[0]]
             for name in ("1_idea/10_terms.ipynb", "1_idea/11_exact_gradient.ipynb",
                          "1_idea/13_meta_loss.ipynb")]
    assert len(shown[0]) == 1 and shown[0] == shown[1] == shown[2]


@pytest.mark.parametrize(("code", "found"), [
    ("import metalit as ml\nml.Exact", "metalit.gradient.exact.Exact"),
    ("import metalit as ml\nx = ml.tasks.Quadratics(4).batch(3)",
     "metalit.tasks.quadratics.Quadratics"),
    ("import metalit\nmetalit.inner.Adam()", "metalit.inner.adam.Adam"),
    ("from metalit.inner import sgd\nsgd.SGD(0.1)", "metalit.inner.sgd.SGD"),
    ("from metalit.terms.term import Path as P", "metalit.terms.term.Path"),
    ("%time x\nfrom metalit.meta_loss import MetaLoss", None),
    ("#| export\nfrom metalit.inner.adam import Adam", None),
    ("from metalit import plots\nplots.figure()", None),
    ("from metalit.widgets import sinusoid", None),
    ("import metalit as ml\nml.__version__", None),
    ("from metalit.tasks.task import length", None),
])
def test_cells_use_nothing_that_a_later_chapter_introduces(tmp_path, code, found):
    order = {name: number for number, name in enumerate(set(check_book.makers(
        ROOT / "metalit").values()))}
    here = chapter(tmp_path, "00_first", "# First", code=[code])
    later = [type("Later", (), {"name": name, "shown": lambda self: []})() for name in order]
    problems = list(use_problems([here, *later], ROOT / "metalit"))
    assert len(problems) == (found is not None)
    assert found is None or problems[0].startswith(f"00_first uses {found}, which")


def test_the_list_of_what_is_used_before_it_is_derived_is_short():
    assert len(check_book.AHEAD) <= 13 and all(check_book.AHEAD.values())


def test_the_book_can_be_read_in_its_order(capsys):
    assert check_book.main(ROOT) == 0, capsys.readouterr().err


# ---- move_chapter.py ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "What of the project names chapters."
    root = tmp_path_factory.mktemp("copy")
    for name in ("settings.ini", "README.md", "CONTRIBUTING.md"): shutil.copy(ROOT / name, root)
    for name in ("nbs", "metalit", "tests", "tools", "results"):
        shutil.copytree(ROOT / name, root / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return root


def digests(root):
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


def names(root):
    nbs = root / "nbs"
    return [path.relative_to(nbs).with_suffix("").as_posix()
            for path in check_book.notebooks_in(nbs)]


def find(root, ending):
    "The name of the chapter that ends so, whatever its number and part are today."
    found, = [name for name in names(root) if name.endswith(f"_{ending}")]
    return found


def test_a_chapter_goes_there_and_back_and_every_byte_is_as_before(copy):
    before = digests(copy)
    old, place = find(copy, "as_written"), "5_elsewhere/and_deeper"
    new = f"{place}/49_{old[-10:]}"              # no number of the book, no name in this file
    changed = move_chapter.move(copy, [(old, new)])
    assert "README.md" in changed or any(name.startswith("nbs/") for name in changed)
    text = (copy / f"nbs/{new}.ipynb").read_text(encoding="utf-8")
    assert "\\\\tag{49.1}" in text and f"metalit/nbs/{place}" in text
    for name in names(copy):            # nothing says the old name, and every link leads somewhere
        assert f"{old}.ipynb" not in (copy / f"nbs/{name}.ipynb").read_text(encoding="utf-8")
    chapters = [Chapter(copy / f"nbs/{name}.ipynb", copy / "nbs") for name in names(copy)]
    assert not list(link_problems(chapters))
    assert f"nbs/{new}.ipynb" in (copy / "metalit/as_written.py").read_text(encoding="utf-8")
    move_chapter.move(copy, [(new, old)])
    assert digests(copy) == before
    assert not (copy / "nbs/5_elsewhere").exists()


def test_two_chapters_exchange_their_numbers_and_get_them_back(copy):
    before = digests(copy)
    one, two = find(copy, "reptile"), find(copy, "contrast")
    swapped = [f"{a.rpartition('/')[0]}/{b.rpartition('/')[2][:2]}{a.rpartition('/')[2][2:]}"
               .lstrip("/") for a, b in ((one, two), (two, one))]
    move_chapter.move(copy, [(one, swapped[0]), (two, swapped[1])])
    assert set(swapped) <= set(names(copy)) and one not in names(copy)
    move_chapter.move(copy, [(swapped[0], one), (swapped[1], two)])
    assert digests(copy) == before


def test_equations_follow_their_chapter_in_the_texts_of_others():
    moves = {"1_idea/05_query_loss": "1_idea/08_query_loss", "08_old": "05_old"}
    text = (r"\\tag{5.1} (5.4) 5.4 equation (5.4), Equations (5.1) and (8.2), $(5.2)$ "
            r"pow(5.4) equation (15.4) \\tag{15.1}")
    assert move_chapter.equations_moved(text, moves, "1_idea/05_query_loss") == (
        r"\\tag{8.1} (5.4) 5.4 equation (8.4), Equations (8.1) and (5.2), $(8.2)$ "
        r"pow(5.4) equation (15.4) \\tag{15.1}")
    assert move_chapter.equations_moved(text, moves, "other").startswith(r"\\tag{5.1} (5.4)")


@pytest.mark.parametrize(("new", "message"), [
    ("as_written", "no name of a chapter"), ("1_idea/Two", "no name of a chapter"),
    (None, "two chapters would be called"), ("98_x", "two chapters would have the number 98")])
def test_a_move_that_cannot_be_made_changes_nothing(copy, new, message):
    before = digests(copy)
    old, other = find(copy, "as_written"), find(copy, "reptile")
    pairs = [(old, new or other)] + ([(other, "98_y")] if new == "98_x" else [])
    with pytest.raises(move_chapter.MoveError, match=message): move_chapter.move(copy, pairs)
    with pytest.raises(move_chapter.MoveError, match="there is no chapter 00_nothing"):
        move_chapter.move(copy, [("00_nothing", "98_nothing")])
    assert digests(copy) == before


def test_sentences_of_a_text_are_told_apart_and_short_ones_are_counted():
    text = ("# A heading. Left out.\n\n**Run in.** It falls. See Eq. 3 and `a.b.c`, e.g. in "
            "[the loop](x.ipynb).\n\n- A point without a full stop\n- A point of $a < b. c$ "
            "words.\n\n"
            "```python\nCode. Code.\n```\n\n$$ x. $$\n\n## References\n\n- Finn, C. A paper. 2017.")
    found = list(prose.sentences(text))
    assert found == ["It falls.", "See Eq 3 and X, e.g in the loop.", "A point of X words."]
    assert prose.report("one", found) == "     3    5.3    67%  one"
