"""What people type, and the files that they point at: all of it ends in a sentence."""
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "With a short run, a file of points and images."
    place = tmp_path_factory.mktemp("faults")
    faults.example(place)
    return place


@pytest.mark.parametrize("seed", range(3))
def test_a_strange_command_line_is_refused_in_words_or_works(tmp_path, folder, seed):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    ends = faults.arguments(tmp_path, 20, seed + 100)
    assert ends.total() == 20 and ends["refused"] > 10


@pytest.mark.parametrize(("kind", "least"),
                         [("run.json", 150), ("checkpoint.pt", 12), ("points", 20), ("images", 12)])
def test_a_file_that_is_not_what_it_seems_is_refused_in_words(folder, kind, least):
    assert faults.files(folder, [kind])[kind] >= least


def test_the_page_of_results_says_what_they_say():
    root = Path(__file__).parent.parent
    found = json.loads((root / "results" / "faults.json").read_text(encoding="utf-8"))
    lines, files = found["arguments"], sum(found["files refused"].values())
    readme = (root / "results/README.md").read_text(encoding="utf-8")
    assert lines["tried"] == lines["done"] + lines["refused"]
    assert (f"Of {lines['tried']:,} command lines with something strange in them, {lines['done']} "
            f"could be done; the others, and {files} files"
            ) in readme
    runs, told = found["folders of runs"], " ".join(readme.split())
    assert all(runs[done] == runs[of] for done, of in (
        ("kills survived", "of kills"), ("other runs noticed", "of other runs"),
        ("damaged files refused or harmless", "of damaged files"),
        ("pairs of which one trained", "of pairs")))
    assert (f"Of {runs['of kills']} runs killed at any moment each went on bit for bit; "
            f"{runs['of damaged files']:,} damaged checkpoints were refused or harmless, "
            f"{runs['of other runs']} other runs in a run's folder were noticed; and of "
            f"{runs['of pairs']} pairs of processes") in told


def test_a_traceback_silence_and_a_hang_are_found_out(monkeypatch):
    def wrong(error):
        def convert(*arguments):
            if error: raise error
            while True: pass
        return convert
    monkeypatch.setattr("metalit.cli.read_settings", wrong(KeyError("oh")))
    with pytest.raises(faults.Fault, match="traceback: KeyError"): faults.ended(["evaluate", "x"])
    monkeypatch.setattr("metalit.cli.read_settings", wrong(None))
    monkeypatch.setattr("benchmarks.faults.SECONDS", 0.1)
    with pytest.raises(faults.Fault, match="hangs"): faults.ended(["evaluate", "x"])
    monkeypatch.setattr("metalit.cli.read_settings", wrong(SystemExit(3)))
    with pytest.raises(faults.Fault, match="not refused in words"): faults.ended(["evaluate", "x"])
