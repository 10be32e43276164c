"""versions.py and slowest.py: what is read from the reports of pytest, and what is made of it."""

import json
import re
import shutil
import sys
from pathlib import Path

import bootstrap
import pytest
import slowest
import versions

ROOT = Path(__file__).parent.parent

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_quick" time="0.004" />
<testcase classname="tests.browser.test_b" name="test_slow[1]" time="7.25" />
<testcase classname="tests.test_a" name="test_wrong" time="0.5"><failure /></testcase>
<testcase classname="tests.test_a" name="test_broken" time="0.5"><error /></testcase>
<testcase classname="tests.test_a" name="test_left_out" time="0"><skipped /></testcase>
<testcase classname="" name="tests.test_c" time="0"><error /></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def report(tmp_path) -> Path:
    path = tmp_path / "pytest.xml"
    path.write_text(REPORT)
    return path


# ---- slowest.py --------------------------------------------------------------------------------


def test_tests_are_named_as_pytest_names_them(report):
    assert list(slowest.tests(report))[:3] == [
        ("tests/test_a.py::test_quick", 0.004, "passed"),
        ("tests/browser/test_b.py::test_slow[1]", 7.25, "passed"),
        ("tests/test_a.py::test_wrong", 0.5, "failure"),
    ]


def test_the_ten_slowest_come_first_of_all_files(report, capsys):
    folder = report.parent
    slowest.write_times(folder / "a.txt", {f"nbs/{i:02} a.ipynb": i / 2 for i in range(12)})
    slowest.write_times(folder / "b.txt", {Path("nbs/b.ipynb"): 4.75})
    assert slowest.main(folder) == 0
    notebooks, tests = capsys.readouterr().out.split("slowest tests:\n")
    listed = re.findall(r"^ +(\d+\.\d) s  (.*)$", notebooks, re.MULTILINE)
    assert listed[:3] == [("5.5", "nbs/11 a.ipynb"), ("5.0", "nbs/10 a.ipynb"),
                          ("4.8", "nbs/b.ipynb")]
    assert len(listed) == 10
    assert tests.splitlines()[0] == "     7.2 s  tests/browser/test_b.py::test_slow[1]"


def test_what_was_not_timed_is_said(tmp_path, capsys):
    assert slowest.main(tmp_path / "nothing") == 0
    assert capsys.readouterr().out == "no notebooks were timed\nno tests were timed\n"


# ---- versions.py -------------------------------------------------------------------------------


def test_an_outcome_counts_and_names_what_failed(report):
    assert versions.outcome(report, 1) == {
        "passed": 2,
        "failed": 3,
        "skipped": 1,
        "failures": ["tests/test_a.py::test_wrong", "tests/test_a.py::test_broken", "tests.test_c"],
    }


@pytest.mark.parametrize("code", [0, 1, 2, 4, -9])
def test_a_run_without_a_report_failed(tmp_path, code):
    outcome = versions.outcome(tmp_path / "none.xml", code)
    assert outcome["failures"] == [f"pytest ended with code {code} after 0 tests"]
    assert outcome["failed"] == 1


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_ended_otherwise_than_its_report_says_failed(report, code):
    failures = versions.outcome(report, code)["failures"]
    assert failures[-1] == f"pytest ended with code {code} after 6 tests"


def test_oldest_and_newest_are_what_the_settings_say(tmp_path):
    (tmp_path / "settings.ini").write_text(
        "[DEFAULT]\nmin_python = 3.11\nrequirements = numpy torchvision>=0.2 torch>=2.9.1 tqdm\n"
    )
    assert versions.bounds(tmp_path) == ("3.11:2.9.1", f"{versions.NEWEST}:")
    assert versions.bounds(ROOT)[0].startswith("3.10:")


def test_torch_and_what_comes_with_it_is_not_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    free = {re.split("[-=]", pin)[0] for pin in pins if versions.WITH_TORCH.match(pin)}
    assert free == {"torch", "triton", "sympy", "setuptools", "nvidia", "cuda"}
    assert not versions.WITH_TORCH.match("torchopt==0.7.3")


def test_a_python_is_found_by_what_it_says():
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert versions.find_python(this, ["/no/such/python", sys.executable]) == sys.executable


def test_a_missing_python_is_named_before_anything_is_made(tmp_path, capsys):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    assert versions.main(["2.1:", "--pythons", sys.executable], tmp_path) == 1
    assert "Python 2.1 is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.ini"]


def test_a_failed_installation_is_explained(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("click==8.5.1\ntorch==2.13.0\n")
    monkeypatch.setattr(versions.subprocess, "run", lambda command, **_: Path(command[-1]).mkdir())
    monkeypatch.setattr(bootstrap, "run", lambda *_, **__: (1, "errno 28"))
    with pytest.raises(bootstrap.Problem, match="the disk is full"):
        versions.install("python", "3.10", "2.9.1", tmp_path)
    place = tmp_path / ".cache/versions/python3.10-torch2.9.1"
    assert (place / "constraints.txt").read_text() == "click==8.5.1\n"


@pytest.mark.parametrize("failures", [[], ["tests/test_a.py::test_wrong"]])
def test_the_outcome_is_written_and_told(tmp_path, monkeypatch, capsys, failures):
    (tmp_path / "results").mkdir()
    record = {"python": "3.10.13", "torch": "2.9.1", "passed": 9, "skipped": 2}
    record |= {"failed": len(failures), "failures": failures}
    monkeypatch.setattr(versions, "find_python", lambda version, named: f"python{version}")
    monkeypatch.setattr(versions, "install", lambda *choice: choice[:3])
    monkeypatch.setattr(versions, "test", lambda python, *_: record | {"made of": python})
    assert versions.main(["3.10:2.9.1", "3.13:"], tmp_path) == len(failures)
    written = json.loads((tmp_path / "results/versions.json").read_text())["environments"]
    made_of = [tuple(environment.pop("made of")) for environment in written]
    assert made_of == [("python3.10", "3.10", "2.9.1"), ("python3.13", "3.13", "")]
    assert written == [record, record]
    assert "torch 2.9.1: 9 passed, " in capsys.readouterr().out
