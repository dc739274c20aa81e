"""Tables 1-4: ours beside the paper's, from the records under `runs/`.

    python experiments/tables.py table2 [--runs runs] [--format md|csv]

Only comparable clips share a table: one backbone, step count and video size, and every knob that
the table does not vary held at one value, which a note names. Held is the combination with the
most finished clips among those that give at least two rows (one row compares nothing). Whatever
that leaves out is counted in a note.

Our columns stand left. A VBench dimension is headed `VBench ...`, every other score `own ...`, and
Temporal, Visual and Mean stay empty until all their dimensions exist. The paper's columns stand
right, each headed by its backbone and hardware: compare how the rows differ, not the levels.

Deviation: the paper's t_i counts steps of 50; t_i of N steps is matched by the fraction t_i / N.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2flow import metrics

if TYPE_CHECKING:
    from pandas import DataFrame

PAPER_FILE = Path(__file__).with_name("paper.json")
PAPER = "HunyuanVideo 8×H800: "
DASH = "—"

GROUP = ("backbone", "steps", "height", "width", "frames")
WINDOW_KNOBS = ("sparsity", "density", "windows")
SOLVER_KNOBS = ("solver", "order")
KNOBS = ("method", *WINDOW_KNOBS, *SOLVER_KNOBS, "t_i")
OTHER_KNOBS = ("weights", "low", "shift", "guidance", "negative_prompt", "handoff", "noise")
OTHER_KNOBS += ("stencil", "lr_time", "upsample", "brick_low", "brick_high", "coverage_rows")
OTHER_KNOBS += ("attention", "fidelity_reference")  # all held too, where they are recorded
FAILED = ("failed", "error")
AGGREGATES = {"Temporal": metrics.temporal, "Visual": metrics.visual, "Mean": metrics.mean}
VBENCH = (
    *metrics.SIX,
    *("subject_consistency", "dynamic_degree", "object_class", "multiple_objects"),
    *("human_action", "color", "spatial_relationship", "scene", "appearance_style"),
    "temporal_style",
)  # all 16 dimensions

Record = dict[str, Any]


@dataclass(frozen=True)
class Design:
    """What one of the paper's tables varies, and where its rows stand in `paper.json`."""

    title: str
    rows: str
    varied: tuple[str, ...]


TABLES = {
    "table1": Design("methods", "table1", ("method",)),
    "table2": Design("sparsity", "table2_sparsity", ("sparsity", "windows")),
    "table3": Design("solver order", "table3_order", ("order", "solver")),
    "table4": Design("hand-off step t_i", "table4_t_i", ("t_i",)),
}


@dataclass(frozen=True)
class Table:
    """One printed table: cells by column (float, str or None), and notes that belong to it."""

    title: str
    group: Record
    rows: list[Record]
    notes: list[str]


# -- records ----------------------------------------------------------------------------------


def read_records(frame: "DataFrame") -> list[Record]:
    """One dict per clip, None where a column or value is missing, and ignored knobs blanked.

    A knob that a run ignores must not tell equal runs apart: methods other than S2Flow have no
    windows and no solver, `native` and `bicubic` no hand-off, full attention no window shape,
    the window policy `coverage` no sparsity, `order` belongs to the solver `lri`, whose order 1
    is `euler`.
    """
    seen, records = set(), []
    for raw in frame.to_dict("records"):
        r = dict.fromkeys((*GROUP, *KNOBS, *OTHER_KNOBS, "run_id", "prompt", "seed", "status"))
        r |= {str(k): _plain(v) for k, v in raw.items()}
        if r["windows"] == "full":
            r["sparsity"] = 1
        if r["method"] != "s2flow":
            r |= dict.fromkeys((*WINDOW_KNOBS, *SOLVER_KNOBS))
        if r["method"] in ("native", "bicubic"):
            r["t_i"] = None
        if r["sparsity"] == 1:
            r |= {"windows": None, "density": None}
        if r["windows"] == "coverage":
            r |= {"sparsity": None, "density": None}
        if r["solver"] == "euler":
            r |= {"solver": "lri", "order": 1}
        if r["solver"] not in (None, "lri"):
            r["order"] = None
        key = (r["run_id"], r["prompt"], r["seed"])
        if None in key or key not in seen:
            records.append(r)
        seen.add(key)
    return records


