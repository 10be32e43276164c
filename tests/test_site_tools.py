"""The scripts behind `make site`: pages from notebooks; each check is shown to fail."""
import re

import card
import nbformat
import pytest
from bs4 import BeautifulSoup
from build_site import (
    ROOT,
    api_page,
    contents,
    label_of,
    module_page,
    pictures_in,
    public_names,
    results_pages,
)
from check_site import VIEW, problems
from citations import anchored, cited, works_in
from PIL import Image, ImageColor
from site_pages import (
    PARTS,
    as_table,
    breakable,
    imports_alone,
    linked,
    options,
    page,
    restructured,
    symbol_table,
    typeset,
    with_mark,
)

from metalit.plots import COLOURS

TABLE = {"ml.Exact": "metalit.gradient.exact.Exact", "Exact": "metalit.gradient.exact.Exact"}
GOOD = """<html><head><link rel="stylesheet" href="book.css">
<meta property="og:title" content="A page"><meta property="og:description" content="Of it.">
</head><body><h1 id="top">A page</h1>
<a href="#top">up</a> <a href="other.html#there">over</a> <a href="https://example.org">away</a>
<img src="_images/a.svg" alt="Two curves that cross.">
<div>\\[x \\tag{1}\\label{eq:x}\\] \\(\\eqref{eq:x}\\)</div>
<pre><code>x = 1  # a comment</code></pre>
<script>const text = "https://example.org";</script></body></html>"""


def code(source, **cell):
    return nbformat.v4.new_code_cell(source, execution_count=1, **cell)


def markdown(source):
    return nbformat.v4.new_markdown_cell(source)


