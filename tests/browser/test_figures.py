"""Every live figure on the static site: it moves by keyboard and pointer, and draws what is right.
"""
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from helpers import assert_same_picture

from metalit import widgets

NBS = Path(__file__).parents[2] / "nbs"
SITE = NBS.parent / "_site"
PAGES = sorted(path.relative_to(NBS).with_suffix("").as_posix()
               for path in NBS.rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in path.parts)
# Chapters of machinery, with nothing in them that a reader could move.
STILL = {page for page in PAGES if page.startswith("9_")} | {
    "1_idea/03_family", "1_idea/04_sinusoids", "1_idea/05_quadratics",
    "4_judgement/40a_baselines", "4_judgement/41a_suites", "4_judgement/43_space",
    "4_judgement/44_designing",
    "4_judgement/45_honest_end", "4_judgement/46_score",
    "5_images/53b_shared_head", "5_images/56a_splits",
    "6_yours/57_your_loop", "6_yours/58_unequal",
    "6_yours/59_given", "6_yours/59a_table", "6_yours/59b_your_data",
    "6_yours/59d_days", "6_yours/59e_intervals", "6_yours/59f_wrong_model",
    "7_workshop/60_schedule",
    "7_workshop/61_modes", "7_workshop/61a_losses",
    "7_workshop/62_learner", "7_workshop/62a_adapted", "7_workshop/62b_program",
    "7_workshop/63a_embedding", "7_workshop/63b_recurrent", "7_workshop/63c_attention",
    "7_workshop/63d_plain", "7_workshop/63e_refused", "7_workshop/64a_outer",
    "7_workshop/65_evaluation", "7_workshop/66_watching", "7_workshop/68_identity",
    "7_workshop/70a_many_steps", "7_workshop/70b_whole_run", "7_workshop/70c_long_loops",
    "7_workshop/70d_side_by_side",
    "7_workshop/71_chunks", "7_workshop/73a_runs", "7_workshop/74a_design_command",
    "7_workshop/75_main",
    "7_workshop/77_random", "7_workshop/78_checks"}
# The first figure of these pages is the one that the function makes by itself.
# One page for each kind of figure, that is, for each script.
KINDS = ["8_figures/81_sinusoid_figure", "8_figures/82_two_parameters",
         "8_figures/83_rewards_figure", "8_figures/84_episode_figure",
         "8_figures/85_training_figure", "8_figures/85a_patients_figure",
         "8_figures/85b_meta_training_figure", "8_figures/86_explore"]
TWINS = {"8_figures/81_sinusoid_figure": widgets.sinusoid,
         "8_figures/82_two_parameters": widgets.two_parameters,
         "8_figures/83_rewards_figure": widgets.rewards,
         "8_figures/84_episode_figure": widgets.episode,
         "8_figures/85a_patients_figure": widgets.patients,
         "8_figures/85b_meta_training_figure": widgets.meta_training}
LOOK = "node => JSON.parse(JSON.stringify(node.live))"
# Two scripts of four megabytes, for formulas and icons, which no figure needs.
UNNEEDED = ["*/tex-svg-full.js*", "*/fontawesome.js*"]


def leave_out(page, addresses):
    "The page opens without these, in half the time."
    page.watch.expected.append("Failed to load resource: net::ERR_BLOCKED_BY_CLIENT")
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setBlockedURLs", {"urls": addresses})


def figures(page, site, name):
    "Open a page, without its formulas, and wait until its figures have drawn."
    leave_out(page, UNNEEDED)
    page.goto(f"{site}/{name}.html")
    page.wait_for_function("[...document.querySelectorAll('.metalit-figure')].every(node => "
                           "node.live)")
    return page.locator(".metalit-figure")


def assert_right(shown, twin):
    "What a page shows for a state is what the library computes for it."
    twin.state = {"device": "cpu"} | shown["state"]
    assert_same_picture(shown["picture"], twin.picture)


def wait_for_move(page, figure, before, key=None):
    "The figure after its state, or what `key` names in it, has moved and is drawn."
    def looked_at(shown): return shown["state"] if key is None else shown["state"][key]
    for _ in range(200):
        now = figure.evaluate(LOOK)
        if looked_at(now) != looked_at(before): return now
        page.wait_for_timeout(50)
    raise AssertionError(f"nothing moved: {key} {json.dumps(before['state'])[:200]}")


