"""How a table looks: markdown or CSV, the notes below it, marks for what is a real difference.

A score is marked `*` where it differs from that of the table's reference row: the 95 % interval of
the paired difference (`s2flow.metrics`) leaves out 0, and at least six prompts differ. In markdown a
second table gives the differences themselves; in CSV they are columns beside the score.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clips import CLIP, USUAL, Record, is_done

from s2flow import metrics
from s2flow.metrics import PairedDifference

PAPER = "HunyuanVideo 8×H800: "
MINUS = PAPER + "ours minus its "
DASH = "—"
EMBEDDED = ("micro", "tiny")  # backbones of the family `tiny`: toy models
VBENCH = (
    *metrics.SIX,
    *("subject_consistency", "dynamic_degree", "object_class", "multiple_objects"),
    *("human_action", "color", "spatial_relationship", "scene", "appearance_style"),
    "temporal_style",
)  # all 16 dimensions


@dataclass(frozen=True)
class Table:
    """One printed table: cells by column (float, str or None), and notes that belong to it.

    differences: of each row minus the row `reference`, by setting and column. counts: clips behind
    each of our numbers, by setting and column. missing, command: rows that lack clips, and what
    makes them.
    """

    title: str
    group: Record
    rows: list[Record]
    notes: list[str]
    reference: str | None
    differences: dict[str, dict[str, PairedDifference]]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    command: str = ""


# -- notes ------------------------------------------------------------------------------------


def describe(group: Record) -> str:
    """What all rows of a table share."""
    return (
        f"backbone {group['backbone']}, {group['steps']} steps, "
        f"{group['height']}×{group['width']} (height×width), {group['frames']} frames"
    )


def embedded_note(group: Record) -> list[str]:
    """Whose numbers these are, where a reader must be told."""
    if group["backbone"] not in EMBEDDED:
        return []
    return [
        f"Embedded backbone `{group['backbone']}`, a toy model of the package: our columns are its own "
        "and say nothing about the paper's model, whose published numbers stand apart"
    ]


def held_note(held: Record, steps: int | None) -> str:
    """The knobs that a table does not vary."""
    said = {k: v for k, v in held.items() if v is not None and USUAL.get(k) != v}
    if "t_i" in said:
        said["t_i"] = f"{said['t_i']} of {steps}"
    return "held: " + (", ".join(f"{k}={v}" for k, v in said.items()) or "nothing")


def provenance_notes(ours: dict[str, list[Record]], left_out: int) -> list[str]:
    """Where the rows, by their labels, come from, and why they might not be comparable."""
    used = [r for rs in ours.values() for r in rs]
    prompts = len({(r["prompt"], r["original_prompt"]) for r in used})
    seeds = len({r["seed"] for r in used})
    made = f"device {_values(used, 'device')}; commit {_values(used, 'commit')}"
    notes = [f"ours: {prompts} prompts, {seeds} seeds; {made}"]
    notes.append("s: the share that is kept; f: share of query-key pairs really computed")
    if left_out:
        notes.append(f"left out: {left_out} finished clips made with other settings")
    done = [frozenset(tuple(r[k] for k in CLIP) for r in rs if is_done(r)) for rs in ours.values()]
    if len(set(done)) > 1:
        notes.append("CAUTION: rows cover different clips, so their means are not paired")
    if len({r.get("device") for r in used}) > 1:
        notes.append("CAUTION: several devices, so seconds are not comparable")
    finished = [r for r in used if is_done(r) and r.get("low_flow_reused") is not None]
    reused = sum(r["low_flow_reused"] for r in finished)
    if reused:
        why = "their seconds lr, and so total, are what making it once took; compare seconds hr"
        notes.append(f"{reused} of {len(finished)} clips reused an LR flow: {why}")
    if len({r.get("metrics") for r in used if is_done(r)} - {None}) > 1:
        notes.append(
            "CAUTION: clips were scored by different scorers, versions or weights; "
            "`python -m s2flow.score` over all runs mends that"
        )
    for label, rs in ours.items():
        failed = sum(not is_done(r) for r in rs)
        if failed:
            notes.append(f"{label}: {failed} clips failed")
        ended = Counter(r.get("outcome") for r in rs)
        bad = sorted(f"{n} {word}" for word, n in ended.items() if word not in (None, "ok"))
        if bad:
            notes.append(f"CAUTION: of the {len(rs)} clips of {label} {', '.join(bad)}")
    return notes


def score_notes(ours: dict[str, list[Record]], scores: list[str]) -> list[str]:
    """What the scores are, and which clips lack them."""
    real = [s for s in scores if s in VBENCH]
    own = ", ".join(s for s in scores if s not in VBENCH) or "none"
    notes = [f"VBench dimensions: {', '.join(real) or 'none'}; our own, not VBench's: {own}"]
    missing = ", ".join(s for s in metrics.SIX if s not in real)
    if missing:
        notes.append(f"Temporal, Visual, Mean need all their dimensions; not scored: {missing}")
    for label, rs in ours.items():
        done = [r for r in rs if is_done(r)]
        for s in scores:
            scored = sum(r.get(f"score_{s}") is not None for r in done)
            if 0 < scored < len(done):
                note = f"{s} is over {scored} of {len(done)} clips"
                notes.append(f"{label}: {note}")
    return notes


def paper_note(paper: Mapping[str, Any]) -> str:
    """What the paper's columns were measured on."""
    s = paper["setting"]
    size = "×".join(map(str, reversed(s["high_resolution"])))
    made = f"{s['backbone']} on {s['gpus']}, {s['steps']} steps, {size}, {s['frames']} frames"
    return f"{PAPER}{made}, {s['prompts']} VBench prompts, as published ({paper['source']})"


