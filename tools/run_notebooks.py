"""Execute every notebook from top to bottom, each in a fresh kernel; an error in one is fatal.

    python tools/run_notebooks.py [--root ROOT] [--limit SECONDS] [--jobs N]
                                  [--keep FOLDER [--reuse]] [NOTEBOOK ...]

Cells that start with one of the directives named by `tst_flags` in settings.ini (`#| slow`,
`#| gpu`, ...) or with `#| eval: false` are skipped. Nothing is written back.

A live figure has to be at the end as it was when it was shown: in JupyterLab the text around it is
read after all cells ran, and a check that moved it would leave it elsewhere. `#| moves` in its cell
says that it is there to be moved by later ones.

With --keep the executed copies are kept in a folder, each with a key of all that it was made from.
With --reuse, too, a notebook whose copy has the key of today is not executed again.
With --times their seconds are kept in a file, for tools/slowest.py.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import slowest
from check_sync import notebooks_in, settings
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nursery import Nursery

# One more than cores, up to three: while a kernel starts or ends, another one computes.
JOBS = min(2, os.cpu_count() or 1) + 1
SKIP_TAG = "skip-execution"
# What a notebook's outputs depend on, beside the notebook itself.
INGREDIENTS = ("metalit", "results", "reproduce", "benchmarks", "constraints.txt", "settings.ini")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
VIEW = "application/vnd.jupyter.widget-view+json"
PAGE_DATA = re.compile(r'<script type="application/json" id="metalit-\w+-data">(.*?)</script>')


def directives(source):
    """The `#|` lines a cell starts with: `#| slow` gives `slow`, `#| eval: false` `eval: false`."""
    found = set()
    for line in source.splitlines():
        if line.strip() and not line.lstrip().startswith("%%"):
            match = re.match(r"\s*#\s*\|\s*(\w+)\s*(:?)\s*(\S*)", line)
            if not match:
                break
            key, colon, value = match.groups()
            found.add(f"{key}: {value.lower()}" if colon and value else key)
    return found


def failure(error, notebook, limit):
    """What to tell about a notebook that failed."""
    if isinstance(error, CellTimeoutError):
        return f"did not end within {limit:g} s\n{error}"
    if isinstance(error, DeadKernelError):
        return "its kernel died (out of memory, or a crash in compiled code?)"
    failed = [
        number
        for number, cell in enumerate(notebook.cells)
        if any(output.output_type == "error" for output in cell.get("outputs", ()))
    ]
    where = f"cell {failed[0]}" if failed else "a cell"
    return f"failed in {where}\n{COLOUR.sub('', str(error)).rstrip()}"


def shown_figures(notebook):
    """The live figures that shall stay as they were shown: cell, model, and how that was."""
    for number, cell in enumerate(notebook.cells):
        if "moves" in directives(cell.source): continue
        for output in cell.get("outputs", ()):
            bundle = output.get("data", {})
            page = PAGE_DATA.search(bundle.get("text/html", ""))
            if page and VIEW in bundle:
                yield number, bundle[VIEW]["model_id"], json.loads(page[1])


def same(one, other):
    """Whether two pieces of JSON say the same; a page has nine digits of a number."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-7, abs_tol=1e-300)
    return one == other


def moved(notebook, models):
    """What to tell of a figure that is not as it was when it was shown, or None."""
    for number, model, shown in shown_figures(notebook):
        last = models.get(model, {})
        for part in ("spec", "state", "answer"):
            before, after = shown.get(part, {}), last.get(part, {})
            if part == "answer": before, after = before.get("picture"), after.get("picture")
            keys = [key for key in {**before, **after} if not same(before.get(key), after.get(key))]
            if not keys: continue
            return (f"moves the figure that cell {number} shows: {', '.join(keys)} of its {part} "
                    "changed afterwards\nLet the check move a figure of its own")
    return None


def ingredients(root):
    """A digest of everything that all notebooks may use: library, pins, Python and this script."""
    digest = hashlib.sha256(sys.version.encode() + Path(__file__).read_bytes())
    for top in INGREDIENTS:
        files = [root / top] if (root / top).is_file() else sorted((root / top).rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".md":
                digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


class Kept:
    """The executed copies of notebooks, in a folder laid out like the project."""

    def __init__(self, root, folder, reuse):
        self.root, self.folder, self.reuse = root, folder, reuse
        self.ingredients = ingredients(root)

    def place(self, path):
        return self.folder / path.relative_to(self.root)

    def key(self, path):
        return hashlib.sha256(self.ingredients.encode() + path.read_bytes()).hexdigest()

    def has(self, path):
        """Whether there is a copy to use in place of an execution."""
        place = self.place(path)
        if not (self.reuse and place.is_file()):
            return False
        return nbformat.read(place, as_version=4).metadata.get("executed_from") == self.key(path)

    def save(self, path, key, notebook):
        """Keep an executed notebook: whole or not at all, and under the key from before it ran."""
        notebook.metadata["executed_from"] = key
        notebook.metadata.pop("widgets", None)
        place = self.place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, place.with_suffix(".new"))
        place.with_suffix(".new").replace(place)


