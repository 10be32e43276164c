"""Print what took longest: notebooks (run_notebooks.py --times), and tests (pytest --junitxml).

    python tools/slowest.py FOLDER

FOLDER holds the notebooks' times as .txt files, and pytest's reports as .xml files.
"""

import heapq
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

NOT_PASSED = ("skipped", "failure", "error")


def tests(report):
    """The tests of a pytest report: name, seconds, and passed, skipped, failure or error."""
    for case in ET.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in NOT_PASSED), "passed")
        place = case.get("classname").replace(".", "/")
        # A file that cannot be collected is a case without a class.
        name = f"{place}.py::{case.get('name')}" if place else case.get("name")
        yield name, float(case.get("time")), outcome


def write_times(path, times):
    """Keep the seconds that each of some things took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{seconds:.3f} {name}\n" for name, seconds in times.items()))


def read_times(path):
    lines = (line.split(" ", 1) for line in path.read_text().splitlines())
    return {name: float(seconds) for seconds, name in lines}


def listed(times, count=10):
    """The lines of the slowest, the slowest first."""
    slowest = heapq.nlargest(count, times.items(), key=lambda item: item[1])
    return "\n".join(f"{seconds:8.1f} s  {name}" for name, seconds in slowest)


def main(folder):
    notebooks, slow_tests = {}, {}
    for path in sorted(folder.glob("*.txt")):
        notebooks |= read_times(path)
    for path in sorted(folder.glob("*.xml")):
        slow_tests |= {name: seconds for name, seconds, _ in tests(path)}
    for what, times in (("notebooks", notebooks), ("tests", slow_tests)):
        print(f"slowest {what}:" if times else f"no {what} were timed")
        if times: print(listed(times))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