def _values(records: list[Record], column: str) -> str:
    return ", ".join(sorted({str(r[column]) for r in records if r.get(column)})) or "unknown"


def difference_note(reference: str | None) -> list[str]:
    """What the marks mean, where there are any."""
    if reference is None:
        return []
    return [
        f"minus {reference}: on the prompts and seeds that both rows have, seeds averaged within the "
        "prompt; 95 % bootstrap intervals over prompts; *: 0 is outside, and 6 prompts or more differ. "
        "Each interval stands alone: of 20 differences that are none, one is marked"
    ]


# -- output -----------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A heading, the table, the differences, and the notes."""
    columns = list(table.rows[0])
    cells = [[marked_cell(table, row, c) for c in columns] for row in table.rows]
    parts = [f"### {table.title}", "", *(f"{n}\n" for n in embedded_note(table.group))]
    parts += [*_grid([columns, *cells]), ""]
    if table.differences:
        parts += [*_grid(difference_rows(table)), ""]
    return "\n".join([*parts, *(f"- {n}" for n in table.notes)])


def _grid(cells: list[list[str]]) -> list[str]:
    """Lines of a markdown table, its head first."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [cells[0], ["-" * width for width in widths], *cells[1:]]
    return [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]


def marked_cell(table: Table, row: Record, column: str) -> str:
    """One cell as text, with * where the row really differs from the reference in it."""
    found = table.differences.get(row["setting"], {}).get(column)
    return _cell(column, row[column]) + ("*" if found is not None and found.is_real else "")


def difference_rows(table: Table) -> list[list[str]]:
    """Head and rows: difference, interval, share of prompts won; prompts where all scores agree."""
    rows = table.differences.items()
    columns = [c for c in next(iter(table.differences.values())) if any(d[c].n for _, d in rows)]
    lines = [[f"minus {table.reference}", "prompts", *columns]]
    for setting, found in rows:
        most = max(d.n for d in found.values())
        lost = max(d.dropped for d in found.values() if d.n == most)
        prompts = f"{most} ({lost} dropped)" if lost else str(most)
        lines.append([setting, prompts, *(_difference(found[c], most) for c in columns)])
    return lines


def _difference(d: PairedDifference, prompts: int) -> str:
    if d.mean is None:
        return DASH
    mark = "*" if d.is_real else ""
    interval = f" [{d.low:+.4f}, {d.high:+.4f}]" if d.low is not None else ""
    fewer = f", {d.n} prompts" if d.n != prompts else ""
    return f"{d.mean:+.4f}{mark}{interval}, wins {d.wins:.0%}{fewer}"


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
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cell(column: str, value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    if column.startswith(MINUS):
        return f"{value:+.4f}"
    if "speed-up" in column or "seconds" in column:
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    if column.endswith("minutes"):
        return f"{value:g}"
    return f"{value:.4f}"


def _difference_cells(table: Table, row: Record) -> Record:
    cells: Record = {"minus": table.reference}
    for column, d in table.differences.get(row["setting"], {}).items():
        found = {"minus": d.mean, "low": d.low, "high": d.high, "real": int(d.is_real)}
        found |= {"prompts": d.n, "dropped": d.dropped, "wins": d.wins, "ties": d.ties}
        cells |= {f"{column} {k}": v for k, v in found.items()}
    return cells
