"""Every run against one of them, prompt by prompt: the mean difference with its 95 % interval.

    python experiments/paired.py RUN [--runs runs] [--score world_agreement]

RUN is a run id. Compared are all runs below `--runs` that share clips (prompt and seed) with it. Per
run: how its recipe differs, the shared clips and prompts, the mean score over the clips, the share of
clips with exactly one object (of the embedded world), and its score minus that of RUN as
`s2flow.metrics.paired_runs` gives it: seeds averaged within the prompt, prompts resampled; `*` where
the interval leaves out 0. `--score` is any recorded score, or temporal, visual, mean (of VBench's
dimensions, where a clip has all of them). Writes experiments/results/<backbone>_paired.json.
"""

import argparse
import json
import sys
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
        runs = scored_runs(args.runs, args.score)
        if args.run not in runs:
            raise UserError(
                f"{args.run} has no clip scored with {args.score} below {args.runs}; "
                f"there are {', '.join(runs) or 'none'}"
            )
        base, recipe = runs[args.run], read_recipe(args.runs, args.run)
        rows = [
            {"run": name}
            | compare(clips, base, args.score)
            | {"differs": differing(read_recipe(args.runs, name), recipe)}
            for name, clips in runs.items()
            if clips.keys() & base.keys()
        ]
    except ValueError as error:  # a score on another scale, or no recipe.json
        raise UserError(str(error)) from error
    words = sys.argv[1:] if argv is None else argv
    data = result("paired", words, score=args.score, recipe=recipe, rows=rows)
    write_result(RESULTS / f"{recipe['backbone']}_paired.json", data)
    for row in rows:
        print(_line(row, args.run))
    return 0


def scored_runs(runs_dir: Path, score: str) -> dict[str, dict[ClipKey, Row]]:
    """The scores of all clips that have this one, by run id and clip."""
    get = AGGREGATES.get(score, lambda row: row.get(score))
    by_run: dict[str, dict[ClipKey, Row]] = {}
    for r in read_runs(load_records(runs_dir)):
        scored = {clip: row for clip, row in r.scores().items() if get(row) is not None}
        by_run.setdefault(r.id, {}).update(scored)
    return {run_id: clips for run_id, clips in by_run.items() if clips}


def read_recipe(runs_dir: Path, run_id: str) -> dict[str, Any]:
    """The recipe of a run, without the version of the recipe's format."""
    recipe = json.loads((runs_dir / run_id / "recipe.json").read_text(encoding="utf-8"))
    return {k: v for k, v in recipe.items() if k != "version"}


def differing(own: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The knobs of a run that are others than in `recipe`; None where it has no such knob."""
    return {k: own.get(k) for k in sorted({*own, *recipe}) if own.get(k) != recipe.get(k)}


def compare(clips: dict[ClipKey, Row], base: dict[ClipKey, Row], score: str) -> dict[str, Any]:
    """`clips` minus `base` over the clips that both have."""
    d = paired_runs(clips, base, [score])[score]
    shared = [clips[clip] for clip in clips if clip in base]
    get = AGGREGATES.get(score, lambda row: row[score])
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
