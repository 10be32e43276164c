"""Check the order of the book, and that what it says about itself is true.

    python tools/check_book.py [ROOT]

- The text of a link to a chapter is the title of that chapter: all of it, or what stands before a
  colon; "the" and capitals do not matter.
- No text calls a chapter by its number: numbers change when chapters move, titles stay.
- Whatever stands in a line "**You need**" stands before: its links never lead forward.
- The front page lists all chapters in their order.
- Every exercise has one solution, which says whether it is tested, by code below it, or argued;
  at least two thirds of those in the book are tested.
- A picture that a text shows is there, and has a text that says what it shows.
- A cell that is not exported uses nothing of the library that a later chapter introduces, but for
  the names in AHEAD.
"""

import ast
import importlib
import inspect
import json
import posixpath
import re
import sys
import warnings
from pathlib import Path

from check_sync import notebooks_in, settings

# What chapters use before it is derived, and why.
AHEAD = {
    "metalit.as_written": "the article and its formulas stand at the beginning, their trial later",
    "metalit.plots": "figures look alike from the first page on",
    "metalit.checks": "mistakes are shown to be refused, beside what they spoil",
    "metalit.widgets": "figures that move are for readers; how they are made is not their subject",
    "metalit.training": "methods are trained, evaluated and counted long before a run is built",
    "metalit.meta_loss.MetaLoss": "a part is checked in the whole that it is a part of",
    "metalit.methods": "MAML, written by hand in the first chapter; others, to set beside a claim",
    "metalit.models": "networks as anyone makes them, where only their shape or cost matters",
    "metalit.tasks.task": "support and query, with names, once the first chapter has used both",
    "metalit.terms.sharpness.GradientNorm": "a second term, where a sum of terms is shown",
    "metalit.data.images": "files of pictures, read and kept",
    "metalit.losses.TaskLoss": "a loss that moves its inputs, or has some of its own",
    "metalit.judging.comparison": "reading the results of long runs, quoted where they belong",
}
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]*\.ipynb)(?:#[^)]*)?\)")
NUMBER = re.compile(r"\b[cC]hapters? \[?\d+[a-z]?\b")
EXERCISES = re.compile(r"^## Exercises?$", re.M)
SOLUTION = re.compile(r"<details><summary>Solution of exercise (\d+) \((tested|argued)\)</summary>")
MADE = re.compile(r"^# %% \S*?nbs/(\S+)\.ipynb #", re.MULTILINE)


class Chapter:
    """A notebook: its name, its title and its cells."""

    def __init__(self, path, nbs):
        self.name = path.relative_to(nbs).with_suffix("").as_posix()
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in self.cells: cell["source"] = "".join(cell["source"])
        first = self.cells[0]["source"] if self.cells else ""
        self.title = first.partition("\n")[0].removeprefix("# ")

    def prose(self):
        return [cell["source"] for cell in self.cells if cell["cell_type"] == "markdown"]

    def shown(self):
        """Its code that is not exported: what its reader runs."""
        for cell in self.cells:
            source = cell["source"]
            if cell["cell_type"] == "code" and not re.search(r"^#\| *(export|hide)", source, re.M):
                yield source

    def target(self, link):
        """The name of the chapter that a relative link of this one leads to."""
        folder = posixpath.dirname(self.name)
        return posixpath.normpath(posixpath.join(folder, link)).removesuffix(".ipynb")


def plain(title):
    title = title.replace("`", "").lower()
    return re.sub(r"^(the|a|an) ", "", title)


def link_problems(chapters):
    titles = {chapter.name: chapter.title for chapter in chapters}
    for chapter in chapters:
        for text, link in LINK.findall("\n".join(chapter.prose())):
            title = titles.get(chapter.target(link))
            if title is None:
                yield f"{chapter.name}: [{text}]({link}) leads nowhere"
            elif plain(text) not in (plain(title), plain(title.partition(":")[0])):
                yield f"{chapter.name}: [{text}] leads to the chapter {title!r}: call it so"


def number_problems(chapters, texts):
    """`texts` are other texts of the project, by name."""
    found = {chapter.name: "\n".join(cell["source"] for cell in chapter.cells)
             for chapter in chapters}
    for name, text in (found | texts).items():
        for match in NUMBER.findall(text):
            yield f"{name}: {match!r} calls a chapter by its number: use its title"


def need_problems(chapters):
    order = {chapter.name: number for number, chapter in enumerate(chapters)}
    for chapter in chapters:
        for line in "\n".join(chapter.prose()).splitlines():
            if not line.startswith("**You need"): continue
            for _, link in LINK.findall(line):
                needed = chapter.target(link)
                if order.get(needed, -1) >= order[chapter.name]:
                    yield f"{chapter.name} needs {needed}, which stands after it"


def contents_problems(chapters):
    """The front page lists every chapter that is in a part, in their order."""
    listed = [chapter.name for chapter in chapters if re.match(r"[1-8]_", chapter.name)]
    front = [chapter for chapter in chapters if chapter.name == "index"]
    if not front or not listed: return
    text = "\n".join(front[0].prose()).partition("## The chapters")[2]
    found = [front[0].target(link) for _, link in LINK.findall(text)]
    for name in [name for name in listed if name not in found]:
        yield f"index: {name} is missing from the list of chapters"
    if not set(listed) - set(found) and found != listed:
        yield "index: the list of chapters is not in the order of their numbers"


def picture_problems(chapters, nbs):
    for chapter in chapters:
        for text, file in PICTURE.findall("\n".join(chapter.prose())):
            path = nbs / posixpath.dirname(chapter.name) / file
            if not path.is_file():
                yield f"{chapter.name}: the picture {file} is not there"
            if len(text.split()) < 5:
                yield f"{chapter.name}: say in words what the picture {file} shows: ![…]({file})"


def exercises(chapter):
    """The numbers of its exercises, and the cells from there to the next heading."""
    text = [cell["source"] if cell["cell_type"] == "markdown" else "" for cell in chapter.cells]
    first = next((i for i, said in enumerate(text) if EXERCISES.search(said)), None)
    if first is None: return [], []
    head, _, rest = EXERCISES.split(text[first], maxsplit=1)[1].partition("<details>")
    after = [i for i, said in enumerate(text) if i > first and re.search(r"^## ", said, re.M)]
    asked = [int(number) for number in re.findall(r"^(\d+)\. ", head, re.M)]
    opening = {"cell_type": "markdown", "source": "<details>" + rest if rest else ""}
    return asked, [opening, *chapter.cells[first + 1:after[0] if after else None]]


def solutions(cells):
    """The kind of each solution, how often each stands there, and which have code."""
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    solved = [(int(number), kind) for number, kind in SOLUTION.findall(text)]
    coded = {int(number) for cell in cells if cell["cell_type"] == "code"
             for line in re.findall(r"^#\| solution: (.*)$", cell["source"], re.M)
             for number in re.findall(r"\d+", line)}
    return solved, coded


def solution_problems(chapters):
    kinds = []
    for chapter in chapters:
        asked, cells = exercises(chapter)
        solved, coded = solutions(cells)
        kinds += [kind for _, kind in solved]
        numbers = [number for number, _ in solved]
        for number in asked:
            if numbers.count(number) != 1:
                yield (f"{chapter.name}: exercise {number} has {numbers.count(number)} solutions: "
                       "<details><summary>Solution of exercise N (tested)</summary>, or (argued)")
        for number in {*numbers, *coded} - {*asked}:
            yield f"{chapter.name}: there is no exercise {number} that a solution is for"
        for number, kind in solved:
            if (kind == "tested") != (number in coded):
                yield (f"{chapter.name}: the solution of exercise {number} is called {kind}, and "
                       f"{'has no' if kind == 'tested' else 'a'} cell '#| solution: {number}'")
        for cell in cells:
            if cell["cell_type"] == "code" and not re.search(r"^#\| solution: ", cell["source"]):
                yield f"{chapter.name}: a cell among the solutions does not say which it tests"
    if kinds and kinds.count("tested") < 2 / 3 * len(kinds):
        yield f"{kinds.count('tested')} of {len(kinds)} solutions are tested, less than two thirds"


def makers(library):
    """The chapter that makes each top-level name of each module."""
    found = {}
    for path in sorted(library.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = ".".join(("metalit", *path.relative_to(library).with_suffix("").parts))
        pieces = MADE.split(text)
        for chapter, code in zip(pieces[1::2], pieces[2::2], strict=True):
            code = code.partition("\n")[2]
            for node in ast.parse(code).body:
                for name in defined(node): found[module, name] = chapter
    return found


def defined(node):
    """The names that a statement defines, names of types apart: they stand in signatures alone."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef): return [node.name]
    if isinstance(node, ast.AnnAssign): targets = [node.target]
    else: targets = node.targets if isinstance(node, ast.Assign) else []
    names = [ast.unparse(target) for target in targets]
    return [name for name in names if name.isupper() or not name[:1].isupper()]


def tree_of(source):
    """A cell as Python reads it: what IPython alone understands is left out."""
    return ast.parse(re.sub(r"^( *)[!%]+\w.*", r"\1pass", source, flags=re.MULTILINE))


def imported(tree):
    """The names under which a cell knows parts of the library, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] != "metalit": continue
                yield alias.asname or "metalit", alias.name if alias.asname else "metalit"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metalit":
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def used(chapter):
    """What of the library its cells use, as dotted names: `metalit.tasks.Sinusoids`."""
    known = {}
    for source in chapter.shown():
        tree = tree_of(source)
        for name, dotted in imported(tree):
            known[name] = dotted
            if dotted != "metalit": yield dotted
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                root, _, rest = ast.unparse(node).partition(".")
                if root in known and rest.replace(".", "").isidentifier():
                    yield f"{known[root]}.{rest}"


def place(dotted, found):
    """The module and the name that a dotted name stands for, where the library defines it."""
    parts = dotted.split(".")
    thing = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 1):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            try: thing = importlib.import_module(".".join(parts[:number + 1]))
            except ImportError: return None
        if inspect.isclass(thing) or inspect.isfunction(thing):
            key = getattr(thing, "__module__", ""), getattr(thing, "__name__", "")
            return key if key in found else None
        if ((module := ".".join(parts[:number])), part) in found: return module, part
    return None