def _plain(value: Any) -> Any:
    """A pandas cell as a plain value: NaN is None, 12.0 is 12, 0.30000000000000004 is 0.3."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() else round(value, 12)
    return tuple(value) if isinstance(value, list) else value


def is_done(record: Record) -> bool:
    """Whether the clip was finished, rather than recorded as failed."""
    return record["status"] not in FAILED


# -- which rows -------------------------------------------------------------------------------


def row_key(name: str, r: Mapping[str, Any]) -> tuple:
    """What makes two clips, or a clip and a row of the paper, the same row of a table."""
    if name == "table1":
        return (r["method"], r.get("variant"))
    if name == "table2":
        return (r["sparsity"], r["windows"] if r["sparsity"] != 1 else None)
    if name == "table3":
        return ("lri", r["order"]) if r["solver"] in (None, "lri") else (r["solver"], None)
    return (round(r["t_i"] / r["steps"], 6) if r["t_i"] and r["steps"] else None,)


def row_label(name: str, r: Mapping[str, Any]) -> str:
    """The row's name; `s` is the share that is kept."""
    if name == "table1":
        return " ".join(filter(None, (str(r["method"]), r.get("variant"))))
    if name == "table2" and r["sparsity"] is None:
        return str(r["windows"])
    if name == "table2":
        return f"s={r['sparsity']} {r['windows']}" if r["sparsity"] != 1 else "s=1 full attention"
    if name == "table3":
        return f"order {r['order']}" if r["solver"] in (None, "lri") else str(r["solver"])
    return f"t_i={r['t_i']} of {r['steps']}"


def paper_rows(name: str, paper: Mapping[str, Any]) -> list[Record]:
    """The paper's rows, each with the knobs of a record."""
    defaults = {"windows": None, "solver": "lri", "steps": paper["setting"]["steps"]}
    rows = [defaults | row for row in paper[TABLES[name].rows]]
    return [row | {"windows": row.get("window")} for row in rows]


def choose_held(name: str, records: list[Record], paper: Mapping[str, Any]) -> Record:
    """The values of the knobs that a table does not vary (see the module's docstring).

    Ties go to the combination that agrees with more of the paper's setting.
    """
    knobs = [k for k in (*KNOBS[1:], *OTHER_KNOBS) if k not in TABLES[name].varied]
    setting = paper["setting"]
    theirs = {"windows": "adaptive", "solver": "lri", "density": "volume"}
    theirs |= {"sparsity": setting["sparsity"], "order": setting["order"]}

    def rank(values: tuple) -> tuple:
        held = dict(zip(knobs, values, strict=True))
        fitting = [r for r in records if is_comparable(r, held)]
        agreed = sum(held.get(k) == v for k, v in theirs.items())
        if held.get("t_i") and fitting[0]["steps"]:
            agreed += held["t_i"] * setting["steps"] == setting["t_i"] * fitting[0]["steps"]
        rows = len({row_key(name, r) for r in fitting})
        return (min(rows, 2), len(fitting), agreed, str(values))

    combinations = {tuple(r[k] for k in knobs) for r in records}
    return dict(zip(knobs, max(combinations, key=rank), strict=True))


def is_comparable(record: Record, held: Record) -> bool:
    """Whether every held knob has its value, or does not concern this record."""
    return all(record[k] is None or record[k] == value for k, value in held.items())


# -- tables -----------------------------------------------------------------------------------


def make_tables(name: str, frame: "DataFrame", paper: Mapping[str, Any]) -> list[Table]:
    """One table per backbone, steps and size that has finished clips, the largest first."""
    groups: dict[tuple, list[Record]] = {}
    for r in read_records(frame):
        wanted = r["method"] is not None if name == "table1" else r["method"] == "s2flow"
        if wanted and set(row_key(name, r)) != {None}:
            groups.setdefault(tuple(r[k] for k in GROUP), []).append(r)
    groups = {key: rs for key, rs in groups.items() if any(map(is_done, rs))}
    by_size = sorted(groups.values(), key=lambda rs: -sum(map(is_done, rs)))
    return [make_table(name, records, paper) for records in by_size]