def book(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


# ---- from notebooks to pages -------------------------------------------------------------------


def test_options_are_taken_off_the_source():
    assert options("#| export\n#| fig-alt: A line: it falls.\n\nx = 1") == (
        {"export": "", "fig-alt": "A line: it falls."}, "x = 1")
    assert options("x = 1\n#| export") == ({}, "x = 1\n#| export")


def test_a_chapter_as_a_page():
    data = {"text/html": "<b>", VIEW: {}, "image/png": "aa", "text/plain": "x"}
    figure = nbformat.v4.new_output("display_data", data)
    made = page(book(markdown("# A title\n\nSee `Exact`."), code("#| default_exp gradient.exact"),
                     code("#| hide\nx"), code("#| export\nx = 1"),
                     code("#| echo: false\n#| fig-alt: A line.\nx", outputs=[figure]),
                     code("#| code-fold: true\nx")),
                7, TABLE)
    title, makes, exported, drawn, folded = made.cells
    assert title.source == "# 7. A title\n\nSee {py:obj}`Exact <metalit.gradient.exact.Exact>`."
    assert "{py:mod}`metalit.gradient.exact`" in makes.source
    assert (exported.source, exported.metadata.tags) == ("x = 1", ["exported"])
    assert (drawn.source, drawn.metadata.tags) == ("x", ["remove-input"])
    assert (folded.source, folded.metadata.tags) == ("x", ["hide-input"])
    assert drawn.metadata.mystnb == {"image": {"alt": "A line."}}
    assert drawn.outputs[0].data == {"text/html": "<b>"}


@pytest.mark.parametrize(("link", "shown"), [
    ("../results/README.md", "results.md"), ("../../results/README.md", "../results.md"),
    ("../../results/README.md#one-long-task", "../results/one-long-task.md")])
def test_the_pages_of_results_are_found_from_every_folder(link, shown):
    made = page(book(markdown(f"# T\n\n[results]({link})")), None, TABLE)
    assert made.cells[0].source == f"# T\n\n[results]({shown})"


@pytest.mark.parametrize(("source", "alone"), [
    ("import torch\nfrom a import b", True), ("if TYPE_CHECKING:\n    from a import b", True),
    ("try:\n    import a\nexcept ImportError:\n    a = None", True),
    ("import torch\nx = 1", False), ("%pip install a\nimport a", False), ("x = 1", False)])
def test_a_cell_of_imports_is_folded(source, alone):
    assert imports_alone(source) == alone
    _, cell = page(book(markdown("# T"), code(f"#| export\n{source}")), 7, TABLE).cells
    assert ("hide-input" in cell.metadata.tags) == alone
    assert (cell.metadata.get("mystnb", {}).get("code_prompt_show") == "Show the imports") == alone
    assert "exported" in cell.metadata.tags
    guide, = page(book(code(source)), None, TABLE).cells
    assert guide.metadata.tags == []


def test_imports_that_follow_each_other_have_one_button():
    _, both, last = page(book(markdown("# T"), code("#| export\nimport a"), code("#| hide\nx"),
                              code("import b"), code("x = 1")), 7, TABLE).cells
    assert both.source == "import a\n\nimport b" and both.metadata.tags == ["hide-input"]
    assert both.metadata.mystnb["code_prompt_show"] == "Show the imports"
    assert last.source == "x = 1" and last.metadata.tags == []
    apart = page(book(markdown("# T"), code("import a"), markdown("Text."), code("import b")), 7,
                 TABLE).cells
    assert [cell.source for cell in apart] == ["# 7. T", "import a", "Text.", "import b"]


def test_a_solution_is_folded_with_what_it_prints():
    _, cell = page(book(markdown("# T"), code("#| solution: 1, 3\nx = 1\nx")), 7, TABLE).cells
    assert (cell.source, cell.metadata.tags) == ("x = 1\nx", ["hide-cell"])
    assert cell.metadata.mystnb["code_prompt_show"] == "Show the code of this solution"


def test_a_figure_that_is_promised_must_be_there():
    with pytest.raises(ValueError, match=r"promises a figure and shows none: A line\."):
        page(book(markdown("# T"), code("#| fig-alt: A line.\nx")), None, TABLE)


def test_names_that_a_chapter_defines_itself_are_not_the_librarys():
    own = page(book(markdown("# T\n\n`Exact`"), code("class Exact: pass")), None, TABLE)
    assert own.cells[0].source == "# T\n\n`Exact`"
    exported = page(book(markdown("# T\n\n`Exact`"), code("#| export\nclass Exact: pass")), None,
                    TABLE)
    assert "py:obj" in exported.cells[0].source


@pytest.mark.parametrize("text", ["# `Exact`", "```\n`Exact`\n```", "[`Exact`](a.ipynb)",
                                  "``Exact``", "`exact`", "<summary>`Exact`</summary>"])
def test_what_is_not_linked(text):
    assert linked(text, TABLE) == text


def test_names_of_the_library():
    table = symbol_table({"metalit.tasks": ["Task", "split", "take_two"], "metalit.a": ["Same"],
                          "metalit.b": ["Same"]}, {"Task"})
    assert (table["Task"] == table["ml.Task"] == table["ml.tasks.Task"]
            == table["metalit.tasks.Task"])
    assert "take_two" in table
    assert "split" not in table
    assert "Same" not in table
    assert "ml.split" not in table


def test_docstrings_are_plain_markdown():
    assert restructured("`x`s and *y*, `Exact` of a_ | b", TABLE) == (
        r"``x``\ s and \*y\*, :py:obj:`Exact <metalit.gradient.exact.Exact>` of a\_ \| b")
    assert restructured("`a`, of\n`b(c:\n  d)` and `e`", {}) == "``a``, of\n``b(c: d)`` and ``e``"
    assert restructured("A `$` is none.\nBut $\\|x\\|_2\n+ 1$ is, *here*.", TABLE) == (
        "A ``$`` is none.\nBut :math:`\\|x\\|_2 + 1` is, \\*here\\*.")


def test_parts_and_contents():
    text = contents(["1_idea/00_a", "2_trial/20_b", "99_api"]).source
    assert (text.index("1_idea/00_a") < text.index(f":caption: {PARTS['2_trial']}")
            < text.index("2_trial/20_b") < text.index("api/index") < text.index("99_api"))
    assert PARTS["5_images"] not in text            # a part without chapters
    looked_up = contents(["guides/faq", "1_idea/00_a", "guides/quickstart",
                          "reference/cite"]).source
    assert (looked_up.index("guides/quickstart") < looked_up.index("guides/faq")
            < looked_up.index("1_idea/00_a") < looked_up.index("reference/cite"))
    assert "guides/install" not in looked_up and "changelog" in looked_up
    labels = {"1_idea/00_a": "0", "1_idea/07_b": "7", "1_idea/00a_c": "0a", "99_api": None,
              "index": None, "guides/faq": None}
    assert {name: label_of(name) for name in labels} == labels


def test_the_names_of_the_api_stand_by_choice():
    text = api_page(["metalit.inner.sgd", "metalit.data.glyphs"],
                    ["metalit.data.glyphs.glyphs", "metalit.inner.sgd.SGD",
                     "metalit.terms.query.QueryLoss", "metalit.odd.thing"])
    lines = [line.strip() for line in text.splitlines()]
    order = ["Choices 1 to 4: terms", "~metalit.terms.query.QueryLoss",
             "Choice 7: how a task learns", "~metalit.inner.sgd.SGD", "Data, and the rest",
             "~metalit.data.glyphs.glyphs", "~metalit.odd.thing", "Every module",
             "metalit.inner.sgd"]
    assert [line for line in lines if line in order] == order
    assert "Choice 5: pooling" not in lines                  # a group without a name


def test_modules_and_results(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/sgd.py").write_text('__all__ = ["SGD"]\n'
                                           'raise RuntimeError("this is not imported")\n')
    assert public_names(tmp_path) == {"metalit.inner.sgd": ["SGD"]}
    assert ":doc:`/1_idea/03_inner`" in module_page("metalit.inner.sgd",
                                                    "nbs/1_idea/03_inner.ipynb")


RESULTS = """# What it reaches

- [How fast](#how-fast-its-steps-are): what it costs, from [the file](a.json)

## How fast, its steps are

<!-- table: a -->
| a |

### On images

![x](scaling.svg) as [all](#everything) were, [seeds](a.json), [MAML](https://example.org)

## Everything
"""


def test_the_file_of_results_is_a_page_of_links_and_a_page_for_each_section():
    made = results_pages(RESULTS, "https://example.org/us")
    assert list(made) == ["results", "results/how-fast-its-steps-are", "results/everything"]
    first, fast, _ = made.values()
    assert first.startswith("# What it reaches\n")
    assert "[How fast](results/how-fast-its-steps-are.md)" in first
    assert "\n\nresults/how-fast-its-steps-are\nresults/everything\n```" in first
    assert fast.startswith("# How fast, its steps are\n") and "\n## On images\n" in fast
    assert "![x](scaling.svg) as [all](everything.md) were" in fast and "table:" not in fast
    assert "(https://example.org/us/blob/main/results/a.json)" in fast + first
    assert "[MAML](https://example.org)" in fast
    assert "were, seeds, [MAML]" in results_pages(RESULTS, "")["results/how-fast-its-steps-are"]


def test_the_first_page_of_results_leads_to_every_section():
    first, *sections = results_pages((ROOT / "results/README.md").read_text(encoding="utf-8"),
                                     "").items()
    led = re.findall(r"\]\((results/[\w-]+)\.md\)", first[1])
    assert sorted(led) == sorted(name for name, _ in sections) and len(led) > 12


def test_pictures_of_chapters_go_along(tmp_path):
    for name in ("1_idea/a.svg", ".ipynb_checkpoints/b.svg", "1_idea/_c.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<svg/>")
    assert pictures_in(tmp_path) == [tmp_path / "1_idea/a.svg"]
    assert pictures_in(ROOT / "nbs")


# ---- the checks --------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path):
    "A site of two pages without a fault, and the notebook that it was made from."
    site, notebooks = tmp_path / "site", tmp_path / "pages"
    (site / "_images").mkdir(parents=True)
    notebooks.mkdir()
    (site / "index.html").write_text(GOOD)
    (site / "other.html").write_text('<p id="there">here</p>')
    (site / "book.css").write_text("p { background: url(data:image/png;base64,aa) }")
    (site / "_images/a.svg").write_text("<svg/>")
    skipped = nbformat.v4.new_code_cell("never()", metadata={"tags": ["skip-execution"]})
    nbformat.write(book(code("1"), skipped), notebooks / "index.ipynb")
    return site, notebooks


def found(built, **options):
    return [f"{path.name} {message}" for path, message in problems(*built, **options)]


def test_a_good_site_passes(built):
    assert found(built) == []


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [("other.html#there", "gone.html", "leads to gone.html, which is not there"),
     ("other.html#there", "other.html#gone", "no such anchor"), ("#top", "#gone", "no such anchor"),
     ('href="book.css"', 'href="https://cdn.example.org/book.css"',
      "loads https://cdn.example.org/book.css"),
     ("<script>", '<script src="//cdn.example.org/a.js"></script><script>',
      "loads //cdn.example.org/a.js"),
     ("<script>", '<script>import { a } from "https://cdn.example.org/a.js"; ', "from elsewhere"),
     ("<script>",
      "<style>@font-face { src: url('https://cdn.example.org/f.woff') }</style><script>",
      "from elsewhere"),
     ("_images/a.svg", "https://example.org/a.svg", "loads https://example.org/a.svg"),
     ("x = 1  #", "#| export\nx = 1  #", "meant for nbdev: #| export"),
     (' alt="Two curves that cross."', "", "without an alt text"),
     ("Two curves that cross.", "figure", "without an alt text"),
     (r"\eqref{eq:x}", r"\eqref{eq:y}", "refers to the equation 'eq:y'"),
     ("<div>", "<p>| K | loss |<br>|—:|:—|<br>| 0 | 3.1 |</p><div>",
      "shows a table as it is written"),
     ('"og:title"', '"title"', "tells others no og:title"),
     ('content="Of it."', 'content=" "', "tells others no og:description"),
     ("</head>", '<meta property="og:image" content="card.png"></head>', "has no address yet"),
     ("<script>", f'<script type="{VIEW}">{{}}</script><script>', "widget that needs a kernel")]
)
def test_each_fault_of_a_page_is_found(built, good, bad, message):
    assert good in GOOD
    (built[0] / "index.html").write_text(GOOD.replace(good, bad, 1))
    assert len(complaints := found(built)) == 1 and message in complaints[0]


