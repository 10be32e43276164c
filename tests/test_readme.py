"""README.md: its program prints what it says, its tables are what results/ says, its files exist.

The same of results/README.md, the page of results.
"""
import contextlib
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import moving_picture
import pytest
import tables
from torch import nn

ROOT = Path(__file__).parent.parent
PATHS = {"README.md": ROOT / "README.md", "results/README.md": ROOT / "results/README.md"}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
README = TEXTS["README.md"]


def rows(text):
    "The lines of a table of losses: inner steps, loss, and half the width of its interval."
    return re.findall(r"^ +(\d+) +(\d+\.\d+) +(\d+\.\d+)$", text, re.MULTILINE)


def test_it_is_short():
    assert len(README.splitlines()) <= 120


def test_the_program_has_twelve_lines_and_prints_what_stands_below_it():
    "Another machine rounds otherwise, a thousand times: it may differ by a tenth of ± 95 %."
    (code,), (said,) = (re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)
                        for kind in ("python", "text"))
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed): exec(code, names)
    assert len(code.splitlines()) == 12 and isinstance(names["learned"], nn.Module)
    text = printed.getvalue()
    assert re.sub(r"\d+\.\d+", "", text) == re.sub(r"\d+\.\d+", "", said)
    assert len(rows(said)) == 5
    for (_, found, _), (_, told, half) in zip(rows(text), rows(said), strict=True):
        assert abs(float(found) - float(told)) <= 0.1 * float(half)


@pytest.mark.parametrize("name", TEXTS)
def test_tables_are_what_the_files_say(name):
    assert tables.filled(TEXTS[name], ROOT / "results") == TEXTS[name]


@pytest.mark.parametrize(("name", "table"), [("README.md", "measurement-short"),
                                             ("results/README.md", "sinusoids")])
def test_a_changed_figure_would_be_noticed(name, table):
    text = TEXTS[name]
    place = text.index(f"<!-- table: {table} -->")
    place += re.search(r"(?<=0\.)\d\d(?= ±)", text[place:]).start()
    changed = text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1:]
    assert tables.filled(changed, ROOT / "results") == text


@pytest.mark.parametrize("name", TEXTS)
def test_every_linked_file_exists(name):
    for link in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert link.startswith("http") or (PATHS[name].parent / link).exists(), link


def test_every_table_that_can_be_made_stands_on_the_page_of_results():
    shown = {page: set(re.findall(r"<!-- table: (\S+) -->", text)) for page, text in TEXTS.items()}
    short = {name for name in tables.TABLES if name.endswith("-short")}
    assert shown == {"README.md": short, "results/README.md": tables.TABLES.keys() - short}


# ---- the moving picture ------------------------------------------------------------------------


def frames_of(element):
    "How many frames each animation below an element has."
    return {len(part.get("values").split(";")) for part in element.iter()
            if part.tag.endswith("animate")}


def test_the_picture_is_light_moves_and_asks_nobody_for_anything():
    path = ROOT / "results/learning.svg"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert frames_of(ET.fromstring(text)) == {len(moving_picture.looked_at(1000)) + 1}
    assert "<script" not in text and text.count("http") == text.count("http://www.w3.org/2000/svg")


def test_the_command_draws_the_picture_and_what_does_not_move_is_the_same(tmp_path):
    moving_picture.main(["--steps", "3", "--out", str(tmp_path / "a.svg")])
    drawn, kept = (ET.fromstring(path.read_text(encoding="utf-8"))
                   for path in (tmp_path / "a.svg", ROOT / "results/learning.svg"))
    assert frames_of(drawn) == {len(moving_picture.looked_at(3)) + 1}
    def dots(picture): return [part.attrib for part in picture if part.get("r") == "4"]
    assert len(dots(kept)) == 30 and dots(drawn) == dots(kept)


def test_it_ends_where_the_program_of_the_readme_ends():
    "The last place of the dot says the loss of a hundred waves, of which README.md has 600."
    picture = ET.fromstring((ROOT / "results/learning.svg").read_text(encoding="utf-8"))
    dot = next(part for part in picture if part.get("r") == "6")
    after_one = float(rows(README)[1][1])
    assert abs(float(dot.get("cy")) - moving_picture.on_loss(after_one)) < 58 * 0.2


def test_every_table_of_losses_has_a_line_of_who_learns_nothing():
    "The constant's error is about the variance of the waves: ½·E[A²], less what the mean explains."
    for text, names in ((README, ["measurement-short"]), (TEXTS["results/README.md"], [
            "sinusoids", "comparison", "omniglot", "omniglot-methods"])):
        for name in names:
            (table,) = re.findall(rf"<!-- table: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
            assert re.search(r"^\| \*[^|]*blind", table, re.MULTILINE), name
    blind = tables.beside(ROOT / "results" / "comparison.json")["without"]
    variance = (5**3 - 0.1**3) / (3 * 4.9) / 2
    assert abs(blind["loss"] - variance) < blind["ci95"]