def make_table(name: str, records: list[Record], paper: Mapping[str, Any]) -> Table:
    """The table of one group of records, the paper's rows first and in its order."""
    held = choose_held(name, [r for r in records if is_done(r)], paper)
    ours: dict[tuple, list[Record]] = {}
    for r in records:
        if is_comparable(r, held):
            ours.setdefault(row_key(name, r), []).append(r)
    ours = {key: _largest_run(rs) for key, rs in ours.items()}
    theirs = {row_key(name, row): row for row in paper_rows(name, paper)}
    extras = sorted((key for key in ours if key not in theirs), key=str)

    used = [r for rs in ours.values() for r in rs]
    clips = len({(r["prompt"], r["seed"]) for r in used})
    scores = _score_names(used)
    rows = []
    for key in (*theirs, *extras):
        clip_rows, paper_row = ours.get(key, []), theirs.get(key)
        label = row_label(name, clip_rows[0] if clip_rows else paper_row)
        cells = {"setting": label} | our_cells(name, clip_rows, clips, scores)
        rows.append(cells | their_cells(name, paper_row))
    if name == "table2":
        _add_speedup(rows)
    first = records[0]
    group = {k: first[k] for k in GROUP}
    left_out = sum(map(is_done, records)) - sum(map(is_done, used))
    notes = [_held_note(held, first["steps"]), *_provenance_notes(name, ours, left_out)]
    notes += [*_score_notes(name, ours, scores), _paper_note(paper)]
    return Table(f"Table {name[-1]}, {TABLES[name].title}: {_describe(group)}", group, rows, notes)


def _largest_run(records: list[Record]) -> list[Record]:
    """The clips of one recipe: two run ids in one row differ in some knob that is not shown."""
    counts = Counter(r["run_id"] for r in records if is_done(r)) or Counter([records[0]["run_id"]])
    best = max(counts, key=lambda run_id: (counts[run_id], str(run_id)))
    return [r for r in records if r["run_id"] == best]


def our_cells(name: str, records: list[Record], clips: int, scores: list[str]) -> Record:
    """Clips, realised density f, seconds and mean scores of one row; None where nothing is."""
    done = [r for r in records if is_done(r)]
    cells: Record = {"clips": f"{len(done)} of {clips}" if records else None}
    cells["f"] = _average(done, "realised_density")
    for stage in ("total", "lr", "hr"):
        cells[f"seconds {stage}"] = _average(done, f"seconds_{stage}")
    if name == "table2":
        cells["HR speed-up"] = None  # filled in when all rows are known
    means = {score: _average(done, f"score_{score}") for score in scores}
    cells |= {f"VBench {s}": means[s] for s in scores if s in VBENCH}
    cells |= {title: aggregate(means) for title, aggregate in AGGREGATES.items()}
    cells |= {f"own {s}": means[s] for s in scores if s not in VBENCH}
    cells["run"] = records[0]["run_id"] if records else None
    return cells


def their_cells(name: str, row: Mapping[str, Any] | None) -> Record:
    """The published cells of one row, each headed by the backbone and hardware they come from."""
    columns = {"Temporal": "temporal", "Visual": "visual", "Mean": "mean"}
    if name == "table1":
        columns = {dimension: dimension for dimension in metrics.SIX}
        columns |= {"Mean": "mean", "speed-up": "speedup", "minutes": "minutes"}
    if name == "table2":
        columns |= {"speed-up": "speedup", "outcome": "outcome"}
    cells = {PAPER + title: (row or {}).get(key) for title, key in columns.items()}
    if name == "table4":  # matched by fraction, so the label is not ours
        cells = {PAPER + "t_i": row_label(name, row) if row else None} | cells
    return cells


def _average(records: list[Record], column: str) -> float | None:
    values = [r[column] for r in records if r.get(column) is not None]
    return sum(values) / len(values) if values else None


def _score_names(records: list[Record]) -> list[str]:
    """Scores that any clip has: VBench's in the paper's order, then our own by name."""
    recorded = {k for r in records for k, v in r.items() if v is not None}
    names = {k.removeprefix("score_") for k in recorded if k.startswith("score_")}
    return [s for s in VBENCH if s in names] + sorted(names - set(VBENCH))


def _add_speedup(rows: list[Record]) -> None:
    """HR seconds of full attention / HR seconds of the row; LR is shared, so it does not enter."""
    full = next((r["seconds hr"] for r in rows if r["setting"].startswith("s=1 ")), None)
    for row in rows:
        if full and row["seconds hr"]:
            row["HR speed-up"] = full / row["seconds hr"]


# -- notes ------------------------------------------------------------------------------------


def _describe(group: Record) -> str:
    return (
        f"backbone {group['backbone']}, {group['steps']} steps, "
        f"{group['height']}×{group['width']} (height×width), {group['frames']} frames"
    )


def _held_note(held: Record, steps: int | None) -> str:
    said = {k: v for k, v in held.items() if v is not None}
    if "t_i" in said:
        said["t_i"] = f"{said['t_i']} of {steps}"
    return "held: " + (", ".join(f"{k}={v}" for k, v in said.items()) or "nothing")


