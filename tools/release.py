"""Make all that a release is made of, check it, and publish nothing.

    python tools/release.py [--no-tests] [--light] [--pythons "PYTHON ..."] [--out FOLDER]

In this order: the tree is clean, the version is the same in settings.ini and CITATION.cff, new to
git, and told of in CHANGELOG.md; all tests pass; a source distribution is built, and a wheel from
it; the wheel is installed into an empty environment of every Python that is offered, and takes a
meta-step there; the site is packed. The files and their checksums then lie in dist/. With --light
nothing is downloaded: the wheel is installed without what it needs, and only compiled.
What is left is a person's: a tag, which .github/workflows/release.yml publishes.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import bootstrap
from check_sync import settings
from versions import find_python

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
STEP = """
import torch.nn.functional as F, metalit as ml
J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss)
J(ml.tasks.Sinusoids().batch(4)).backward()
assert all(p.grad.isfinite().all() for p in J.parameters())
print(ml.__version__)
"""


class NotReadyError(Exception):
    """Something that a release must not have; its text says what, and what to do."""


def run(*command, cwd=ROOT):
    """What a command prints; `NotReadyError` with the end of that where it fails."""
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise NotReadyError(f"{' '.join(words[:4])} … failed:\n{end}")
    return done.stdout.rstrip()


# ---- what must be so before anything is built ---------------------------------------------------


def check_clean(root):
    """Raise where git has changes that no commit holds."""
    changed = run("git", "status", "--porcelain", cwd=root).splitlines()
    if changed:
        raise NotReadyError(f"{len(changed)} files are not committed, such as {changed[0][3:]}: "
                            "commit them, or put them away with git stash")


def check_version(root):
    """The version, if all files agree on it, and no tag has it yet."""
    version = settings(root)["version"]
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.search(r"^version: (.+)$", citation, re.MULTILINE)[1]
    if cited != version:
        raise NotReadyError(f"settings.ini says {version}, and CITATION.cff {cited}")
    if run("git", "tag", "--list", f"v{version}", cwd=root):
        raise NotReadyError(f"v{version} is a tag already: raise the version in settings.ini")
    return version


def check_changelog(root, version):
    """Raise where CHANGELOG.md does not tell of the version, or has no date for it."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## \[{re.escape(version)}\] - (\S+)$", text, re.MULTILINE)
    if found is None: raise NotReadyError(f"CHANGELOG.md has no entry [{version}]")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]):
        raise NotReadyError(f"CHANGELOG.md has no date for {version}, but {found[1]!r}")


# ---- what is built ------------------------------------------------------------------------------


def build(root, out):
    """A source distribution and a wheel from it, alone in a folder: their paths."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("metalit-*"), *out.glob("SHA256SUMS")]: old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, root, cwd=root)
    return sorted(out.glob("metalit-*"))


def offered(named):
    """The Pythons that are there, by version: of those named, and of PATH."""
    found = {}
    for version in PYTHONS:
        try: found[version] = find_python(version, named)
        except bootstrap.Problem: continue
    return found


def check_wheel(command, wheel, version, light, root):
    """Raise where the wheel does not work in an empty environment of this Python."""
    with tempfile.TemporaryDirectory() as folder:
        run(command, "-m", "venv", folder, cwd=folder)
        python = Path(folder, "bin/python")
        pip = (python, "-I", "-m", "pip", "install", "--quiet", "--no-input")
        if light:
            run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
            library, = Path(folder).glob("lib/*/site-packages/metalit")
            run(python, "-I", "-m", "compileall", "-q", library)
            said = run(python, "-I", "-c", "from importlib import metadata; "
                       "print(metadata.version('metalit'))", cwd=folder)
        else:
            run(*pip, "-c", root / "constraints.txt", wheel, cwd=folder)
            said = run(python, "-I", "-c", STEP, cwd=folder)
        if said != version: raise NotReadyError(f"the wheel says that it is {said}, not {version}")


def pack_site(root, out, version):
    """The built site as an archive; raise where there is none."""
    if not (root / "_site/index.html").is_file():
        raise NotReadyError("the site is not built: make site")
    path = out / f"metalit-{version}-site.tar.gz"
    with tarfile.open(path, "w:gz") as archive: archive.add(root / "_site", f"metalit-{version}")
    return path


def write_checksums(out):
    """SHA256SUMS, in the form that `sha256sum --check` reads."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
             for path in sorted(out.glob("metalit-*"))]
    (out / "SHA256SUMS").write_text("".join(lines))


def release(args, root):
    """All steps, in their order; `NotReadyError` at the first that fails."""
    check_clean(root)
    version = check_version(root)
    check_changelog(root, version)
    print(f"== {version}: the tree is clean, the version is new and told of", flush=True)
    if not args.no_tests and subprocess.run(["make", "test"], cwd=root).returncode:
        raise NotReadyError("the tests fail")
    wheel = next(path for path in build(root, args.out) if path.suffix == ".whl")
    for name, command in offered(args.pythons).items():
        check_wheel(command, wheel, version, args.light, root)
        print(f"== {wheel.name} works on Python {name}", flush=True)
    pack_site(root, args.out, version)
    write_checksums(args.out)
    print(f"== {args.out}:\n{(args.out / 'SHA256SUMS').read_text()}"
          f"To publish: git tag v{version} && git push origin v{version}")


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-tests", action="store_true", help="they have passed just now")
    parser.add_argument("--light", action="store_true", help="download nothing")
    parser.add_argument("--pythons", type=str.split, default=[], help="commands that start Pythons")
    parser.add_argument("--out", type=Path, default=root / "dist")
    args = parser.parse_args(arguments)
    try: release(args, root)
    except NotReadyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
