"""One table as text, markdown, LaTeX, CSV or HTML: numbers with marks, differences, origins.

    ours | the paper's | ours minus the paper's        best bold, second best underlined
    differences        row minus reference row, paired, with 95 % intervals
    origin             of every number: setting -> run -> clips per column

LaTeX wants \\usepackage{booktabs,graphicx}. **Best and second best.** Our rows are ranked among
themselves, the paper's among themselves, and of ours only those with as many scored clips as the
fullest one. Cells that print alike share a rank. A column whose cells are all alike, or of which it
is not known which end is better, has no marks; neither have seconds, which depend on what else the
machine was doing.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from clips import Record, Run
from notes import EMBEDDED, PAPER, VBENCH, embedded_note

from s2flow.metrics import PairedDifference

MINUS = PAPER + "ours minus its "
DASH = "—"
BEST, SECOND = "best", "second"
HIGHER = {*VBENCH, "Temporal", "Visual", "Mean", "temporal", "visual", "mean", "speed-up"}
HIGHER = (HIGHER - {"dynamic_degree"}) | {"psnr", "ssim", "musiq_512"}
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


def marks(column: str, cells: Sequence[float | str | None], clips: Sequence[int]) -> list[str]:
    """BEST, SECOND or "" for every cell; clips: how many are behind each, alike for the paper's.

    column: its name without the words that say whose it is.
    """
    numbers = pd.Series([c if isinstance(c, (int, float)) else None for c in cells], dtype=float)
    counts = pd.Series(clips).where(numbers.notna(), 0)
    numbers = numbers.where((counts > 0) & (counts == counts.max())).round(4)
    badness = numbers * float("nan")  # smaller is better; NaN: no end is known to be better
    if column in HIGHER or column.startswith("world_"):
        badness = -numbers
    elif column in LOWER:
        badness = numbers
    elif column in NEAR_ONE:
        badness = (numbers - 1).abs()
    ranks = badness.rank(method="dense")
    if not ranks.max() >= 2:
        return [""] * len(cells)
    return [{1: BEST, 2: SECOND}.get(rank, "") for rank in ranks]


def grids(table: Table) -> list[Grid]:
    """The table, its differences if there are any, and the origin of its numbers."""
    columns = []
    for column in table.rows[0]:
        cells, counts = [], []
        for row in table.rows:
            setting = row["setting"]
            difference = table.differences.get(setting, {}).get(column)
            star = "*" if difference is not None and difference.is_real else ""
            cells.append(_cell(column, row[column]) + star)
            published = column.startswith(PAPER)
            counts.append(1 if published else table.counts.get(setting, {}).get(column, 0))
        bare = re.sub(r"^(VBench|own) ", "", column.removeprefix(PAPER))
        ranked = marks(bare, [row[column] for row in table.rows], counts)
        columns.append(zip(cells, ranked, strict=True))
    out = [Grid(table.title, list(table.rows[0]), list(map(list, zip(*columns, strict=True))))]
    if table.differences:
        out.append(_difference_grid(table))
    head = list(dict.fromkeys(c for of in table.counts.values() for c in of))
    lines = [
        [setting, table.runs[setting].id, *(str(counts.get(c, 0)) for c in head)]
        for setting, counts in table.counts.items()
    ]
    origin = "Where our numbers come from: the run (runs/<run>/), and its clips behind each column"
    return [*out, _plain(origin, ["setting", "run", *head], lines)]


def _plain(caption: str, head: list[str], lines: list[list[str]]) -> Grid:
    return Grid(caption, head, [[(c, "") for c in line] for line in lines])


def _difference_grid(table: Table) -> Grid:
    """Difference, interval, share of prompts won; prompts where all scores agree."""
    rows = table.differences.items()
    columns = [c for c in next(iter(table.differences.values())) if any(d[c].n for _, d in rows)]
    lines = []
    for setting, of in rows:
        most = max(d.n for d in of.values())
        lost = max(d.dropped for d in of.values() if d.n == most)
        line = [setting, f"{most} ({lost} dropped)" if lost else str(most)]
        for d in map(of.get, columns):
            mark = "*" if d.is_real else ""
            interval = f" [{d.low:+.4f}, {d.high:+.4f}]" if d.low is not None else ""
            fewer = f", {d.n} prompts" if d.n != most else ""
            known = d.mean is not None
            line.append(
                f"{d.mean:+.4f}{mark}{interval}, wins {d.wins:.0%}{fewer}" if known else DASH
            )
        lines.append(line)
    head = [f"minus {table.reference}", "prompts", *columns]
    return _plain("Paired differences, 95 % intervals", head, lines)


# -- text and CSV -----------------------------------------------------------------------------


def to_text(tables: list[Table]) -> str:
    """For a terminal: of each table a heading, the table, the differences, and the notes."""
    pages = []
    for table in tables:
        parts = [f"### {table.title}", "", *(f"{n}\n" for n in embedded_note(table.group))]
        for grid in grids(table)[:-1]:
            cells = [grid.head, *([c for c, _ in row] for row in grid.rows)]
            cells = [[c.replace("|", "\\|") for c in line] for line in cells]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for line in (cells[0], ["-" * width for width in widths], *cells[1:]):
                parts.append("| " + " | ".join(map(str.ljust, line, widths)) + " |")
            parts.append("")
        pages.append("\n".join([*parts, *(f"- {n}" for n in table.notes)]))
    return "\n\n".join(pages) + "\n"


def to_csv(tables: list[Table]) -> str:
    """All groups below each other, numbers unrounded, empty where nothing is.

    `... clips` beside each of our numbers: how many clips of the row's `run` are behind it.
    """
    rows = []
    for table in tables:
        embedded = int(table.group["backbone"] in EMBEDDED)
        for row in table.rows:
            counts = table.counts.get(row["setting"], {})
            cells = {**table.group, "embedded": embedded, **row}
            cells |= {f"{c} clips": n for c, n in counts.items()} | {"minus": table.reference}
            for column, d in table.differences.get(row["setting"], {}).items():
                of = {"minus": d.mean, "low": d.low, "high": d.high, "real": int(d.is_real)}
                of |= {"prompts": d.n, "dropped": d.dropped, "wins": d.wins, "ties": d.ties}
                cells |= {f"{column} {k}": v for k, v in of.items()}
            rows.append(cells)
    columns = list(dict.fromkeys(c for row in rows for c in row))
    columns.sort(key=lambda c: c.startswith(PAPER))  # stable: the paper's stay right
    return pd.DataFrame(rows, columns=columns, dtype=object).to_csv(index=False)


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


def _md(text: str) -> str:
    """Text that markdown shows unchanged."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text.replace("\n", " "))


def _tex(text: str) -> str:
    known = "".join(TEX.get(c, c) for c in text.replace("\n", " "))
    return "".join(c if ord(c) < 128 or c.isalpha() else "?" for c in known)


def _page(tables: list[Table], form: str, best: str, second: str, escape: Any) -> str:
    wrap = {BEST: best, SECOND: second, "": "{}"}
    page = TEMPLATES.get_template(f"table.{form}").render(
        tables=tables,
        grids=grids,
        parts=_parts,
        embedded_note=embedded_note,
        escape=escape,
        heads=lambda grid: [escape(head) for head in grid.head],
        marked=lambda row: [wrap[mark].format(escape(text)) for text, mark in row],
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


FORMATS = {
    "text": to_text,
    "md": partial(_page, form="md", best="**{}**", second="<ins>{}</ins>", escape=_md),
    "tex": partial(  # floats as wide as the text; wide tables are tabulars below each other
        _page, form="tex", best=r"\textbf{{{}}}", second=r"\underline{{{}}}", escape=_tex
    ),
    "csv": to_csv,
    "html": partial(  # one page that asks nothing of any network
        _page, form="html", best="<b>{}</b>", second="<u>{}</u>", escape=html.escape
    ),
}
