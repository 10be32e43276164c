"""Settings of Sphinx for the documentation site.

`make site` (tools/build_site.py) gathers the pages that it reads.
"""

import hashlib
import json
import os
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from pydata_sphinx_theme import toctree

ROOT = Path(__file__).parent.parent
STAGE = Path(os.environ["METALIT_STAGE"])  # where tools/build_site.py put the pages
sys.path.insert(0, str(ROOT / "tools"))

from site_pages import breakable, restructured, with_mark  # noqa: E402

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
gathered = json.loads((STAGE / "gathered.json").read_text(encoding="utf-8"))

project = cfg["title"]
author = copyright = cfg["author"]
release = cfg["version"]
language = "en"

published = cfg.getboolean("published")  # whether the addresses below are there
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
              "sphinx.ext.viewcode", "sphinx.ext.mathjax", "sphinx_copybutton",
              "notfound.extension", "sphinxext.opengraph", *(["sphinx_sitemap"] * published)]
exclude_patterns = ["README.md"]

# ---- notebooks: executed before (tools/run_notebooks.py), so that an error is found there -----
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # live figures bring all that they need
nb_render_image_options = {"loading": "lazy"}
nb_number_source_lines = False
nb_code_prompt_show = "Show the code that draws"
nb_code_prompt_hide = "Hide the code that draws"
nb_render_markdown_format = "myst"  # what cells show may hold tables
nb_merge_streams = True  # lines that were printed at different moments are one text
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# ---- maths, with one file and no network ---------------------------------------------------------
mathjax_path = "tex-svg-full.js"
mathjax_options = {"defer": "defer"}
# Numbers are written out as \tag, so that JupyterLab shows the same.
mathjax3_config = {"tex": {"tags": "none"}, "startup": {"typeset": True}}

# ---- the API ----------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
viewcode_line_numbers = True
viewcode_follow_imported_members = False  # a page for each module, made by itself

