"""What eyes need: contrast in both modes, sizes, whole formulas, and paper."""
import re

import make_pdf
import pytest
from test_figures import KINDS, UNNEEDED, figures, leave_out
from test_site import ROOT, settled

# Pages of every kind: a chapter with code, tables and solutions, results, what is looked up.
READ = ["index", "1_idea/11_exact_gradient", "4_judgement/41_comparison", "results",
        "results/omniglot", "reference/notation", "guides/quickstart", "api/metalit.gradient.exact"]

# The contrast of all that is seen with what is behind it, by the colours that the browser reports:
# of letters, and with `curves` of the lines and marks of live figures. What is below `least`, once.
CONTRAST = """([scope, least, curves]) => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const known = new Map();
    const rgba = (colour) => {
        if (!known.has(colour)) {
            canvas.clearRect(0, 0, 1, 1);
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
            known.set(colour, [r, g, b, a / 255]);
        }
        return known.get(colour);
    };
    const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
    const ground = (node) => {
        const layers = [];
        for (let at = node; at; at = at.parentElement) {
            const colour = rgba(getComputedStyle(at).backgroundColor);
            if (colour[3] > 0) layers.unshift(colour);
        }
        return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map(v =>
            (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => {
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
    };
    const through = (node) => {
        let all = 1;
        for (let at = node; at; at = at.parentElement) all *= Number(getComputedStyle(at).opacity);
        return all;
    };
    const poor = new Map();
    const judge = (node, colour, words) => {
        const [r, g, b, a] = rgba(colour), under = ground(node);
        const found = ratio(over([r, g, b, a * through(node)], under), under);
        if (found < least - 0.005)
            poor.set(`${colour} on ${under.map(Math.round)}`, `${found.toFixed(2)} ${words}`);
    };
    const top = document.querySelector(scope);
    if (curves) {
        for (const part of top.querySelectorAll("svg.m-plot path[data-label]")) {
            if (!part.dataset.label || !part.getAttribute("d")) continue;
            const style = getComputedStyle(part);
            judge(part, style.stroke === "none" ? style.fill : style.stroke, part.dataset.label);
        }
        return [...poor];
    }
    const walk = document.createTreeWalker(top, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const node = walk.currentNode.parentElement, words = walk.currentNode.textContent.trim();
        if (!words || !node.checkVisibility({visibilityProperty: true})) continue;
        if (node.closest("option, noscript, mjx-assistive-mml, .m-stale")) continue;
        const style = getComputedStyle(node);
        judge(node, node instanceof SVGElement ? style.fill : style.color, words.slice(0, 40));
    }
    return [...poor];
}"""
MODES = ("light", "dark")


def in_mode(page, mode):
    "Turn a page that is open into a light or a dark one; colours do not come by and by."
    page.add_style_tag(content="* { transition: none !important }")
    page.evaluate("mode => { document.documentElement.dataset.mode = mode;"
                  " document.documentElement.dataset.theme = mode; }", mode)
    page.wait_for_timeout(60)


@pytest.mark.parametrize("name", READ)
def test_every_letter_stands_out_from_its_ground_in_both_modes(site, browser_page, name):
    leave_out(browser_page, UNNEEDED)
    browser_page.goto(f"{site}/{name}.html", wait_until="domcontentloaded")
    for mode in MODES:
        in_mode(browser_page, mode)
        assert browser_page.evaluate(CONTRAST, ["article.bd-article", 4.5, False]) == [], mode


@pytest.mark.parametrize("name", KINDS)
def test_letters_and_curves_of_live_figures_stand_out_in_both_modes(site, browser_page, name):
    figures(browser_page, site, name)
    for mode in MODES:
        in_mode(browser_page, mode)
        assert browser_page.evaluate(CONTRAST, [".metalit-figure", 4.5, False]) == [], mode
        assert browser_page.evaluate(CONTRAST, [".metalit-figure", 3, True]) == [], mode