def test_a_published_page_has_an_address_and_a_picture_that_is_there(built):
    address = "https://example.org/book/"
    tags = (f'<meta property="og:url" content="{address}index.html">'
            f'<meta property="og:image" content="{address}_images/a.svg"></head>')
    for tag, message in ((tags, None), (tags.replace("a.svg", "b.svg"), "b.svg, which is not"),
                         (tags.replace(f'"{address}_', '"_'), "'_images/a.svg', which is not at"),
                         (tags.replace("og:url", "url"), "og:url '', which is not at")):
        (built[0] / "index.html").write_text(GOOD.replace("</head>", tag))
        complaints = found(built, address=address)
        assert len(complaints) == bool(message) and (message or "") in "".join(complaints)


def test_the_picture_of_the_site_has_the_size_that_is_asked_for(tmp_path):
    card.main(["--steps", "2", "--out", str(tmp_path / "new.png")])
    for path in (tmp_path / "new.png", ROOT / "site/static/card.png"):
        with Image.open(path) as picture:
            shown = picture.convert("RGB")
        assert shown.size == card.SIZE and path.stat().st_size < 100_000
        found = {colour for _, colour in shown.getcolors()}
        assert all(any(max(map(abs, map(int.__sub__, colour, there))) < 9 for there in found)
                   for colour in (ImageColor.getrgb(COLOURS[name]) for name in card.WAVES))
    conf = (ROOT / "site/conf.py").read_text(encoding="utf-8")
    assert '"_static/card.png" if published else None' in conf
    assert all(f'content="{number}"' in conf for number in card.SIZE)


