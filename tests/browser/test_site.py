"""The built site in a real browser.

It is silent, complete without a network, searchable, and readable everywhere.
"""
import json
import posixpath
import re
from itertools import pairwise
from pathlib import Path

import pytest
from check_sync import settings

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "_site"
PUBLISHED = settings(ROOT).getboolean("published")
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")
               if not {"_static", "_modules"} & set(path.parts))
CHAPTERS = [page for page in PAGES if re.match(r"\d_\w+/\d\d\w?_", page)]
FOLDERS = sorted({posixpath.dirname(page) for page in PAGES})

# How many titles a page has, what MathJax complains of, and what the page says, apart from code.
LOOK = """() => {
    const copy = (document.querySelector('.bd-article') ?? document.body).cloneNode(true);
    copy.querySelectorAll('pre, code, script, style').forEach(part => part.remove());
    const wrong = [...document.querySelectorAll('mjx-merror, [data-mjx-error]')];
    return {titles: document.querySelectorAll('h1').length, words: copy.textContent,
            errors: wrong.map(part => part.innerText)};
}"""

# How many formulas must be scrolled to be read.
CUT = ("[...document.querySelectorAll('div.math')].filter(math => math.scrollWidth > "
       "math.clientWidth + 1).length")


def looked_at(folder):
    "The pages of a folder; of the API, whose pages are many and alike, the longest and some more."
    names = [name for name in PAGES if posixpath.dirname(name) == folder
             and name != "404.html"]  # its addresses begin with where the site is published
    if folder != "api": return names
    names.sort(key=lambda name: -(SITE / name).stat().st_size)
    return names[:10] + names[10::10]


# Every control of every figure is moved, by a click or an event; the keys of those that nothing
# followed. (That keys and pointers reach them is seen in test_figures.py, for each kind of figure.)
MOVE = """async () => {
    const frame = () => new Promise(done =>
        requestAnimationFrame(() => requestAnimationFrame(done)));
    const deaf = [], controls = "input[data-key], select[data-key], "
        + "button[data-key][aria-pressed=false]";
    for (const figure of [...document.querySelectorAll(".metalit-figure")].slice(0, 1)) {
        if (!figure.live) await frame();
        const message = figure.querySelector(".m-message");
        if (!message.hidden) deaf.push(message.innerText);
        if (!figure.querySelector(controls)) deaf.push("no control");
        for (const control of figure.querySelectorAll(controls)) {
            const key = control.dataset.key, before = JSON.stringify(figure.live.state[key]);
            if (control.tagName === "SELECT") {
                if (control.options.length < 2) continue;
                control.selectedIndex = (control.selectedIndex + 1) % control.options.length;
                control.dispatchEvent(new Event("change"));
            } else if (control.type === "range") {
                const [value, step] = [control.value, control.step].map(Number);
                control.value = value < Number(control.max) ? value + step : value - step;
                control.dispatchEvent(new Event("input"));
            } else control.click();
            const same = () => JSON.stringify(figure.live.state[key]) === before;
            for (let i = 0; i < 20 && same(); i++) await frame();
            if (same()) deaf.push(key);
        }
    }
    return deaf;
}"""


def settled(page):
    "Wait until the formulas are drawn."
    page.evaluate("""async () => {
        const later = () => new Promise(done => setTimeout(done, 20));
        while (document.querySelector('.math') && !window.MathJax?.startup?.promise) await later();
        await window.MathJax?.startup?.promise;
    }""")


def luminance(colour):
    "Of a CSS colour, from 0 to 1."
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def text_and_ground(page):
    "The luminance of the text and of what is behind it."
    return [luminance(colour) for colour in page.evaluate(
        "[getComputedStyle(document.querySelector('.bd-article')).color,"
        " getComputedStyle(document.body).backgroundColor]")]


