"""Move or renumber chapters: the file, its equations, and all that names it, in one command.

    python tools/move_chapter.py [--root ROOT] OLD NEW [OLD NEW ...]

OLD and NEW are names of chapters as the project writes them: their paths below nbs/ without the
suffix, `14_gears` or `tools/64_gears`. Several moves happen at once, so two chapters can
exchange their numbers. What changes:

- the file (by `git mv`, where it is under git);
- links between notebooks, and relative paths in the moved notebook;
- its equation tags `\\tag{14.2}`, and "equation (14.2)" or "$(14.2)$" in any notebook;
- its name everywhere else: tests, tools, results, README. There, too, it is the whole name;
- the library, which is exported again, since it names the notebooks that it comes from.

All is checked before anything is written. Moves of a chapter are commits of their own: then
`git log --follow` still finds its history.
"""

import argparse
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

from check_sync import BrokenError, nbdev, notebooks_in, settings

TEXTS = {".ipynb", ".py", ".md", ".json", ".toml", ".ini", ".cfg", ".yml", ".yaml", ".txt", ".js",
         ".mjs", ".css", ".in", ".html", ""}
NAME = re.compile(r"(?:[a-z0-9_]+/)*(\d\d[a-z]?)_[a-z0-9_]+")
PART = re.compile(r"(?:^|/)\d_[a-z_]+/(?:[a-z_]+/)*$")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|/)([^)\s#\\\"]+\.(?:ipynb|md|py|json|svg|png|csv))(?=[)#])")
UPWARDS = re.compile(r'(?<=\\")(?:\.\./)+[a-z][^"\\\s]*')


class MoveError(Exception):
    """A move that cannot be made; nothing has been written."""


def label(name):
    """What the equations of a chapter begin with: 3a for 03a_gears, 0 for 00_gears."""
    return NAME.fullmatch(name)[1].removeprefix("0")


def checked(pairs, nbs):
    """The moves as a dictionary; `MoveError` where one cannot be made."""
    moves = dict(pairs)
    there = {path.relative_to(nbs).with_suffix("").as_posix() for path in notebooks_in(nbs)}
    after = [moves.get(name, name) for name in there]
    for old, new in pairs:
        if old not in there: raise MoveError(f"there is no chapter {old}")
        if not NAME.fullmatch(new):
            raise MoveError(f"{new} is no name of a chapter: two digits, perhaps a letter, an "
                            "underscore and small letters, such as 14_gears")
    for new in {name for name in after if after.count(name) > 1}:
        raise MoveError(f"two chapters would be called {new}")
    numbers = [label(name) for name in after if NAME.fullmatch(name)]
    for number in {number for number in numbers if numbers.count(number) > 1}:
        raise MoveError(f"two chapters would have the number {number}")
    return moves


def links_moved(text, where, now, renamed):
    """The raw text of a notebook with its links as they must be; `renamed` are paths of files.

    `where` and `now` are the folders that the notebook was and will be in.
    """
    def link(match):
        target = posixpath.normpath(posixpath.join(where, match[1]))
        if where == now and target not in renamed: return match[0]
        return posixpath.relpath(renamed.get(target, target), now)

    text = LINK.sub(link, text)
    if where == now: return text
    text = UPWARDS.sub(lambda match: posixpath.relpath(posixpath.join(where, match[0]), now), text)
    return re.sub(rf"(?<=%cd -q metalit/){where}(?=[\\\"])", now, text)


def equations_moved(text, moves, own):
    """The raw text of a notebook with new numbers: of its own tags, and of what it mentions.

    `own` is the notebook's name before the move.
    """
    numbers = {label(old): label(new) for old, new in moves.items()}
    if own in moves:
        old, new = label(own), label(moves[own])
        text = re.sub(rf"(?<=\\tag\{{){old}(?=\.\d)", new, text)

    def mention(match):
        return match[1] + numbers.get(match[2], match[2])

    return re.sub(r"([eE]quations? \(|(?:and|to) \(|\$\()(\d+[a-z]?)(?=\.\d+[a-z]?\))", mention,
                  text)


def names_moved(text, moves):
    """A text with the new names of chapters, as whole names only."""
    either = "|".join(sorted(map(re.escape, moves), key=len, reverse=True))

    def name(match):                    # another part may have a chapter that is called so
        return match[0] if PART.search(match[1]) else match[1] + moves[match[2]]

    return re.sub(rf"(?<![\w-])((?:[\w.-]+/)*)({either})(?![\w-])", name, text)


def files(root):
    """The texts of the project, without what is made or ignored."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=root, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = {root / name for name in listed.stdout.split("\0") if name}
    else:
        paths = set(root.rglob("*"))
    hidden = {".git", ".venv", ".cache", "_site"}
    return sorted(path for path in paths if path.suffix in TEXTS and path.is_file()
                  and not hidden & set(path.relative_to(root).parts))


def rewritten(root, moves):
    """The new text of each file that changes, by its path before the move."""
    nbs, library = settings(root)["nbs_path"], settings(root)["lib_path"]
    renamed = {f"{nbs}/{old}.ipynb": f"{nbs}/{new}.ipynb" for old, new in moves.items()}
    found = {}
    for path in files(root):
        name = path.relative_to(root).as_posix()
        if name.startswith(f"{library}/"): continue      # it is exported again
        try:
            with path.open(encoding="utf-8", newline="") as file: before = file.read()
        except UnicodeDecodeError:
            continue
        text = before
        if path.suffix == ".ipynb" and name.startswith(f"{nbs}/"):
            own = name.removeprefix(f"{nbs}/").removesuffix(".ipynb")
            place = PurePosixPath(renamed.get(name, name)).parent.as_posix()
            text = links_moved(text, PurePosixPath(name).parent.as_posix(), place, renamed)
            text = equations_moved(text, moves, own)
        else:
            text = names_moved(text, moves)
        if text != before: found[path] = text
    return found


def move_files(root, moves):
    """Rename the notebooks, by way of names that nothing has, so that two can change places."""
    nbs = root / settings(root)["nbs_path"]
    under_git = (root / ".git").exists()

    def rename(a, b):
        b.parent.mkdir(parents=True, exist_ok=True)
        known = under_git and not subprocess.run(
            ["git", "ls-files", "--error-unmatch", a], cwd=root, capture_output=True).returncode
        if known: subprocess.run(["git", "mv", a, b], cwd=root, check=True)
        else: os.rename(a, b)

    for old in moves: rename(nbs / f"{old}.ipynb", nbs / f"{old}.moving")
    for old, new in moves.items():
        rename(nbs / f"{old}.moving", nbs / f"{new}.ipynb")
        for place in (nbs / old).parents:
            if place == nbs or any(place.iterdir()): break
            place.rmdir()


def move(root, pairs):
    """Make the moves; returns the names of the files that changed."""
    moves = checked(pairs, root / settings(root)["nbs_path"])
    texts = rewritten(root, moves)
    for path, text in texts.items():
        with path.open("w", encoding="utf-8", newline="") as file: file.write(text)
    move_files(root, moves)
    nbdev("nbdev.doclinks:nbdev_export", root)
    return [path.relative_to(root).as_posix() for path in texts]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("names", nargs="+", metavar="OLD NEW")
    args = parser.parse_args(arguments)
    if len(args.names) % 2: parser.error("each OLD needs a NEW")
    pairs = list(zip(args.names[::2], args.names[1::2], strict=True))
    try:
        changed = move(args.root.resolve(), pairs)
    except (MoveError, BrokenError) as error:
        print("error:", error, file=sys.stderr)
        return 1
    for name in changed: print("changed", name)
    for old, new in pairs: print(f"moved   {old} to {new}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