# ---- the look ----------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = cfg["title"]
html_static_path = ["static", str(STAGE / "static")]
html_css_files = ["book.css"]
html_js_files = ["contents.js", "search.js", "wide.js"]
html_search_scorer = str(ROOT / "site/static/scorer.js")
html_baseurl = cfg["doc_host"] + cfg["doc_baseurl"] + "/" if published else ""
html_copy_source = True
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = "%d %B %Y"
html_favicon = "static/mark.svg"
html_logo = "static/mark.svg"
at_home = {
    "repository_url": cfg["git_url"],
    "repository_branch": cfg["branch"],
    "path_to_docs": cfg["nbs_path"],
    "use_repository_button": True,
    "use_edit_page_button": True,
    "use_issues_button": True,
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    },
}
html_theme_options = (at_home if published else {}) | {
    "use_download_button": True,
    "home_page_in_toc": False,  # the name above the contents leads there
    "navbar_persistent": [],
    "show_navbar_depth": 0,  # parts open and close
    "show_toc_level": 2,
    "logo": {"text": cfg["title"], "alt_text": "metalit, the first page"},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Which file a page is made of: that one is to be edited.
html_context = {
    "default_mode": "auto",
    "sources": gathered["sources"],
    "edit_page_url_template": f"{cfg['git_url']}/edit/{cfg['branch']}/{{{{ sources[file_name] }}}}",
    "edit_page_provider_name": "GitHub",
}
pygments_style = "a11y-high-contrast-light"
copybutton_selector = "div:not(.output) > div.highlight pre"

# ---- what others show of a page ----------------------------------------------------------------
notfound_urls_prefix = cfg["doc_baseurl"] + "/"
sitemap_url_scheme = "{link}"
sitemap_excludes = ["search.html", "genindex.html", "py-modindex.html", "404.html"]
ogp_site_url = html_baseurl
ogp_social_cards = {"enable": False}
ogp_enable_meta_description = True
# The address of a picture has to be absolute, so there is none before the site has an address.
ogp_image = "_static/card.png" if published else None  # tools/card.py draws it
ogp_image_alt = ("Three waves, and what a network has learned of each in one step on ten points, "
                 "from a start that it was meta-trained for.")
ogp_custom_meta_tags = [
    '<meta property="og:image:width" content="1200" />',
    '<meta property="og:image:height" content="630" />',
    '<meta name="twitter:card" content="summary_large_image" />',
] * published


def keep_display_maths(app, doctree):
    """Hand display maths to MathJax as it was written: it has its own `align`, tags and labels."""
    for node in doctree.findall(nodes.math_block):
        text = node.astext().strip()
        alone = re.fullmatch(r"\\begin\{((?:align|gather|equation|multline)\*?)\}.*\\end\{\1\}",
                             text, re.DOTALL)
        node.children = [nodes.Text(text if alone else rf"\[{text}\]")]
        node["no-wrap"] = True


def keep_together(app, doctree):
    """A bracket before a formula and the sign behind it stay on its line."""
    for node in list(doctree.findall(nodes.math)):
        place, at = node.parent, node.parent.index(node)
        before, after = (place[i] if 0 <= i < len(place) else None for i in (at - 1, at + 1))
        opening = (re.search(r"[(\[“]+$", before.astext())
                   if isinstance(before, nodes.Text) else None)
        closing = (re.match(r"[.,;:!?)\]”’%]+(?:s\b)?|[-–](?=\w)", after.astext())
                   if isinstance(after, nodes.Text) else None)
        if not (opening or closing): continue
        parts = [nodes.Text(opening[0])] if opening else []
        parts += [node.deepcopy(), *([nodes.Text(closing[0])] if closing else [])]
        together = nodes.inline("", "", *parts, classes=["together"])
        if closing: place[at + 1] = nodes.Text(after.astext()[closing.end():])
        place[at] = together
        if opening: place[at - 1] = nodes.Text(before.astext()[:opening.start()])


def plain_docstring(app, what, name, thing, options, lines):
    """Docstrings are written in plain Markdown."""
    lines[:] = restructured("\n".join(lines), gathered["names"]).split("\n")


def named_defaults(app, what, name, thing, options, signature, returns):
    """A function that is a default by its name: `<function f>` could not be read as Python."""
    if signature is None: return None
    return re.sub(r"<function (?:\w+\.)*(\w+)(?: at 0x[0-9a-f]+)?>", r"\1", signature), returns


# The contents by the folder of a page, from where addresses in it lead.
contents = {}


def contents_beside(app, pagename, template, context, doctree):
    """The contents beside a page, made once for a folder: pages differ in what is marked alone.

    The theme makes it for each page anew, which takes as long as all the rest of the site.
    """
    toctrees_of_theme(app, pagename, template, context, doctree)
    if pagename == "404": return  # its addresses are those of the whole site
    made, folder = context["generate_toctree_html"], pagename.rpartition("/")[0]
    nobody = f"{folder}/." if folder else "."

    def generate_toctree_html(**options):
        key = folder, *sorted(options.items())
        if key not in contents:
            of_page, context["toctree"] = context["toctree"], (
                lambda **options: app.builder._get_local_toctree(nobody, **options))
            contents[key] = breakable(str(made(**options)))
            context["toctree"] = of_page
        return with_mark(contents[key], app.builder.get_relative_uri(nobody, pagename))

    context["generate_toctree_html"] = generate_toctree_html


def without_address(app, pagename, template, context, doctree):
    """Take the address of a page out of what others show of it: it has none yet."""
    if "metatags" not in context: return  # an index, of which nothing is shown
    context["metatags"] = re.sub(r'<meta property="og:url"[^>]*>\n?', "", context["metatags"])


toctrees_of_theme = toctree.add_toctree_functions
toctree.add_toctree_functions = contents_beside  # the theme has not connected it yet


# Pages that an earlier build has read are read again when what reads them has changed.
read_by = (hashlib.sha256(Path(__file__).read_bytes() + (ROOT / "tools/site_pages.py").read_bytes())
           .hexdigest())


def setup(app):
    app.add_config_value("read_by", "", "env")
    app.connect("doctree-read", keep_display_maths)
    app.connect("doctree-read", keep_together)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", named_defaults)
    if not published: app.connect("html-page-context", without_address, priority=900)