def test_there_are_many_chapters(site):
    assert len(CHAPTERS) > 40


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_page_is_silent_its_figure_moves_and_it_fits_into_every_window(
    site, browser_page, folder
):
    # In the last one formulas must fit, too.
    widths = (390, 1440) if folder == "api" else (390, 800, 1440)
    for name in looked_at(folder):
        browser_page.goto(f"{site}/{name}", wait_until="domcontentloaded")
        settled(browser_page)
        # else a new width comes by and by
        browser_page.add_style_tag(content="* { transition: none !important }")
        shown = browser_page.evaluate(LOOK)
        assert shown["titles"] >= 1, name
        assert not shown["errors"], f"{name}: {shown['errors']}"
        source = re.findall(r"\\(?:begin|end|tag|label|eqref|frac)\b.{,30}", shown["words"])
        assert not source, f"{name}: formulas that were not drawn: {source}"
        for width in widths:
            browser_page.set_viewport_size({"width": width, "height": 844})
            assert browser_page.evaluate("document.documentElement.scrollWidth") <= width, (
                f"{name} at {width}"
            )
        assert browser_page.evaluate(CUT) == 0, (
            f"{name}: formulas that are wider than a page of 1440 pixels"
        )
        assert browser_page.evaluate(MOVE) == [], f"{name}: controls that nothing follows"


def test_formulas_are_drawn_and_their_numbers_lead_somewhere(site, browser_page):
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html")
    settled(browser_page)
    raw = browser_page.locator(".bd-article .math").count()
    assert raw > 30
    assert browser_page.locator(".bd-article .math mjx-container").count() == raw
    assert browser_page.locator("mjx-merror, [data-mjx-error]").count() == 0
    lead = browser_page.evaluate("[...document.querySelectorAll('mjx-container a')].map(a => "
                                 "decodeURIComponent(a.getAttribute('href') || "
                                 "a.getAttribute('xlink:href')))")
    assert lead and all(browser_page.evaluate("id => !!document.getElementById(id)", link[1:])
                        for link in set(lead))


def terms():
    "A word of each chapter that stands in no title: its rarest, as Sphinx indexed them."
    script = (SITE / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").rstrip(")\n"))
    found, best = {}, {}
    for word, pages in index["terms"].items():
        pages = pages if isinstance(pages, list) else [pages]
        if not re.fullmatch(r"[a-z]{5,12}", word): continue
        for page in pages:
            name = index["docnames"][page]
            if f"{name}.html" in CHAPTERS and len(pages) < best.get(name, 1000):
                best[name], found[name] = len(pages), word
    return found


def test_each_chapter_has_a_term(site):
    assert {f"{name}.html" for name in terms()} == set(CHAPTERS)


# What the search finds for a word, as pages: what it does when the word comes from the field.
FOUND = """(words) => words.map(([name, word]) => {
    const found = Search._performSearch(...Search._parseQuery(word)).map(result => result[0]);
    return found.includes(name) ? null : `${word}: ${found}`;
}).filter(missing => missing !== null)"""


def test_search_finds_a_term_of_each_chapter(site, browser_page):
    browser_page.goto(f"{site}/search.html?q=theta", wait_until="domcontentloaded")
    browser_page.wait_for_selector("#search-results a")
    assert browser_page.evaluate(FOUND, list(terms().items())) == []
    assert len(browser_page.evaluate(FOUND, [["no/such_page", "theta"]])) == 1


def test_search_by_keyboard_from_any_page(site, browser_page):
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html")
    browser_page.keyboard.press("Control+k")
    browser_page.keyboard.type("reptile")
    browser_page.keyboard.press("Enter")
    browser_page.wait_for_selector("#search-results a[href*='2_trial/21_reptile.html']")


