"""One table as text, markdown, LaTeX, CSV or HTML: numbers with marks, differences, origins.

    ours | the paper's | ours minus the paper's        best bold, second best underlined
    differences        row minus reference row, paired, with 95 % intervals
    origin             of every number: setting -> run -> clips per column

A score is marked `*` where it differs from that of the table's reference row: the 95 % interval of
the paired difference (`s2flow.metrics`) leaves out 0, and at least six prompts differ. CSV has the
differences as columns beside the score. A table of the embedded backbone says in its first line that
its numbers are a toy model's. LaTeX wants \\usepackage{booktabs,graphicx}; every character that it
cannot read plainly is escaped. The pages are the templates of templates/.

**Best and second best.** Only like is ranked with like: our rows among themselves, the paper's among
themselves, and of ours only the rows with as many scored clips as the fullest one, for a mean over
fewer prompts is another quantity. Cells that print alike share a rank; what comes next is second. A
column whose cells are all alike, or of which it is not known which end is better, has no marks;
neither have our seconds, which depend on what else the machine was doing.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from clips import Record, Run
from notes import EMBEDDED, PAPER, embedded_note

from s2flow import metrics
from s2flow.metrics import PairedDifference

MINUS = PAPER + "ours minus its "
DASH = "—"
BEST, SECOND = "best", "second"
HIGHER = {
    *metrics.SIX,
    *("subject_consistency", "object_class", "multiple_objects", "human_action", "color"),
    *("spatial_relationship", "scene", "appearance_style", "temporal_style"),
    *("Temporal", "Visual", "Mean", "temporal", "visual", "mean", "speed-up"),
    *("psnr", "ssim", "musiq_512"),
}
LOWER = {
    *("repetition", "relative_error", "latent_relative_error", "lpips", "minutes"),
    *("spatial_repetition", "tile_seams", "window_seams", "frechet_distance"),
}
NEAR_ONE = {"detail"}  # of the embedded world: that of a true render

Cell = tuple[str, str]  # text, and BEST, SECOND or ""


@dataclass(frozen=True)
class Table:
    """One printed table: cells by column (float, str or None), and the notes below it.

    runs: of our rows, by setting. differences: of each row minus the row `reference`, by setting and
    column. counts: clips behind each of our numbers, by setting and column. missing, command: rows
    that lack clips, and what makes them.
    """

    title: str
    group: Record
    rows: list[Record]
    notes: list[str]
    runs: dict[str, Run]
    reference: str | None
    differences: dict[str, dict[str, PairedDifference]]
    counts: dict[str, dict[str, int]]
    missing: list[str]
    command: str


@dataclass(frozen=True)
class Grid:
    """A table of text: caption, head, rows of cells."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]


# -- cells ------------------------------------------------------------------------------------


def marked_cell(table: Table, row: Record, column: str) -> str:
    """One cell as text, with * where the row really differs from the reference in it."""
    difference = table.differences.get(row["setting"], {}).get(column)
    star = "*" if difference is not None and difference.is_real else ""
    return _cell(column, row[column]) + star


def _cell(column: str, value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, str):
        return value.replace("\n", " ")
    if column.startswith(MINUS):
        return f"{value:+.4f}"
    if "speed-up" in column or "seconds" in column:
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    return f"{value:g}" if column.endswith("minutes") else f"{value:.4f}"


def difference_rows(table: Table) -> list[list[str]]:
    """Head and rows: difference, interval, share of prompts won; prompts where all scores agree."""
    rows = table.differences.items()
    columns = [c for c in next(iter(table.differences.values())) if any(d[c].n for _, d in rows)]
    lines = [[f"minus {table.reference}", "prompts", *columns]]
    for setting, of in rows:
        most = max(d.n for d in of.values())
        lost = max(d.dropped for d in of.values() if d.n == most)
        prompts = f"{most} ({lost} dropped)" if lost else str(most)
        lines.append([setting, prompts, *(_difference(of[c], most) for c in columns)])
    return lines


