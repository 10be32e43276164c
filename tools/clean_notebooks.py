"""Clean the notebooks as nbdev does, and fold what a reader opens when they want to.

    python tools/clean_notebooks.py [ROOT]

What a page of the site hides or folds has its code folded in JupyterLab, too: cells that set things
up (`#| hide`), that say `#| code-fold: true`, that only import, and those that test the solution of
an exercise, whose output is folded as well. A click on the bar at their side opens them.
"""

import json
import os
import sys
from pathlib import Path

from check_sync import notebooks_in, settings
from site_pages import imports_alone, options


def folding(cell):
    """What a notebook says about a code cell for JupyterLab, or nothing."""
    says, source = options("".join(cell["source"]))
    if "solution" in says:
        return {"outputs_hidden": True, "source_hidden": True}
    if "hide" in says or says.get("code-fold") == "true" or imports_alone(source):
        return {"source_hidden": True}
    return {}


def fold(folder):
    """Write into each clean notebook below a folder which of its cells are folded."""
    for path in notebooks_in(folder):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        for cell in notebook["cells"]:
            found = folding(cell) if cell["cell_type"] == "code" else {}
            cell["metadata"] = {"jupyter": found} if found else {}
        after = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")


def main(root):
    from nbdev.clean import nbdev_clean

    os.chdir(root)
    nbdev_clean()
    fold(Path(settings(Path()).get("nbs_path")))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