def slide_by_pointer(page, figure):
    "Click near the far end of the first slider, if there is one."
    slider, before = figure.locator("input[type=range]").first, figure.evaluate(LOOK)
    if slider.count() == 0: return
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    share = slider.evaluate("node => (node.value - node.min) / (node.max - node.min)")
    page.mouse.click(box["x"] + box["width"] * (0.05 if share > 0.5 else 0.95),
                     box["y"] + box["height"] / 2)
    wait_for_move(page, figure, before)


def test_a_chapter_of_machinery_has_no_figure_that_shows_something_else(site):
    with_figure = {page for page in PAGES
                   if 'id="metalit-' in (SITE / f"{page}.html").read_text(encoding="utf-8")}
    assert with_figure == set(PAGES) - STILL


def depth(page):
    "The share of a page's words that stand before its first live figure."
    article = re.search(r"<article.*?</article>", page, re.DOTALL)[0]
    bare = re.sub(r"<(script|style|noscript|svg)\b.*?</\1>", "", article, flags=re.DOTALL)
    before, _, after = bare.partition('id="metalit-')
    words = [len(re.sub(r"<[^>]*>", " ", part).split()) for part in (before, after)]
    return words[0] / sum(words)


def test_the_figure_stands_right_behind_the_question(site):
    depths = [depth((SITE / f"{page}.html").read_text(encoding="utf-8"))
              for page in PAGES if page not in STILL]
    assert statistics.median(depths) <= 0.2


# That every figure of the book follows each of its controls is seen where every page is opened.
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_figure_moves_by_pointer_and_every_control_of_it_by_keyboard(
    site, browser_page, name
):
    found = figures(browser_page, site, name)
    assert found.count() > 0, "a chapter without a live figure"
    figure = found.first
    assert not figure.locator(".m-message").is_visible(), figure.locator(".m-message").inner_text()
    # of two buttons the one that is not pressed
    controls = figure.locator("input[data-key], select[data-key], "
                              "button[data-key][aria-pressed=false]")
    assert controls.count() > 0
    slide_by_pointer(browser_page, figure)
    for i in range(controls.count()):
        control, before = controls.nth(i), figure.evaluate(LOOK)
        control.focus()
        if control.get_attribute("type") in ("checkbox", "button"):
            browser_page.keyboard.press("Space")
        elif control.evaluate("node => node.tagName") == "SELECT":
            if control.locator("option").count() < 2: continue
            last = control.evaluate("node => node.selectedIndex === node.options.length - 1")
            browser_page.keyboard.press("ArrowUp" if last else "ArrowDown")
        else:
            at_end = control.evaluate("node => Number(node.value) >= Number(node.max)")
            browser_page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        wait_for_move(browser_page, figure, before, control.get_attribute("data-key"))


@pytest.mark.parametrize("name", TWINS)
def test_what_it_draws_is_what_the_library_computes_wherever_its_controls_are(
    site, browser_page, name
):
    figure, twin = figures(browser_page, site, name).first, TWINS[name]()
    assert_right(figure.evaluate(LOOK), twin)
    for other in figure.locator("button[data-key][aria-pressed=false]").all():
        before = figure.evaluate(LOOK)
        other.click()
        assert_right(wait_for_move(browser_page, figure, before), twin)
    controls = figure.locator("input[type=range], select[data-key]")
    for i in range(controls.count()):
        control, before = controls.nth(i), figure.evaluate(LOOK)
        if (control.evaluate("node => node.tagName") == "SELECT"
            and control.locator("option").count() < 2):
            continue
        control.focus()
        stood = control.input_value()
        browser_page.keyboard.press("ArrowDown" if i % 2 else "ArrowUp")
        if control.input_value() == stood:  # at its end
            browser_page.keyboard.press("ArrowUp" if i % 2 else "ArrowDown")
        assert_right(wait_for_move(browser_page, figure, before), twin)


@pytest.mark.parametrize("name", sorted(TWINS)[:3])
def test_points_are_dragged_by_pointer_and_by_keys_and_the_numbers_follow(site, browser_page, name):
    figure, twin = figures(browser_page, site, name).first, TWINS[name]()
    handle = figure.locator(".m-handle").first
    handle.scroll_into_view_if_needed()
    before, box = figure.evaluate(LOOK), handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser_page.mouse.move(x, y)
    browser_page.mouse.down()
    browser_page.mouse.move(x + 25, y - 15, steps=4)
    browser_page.mouse.up()
    browser_page.wait_for_timeout(200)  # there may be several moves
    dragged = wait_for_move(browser_page, figure, before)
    assert_right(dragged, twin)
    handle.focus()
    browser_page.keyboard.press("Shift+ArrowLeft")
    assert_right(wait_for_move(browser_page, figure, dragged), twin)


