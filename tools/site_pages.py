"""Turn executed notebooks into pages of the site.

What nbdev's `#|` lines mean, and links to the API.

The rest is left to MyST-NB. Only what the chapters use is understood here:

    #| hide                 the cell is not shown
    #| echo: false          its output is shown, its code is not
    #| code-fold: true      its output is shown, its code behind a button
    #| code-fold: false     its code is shown, although it draws
    #| moves                later cells move its figure; tools/run_notebooks.py forbids it elsewhere
    #| solution: N          it tests the solution of exercise N: code and output behind a button
    #| fig-alt: TEXT        what its figures show, in words
    #| export, exporti      the code is shown as part of the library
    #| default_exp MODULE   becomes a line that links to the module's page in the API

In a chapter, cells of nothing but imports and cells that draw a figure are folded, too, and imports
that follow each other have one button; a guide is there to be copied. Dictionaries of numbers
become tables. A Greek letter that was typed in a sentence is set as one in a formula is.
"""

import ast
import builtins
import html
import re

import nbformat

# What keeps its letters: code, formulas, roles, the targets of links, tags.
KEPT = re.compile(r"(```.*?```|~~~.*?~~~|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]+`|\]\([^)\n]*\)|<[^>\n]*>"
                  r"|^#.*?$|^\s*```.*?$)", re.DOTALL | re.MULTILINE)
GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta",
         "η": "eta", "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "π": "pi",
         "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
         "Δ": "Delta", "Ω": "Omega"}
TYPED = re.compile(rf"(?<![\w$\\/·‖∇ℓ½])([{''.join(GREEK)}]+)([₀-₉ₖ]*|_K)(′?)(?![\w(/·‖′̃])"
                   r"(?!\*(?!\*))")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₖ", "0123456789k")
OPTION = re.compile(r"#\s*\|\s*([\w-]+)\s*:?\s*(.*)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(!?\[[^\]]*\]\([^)]*\))")
# A page of results is a section of one file. From a folder below nbs/:
RESULTS = re.compile(r"\]\(\.\./((?:\.\./)*)results/README\.md(?:#([\w-]+))?\)")
# The parts of the book: the folder of each, and its name.
PARTS = {"1_idea": "The idea", "2_trial": "The article on trial", "3_choices": "The seven choices",
         "4_judgement": "Judgement", "5_images": "Images",
         "6_yours": "Your model, your data", "7_workshop": "The workshop",
         "8_figures": "Live figures", "9_rooms": "The rooms"}
# Pages that are looked up, each group in its order in the table of contents.
GUIDES = tuple(f"guides/{name}" for name in (
    "quickstart", "install", "choose", "tomorrow", "coming_from", "course", "used", "faq"))
REFERENCE = ("results", *(f"reference/{name}" for name in (
    "notation", "glossary", "bibliography", "gallery", "cite")), "changelog", "api/index")


def results(link):
    """Where a link to the file of results leads to on the site."""
    return f"]({link[1]}results{f'/{link[2]}' if link[2] else ''}.md)"


def options(source):
    """What the `#|` lines at the top of a cell say, and the source without them."""
    found, lines = {}, source.splitlines()
    while lines and (match := OPTION.match(lines[0].strip())):
        found[match[1]] = match[2].strip()
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def symbol_table(index, top):
    """Names as chapters write them, each with the full name that the API page has.

    `index` maps modules to their public names, `top` is what `import metalit as ml` gives.
    """
    table, seen = {}, {}
    for module, names in index.items():
        for name in names:
            full = f"{module}.{name}"
            table[full] = table["ml" + full.removeprefix("metalit")] = full
            seen.setdefault(name, []).append(full)
    for name, places in seen.items():
        if len(places) == 1:
            if name in top:
                table[f"ml.{name}"] = places[0]
            if (name in top or name[0].isupper() or "_" in name) and not hasattr(builtins, name):
                table[name] = places[0]
    return table


def linked(text, table):
    """Markdown whose back-ticked names lead to the API."""
    def role(match):
        target = table.get(match[1].removesuffix("()"))
        return f"{{py:obj}}`{match[1]} <{target}>`" if target else match[0]

    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if not fenced and not line.lstrip().startswith(("#", "<", "```", "~~~")):
            pieces = LINK.split(line)
            pieces[::2] = [CODE.sub(role, piece) for piece in pieces[::2]]
            line = "".join(pieces)
        lines.append(line)
    return "\n".join(lines)


