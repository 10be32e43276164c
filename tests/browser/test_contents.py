"""The contents beside a page: parts that open and close, by pointer, keyboard and touch."""
import re

import pytest
from test_figures import UNNEEDED, leave_out

# What is seen of the contents, which parts are open, and whether the marked page is in view.
SEEN = """() => {
    const contents = document.querySelector(".bd-docs-nav");
    const seen = [...contents.querySelectorAll("a, summary .caption")].filter(part =>
        part.checkVisibility());
    const current = contents.querySelector("a.current");
    const place = contents.closest("dialog, .bd-sidebar-primary").getBoundingClientRect();
    const box = current?.getBoundingClientRect();
    return {entries: seen.length, current: current?.textContent,
            open: [...contents.querySelectorAll(".toctree-l0 > details[open] .caption")]
                .map(part => part.textContent),
            marked: Boolean(box) && current.checkVisibility() && box.top >= place.top
                && box.bottom <= Math.min(place.bottom, innerHeight)};
}"""
PARTS = {"1_idea/00_maml_in_60_lines": "The idea", "2_trial/25_preconditioned": "The article on",
         "3_choices/37a_information": "The seven choices", "4_judgement/46_score": "Judgement",
         "7_workshop/78_checks": "The workshop", "9_rooms/98_room_designing": "The rooms",
         "reference/cite": "Reference", "guides/quickstart": "Guides",
         "api/metalit.tasks.table": "Reference"}


def seen(page, site, name):
    "What is seen of the contents when a page was opened."
    page.goto(f"{site}/{name}.html", wait_until="domcontentloaded")
    page.wait_for_timeout(100)
    return page.evaluate(SEEN)


def test_the_front_page_shows_the_parts_and_the_guides_at_first_sight(site, new_page):
    page = new_page(viewport={"width": 1280, "height": 900})
    leave_out(page, UNNEEDED)
    found = seen(page, site, "index")
    assert found["open"] == ["Guides"] and 15 < found["entries"] <= 40
    last = page.locator(".bd-docs-nav .caption").last.bounding_box()
    assert last["y"] + last["height"] <= 900  # all parts, without scrolling


def test_the_part_of_a_page_is_open_alone_and_the_page_is_marked_in_view(site, new_page):
    page = new_page(viewport={"width": 1280, "height": 900})
    leave_out(page, UNNEEDED)
    for name, part in PARTS.items():  # one after the other: the theme keeps what was scrolled
        found = seen(page, site, name)
        assert len(found["open"]) == 1 and found["open"][0].startswith(part), (name, found)
        assert found["marked"], (name, found)
        number = re.match(r"\d_\w+/0?(\d+\w?)_", name)
        if number: assert found["current"].startswith(f"{number[1]}. "), found


def test_a_part_opens_and_closes_by_the_keyboard(site, browser_page):
    leave_out(browser_page, UNNEEDED)
    browser_page.goto(f"{site}/1_idea/07_inner_loop.html", wait_until="domcontentloaded")
    part = browser_page.locator(".toctree-l0").filter(has_text="Images")
    first = part.locator("a").first
    assert not first.is_visible()
    part.locator("summary").first.focus()
    browser_page.keyboard.press("Enter")
    assert first.is_visible()
    browser_page.keyboard.press("Tab")
    assert first.evaluate("node => node === document.activeElement")
    browser_page.keyboard.press("Shift+Tab")
    browser_page.keyboard.press("Space")
    assert not first.is_visible()


@pytest.mark.parametrize("name", ["7_workshop/78_checks", "1_idea/02_tasks"])
def test_on_a_phone_the_contents_open_at_the_page_and_a_part_is_touched_open(site, new_page, name):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    leave_out(page, UNNEEDED)
    page.goto(f"{site}/{name}.html", wait_until="domcontentloaded")
    page.locator(".primary-toggle").tap()
    page.wait_for_timeout(400)  # it slides in
    assert page.evaluate(SEEN)["marked"]
    part = page.locator(".toctree-l0").filter(has_text="The article on trial")
    part.locator("summary").first.tap()
    link = part.locator("a").nth(1)
    assert link.bounding_box()["x"] + link.bounding_box()["width"] <= 390
    link.tap()
    page.wait_for_url(f"{site}/2_trial/21_reptile.html")
