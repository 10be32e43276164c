"""Check the built site, page by page: what a reader would stumble over fails the build.

    python tools/check_site.py [SITE] [--pages FOLDER] [--limit BYTES]

SITE is the built folder (_site), --pages the notebooks that it was made from. Checked are links and
anchors, requests that would leave the page, texts in place of images, `#|` lines, equations that
are referred to but not there, cells that did not run, figures that need a kernel, sizes, and what
others are told of a page: its title, a description, and once it is published a picture.
"""

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from configparser import ConfigParser
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

ROOT = Path(__file__).parent.parent
LIMIT = 1_000_000
# Where a page takes something from by itself, and not when the reader follows a link.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
         "audio": "src", "embed": "src", "object": "data"}
LOADING_LINKS = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "prefetch",
                 "preconnect", "dns-prefetch", "manifest", "apple-touch-icon"}
REMOTE_CSS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//[^)"'\s]+""")
HERE = re.compile(r"(?<![\w.])/(?:tmp|root|home|Users|private)/\S*")  # in what a cell has printed
REMOTE_IMPORT = re.compile(r"""(?:\bfrom|\bimport)\s*\(?\s*["'](?:https?:)?//[^"']+""")
VIEW = "application/vnd.jupyter.widget-view+json"


class Reader(HTMLParser):
    """What one page says: its anchors, links, loads, images and texts."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.no_alt, self.views = set(), [], [], [], 0
        self.text, self.code, self.style, self.script = [], [], [], []
        self.inside, self.told = None, {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, pairs):
        attributes = {name: value or "" for name, value in pairs}
        self.ids |= {attributes[key] for key in ("id", "name") if key in attributes}
        if tag == "meta" and "property" in attributes:
            self.told[attributes["property"]] = attributes.get("content", "").strip()
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in LOADS and attributes.get(LOADS[tag]):
            self.loads.append(attributes[LOADS[tag]])
        if tag == "link" and LOADING_LINKS & set(attributes.get("rel", "").split()):
            self.loads.append(attributes.get("href", ""))
        if tag in ("img", "source") and "srcset" in attributes:
            self.loads += [part.split()[0] for part in attributes["srcset"].split(",")]
        if tag == "img" and len(attributes.get("alt", "").split()) < 2:
            self.no_alt.append(attributes.get("src", "")[:60])
        if tag == "script" and attributes.get("type", "") == VIEW:
            self.views += 1
        self.style.append(attributes.get("style", ""))
        if tag in ("script", "style", "pre", "code"):
            self.inside = tag

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None

    def handle_data(self, data):
        places = {"script": self.script, "style": self.style, "pre": self.code, "code": self.code}
        places.get(self.inside, self.text).append(data)


def remote(address):
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ws", "wss")


def target(site, page, link, prefix):
    """The file that a link leads to, and the anchor in it."""
    parts = urlsplit(link)
    path = unquote(parts.path)
    return (file_of(site, page.parent, path, prefix) if path else page), unquote(parts.fragment)


@cache
def file_of(site, folder, path, prefix):
    """The file of a path that stands on the pages of a folder: hundreds of them have the same."""
    file = site / path.removeprefix(prefix).lstrip("/") if path.startswith("/") else folder / path
    return (file / "index.html" if file.is_dir() else file).resolve()


@cache
def is_there(file):
    return file.is_file()


def link_problems(site, pages, prefix):
    """Links within the site that lead nowhere."""
    for page, read in pages.items():
        for link in dict.fromkeys(read.links + read.loads):
            if not link or link == "#" or urlsplit(link).scheme or remote(link):
                continue
            file, anchor = target(site, page, link, prefix)
            if not is_there(file):
                yield page, f"leads to {link}, which is not there"
            elif (anchor and file in pages and anchor not in pages[file].ids
                  and not anchor.startswith("mjx-eqn")):
                yield page, f"leads to {link}, but that page has no such anchor"


def request_problems(site, pages):
    """Scripts, styles, fonts and images that would be fetched from elsewhere."""
    for page, read in pages.items():
        for address in read.loads:
            if remote(address):
                yield page, f"loads {address} from elsewhere"
        for found in (REMOTE_CSS.findall(" ".join(read.style))
                      + REMOTE_IMPORT.findall(" ".join(read.script))):
            yield page, f"loads {found} from elsewhere"
    for sheet in sorted(site.rglob("*.css")):
        for found in REMOTE_CSS.findall(sheet.read_text(encoding="utf-8")):
            yield sheet, f"loads {found} from elsewhere"


def text_problems(pages):
    """Directives that were left in, equations that nobody finds, images without words."""
    for page, read in pages.items():
        for line in re.findall(r"^\s*#\s*\|.*", "".join(read.code), re.MULTILINE):
            yield page, f"shows a line that is meant for nbdev: {line.strip()}"
        text = "".join(read.text)
        for rule in re.findall(r"(?<!\\)\|\s*:?[-—]+:?\s*\|.{,20}", text):
            yield page, f"shows a table as it is written, not as a table: {rule}"
        labels = set(re.findall(r"\\label\{([^}]*)\}", text))
        for name in dict.fromkeys(re.findall(r"\\eqref\{([^}]*)\}", text)):
            if name not in labels:
                yield page, f"refers to the equation {name!r}, which is not on the page"
        for image in read.no_alt:
            yield page, (f"has an image without an alt text: {image} "
                         "(add a line #| fig-alt: … to its cell)")
        if read.views:
            yield page, "has a widget that needs a kernel: give it text/html"


def size_problems(site, pages, limit, prefix):
    """Pages that are too heavy: the page itself and its own images, not the scripts that all share.
    """
    for page, read in pages.items():
        own = {target(site, page, load, prefix)[0]
               for load in read.loads if not remote(load) and "_images/" in load}
        size = page.stat().st_size + sum(file.stat().st_size for file in own if file.is_file())
        if size > limit:
            yield page, f"weighs {size:,} bytes, more than {limit:,}"


def told_problems(site, pages, notebooks, address):
    """Chapters of which others cannot show a title, a description, and a picture of the site."""
    for page, read in pages.items():
        if not (notebooks / page.relative_to(site)).with_suffix(".ipynb").is_file(): continue
        for name in ("og:title", "og:description"):
            if not read.told.get(name): yield page, f"tells others no {name}"
        for name in ("og:url", "og:image"):
            named = read.told.get(name, "")
            if not address and named: yield page, f"names {name} {named}, and has no address yet"
            elif address and not named.startswith(address):
                yield page, f"names {name} {named!r}, which is not at {address}"
            elif address and not (site / named.removeprefix(address)).exists():
                yield page, f"names {name} {named}, which is not there"


def run_problems(folder):
    """Cells that did not run, left an error or tell of this machine; widgets that are dead here."""
    for path in sorted(folder.rglob("*.ipynb")):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type != "code" or "skip-execution" in cell.metadata.get("tags", []):
                continue
            if cell.execution_count is None:
                yield path, f"cell {number} did not run"
            for output in cell.outputs:
                if output.output_type == "error":
                    yield path, f"cell {number} raised {output.ename}"
                for place in HERE.findall("".join(output.get("text", ""))):
                    yield path, f"cell {number} shows a place of this machine: {place}"
                data = output.get("data", {})
                if VIEW in data and "text/html" not in data:
                    yield (path,
                           f"cell {number} shows a widget that needs a kernel: give it text/html")


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def all_read(paths):
    """Pages, by their files; many of them are read by two processes."""
    if len(paths) < 50:
        return {path: read(path) for path in paths}
    with ProcessPoolExecutor(2) as pool:
        return dict(zip(paths, pool.map(read, paths, chunksize=10), strict=True))


def problems(site, notebooks, limit=LIMIT, prefix="", address=""):
    """All that is wrong with a site, as (file, message); `address` is where it is published."""
    site = site.resolve()
    for remembered in (file_of, is_there): remembered.cache_clear()
    # Sphinx's own, but their links count
    skipped = {"search.html", "genindex.html", "py-modindex.html"}
    pages = all_read([path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts])
    if not pages:
        return [(site, "has no pages")]
    written = {path: read for path, read in pages.items() if path.name not in skipped}
    return [*link_problems(site, pages, prefix), *request_problems(site, pages),
            *text_problems(written),
            *size_problems(site, written, limit, prefix),
            *told_problems(site, written, notebooks, address), *run_problems(notebooks)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_site")
    parser.add_argument("--pages", type=Path, default=ROOT / ".cache/site/pages")
    parser.add_argument("--limit", type=int, default=LIMIT)
    args = parser.parse_args(arguments)
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    prefix = config["DEFAULT"]["doc_baseurl"]
    published = config["DEFAULT"].getboolean("published")
    address = config["DEFAULT"]["doc_host"] + prefix + "/" if published else ""
    found = problems(args.site, args.pages, args.limit, prefix, address)
    for path, message in found:
        print(f"error: {path.name} {message}", file=sys.stderr)
    if found:
        return 1
    print(f"{len(list(args.site.rglob('*.html')))} pages hold what they promise")
    return 0


if __name__ == "__main__":
    sys.exit(main())
