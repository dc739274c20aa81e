"""Seconds that scoring takes: 473 clips of 17 frames at 192x128, `builtin` and `fidelity`.

    python experiments/bench_score.py [--clips 473] [--workers 2]

Writes synthetic clips (slow shapes that move, the reference with a little noise) as two runs into a
temporary folder, then times `python -m s2flow.score` on one of them from outside: one process per
worker, each with a shard and one thread, imports and decoding of both clips included. Writes
experiments/results/bench_score.json with machine, versions and commit; `cpu_seconds` of all workers
tell what it would take on cores that nobody else uses. Expected: under 60 seconds on two cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from s2flow.process.provenance import provenance
from s2flow.store import Store, clip_key, sha256_of
from s2flow.video import write_video

FRAMES, HEIGHT, WIDTH, FPS = 17, 128, 192, 8
CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    """Make, time, check, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=473)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for run in ("reference", "scored"):
            store = Store(folder, run, {"version": 1, **recipe(run)})
            for i in range(args.clips):
                add(store, i)
        load, before = os.getloadavg(), resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = timed(folder, args.workers)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = Path(folder).glob("scored/scores/*.jsonl")
        said = [json.loads(line) for path in lines for line in path.read_text().splitlines()]
    wanted = {"temporal_flickering", "psnr", "ssim", "relative_error"}
    found = [n for v in said for n, x in v["scores"].items() if x is not None and n in wanted]
    assert len(found) == len(wanted) * args.clips, f"{len(found)} scores of {args.clips} clips"
    result = {
        "command": f"python experiments/bench_score.py --clips {args.clips} --workers {args.workers}",
        **{k: v for k, v in provenance("cpu").items() if k not in ("command", "host")},
        "clips": args.clips,
        "size": [FRAMES, HEIGHT, WIDTH],
        "scorers": ["builtin", "fidelity"],
        "workers": args.workers,
        "scores": len(found),
        "seconds": round(seconds, 1),
        "clips_per_second": round(args.clips / seconds, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "load_before": [round(x, 1) for x in load],  # others on the machine cost time
    }
    path = Path(__file__).parent / "results" / "bench_score.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def recipe(run: str) -> dict:
    """As much of a recipe as scoring looks at."""
    return {"backbone": "micro", "method": run, "frames": FRAMES, "high": [HEIGHT, WIDTH]}


def add(store: Store, i: int) -> None:
    """A finished clip of prompt i, with its record."""
    prompt, draw = f"synthetic clip {i}", torch.Generator().manual_seed(i)
    coarse = torch.rand(1, 3, 5, 8, 12, generator=draw)
    size = (FRAMES, HEIGHT, WIDTH)
    video = F.interpolate(coarse, size, mode="trilinear")[0].movedim(0, -1)
    if store.run_id == "scored":
        video = video + 0.01 * torch.randn(video.shape, generator=draw)
    key = clip_key(prompt, 0)
    path = store.path("clips", f"{key}.mp4")
    write_video(path, video, FPS)
    store.commit(
        key,
        {
            **{"status": "ok", "run_id": store.run_id, "recipe": recipe(store.run_id)},
            **{"prompt": prompt, "prompt_index": [i], "seed": 0, "video": f"clips/{key}.mp4"},
            **{"sha256": sha256_of(path), "bytes": path.stat().st_size, "seconds": {}},
            **{"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": FPS},
        },
    )


def timed(folder: str, workers: int) -> float:
    """Wall seconds until every shard of run `scored` has its scores."""
    words = [sys.executable, "-m", "s2flow.score", f"runs_dir={folder}", "runs=[scored]"]
    words += ["scorer=[builtin,fidelity]", "scorer.fidelity.reference=reference", "threads=1"]
    start = time.perf_counter()
    started = [
        subprocess.Popen(
            [*words, f"shard={k + 1}/{workers}"],
            env=os.environ | CPU,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(workers)
    ]
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            sys.exit(f"scoring failed: {said.strip()}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