def test_a_font_of_a_style_sheet_that_comes_from_elsewhere_is_found(built):
    (built[0] / "book.css").write_text('@import "https://fonts.example.org/a.css";')
    assert "from elsewhere" in found(built)[0]


def test_heavy_pages_are_found_with_their_images(built):
    assert found(built, limit=len(GOOD) + 6) == []
    (built[0] / "_images/a.svg").write_text("<svg>" + " " * 1000 + "</svg>")
    assert "index.html weighs" in found(built, limit=len(GOOD) + 6)[0]


def test_links_from_the_root_of_the_site_are_followed(built):
    (built[0] / "404.html").write_text('<a href="/metalit/other.html">')
    assert found(built, prefix="/metalit") == []
    assert len(found(built)) == 1


@pytest.mark.parametrize(("cell", "message"), [
    (nbformat.v4.new_code_cell("1"), "cell 0 did not run"),
    (code("1", outputs=[nbformat.v4.new_output("error", ename="ValueError")]),
     "cell 0 raised ValueError"),
    (code("1", outputs=[nbformat.v4.new_output("display_data", {VIEW: {}, "text/plain": "x"})]),
     "needs a kernel"),
    (code("1", outputs=[nbformat.v4.new_output("stream", text="in /tmp/tmpx1/run.json: no\n")]),
     "cell 0 shows a place of this machine: /tmp/tmpx1/run.json:"),
])
def test_each_fault_of_a_notebook_is_found(built, cell, message):
    nbformat.write(book(cell), built[1] / "index.ipynb")
    assert len(complaints := found(built)) == 1 and message in complaints[0]


