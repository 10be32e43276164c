"""Run the tests on the oldest and the newest Python and torch that are supported.

    python tools/versions.py [--pythons "PYTHON ..."] [--pytest-args "..."] [VERSION:TORCH ...]

Without VERSION:TORCH these are the bounds in settings.ini, and NEWEST with the newest torch that
pip offers. `3.10:2.9.1` is another choice, and `3.13:` takes the newest torch. Each has a virtual
environment in .cache/versions/, which is kept for the next time. Everything but torch and what
comes with it is as in constraints.txt. The outcome is written to results/versions.json.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import bootstrap
import slowest
from check_sync import settings

ROOT = Path(__file__).parent.parent
FOLDER = Path(".cache/versions")
NEWEST = "3.13"  # the newest Python for which every requirement has a release

# What each release of torch chooses for itself.
WITH_TORCH = re.compile(r"(torch|triton|sympy|setuptools|nvidia-[\w-]+|cuda-[\w-]+)==")
VERSIONS = """
import json, platform, numpy, torch, metalit
names = {"metalit": metalit, "torch": torch, "numpy": numpy}
versions = {name: module.__version__ for name, module in names.items()}
print(json.dumps({"python": platform.python_version()} | versions))
"""


def bounds(root):
    """The oldest versions that settings.ini allows, and the newest."""
    oldest_python = settings(root)["min_python"]
    oldest_torch = re.search(r"\btorch>=([\d.]+)", settings(root)["requirements"])[1]
    return f"{oldest_python}:{oldest_torch}", f"{NEWEST}:"


def find_python(version, named):
    """The command that starts this Python: one of those named, or pythonX.Y of PATH."""
    for command in (*named, f"python{version}"):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            found = subprocess.run([command, "-I", "-c", code], capture_output=True, text=True)
        except OSError:
            continue
        if found.stdout.strip() == version: return command
    raise bootstrap.Problem(
        f"Python {version} is missing: python{version} does not start, and PYTHONS names none.\n"
        f'Install it, or name it: make test-versions PYTHONS="/where/it/is/python{version}"'
    )


def install(command, version, torch, root):
    """An environment with the library and this torch ('' for the newest): its Python."""
    place = root / FOLDER / f"python{version}-torch{torch or '-newest'}"
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([command, "-m", "venv", place], check=True)
    pins = (root / "constraints.txt").read_text().splitlines(keepends=True)
    constraints = place / "constraints.txt"
    constraints.write_text("".join(pin for pin in pins if not WITH_TORCH.match(pin)))

    python = place / "bin/python"
    pip = (python, "-I", "-m", "pip", "install", "--no-input", "--quiet", "-c", constraints)
    torch = f"torch=={torch}" if torch else "torch"
    # The build tool first, as in tools/bootstrap.py.
    for what in (("setuptools",), (torch, "--no-build-isolation", "-e", ".[dev]")):
        code, output = bootstrap.run([*pip, "--upgrade", *what], cwd=root)
        if code: raise bootstrap.Problem(f"pip failed: {bootstrap.explain_pip(output)}")
    return python


def outcome(report, code):
    """What a report of pytest says, in numbers and names."""
    cases = list(slowest.tests(report)) if report.exists() else []
    failures = [name for name, _, result in cases if result in ("failure", "error")]
    # 0 and 1 are the exit codes of tests that ended, well or not.
    if code not in (0, 1) or bool(code) != bool(failures) or not cases:
        failures.append(f"pytest ended with code {code} after {len(cases)} tests")
    passed, skipped = (sum(c[2] == result for c in cases) for result in ("passed", "skipped"))
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}


def test(python, pytest_args, root):
    """Run the tests in an environment: its record."""
    report = python.parent.parent / "report.xml"
    report.unlink(missing_ok=True)
    env = {"OMP_NUM_THREADS": "1"} | os.environ
    versions = subprocess.run([python, "-c", VERSIONS], cwd=root, capture_output=True, check=True)
    record = json.loads(versions.stdout)
    print("== " + ", ".join(f"{name} {version}" for name, version in record.items()), flush=True)
    pytest = (python, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *pytest_args)
    start = time.monotonic()
    code = subprocess.run(pytest, cwd=root, env=env).returncode
    record |= {"date": date.today().isoformat(), "seconds": round(time.monotonic() - start)}
    return record | outcome(report, code)


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION:TORCH")
    parser.add_argument("--pythons", type=str.split, default=[], help="commands that start Pythons")
    parser.add_argument("--pytest-args", type=shlex.split, default=[])
    args = parser.parse_args(arguments)
    wanted = [version.partition(":")[::2] for version in args.versions or bounds(root)]
    try:
        # All of them before the first: what is missing is told at once, not after an hour.
        pythons = [find_python(version, args.pythons) for version, _ in wanted]
        records = [
            test(install(python, *choice, root), args.pytest_args, root)
            for python, choice in zip(pythons, wanted, strict=True)
        ]
    except bootstrap.Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    record = {"command": "make test-versions", "environments": records}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (root / "results/versions.json").write_text(text, encoding="utf-8")
    for r in records:
        counts = ", ".join(f"{r[key]} {key}" for key in ("passed", "failed", "skipped"))
        print(f"Python {r['python']}, torch {r['torch']}: {counts}")
    return int(any(r["failures"] for r in records))


if __name__ == "__main__":
    sys.exit(main())
