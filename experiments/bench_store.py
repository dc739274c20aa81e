"""Seconds and memory of a store that grows: 8, 1,000, 10,000 and 100,000 records.

    python experiments/bench_store.py [--records 8,1000,10000,100000] [--folder SCRATCH]

Eight runs of one clip each are copied under other prompts, with mp4s of 64 bytes: store `one` holds
all records in the run of S2Flow, `eight` shares them among the methods. Timed from outside, imports
included: `s2flow.store ls`, `tables.py table1` and `s2flow.store verify` (once) on eight; on one
`resume`, run.py over clips that are all there, and `scored`, the same with verdicts. cold: without an
index; warm: the least of REPEATS. growth: CPU seconds over those of the next smaller store; scan:
seconds, warm, above the smallest store's, which are imports. Writes
experiments/results/bench_store.json. Expected: at 100,000 ls, table and scan under 5 seconds warm,
and under 1 GB.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from commands import ONE_THREAD, measured, places
from script import RESULTS, load, result, write_result

from s2flow.store import clip_key, read_record

METHODS = "bicubic,native,cascade,diffusehigh,hiflow,macs,rectifiedhr,s2flow"
REPEATS = 3
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "lr_cache_gib=0")
VIDEO = b"\0\0\0\x08free" * 8


def main() -> None:
    """Make the stores, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", default="8,1000,10000,100000", help="the smallest first")
    parser.add_argument("--folder", type=Path, help="where to write the stores (a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        sizes = [int(n) for n in args.records.split(",")]
    except ValueError:
        parser.error(f"--records {args.records} is no list of numbers; type --records 1000,10000")
    if min(sizes) < 8:
        parser.error(f"--records {args.records}: eight runs need 8 records; type 1000")
    data = result("bench_store", ["--records", args.records], load_before=load(), stores=[])
    stores: list[dict[str, Any]] = data["stores"]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        seeds = made(Path(folder) / "seeds")
        for n in sizes:
            stores.append(commands_on(Path(folder) / str(n), seeds, n))
            cpu = [store["cpu_seconds"] for store in stores]
            pairs = list(zip(cpu, cpu[1:], strict=False))
            data["growth"] = {k: [round(b[k] / a[k], 2) for a, b in pairs] for k in cpu[0]}
            first, last = stores[0]["seconds"], stores[-1]["seconds"]
            warm = [name for name in last if name.endswith("warm")]
            stores[-1]["scan"] = {name: round(last[name] - first[name], 2) for name in warm}
            data["load_after"] = load()
            write_result(args.out / "bench_store.json", data)  # whatever comes next
    for name, factors in data["growth"].items():
        print(f"growth of {name}: {', '.join(f'{x:g}' for x in factors)} times")


def made(folder: Path) -> list[Path]:
    """The folders of eight real runs of one clip each, that of S2Flow last."""
    words = ["-m", f"method={METHODS}", "prompts.count=1", *SMALL, *places(folder)]
    measured(["run.py", *words], env=ONE_THREAD)
    records = {p.parents[1]: read_record(p) for p in folder.glob("*/records/*.json")}
    methods = {run: record["recipe"]["method"] for run, record in records.items()}
    return sorted(methods, key=lambda run: (methods[run] == "s2flow", methods[run]))


def commands_on(folder: Path, seeds: list[Path], n: int) -> dict[str, Any]:
    """Seconds and peak MB of every command on stores of n records."""
    one, eight, prompts = folder / "one", folder / "eight", folder / "prompts.txt"
    folder.mkdir()
    prompts.write_text("".join(f"{_prompt(i)}\n" for i in range(n)))
    for run in seeds:
        fill(eight / run.name, run, n // len(seeds))
    fill(one / seeds[-1].name, seeds[-1], n)
    again = ["run.py", "prompts=file", f"prompts.file={prompts}", *SMALL, *places(folder)[1:]]
    again.append(f"runs_dir={one}")
    data: dict[str, Any] = {"records": n, "seconds": {}, "cpu_seconds": {}, "peak_mb": {}}
    for name, words, at in (
        ("ls", ["-m", "s2flow.store", "ls", str(eight)], eight),
        ("table", ["experiments/tables.py", "table1", "--runs", str(eight)], eight),
        ("resume", [*again, "scorer=[none]"], one),
        ("scored", again, one),
        ("verify", ["-m", "s2flow.store", "verify", str(eight)], eight),
    ):
        for state in ("cold", "warm") if name != "verify" else ("once",):
            for path in at.glob("*/index.parquet") if state == "cold" else ():
                path.unlink()
            repeats = REPEATS if state == "warm" else 1
            runs = [measured(words, env=ONE_THREAD) for _ in range(repeats)]
            best = min(runs, key=lambda r: r["seconds"])
            for what, value in best.items():
                data[what][f"{name} {state}"] = value
            shown = ", ".join(f"{value} {what}" for what, value in best.items())
            print(f"{n} {name} {state}: {shown}", flush=True)
    return data


def fill(folder: Path, like: Path, n: int) -> None:
    """A run of n clips, each the one of another run under another prompt."""
    (source,) = like.glob("records/*.json")
    text, record = source.read_text(), read_record(source)
    verdicts = [line for p in like.glob("scores/*.jsonl") for line in p.read_text().splitlines()]
    for kind in ("records", "clips", "scores"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(like / "recipe.json", folder)
    digest = hashlib.sha256(VIDEO).hexdigest()
    same = {f'"{record["sha256"]}"': f'"{digest}"'}
    same |= {f'"bytes": {record["bytes"]}': f'"bytes": {len(VIDEO)}'}
    with open(folder / "scores" / "all.jsonl", "w") as scores:
        for i in range(n):
            key = clip_key(_prompt(i), 0)
            names = same | {source.stem: key}
            names |= {json.dumps(record["prompt"]): json.dumps(_prompt(i))}
            (folder / "clips" / f"{key}.mp4").write_bytes(VIDEO)
            made, *scored = [text, *verdicts]
            for old, new in names.items():
                made, *scored = (t.replace(old, new) for t in (made, *scored))
            (folder / "records" / f"{key}.json").write_text(made)
            scores.writelines(f"{line}\n" for line in scored)


def _prompt(i: int) -> str:
    return f"a large red ball moves right on sand, number {i}"


if __name__ == "__main__":
    main()
