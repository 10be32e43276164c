"""What people type, and the files that they point at: does each of it end in a sentence?

Command lines with something wrong in them, and files that are not what their name says, are given
to the command, in this process. Each must end with a result or be refused in words: no traceback,
no silence, no hang. Then folders of runs: kills, damage, other runs, two at once (see
`benchmarks.folders`). Counts are written to results/faults.json.
"""
from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

import metalit as ml
from metalit.cli import main as metalit

from . import folders, measure

# What no option is meant for, most of it
STRANGE = (
    "", " ", "-1", "0", "nan", "inf", "-inf", "1e400", "1e30", "2.5", "1_0", "9" * 25, str(2**63),
    "0x10", "\udcff", "a" * 300, "\0", "--", "-", "∞", "..", "/dev/null", "None", "[]", "{}",
    "meta", "cpu:5", "cuda:99", "mps", "hpu", "vulkan", "xla", "maml,", "mammal", "%s", "$HOME",
    "\n", "1,2", "1,,2", ",", "\x1b[31m", "１", "train", "--help", "true")
TRAIN = {
    "--method": ("maml", "reptile", "protonet", "anil"), "--ways": ("2",), "--shots": ("2",),
    "--queries": ("1",), "--steps": ("1",), "--inner-lr": ("0.01",), "--inner-steps": ("1", "2"),
    "--meta-lr": ("0.01",), "--schedule": ("constant", "linear"), "--batch-size": ("2",),
    "--init": ("finn",), "--filters": ("2",), "--pool": ("max",), "--protocol": ("vinyals",),
    "--size": ("16",), "--channels": ("1", "3"), "--white": ("255",), "--seed": ("0", "1"),
    "--device": ("cpu",), "--validate-every": ("1",), "--patience": ("1",), "--max-minutes": ("1",),
    "--save-every": ("1",), "--test-tasks": ("2",), "--root": ("data",), "--restart": (None,)}
EVALUATE = {"--tasks": ("2",), "--steps": ("0,1",), "--seed": ("0",), "--device": ("cpu",),
            "--one-by-one": (None,), "--root": ("data",)}
ADAPT = {"--points": ("points.csv",), "--predict": ("points.csv",), "--steps": ("0", "1")}
COMPARE = {"--methods": ("maml",), "--shots": ("2",), "--steps": ("1",), "--seeds": ("0",),
           "--inner-lr": ("0.01",), "--batch-size": ("2",), "--results": ("results.json",)}
SECONDS = 60  # what takes longer hangs


class Fault(AssertionError):
    """A command that ended in a traceback, in silence, or not at all."""


