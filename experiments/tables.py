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
clips. Formats, and the marks of best and second best, are in sheet.py.

`clips` is n of N, the clips asked for: `--of` prompts, else the paper's 473 for a real backbone, or
all that any row has. What is missing is printed to stderr with the command that makes it; `--strict`
then ends with 1.

Deviation: the paper's t_i counts steps of 50; t_i of N steps is matched by the fraction t_i / N.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import notes
import pandas as pd
from clips import CLIP, DEFAULTS, GROUP, KNOBS, OTHER_KNOBS, Record, Run, read_runs
from notes import EMBEDDED, PAPER, PAPER_NUMBERS, SETTING, VBENCH
from sheet import MINUS, Table, to_csv, to_html, to_md, to_tex, to_text

from s2flow import metrics

if TYPE_CHECKING:
    from s2flow.metrics import PairedDifference

AGGREGATES = {"Temporal": "temporal", "Visual": "visual", "Mean": "mean"}  # column -> metrics'
HAND_OFFS = (0.8, 0.6, 0.4, 0.2)  # Table 4's t_i, as shares of the steps
FORMATS = {"text": to_text, "md": to_md, "tex": to_tex, "csv": to_csv, "html": to_html}


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
    """What makes two runs, or a run and a row of the paper, the same row of a table."""
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


def paper_rows(name: str) -> dict[tuple, Record]:
    """The paper's rows by their keys, each with the knobs of a run."""
    defaults = {"windows": None, "solver": "lri", "steps": SETTING["steps"]}
    rows = [defaults | row for row in PAPER_NUMBERS[TABLES[name].rows]]
    rows = [row | {"windows": row.get("window")} for row in rows]
    return {row_key(name, row): row for row in rows}


def choose_held(name: str, runs: list[Run]) -> Record:
    """The values of the knobs that a table does not vary (see the module's docstring).

    Ties go to the combination that agrees with more of the paper's setting.
    """
    knobs = [k for k in (*KNOBS[1:], *OTHER_KNOBS) if k not in TABLES[name].varied]
    usual = {"windows": "adaptive", "solver": "lri", "density": "volume"}
    usual |= {"sparsity": SETTING["sparsity"], "order": SETTING["order"]}

    def rank(held: Record) -> tuple:
        fitting = [r for r in runs if is_comparable(r.knobs, held)]
        rows: Counter = Counter()
        for run in fitting:
            rows[row_key(name, run.knobs)] += len(run.done)
        agreed, steps = sum(held.get(k) == v for k, v in usual.items()), runs[0].knobs["steps"]
        if held.get("t_i") and steps:
            agreed += held["t_i"] * SETTING["steps"] == SETTING["t_i"] * steps
        return (min(len(rows), 2), rows.total(), agreed, str(list(held.values())))

    combinations = {tuple(r.knobs[k] for k in knobs) for r in runs}
    return max((dict(zip(knobs, values, strict=True)) for values in combinations), key=rank)


def is_comparable(knobs: Record, held: Record) -> bool:
    """Whether every held knob has its value, or does not concern this run."""
    return all(knobs[k] is None or knobs[k] == value for k, value in held.items())


def is_usual(row: Mapping[str, Any]) -> bool:
    """Whether a row of the paper is S2Flow at the setting that its other tables hold."""
    setting = {k: SETTING[k] for k in ("sparsity", "order", "t_i")}
    setting |= {"method": "s2flow", "windows": "adaptive"}
    return all(row.get(k) in (None, v) for k, v in setting.items())


def choose_reference(rows: dict[str, Run], usual: Run | None, run_id: str | None) -> str | None:
    """The setting that the others are compared with; None where no row has a finished clip."""
    done = {label: run for label, run in rows.items() if len(run.done)}
    wanted = [label for label, run in done.items() if run.id == run_id]
    wanted += [label for label, run in done.items() if run is usual]
    return next(iter([*wanted, *done]), None)


# -- tables -----------------------------------------------------------------------------------


def make_tables(
    name: str, frame: pd.DataFrame, reference: str | None = None, of: int | None = None
) -> list[Table]:
    """One table per backbone, steps and size that has finished clips, the largest first."""
    groups: dict[tuple, list[Run]] = {}
    for run in read_runs(frame):
        method = run.knobs["method"]
        wanted = method is not None if name == "table1" else method == "s2flow"
        if wanted and set(row_key(name, run.knobs)) != {None}:
            groups.setdefault(tuple(run.knobs[k] for k in GROUP), []).append(run)
    by_size = sorted(groups.values(), key=_finished, reverse=True)
    return [make_table(name, runs, reference, of) for runs in by_size if _finished(runs)]


def _finished(runs: list[Run]) -> int:
    return sum(len(run.done) for run in runs)