def is_ahead(name):
    return any(name == known or name.startswith(f"{known}.") for known in AHEAD)


def use_problems(chapters, library):
    order, found = {chapter.name: i for i, chapter in enumerate(chapters)}, makers(library)
    for chapter in chapters:
        for dotted in sorted(set(used(chapter))):
            key = place(dotted, found)
            if key is None or is_ahead(".".join(key)): continue
            if order[found[key]] > order[chapter.name]:
                yield f"{chapter.name} uses {'.'.join(key)}, which {found[key]} introduces"


def main(root):
    root = Path(root).resolve()
    nbs = root / settings(root)["nbs_path"]
    warnings.simplefilter("ignore", DeprecationWarning)      # of old names that still work
    chapters = [Chapter(path, nbs) for path in notebooks_in(nbs)]
    texts = {name: (root / name).read_text(encoding="utf-8")
             for name in ("README.md", "CONTRIBUTING.md", "results/README.md")}
    problems = [*link_problems(chapters), *number_problems(chapters, texts),
                *need_problems(chapters), *contents_problems(chapters),
                *picture_problems(chapters, nbs), *solution_problems(chapters),
                *use_problems(chapters, root / settings(root)["lib_path"])]
    for problem in problems: print("error:", problem, file=sys.stderr)
    if not problems: print(f"{len(chapters)} chapters stand in an order in which they can be read")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
