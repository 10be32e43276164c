"""`make release`: each thing that a release must not have is found, and nothing is published."""
import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import release
import yaml
from release import NotReadyError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path):
    "A project under git that is ready."
    root = tmp_path / "project"
    root.mkdir()
    (root / "settings.ini").write_text("[DEFAULT]\nversion = 1.2.0\n")
    (root / "CITATION.cff").write_text("title: x\nversion: 1.2.0\n")
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0] - 2026-01-31\n")
    me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    for command in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


def test_a_project_that_is_ready(project):
    release.check_clean(project)
    assert release.check_version(project) == "1.2.0"
    release.check_changelog(project, "1.2.0")


def test_a_file_that_is_not_committed_is_named(project):
    (project / "CITATION.cff").write_text("version: 1.2.0\n")
    with pytest.raises(NotReadyError, match=r"1 files are not committed, such as CITATION\.cff"):
        release.check_clean(project)


def test_a_version_that_is_not_the_same_everywhere_or_not_new(project):
    (project / "CITATION.cff").write_text("version: 1.1.0\n")
    with pytest.raises(NotReadyError, match=r"says 1\.2\.0, and CITATION\.cff 1\.1\.0"):
        release.check_version(project)
    (project / "CITATION.cff").write_text("version: 1.2.0\n")
    subprocess.run(["git", "tag", "v1.2.0"], cwd=project, check=True)
    with pytest.raises(NotReadyError, match=r"v1\.2\.0 is a tag already"):
        release.check_version(project)


@pytest.mark.parametrize(("version", "message"), [
    ("1.3.0", r"no entry \[1\.3\.0\]"), ("1.4.0", "no date for 1.4.0, but 'unreleased'")])
def test_a_version_that_the_changelog_does_not_tell_of(project, version, message):
    (project / "CHANGELOG.md").write_text("## [1.4.0] - unreleased\n\n## [1.2.0] - 2026-01-31\n")
    with pytest.raises(NotReadyError, match=message): release.check_changelog(project, version)


def test_the_site_is_packed_and_all_files_have_checksums(tmp_path):
    with pytest.raises(NotReadyError, match="make site"):
        release.pack_site(tmp_path, tmp_path, "1.2.0")
    (tmp_path / "_site").mkdir()
    (tmp_path / "_site/index.html").write_text("<p>")
    out = tmp_path / "dist"
    out.mkdir()
    (out / "notes.txt").write_text("a person's own")
    path = release.pack_site(tmp_path, out, "1.2.0")
    with tarfile.open(path) as archive: assert "metalit-1.2.0/index.html" in archive.getnames()
    release.write_checksums(out)
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    assert (out / "SHA256SUMS").read_text() == line


def test_what_is_built_takes_the_place_of_what_was_and_of_nothing_else(tmp_path, monkeypatch):
    for name in ("metalit-0.1.0.tar.gz", "SHA256SUMS", "notes.txt"):
        (tmp_path / name).write_text("")
    new = tmp_path / "metalit-1"
    monkeypatch.setattr(release, "run", lambda *command, cwd: new.write_text(""))
    assert release.build(ROOT, tmp_path) == [new]
    assert {path.name for path in tmp_path.iterdir()} == {"metalit-1", "notes.txt"}


def test_a_command_that_fails_says_how():
    with pytest.raises(NotReadyError, match=r"(?s)failed:.*no such thing"):
        release.run(sys.executable, "-c", "raise SystemExit('no such thing')")


def test_a_tree_that_is_not_ready_ends_with_a_sentence(project, capsys):
    (project / "new.txt").write_text("")
    assert release.main(["--no-tests", "--light"], project) == 1
    assert capsys.readouterr().err.startswith("error: 1 files are not committed, such as new.txt")


# ---- the workflows -----------------------------------------------------------------------------


def workflow(name):
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["site", "release"])
def test_every_action_is_pinned_and_may_do_no_more_than_it_must(name):
    flow = workflow(name)
    assert flow["permissions"] == {"contents": "read"}
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", action) for action in used)


def test_only_a_tag_publishes_and_no_password_is_needed():
    flow = workflow("release")
    assert flow[True] == {"push": {"tags": ["v*"]}}          # YAML reads `on` as True
    assert flow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text and "password:" not in text
    release_py = (ROOT / "tools/release.py").read_text(encoding="utf-8")
    assert "twine" not in release_py and '"push"' not in release_py
