"""A work that a sentence names leads to its line in the bibliography, and shows it at the pointer.

In the bibliography each work is a line of a list, `- A. Author, B. Other (2017). *Title.* …`; in a
sentence it is Author & Other (2017) or (Author & Other 2017), and with more authors Author et al.
"""

import html
import re
from typing import NamedTuple

NAME = r"[A-Z][\w’-]+"
LINE = re.compile(r"^- ((?P<authors>[^*\n]+?) \((?P<year>\d{4})\)\. (?P<rest>[^\n]*))$",
                  re.MULTILINE)
MENTION = re.compile(rf"(?<![A-Z]\. )\b({NAME})( et al\.|(?:, {NAME})*,? (?:&|and) {NAME})?,? "
                     r"(\(?)(\d{4})\b(?(3)\)?)")
# What is left as it is: code, formulas, links, tags, headings.
KEPT = re.compile(r"(```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`|!?\[[^\]]*\]\([^)]*\)|<[^>\n]*>"
                  r"|^#.*?$)", re.DOTALL | re.MULTILINE)


class Work(NamedTuple):
    """A work of the bibliography: where its line stands, what it says, and who wrote it."""

    anchor: str
    words: str
    authors: list[str]  # their family names
    more: bool  # and others


def family_name(author):
    """`Hasselt` of `H. van Hasselt`: the last of a person's names."""
    return author.strip().rpartition(" ")[2]


def work_of(match):
    """A line of the bibliography as a work."""
    names, others, _ = match["authors"].partition(" and others")
    authors = [family_name(name) for name in names.split(",") if name.strip()]
    rest = re.sub(r" *\[[^]]*\]\([^)]*\)[,;]?", "", match["rest"]).strip()
    words = f"{match['authors']} ({match['year']}). {rest}".replace("*", "")
    return Work(f"{authors[0].lower()}-{match['year']}", words, authors, bool(others))


def works_in(bibliography):
    """The works of a bibliography by family name of the first author and year."""
    found = {}
    for match in LINE.finditer(bibliography):
        work, year = work_of(match), match["year"]
        same = found.setdefault((work.authors[0], year), [])
        same.append(work._replace(anchor=f"{work.anchor}-{len(same)}") if same else work)
    return found


def meant(works, mention):
    """The one work that a mention can mean, or None."""
    first, others, _, year = mention.groups()
    def fits(work):
        many = len(work.authors) + work.more
        if others is None: return many == 1
        if "et al." in others: return many > 2 or work.more
        return work.authors[-1] == family_name(others) and not work.more
    fitting = [work for work in works.get((first, year), []) if fits(work)]
    return fitting[0] if len(fitting) == 1 else None


def cited(text, works, page):
    """Markdown whose mentions of works lead to the bibliography, at `page` from here."""
    def link(mention):
        work = meant(works, mention)
        if work is None: return mention[0]
        return (f'<a class="cited" href="{page}#{work.anchor}" '
                f'title="{html.escape(work.words)}">{mention[0]}</a>')

    pieces = KEPT.split(text)
    pieces[::2] = [MENTION.sub(link, piece) for piece in pieces[::2]]
    return "".join(pieces)


def anchored(text, works):
    """A part of the bibliography, in Markdown, with an anchor at each work; others lead there."""
    def with_anchor(match):
        same = works[work_of(match).authors[0], match["year"]]
        work = next(work for work in same if work.words == work_of(match).words)
        return f'- <span id="{work.anchor}"></span>{match[1]}'

    return "\n".join(LINE.sub(with_anchor, line) if line.startswith("- ")
                     else cited(line, works, "") for line in text.split("\n"))
