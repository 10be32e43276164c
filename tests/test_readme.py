"""README.md: its program runs, its tables are what results/ says, its files exist."""
import re
from pathlib import Path

import tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_programs_run(capsys):
    first, second, live = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict = {}
    exec(first.replace("steps=1000", "steps=50"), names)
    exec(second, names)
    exec(live.replace("widgets.sinusoid", "figure = widgets.sinusoid"), names)
    assert "message" not in names["figure"].picture
    printed = capsys.readouterr().out
    assert "inner steps      query loss" in printed
    assert "blind on shared curvature?" in printed


def test_tables_are_what_the_files_say():
    assert tables.filled(README, ROOT / "results") == README


def test_a_changed_figure_would_be_noticed():
    digit = re.search(r"(?<=0\.)\d\d(?= ±)", README[README.index("<!-- table: sinusoids -->"):])
    place = README.index("<!-- table: sinusoids -->") + digit.start()
    changed = README[:place] + ("1" if README[place] != "1" else "2") + README[place + 1:]
    assert tables.filled(changed, ROOT / "results") == README


def test_every_linked_file_exists():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