def test_dark_follows_the_system_and_the_button_and_holds(site, new_page):
    page = new_page(color_scheme="dark")
    page.goto(f"{site}/index.html")
    text, ground = text_and_ground(page)
    assert text > 0.6 and ground < 0.1
    page = new_page(color_scheme="light")
    page.goto(f"{site}/index.html")
    text, ground = text_and_ground(page)
    assert text < 0.3 and ground > 0.9
    page.locator(".article-header-buttons .theme-switch-button").click()
    page.locator(".article-header-buttons .theme-change-button[data-mode=dark]").click()
    page.goto(f"{site}/7_workshop/76_plots.html")
    text, ground = text_and_ground(page)
    assert text > 0.6 and ground < 0.1
    behind = page.evaluate("[...document.querySelectorAll('.cell_output img')]"
                           ".map(image => getComputedStyle(image).backgroundColor)")
    assert behind and set(behind) == {"rgba(0, 0, 0, 0)"}
    page.goto(f"{site}/1_idea/11_exact_gradient.html")
    settled(page)
    assert luminance(page.evaluate(
        "getComputedStyle(document.querySelector('mjx-container a')).fill"
    )) > 0.25


def test_each_chapter_leads_to_the_next_one_and_back(site, browser_page):
    browser_page.goto(f"{site}/{CHAPTERS[6]}")
    browser_page.locator("a.right-next").click()
    browser_page.wait_for_url(f"{site}/{CHAPTERS[7]}")
    browser_page.locator("a.left-prev").click()
    browser_page.wait_for_url(f"{site}/{CHAPTERS[6]}")
    for name, following in pairwise(CHAPTERS):
        link = posixpath.relpath(following, posixpath.dirname(name))
        assert ('class="right-next"\n'
                f'       href="{link}"' in (SITE / name).read_text(encoding="utf-8")), name


def test_a_chapter_can_be_downloaded_and_once_published_edited_and_launched(site, browser_page):
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html")
    links = browser_page.evaluate("[...document.querySelectorAll('.article-header-buttons "
                                  "a')].map(a => a.href)")
    file = "1_idea/11_exact_gradient.ipynb"
    assert any(f"_sources/{file}" in link for link in links)
    for part in (
        f"github.com/metalit/metalit/edit/main/nbs/{file}", "github.com/metalit/metalit/issues/new",
        f"colab.research.google.com/github/metalit/metalit/blob/main/nbs/{file}",
        "mybinder.org/v2/gh/metalit/metalit/main"
    ):
        assert any(part in link for link in links) == PUBLISHED, part


def test_before_it_is_published_no_page_leads_to_where_it_will_be(site):
    texts = [(SITE / name).read_text(encoding="utf-8") for name in PAGES]
    there = re.compile(r'(?:href|content)="https://(?:github\.com/metalit|metalit\.github\.io)')
    assert any(map(there.search, texts)) == PUBLISHED


def test_a_name_in_a_chapter_leads_to_the_api_and_on_to_the_source(site, browser_page):
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html")
    browser_page.locator(".makes a").click()
    assert browser_page.url.startswith(f"{site}/api/metalit.gradient.exact.html")
    browser_page.locator("dt .viewcode-link").first.click()
    assert "/_modules/metalit/gradient/exact.html" in browser_page.url
    assert "class Exact(nn.Module)" in browser_page.locator("pre").inner_text()


def test_the_first_page_shows_a_live_figure_at_once(site, browser_page):
    browser_page.goto(f"{site}/index.html")
    box = browser_page.locator(".metalit-figure svg").first.bounding_box()
    assert box["y"] + box["height"] / 2 < 900


def test_folded_solutions_open(site, browser_page):
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html")
    said = browser_page.locator(".bd-article details").filter(has_text="Solution of exercise")
    code = browser_page.locator(".bd-article details").filter(has_text="the code of this solution")
    assert said.count() == code.count() == 5
    for solution, inside in ((said.last, "p"), (code.last, ".cell_input, .highlight")):
        hidden = solution.locator(inside).first
        assert not hidden.is_visible()
        solution.locator("summary").click()
        assert hidden.is_visible()