def _difference(d: PairedDifference, prompts: int) -> str:
    if d.mean is None:
        return DASH
    mark = "*" if d.is_real else ""
    interval = f" [{d.low:+.4f}, {d.high:+.4f}]" if d.low is not None else ""
    fewer = f", {d.n} prompts" if d.n != prompts else ""
    return f"{d.mean:+.4f}{mark}{interval}, wins {d.wins:.0%}{fewer}"


def marks(column: str, cells: Sequence[float | str | None], clips: Sequence[int]) -> list[str]:
    """BEST, SECOND or "" for every cell; clips: how many are behind each, alike for the paper's.

    column: its name without the words that say whose it is.
    """
    numbers = pd.Series([c if isinstance(c, (int, float)) else None for c in cells], dtype=float)
    counts = pd.Series(clips).where(numbers.notna(), 0)
    numbers = numbers.where((counts > 0) & (counts == counts.max())).round(4)
    ranks = _badness(column, numbers).rank(method="dense")
    if not ranks.max() >= 2:
        return [""] * len(cells)
    return [{1: BEST, 2: SECOND}.get(rank, "") for rank in ranks]


def _badness(column: str, values: pd.Series) -> pd.Series:
    """Smaller is better; NaN where the column has no better end."""
    if column in HIGHER or column.startswith("world_"):
        return -values
    if column in LOWER:
        return values
    return (values - 1).abs() if column in NEAR_ONE else values * float("nan")


def grids(table: Table) -> list[Grid]:
    """The table itself, its differences if there are any, and the origin of its numbers."""
    columns = [_column(table, c) for c in table.rows[0]]
    out = [Grid(table.title, list(table.rows[0]), list(map(list, zip(*columns, strict=True))))]
    if table.differences:
        head, *lines = difference_rows(table)
        caption = "Paired differences, 95 % intervals"
        out.append(Grid(caption, head, [[(c, "") for c in line] for line in lines]))
    return [*out, _origin(table)]


def _column(table: Table, column: str) -> list[Cell]:
    values = [row[column] for row in table.rows]
    published = column.startswith(PAPER)
    counts = [
        1 if published else table.counts.get(row["setting"], {}).get(column, 0)
        for row in table.rows
    ]
    bare = re.sub(r"^(VBench|own) ", "", column.removeprefix(PAPER))
    ranked = zip(table.rows, marks(bare, values, counts), strict=True)
    return [(marked_cell(table, row, column), mark) for row, mark in ranked]


def _origin(table: Table) -> Grid:
    """Of each row the run, and how many of its clips are behind each column."""
    columns = list(dict.fromkeys(c for of in table.counts.values() for c in of))
    lines = [
        [setting, table.runs[setting].id, *(str(counts.get(c, 0)) for c in columns)]
        for setting, counts in table.counts.items()
    ]
    caption = (
        "Where our numbers come from: the run (runs/<run>/), and its clips behind each column"
    )
    return Grid(caption, ["setting", "run", *columns], [[(c, "") for c in line] for line in lines])


# -- text and CSV -----------------------------------------------------------------------------


def to_text(tables: list[Table]) -> str:
    """For a terminal: of each table a heading, the table, the differences, and the notes."""
    return "\n\n".join(map(_text, tables)) + "\n"


def _text(table: Table) -> str:
    parts = [f"### {table.title}", "", *(f"{n}\n" for n in embedded_note(table.group))]
    for grid in grids(table)[:-1]:
        parts += [*_lines([grid.head, *([c for c, _ in row] for row in grid.rows)]), ""]
    return "\n".join([*parts, *(f"- {n}" for n in table.notes)])


