"""Make .venv from the pinned releases and install the project into it, unless that is done.

    PYTHON tools/bootstrap.py [--exact]

With --exact, .venv must run on the very version of PYTHON; without it, a good .venv made by
another Python is kept. Safe to interrupt and to repeat: .venv/metalit.json says how far it got.

This file runs before anything is known about the interpreter. It uses the standard library only
and must stay readable by very old Pythons, down to 2.7, so that they can say that they are old.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What decides the content of .venv: when one of these changes, pip runs again.
PINS = ("constraints.txt", "settings.ini", "setup.py")

NETWORK = re.compile(
    "connection broken by|failed to establish a new connection|name resolution|name or service not"
    "|nodename nor servname|getaddrinfo failed|network is unreachable|connection refused"
    "|connection reset|remote end closed|incompleteread|max retries exceeded|timed out"
    "|timeouterror|proxyerror|sslerror|ssl certificate|failed to connect|connection error",
    re.IGNORECASE,
)


class Problem(Exception):
    """Something the user can mend; its text is all that they need to see."""


def check_version(found, minimum, executable):
    if tuple(found[:2]) < tuple(minimum):
        need = ".".join(map(str, minimum))
        raise Problem(
            "Python %s or newer is needed, but %s is Python %s.\n"
            "Name a newer one, for example: make lab PYTHON=python3.12"
            % (need, executable, ".".join(map(str, found[:3])))
        )


def check_venv_modules(version=sys.version_info):
    """Debian and Ubuntu ship Python without the modules that make a virtual environment."""
    for name in ("venv", "ensurepip"):
        try:
            __import__(name)
        except ImportError:
            package = "python%d.%d-venv" % tuple(version[:2])
            raise Problem(
                "%s has no module `%s`, so it cannot make a virtual environment.\n"
                "On Debian or Ubuntu: apt install %s (or python3-venv)"
                % (sys.executable, name, package)
            )


def minimum_python(root):
    with open(os.path.join(root, "settings.ini")) as file:
        found = re.search(r"^min_python\s*=\s*(\d+)\.(\d+)", file.read(), re.MULTILINE)
    return int(found.group(1)), int(found.group(2))


def explain_pip(output):
    """The likely reason of a failed pip run, told from what it wrote to stderr."""
    if re.search("no space left on device|errno 28", output, re.IGNORECASE):
        return "the disk is full"
    not_found = re.search("no matching distribution found for (.*)", output, re.IGNORECASE)
    # With no index, pip sees only what is installed already, and calls that a conflict.
    unresolved = not_found or "ResolutionImpossible" in output
    # A retry that succeeded leaves a warning too, so a warning alone proves nothing: either an
    # error line names the trouble, or something could not be found after it.
    errors = "\n".join(line for line in output.splitlines() if not line.startswith("WARNING"))
    if NETWORK.search(errors) or (unresolved and NETWORK.search(output)):
        return (
            "no network: pip could not reach its package index.\n"
            "Check the connection, and the proxy and index settings (pip config list)"
        )
    if not_found:
        return "there is no release of %s for Python %d.%d on this machine" % (
            (not_found.group(1).strip(),) + tuple(sys.version_info[:2])
        )
    return "see the messages of pip above"


def run(command, **kwargs):
    """Run a command; show its stderr as it comes, and return its exit code and that stderr."""
    # The child inherits our lock (close_fds=False): should this process be killed outright, the
    # next one waits for the orphan instead of working in the same folder.
    child = subprocess.Popen(command, stderr=subprocess.PIPE, close_fds=False, **kwargs)
    lines = []
    try:
        for line in iter(child.stderr.readline, b""):
            text = line.decode("utf-8", "replace")
            sys.stderr.write(text)
            lines.append(text)
        return child.wait(), "".join(lines)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def pip_install(python, root, *arguments):
    # -I: a PYTHONPATH of the user's must not pass for installed packages.
    command = [python, "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    command += ["-c", "constraints.txt"]
    code, output = run(command + list(arguments), cwd=root, env=env)
    if code:
        raise Problem("pip failed: " + explain_pip(output))


class Venv:
    def __init__(self, root):
        self.root = root
        self.path = os.path.join(root, ".venv")
        self.python = os.path.join(self.path, "bin", "python")
        self.state_file = os.path.join(self.path, "metalit.json")

    def read_state(self):
        try:
            with open(self.state_file) as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write_state(self, **state):
        with open(self.state_file + ".new", "w") as file:
            json.dump(state, file)
        os.rename(self.state_file + ".new", self.state_file)  # whole or not at all

    def version(self):
        """The version its interpreter reports, or None where there is none that starts."""
        try:
            code = "import sys; print(sys.version.split()[0])"
            return subprocess.check_output([self.python, "-I", "-c", code]).decode().strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    def remove(self):
        old = self.path + ".old"
        if os.path.lexists(self.path):
            if not os.path.isfile(self.state_file) and (
                os.path.islink(self.path) or os.listdir(self.path)
            ):
                raise Problem(
                    "%s is there already and was not made by this command.\n"
                    "Move it away, or remove it, and try again" % self.path
                )
            shutil.rmtree(old, ignore_errors=True)
            # Renamed first: a removal that is interrupted must not leave half an environment.
            os.rename(self.path, old)
        shutil.rmtree(old, ignore_errors=True)

    def create(self):
        check_venv_modules()
        self.remove()
        os.mkdir(self.path)
        self.write_state(unfinished=True)
        print("Making .venv with Python " + sys.version.split()[0])
        sys.stdout.flush()
        code, _ = run([sys.executable, "-m", "venv", self.path])
        if code:
            raise Problem("%s -m venv failed, see above" % sys.executable)


def fingerprint(root):
    digest = hashlib.sha256()
    for name in PINS:
        with open(os.path.join(root, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def ensure(root, exact):
    """Bring .venv up to date. True if something had to be done."""
    venv = Venv(root)
    state, this, pins = venv.read_state(), sys.version.split()[0], fingerprint(root)
    # A moved checkout needs a new .venv: the scripts in it hold absolute paths.
    # An unfinished one has no root on record.
    good = (
        state.get("root") == root
        and state.get("python") == venv.version()
        and (not exact or state.get("python") == this)
    )
    if good and state.get("pins") == pins:
        return False
    if not good:
        venv.create()
        state = {}
    venv.write_state(unfinished=True)
    print("Installing the pinned packages into .venv (the first time, this takes a while)")
    sys.stdout.flush()
    try:
        # The build tool first: it is pinned too, so no unpinned one may be fetched for the build.
        pip_install(venv.python, root, "setuptools")
        pip_install(venv.python, root, "--no-build-isolation", "-e", ".[dev]")
    except Problem:
        # pip fetches everything before it touches anything, so an environment that was good
        # still is; only its pins are old.
        if state:
            venv.write_state(**state)
        raise
    venv.write_state(root=root, python=venv.version(), pins=pins)
    print("Ready: .venv with Python " + venv.version())
    return True


def lock(root):
    """Two commands at once must not fill the same .venv: the second one waits for the first."""
    import fcntl  # here, because a Python that is too old or on Windows gets its message first

    # Any file that is always there; the lock lasts until it is closed.
    file = open(os.path.join(root, "settings.ini"))  # noqa: SIM115
    os.set_inheritable(file.fileno(), True)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Waiting for another command that is setting up .venv")
        sys.stdout.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def main(arguments, root=ROOT):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `run` ends its child
    try:
        check_version(sys.version_info, minimum_python(root), sys.executable)
        held = lock(root)
        ensure(root, exact="--exact" in arguments)
        held.close()
        return 0
    except Problem as problem:
        sys.stderr.write("\nerror: %s\n" % problem)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command again to go on.\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