def _provenance_notes(name: str, ours: dict[tuple, list[Record]], left_out: int) -> list[str]:
    used = [r for rs in ours.values() for r in rs]
    prompts, seeds = len({r["prompt"] for r in used}), len({r["seed"] for r in used})
    made = f"device {_values(used, 'device')}; commit {_values(used, 'commit')}"
    notes = [f"ours: {prompts} prompts, {seeds} seeds; {made}"]
    notes.append("s: the share that is kept; f: share of query-key pairs really computed")
    if left_out:
        notes.append(f"left out: {left_out} finished clips made with other settings")
    done = [frozenset((r["prompt"], r["seed"]) for r in rs if is_done(r)) for rs in ours.values()]
    if len(set(done)) > 1:
        notes.append("CAUTION: rows cover different clips, so their means are not paired")
    if len({r.get("device") for r in used}) > 1:
        notes.append("CAUTION: several devices, so seconds are not comparable")
    finished = [r for r in used if is_done(r) and r["method"] != "native"]
    reused = sum(r.get("seconds_lr") is None for r in finished)
    if reused:
        why = "seconds lr is over the others, seconds total lacks it; compare seconds hr"
        notes.append(f"{reused} of {len(finished)} clips reused an LR flow: {why}")
    for rs in ours.values():
        failed = sum(not is_done(r) for r in rs)
        if failed:
            notes.append(f"{row_label(name, rs[0])}: {failed} clips failed")
    return notes


def _score_notes(name: str, ours: dict[tuple, list[Record]], scores: list[str]) -> list[str]:
    real = [s for s in scores if s in VBENCH]
    own = ", ".join(s for s in scores if s not in VBENCH) or "none"
    notes = [f"VBench dimensions: {', '.join(real) or 'none'}; our own, not VBench's: {own}"]
    missing = ", ".join(s for s in metrics.SIX if s not in real)
    if missing:
        notes.append(f"Temporal, Visual, Mean need all their dimensions; not scored: {missing}")
    for rs in ours.values():
        done = [r for r in rs if is_done(r)]
        for s in scores:
            scored = sum(r.get(f"score_{s}") is not None for r in done)
            if 0 < scored < len(done):
                note = f"{s} is over {scored} of {len(done)} clips"
                notes.append(f"{row_label(name, rs[0])}: {note}")
    return notes


def _paper_note(paper: Mapping[str, Any]) -> str:
    s = paper["setting"]
    size = "×".join(map(str, reversed(s["high_resolution"])))
    made = f"{s['backbone']} on {s['gpus']}, {s['steps']} steps, {size}, {s['frames']} frames"
    return f"{PAPER}{made}, {s['prompts']} VBench prompts, as published ({paper['source']})"


def _values(records: list[Record], column: str) -> str:
    return ", ".join(sorted({str(r[column]) for r in records if r.get(column)})) or "unknown"


# -- output -----------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """A heading, the table and its notes."""
    columns = list(table.rows[0])
    cells = [columns, *([_cell(c, row[c]) for c in columns] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([f"### {table.title}", "", *lines, "", *(f"- {n}" for n in table.notes)])


def to_csv(tables: list[Table]) -> str:
    """All groups below each other, numbers unrounded, empty where nothing is."""
    rows = [table.group | row for table in tables for row in table.rows]
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
    if "speed-up" in column or "seconds" in column:
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    if column.endswith("minutes"):
        return f"{value:g}"
    return f"{value:.4f}"


def main(argv: list[str] | None = None) -> int:
    """Print one table; 1 if there is nothing to print yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the store (default: runs)"
    )
    parser.add_argument("--format", choices=("md", "csv"), default="md")
    args = parser.parse_args(argv)
    paper = json.loads(PAPER_FILE.read_text(encoding="utf-8"))
    tables = []
    if args.runs.is_dir():
        from s2flow.store import load_records

        try:
            tables = make_tables(args.table, load_records(args.runs), paper)
        except ValueError as error:  # a score on another scale, or a store that cannot be read
            print(f"{args.table}: {error}", file=sys.stderr)
            return 1
    if not tables:
        print(
            f"no finished clips for {args.table} in {args.runs}/; make them with: "
            f"python run.py experiment={args.table}",
            file=sys.stderr,
        )
        return 1
    if args.format == "csv":
        print(to_csv(tables), end="")
    else:
        print("\n\n".join(map(to_markdown, tables)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
