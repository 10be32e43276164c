"""The container file and the conda files: they say what settings.ini and the Makefile say.

Neither docker nor conda is asked: what is read here is what would be run.
"""
import json
import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import check_sync
import jinja2
import pytest
import versions
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SETTINGS = check_sync.settings(ROOT)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # where conda-forge differs
ADDRESS = re.compile(r"https?:|\bwww\.|\.(com|org|io|net)\b|/(home|root|tmp|opt|work)/(?!reader)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    "The instructions of a container file, each with its words, and continued lines joined."
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = bare.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines if line.strip()]


CONTAINER = instructions(read("Containerfile"))


def words_of(kind: str) -> list[str]:
    return [words for name, words in CONTAINER if name == kind]


# ---- the container -------------------------------------------------------------------------------


def test_a_container_file_is_read():
    text = "# no\nFROM a\nRUN one \\\n && two  # three\n\nCMD [\"x\"]\n"
    assert instructions(text) == [("FROM", "a"), ("RUN", "one   && two  # three"),
                                  ("CMD", '["x"]')]


def test_the_container_has_the_newest_python_that_is_tested():
    assert words_of("ARG")[0] == f"PYTHON={versions.NEWEST}"
    assert words_of("FROM") == ["python:${PYTHON}-slim"]
    tested = json.loads(read("results/versions.json"))["environments"]
    assert any(one["python"].startswith(f"{versions.NEWEST}.") for one in tested)


def test_all_that_the_container_copies_is_there_and_the_set_up_has_what_it_needs():
    copies = [[word for word in shlex.split(words) if not word.startswith("--")]
              for words in words_of("COPY")]
    sources = [name for *names, _ in copies for name in names]
    assert all((ROOT / name).exists() for name in sources) and sources[-1] == "."
    before = {name for *names, _ in copies[:-1] for name in names}
    bootstrap = read("tools/bootstrap.py")
    pins = re.search(r"^PINS = \((.*)\)", bootstrap, re.MULTILINE)[1]
    assert set(re.findall(r'"([\w.]+)"', pins)) <= before
    assert {"Makefile", "pyproject.toml", "tools/bootstrap.py", "metalit/__init__.py"} <= before
    kinds = [kind for kind, _ in CONTAINER]
    setup = CONTAINER.index(("RUN", next(w for w in words_of("RUN") if "make setup" in w)))
    assert kinds.index("USER") < setup < len(kinds) - kinds[::-1].index("COPY") - 1


@pytest.mark.parametrize("words", words_of("RUN"))
def test_every_line_of_the_container_is_shell(words):
    subprocess.run(["bash", "-n", "-c", words], check=True)
    assert set(re.findall(r"(?:^|&& *)make ([a-z-]+)", words)) <= TARGETS


def test_the_container_calls_make_as_the_makefile_can_be_called():
    make, target, *variables = json.loads(words_of("CMD")[0])
    assert make == "make" and target == "lab" and target in TARGETS
    known = set(re.findall(r"\$\((\w+)\)", MAKEFILE))
    assert {variable.partition("=")[0] for variable in variables} <= known
    assert "LAB_IP=0.0.0.0" in variables and "LAB_IP ?= 127.0.0.1" in MAKEFILE
    dry = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True,
                         text=True, check=True).stdout
    assert dry.count("--ServerApp.ip=") == 1 and "--ServerApp.ip=0.0.0.0" in dry
    assert "token" not in dry and "password" not in dry          # JupyterLab's own stay on
    assert words_of("USER") == ["reader"] and words_of("EXPOSE") == ["8888"]
    said = re.findall(r"^#\s+docker run .*metalit(?: make (\w+))?", read("Containerfile"),
                      re.MULTILINE)
    assert said == ["", "test"] and "test" in TARGETS


def test_nothing_that_can_be_made_again_goes_into_the_container():
    left_out = [line.removeprefix("**/") for line in read(".dockerignore").splitlines()
                if line and not line.startswith("#")]
    again = [line.strip("/") for line in read(".gitignore").splitlines()
             if line and not line.startswith("#")]
    assert set(again) <= set(left_out)
    if shutil.which("git") is None: pytest.skip("git is not installed: it tells our files")
    ours = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tops = {name.partition("/")[0] for name in ours.stdout.splitlines()}
    assert not [top for top in tops for pattern in left_out if fnmatch(top, pattern)]


def test_the_node_of_debian_reads_our_scripts():
    "Node 18 takes a script for a module only where a file says so."
    assert json.loads(read("package.json"))["type"] == "module"


# ---- conda ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe() -> dict:
    text = jinja2.Template(read("conda/recipe/meta.yaml"), undefined=jinja2.StrictUndefined)
    return yaml.safe_load(text.render(PYTHON="python"))


def test_the_recipe_says_what_the_settings_say(recipe):
    assert recipe["package"] == {"name": SETTINGS["lib_name"], "version": SETTINGS["version"]}
    needed = [Requirement(words) for words in SETTINGS["requirements"].split()]
    named = [f"{CONDA_NAMES.get(one.name, one.name)} {one.specifier}".strip() for one in needed]
    python = f"python >={SETTINGS['min_python']}"
    assert recipe["requirements"]["run"] == [python, *named]
    build, = re.findall(r'requires = \["(\w+)(>=\d+)"\]', read("pyproject.toml"))
    assert recipe["requirements"]["host"] == [python, "pip", " ".join(build)]
    assert recipe["build"]["entry_points"] == [SETTINGS["console_scripts"].replace("=", " = ")]
    assert recipe["about"]["summary"] == SETTINGS["description"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()
    assert (ROOT / "conda/recipe" / recipe["source"]["path"]).resolve() == ROOT


def test_what_the_recipe_tests_is_there(recipe):
    for module in recipe["test"]["imports"]:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    # Live figures need a package that the recipe does not bring.
    assert not {"metalit.widgets"} & set(recipe["test"]["imports"])
    assert "anywidget" not in recipe["requirements"]["run"]
    for command in (recipe["build"]["script"], *recipe["test"]["commands"]):
        subprocess.run(["bash", "-n", "-c", command], check=True)
    assert recipe["test"]["commands"][0] == "metalit --help"


def test_the_environment_has_what_make_calls():
    environment = yaml.safe_load(read("conda/environment.yml"))
    assert environment["dependencies"][0] == f"python={versions.NEWEST}"
    assert {"git", "make", "nodejs", "cxx-compiler"} < set(environment["dependencies"])
    said = re.findall(r"^#     (.*)", read("conda/environment.yml"), re.MULTILINE)
    assert said == ["conda env create -f conda/environment.yml",
                    f"conda activate {environment['name']}", "make lab"]


@pytest.mark.parametrize("name", ["Containerfile", ".dockerignore", "conda/environment.yml",
                                  "conda/recipe/meta.yaml"])
def test_no_address_and_no_place_of_a_machine_is_named(name):
    found = ADDRESS.search(read(name).replace("/dev/null", ""))
    assert not found, found[0]
