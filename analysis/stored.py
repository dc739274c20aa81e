"""What notebooks read from a store: records by run, tables, scores with intervals, and what lacks.

    table  = tables_of("table2", frame, runs)      experiments/rows.py, and what is missing
    score  = score_of(table.runs[setting], "own detail")   mean over prompts with its 95 % interval

A score is a column of a table: "Mean", "VBench ..." or "own ..." (of the embedded world).
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips import Run
from notes import PAPER_NUMBERS  # noqa: F401  for notebooks
from rows import AGGREGATES, make_tables
from script import RESULTS, ROOT  # noqa: F401  for notebooks
from sheet import Table

from s2flow.metrics import AGGREGATES as FORMULAS
from s2flow.metrics import PairedDifference, paired_clips
from s2flow.store import read_run

if TYPE_CHECKING:
    from pandas import DataFrame

WITHOUT_VBENCH = ("own world_agreement", "own detail")  # where VBench's Mean is missing
NAMES = {"Mean": "VBench Mean", "own world_agreement": "world agreement"}
NAMES |= {"own detail": "detail (render: 1)"}


def lacking(what: str, words: str, runs: Path) -> None:
    """One line: what is missing, and the command that makes it in this store."""
    where = "" if runs.resolve() == ROOT / "runs" else f" runs_dir={shlex.quote(str(runs))}"
    print(f"missing: {what}; make it with: python run.py {words}{where}")


def records_by_run(runs: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of finished clips with their scores, of every run that has any."""
    records = {p.parent.name: read_run(p.parent) for p in sorted(runs.glob("*/records"))}
    return {run: of for run, of in records.items() if of}


def tables_of(name: str, frame: "DataFrame", runs: Path) -> dict[str, Table]:
    """One of the paper's tables of all backbones and sizes, by a name for files: micro, micro_2, ...

    The largest of a backbone comes first, and what it lacks is printed; of others with but one row,
    which compares nothing, that they are left out.
    """
    try:
        tables = make_tables(name, frame)
    except ValueError as error:  # a score on another scale
        print(f"{name}: {error}")
        return {}
    if not tables:
        lacking(f"all clips of {name}", f"experiment={name}", runs)
    kept: dict[str, Table] = {}
    for table in tables:
        backbone = table.group["backbone"]
        count = sum(other.group["backbone"] == backbone for other in kept.values())
        if count and len(table.runs) < 2:
            print(f"left out: {table.title}: only {next(iter(table.runs))} has clips")
            continue
        kept[f"{backbone}_{count + 1}" if count else backbone] = table
        if table.missing and not count:
            words = table.command.removeprefix("python run.py ")
            lacking(f"{name} of {backbone}, {', '.join(table.missing)}", words, runs)
    return kept


def chosen(table: Table) -> list[str]:
    """The scores that are drawn: VBench's Mean where it is real, else the embedded world's own."""
    scored = {c for row in table.rows for c, v in row.items() if v is not None}
    if "Mean" in scored:
        return ["Mean"]
    others = [c for c in table.rows[0] if c in scored and c.startswith(("VBench ", "own "))]
    scores = [c for c in WITHOUT_VBENCH if c in scored] or others[:2]
    if not scores:
        print(f"not scored: {table.title}; score its clips with: python -m s2flow.score")
    return scores


def name_of(score: str) -> str:
    """What stands on the axis: nothing but Mean and `VBench ...` is VBench's."""
    return NAMES.get(score, score.removeprefix("own ").replace("_", " "))


def score_of(run: Run, score: str) -> PairedDifference:
    """Mean over prompts, seeds averaged within, with its 95 % interval: the difference to 0."""
    name = AGGREGATES.get(score, score.removeprefix("VBench ").removeprefix("own "))
    get = FORMULAS.get(name, lambda row: row.get(name))
    return from_zero({clip: get(row) for clip, row in run.scores().items()})


def from_zero(values: dict) -> PairedDifference:
    """The mean of values by (prompt, seed), as a difference to 0."""
    return paired_clips(values, dict.fromkeys(values, 0.0))
