"""Every run against one of them, prompt by prompt: the mean difference with its 95 % interval.

    python experiments/paired.py RUN [--runs runs] [--score world_agreement]

RUN is a run id. Per run that shares clips (prompt and seed) with it: how its recipe differs, shared
clips and prompts, the mean score, the share of clips with exactly one object (of the embedded world),
and its score minus that of RUN (`s2flow.metrics.paired_runs`); `*` where the interval leaves out 0.
`--score`: any recorded score, or temporal, visual, mean of VBench. Writes
experiments/results/<backbone>_paired.json.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from clips import read_runs
from script import RESULTS, result, run, write_result

from s2flow.errors import UserError
from s2flow.metrics import AGGREGATES, ClipKey, Row, paired_runs
from s2flow.store import load_records


def main(argv: list[str] | None = None) -> int:
    """Read, compare, print, write. Raises UserError where nothing can be compared."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--score", default="world_agreement")
    args = parser.parse_args(argv)
    try:
        get = AGGREGATES.get(args.score, lambda row: row.get(args.score))
        runs: dict[str, dict[ClipKey, Row]] = {}
        for r in read_runs(load_records(args.runs)):
            scored = {clip: row for clip, row in r.scores().items() if get(row) is not None}
            runs.setdefault(r.id, {}).update(scored)
        runs = {run_id: clips for run_id, clips in runs.items() if clips}
        if args.run not in runs:
            raise UserError(
                f"{args.run} has no clip scored with {args.score} below {args.runs}; "
                f"there are {', '.join(runs) or 'none'}"
            )
        base, recipe = runs[args.run], read_recipe(args.runs, args.run)
        rows = []
        for name, clips in runs.items():
            if clips.keys() & base.keys():
                own = read_recipe(args.runs, name)
                differs = {k: own.get(k) for k in sorted({*own, *recipe})}
                differs = {k: v for k, v in differs.items() if v != recipe.get(k)}
                compared = compare(clips, base, args.score, get)
                rows.append({"run": name, **compared, "differs": differs})
    except ValueError as error:  # a score on another scale, or no recipe.json
        raise UserError(str(error)) from error
    words = sys.argv[1:] if argv is None else argv
    data = result("paired", words, score=args.score, recipe=recipe, rows=rows)
    write_result(RESULTS / f"{recipe['backbone']}_paired.json", data)
    for row in rows:
        print(_line(row, args.run))
    return 0


def read_recipe(runs_dir: Path, run_id: str) -> dict[str, Any]:
    """The recipe of a run, without the version of the recipe's format."""
    recipe = json.loads((runs_dir / run_id / "recipe.json").read_text(encoding="utf-8"))
    return {k: v for k, v in recipe.items() if k != "version"}


def compare(clips: dict, base: dict, score: str, get: Callable) -> dict[str, Any]:
    """`clips` minus `base` over the clips that both have; get: the score of a clip's scores."""
    d = paired_runs(clips, base, [score])[score]
    shared = [clips[clip] for clip in clips if clip in base]
    counts = [row["object_count"] for row in shared if row.get("object_count") is not None]
    return {
        "clips": d.clips,
        "prompts": d.n,
        "mean": round(fmean(map(get, shared)), 4),
        "one_object": round(fmean(n == 1 for n in counts), 4) if counts else None,
        "minus": round(d.mean, 4),
        "interval": None if d.low is None else [round(d.low, 4), round(d.high, 4)],
        "real": d.is_real,
        "wins": round(d.wins, 4),
        "ties": d.ties,
    }


def _line(row: dict[str, Any], base: str) -> str:
    own = {k: v for k, v in row["differs"].items() if v is not None}
    own = {k: v.get("name", v) if isinstance(v, dict) else v for k, v in own.items()}
    interval = "" if row["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*row["interval"])
    alone = "" if row["one_object"] is None else f"  one object {row['one_object']:.0%}"
    return (
        f"{row['run']}  {row['clips']:4} clips  {row['mean']:.3f}{alone}  minus {base}: "
        f"{row['minus']:+.3f}{'*' if row['real'] else ''}{interval} over {row['prompts']} prompts, "
        f"wins {row['wins']:.0%}  {', '.join(f'{k}={v}' for k, v in own.items())}"
    )


if __name__ == "__main__":
    run(main)
