"""A real Chromium, cut off from everything but this machine.

The built site, and pages that must stay silent.
"""
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent
NEED = bool(os.environ.get("METALIT_NEED_BROWSER"))
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             # Nothing gets out. (To stop each request in Python would take longer than the pages.)
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"]


def missing(reason):
    "Skip where a browser is a luxury; fail where it is asked for, as in CI."
    if NEED:
        pytest.fail(f"METALIT_NEED_BROWSER is set, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium():
    "One Chromium for all tests."
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
    if path is None:
        missing("no Chromium is installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Watch:
    """What a page did that it must not: requests to elsewhere, errors, answers that are failures.
    """

    def __init__(self):
        self.requests, self.errors = [], []
        self.expected = []  # beginnings of messages that a test provokes

    def over(self, page):
        "Watch a page."
        page.on("request", self.note)
        page.on("console",
                lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.watch = self

    def note(self, request):
        "Remember a request to elsewhere."
        address = urlsplit(request.url)
        here = address.scheme in ("data", "blob", "about") or address.hostname in ("127.0.0.1",
                                                                                   "localhost")
        if not here: self.requests.append(request.url)

    def complaints(self):
        errors = [text for text in self.errors if not text.startswith(tuple(self.expected))]
        return [f"asked for {url}" for url in self.requests] + [f"console: {text}"
                                                                for text in errors]


def new_context(chromium, **options):
    context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
    context.set_default_timeout(15_000)
    return context


@pytest.fixture(scope="session")
def usual(chromium):
    "Where usual pages are opened one after the other: what one has loaded, the next one has."
    context = new_context(chromium)
    yield context
    context.close()


@pytest.fixture
def new_page(chromium):
    "Make pages of a given width, theme and so on; all of them must have stayed silent."
    contexts, watches = [], []

    def make(**options):
        context = new_context(chromium, **options)
        page, watch = context.new_page(), Watch()
        watch.over(page)
        contexts.append(context)
        watches.append(watch)
        return page

    yield make
    complaints = [text for watch in watches for text in watch.complaints()]
    for context in contexts: context.close()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def browser_page(usual):
    "One page, 1200 × 900, that must stay silent and knows nothing of those before it."
    page, watch = usual.new_page(), Watch()
    watch.over(page)
    yield page
    complaints = watch.complaints()
    if page.url.startswith("http"):
        page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    page.close()
    usual.clear_cookies()
    assert not complaints, "\n".join(complaints)


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"                            # one connection for many requests

    def log_message(self, *arguments):
        "Requests are no news."

    def end_headers(self):
        "What a page has loaded need not be asked for by the next one."
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()


def serve(folder):
    "A server over a folder, on a free port of this machine, in a thread."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="session")
def site():
    "The address of the built site, without a slash at the end."
    if not (ROOT / "_site/index.html").is_file():
        missing("the site is not built (make site)")
    server = serve(ROOT / "_site")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def kept_page(chromium):
    "One page for all tests of a module: what it loads takes longer than most of them."
    context = new_context(chromium)
    page, watch = context.new_page(), Watch()
    watch.over(page)
    yield page
    context.close()
