"""One table as markdown, LaTeX or HTML: numbers with marks, differences, and where each comes from.

    ours | the paper's | ours minus the paper's        best bold, second best underlined (marks.py)
    differences        row minus reference row, paired, with 95 % intervals
    origin             of every number: setting -> run -> clips per column

A table of the embedded backbone says in its first line that its numbers are a toy model's. LaTeX wants
\\usepackage{booktabs,graphicx}; every character that it cannot read plainly is escaped.
"""

import html
import re
from dataclasses import dataclass

from marks import BEST, SECOND, marks
from output import PAPER, Table, difference_rows, embedded_note, marked_cell

Cell = tuple[str, str]  # text, and "best", "second" or ""


@dataclass(frozen=True)
class Grid:
    """A table of text: caption, head, rows of cells."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]


def grids(table: Table) -> list[Grid]:
    """The table itself, its differences if there are any, and the origin of its numbers."""
    columns = list(table.rows[0])
    found = {c: _column(table, c) for c in columns}
    rows = [[found[c][i] for c in columns] for i in range(len(table.rows))]
    out = [Grid(table.title, columns, rows)]
    if table.differences:
        head, *lines = difference_rows(table)
        caption = "Paired differences, 95 % intervals"
        out.append(Grid(caption, head, [[(c, "") for c in line] for line in lines]))
    return [*out, _origin(table)]


def _column(table: Table, column: str) -> list[Cell]:
    values = [row[column] for row in table.rows]
    theirs = column.startswith(PAPER)
    counts = [
        1 if theirs else table.counts.get(row["setting"], {}).get(column, 0) for row in table.rows
    ]
    bare = re.sub(r"^(VBench|own) ", "", column.removeprefix(PAPER))
    found = marks(bare, values, counts)
    return [(marked_cell(table, r, column), m) for r, m in zip(table.rows, found, strict=True)]


def _origin(table: Table) -> Grid:
    """Of each row the run, and how many of its clips are behind each column."""
    columns = list(dict.fromkeys(c for of in table.counts.values() for c in of))
    lines = []
    for row in table.rows:
        counts = table.counts.get(row["setting"])
        if counts:
            cells = [row["setting"], row["run"], *(str(counts.get(c, 0)) for c in columns)]
            lines.append([(c, "") for c in cells])
    caption = (
        "Where our numbers come from: the run (runs/<run>/), and its clips behind each column"
    )
    return Grid(caption, ["setting", "run", *columns], lines)


# -- markdown ---------------------------------------------------------------------------------


def to_md(tables: list[Table]) -> str:
    """For a README: GitHub shows <ins> underlined."""
    wrap = {BEST: "**{}**", SECOND: "<ins>{}</ins>", "": "{}"}
    parts = []
    for table in tables:
        first, *others = grids(table)
        parts += [f"### {_md(first.caption)}", ""]
        parts += [f"**{note}**\n" for note in embedded_note(table.group)]
        for grid in (first, *others):
            parts += [] if grid is first else [f"*{_md(grid.caption)}*", ""]
            parts.append("| " + " | ".join(map(_md, grid.head)) + " |")
            parts.append("|---" * len(grid.head) + "|")
            for row in grid.rows:
                parts.append("| " + " | ".join(wrap[m].format(_md(t)) for t, m in row) + " |")
            parts.append("")
        parts += [*(f"- {_md(n)}" for n in table.notes), ""]
    return "\n".join(parts)


def _md(text: str) -> str:
    """Text that markdown shows to the letter."""
    text = text.replace("\n", " ").replace("\\|", "|")
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)


# -- LaTeX ------------------------------------------------------------------------------------

TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"×": r"$\times$", "—": "---", "−": "$-$", "²": r"$^2$", "³": r"$^3$", "·": r"$\cdot$"},
    **{
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "σ": r"$\sigma$",
        "°": r"$^\circ$",
        "`": r"\textasciigrave{}",
    },
    "[": "{[}",  # after a line break it would be its optional argument
}


def to_tex(tables: list[Table]) -> str:
    """Floats to \\input, each as wide as the text; wide tables become tabulars below each other."""
    wrap = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}", "": "{}"}
    out = [r"% needs \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx,textcomp}"]
    for table in tables:
        for i, grid in enumerate(grids(table)):
            said = [grid.caption, *(embedded_note(table.group) if i == 0 else [])]
            out += [r"\begin{table*}", r"\centering", rf"\caption{{{_tex('. '.join(said))}.}}"]
            for part in _parts(grid):
                columns = "l" + "r" * (len(part.head) - 1)
                out += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}"]
                out += [r"\toprule", " & ".join(map(_tex, part.head)) + r" \\", r"\midrule"]
                for row in part.rows:
                    out.append(" & ".join(wrap[m].format(_tex(t)) for t, m in row) + r" \\")
                out += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip"]
            out += [r"\end{table*}", ""]
        out += [r"\begin{itemize}\footnotesize"]
        out += [*(rf"\item {_tex(n)}" for n in table.notes), r"\end{itemize}", ""]
    return "\n".join(out)


def _parts(grid: Grid, most: int = 10) -> list[Grid]:
    """The same in tabulars of so many columns beside the first; the paper's start one of their own."""
    own = [i for i, c in enumerate(grid.head) if i and not c.startswith(PAPER)]
    theirs = [i for i, c in enumerate(grid.head) if c.startswith(PAPER)]
    chunks = [block[k : k + most] for block in (own, theirs) for k in range(0, len(block), most)]
    return [
        Grid(
            grid.caption,
            [grid.head[i] for i in (0, *chunk)],
            [[row[i] for i in (0, *chunk)] for row in grid.rows],
        )
        for chunk in chunks
    ]


