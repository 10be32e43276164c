"""Build the documentation site from the executed notebooks.

    python tools/build_site.py [--executed FOLDER] [--out FOLDER]

The pages are gathered into a folder that Sphinx then reads: chapters (tools/site_pages.py), a page
for each module, results/README.md, CHANGELOG.md, and what lies in site/. Warnings of Sphinx are
errors.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path

import nbformat
from check_sync import notebooks_in, settings
from citations import anchored, cited, works_in
from site_pages import GUIDES, PARTS, REFERENCE, page, symbol_table

ROOT = Path(__file__).parent.parent
BIBLIOGRAPHY = "reference/bibliography"


# What the names of a room are shown under, in the order of the sentence of seven choices.
GROUPS = {"meta_loss": "The meta-loss", "learner": "The meta-loss", "losses": "The meta-loss",
          "methods": "Methods with a name", "terms": "Choices 1 to 4: terms",
          "pooling": "Choice 5: pooling", "gradient": "Choice 6: the gradient rule",
          "inner": "Choice 7: how a task learns", "tasks": "Tasks", "models": "Models",
          "training": "Training and evaluating", "judging": "Judging and comparing",
          "data": "Data, and the rest"}


def public_names(library):
    """The names that each module offers, by `__all__`, without importing them."""
    index = {}
    for path in sorted(library.rglob("*.py")):
        module = ".".join((
            "metalit", *path.relative_to(library).with_suffix("").parts
        )).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                index[module] = ast.literal_eval(node.value)
    return index


def made_by(library):
    """The notebook that each module is exported from, as a path from the root of the project."""
    found = {}
    for path in sorted(library.rglob("*.py")):
        module = ".".join((
            "metalit", *path.relative_to(library).with_suffix("").parts
        )).removesuffix(".__init__")
        match = re.search(r"File to edit: (?:\.\./)*(\S+\.ipynb)", path.read_text(encoding="utf-8"))
        if match:
            found[module] = match[1]
    return found


def pictures_in(nbs):
    """The pictures that lie beside the chapters, for more than one of them to show."""
    return [path for path in sorted(nbs.rglob("*.svg"))
            if not any(part[0] in "_." for part in path.relative_to(nbs).parts)]


class Stage:
    """The folder that Sphinx reads.

    Files that stay the same are not written again: builds are quick then.
    """

    def __init__(self, folder):
        self.folder, self.written, self.sources = folder, set(), {}

    def write(self, name, content, source):
        """Put a page there, and remember which file of the project it is made of."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        if not (path.is_file() and path.read_bytes() == data):
            path.write_bytes(data)
        self.written.add(path)
        self.sources[name] = source

    def sweep(self):
        """Remove what an earlier build put there and this one did not."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.written:
                path.unlink()


def label_of(name):
    """What stands before the title of a chapter, or None: "7" for 1_idea/07_inner_loop."""
    file = name.rpartition("/")[2]
    return file.split("_")[0].removeprefix("0") if re.match(r"\d_\w+/\d", name) else None


def contents(chapters):
    """The table of contents, part by part, as cells of the first page."""
    trees = [("Guides", [name for name in GUIDES if name in chapters]),
             *((title, [name for name in chapters if name.startswith(f"{folder}/")])
               for folder, title in PARTS.items()),
             ("Reference", [*(name for name in REFERENCE
                              if name in chapters or not name.startswith("reference/")),
                            *(name for name in chapters if name.startswith("99_"))])]
    text = "\n\n".join("\n".join(["```{toctree}", ":hidden:", f":caption: {name}", "", *pages,
                                  "```"]) for name, pages in trees if pages)
    return nbformat.v4.new_markdown_cell(text)


def anchor_of(title):
    """The anchor of a title, as GitHub makes it: also the name of its page."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def results_pages(readme, git):
    """results/README.md as pages by their names: what stands first, and one for each section.

    What it leads to are sections, or files of the repository `git`, if any.
    """
    text = re.sub(r"<!--.*?-->\n?", "\n", readme)
    link = rf"[\1]({git}/blob/main/results/\2)" if git else r"\1"
    text = re.sub(r"(?<!!)\[([^]]*)\]\((?!http|#)([^)]*)\)", link, text)
    first, *sections = re.split(r"^#(?=# )", text, flags=re.MULTILINE)
    found = {anchor_of(section.partition("\n")[0][2:]): section for section in sections}
    here = re.compile(rf"\]\(#({'|'.join(found)})\)")
    pages = {f"results/{name}": re.sub(r"^##(?=#+ )", "#", here.sub(r"](\1.md)", section),
                                       flags=re.MULTILINE)
             for name, section in found.items()}
    tree = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    return {"results": here.sub(r"](results/\1.md)", first) + f"\n{tree}\n"} | pages


def module_page(module, source):
    """A page of the API: one module."""
    page = source.removeprefix("nbs/").removesuffix(".ipynb")
    chapter = f"Made by the chapter :doc:`/{page}`.\n\n" if source.startswith("nbs/") else ""
    return (f"{module}\n{'=' * len(module)}\n\n{chapter}.. automodule:: {module}\n   :members:\n"
            "   :show-inheritance:\n")


