"""Check what ruff cannot: the width of lines, and the length of functions and of exported cells.

    python tools/check_style.py [ROOT]

A line holds at most 100 characters, lines of directives (`#| …`) apart, which cannot be broken. A
function with its docstring holds at most 50 lines, and so does an exported cell without its
directives: both are to fit on a screen.
"""

import ast
import json
import re
import sys
from pathlib import Path

from check_sync import notebooks_in, settings

WIDTH, LENGTH = 100, 50
MADE = {"build", "dist", "__pycache__"}


def sources(root):
    """The name and the text of each code cell, and of each file of Python but the library's."""
    nbs = root / settings(root)["nbs_path"]
    for path in notebooks_in(nbs):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                yield f"{path.relative_to(root).as_posix()}:{number}", "".join(cell["source"])
    made = MADE | {settings(root)["lib_path"]}
    for top in sorted(root.iterdir()):
        if top.name in made or top.name[0] in "._": continue
        for path in [top] if top.suffix == ".py" else sorted(top.rglob("*.py")):
            if not any(part[0] == "." or part in MADE for part in path.relative_to(root).parts):
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def is_directive(line):
    return line.lstrip().startswith("#|")


def wide_lines(name, text):
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > WIDTH and not is_directive(line):
            yield f"{name}:{number}: a line of {len(line)} characters, more than {WIDTH}"


def long_functions(name, text):
    # What IPython alone understands becomes something that Python does, too.
    python = re.sub(r"^( *)[!%]+\w.*", r"\1pass", text, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > LENGTH:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines, more than {LENGTH}"


def long_cell(name, text):
    if ".ipynb:" not in name: return
    lines = text.splitlines()
    code = [line for line in lines if not is_directive(line)]
    exported = any(line.replace(" ", "").startswith("#|export") for line in lines)
    if exported and len(code) > LENGTH:
        yield f"{name}: an exported cell of {len(code)} lines, more than {LENGTH}"


def main(root):
    root, problems = Path(root).resolve(), []
    for name, text in sources(root):
        problems += [*wide_lines(name, text), *long_functions(name, text), *long_cell(name, text)]
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
