"""Check that the notebooks are clean, and that the library is exactly what they export.

    python tools/check_sync.py [ROOT]

nbdev works on a copy, never on the checkout. Its export runs into an empty folder, because it
deletes nothing: a module whose notebook is gone would stay for ever.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path


class BrokenError(Exception):
    """A notebook that is none, or one that nbdev cannot work on: nothing can be compared."""


def settings(root):
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def notebooks_in(folder):
    """All notebooks that nbdev would look at, in the order of their paths."""
    found = sorted(folder.rglob("*.ipynb"))
    return [p for p in found if not any(s[0] in "_." for s in p.relative_to(folder).parts)]


def nbdev(call, copy):
    """Run one nbdev function in the copied project."""
    # nbdev reports a notebook that it cannot read or export by a warning, then goes on: make it
    # stop. It also listens to a user's own configuration and to IN_TEST: keep both out.
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["XDG_CONFIG_HOME"] = env["XDG_CONFIG_DIRS"] = str(copy / "no-user-configuration")
    module, name = call.split(":")
    code = f"from {module} import {name}; {name}()"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    if done.returncode:
        raise BrokenError(f"{name} failed:\n{done.stdout}{done.stderr}")


def copied(root, to):
    """A copy of what nbdev reads, without the library."""
    to.mkdir()
    nbs = settings(root)["nbs_path"]
    shutil.copy(root / "settings.ini", to)
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(root / nbs, to / nbs, ignore=hidden)
    return to


def noise(before, after):
    """Say what cleaning would change in a notebook, given as text before and after."""
    old, new = json.loads(before), json.loads(after)
    found = []
    for number, (a, b) in enumerate(zip(old["cells"], new["cells"], strict=True)):
        keys = [k for k in ("outputs", "execution_count", "metadata", "id") if a.get(k) != b.get(k)]
        if keys:
            found.append(f"cell {number}: {', '.join(keys)}")
    if old["metadata"] != new["metadata"]:
        found.append("metadata of the notebook")
    return "; ".join(found) or "its JSON is not laid out as nbdev does"


def clean_problems(root, scratch):
    from clean_notebooks import fold

    copy = copied(root, scratch / "clean")
    nbs = settings(root)["nbs_path"]
    for path in notebooks_in(root / nbs):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BrokenError(f"{path.relative_to(root)} is not a notebook: {error}") from error
    nbdev("nbdev.clean:nbdev_clean", copy)
    fold(copy / nbs)
    problems = []
    for path in notebooks_in(root / nbs):
        name = path.relative_to(root)
        before, after = path.read_text(encoding="utf-8"), (copy / name).read_text(encoding="utf-8")
        if before != after:
            problems.append(f"{name} is not clean ({noise(before, after)})")
        kernel = json.loads(before)["metadata"].get("kernelspec", {}).get("name", "python3")
        if kernel != "python3":
            problems.append(f"{name} asks for the kernel {kernel!r}; readers have 'python3'")
    return problems


def modules(library):
    """The modules below a folder: their text by their relative path."""
    return {
        p.relative_to(library).as_posix(): p.read_text(encoding="utf-8")
        for p in sorted(library.rglob("*.py"))
        if ".ipynb_checkpoints" not in p.parts
    }


def sync_problems(root, scratch):
    copy = copied(root, scratch / "sync")
    nbdev("nbdev.doclinks:nbdev_export", copy)
    lib = settings(root)["lib_path"]
    exported, stored = modules(copy / lib), modules(root / lib)
    stale, missing = stored.keys() - exported.keys(), exported.keys() - stored.keys()
    problems = [f"{lib}/{name} is stale: no notebook exports it" for name in sorted(stale)]
    problems += [f"{lib}/{name} is missing" for name in sorted(missing)]
    for name in sorted(exported.keys() & stored.keys()):
        if exported[name] != stored[name]:
            a, b = stored[name].splitlines(), exported[name].splitlines()
            diff = difflib.unified_diff(a, b, f"{lib}/{name}", "the notebook", lineterm="", n=1)
            problems.append(f"{lib}/{name} is not what the notebook exports:\n" + "\n".join(diff))
    return problems


def main(root):
    root = Path(root).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            problems = clean_problems(root, Path(scratch))
            problems += sync_problems(root, Path(scratch))
        except BrokenError as error:
            print("error:", error, file=sys.stderr)
            return 1
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        print("To mend: make export (and delete what is stale)", file=sys.stderr)
        return 1
    count = len(notebooks_in(root / settings(root)["nbs_path"]))
    print(f"{count} notebooks are clean, and the library is what they export")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