def test_a_place_of_the_axis_is_dragged_by_pointer_and_by_keys(site, browser_page):
    found = figures(browser_page, site, "8_figures/86_explore")
    figure = next(one for one in found.all() if one.locator(".m-handle").count())
    handle = figure.locator(".m-handle")
    handle.scroll_into_view_if_needed()
    before, box = figure.evaluate(LOOK), handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    browser_page.mouse.move(x, y)
    browser_page.mouse.down()
    browser_page.mouse.move(x - 90, y, steps=4)
    browser_page.mouse.up()
    browser_page.wait_for_timeout(200)  # there may be several moves
    dragged = wait_for_move(browser_page, figure, before, "start")
    assert dragged["state"]["start"] < before["state"]["start"]
    assert dragged["picture"]["lines"]["walked"] != before["picture"]["lines"]["walked"]
    handle.focus()
    browser_page.keyboard.press("ArrowRight")
    moved = wait_for_move(browser_page, figure, dragged, "start")["state"]["start"]
    assert moved == pytest.approx(dragged["state"]["start"] + 0.1)


# Each slider to both of its ends: how far the controls are below the top of the figure then.
HEIGHTS = """async (figure) => {
    const sliders = [...figure.querySelectorAll("input[type=range]")];
    const frame = () => new Promise(done =>
        requestAnimationFrame(() => requestAnimationFrame(done)));
    const look = () => sliders.map(slider =>
        slider.getBoundingClientRect().top - figure.getBoundingClientRect().top);
    const found = [look()];
    for (const slider of sliders) for (const end of [slider.max, slider.min]) {
        slider.value = end;
        slider.dispatchEvent(new Event("input"));
        await frame();
        found.push(look());
    }
    return found;
}"""


@pytest.mark.parametrize("name", TWINS)
def test_what_is_told_moves_no_control_while_one_is_moved(site, new_page, name):
    page = new_page(viewport={"width": 700, "height": 1000})
    stood, *later = figures(page, site, name).first.evaluate(HEIGHTS)
    assert stood and all(heights == stood for heights in later)


def test_the_line_on_the_page_goes_through_the_numbers(site, browser_page):
    figure = figures(browser_page, site, "8_figures/81_sinusoid_figure").first
    shown = figure.evaluate(LOOK)
    truth = (figure.locator("svg.m-plot")
             .first.locator("path[data-label=truth], path[data-label='the truth']").first)
    points = truth.get_attribute("d").lstrip("M").split("L")
    xs, ys = (torch.tensor([float(p.split(",")[i]) for p in points], dtype=torch.float64)
              for i in (0, 1))
    values = torch.tensor(shown["picture"]["truth"], dtype=torch.float64)
    assert len(ys) == len(values)
    # Pixels are a straight line of the values, to the hundredth of a pixel that is written.
    slope = (ys[values.argmax()] - ys[values.argmin()]) / (values.max() - values.min())
    torch.testing.assert_close(ys - ys[0], slope * (values - values[0]), rtol=0, atol=0.02)
    assert (xs.diff() > 0).all() and slope < 0


def test_figures_of_one_page_share_no_names(site, browser_page):
    figures(browser_page, site, "8_figures/87_widgets")
    names = browser_page.evaluate("[...document.querySelectorAll('.metalit-figure [id]')].map(part "
                                  "=> part.id)")
    assert len(names) >= 5 and len(names) == len(set(names))


def test_a_page_without_javascript_shows_a_picture_and_says_so(site, new_page):
    page = new_page(java_script_enabled=False)
    page.goto(f"{site}/{KINDS[0]}.html")
    words = page.locator("noscript p").first
    assert words.is_visible()
    assert words.inner_text().startswith("This figure moves where JavaScript is allowed")
    picture = page.locator("[id^=metalit-] img").first
    assert picture.get_attribute("alt") and picture.bounding_box()["width"] > 200
    for name in set(PAGES) - STILL:
        text = (SITE / f"{name}.html").read_text(encoding="utf-8")
        assert re.search(r'<div id="metalit-\w+"><img src="data:image/png;base64,[^"]+" '
                         r'alt="\w[^"]+"><noscript><p>This figure moves', text), name


def test_a_number_that_only_python_knows_is_not_made_up(site, browser_page):
    page = browser_page
    found = figures(page, site, "8_figures/87_widgets")
    assert found.count() == 3
    refused = found.nth(2)
    assert "one number" in refused.locator(".m-message").inner_text()
    assert not refused.locator(".m-panels").is_visible()