# The colours of a picture that are its own, lightened as the page does, against the page: the most
# frequent dark or coloured one must be read as well as letters are.
INK = """async () => {
    const image = document.querySelector(".cell_output img[src*=_images]");
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.filter = getComputedStyle(image).filter;
    context.drawImage(image, 0, 0);
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height), count = {};
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 250) {
        const key = [data[i], data[i + 1], data[i + 2]].join();
        count[key] = (count[key] ?? 0) + 1;
    }
    const most = Object.entries(count).sort((a, b) => b[1] - a[1]).slice(0, 4);
    return {colours: most.map(([key]) => key),
            ground: getComputedStyle(document.body).backgroundColor,
            share: image.getBoundingClientRect().width / image.naturalWidth};
}"""


def luminance(colour):
    "By the rule of the Web Content Accessibility Guidelines."
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_pictures_are_read_in_both_modes_and_as_large_as_they_were_drawn(site, new_page):
    page = new_page(viewport={"width": 1440, "height": 900})
    leave_out(page, UNNEEDED)
    page.goto(f"{site}/7_workshop/76_plots.html", wait_until="domcontentloaded")
    for mode in MODES:
        in_mode(page, mode)
        seen = page.evaluate(INK)
        ratios = [contrast(colour, seen["ground"]) for colour in seen["colours"]]
        assert min(ratios) >= 3 and max(ratios) >= 4.5, (mode, seen)
        assert seen["share"] > 0.97  # its letters of 12 pixels are that large


def test_code_has_its_size_and_what_draws_is_folded(site, browser_page):
    leave_out(browser_page, UNNEEDED)
    browser_page.goto(f"{site}/1_idea/11_exact_gradient.html", wait_until="domcontentloaded")
    style = browser_page.evaluate("(({fontSize, lineHeight}) => [fontSize, lineHeight])("
                                  "getComputedStyle(document.querySelector('div.highlight pre')))")
    assert [float(part.removesuffix("px")) for part in style] == pytest.approx([13.5, 19.575])
    folded = browser_page.locator("details.hide.above-input")
    words = [" ".join(text.split()) for text in folded.locator("summary").all_inner_texts()]
    assert sum("the code that draws" in text for text in words) >= 3
    assert not folded.locator("pre").first.is_visible()


# Where a formula ends a line, and what is behind it begins the next one.
PARTED = """() => {
    const parted = [];
    for (const math of document.querySelectorAll(".bd-article span.math")) {
        const next = math.nextSibling;
        if (next?.nodeType !== Node.TEXT_NODE || !/^[.,;:!?)]/.test(next.textContent)) continue;
        const range = document.createRange();
        range.setStart(next, 0);
        range.setEnd(next, 1);
        const sign = range.getBoundingClientRect(), box = math.getBoundingClientRect();
        if (sign.top > box.bottom) parted.push(next.textContent.slice(0, 20));
    }
    return parted;
}"""


@pytest.mark.parametrize("width", [390, 1200])
def test_no_sign_stands_alone_at_the_start_of_a_line_and_letters_have_one_voice(
    site, new_page, width
):
    page = new_page(viewport={"width": width, "height": 844})
    page.goto(f"{site}/2_trial/21_reptile.html", wait_until="domcontentloaded")
    settled(page)
    assert page.locator(".together").count() > 10
    assert page.evaluate(PARTED) == []
    typed = page.evaluate("[...document.querySelectorAll('.bd-article p:not([class])')].filter(p =>"
                          " [...p.childNodes].some(n => n.nodeType === 3 &&"
                          " /(^|\\s)[αθφλ]([\\s.,]|$)/.test(n.textContent))).length")
    assert typed == 0


RESULTS = sorted(path.stem for path in (ROOT / "_site/results").glob("*.html"))


def test_results_are_a_page_of_links_and_pages_of_few_screens_on_a_phone(site, new_page):
    page = new_page(viewport={"width": 390, "height": 844})
    leave_out(page, UNNEEDED)
    page.goto(f"{site}/results.html")
    assert page.evaluate("document.documentElement.scrollHeight / innerHeight") <= 4
    led = page.evaluate("[...document.querySelectorAll('.bd-article li a')].map(a => a.pathname)")
    assert sorted(led) == [f"/results/{name}.html" for name in RESULTS] and len(led) > 12
    for name in RESULTS:
        page.goto(f"{site}/results/{name}.html", wait_until="domcontentloaded")
        screens = page.evaluate("[document.documentElement, ...document.querySelectorAll("
                                "'.bd-article table')].map(n => n.scrollHeight / innerHeight)")
        assert screens[0] <= 8 and max(screens[1:], default=0) <= 4, (name, screens)


