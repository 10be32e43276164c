"""Report how the sentences of the book run: how long they are, and how many are very short.

    python tools/prose.py [--short] [CHAPTER ...]

One line a chapter, the most staccato last: sentences, mean words, the share of those under seven
words. Sentences that short, one behind the other, are often one thought that "because", "so" or
"while" would join; some are short on purpose. The tool reports, a person decides: it never fails.
A formula counts as one word; code, tables, headings (also those at the beginning of a paragraph),
solutions, references and lines that are no sentence (without a full stop) are left out. With
--short the short sentences of the chapters are printed.
"""

import argparse
import re
import sys
from pathlib import Path
from statistics import mean

from check_book import Chapter
from check_sync import notebooks_in

SHORT = 7
NO_PROSE = ("reference/bibliography", "reference/glossary")     # entries, not sentences
LEFT_OUT = re.compile(
    r"```.*?```|<details.*?</details>|<!--.*?-->|^#.*?$|^\s*\|.*?$|^\s*!\[.*?\)$|^\*\*You need.*?$",
    re.S | re.M)
DISPLAYED = re.compile(r"\$\$.*?\$\$", re.S)
ONE_WORD = re.compile(r"\$[^$]+\$|`[^`]+`")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
REFERENCES = re.compile(r"^## (References|To read on|Sources)\b.*?(?=^## |\Z)", re.S | re.M)
HEAD = re.compile(r"^\*\*[^*]+[.?!:]\*\*\s*")
TAG = re.compile(r"<[^>]+>")
END = re.compile(r"(?<=[.!?])[\"'”)*]*\s+(?=[\"'“(*]*[A-ZÀ-Ž0-9∀-⋿α-ω])")
ABBREVIATED = re.compile(r"\b(e\.g|i\.e|cf|al|vs|Eq|eq|Fig|No|St)\.(?=\s)")


def sentences(text):
    """The sentences of a text in markdown, in plain words."""
    text = DISPLAYED.sub(" X ", LEFT_OUT.sub("\n\n", REFERENCES.sub("", text)))
    text = TAG.sub(" ", LINK.sub(r"\1", ONE_WORD.sub("X", text)))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.)\s)", text):
        line = ABBREVIATED.sub(r"\1", " ".join(paragraph.split()))
        line = HEAD.sub("", re.sub(r"^(?:[-*>]|\d+\.)\s+", "", line))
        for sentence in END.split(line):
            if re.search(r"[.!?][\"'”)*]*$", sentence): yield sentence


def words(sentence):
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def report(name, found):
    """One line: sentences, mean, share of the short ones."""
    lengths = [words(sentence) for sentence in found]
    short = sum(length < SHORT for length in lengths) / len(lengths)
    return f"{len(found):6d} {mean(lengths):6.1f} {short:6.0%}  {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="parts of their names; default: all")
    parser.add_argument("--short", action="store_true", help="print the short sentences")
    given = parser.parse_args()
    root = Path(__file__).parents[1]
    read = {}
    for path in notebooks_in(root / "nbs"):
        chapter = Chapter(path, root / "nbs")
        if chapter.name in NO_PROSE: continue
        if given.chapters and not any(one in chapter.name for one in given.chapters): continue
        found = list(sentences("\n\n".join(chapter.prose())))
        if found: read[chapter.name] = found
    if not read: sys.exit("no chapter of these names")

    def share(name):
        return mean(words(one) < SHORT for one in read[name])

    print(" sents   mean  short")
    for name in sorted(read, key=share):
        print(report(name, read[name]))
        short = [one for one in read[name] if words(one) < SHORT]
        if given.short: print(*(f"{'':22}{one}" for one in short), sep="\n")
    if len(read) > 1: print(report("all", [one for found in read.values() for one in found]))


if __name__ == "__main__":
    main()