def test_pressing_play_trains_theta_until_it_is_pressed_again(site, browser_page):
    page, figure = browser_page, figures(browser_page, site, "8_figures/82_two_parameters").first
    button = figure.get_by_role("button", name="play: train θ")
    start = figure.evaluate(LOOK)
    button.click()
    moved = wait_for_move(page, figure, start, "x")
    slider = figure.locator("input[data-key=lr]")           # everything works while it runs
    slider.focus()
    page.keyboard.press("ArrowRight")
    later = wait_for_move(page, figure, moved, "lr")
    assert later["picture"]["value"] < start["picture"]["value"]
    figure.get_by_role("button", name="pause").click()
    page.wait_for_timeout(200)
    stood = figure.evaluate(LOOK)
    page.wait_for_timeout(400)
    assert figure.evaluate(LOOK)["state"] == stood["state"] and button.is_visible()
    assert_right(stood, widgets.two_parameters())


def test_a_page_meta_trains_until_it_is_paused_and_torch_agrees_with_where_it_is(
    site, browser_page
):
    page = browser_page
    figure = figures(page, site, "8_figures/85b_meta_training_figure").first
    start = figure.evaluate(LOOK)
    figure.get_by_role("button", name="play: train θ").click()
    moved = wait_for_move(page, figure, start, "count")
    assert moved["state"]["theta"] != start["state"]["theta"]
    assert moved["picture"]["tasks"] != start["picture"]["tasks"]      # the curves move with it
    slider = figure.locator("input[data-key=lr]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    wait_for_move(page, figure, moved, "lr")
    figure.locator("select[data-key=rule]").select_option(label="Reptile")
    wait_for_move(page, figure, moved, "rule")
    figure.get_by_role("button", name="pause").click()
    page.wait_for_timeout(150)
    stood = figure.evaluate(LOOK)
    page.wait_for_timeout(250)
    assert figure.evaluate(LOOK)["state"] == stood["state"]
    assert_right(stood, widgets.meta_training())
    figure.get_by_role("button", name="θ back to its start").click()
    assert wait_for_move(page, figure, stood, "count")["state"]["theta"] == start["state"]["theta"]


# ------------------------------------------------------------------------------------------ a phone

# What sticks out of the window, and, for each control that is moved, whether a plot or a table that
# it changed can be seen: all of it, between the top of the window and the sheet of the controls.
ON_A_PHONE = """async (figure) => {
    const later = (ms) => new Promise(done => setTimeout(done, ms));
    const right = (node) => node.getBoundingClientRect().right;
    const wide = Math.max(...[...figure.querySelectorAll("*")].map(right));
    const sheet = figure.querySelector(".m-sheet"), fold = figure.querySelector(".m-fold");
    const main = figure.querySelector(".m-main :is(input, select, button)");
    const shown = (node) => node.offsetParent !== null;
    const stuck = () => Math.abs(sheet.getBoundingClientRect().bottom - innerHeight) < 2;
    const folded = [...figure.querySelectorAll(".m-controls > *")].filter(shown).length;
    const parts = [...figure.querySelectorAll("svg.m-plot, .e-table")]
        .filter(n => n.getBoundingClientRect().height);
    figure.scrollIntoView({block: "start"});
    await later(50);
    const sticks = stuck() || sheet.getBoundingClientRect().bottom < innerHeight;
    if (fold?.isConnected) fold.click();
    const unseen = [];
    for (const control of figure.querySelectorAll(":is(input, select)[data-key]")) {
        if (control.tagName === "SELECT" && control.options.length < 2) continue;
        const before = parts.map(part => part.innerHTML);
        control.focus();
        if (control.tagName === "SELECT") {
            control.selectedIndex = (control.selectedIndex + 1) % control.options.length;
            control.dispatchEvent(new Event("change"));
        } else if (control.type === "checkbox") control.click();
        else {
            control.value = Number(control.value) < Number(control.max) ? control.max : control.min;
            control.dispatchEvent(new Event("input"));
        }
        await later(60);
        const edge = sheet.getBoundingClientRect().top;
        const changed = parts.filter((part, i) => part.innerHTML !== before[i]);
        const seen = changed.some(part => {
            const {top, bottom, height} = part.getBoundingClientRect();
            return Math.min(bottom, edge) - Math.max(top, 0) >= Math.min(height - 2, 250);
        });
        if (changed.length && !seen) unseen.push(control.dataset.key);
    }
    return {wide, sticks, folded, main: main !== null && shown(main), unseen};
}"""


@pytest.mark.parametrize("name", [name for name in KINDS if "85_training" not in name])
def test_on_a_phone_nothing_sticks_out_and_whoever_moves_a_control_sees_what_it_moves(
    site, new_page, name
):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    figure = figures(page, site, name).first
    box = figure.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    found = figure.evaluate(ON_A_PHONE)
    assert found["wide"] <= 391 and found["sticks"] and found["main"] and found["folded"] == 1
    assert found["unseen"] == []


@pytest.mark.parametrize(("name", "key"), [("2_trial/20_as_written", "loss"),
                                           ("2_trial/23_sharpness", "weight")])
def test_what_a_caption_speaks_of_stays_on_a_phone(site, new_page, name, key):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    shown = figures(page, site, name).first.locator(".m-controls [data-key]:visible")
    assert [control.get_attribute("data-key") for control in shown.all()] == [key]


def test_on_a_phone_both_starts_are_in_one_plot_and_points_are_removed_by_touch(site, new_page):
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    figure = figures(page, site, "8_figures/81_sinusoid_figure").first
    plots = figure.locator("svg.m-plot")
    assert [plots.nth(i).is_visible() for i in range(plots.count())] == [True, False, True]
    words = figure.locator(".m-legend").first.inner_text()
    assert "jointly, after 1 step" in words and "MAML, after 1 step" in words
    shown = figure.evaluate(LOOK)
    figure.locator(".m-handle").nth(3).tap()
    figure.get_by_role("button", name="all controls").tap()
    figure.get_by_role("button", name="remove a point").tap()
    fewer = wait_for_move(page, figure, shown, "points")["state"]["points"]
    assert fewer == shown["state"]["points"][:3] + shown["state"]["points"][4:]


# How high the first figure is, from its top to the last control and as a whole; the room below the
# bar of the page; whether all of a plot is above what is stuck to the edge; the smallest letters.
FITS = """figure => {
    figure.scrollIntoView({block: "start"});
    const shown = (n) => n.checkVisibility() && n.getBoundingClientRect().height > 0;
    const box = figure.getBoundingClientRect();
    const controls = [...figure.querySelectorAll("input, select, button")].filter(shown);
    const bottoms = controls.map(n => n.getBoundingClientRect().bottom);
    const main = figure.querySelector(".m-main").getBoundingClientRect().bottom;
    const edge = figure.querySelector(".m-sheet").getBoundingClientRect().top;
    const whole = [...figure.querySelectorAll("svg.m-plot")].filter(shown).filter(plot => {
        const {top, bottom} = plot.getBoundingClientRect();
        return top >= 0 && bottom <= edge + 1;
    });
    const sizes = [...figure.querySelectorAll("text, label, output, span, p, button")].filter(n =>
        n.textContent.trim() && shown(n)).map(n => parseFloat(getComputedStyle(n).fontSize));
    return {room: document.documentElement.clientHeight - Math.max(0, box.top),
            controls: Math.max(...bottoms) - box.top, seen: main <= innerHeight,
            height: box.height, whole: whole.length, smallest: Math.min(...sizes)};
}"""
# Figures of every kind, and the highest ones of chapters.
HIGH = [*KINDS, "index", "2_trial/20_as_written", "3_choices/32_adam", "4_judgement/42_your_own"]


@pytest.mark.parametrize("name", HIGH)
def test_plots_and_controls_are_seen_at_once_in_windows_of_every_height(site, new_page, name):
    page = new_page(viewport={"width": 1280, "height": 900})
    figure = figures(page, site, name).first
    for width, height in ((1280, 900), (1440, 900), (1280, 720)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(150)
        found = figure.evaluate(FITS)
        assert found["controls"] <= found["room"] and found["smallest"] >= 12, (width, found)
        if height == 900: assert found["height"] <= found["room"], (width, found)


@pytest.mark.parametrize("name", HIGH)
def test_on_a_phone_held_across_a_plot_and_its_main_control_are_seen_at_once(site, new_page, name):
    page = new_page(viewport={"width": 844, "height": 390}, has_touch=True, is_mobile=True)
    figure = figures(page, site, name).first
    found = figure.evaluate(FITS)
    assert found["seen"] and found["smallest"] >= 12, found
    if "84_episode" not in name: assert found["whole"] >= 1, found  # there answers are what moves
    if figure.locator(".m-fold").count():
        figure.locator(".m-fold").tap()
        assert figure.locator(".m-fold").get_attribute("aria-expanded") == "true"
        assert figure.locator(".m-sheet").bounding_box()["height"] <= 0.6 * 390 + 1