def test_an_empty_site_is_no_good_site(tmp_path):
    assert problems(tmp_path, tmp_path) == [(tmp_path, "has no pages")]


@pytest.mark.parametrize(("written", "shown"), [
    ("from θ to φ₀, then αλ.", r"from $\theta$ to $\phi_{0}$, then $\alpha \lambda$."),
    ("**θ′** and `θ`, $θ$ or [α](x_α.html)", r"**$\theta'$** and `θ`, $θ$ or [$\alpha$](x_α.html)"),
    ("# A title with θ", "# A title with θ"), ("```\nθ\n```", "```\nθ\n```"),
    ("2/λ and f(θ)", r"2/λ and f($\theta$)")])
def test_a_greek_letter_in_a_sentence_is_set_as_one_in_a_formula(written, shown):
    assert typeset(written) == shown


def test_folded_code_that_shows_nothing_is_behind_the_button_of_the_next_one():
    cells = [code("#| code-fold: true\na = 1"), code("#| code-fold: true\nb = 2"),
             code("#| code-fold: true\nc = 3", outputs=[nbformat.v4.new_output(
                 "stream", text="three")]), code("#| code-fold: true\nd = 4"), code("e = 5")]
    made = page(book(markdown("# T"), *cells), None, {}).cells
    assert [cell.source for cell in made[1:]] == ["a = 1\n\nb = 2\n\nc = 3", "d = 4", "e = 5"]
    assert len(made[1].outputs) == 1


def test_dictionaries_of_numbers_are_tables_and_nothing_else_is():
    assert as_table("{'a': 2.8847098338725057, 'b': 3, 'c': None}") == (
        '<table class="dataframe"><tr><th>a</th><td>2.885</td></tr><tr><th>b</th><td>3</td></tr>'
        "<tr><th>c</th><td>None</td></tr></table>")
    rows = as_table("[{'x': 1, '<y>': 0.123456}, {'x': 2, '<y>': 1e-7}]")
    assert rows.count("<tr>") == 3 and "&lt;y&gt;" in rows and "1e-07" in rows
    for text in ("{'a': 1}", "{'a': [0.5]}", "[0.5, 1.5]", "{}", "tensor(0.5)", "{'a': 0.5", "[]"):
        assert as_table(text) is None


CONTENTS = """<ul class="list-caption">
<li class="toctree-l0 has-children"><details><summary>I</summary>\
<ul class="nav">
<li class="toctree-l1"><a class="reference internal" href="a.html">A</a></li>
</ul></details></li>
<li class="toctree-l0 has-children"><details><summary>II</summary><ul class="nav">
<li class="toctree-l1 has-children"><a class="reference internal" href="api/index.html">API</a>\
<details><summary></summary><ul>
<li class="toctree-l2"><a class="reference internal" href="api/x.html">x</a></li>
</ul>
</details></li>
<li class="toctree-l1"><a class="reference internal" href="b.html">B</a></li>
</ul></details></li></ul>
"""


@pytest.mark.parametrize(("address", "entries", "lists", "opened"), [
    ("a.html", ["A"], 1, ["I"]), ("b.html", ["B"], 1, ["II"]),
    ("api/index.html", ["API"], 1, ["II", ""]), ("api/x.html", ["API", "x"], 2, ["II", ""]),
    ("c.html", [], 0, ["I"])])