def make_table(
    name: str, runs: list[Run], reference: str | None = None, of: int | None = None
) -> Table:
    """The table of one group of runs, the paper's rows first and in its order.

    Of several runs of one row, which differ in a knob that is not shown, the largest is taken.
    of: how many prompts were asked for; None: see the module's docstring.
    """
    held = choose_held(name, [r for r in runs if len(r.done)])
    ours: dict[tuple, Run] = {}
    for run in runs:
        if is_comparable(run.knobs, held):
            key = row_key(name, run.knobs)
            ours[key] = max(ours.get(key, run), run, key=lambda r: (len(r.done), r.id))
    group = {k: runs[0].knobs[k] for k in GROUP}
    embedded = group["backbone"] in EMBEDDED
    used = pd.concat([run.clips for run in ours.values()])
    asked = _asked(used, of, embedded)
    clips = max(asked[0] * asked[1], len(used.drop_duplicates(CLIP)))
    scores = _score_names(used)
    rows, labelled = _rows(name, ours, clips, scores, embedded)
    usual = next((k for k, row in paper_rows(name).items() if is_usual(row)), None)
    base = choose_reference(labelled, ours.get(usual), reference)
    differences = {} if base is None else row_differences(labelled, base, scores)
    below = [notes.held_note(held, group["steps"])]
    below += notes.provenance_notes(labelled, _finished(runs) - _finished(list(ours.values())))
    below += [notes.difference_note(base)] if differences else []
    below += [*notes.score_notes(labelled, scores), notes.paper_note()]
    if not embedded and of is None:
        below.append(f"N: the {asked[0]} prompts of the paper's subset; --of says otherwise")
    return Table(
        title=f"Table {name[-1]}, {TABLES[name].title}: {notes.describe(group)}",
        group=group,
        rows=rows,
        notes=below,
        runs=labelled,
        reference=base,
        differences=differences,
        counts={label: clip_counts(run, scores) for label, run in labelled.items()},
        missing=missing_rows(rows, clips),
        command=command(name, group, held, asked, embedded),
    )


def _rows(
    name: str,
    ours: dict[tuple, Run],
    clips: int,
    scores: list[str],
    embedded: bool,
) -> tuple[list[Record], dict[str, Run]]:
    """The cells of every row, ours and the paper's, and our runs by setting."""
    rows, labelled = [], {}
    published = paper_rows(name)
    for key in (*published, *sorted(ours.keys() - published.keys(), key=str)):
        run, row = ours.get(key), published.get(key)
        label = row_label(name, row if run is None else run.knobs)
        if run is not None:
            labelled[label] = run
        cells = {"setting": label} | our_cells(name, run, clips, scores)
        paper_side = paper_cells(name, row)
        rows.append(cells | paper_side | ({} if embedded else _minus_paper(cells, paper_side)))
    if name == "table2":
        _add_speedup(rows)
    return rows, labelled


def _asked(used: pd.DataFrame, of: int | None, embedded: bool) -> tuple[int, int]:
    """Prompts and seeds that a full row has."""
    prompts = len(used.drop_duplicates(["prompt", "original_prompt"]))
    prompts = of or (prompts if embedded else SETTING["prompts"])
    return prompts, used["seed"].nunique()


def _score_names(used: pd.DataFrame) -> list[str]:
    """Scores that any clip has: VBench's in the paper's order, then our own by name."""
    recorded = [c for c in used if c.startswith("score_") and used[c].notna().any()]
    names = {c.removeprefix("score_") for c in recorded}
    return [s for s in VBENCH if s in names] + sorted(names - set(VBENCH))


def our_cells(name: str, run: Run | None, clips: int, scores: list[str]) -> Record:
    """Clips, realised density f, seconds and mean scores of one row; None where nothing is."""

    def mean(column: str) -> float | None:
        return None if run is None else run.mean(column)

    cells: Record = {"clips": None if run is None else f"{len(run.done)} of {clips}"}
    cells["f"] = mean("realised_density")
    cells |= {f"seconds {stage}": mean(f"seconds_{stage}") for stage in ("total", "lr", "hr")}
    if name == "table2":
        cells["HR speed-up"] = None  # filled in when all rows are known
    means = {score: mean(f"score_{score}") for score in scores}
    means |= {k: formula(means) for k, formula in metrics.AGGREGATES.items()}
    cells |= {title: means[score] for title, score in score_columns(scores).items()}
    return cells | {"run": None if run is None else run.id}


def score_columns(scores: list[str]) -> dict[str, str]:
    """The score or aggregate in each column: VBench's dimensions, their means, our own."""
    own = {f"own {s}": s for s in scores if s not in VBENCH}
    return {f"VBench {s}": s for s in scores if s in VBENCH} | AGGREGATES | own


def clip_counts(run: Run, scores: list[str]) -> dict[str, int]:
    """How many finished clips are behind each of our columns; of a mean, its scarcest dimension."""
    counts = {
        "f": len(run.values("realised_density")),
        "seconds hr": len(run.values("seconds_hr")),
    }
    counts["HR speed-up"] = counts["seconds hr"]
    for title, score in score_columns(scores).items():
        parts = metrics.PARTS.get(score, (score,))
        counts[title] = min(len(run.values(f"score_{part}")) for part in parts)
    return counts


