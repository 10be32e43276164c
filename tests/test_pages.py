"""Pages that are looked up: what they list is there, and what is there they list."""
import math
import re
from pathlib import Path

import pytest
from check_book import LINK, Chapter
from check_sync import notebooks_in, settings
from site_pages import GUIDES, REFERENCE

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
CHAPTERS = {(chapter := Chapter(path, NBS)).name: chapter for path in notebooks_in(NBS)}
LOOKED_UP = [name for name in CHAPTERS if re.match(r"guides/|reference/", name)]
BOOK = [name for name in CHAPTERS if re.match(r"[1-8]_", name)]
ROW = re.compile(r"^\| (?!---)(?P<first>.+?) \|.* \|$", re.MULTILINE)


def text_of(name):
    return "\n".join(CHAPTERS[name].prose())


def test_each_page_has_its_place_in_the_table_of_contents():
    placed = [name for name in GUIDES + REFERENCE if "/" in name and not name.startswith("api")]
    assert sorted(LOOKED_UP) == sorted(placed)


@pytest.mark.parametrize("name", LOOKED_UP)
def test_each_begins_with_a_promise_and_says_what_it_needs(name):
    text = text_of(name)
    assert re.match(r"# .+\n\n> \S", text)
    assert name == "guides/faq" or "**You need**" in text


INSTALL = "pip install -e '.[widgets]'"


@pytest.mark.parametrize("name", ["index", "guides/install", "guides/quickstart"])
def test_the_same_line_installs_the_library_wherever_it_is_told(name):
    assert INSTALL in text_of(name)
    assert INSTALL in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_extra_that_is_told_of_is_one():
    told = re.findall(r"^\| `\[(\w+)\]` \|", text_of("guides/install"), re.MULTILINE)
    assert "widgets" in told
    assert all(f"{extra}_requirements" in settings(ROOT) for extra in told)


def test_nothing_is_said_to_be_in_a_package_index():
    texts = [*map(text_of, ["index", *LOOKED_UP]), (ROOT / "README.md").read_text(encoding="utf-8")]
    assert not [text for text in texts if re.search(r"pip install ['\"]?metalit", text)]


# ---- notation and glossary ---------------------------------------------------------------------


def rows_of(name):
    "The rows of the tables of a page, with the chapter that each leads to."
    for row in ROW.finditer(text_of(name)):
        links = LINK.findall(row[0])
        if links: yield row["first"], CHAPTERS[name].target(links[-1][1])


def plain(formula):
    return formula.replace(" ", "").replace("\\,", "")


def symbols():
    return [(re.search(r"\$(.+?)\$", first)[1], target)
            for first, target in rows_of("reference/notation")]


def uses(name, symbol):
    "Whether a formula of a chapter has the symbol in it."
    formulas = re.findall(r"\$\$?(.+?)\$\$?", text_of(name), re.DOTALL)
    return any(re.search(re.escape(plain(symbol)) + r"(?![a-zA-Z])", plain(formula))
               for formula in formulas)


# What stands for other things, too, so that its first use cannot be found by its letter.
LETTERS = {"A", "n", "N", "s", "P\\,", r"\lambda"}


@pytest.mark.parametrize(("symbol", "chapter"), symbols())
def test_a_symbol_is_used_first_where_it_is_said_to_be(symbol, chapter):
    before = [name for name in BOOK if name < chapter and name != "1_idea/01_article"]
    assert uses(chapter, symbol) or symbol in LETTERS
    assert symbol in LETTERS or not [name for name in before if uses(name, symbol)]


def test_the_words_that_people_search_are_in_the_glossary():
    words = " ".join(first for first, _ in rows_of("reference/glossary")).lower()
    for word in ("bed", "bowl", "by hand", "company", "bilevel optimisation", "hypergradient",
                 "unrolling", "meta-overfitting", "transductive", "episode", "support set",
                 "meta-batch", "few-shot", "implicit differentiation", "in-context"):
        assert word in words, word


@pytest.mark.parametrize(("word", "chapter"), [
    (first, target) for first, target in rows_of("reference/glossary")
    if re.search(r"blind|bowl|probe|transductive|meta-batch|referee|recipe|CVaR|mixed", first)])
def test_a_word_of_the_glossary_stands_in_its_chapter(word, chapter):
    text = text_of(chapter).lower()
    assert any(part.strip().lower() in text for part in word.split(",")) or "CVaR" in word


# ---- the course --------------------------------------------------------------------------------


def minutes_of(name):
    "At 120 words a minute, without exercises and what follows them; in steps of five."
    text = re.split(r"^## (?:Exercises|Solutions|References)", text_of(name), flags=re.MULTILINE)[0]
    return 5 * math.ceil(len(text.split()) / 600)


def test_the_course_says_how_long_its_chapters_take_to_read_and_knows_their_exercises():
    rows = re.findall(r"^\| \[([^]]+)\]\(([^)]+)\) \| (\d+) \|$", text_of("guides/course"),
                      re.MULTILINE)
    assert len(rows) == 15
    exercises = dict(re.findall(r"\*([A-Z][^*]+)\* (\d[\d ,and]*)", text_of("guides/course")))
    for title, address, minutes in rows:
        name = CHAPTERS["guides/course"].target(address)
        assert abs(int(minutes) - minutes_of(name)) <= 5, (title, minutes_of(name))
        for number in re.findall(r"\d+", exercises.pop(title.split(":")[0], "")):
            assert re.search(rf"^{number}\. ", text_of(name).split("## Exercises")[1], re.MULTILINE)
    assert not exercises


# ---- bibliography ------------------------------------------------------------------------------


def references(name):
    "Who and when, for each line of a chapter's references that has a year."
    found = re.search(r"^## References\n(.*?)(?=^## |\Z)", text_of(name), re.DOTALL | re.MULTILINE)
    for line in re.findall(r"^- (.+)", found[1], re.MULTILINE) if found else ():
        who = re.search(r"[A-Z][a-zA-Z’'-]*[a-z]", line)
        years = re.findall(r"\b(?:19|20)\d\d\b", line)
        if who and years: yield who[0], set(years), line


def test_every_work_that_a_chapter_refers_to_is_in_the_bibliography():
    listed = re.findall(r"^- (.+)", text_of("reference/bibliography"), re.MULTILINE)
    missing = [line for name in BOOK for who, years, line in references(name)
               if not any(who in work and any(year in work for year in years) for work in listed)]
    assert not missing
    assert len(listed) > 80 and all(LINK.search(work) or "`" in work for work in listed)


def test_the_bibliography_leads_to_chapters_that_name_the_work():
    for line in re.findall(r"^- (.+)", text_of("reference/bibliography"), re.MULTILINE):
        who = re.search(r"[A-Z][a-zA-Z’'-]*[a-z]", line)[0]
        chapter = CHAPTERS["reference/bibliography"].target(LINK.findall(line)[-1][1])
        assert who in text_of(chapter), line