def typeset(text):
    """Markdown whose Greek letters in sentences are formulas: the same letter looks the same."""
    def formula(match):
        letters = " ".join(f"\\{GREEK[letter]}" for letter in match[1])
        below = match[2].strip("_").translate(SUBSCRIPTS)
        return f"${letters}{f'_{{{below}}}' if below else ''}{chr(39) if match[3] else ''}$"

    pieces = KEPT.split(text)
    pieces[::2] = [TYPED.sub(formula, piece) for piece in pieces[::2]]
    return "".join(pieces)


def number_of(value):
    """A number in a table: four digits that count."""
    if isinstance(value, bool) or not isinstance(value, float): return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def as_table(text):
    """HTML for a dictionary of numbers, or a list of such with the same keys; None for all else."""
    try: found = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError): return None
    rows = [found] if isinstance(found, dict) else found
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    cells = [value for row in rows for value in row.values()]
    if any(row.keys() != rows[0].keys() for row in rows) or not any(
            isinstance(cell, float) for cell in cells): return None
    if not all(isinstance(cell, int | float | str | None) for cell in cells): return None
    def line(tag, words):
        return "".join(f"<{tag}>{html.escape(str(word))}</{tag}>" for word in words)
    if isinstance(found, dict):
        body = [f"<th>{html.escape(str(key))}</th><td>{html.escape(number_of(value))}</td>"
                for key, value in found.items()]
    else:
        body = [line("th", rows[0]), *(line("td", map(number_of, row.values())) for row in rows)]
    return ('<table class="dataframe">' + "".join(f"<tr>{row}</tr>" for row in body) + "</table>")


def defined(notebook):
    """The names that a notebook's own cells define: they mean themselves, not the library's."""
    names = set()
    for cell in notebook.cells:
        if cell.cell_type == "code" and not {"export", "exporti"} & options(cell.source)[0].keys():
            names |= set(re.findall(r"^(?:def|class) (\w+)|^(\w+) *=[^=]", cell.source,
                                    re.MULTILINE))
    return {name for pair in names for name in pair if name}


def imports_alone(source):
    """Whether a cell imports, and does nothing else."""
    try: body = ast.parse(source).body
    except SyntaxError: return False  # what IPython alone understands
    inside = [line for node in body for line in (node.body if isinstance(node, ast.If | ast.Try)
                                                 else [node])]
    return bool(inside) and all(isinstance(line, ast.Import | ast.ImportFrom) for line in inside)


def button(hidden):
    """What the button over something folded says."""
    return {"code_prompt_show": f"Show {hidden}", "code_prompt_hide": f"Hide {hidden}"}


IMPORTS = button("the imports")
FOLDED = ["hide-input"]


def silent(cell):
    """Whether a cell is folded and shows nothing."""
    return (cell.cell_type == "code" and cell.metadata.get("tags") == FOLDED and not cell.outputs
            and "mystnb" not in cell.metadata)


def joined(cells):
    """The cells of a page; those folded that follow each other are one, behind one button.

    That is so for imports, and for code of which all but the last shows nothing.
    """
    found = []
    for cell in cells:
        before = found[-1] if found else cell
        if before is not cell and before.metadata.get("mystnb") == IMPORTS == cell.metadata.get(
                "mystnb"):
            before.source += f"\n\n{cell.source}"
            before.outputs += cell.outputs
            before.metadata["tags"] = ["hide-input"]         # not all of it is exported
        elif before is not cell and silent(before) and cell.metadata.get("tags") == FOLDED:
            cell.source = f"{before.source}\n\n{cell.source}"
            found[-1] = cell
        else:
            found.append(cell)
    return found


