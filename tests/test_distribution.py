"""What a user installs: a wheel made from the source distribution, without the repository."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import check_sync
import pytest
import yaml

ROOT = Path(__file__).parent.parent
SETTINGS = check_sync.settings(ROOT)
NAME = f"{SETTINGS['lib_name']}-{SETTINGS['version']}"

SMOKE_TEST = """
import torch, torch.nn.functional as F
import metalit as ml
from metalit import widgets

model = ml.models.mlp(1, 5, 1, activation=torch.nn.Tanh, seed=2).double()
task = ml.tasks.Sinusoids(shots=4, queries=3).batch(3, seed=1).to(dtype=torch.float64)
weights = [w.detach().clone().requires_grad_() for w in model.parameters()]

def loss(w, x, y):
    return F.mse_loss(torch.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3], y)

total = 0
for i in range(3):
    gradients = torch.autograd.grad(
        loss(weights, task.support.x[i], task.support.y[i]), weights, create_graph=True
    )
    adapted = [w - 0.1 * g for w, g in zip(weights, gradients)]
    total = total + loss(adapted, task.query.x[i], task.query.y[i])
by_hand = total / 3
by_hand.backward()

J = ml.MAML(model, F.mse_loss, lr=0.1, steps=1)
value = J(task)
value.backward()
torch.testing.assert_close(value, by_hand, rtol=0, atol=1e-12)
for parameter, w in zip(J.parameters(), weights, strict=True):
    torch.testing.assert_close(parameter.grad, w.grad, rtol=0, atol=1e-12)

assert "function" in widgets.sinusoid()._esm
assert "message" not in widgets.episode().picture
print(ml.__version__, ml.__file__)
"""


def run(*command: object, cwd: Path) -> str:
    """What a command prints; it must succeed, whatever Python and pip are told elsewhere."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ours | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of what `python -m build` makes from a copy of what git holds or would hold."""
    if shutil.which("git") is None: pytest.skip("git is not installed: it tells our files")
    list_files = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    for name in filter(None, run(*list_files, cwd=ROOT).split("\0")):
        if not (ROOT / name).is_file(): continue  # removed, and git does not know yet
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    # A source distribution, then a wheel from nothing but that.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return out


@pytest.fixture(scope="module")
def sdist(built) -> Path:
    return built / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    """What the wheel says about itself."""
    with zipfile.ZipFile(wheel) as archive:
        return HeaderParser().parsestr(archive.read(f"{NAME}.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel in it; what that needs is found where the tests find it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but .pth files in it are not read: no editable install is.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install")
    run(*pip, "--isolated", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder


def test_the_source_distribution_holds_what_a_wheel_is_made_from(sdist):
    with tarfile.open(sdist) as archive: names = set(archive.getnames())
    needed = ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    told = ("CHANGELOG.md", "CITATION.cff", "metalit/py.typed")
    assert {f"{NAME}/{name}" for name in needed + told} <= names
    assert not [name for name in names if name.startswith((f"{NAME}/tests", f"{NAME}/nbs"))]


def test_the_wheel_holds_the_library_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive: names = set(archive.namelist())
    info = f"{NAME}.dist-info/"
    files = [path for path in (ROOT / "metalit").rglob("*") if path.is_file()]
    ours = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts}
    assert {name for name in names if not name.startswith(info)} == ours
    assert info + "licenses/LICENSE" in names


def test_the_metadata_are_those_of_the_settings(metadata):
    assert (metadata["Name"], metadata["Version"]) == (SETTINGS["lib_name"], SETTINGS["version"])
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == f">={SETTINGS['min_python']}"
    assert metadata["Summary"] == SETTINGS["description"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.get_payload().strip() == readme.strip()


def test_what_is_required_always_and_what_on_request(metadata):
    required = metadata.get_all("Requires-Dist")
    assert sum("extra ==" not in line for line in required) == len(SETTINGS["requirements"].split())
    assert "torch" in {re.match(r"[\w-]+", line)[0] for line in required if "extra ==" not in line}
    extras = {"dev", "site", "bench", "data", "design", "widgets", "tensorboard"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    for extra in extras: assert any(f'extra == "{extra}"' in line for line in required), extra
    sphinx = [line for line in required if line.startswith("sphinx==")]
    assert sphinx and all('python_version >= "3.11"' in line for line in sphinx)


def test_a_meta_step_and_the_figures_without_the_repository(environment, tmp_path):
    (tmp_path / "smoke_test.py").write_text(SMOKE_TEST)
    printed = run(environment / "bin/python", "-W", "error", "smoke_test.py", cwd=tmp_path)
    version, found = printed.strip().split(" ", 1)
    assert version == SETTINGS["version"]
    assert Path(found).is_relative_to(environment), f"not the wheel was tried, but {found}"


def test_the_command_trains_without_the_repository(environment, tmp_path):
    command = environment / "bin/metalit"
    version = run(command, "--version", cwd=tmp_path).split()[-1]
    assert version == SETTINGS["version"]
    few = ("--steps", 2, "--batch-size", 2, "--test-tasks", 4, "--quiet")
    printed = run(command, "train", "sinusoids", *few, "--out", "a run", cwd=tmp_path)
    assert "Table: a run/evaluation.csv" in printed
    written = {path.name for path in (tmp_path / "a run").iterdir()}
    assert written >= {"run.json", "log.csv", "checkpoint.pt", "evaluation.csv", "adaptation.png"}


# ---- what is said about a version ----------------------------------------------------------------


def versions_of_changelog() -> list[tuple[str, str]]:
    """The versions that CHANGELOG.md tells of, each with its date, in the order of the file."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    form = re.compile(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|unreleased)")
    found = [form.fullmatch(heading) for heading in headings]
    assert all(found), headings
    return [(match[1], match[2]) for match in found]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_the_changelog_tells_of_this_version():
    versions = versions_of_changelog()
    assert SETTINGS["version"] in dict(versions)
    order = [numbers(version) for version, _ in versions]
    assert order == sorted(set(order), reverse=True)  # the newest first, each once
    assert "unreleased" not in [date for _, date in versions[1:]]
    for version, date in versions:
        if numbers(version) > numbers(SETTINGS["version"]): assert date == "unreleased"


def test_the_changelog_has_the_usual_headings():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    usual = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= usual


def test_the_citation_agrees_with_the_settings():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # these must be there
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == SETTINGS["version"]
    assert citation["title"] == SETTINGS["title"]
    assert citation["abstract"] == SETTINGS["description"]
    assert citation["authors"] == [{"name": SETTINGS["author"]}]
    assert citation["license"] == "Apache-2.0"
    assert citation["repository-code"] == SETTINGS["git_url"]
    assert citation["keywords"] == SETTINGS["keywords"].split()[:4]