class Runner:
    def __init__(self, root, limit, flags, kept=None):
        self.root, self.limit, self.flags, self.kept = root, limit, flags, kept
        self.clients = set()
        self.times = {}
        self.stopping = False

    def run(self, path):
        """Execute one notebook: the message of its failure, or None."""
        if self.stopping:
            return None
        key = self.kept and self.kept.key(path)
        notebook = nbformat.read(path, as_version=4)
        skipped = 0
        for cell in notebook.cells:
            if cell.cell_type == "code" and directives(cell.source) & self.flags:
                cell.metadata["tags"] = [SKIP_TAG]
                skipped += 1
        start = time.monotonic()
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],  # not a warning about TCP for each kernel
            resources={"metadata": {"path": str(path.parent)}},
            skip_cells_with_tag=SKIP_TAG,
            # The limit is for the notebook: each cell gets what the ones before it have left.
            timeout_func=lambda cell: max(self.limit - (time.monotonic() - start), 0.01),
        )
        self.clients.add(client)
        try:
            client.execute()
            message = moved(notebook, client.widget_state)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            message = failure(error, notebook, self.limit)
        except Exception as error:
            message = f"could not be run: {type(error).__name__}: {error}"
        finally:
            self.clients.discard(client)
        if self.kept and not message and not self.stopping:
            self.kept.save(path, key, notebook)
        name, seconds = path.relative_to(self.root), time.monotonic() - start
        self.times[name] = seconds
        note = f"  ({skipped} cells skipped)" if skipped else ""
        # One write, line end included: another thread may be writing too.
        sys.stdout.write(f"{'FAILED' if message else 'ok':6} {seconds:6.1f} s  {name}{note}\n")
        sys.stdout.flush()
        return message and f"{name} {message}"

    def kill(self):
        """End the running kernels at once."""
        self.stopping = True
        for client in list(self.clients):
            pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
            if pid:
                os.kill(pid, signal.SIGKILL)


def run_all(root, paths, limit, jobs, kept=None):
    """Execute the notebooks, `jobs` at a time: the messages of failures, and everyone's seconds."""
    flags = set(settings(root)["tst_flags"].split()) | {"eval: false"}
    runner = Runner(root, limit, flags, kept)
    pool = ThreadPoolExecutor(jobs)
    try:
        return [message for message in pool.map(runner.run, paths) if message], runner.times
    except KeyboardInterrupt:
        runner.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of the book")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--limit", type=float, default=300, help="seconds for each notebook")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--keep", type=Path, help="a folder for the executed copies")
    parser.add_argument("--reuse", action="store_true",
                        help="execute only what has no good copy there")
    parser.add_argument("--times", type=Path, help="a file for the seconds of each notebook")
    args = parser.parse_args(arguments)
    root = args.root.resolve()
    paths = [p.resolve() for p in args.notebooks] or notebooks_in(root / settings(root)["nbs_path"])
    if not paths:
        print(f"error: no notebooks in {root}", file=sys.stderr)
        return 1

    # Kernels running side by side share the cores instead of fighting for them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    os.environ["IN_TEST"] = "1"  # nbdev's sign: a cell that calls nbdev_export does nothing
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["IPYTHONDIR"] = scratch  # the user's own start-up files must not take part
        if args.keep:  # pages show drawings, not pixels
            profile = Path(scratch, "profile_default")
            profile.mkdir()
            config = profile / "ipython_kernel_config.py"
            config.write_text("c.InlineBackend.figure_formats = {'svg'}\n")
        try:
            kept = Kept(root, args.keep.resolve(), args.reuse) if args.keep else None
            todo = [path for path in paths if not (kept and kept.has(path))]
            # To make one that forks takes as long as to start one.
            forks = sys.platform == "linux" and len(todo) > args.jobs
            with Nursery() if forks else contextlib.nullcontext():
                failures, times = run_all(root, todo, args.limit, args.jobs, kept)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    for message in failures:
        print(f"\nerror: {message}", file=sys.stderr)
    if len(todo) < len(paths):
        print(f"{len(paths) - len(todo)} of {len(paths)} notebooks were executed before, "
              "and nothing changed since")
    if len(times) > 10:
        print(f"slowest:\n{slowest.listed(times)}")
    if args.times:
        slowest.write_times(args.times, times)
    if failures:
        print(f"\n{len(failures)} of {len(paths)} notebooks failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