def written(path):
    """What stands in a notebook between its code."""
    cells = nbformat.read(path, as_version=4).cells if path.is_file() else []
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def cite(notebook, name, works):
    """Let the works that a page names lead to the bibliography, where each has an anchor."""
    from_here = "../" * name.count("/") + f"{BIBLIOGRAPHY}.html"
    for cell in notebook.cells:
        if cell.cell_type != "markdown": continue
        cell.source = (anchored(cell.source, works) if name == BIBLIOGRAPHY
                       else cited(cell.source, works, from_here))


def room_of(name):
    """The group of a full name, by the room that it is from; the last one where it has none."""
    return GROUPS.get(name.split(".")[1], GROUPS["data"])


def api_page(modules, top):
    """The entrance to the API: what `import metalit as ml` gives, by choice, then every module."""
    text = "The API\n=======\n\nWhat ``import metalit as ml`` gives, choice by choice.\n"
    for title in dict.fromkeys(GROUPS.values()):
        names = "\n".join(f"   ~{name}" for name in top if room_of(name) == title)
        if not names: continue
        text += (f"\n{title}\n{'-' * len(title)}\n\n.. autosummary::\n   :nosignatures:\n\n"
                 f"{names}\n")
    pages = "\n".join(f"   {module}" for module in modules)
    return (f"{text}\nEvery module\n------------\n\nEach with the chapter that makes it:\n\n"
            f".. toctree::\n   :maxdepth: 1\n\n{pages}\n")


def gather(root, executed, folder):
    """Put all pages into `folder`."""
    stage, library = Stage(folder), root / "metalit"
    names, makers = public_names(library), made_by(library)
    # Packages only pass on what their modules make: names have one page, that of the module.
    packages = {module
                for module in names if any(other.startswith(f"{module}.") for other in names)}
    index = {module: offered for module, offered in names.items() if module not in packages}
    table = symbol_table(index, set(names["metalit"]))
    # Terms of `import metalit as ml`, in its own order; modules such as ml.tasks have pages
    # already.
    entrance = [table[f"ml.{name}"] for name in names["metalit"]
                if f"ml.{name}" in table and f"metalit.{name}" not in index]

    paths = notebooks_in(root / "nbs")
    works = works_in(written(executed / "nbs" / f"{BIBLIOGRAPHY}.ipynb"))
    for path in paths:
        copy = executed / path.relative_to(root)
        name = path.relative_to(root / "nbs").with_suffix("").as_posix()
        notebook = page(nbformat.read(copy, as_version=4), label_of(name), table)
        cite(notebook, name, works)
        if path.name == "index.ipynb":
            notebook.cells.append(contents([p.relative_to(root / "nbs").with_suffix("").as_posix()
                                            for p in paths]))
        stage.write(f"{name}.ipynb", nbformat.writes(notebook), path.relative_to(root).as_posix())
    for path in pictures_in(root / "nbs"):
        stage.write(path.relative_to(root / "nbs").as_posix(), path.read_bytes(),
                    path.relative_to(root).as_posix())
    for module in index:
        source = makers.get(module, f"{module.replace('.', '/')}.py")
        stage.write(f"api/{module}.rst", module_page(module, source), source)
    stage.write("api/index.rst", api_page(index, entrance), "nbs/99_api.ipynb")
    readme = (root / "results/README.md").read_text(encoding="utf-8")
    config = settings(root)
    git = config["git_url"] if config.getboolean("published") else ""
    for name, text in results_pages(readme, git).items():
        stage.write(f"{name}.md", text, "results/README.md")
    stage.write("changelog.md", (root / "CHANGELOG.md").read_text(encoding="utf-8"), "CHANGELOG.md")
    picture = "results/scaling.svg"
    stage.write(picture, (root / picture).read_bytes(), picture)
    stage.write("404.md", (root / "site/404.md").read_text(encoding="utf-8"), "site/404.md")
    mathjax = next(f for f in files("sphinx-mathjax-offline") if f.name == "tex-svg-full.js")
    stage.write("static/tex-svg-full.js", mathjax.locate().read_bytes(), "")
    stage.write("gathered.json",
                json.dumps({"sources": stage.sources, "names": table}, sort_keys=True), "")
    stage.sweep()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executed", type=Path, default=ROOT / ".cache/executed")
    parser.add_argument("--out", type=Path, default=ROOT / "_site")
    args = parser.parse_args(arguments)
    stage = ROOT / ".cache/site"
    gather(ROOT, args.executed, stage / "pages")
    # Into an empty folder, for Sphinx removes no page that is gone; and aside, so that the old site
    # outlives a failure.
    fresh = stage / "html"
    shutil.rmtree(fresh, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html",
               "-c", ROOT / "site", "-d", stage / "doctrees", stage / "pages", fresh]
    code = (
        subprocess.run(command, env=os.environ | {"METALIT_STAGE": str(stage / "pages")}).returncode
    )
    if code == 0:
        shutil.rmtree(args.out, ignore_errors=True)
        shutil.move(fresh, args.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
