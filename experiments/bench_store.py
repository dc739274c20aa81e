"""Seconds and memory of a store that grows: 8, 1,000, 10,000 and 100,000 records.

    python experiments/bench_store.py [--records 8,1000,10000,100000] [--folder SCRATCH]

Eight runs, the rows of Table 1 at a reduced size, make one clip each with the embedded backbone. Their
records, recipes and verdicts are then copied under other prompts, each with an mp4 of 64 bytes: `one`
is a store whose records are all of the run of S2Flow, `eight` shares them among all. Timed from
outside, imports included, are

    ls        python -m s2flow.store ls                     eight
    table     python experiments/tables.py table1           eight
    resume    python run.py ... of clips that are all there, unscored    one
    scored    the same with the two usual scorers, whose verdicts are all there    one
    verify    python -m s2flow.store verify                 eight, once

cold: without an index (it is removed before); warm: with the one that the cold run left, the least of
REPEATS, since others on the machine only add. `cpu_seconds` are those of the same run, peak memory is
that of the process, and no less than the 300 MB of this one. The growth is the CPU seconds of a store
over those of the next smaller one; `scan` are the seconds, warm, above those of the smallest store,
which are imports. Writes experiments/results/bench_store.json with machine, versions, commit and load.
Expected: at 100,000 ls, table and scan under 5 seconds warm, and under 1 GB.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from s2flow.process.provenance import provenance
from s2flow.store import clip_key, read_record, written_whole

ROOT = Path(__file__).parents[1]
METHODS = "bicubic,native,cascade,diffusehigh,hiflow,macs,rectifiedhr,s2flow"
REPEATS = 3
SMALL = ("steps=3", "t_i=2", "frames=2", "device=cpu", "lr_cache_gib=0")
VIDEO = b"\0\0\0\x08free" * 8
QUICK = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> int:
    """Make the stores, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--records", default="8,1000,10000,100000", help="sizes, the smallest first"
    )
    parser.add_argument("--folder", type=Path, help="where to write the stores (a temporary one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    try:
        sizes = [int(n) for n in args.records.split(",")]
    except ValueError:
        parser.error(f"--records {args.records} is no list of numbers; type --records 1000,10000")
    if min(sizes) < 8:
        parser.error(f"--records {args.records}: eight runs need 8 records; type 1000")
    result: dict[str, Any] = {
        "command": f"python experiments/bench_store.py --records {args.records}",
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "load_before": [round(x, 1) for x in os.getloadavg()],  # others on the machine cost time
        "stores": [],
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        seeds = made(Path(folder) / "seeds")
        for n in sizes:
            result["stores"].append(measured(Path(folder) / str(n), seeds, n))
            result["growth"] = growth(result["stores"])
            result["stores"][-1]["scan"] = scan(result["stores"])
            result["load_after"] = [round(x, 1) for x in os.getloadavg()]
            with written_whole(args.out / "bench_store.json") as temporary:  # whatever comes next
                temporary.write_text(json.dumps(result, indent=1) + "\n")
    for name, factors in result["growth"].items():
        print(f"growth of {name}: {', '.join(f'{x:g}' for x in factors)} times")
    return 0


def made(folder: Path) -> list[Path]:
    """The folders of eight real runs of one clip each, that of S2Flow last."""
    words = ["-m", f"method={METHODS}", "prompts.count=1", *SMALL, *_places(folder)]
    called([sys.executable, "run.py", *words])
    of = {
        p.parents[1]: read_record(p)["recipe"]["method"] for p in folder.glob("*/records/*.json")
    }
    return sorted(of, key=lambda p: (of[p] == "s2flow", of[p]))


def measured(folder: Path, seeds: list[Path], n: int) -> dict[str, Any]:
    """Seconds and peak MB of every command on stores of n records."""
    found: dict[str, Any] = {"records": n, "seconds": {}, "cpu_seconds": {}, "peak_mb": {}}
    one, eight, prompts = folder / "one", folder / "eight", folder / "prompts.txt"
    folder.mkdir()
    prompts.write_text("".join(f"{_prompt(i)}\n" for i in range(n)))
    for run in seeds:
        fill(eight / run.name, run, n // len(seeds))
    fill(one / seeds[-1].name, seeds[-1], n)
    store = [sys.executable, "-m", "s2flow.store"]
    table = [sys.executable, "experiments/tables.py", "table1", "--runs", str(eight)]
    again = [sys.executable, "run.py", "prompts=file", f"prompts.file={prompts}", *SMALL]
    again += [f"runs_dir={one}", *_places(folder)[1:]]
    for name, words, at in (
        ("ls", [*store, "ls", str(eight)], eight),
        ("table", table, eight),
        ("resume", [*again, "scorer=[none]"], one),
        ("scored", again, one),
        ("verify", [*store, "verify", str(eight)], eight),
    ):
        for state in ("cold", "warm") if name != "verify" else ("once",):
            for path in at.glob("*/index.parquet") if state == "cold" else ():
                path.unlink()
            runs = [called(words) for _ in range(REPEATS if state == "warm" else 1)]
            for what, value in min(runs, key=lambda r: r["seconds"]).items():
                found[what][f"{name} {state}"] = value
            said = (f"{found[what][f'{name} {state}']} {what}" for what in list(found)[1:])
            print(f"{n} {name} {state}: {', '.join(said)}", flush=True)
    return found


def fill(folder: Path, like: Path, n: int) -> None:
    """A run of n clips, each the one of another run under another prompt."""
    (source,) = like.glob("records/*.json")
    text, key = source.read_text(), source.stem
    record = read_record(source)
    said = [line for p in like.glob("scores/*.jsonl") for line in p.read_text().splitlines()]
    for kind in ("records", "clips", "scores"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(like / "recipe.json", folder)
    old, size = json.dumps(record["prompt"]), f'"bytes": {record["bytes"]}'
    told = [(f'"{record["sha256"]}"', f'"{hashlib.sha256(VIDEO).hexdigest()}"')]
    told += [(size, f'"bytes": {len(VIDEO)}')]
    with open(folder / "scores" / "all.jsonl", "w") as scores:
        for i in range(n):
            mine = clip_key(_prompt(i), 0)
            names = [*told, (key, mine), (old, json.dumps(_prompt(i)))]
            (folder / "clips" / f"{mine}.mp4").write_bytes(VIDEO)
            (folder / "records" / f"{mine}.json").write_text(_replaced(text, names))
            scores.writelines(_replaced(line, names) + "\n" for line in said)


def growth(stores: list[dict[str, Any]]) -> dict[str, list[float]]:
    """CPU seconds of each store over those of the one before, by command."""
    pairs = list(zip(stores, stores[1:], strict=False))
    of = "cpu_seconds"
    return {n: [round(b[of][n] / a[of][n], 2) for a, b in pairs] for n in stores[0][of]}


def scan(stores: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of the last store's commands, warm, above those of the first one."""
    first, last = stores[0]["seconds"], stores[-1]["seconds"]
    return {n: round(last[n] - first[n], 2) for n in last if n.endswith("warm")}


def called(words: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory in MB of one command, which must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, cwd=ROOT, env=os.environ | QUICK, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(words)} failed: {said.read().decode()}")
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1e3),
    }


def _prompt(i: int) -> str:
    return f"a large blue star spins on sand, number {i}"


def _places(folder: Path) -> list[str]:
    return [f"runs_dir={folder}", f"hydra.run.dir={folder}/out", f"hydra.sweep.dir={folder}/out"]


def _replaced(text: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    sys.exit(main())