def code_page(cell, chapter=False):
    """A code cell as a page shows it, or None where it shows nothing."""
    says, cell.source = options(cell.source)
    if "default_exp" in says:
        module = f"metalit.{says['default_exp']}".removesuffix(".__init__")
        return nbformat.v4.new_markdown_cell(f":::{{container}} makes\n"
                                             f"This chapter makes {{py:mod}}`{module}`.\n:::")
    if "hide" in says or not cell.source:
        return None
    tags = [tag for key, tag in (("export", "exported"), ("exporti", "exported")) if key in says]
    if says.get("echo") == "false":
        tags.append("remove-input")
    draws = chapter and "fig-alt" in says and not tags
    if says.get("code-fold", "true" if draws else "false") == "true":
        tags.append("hide-input")
    if chapter and imports_alone(cell.source):
        tags.append("hide-input")
        cell.metadata["mystnb"] = IMPORTS
    if "solution" in says:
        tags = ["hide-cell"]
        cell.metadata["mystnb"] = button("the code of this solution")
    cell.metadata["tags"] = tags + cell.metadata.get("tags", [])
    if "fig-alt" in says:
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if not any(kind.startswith("image/") for kind in kinds):
            raise ValueError(f"a cell promises a figure and shows none: {says['fig-alt']}")
        about = cell.metadata.get("mystnb", {})
        cell.metadata["mystnb"] = about | {"image": {"alt": says["fig-alt"]}}
    for output in cell.outputs:
        # A live figure brings a page of its own; a still and a view that needs a kernel come with
        # it.
        if "text/html" in output.get("data", {}):
            output.data = {"text/html": output.data["text/html"]}
        elif set(output.get("data", {})) == {"text/plain"}:
            table = as_table(output.data["text/plain"])
            if table: output.data = {"text/html": table}
    return cell


def page(notebook, number, table):
    """A chapter as a page; its number goes into its title."""
    own = defined(notebook)
    table = {name: full for name, full in table.items() if name not in own}
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = typeset(linked(RESULTS.sub(results, cell.source), table))
        elif cell.cell_type == "code":
            cell = code_page(cell, chapter=number is not None)
        if cell is not None:
            cells.append(cell)
    if number is not None:
        cells[0].source = re.sub(r"^# ", f"# {number}. ", cells[0].source)
    notebook.cells = joined(cells)
    notebook.metadata.pop("widgets", None)
    return notebook


def restructured(text, table):
    """A docstring, written in plain Markdown with formulas between dollars, as reStructuredText."""
    # Code that goes on in the next line is one piece of code.
    text = re.sub(r"`([^`]+)`", lambda match: f"`{' '.join(match[1].split())}`", text)
    pieces = re.split(r"\$([^$`]+)\$", text)
    pieces[::2] = ["\n".join(plain_words(line, table) for line in piece.split("\n"))
                   for piece in pieces[::2]]
    pieces[1::2] = [f":math:`{' '.join(formula.split())}`" for formula in pieces[1::2]]
    return "".join(pieces)


def plain_words(line, table):
    """A line without formulas, or part of one: code is a literal or a link, signs lose meaning."""
    pieces = CODE.split(line)
    for number, text in enumerate(pieces):
        if number % 2 == 0:
            pieces[number] = re.sub(r"([*_|\\])", r"\\\1", text)
            # Code ends at a space or a sign; the empty escape lets a letter follow it.
            if number and pieces[number][:1].isalnum():
                pieces[number] = "\\ " + pieces[number]
        elif text in table:
            pieces[number] = f":py:obj:`{text} <{table[text]}>`"
        else:
            pieces[number] = f"``{text}``"
    return "".join(pieces)


def with_mark(contents, address):
    """The contents of the site, as HTML, with one page marked and the lists that it is in opened.

    As the theme does it: the classes `current` and `active`, and an address that leads nowhere. For
    a page that is not in it, such as the first one, the first part is open.
    """
    before, link, after = contents.partition(f'<a class="reference internal" href="{address}"')
    if not link: return opened(contents)
    line, end, after = ('<a class="current reference internal" href="#"' + after).partition("\n")
    after = line.replace("<details", '<details open="open"') + end + after
    inner = int(before.rpartition('class="toctree-l')[2][0])
    for level, start in ((2, "<ul"), (1, '<ul class="'))[2 - inner:]:
        before, entry, rest = before.rpartition(f'class="toctree-l{level}')
        after = f"{entry} current active" + rest.replace("<details", '<details open="open"') + after
        before, entry, rest = before.rpartition(start)
        after = entry + ("current " if level == 1 else ' class="current"') + rest + after
    before, part, rest = before.rpartition('class="toctree-l0')
    return before + part + opened(rest) + after


def opened(contents):
    """HTML with the first thing that can be opened open."""
    return contents.replace("<details", '<details open="open"', 1)


def breakable(contents):
    """The contents of the site, where a line may end behind a dot of a module's name."""
    return re.sub(r">(metalit(?:\.\w+)+)</a>",
                  lambda name: f">{name[1].replace('.', '.<wbr/>')}</a>", contents)
