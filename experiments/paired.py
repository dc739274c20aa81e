"""Every run against one of them, prompt by prompt: the mean difference with its 95 % interval.

    python experiments/paired.py RUN [--runs runs] [--score world_agreement]

RUN is a run id. Compared are all runs below `--runs` that share clips (prompt and seed) with it. Per
run: how its recipe differs, the shared clips, the mean score, the share of clips with exactly one
object, and its score minus that of RUN with a bootstrap interval over prompts. Writes
experiments/results/<backbone>_paired.json.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

from s2flow.metrics import paired_difference
from s2flow.provenance import provenance
from s2flow.store import read_record

RESULTS = Path(__file__).parent / "results"
Clip = tuple[str, int]


def main() -> None:
    """Read, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--score", default="world_agreement")
    args = parser.parse_args()
    runs = read(Path(args.runs), args.score)
    if args.run not in runs:
        sys.exit(f"error: {args.run} has no clip scored with {args.score} below {args.runs}; "
                 f"there are {', '.join(runs) or 'none'}")  # fmt: skip
    base = runs[args.run]
    rows = [
        compare(name, clips, base) for name, clips in runs.items() if clips.keys() & base.keys()
    ]
    recipe = next(iter(base.values()))["recipe"]
    result = {
        "command": " ".join(["python", "experiments/paired.py", *sys.argv[1:]]),
        "score": args.score,
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "recipe": recipe,
        "rows": rows,
    }
    path = RESULTS / f"{recipe['backbone']}_paired.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        low, high = row["interval"]
        own = {k: v for k, v in row["differs"].items() if v is not None}
        own = ", ".join(f"{k}={v['name'] if isinstance(v, dict) else v}" for k, v in own.items())
        print(
            f"{row['run']}  {row['clips']:4} clips  {row['mean']:.3f}  one object "
            f"{row['one_object']:.0%}"
            f"  minus {args.run}: {row['minus']:+.3f} [{low:+.3f}, {high:+.3f}]  {own}"
        )


def read(runs_dir: Path, score: str) -> dict[str, dict[Clip, dict]]:
    """The scored records of every run, by run id and clip."""
    runs: dict[str, dict[Clip, dict]] = {}
    for path in sorted(runs_dir.glob("*/records/[!.]*.json")):
        record = read_record(path)
        if record is not None and record["scores"].get(score) is not None:
            record["score"] = record["scores"][score]
            runs.setdefault(record["run_id"], {})[record["prompt"], record["seed"]] = record
    return runs


def compare(name: str, clips: dict[Clip, dict], base: dict[Clip, dict]) -> dict:
    """One row: `clips` minus `base` over the clips that both have."""
    shared = sorted(clips.keys() & base.keys())
    mine, theirs = ([of[clip] for clip in shared] for of in (clips, base))
    d = paired_difference(by_prompt(mine), by_prompt(theirs))
    own, other = mine[0]["recipe"], theirs[0]["recipe"]
    return {
        "run": name,
        "differs": {k: own.get(k) for k in sorted({*own, *other}) if own.get(k) != other.get(k)},
        "clips": len(shared),
        "mean": round(fmean(r["score"] for r in mine), 4),
        "one_object": round(fmean(r["scores"].get("object_count") == 1 for r in mine), 4),
        "minus": round(d.mean, 4),
        "interval": [round(d.low, 4), round(d.high, 4)],
    }


def by_prompt(records: list[dict]) -> dict[str, float]:
    """Mean score over the seeds of each prompt: seeds of one prompt are not independent."""
    scores: dict[str, list[float]] = {}
    for r in records:
        scores.setdefault(r["prompt"], []).append(r["score"])
    return {prompt: fmean(values) for prompt, values in scores.items()}


if __name__ == "__main__":
    main()
