"""Seconds that scoring takes: 473 clips of 17 frames at 192x128, `builtin` and `fidelity`.

    python experiments/bench_score.py [--clips 473] [--workers 2]

Writes synthetic clips as two runs into a temporary folder, then times `python -m s2flow.score` on one
of them from outside: a process per worker, each with a shard and one thread, imports and decoding
included. Writes experiments/results/bench_score.json. Expected: under 60 seconds on two cores.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from commands import ONE_THREAD, measured
from script import RESULTS, load, result, write_result

from s2flow.store import Store, clip_key, sha256_of
from s2flow.video import write_video

SIZE = {"frames": 17, "height": 128, "width": 192}
FPS = 8
SCORES = {"temporal_flickering", "psnr", "ssim", "relative_error"}
WORDS = ["scorer=[builtin,fidelity]", "scorer.fidelity.reference=reference", "threads=1"]


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
        words = ["-m", "s2flow.score", f"runs_dir={folder}", "runs=[scored]", *WORDS]
        before, shards = load(), range(1, args.workers + 1)
        commands = [[*words, f"shard={k}/{args.workers}"] for k in shards]
        times = measured(*commands, env=ONE_THREAD)
        lines = [p.read_text().splitlines() for p in Path(folder).glob("scored/scores/*.jsonl")]
    verdicts = [json.loads(line)["scores"] for file in lines for line in file]
    scores = sum(x is not None and n in SCORES for v in verdicts for n, x in v.items())
    assert scores == len(SCORES) * args.clips, f"{scores} scores of {args.clips} clips"
    words = ["--clips", str(args.clips), "--workers", str(args.workers)]
    data = result("bench_score", words, clips=args.clips, size=list(SIZE.values()))
    data |= {"scorers": ["builtin", "fidelity"], "workers": args.workers, "scores": scores}
    data |= {"seconds": times["seconds"], "cpu_seconds": times["cpu_seconds"]}
    data |= {"clips_per_second": round(args.clips / times["seconds"], 1), "load_before": before}
    write_result(RESULTS / "bench_score.json", data)
    print(json.dumps(data))


def recipe(run: str) -> dict:
    """As much of a recipe as scoring looks at."""
    high = [SIZE["height"], SIZE["width"]]
    return {"backbone": "micro", "method": run, "frames": SIZE["frames"], "high": high}


def add(store: Store, i: int) -> None:
    """A finished clip of prompt i, with its record."""
    prompt, draw = f"synthetic clip {i}", torch.Generator().manual_seed(i)
    coarse = torch.rand(1, 3, 5, 8, 12, generator=draw)
    video = F.interpolate(coarse, tuple(SIZE.values()), mode="trilinear")[0].movedim(0, -1)
    if store.run_id == "scored":
        video = video + 0.01 * torch.randn(video.shape, generator=draw)
    key = clip_key(prompt, 0)
    path = store.path("clips", f"{key}.mp4")
    write_video(path, video, FPS)
    record = {"status": "ok", "run_id": store.run_id, "recipe": recipe(store.run_id)}
    record |= {"prompt": prompt, "prompt_index": [i], "seed": 0, "video": f"clips/{key}.mp4"}
    record |= {"sha256": sha256_of(path), "bytes": path.stat().st_size, "seconds": {}}
    store.commit(key, record | SIZE | {"fps": FPS})


if __name__ == "__main__":
    main()