def _lines(cells: list[list[str]]) -> list[str]:
    """Lines of a markdown table with aligned columns, its head first."""
    cells = [[c.replace("|", "\\|") for c in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    return ["| " + " | ".join(line) + " |" for line in padded]


def to_csv(tables: list[Table]) -> str:
    """All groups below each other, numbers unrounded, empty where nothing is.

    `... clips` beside each of our numbers: how many clips of the row's `run` are behind it.
    """
    rows = [
        table.group
        | {"embedded": int(table.group["backbone"] in EMBEDDED)}
        | row
        | {f"{c} clips": n for c, n in table.counts.get(row["setting"], {}).items()}
        | _difference_cells(table, row)
        for table in tables
        for row in table.rows
    ]
    columns = list(dict.fromkeys(c for row in rows for c in row))
    columns.sort(key=lambda c: c.startswith(PAPER))  # stable: the paper's stay right
    return pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False)


def _difference_cells(table: Table, row: Record) -> Record:
    cells: Record = {"minus": table.reference}
    for column, d in table.differences.get(row["setting"], {}).items():
        of = {"minus": d.mean, "low": d.low, "high": d.high, "real": int(d.is_real)}
        of |= {"prompts": d.n, "dropped": d.dropped, "wins": d.wins, "ties": d.ties}
        cells |= {f"{column} {k}": v for k, v in of.items()}
    return cells


# -- markdown, LaTeX, HTML --------------------------------------------------------------------

TEMPLATES = jinja2.Environment(  # << >> and <% %>, since LaTeX has braces of its own
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    variable_start_string="<<",
    variable_end_string=">>",
    block_start_string="<%",
    block_end_string="%>",
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"×": r"$\times$", "—": "---", "−": "$-$", "²": r"$^2$", "³": r"$^3$", "·": r"$\cdot$"},
    **{"≥": r"$\geq$", "≤": r"$\leq$", "σ": r"$\sigma$", "°": r"$^\circ$"},
    **{"`": r"\textasciigrave{}"},
    "[": "{[}",  # after a line break it would be its optional argument
}


def to_md(tables: list[Table]) -> str:
    """For a README: GitHub shows <ins> underlined."""
    return _page("md", tables, {BEST: "**{}**", SECOND: "<ins>{}</ins>", "": "{}"}, _md)


def to_tex(tables: list[Table]) -> str:
    """Floats to \\input, each as wide as the text; wide tables become tabulars below each other."""
    wrap = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}", "": "{}"}
    return _page("tex", tables, wrap, _tex)


def to_html(tables: list[Table]) -> str:
    """One page that asks nothing of any network."""
    return _page("html", tables, {BEST: "<b>{}</b>", SECOND: "<u>{}</u>", "": "{}"}, html.escape)


def _page(form: str, tables: list[Table], wrap: dict[str, str], escape: Any) -> str:
    def marked(row: list[Cell]) -> list[str]:
        return [wrap[mark].format(escape(text)) for text, mark in row]

    page = TEMPLATES.get_template(f"table.{form}").render(
        tables=tables,
        grids=grids,
        parts=_parts,
        embedded_note=embedded_note,
        escape=escape,
        heads=lambda grid: [escape(head) for head in grid.head],
        marked=marked,
    )
    return page.rstrip("\n") + "\n"


def _parts(grid: Grid, most: int = 10) -> list[Grid]:
    """The same in tabulars of so many columns beside the first; the paper's start one of their own."""
    ours = [i for i, c in enumerate(grid.head) if i and not c.startswith(PAPER)]
    published = [i for i, c in enumerate(grid.head) if c.startswith(PAPER)]
    chunks = [b[k : k + most] for b in (ours, published) for k in range(0, len(b), most)]
    pick = [(0, *chunk) for chunk in chunks]
    return [
        Grid(grid.caption, [grid.head[i] for i in at], [[row[i] for i in at] for row in grid.rows])
        for at in pick
    ]


def _md(text: str) -> str:
    """Text that markdown shows unchanged."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text.replace("\n", " "))


def _tex(text: str) -> str:
    known = "".join(TEX.get(c, c) for c in text.replace("\n", " "))
    return "".join(c if ord(c) < 128 or c.isalpha() else "?" for c in known)
