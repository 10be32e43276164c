"""The article in the book: whole, letter by letter, and each comment leads where it says."""
import hashlib
import re
from pathlib import Path

from check_book import LINK, Chapter

from metalit import as_written

ROOT = Path(__file__).parent.parent
HERE = "1_idea/01_article"
NAME = "Meta-Learning中的元损失函数设计"
# Of the whole original without white space, without marks of headings and formulas.
ORIGINAL = "3b452cce87898098c9edaaa557be272941f3f829272d0a2dea08eefb8b40d514"


def texts(name):
    "The markdown cells of a chapter."
    return Chapter(ROOT / "nbs" / f"{name}.ipynb", ROOT / "nbs").prose()


CHAPTER = "\n\n".join(texts(HERE))
FOLDED = re.findall(r'<details lang="zh"><summary>原文.*?</summary>(.*?)</details>', CHAPTER,
                    re.DOTALL)
QUOTED = "\n".join(line for line in CHAPTER.splitlines() if line.startswith(">"))


def bare(text):
    "A text without line breaks in formulas, marks of headings, formulas, bold type, and spaces."
    return re.sub(r"\\begin\{aligned\}|\\end\{aligned\}|\\\\|[&#*$\s]", "", text)


def test_the_original_is_whole():
    text = bare(f"# {NAME}" + "".join(FOLDED))
    assert text.endswith("使得在任意")
    assert hashlib.sha256(text.encode()).hexdigest() == ORIGINAL


def test_each_section_is_translated_and_number_four_occurs_twice():
    numbers = ["1.", "2.", "2.1", "2.2", "3.", "3.1", "3.2", "4.", "4.1", "4.2", "4.3", "4."]
    assert re.findall(r"^#{3,4} (\d\.\d?) ", CHAPTER, re.MULTILINE) == numbers
    assert re.findall(r"^\*\*(\d\.\d?) ?", "".join(FOLDED), re.MULTILINE) == numbers
    assert len(FOLDED) == len(numbers) - 3  # 2, 3 and the first 4 have no text of their own


def test_the_goal_is_printed_three_times():
    reached = "the model's performance on the test set reaches a good level."
    assert QUOTED.count(reached) == 2
    assert QUOTED.endswith("learn initial model parameters such that on any")
    original = "".join(FOLDED)
    assert original.count("模型在测试集上的性能都能达到较好的水平。") == 2
    # in 2.2 and in 3.1
    assert [i for i, text in enumerate(FOLDED) if "都能达到较好的水平" in text] == [2, 3]


def test_the_formulas_are_those_of_the_original():
    translated = re.findall(r"\$\$\s*(\\mathcal\{L\}_\{meta\}[^$]*?) \\tag\{", CHAPTER)
    printed = re.findall(r"\$\$ (\\mathcal\{L\}_\{meta\}[^$]*?) \$\$", "".join(FOLDED))
    assert len(translated) == 4 and translated == printed
    never_closed, = (text for text in printed if "max" in text)
    assert never_closed.count("(") == never_closed.count(")") + 1


def test_the_listing_is_the_one_that_is_run():
    translated, original = re.findall(r"```python\n(.*?)```", CHAPTER, re.DOTALL)
    assert original == as_written.LISTING
    def code(text): return [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert code(translated) == code(original) and translated.isascii()


def test_its_statements_lead_to_many_chapters():
    assert len({link for _, link in LINK.findall(CHAPTER)}) > 20


def test_where_a_reader_begins_the_article_is_named():
    first_screens = [(ROOT / "README.md").read_text(encoding="utf-8")[:1500],
                     *(texts(name)[0] for name in ("index", "1_idea/00_maml_in_60_lines", HERE))]
    for screen in first_screens: assert NAME in screen
    for screen in first_screens[:-1]: assert "_article.ipynb)" in screen