class Hang(BaseException):
    """It took too long; no `except Exception` holds it up."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """Inside, what takes longer than `SECONDS` is interrupted by `Hang`."""
    def on_alarm(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ended(argv: list[str]) -> str:
    """How a command line ended: "done", or "refused", in words.

    Raises:
        Fault: it ended otherwise.
    """
    try:
        with in_time():
            result = CliRunner().invoke(metalit, argv, prog_name="metalit")
    except Hang:
        raise Fault(f"metalit {argv} hangs") from None
    if not isinstance(result.exception, SystemExit | None):
        raise Fault(f"metalit {argv} ended in a traceback: {result.exception!r}"
                    ) from result.exception
    if "Traceback" in result.output or (result.exit_code and "Error: " not in result.output):
        raise Fault(f"metalit {argv} was not refused in words: {result.output[-300:]!r}")
    return "refused" if result.exit_code else "done"


def example(folder: Path) -> Path:
    """A folder with a short run, points and images, to go wrong with; returns the run's."""
    run = folder / "run"
    words = ["train", "sinusoids", "--steps", "2", "--batch-size", "2", "--test-tasks", "2",
             "--validate-every", "1", "--quiet", "--out", str(run)]
    assert ended(words) == "done"
    (folder / "points.csv").write_text("x,y\n0,1\n1,2\n")
    noise = np.random.default_rng(0)
    for c in range(20):
        (folder / "letters" / f"{c:02}").mkdir(parents=True)
        for i in range(3):
            pixels = noise.integers(256, size=(16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "letters" / f"{c:02}" / f"{i}.png")
    return run


# Arguments


def command_line(chance: random.Random, number: int) -> list[str]:
    """A command with some options, and something strange in one place or two."""
    kind = chance.choice(["train"] * 5 + ["evaluate", "adapt"] * 2 + ["compare"])
    small = {"--steps": "1", "--batch-size": "2", "--out": f"out{number}"}
    if kind == "train":
        family = chance.choice(["sinusoids"] * 3 + ["letters"])
        of_images = {"--ways": "2", "--queries": "1"} if family == "letters" else {}
        start, options, given = [kind, family, "--quiet"], TRAIN, {
            **small, "--test-tasks": "2", **of_images}
    elif kind == "compare":
        start, options, given = [kind, "--quiet"], COMPARE, {
            **small, "--methods": "maml", "--seeds": "0"}
    elif kind == "evaluate": start, options, given = [kind, "run"], EVALUATE, {"--tasks": "2"}
    else: start, options, given = [kind, "run"], ADAPT, {"--points": "points.csv"}
    for name in chance.sample(list(options), 2): given[name] = chance.choice(options[name])
    for name in chance.sample([*options, "--out"], chance.choice([0, 1, 1, 1, 2])):
        given[name] = chance.choice(STRANGE)
    line = start + [word for pair in given.items() for word in pair if word is not None]
    if chance.random() < 0.3: line[chance.randrange(2)] = chance.choice(STRANGE)
    if chance.random() < 0.2: line.insert(chance.randrange(len(line) + 1), chance.choice(STRANGE))
    return line


def arguments(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """How so many strange command lines ended; `folder`: that of an `example`."""
    chance = random.Random(seed)
    with inside(folder):
        return Counter(ended(command_line(chance, i)) for i in range(count))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Inside, this is the current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# Files


def settings_files(real: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    """What may stand in run.json and is none, with a name for each; `real` is one."""
    yield from {"empty": "", "a list": "[]", "null": "null", "a number": "3", "a word": '"run"',
                "cut short": json.dumps(real)[:40], "no JSON": "family: sinusoids",
                "bytes": b"\xff\xfe\x00{}", "deep": "[" * 100_000, "an empty table": "{}",
                "of another program": '{"name": "run-1", "config": {"lr": 0.1}, "seed": 7}',
                "a result": json.dumps({"metalit": "result", "method": "maml"}),
                "an old result": json.dumps({"method": "maml", "seed": 0, "status": "2 steps",
                                             "seconds": 1.0, "rows": []})}.items()
    for name in ("family", "method", "seed"):
        yield f"without {name}", json.dumps({k: v for k, v in real.items() if k != name})
    strange = {"a list": [], "a table": {}, "a word": "x", "a number as a word": "5",
               "below zero": -1, "a fraction": 2.5, "true": True, "large": 10**30,
               "beyond floats": 10**400, "long": "x" * 10_000, "half a letter": "\ud800",
               "infinite": float("inf"), "no number": float("nan")}
    for name in set(real) - {"version"}:
        for what, value in strange.items():
            if name == "meta_lr" and what in ("a fraction", "large"): continue  # odd, and possible
            yield f"{name} is {what}", json.dumps(real | {name: value})
    for name in ("family", "method", "seed", "metalit"):
        yield f"{name} is null", json.dumps(real | {name: None})
    yield "one setting more", json.dumps(real | {"colour": "red"})
    yield "another inner step size", json.dumps(real | {"inner_lr": 0.02})
    yield "another method", json.dumps(real | {"method": "anil"})


def special_files() -> dict[str, Callable[[Path], None]]:
    """What may stand in a file's place, and how it gets there."""
    return {"a folder": Path.mkdir, "a pipe": os.mkfifo,
            "a link to nowhere": lambda path: path.symlink_to("nowhere")}


def checkpoint_files(whole: bytes, folder: Path) -> Iterator[tuple[str, bytes]]:
    """What may stand in checkpoint.pt and is none of this run's."""
    yield from {"empty": b"", "text": b"no checkpoint", "cut short": whole[:-50],
                "half": whole[:len(whole) // 2], "twice": whole + whole}.items()
    others: dict[str, Any] = {"a tensor": torch.zeros(3), "a table": {"model": torch.zeros(3)},
                              "parameters only": {"metalit": 1, "J": {}}}
    for name, content in others.items():
        torch.save(content, folder / "other.pt")
        yield name, (folder / "other.pt").read_bytes()
    ml.save_checkpoint(folder / "other.pt", ml.models.mlp(1, 7, 1))
    yield "another model", (folder / "other.pt").read_bytes()


def table_files() -> dict[str, str | bytes]:
    """What may stand in a file of points and is none."""
    return {"empty": "", "only names": "x,y\n", "other names": "a,b\n1,2\n", "one column": "1\n2\n",
            "three columns": "1,2,3\n", "words": "x,y\n1,two\n", "a gap": "x,y\n1,\n",
            "ragged": "1,2\n3\n", "semicolons": "1;2\n3;4\n", "a comma in a number": "1,5,2,5\n",
            "not finite": "1,nan\n", "infinite": "1,inf\n", "too large": "1,1e39\n",
            "bytes": b"\xff\xfe1,2", "a zip": b"PK\x03\x04" + bytes(40), "a nul": "1,2\0\n",
            "a long cell": "x,y\n1," + "9" * 200_000 + "\n", "a quote": '1,"2\n3,4\n',
            "huge": "1e30,1e30\n2e30,3e30\n"}


def image_files() -> dict[str, Callable[[Path], Any]]:
    """What may stand in a file x.tif and is no image, and how it gets there."""
    grey = np.arange(256, dtype=np.float32).reshape(16, 16)
    colour = Image.new("RGB", (16, 16), "red")
    return {**special_files(), "empty": lambda path: path.write_bytes(b""),
            "text": lambda path: path.write_text("no image"),
            "negative": Image.fromarray(grey - 9).save,
            "not a number": Image.fromarray(grey * np.nan).save,
            "infinite": Image.fromarray(grey + np.inf).save,
            "negative whole": Image.fromarray(grey.astype(np.int32) - 9).save,
            "another colour space": colour.convert("LAB").save,
            "another size": colour.resize((9, 9)).save,
            "12 of 16 bits of colour": lambda path: path.write_bytes(sixteen_bit_colour(15))}


def sixteen_bit_colour(level: int) -> bytes:
    """A PNG of 16 × 16 pixels with 16 bits per colour, `level` being the upper 8 of them."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        sealed = kind + content
        return struct.pack(">I", len(content)) + sealed + struct.pack(">I", zlib.crc32(sealed))

    rows = (b"\0" + bytes([level, 255]) * 48) * 16
    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def put(path: Path, content: str | bytes | Callable[[Path], Any]) -> None:
    """Something in the place of a file."""
    if path.is_dir() and not path.is_symlink(): path.rmdir()
    path.unlink(missing_ok=True)
    if callable(content): content(path)
    elif isinstance(content, bytes): path.write_bytes(content)
    else: path.write_text(content, encoding="utf-8")


def refused(path: Path, content: Any, argv: list[str], name: str) -> None:
    """Raise `Fault` where a command does not refuse a file with this content."""
    whole = path.read_bytes()
    put(path, content)
    try:
        if ended(argv) != "refused": raise Fault(f"{path.name}, {name}: not refused by {argv}")
    finally:
        put(path, whole)


KINDS = ("run.json", "checkpoint.pt", "points", "images")


def files(folder: Path, of: Sequence[str] = KINDS) -> dict[str, int]:
    """How many files that are not what they seem were refused, by kind: all of them."""
    run = folder / "run"
    look = ["evaluate", str(run), "--tasks", "2", "--steps", "0"]
    learn = ["adapt", str(run), "--points", str(folder / "points.csv")]
    train = ["train", str(folder / "letters"), "--ways", "2", "--queries", "1", "--steps", "0",
             "--out", str(folder / "of-letters"), "--quiet"]
    settings, checkpoint = run / "run.json", run / "checkpoint.pt"
    real, whole = json.loads(settings.read_text()), checkpoint.read_bytes()
    kinds: dict[str, tuple[Path, list[str], dict[str, Any]]] = {
        "run.json": (settings, look, dict(settings_files(real)) | special_files()),
        "checkpoint.pt": (checkpoint, look,
                          dict(checkpoint_files(whole, folder)) | special_files()),
        "points": (folder / "points.csv", learn, table_files() | {"a folder": Path.mkdir}),
        "images": (folder / "letters" / "00" / "0.png", train,
                   {name: renamed(make) for name, make in image_files().items()})}
    for path, argv, contents in (kinds[kind] for kind in of):
        for name, content in contents.items(): refused(path, content, argv, name)
    return {kind: len(kinds[kind][2]) for kind in of}


def renamed(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """What makes an image in the place of a PNG: Pillow knows a TIFF by its content."""
    def at(path: Path) -> None:
        beside = path.with_suffix(".tif")
        make(beside)
        os.replace(beside, path)
    return at


def run(lines: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Try everything, and write results/faults.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        example(folder)
        by_end = arguments(folder, lines, seed)
        shutil.rmtree(folder)
        folder.mkdir()
        example(folder)
        hostile = files(folder)
    of_runs = folders.counted()
    record = {"what": "strange command lines, files that are not what they seem, and folders of "
              "runs that are killed, damaged or confused: none ended in a traceback, in silence, "
              "in a hang or in a mixture of two runs",
              "command": f"python -m benchmarks.faults --lines {lines}",
              "machine": measure.machine(),
              "versions": measure.versions("metalit", "torch", "click", "pillow"),
              "arguments": {"tried": lines, **by_end}, "files refused": hostile,
              "folders of runs": of_runs}
    print(f"{lines} command lines: {by_end['refused']} refused in words, {by_end['done']} done; "
          f"files refused: {hostile}")
    for name, count in of_runs.items(): print(f"{count:6} {name}")
    measure.write_json("faults", record)
    return record


def main() -> None:
    """Read the arguments and run."""
    options = measure.parser(__doc__ or "")
    options.add_argument("--lines", type=int, default=2000, help="how many command lines to try")
    found = measure.begin(options)
    if found: run(found.lines)


if __name__ == "__main__":
    main()
