"""How heavy the pages of the site are, when their first picture stands, and how long a move takes.

    python -m benchmarks.pages

Needs a built site (`make site`) and Chromium. Every page is opened in a fresh, empty browser, from
a server on this machine; a move is one arrow key on the first control of the first live figure,
until the picture is drawn.
"""
from __future__ import annotations

import argparse
import gzip
import shutil
import statistics
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .measure import machine, versions, write_json

SITE = Path("_site")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking"]
# When every place of a live figure holds one that has drawn (a page without figures: when its text
# is there).
DRAWN = """() => {
  const places = document.querySelectorAll('div[id^=metalit-]').length;
  const figures = [...document.querySelectorAll('.metalit-figure')];
  const drawn = figures.length >= places && figures.every(figure => figure.live);
  return document.readyState !== 'loading' && drawn ? [performance.now(), figures.length] : null;
}"""
# A key moves the control; the picture is there when `live` is another one, and the next frame is
# painted.
MOVE = """async figure => {
  const control = figure.querySelector('input[type=range]')
    ?? figure.querySelector('select[data-key]');
  if (!control) return null;
  const times = [];
  for (let i = 0; i < 20; i++) {
    const before = figure.live, start = performance.now();
    if (control.tagName === 'SELECT')
      control.selectedIndex = (control.selectedIndex + 1) % control.options.length;
    else control.value = Number(control.value) + (i % 2 ? -1 : 1) * Number(control.step);
    control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input'));
    while (figure.live === before && performance.now() - start < 3000)
      await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  return times;
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Requests are no news."""


def weigh(page: Path) -> dict[str, int]:
    """The bytes of a page, as they are and as a server sends them."""
    content = page.read_bytes()
    return {"bytes": len(content), "gzipped": len(gzip.compress(content, 6))}


def measure(browser: Any, address: str) -> dict[str, Any]:
    """Milliseconds to the first picture, and for moves of its first figure."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.goto(address, wait_until="commit")
    first, figures = page.wait_for_function(DRAWN, timeout=60_000).json_value()
    page.wait_for_load_state("load")
    moves = page.locator(".metalit-figure").first.evaluate(MOVE) if figures else None
    context.close()
    return {"first_picture_ms": round(first), "figures": figures, "move_ms": moves
            and {"median": round(statistics.median(moves), 1), "max": round(max(moves), 1)}}


def run(site: Path = SITE) -> None:
    """Measure every page, one after another, and write the result."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
    if path is None or not (site / "index.html").is_file():
        sys.exit("error: needs Chromium, and the site (make site)")
    from playwright.sync_api import sync_playwright
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for file in sorted([site / "index.html", *site.glob("[0-9]_*/*.html")]):
            name = file.relative_to(site).with_suffix("").as_posix()
            pages[name] = weigh(file) | measure(
                browser, f"http://127.0.0.1:{server.server_port}/{name}.html"
            )
        engine = browser.version
        browser.close()
    server.shutdown()
    what = (
        "pages of the site in Chromium, cold cache, from this machine: bytes of the HTML, ms until "
        "its figures have drawn, ms from a move to the new picture (20 moves, first figure)"
    )
    write_json("pages",
               {"what": what, "command": "python -m benchmarks.pages", "machine": machine(),
                "versions": versions("metalit", "torch") | {"chromium": engine}, "pages": pages})


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    run()
