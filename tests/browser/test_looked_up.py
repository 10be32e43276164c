"""What people look for is found: by the search, and by a newcomer who begins at the front page."""
import re

import pytest
from test_figures import UNNEEDED, leave_out

# What is typed into the search, and the page that must stand first among what is found.
SEARCHED = {"quickstart": "guides/quickstart", "glossary": "reference/glossary",
            "notation": "reference/notation", "cite": "reference/cite", "faq": "guides/faq",
            "install": "guides/install", "learn2learn": "guides/coming_from",
            "torchmeta": "guides/coming_from", "hypergradient": "reference/glossary",
            "choose": "guides/choose", "csv": "6_yours/59b_your_data",
            "own data": "guides/faq", "resume": "guides/faq"}
FOUND = "#search-results li a"


def results(page, site, words):
    "The pages that the search finds, in its order, without anchors."
    page.goto(f"{site}/search.html?q={words}", wait_until="domcontentloaded")
    page.wait_for_selector(FOUND)
    page.wait_for_timeout(500)  # results come one by one
    links = page.evaluate(f"[...document.querySelectorAll('{FOUND}')].map(a => a.href)")
    return [re.sub(r"\.html.*", "", link.removeprefix(f"{site}/")) for link in links]


def test_the_search_finds_the_page_first(site, browser_page):
    for words, page in SEARCHED.items():
        browser_page.goto(f"{site}/search.html?q={words}", wait_until="domcontentloaded")
        first = browser_page.wait_for_selector(FOUND).get_attribute("href")
        assert first.partition(".html")[0] == page, words


def test_maml_leads_to_maml_before_the_version_of_the_article(site, browser_page):
    found = results(browser_page, site, "MAML")
    assert found[0] in ("1_idea/00_maml_in_60_lines", "1_idea/14_methods")
    old = "api/metalit.as_written"
    assert old not in found or found.index("api/metalit.methods") < found.index(old)


def test_an_excerpt_begins_with_the_text_of_the_page(site, browser_page):
    results(browser_page, site, "quickstart")
    excerpt = browser_page.locator("#search-results li p.context").first
    excerpt.wait_for()
    text = excerpt.inner_text()
    assert "You will be able to train a model that learns from ten examples" in text
    assert "Settings" not in text and "Binder" not in text


# What a newcomer wants to do: what they click, one after the other, and what they then read.
TASKS = {
    "install": (["Installation"], "pip install -e"),
    "first result": (["Quickstart"], "600 unseen tasks, seed 0"),
    "my CSV file": (["Your data"], 'Table("data.csv", task='),
    "my pictures": (["Your data", "A folder of pictures"], "from_folder(pictures)"),
    "choose": (["Choose"], "what was measured"),
    "resume": (["Checkpoints"], "a run that can be killed"),
    "adapt": (["Use it tomorrow", "Adapt"], "adapted(x, y)"),
    "export": (["Use it tomorrow", "Export"], "torch.export"),
    "cite": (["Cite"], "@software{metalit"),
    "the check of a formula": (["The exact gradient"], "assert_close")}


@pytest.mark.parametrize("task", TASKS)
def test_a_newcomer_is_there_in_three_clicks(site, browser_page, task):
    clicks, shown = TASKS[task]
    assert len(clicks) <= 3
    leave_out(browser_page, UNNEEDED)
    browser_page.goto(f"{site}/index.html")
    for words in clicks:
        browser_page.locator(".bd-main").get_by_role("link", name=words, exact=True).first.click()
        browser_page.wait_for_load_state("domcontentloaded")
    assert shown in browser_page.locator("article.bd-article").inner_text()


def test_the_name_of_the_book_stands_once_above_the_contents(site, browser_page):
    browser_page.goto(f"{site}/1_idea/07_inner_loop.html")
    bar = browser_page.locator(".bd-sidebar-primary")
    lines = [line.strip() for line in bar.inner_text().splitlines()]
    assert lines.count("metalit") == 1
    bar.get_by_text("metalit", exact=True).click()
    browser_page.wait_for_url(f"{site}/index.html")
