"""The data that wandb receives: a history row per step and per clip, and the tables of the summary.

Rows that are logged while clips are made equal those that `publish` makes from the records.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from s2flow.store import generation_seconds

Record = dict[str, Any]
Row = dict[str, Any]


def step_row(stage: str, n: int, sigma: float, seconds: float | None, density: Any) -> Row:
    """A step of a flow: n steps remained before it, which was at noise level sigma."""
    return {
        f"{stage}/left": n,
        f"{stage}/sigma": sigma,
        f"{stage}/seconds": seconds,
        f"{stage}/density": density,
    }


def steps_of(record: Record) -> Iterator[tuple[str, int, float, float | None, float | None]]:
    """What `step_row` takes, of a recorded clip; old records have only densities."""
    took = record.get("step_seconds") or {}
    for stage in ("lr", "hr"):
        sigmas = record.get("sigmas_high" if stage == "hr" else "sigmas") or record.get("sigmas")
        seconds, density = took.get(stage, {}), record.get("density") if stage == "hr" else None
        density = density or {}
        for n in sorted({*map(int, seconds), *map(int, density)}, reverse=True) if sigmas else ():
            yield stage, n, sigmas[-1 - n], seconds.get(str(n)), density.get(str(n))


def clip_row(record: Record) -> Row:
    """The row of a whole clip."""
    return {
        "prompt": record["prompt"],
        "prompt_index": min(record["prompt_index"]),
        "seed": record["seed"],
        "outcome": record.get("outcome", "ok"),
        "density": _mean((record.get("density") or {}).values()),
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
    scores = []
    for c in columns:
        known = [row[c] for row in clips if row.get(c) is not None]
        if known and (c.startswith(("score/", "seconds/")) or c == "density"):
            fields[f"mean/{c}"] = fmean(known)
            scores += [[c[6:], fmean(known), len(known)]] if c.startswith("score/") else []
    fields["scores"] = wandb.Table(["score", "mean", "clips"], scores)
    steps: dict[tuple[str, int], list[Any]] = {}
    for stage, n, *values in (step for r in records for step in steps_of(r)):
        steps.setdefault((stage, n), []).append(values)
    rows = [
        [*at, *map(_mean, zip(*steps[at], strict=True)), len(steps[at])]
        for at in sorted(steps, key=lambda at: (at[0] == "hr", -at[1]))
    ]
    columns = ["stage", "steps left", "sigma", "seconds", "density", "clips"]
    return fields | {"steps": wandb.Table(columns, rows), "clips_recorded": len(records)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