def test_the_current_page_is_marked_in_the_contents_and_what_it_is_in_is_opened(
        address, entries, lists, opened):
    page = BeautifulSoup(with_mark(CONTENTS, address), "html.parser")
    assert [li.a.text for li in page.select("li.current.active")] == entries
    assert [link["href"] for link in page.select("a.current")] == ["#"] * bool(entries)
    assert [link.text for link in page.select("a.current")] == entries[-1:]
    assert len(page.select("ul.current")) == lists
    assert [part.summary.text for part in page.select("details[open]")] == opened
    assert page.get_text() == BeautifulSoup(CONTENTS, "html.parser").get_text()


def test_a_line_of_the_contents_may_end_behind_a_dot_of_a_module():
    assert breakable('<a href="x.y">metalit.a.b</a>, <a>a.b</a>') == (
        '<a href="x.y">metalit.<wbr/>a.<wbr/>b</a>, <a>a.b</a>')


BIBLIOGRAPHY = """Some history: Doe et al. (2017).

- J. Doe, A. Roe, B. van Moe (2017). *A title.* ICML. What for. [A chapter](../a.ipynb)
- J. Doe, A. Roe (2018). *Two.* A note.
- J. Doe and others (2018). *Many.* A "quoted" note. [A](../a.ipynb), [B](../b.ipynb)
- J.-P. Doe (2019). *One.*
- K. Doe (2019). *Another one.*
"""


@pytest.mark.parametrize(("words", "anchor", "title"), [
    ("Doe et al. (2017)", "doe-2017", "J. Doe, A. Roe, B. van Moe (2017). A title. ICML. What"),
    ("Doe, Roe and Moe (2017)", "doe-2017", "J. Doe, A. Roe, B."),
    ("Doe & Roe (2018)", "doe-2018", "J. Doe, A. Roe (2018). Two. A note."),
    ("Doe et al. 2018", "doe-2018-1", "J. Doe and others (2018). Many. A &quot;quoted&quot; no")])
def test_a_work_that_a_sentence_names_leads_to_its_line(words, anchor, title):
    works = works_in(BIBLIOGRAPHY)
    found = cited(f"As in {words}, and so on.", works, "../b.html")
    assert f'<a class="cited" href="../b.html#{anchor}" title="{title}' in found
    assert found.startswith("As in <a ") and found.endswith(f">{words}</a>, and so on.")
    assert f'- <span id="{anchor}"></span>J. Doe' in anchored(BIBLIOGRAPHY, works)


@pytest.mark.parametrize("text", [
    "Doe (2019)", "Doe et al. (2016)", "Roe (2018)", "Doe (2018)", "K. Doe et al. (2017)",
    "`Doe et al. (2017)`", "[Doe et al. (2017)](x.html)", "# Doe et al. (2017)", "In 2017"])
def test_what_names_no_work_or_two_or_stands_in_a_link_is_left_alone(text):
    assert cited(text, works_in(BIBLIOGRAPHY), "") == text


def test_the_books_bibliography_has_an_anchor_for_each_work():
    cells = nbformat.read(ROOT / "nbs/reference/bibliography.ipynb", as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = anchored(text, works_in(text))
    anchors = re.findall(r'<span id="([\w-]+)"', shown)
    assert len(anchors) == len(set(anchors)) > 100
    assert set(re.findall(r'href="#([\w-]+)"', shown)) <= set(anchors)


def test_many_pages_are_read_by_two_processes_and_what_is_wrong_is_found(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.html").write_text(f'<a href="{number + 1}.html">next</a>')
    last = (tmp_path / "59.html").resolve()
    assert problems(tmp_path, tmp_path) == [(last, "leads to 60.html, which is not there")]


def test_a_link_leads_from_the_folder_of_its_page(tmp_path):
    "The same words on two pages: there on one side, missing on the other."
    for name in ("here/a", "here/b", "there/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.html").write_text('<a href="b.html">next</a>')
    alone = (tmp_path / "there/a.html").resolve()
    assert problems(tmp_path, tmp_path) == [(alone, "leads to b.html, which is not there")]