def test_wide_tables_of_results_keep_their_first_column_and_say_that_they_scroll(site, new_page):
    page = new_page(viewport={"width": 390, "height": 844})
    leave_out(page, UNNEEDED)
    wide = ".pst-scrollable-table-container.is-wide"
    for name in ("omniglot", "everything-on-five-shot-waves", "memory"):
        page.goto(f"{site}/results/{name}.html")
        table = page.locator(wide).first
        first = table.locator("tbody tr").first.locator("td, th")
        table.evaluate("node => { node.scrollLeft = 200; }")
        boxes = [first.nth(i).bounding_box()["x"] for i in (0, 1)]
        assert boxes[0] >= 0 and boxes[1] < boxes[0]         # the second one went below the first
        said = table.evaluate("node => getComputedStyle(node, '::before').content")
        assert "scroll" in said
        unmarked = page.evaluate(f"""[...document.querySelectorAll("div:has(> table)")].filter(n =>
            n.scrollWidth > n.clientWidth + 4 && !n.matches("{wide}")).length""")
        assert unmarked == 0


# What is wider than the paper, what is pressed, and what would be cut from one page to the next.
ON_PAPER = """() => {
    const shown = (n) => n.getBoundingClientRect().width > 0;
    const all = (what) => [...document.querySelectorAll(what)].filter(shown);
    const cut = (n) => n.scrollWidth > n.clientWidth + 1
        || n.getBoundingClientRect().right > innerWidth + 1;
    const whole = (n) => getComputedStyle(n).breakInside.startsWith("avoid");
    const scrolls = (n) => getComputedStyle(n).overflowY !== "visible";
    return {pressed: all(".m-sheet, .copybtn, .bd-sidebar-primary, .article-header-buttons, "
                         + ".prev-next-area, details[class]:not([open]) > summary")
                .map(n => n.className),
            // such a box cannot be broken: its frame stays on one page, what it holds goes on
            scrolls: all(".bd-article :is(pre, div.highlight, div.cell_input)").filter(scrolls)
                .map(n => n.innerText.slice(0, 60)),
            wide: all(".bd-article pre, .bd-article table, .bd-article img, .metalit-figure")
                .filter(cut).map(n => n.innerText.slice(0, 60)),
            whole: all(".metalit-figure, .bd-article img").every(whole)};
}"""


@pytest.mark.parametrize("name", ["1_idea/11_exact_gradient", "8_figures/82_two_parameters"])
def test_on_paper_nothing_is_pressed_nothing_is_cut_and_figures_are_whole(site, new_page, name):
    page = new_page(viewport={"width": 680, "height": 960})  # what is printed of a page of A4
    figures(page, site, name)
    page.emulate_media(media="print")
    found = page.evaluate(ON_PAPER)
    assert found == {"pressed": [], "scrolls": [], "wide": [], "whole": True}
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 3


def test_pages_behind_each_other_have_their_titles_their_formulas_and_fit_on_paper(site, new_page):
    names = ["reference/cite", "results/omniglot", "reference/notation"]
    first = make_pdf.with_formulas(ROOT / "_site", names)
    assert first != names[0]                                 # which could set no formula
    page = new_page(viewport={"width": 680, "height": 960})
    make_pdf.gather(page, site, names, first)
    page.emulate_media(media="print")
    titles = page.locator("article.bd-article h1")
    assert [titles.nth(i).is_visible() for i in range(titles.count())] == [True] * 3
    assert titles.first.inner_text().startswith("Cite")
    raw = page.locator(".bd-article .math").count()
    assert raw == page.locator(".bd-article .math mjx-container").count() > 5
    assert page.locator("#jb-print-docs-body").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
