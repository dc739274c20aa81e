"""Runs of finished clips made without a model: mp4s, records, recipe, as the runner leaves them."""

import threading
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir

from s2flow.recipe import CONF
from s2flow.store import clip_key, sha256_of, write_json
from s2flow.store.lowflow import LowFlowCache
from s2flow.video import write_video


def composed(*words):
    """The config of `python run.py WORDS`."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", list(words))


def state(folder, but="recipe.json"):
    """Content and time of every file below a folder, but for recipe.json, which every job writes."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != but)
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, sha256_of(p)) for p in files}


@lru_cache
def encoded(frames=3, height=32, width=48, kind=0):
    """Bytes of an mp4 of smooth noise."""
    noise = torch.rand(1, 3, 2, 4, 6, generator=torch.Generator().manual_seed(kind))
    size = (frames, height, width)
    video = torch.nn.functional.interpolate(noise, size, mode="trilinear")[0].movedim(0, -1)
    with TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", video, 8)
        return (Path(folder) / "a.mp4").read_bytes()


def finished_run(runs_dir, clips, run_id="0123456789", frames=3, size=(32, 48), method="native"):
    """A run of (prompt, seed) clips, or of so many; returns its folder. Every file is another one."""
    if isinstance(clips, int):
        clips = [(f"clip {i}", 0) for i in range(clips)]
    folder = Path(runs_dir) / run_id
    (folder / "clips").mkdir(parents=True)
    recipe = {"backbone": "micro", "method": method, "high": list(size), "frames": frames}
    write_json(folder / "recipe.json", {"version": 1, **recipe})
    for i, (prompt, seed) in enumerate(clips):
        own = (8 + 4).to_bytes(4, "big") + b"free" + i.to_bytes(4, "big")  # an mp4 box to skip
        record_clip(folder, recipe, prompt, seed, encoded(frames, *size, i % 4) + own)
    return folder


def record_clip(folder, recipe, prompt, seed, data):
    """Write a clip of these bytes and its record; returns the record."""
    key = clip_key(prompt, seed)
    path = folder / "clips" / f"{key}.mp4"
    path.write_bytes(data)
    height, width = recipe["high"]
    record = {
        "status": "ok",
        "run_id": folder.name,
        "recipe": recipe,
        "prompt": prompt,
        "prompt_index": [0],
        "seed": seed,
        "video": f"clips/{key}.mp4",
        "sha256": sha256_of(path),
        "bytes": len(data),
        "frames": recipe["frames"],
        "height": height,
        "width": width,
        "fps": 8,
        "seconds": {"hr": 1.0},
        "peak_mib": {},
    }
    write_json(folder / "records" / f"{key}.json", record)
    return record


def fresh_flows():
    """For `loading.low_flows`: an LR cache that knows nothing yet, in memory only."""
    own = LowFlowCache()
    return lambda cfg: own


def at_once(*calls):
    """Run these in threads of their own and wait for all of them."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