def row_differences(
    rows: dict[str, Run], base: str, scores: list[str]
) -> dict[str, dict[str, "PairedDifference"]]:
    """Of each row but `base`, by its label: every score minus that of `base`, by column."""
    columns = score_columns(scores)
    reference, differences = rows[base].scores(), {}
    for label, run in rows.items():
        if label != base and len(run.done):
            of = metrics.paired_runs(run.scores(), reference, columns.values())
            differences[label] = {column: of[score] for column, score in columns.items()}
    return differences


def paper_cells(name: str, row: Mapping[str, Any] | None) -> Record:
    """The published cells of one row, each headed by the backbone and hardware they come from."""
    columns = dict(AGGREGATES)
    if name == "table1":
        columns = {dimension: dimension for dimension in metrics.SIX}
        columns |= {"Mean": "mean", "speed-up": "speedup", "minutes": "minutes"}
    if name == "table2":
        columns |= {"speed-up": "speedup", "outcome": "outcome"}
    cells = {PAPER + title: (row or {}).get(key) for title, key in columns.items()}
    if name == "table4":  # matched by fraction, so the label is not ours
        cells = {PAPER + "t_i": row_label(name, row) if row else None} | cells
    return cells


def _minus_paper(ours: Record, published: Record) -> Record:
    """Ours minus the published number, of a real backbone and where both are there."""
    cells = {}
    for column, value in published.items():
        title = column.removeprefix(PAPER)
        if title in AGGREGATES or title in metrics.SIX:
            mine = ours.get(title if title in AGGREGATES else f"VBench {title}")
            cells[MINUS + title] = None if None in (mine, value) else mine - value
    return cells


def _add_speedup(rows: list[Record]) -> None:
    """HR seconds of full attention / HR seconds of the row; LR is shared, so it does not enter."""
    full = next((r["seconds hr"] for r in rows if r["setting"].startswith("s=1 ")), None)
    for row in rows:
        if full and row["seconds hr"]:
            row["HR speed-up"] = full / row["seconds hr"]


# -- what is missing --------------------------------------------------------------------------


def missing_rows(rows: list[Record], wanted: int) -> list[str]:
    """The rows with fewer finished clips than asked for, in words."""
    done = {row["setting"]: int((row["clips"] or "0").split()[0]) for row in rows}
    return [f"{label} ({n} of {wanted} clips)" for label, n in done.items() if n < wanted]


def command(name: str, group: Record, held: Record, asked: tuple[int, int], embedded: bool) -> str:
    """The command that makes what this table lacks; asked: prompts, seeds.

    t_i is always given, since its default follows the backbone; of Table 4 the paper's fractions.
    """
    prompts, seeds = asked
    words = [f"experiment={name}"]
    words += (
        [f"prompts.count={prompts}"] if embedded else ["prompts=vbench", "prompts.subset=half"]
    )
    words += [f"seeds={seeds}"] if seeds > 1 else []
    words += [f"backbone={group['backbone']}"] if group["backbone"] != "micro" else []
    steps = group["steps"]
    if name == "table4":
        words.append("t_i=" + ",".join(str(round(steps * f)) for f in HAND_OFFS))
    for knob in ("sparsity", "windows", "density", "solver", "order", "t_i", "handoff", "noise"):
        value = held.get(knob)
        if knob not in TABLES[name].varied and value not in (None, DEFAULTS.get(knob)):
            words.append(f"{knob}={value}")
    words += [f"steps={steps}", f"high=[{group['height']},{group['width']}]"]
    words.append(f"frames={group['frames']}")
    return "python run.py " + " ".join(map(shlex.quote, words))


# -- the command line -------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Print one table; 1 if there is nothing to print yet, or with --strict not all of it."""
    args = parsed(argv)
    where = "" if args.runs == Path("runs") else f" runs_dir={shlex.quote(str(args.runs))}"
    try:
        tables = _read(args, where)
    except ValueError as error:
        print(error, file=sys.stderr)
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


def _read(args: argparse.Namespace, where: str) -> list[Table]:
    """The tables asked for. Raises ValueError, in one line, if there is none."""
    tables, exists = [], args.runs.is_dir()
    if (args.runs / "records").is_dir():
        raise ValueError(f"--runs {args.runs} is one run; type the folder that holds it")
    if exists:
        from s2flow.store import load_records  # heavy, and not needed for --help

        try:
            frame = load_records(args.runs)
            tables = make_tables(args.table, frame, args.reference, args.of)
        except ValueError as error:  # a score on another scale, or a store that cannot be read
            raise ValueError(f"{args.table}: {error}") from error
    if not tables:
        absent = "" if exists else ", which does not exist"
        raise ValueError(
            f"no finished clips for {args.table} in {args.runs}/{absent}; make them with: "
            f"python run.py experiment={args.table}{where}"
        )
    runs = [row["run"] for table in tables for row in table.rows if row["run"]]
    if args.reference is not None and args.reference not in runs:
        known = ", ".join(runs)
        raise ValueError(
            f"--reference {args.reference} is no row of {args.table}; type one of {known}"
        )
    return tables


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
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
