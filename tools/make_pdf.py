"""The built site, or parts of it, as PDF files: one for each part of the book.

    python tools/make_pdf.py [PART ...] [--site FOLDER] [--out FOLDER]

PART is the beginning of a page's address, such as 1_idea or 1_idea/07; without one, all parts are
made. The pages of a part are put one behind the other into one document, their formulas are set,
live figures are drawn in their first state, and Chromium prints it: without controls, with its page
numbers. Needs Chromium and the built site (`make site`).
"""

import argparse
import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from site_pages import GUIDES, PARTS, REFERENCE

ROOT = Path(__file__).parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
FOOT = ('<div style="font: 8px sans-serif; width: 100%; text-align: center; color: #555">'
        '<span class="pageNumber"></span></div>')

# Add the article of another page behind what is there, with its own pictures and its formulas set.
# Labels of formulas hold within a page, so MathJax forgets them in between.
ADD = """async (address) => {
    const text = await (await fetch(address)).text();
    const page = new DOMParser().parseFromString(text, "text/html");
    const article = page.querySelector("article.bd-article");
    for (const part of article.querySelectorAll("[src]"))
        part.setAttribute("src", new URL(part.getAttribute("src"), address).href);
    for (const part of article.querySelectorAll("a[href]"))
        part.setAttribute("href", new URL(part.getAttribute("href"), address).href);
    article.querySelectorAll("script, noscript").forEach(part => part.remove());
    article.querySelectorAll("details")
        .forEach(part => { part.open = part.className === ""; });
    if (book.querySelector("article.bd-article")) article.style.breakBefore = "page";
    book.append(article);
    window.MathJax?.texReset();
    await window.MathJax?.typesetPromise([article]);
}"""
# Where articles are put; the theme's title and contents of one page are those of no book.
EMPTIED = """() => {
    const article = document.querySelector("article.bd-article");
    window.book = article.parentNode;
    article.remove();
    document.querySelector("#jb-print-docs-body")?.remove();
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Requests are no news."""


def pages_of(site, part):
    """The pages of a part, in the order of the book."""
    if part == "guides": names = GUIDES
    elif part == "reference":
        names = [page for name in REFERENCE for page in (name, *below(site, name))]
    else: names = sorted(path.relative_to(site).with_suffix("").as_posix()
                         for path in site.glob(f"{part}{'' if '/' in part else '/'}*.html"))
    return [name for name in names if (site / f"{name}.html").is_file()]


def below(site, name):
    """The pages that the contents have below a page of results, in their order."""
    path = site / f"{name}.html"
    if name != "results" or not path.is_file(): return []
    return dict.fromkeys(re.findall(r'href="(results/[\w-]+)\.html"',
                                    path.read_text(encoding="utf-8")))


def with_formulas(site, names):
    """The first of some pages that sets formulas, and so can set those of the others."""
    return next((name for name in names
                 if "tex-svg" in (site / f"{name}.html").read_text(encoding="utf-8")), names[0])


def gather(page, address, names, first):
    """Put pages of the site behind each other; the page `first` is only used to set formulas."""
    page.goto(f"{address}/{first}.html")
    page.wait_for_function("!document.querySelector('.math') || window.MathJax?.startup?.promise")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(EMPTIED)
    page.add_style_tag(content="article.bd-article h1 { display: block !important }")
    for name in names: page.evaluate(ADD, f"{address}/{name}.html")


def write(page, path):
    """Print a page into a PDF."""
    page.wait_for_timeout(500)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.pdf(path=path, format="A4", display_header_footer=True, header_template="<div></div>",
             footer_template=FOOT, outline=True, tagged=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--site", type=Path, default=ROOT / "_site")
    parser.add_argument("--out", type=Path, default=ROOT / "dist/pdf")
    args = parser.parse_args(arguments)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                    "google-chrome"))), None)
    if chromium is None:
        print("error: no Chromium is installed (apt-get install chromium)", file=sys.stderr)
        return 1
    if not (args.site / "index.html").is_file():
        print("error: there is no site yet: make site", file=sys.stderr)
        return 1
    parts = {part: pages_of(args.site, part) for part in args.parts or ["guides", *PARTS,
                                                                        "reference"]}
    if empty := [part for part, names in parts.items() if not names]:
        print(f"error: no page begins with {empty[0]!r}; there are guides, {', '.join(PARTS)}, "
              "reference", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=args.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for part, names in parts.items():
            path, page = args.out / f"{part.replace('/', '_')}.pdf", browser.new_page()
            page.set_default_timeout(600_000)
            address = f"http://127.0.0.1:{server.server_port}"
            gather(page, address, names, with_formulas(args.site, names))
            write(page, path)
            page.close()
            print(f"{path}: {len(names)} pages of the book, {path.stat().st_size / 1e6:.1f} MB")
        browser.close()
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