def _tex(text: str) -> str:
    known = "".join(TEX.get(c, c) for c in text.replace("\n", " ").replace("\\|", "|"))
    return "".join(c if ord(c) < 128 or c.isalpha() else "?" for c in known)


# -- HTML -------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --line: #8886; --muted: #667; }
@media (prefers-color-scheme: dark) { :root { --muted: #aab; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
div.wide { overflow-x: auto; }
h2 { font-size: 1.15rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: bottom; }
th { border-bottom: 1px solid; font-weight: 600; }
td { white-space: nowrap; }
tr + tr td { border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.toy { border: 1px solid; padding: .5rem .8rem; font-weight: 600; }
.notes { color: var(--muted); font-size: .85rem; }
"""


def to_html(tables: list[Table]) -> str:
    """One page that asks nothing of any network."""
    wrap = {BEST: "<b>{}</b>", SECOND: "<u>{}</u>", "": "{}"}
    out = ["<!doctype html>", '<html lang="en"><meta charset="utf-8">']
    out += ['<meta name="viewport" content="width=device-width">']
    out += [f"<title>{html.escape(tables[0].title)}</title><style>{STYLE}</style>"]
    for table in tables:
        for i, grid in enumerate(grids(table)):
            level = 3 if i else 2
            out.append(f"<h{level}>{html.escape(grid.caption)}</h{level}>")
            if i == 0:
                out += [f'<p class="toy">{html.escape(n)}</p>' for n in embedded_note(table.group)]
            out.append('<div class="wide"><table><thead><tr>')
            heads = (html.escape(c).replace("_", "_<wbr>") for c in grid.head)
            out += [f'<th scope="col">{c}</th>' for c in heads]
            out.append("</tr></thead><tbody>")
            for row in grid.rows:
                cells = (wrap[m].format(html.escape(t.replace("\\|", "|"))) for t, m in row)
                out.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
            out.append("</tbody></table></div>")
        out += [
            '<ul class="notes">',
            *(f"<li>{html.escape(n)}</li>" for n in table.notes),
            "</ul>",
        ]
    return "\n".join([*out, "</html>", ""])
