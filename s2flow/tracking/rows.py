"""The data that wandb receives: a history row per step and per clip, and the tables of the summary.

Rows that are logged while clips are made equal those that `publish` makes from the records.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from s2flow.store import generation_seconds

Record = dict[str, Any]
Row = dict[str, Any]


def step_row(stage: str, n: int, sigma: float, seconds: float, density: float | None) -> Row:
    """A step of a flow: n steps remained before it, which was at noise level sigma."""
    values = {"left": n, "sigma": sigma, "seconds": seconds, "density": density}
    return {f"{stage}/{k}": v for k, v in values.items() if v is not None}


def step_rows(record: Record) -> list[Row]:
    """The steps of a recorded clip; old records without `step_seconds` have only densities."""
    rows, took, density = [], record.get("step_seconds") or {}, record.get("density") or {}
    for stage in ("lr", "hr"):
        sigmas = record.get("sigmas_high" if stage == "hr" else "sigmas") or record.get("sigmas")
        kept = density if stage == "hr" else {}
        steps = {int(n) for n in (*took.get(stage, ()), *kept)}
        for n in sorted(steps, reverse=True) if sigmas else ():
            seconds = took.get(stage, {}).get(str(n))
            rows.append(step_row(stage, n, sigmas[-1 - n], seconds, kept.get(str(n))))
    return rows


def clip_row(record: Record) -> Row:
    """The row of a whole clip; scores that are None are left out."""
    density = list((record.get("density") or {}).values())
    return {
        "prompt": record["prompt"],
        "prompt_index": min(record["prompt_index"]),
        "seed": record["seed"],
        "outcome": record.get("outcome", "ok"),
        "density": fmean(density) if density else None,
        "seconds/all": generation_seconds(record),
        **{f"seconds/{k}": v for k, v in record["seconds"].items()},
        **{f"score/{k}": v for k, v in record["scores"].items() if v is not None},
    }


def summary(records: Sequence[Record]) -> Row:
    """Tables `clips`, `scores` and `steps` of a run and the means of its clips."""
    import wandb  # takes seconds to load; a run without it must not wait

    clips = [clip_row(r) | {"key": Path(r["video"]).stem} for r in records]
    columns = list(dict.fromkeys(k for row in clips for k in row))
    fields: Row = {"clips": wandb.Table(columns, [[row.get(c) for c in columns] for row in clips])}
    numbers = [c for c in columns if c.startswith(("score/", "seconds/")) or c == "density"]
    known = {c: [row[c] for row in clips if row.get(c) is not None] for c in numbers}
    fields |= {f"mean/{c}": fmean(values) for c, values in known.items() if values}
    of_score = {c[6:]: v for c, v in known.items() if v and c.startswith("score/")}
    scores = [[name, fmean(v), len(v)] for name, v in of_score.items()]
    fields["scores"] = wandb.Table(["score", "mean", "clips"], scores)
    columns = ["stage", "steps left", "sigma", "seconds", "density", "clips"]
    fields["steps"] = wandb.Table(columns, _means_by_step(records))
    return fields | {"clips_recorded": len(records)}


def _means_by_step(records: Sequence[Record]) -> list[list[Any]]:
    """Rows of the table `steps`: means over the clips that have the step."""
    of: dict[tuple[str, int], list[Row]] = {}
    for row in (row for r in records for row in step_rows(r)):
        stage = next(iter(row)).partition("/")[0]
        of.setdefault((stage, row[f"{stage}/left"]), []).append(row)
    return [
        [
            *(stage, n),
            *(_mean(r.get(f"{stage}/{k}") for r in rows) for k in ("sigma", "seconds", "density")),
            len(rows),
        ]
        for (stage, n), rows in sorted(of.items(), key=lambda x: (x[0][0] == "hr", -x[0][1]))
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
