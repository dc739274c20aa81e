"""The rows of Tables 1-4: which runs share a table, ours beside the paper's, what is missing.

See `tables.py`, the command, for what is held, compared and left out.

Deviation: the paper's t_i counts steps of 50; t_i of N steps is matched by the fraction t_i / N.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import notes
import pandas as pd
from clips import CLIP, DEFAULTS, GROUP, KNOBS, OTHER_KNOBS, Record, Run, read_runs
from notes import EMBEDDED, PAPER, PAPER_NUMBERS, SETTING, VBENCH
from sheet import MINUS, Table

from s2flow import metrics

if TYPE_CHECKING:
    from s2flow.metrics import PairedDifference

AGGREGATES = {"Temporal": "temporal", "Visual": "visual", "Mean": "mean"}  # column -> metrics'
HAND_OFFS = (0.8, 0.6, 0.4, 0.2)  # Table 4's t_i, as shares of the steps


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


def make_tables(
    name: str, frame: pd.DataFrame, reference: str | None = None, of: int | None = None
) -> list[Table]:
    """One table per backbone, steps and size that has finished clips, the largest first.

    reference: run id of the row that others are compared with; of: how many prompts were asked for.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in read_runs(frame):
        method = run.knobs["method"]
        wanted = method is not None if name == "table1" else method == "s2flow"
        if wanted and set(row_key(name, run.knobs)) != {None}:
            groups.setdefault(tuple(run.knobs[k] for k in GROUP), []).append(run)
    by_size = sorted(groups.values(), key=_finished, reverse=True)
    return [_table(name, runs, reference, of) for runs in by_size if _finished(runs)]


def _finished(runs: Iterable[Run]) -> int:
    return sum(len(run.done) for run in runs)


def _table(name: str, runs: list[Run], reference: str | None, of: int | None) -> Table:
    """The table of one group of runs, the paper's rows first and in its order.

    Of several runs of one row, which differ in a knob that is not shown, the largest is taken.
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
    prompts = len(used.drop_duplicates(["prompt", "original_prompt"]))
    prompts = of or (prompts if embedded else SETTING["prompts"])
    seeds = used["seed"].nunique()
    clips = max(prompts * seeds, len(used.drop_duplicates(CLIP)))  # of a full row
    recorded = [c for c in used if c.startswith("score_") and used[c].notna().any()]
    names = {c.removeprefix("score_") for c in recorded}
    scores = [s for s in VBENCH if s in names] + sorted(names - set(VBENCH))

    rows, labelled = _rows(name, ours, clips, scores, embedded)
    base = _reference(paper_rows(name), ours, labelled, reference)
    differences = {} if base is None else _differences(labelled, base, scores)
    below = [notes.held_note(held, group["steps"])]
    below += notes.provenance_notes(labelled, _finished(runs) - _finished(ours.values()))
    below += [notes.difference_note(base)] if differences else []
    below += [*notes.score_notes(labelled, scores), notes.paper_note()]
    if not embedded and of is None:
        below.append(f"N: the {prompts} prompts of the paper's subset; --of says otherwise")
    have = {row["setting"]: int((row["clips"] or "0").split()[0]) for row in rows}
    return Table(
        title=f"Table {name[-1]}, {TABLES[name].title}: {notes.describe(group)}",
        group=group,
        rows=rows,
        notes=below,
        runs=labelled,
        reference=base,
        differences=differences,
        counts={label: clip_counts(run, scores) for label, run in labelled.items()},
        missing=[f"{row} ({n} of {clips} clips)" for row, n in have.items() if n < clips],
        command=command(name, group, held, prompts, seeds, embedded),
    )


def _rows(
    name: str, ours: dict[tuple, Run], clips: int, scores: list[str], embedded: bool
) -> tuple[list[Record], dict[str, Run]]:
    """The cells of every row, ours and the paper's, and our runs by setting."""
    published, rows, labelled = paper_rows(name), [], {}
    for key in (*published, *sorted(ours.keys() - published.keys(), key=str)):
        run, row = ours.get(key), published.get(key)
        label = row_label(name, row if run is None else run.knobs)
        if run is not None:
            labelled[label] = run
        cells, theirs = our_cells(name, run, clips, scores), paper_cells(name, row)
        minus = {} if embedded else _minus_paper(cells, theirs)
        rows.append({"setting": label, **cells, **theirs, **minus})
    if name == "table2":  # HR seconds of full attention over those of the row; LR is shared
        full = next((r["seconds hr"] for r in rows if r["setting"].startswith("s=1 ")), None)
        for row in rows:
            if full and row["seconds hr"]:
                row["HR speed-up"] = full / row["seconds hr"]
    return rows, labelled


def _reference(published: dict, ours: dict, labelled: dict, run_id: str | None) -> str | None:
    """The setting that others are compared with: of this run, the paper's usual one, or the first."""
    setting = {k: SETTING[k] for k in ("sparsity", "order", "t_i")}
    setting |= {"method": "s2flow", "windows": "adaptive"}
    fits = (
        key
        for key, row in published.items()
        if all(row.get(k) in (None, v) for k, v in setting.items())
    )
    usual = ours.get(next(fits, None))
    done = {label: run for label, run in labelled.items() if len(run.done)}
    wanted = [label for label, run in done.items() if run.id == run_id]
    wanted += [label for label, run in done.items() if run is usual]
    return next(iter([*wanted, *done]), None)


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
    hr = len(run.values("seconds_hr"))
    counts = {"f": len(run.values("realised_density")), "seconds hr": hr, "HR speed-up": hr}
    for title, score in score_columns(scores).items():
        parts = metrics.PARTS.get(score, (score,))
        counts[title] = min(len(run.values(f"score_{part}")) for part in parts)
    return counts


def _differences(
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


def command(
    name: str, group: Record, held: Record, prompts: int, seeds: int, embedded: bool
) -> str:
    """The command that makes what this table lacks.

    t_i is always given, since its default follows the backbone; of Table 4 the paper's fractions.
    """
    words = [f"experiment={name}"]
    paper = ["prompts=vbench", "prompts.subset=half"]
    words += [f"prompts.count={prompts}"] if embedded else paper
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
