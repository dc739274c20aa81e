"""Tables 1-4: ours beside the paper's, from the records under `runs/`.

    python experiments/tables.py table2 [--runs runs] [--format text|md|tex|csv|html] [--reference RUN]

Only comparable clips share a table: one backbone, step count and video size, and every knob that
the table does not vary held at one value, which a note names. Held is the combination with the
most finished clips among those that give at least two rows (one row compares nothing). Whatever
that leaves out is counted in a note.

Our columns stand left. A VBench dimension is headed `VBench ...`, every other score `own ...`, and
Temporal, Visual and Mean stay empty until all their dimensions exist. The paper's columns stand
right, each headed by its backbone and hardware: compare how the rows differ, not the levels.

A score marked `*` differs from that of one row, the reference: prompt by prompt, with an interval
that leaves out 0 (`s2flow.metrics`). The differences themselves stand in a second table. The
reference is the row of run `--reference`, else the one with the paper's setting, else the first with
clips.

md, tex and html (sheet.py) mark the best and second best of comparable rows and end with the origin
of every number: its run and how many clips of it; csv has the same as columns. `clips` is n of N, the
clips asked for: `--of` prompts, else the paper's 473 for a real backbone, or all that any row has.
What is missing is said on stderr with the command that makes it; `--strict` then ends with 1.

Deviation: the paper's t_i counts steps of 50; t_i of N steps is matched by the fraction t_i / N.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips import (
    CLIP,
    GROUP,
    KNOBS,
    OTHER_KNOBS,
    Record,
    is_done,
    read_records,
    score_columns,
    scores_by_clip,
)
from missing import command, missing_rows
from output import (
    EMBEDDED,
    MINUS,
    PAPER,
    VBENCH,
    Table,
    describe,
    difference_note,
    held_note,
    paper_note,
    provenance_notes,
    score_notes,
    to_csv,
    to_markdown,
)
from sheet import to_html, to_md, to_tex

from s2flow import metrics
from s2flow.metrics import PairedDifference

if TYPE_CHECKING:
    from pandas import DataFrame

PAPER_FILE = Path(__file__).with_name("paper.json")
AGGREGATES = {"Temporal": "temporal", "Visual": "visual", "Mean": "mean"}  # column -> metrics'


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

    alike: dict[tuple, tuple[Record, Counter]] = {}  # by combination: a record, clips by row
    values_of = itemgetter(*knobs)
    for r in records:
        _, clips = alike.setdefault(values_of(r), (r, Counter()))
        clips[row_key(name, r)] += 1

    def rank(values: tuple) -> tuple:
        held = dict(zip(knobs, values, strict=True))
        fitting = [(r, clips) for r, clips in alike.values() if is_comparable(r, held)]
        agreed, steps = sum(held.get(k) == v for k, v in theirs.items()), fitting[0][0]["steps"]
        if held.get("t_i") and steps:
            agreed += held["t_i"] * setting["steps"] == setting["t_i"] * steps
        rows = sum((clips for _, clips in fitting), Counter())
        return (min(len(rows), 2), rows.total(), agreed, str(values))

    combinations = set(alike)
    return dict(zip(knobs, max(combinations, key=rank), strict=True))


def is_comparable(record: Record, held: Record) -> bool:
    """Whether every held knob has its value, or does not concern this record."""
    return all(record[k] is None or record[k] == value for k, value in held.items())


# -- tables -----------------------------------------------------------------------------------


def make_tables(
    name: str,
    frame: "DataFrame",
    paper: Mapping[str, Any],
    reference: str | None = None,
    of: int | None = None,
) -> list[Table]:
    """One table per backbone, steps and size that has finished clips, the largest first."""
    groups: dict[tuple, list[Record]] = {}
    for r in read_records(frame):
        wanted = r["method"] is not None if name == "table1" else r["method"] == "s2flow"
        if wanted and set(row_key(name, r)) != {None}:
            groups.setdefault(tuple(r[k] for k in GROUP), []).append(r)
    groups = {key: rs for key, rs in groups.items() if any(map(is_done, rs))}
    by_size = sorted(groups.values(), key=lambda rs: -sum(map(is_done, rs)))
    return [make_table(name, records, paper, reference, of) for records in by_size]


def make_table(
    name: str,
    records: list[Record],
    paper: Mapping[str, Any],
    reference: str | None = None,
    of: int | None = None,
) -> Table:
    """The table of one group of records, the paper's rows first and in its order.

    of: how many prompts were asked for; None: see the module's docstring.
    """
    held = choose_held(name, [r for r in records if is_done(r)], paper)
    ours: dict[tuple, list[Record]] = {}
    fits: dict[tuple, bool] = {}  # the clips of a run have their knobs in common
    values_of = itemgetter(*held)
    for r in records:
        knobs = values_of(r)
        if knobs not in fits:
            fits[knobs] = is_comparable(r, held)
        if fits[knobs]:
            ours.setdefault(row_key(name, r), []).append(r)
    ours = {key: _largest_run(rs) for key, rs in ours.items()}
    theirs = {row_key(name, row): row for row in paper_rows(name, paper)}
    extras = sorted((key for key in ours if key not in theirs), key=str)

    used = [r for rs in ours.values() for r in rs]
    embedded = records[0]["backbone"] in EMBEDDED
    asked = _asked(used, paper, of, embedded)
    clips = max(asked[0] * asked[1], len({tuple(r[k] for k in CLIP) for r in used}))
    scores = _score_names(used)
    rows, labelled, counts = [], {}, {}
    for key in (*theirs, *extras):
        clip_rows, paper_row = ours.get(key, []), theirs.get(key)
        label = row_label(name, clip_rows[0] if clip_rows else paper_row)
        if clip_rows:
            labelled[label] = clip_rows
            counts[label] = clip_counts(clip_rows, scores)
        cells = {"setting": label} | our_cells(name, clip_rows, clips, scores)
        published = their_cells(name, paper_row)
        rows.append(cells | published | ({} if embedded else _minus_paper(cells, published)))
    if name == "table2":
        _add_speedup(rows)
    usual = ours.get(next((k for k, row in theirs.items() if is_usual(row, paper)), None), [])
    base = choose_reference(labelled, usual, reference)
    differences = {} if base is None else row_differences(labelled, base, scores)
    first = records[0]
    group = {k: first[k] for k in GROUP}
    left_out = sum(map(is_done, records)) - sum(map(is_done, used))
    notes = [held_note(held, first["steps"]), *provenance_notes(labelled, left_out)]
    notes += difference_note(base if differences else None)
    notes += [*score_notes(labelled, scores), paper_note(paper)]
    title = f"Table {name[-1]}, {TABLES[name].title}: {describe(group)}"
    if not embedded and of is None:
        notes.append(f"N: the {asked[0]} prompts of the paper's subset; --of says otherwise")
    lacking = missing_rows(rows, clips)
    varied = TABLES[name].varied
    makes = command(name, group, held, varied, asked, embedded)
    return Table(title, group, rows, notes, base, differences, counts, lacking, makes)


def _asked(
    used: list[Record], paper: Mapping[str, Any], of: int | None, embedded: bool
) -> tuple[int, int]:
    """Prompts and seeds that a full row has."""
    prompts = len({(r["prompt"], r["original_prompt"]) for r in used})
    return of or (prompts if embedded else paper["setting"]["prompts"]), len(
        {r["seed"] for r in used}
    )


def _minus_paper(ours: Record, published: Record) -> Record:
    """Ours minus the published number, of a real backbone and where both are there."""
    found = {}
    for column in published:
        title = column.removeprefix(PAPER)
        mine = title if title in AGGREGATES else f"VBench {title}"
        if title in AGGREGATES or title in metrics.SIX:
            pair = ours.get(mine), published[column]
            found[MINUS + title] = None if None in pair else pair[0] - pair[1]
    return found


def is_usual(row: Mapping[str, Any], paper: Mapping[str, Any]) -> bool:
    """Whether a row of the paper is S2Flow at the setting that its other tables hold."""
    setting = {k: paper["setting"][k] for k in ("sparsity", "order", "t_i")}
    setting |= {"method": "s2flow", "windows": "adaptive"}
    return all(row.get(k) in (None, v) for k, v in setting.items())


def choose_reference(
    ours: dict[str, list[Record]], usual: list[Record], run_id: str | None
) -> str | None:
    """The setting that the others are compared with; None where no row has a finished clip."""
    done = {label: rs for label, rs in ours.items() if any(map(is_done, rs))}
    wanted = [label for label, rs in done.items() if rs[0]["run_id"] == run_id]
    wanted += [label for label, rs in done.items() if rs is usual]
    return next(iter([*wanted, *done]), None)


def row_differences(
    ours: dict[str, list[Record]], base: str, scores: list[str]
) -> dict[str, dict[str, PairedDifference]]:
    """Of each row but `base`, by its label: every score minus that of `base`, by column."""
    columns = {f"VBench {s}": s for s in scores if s in VBENCH} | AGGREGATES
    columns |= {f"own {s}": s for s in scores if s not in VBENCH}
    reference, found = scores_by_clip(ours[base]), {}
    for label, records in ours.items():
        if label != base and any(map(is_done, records)):
            of = metrics.paired_runs(scores_by_clip(records), reference, columns.values())
            found[label] = {column: of[score] for column, score in columns.items()}
    return found


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
    cells |= {title: metrics.AGGREGATES[k](means) for title, k in AGGREGATES.items()}
    cells |= {f"own {s}": means[s] for s in scores if s not in VBENCH}
    cells["run"] = records[0]["run_id"] if records else None
    return cells


def clip_counts(records: list[Record], scores: list[str]) -> dict[str, int]:
    """How many finished clips are behind each of our columns; of a mean, its scarcest dimension."""
    done = [r for r in records if is_done(r)]

    def count(column: str) -> int:
        return sum(r.get(column) is not None for r in done)

    found = {"f": count("realised_density"), "seconds hr": count("seconds_hr")}
    found |= {"HR speed-up": found["seconds hr"]}
    n = {s: count(f"score_{s}") for s in scores}
    found |= {f"VBench {s}": n[s] for s in scores if s in VBENCH}
    parts = {title: metrics.PARTS[name] for title, name in AGGREGATES.items()}
    found |= {title: min(n.get(s, 0) for s in of) for title, of in parts.items()}
    return found | {f"own {s}": n[s] for s in scores if s not in VBENCH}


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
    recorded = [k for k in score_columns(records) if any(r.get(k) is not None for r in records)]
    names = {k.removeprefix("score_") for k in recorded}
    return [s for s in VBENCH if s in names] + sorted(names - set(VBENCH))


def _add_speedup(rows: list[Record]) -> None:
    """HR seconds of full attention / HR seconds of the row; LR is shared, so it does not enter."""
    full = next((r["seconds hr"] for r in rows if r["setting"].startswith("s=1 ")), None)
    for row in rows:
        if full and row["seconds hr"]:
            row["HR speed-up"] = full / row["seconds hr"]


FORMATS = {
    "text": lambda tables: "\n\n".join(map(to_markdown, tables)) + "\n",
    "md": to_md,
    "tex": to_tex,
    "csv": to_csv,
    "html": to_html,
}


def main(argv: list[str] | None = None) -> int:
    """Print one table; 1 if there is nothing to print yet, or with --strict not all of it."""
    args = parsed(argv)
    paper = json.loads(PAPER_FILE.read_text(encoding="utf-8"))
    tables, there = [], args.runs.is_dir()
    if (args.runs / "records").is_dir():
        print(f"--runs {args.runs} is one run; type the folder that holds it", file=sys.stderr)
        return 1
    if there:
        from s2flow.store import load_records

        try:
            frame = load_records(args.runs)
            tables = make_tables(args.table, frame, paper, args.reference, args.of)
        except ValueError as error:  # a score on another scale, or a store that cannot be read
            print(f"{args.table}: {error}", file=sys.stderr)
            return 1
    where = "" if args.runs == Path("runs") else f" runs_dir={shlex.quote(str(args.runs))}"
    if not tables:
        print(
            f"no finished clips for {args.table} in {args.runs}/"
            f"{'' if there else ', which does not exist'}; make them with: "
            f"python run.py experiment={args.table}{where}",
            file=sys.stderr,
        )
        return 1
    runs = [row["run"] for table in tables for row in table.rows if row["run"]]
    if args.reference is not None and args.reference not in runs:
        print(
            f"--reference {args.reference} is no row of {args.table}; type one of {', '.join(runs)}",
            file=sys.stderr,
        )
        return 1
    print(FORMATS[args.format](tables), end="")
    lacking = [table for table in tables if table.missing]
    for table in lacking:
        print(
            f"missing in {table.title.partition(':')[0]} of {table.group['backbone']}: "
            f"{', '.join(table.missing)}; make them with: {table.command}{where}",
            file=sys.stderr,
        )
    return int(args.strict and bool(lacking))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the store (runs)")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--reference", help="run id of the row that others are compared with")
    parser.add_argument("--of", type=int, help="prompts that were asked for")
    parser.add_argument("--strict", action="store_true", help="end with 1 if clips are missing")
    args = parser.parse_args(argv)
    if args.of is not None and args.of < 1:
        parser.error(f"--of {args.of} asks for no prompt; type --of 473")
    return args


if __name__ == "__main__":
    sys.exit(main())
