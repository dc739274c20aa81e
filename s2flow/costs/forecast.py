"""Forecast of `plan=true` for all clips of a job or a sweep: recorded and missing clips, hours, disk.

    cached     clips with a record in runs_dir. For checkpoints, whose hash may need the hub: in the run
               of the same recipe with any weights
    hours      missing clips x seconds of a clip + missing LR flows x seconds of one, x ranks: GPU
               hours, or hours of this CPU; estimated by `s2flow.costs`
    LR flows   one for all variants of a clip that share it (`Recipe.low_identity`), in the whole sweep;
               without those in lr_cache
    disk       bytes of a clip's files: the mean of recorded clips of the same size in runs_dir
               ("records"), else a bit per pixel ("pixels": roughly H.264 at this quality); plus LR
               flows up to lr_cache_gib

A clip that two jobs need counts once in the totals.
"""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2flow.backbones.base import Origin
from s2flow.grid import brick_grid
from s2flow.process import loading
from s2flow.recipe.identity import Recipe
from s2flow.store import Store, read_record
from s2flow.store.lowflow import low_key
from s2flow.store.tasks import Task

BYTES_PER_PIXEL = 1 / 8  # of an mp4, if there are no records of this size
SIDE_FILE_BYTES = 2**16  # record and contact sheet of a clip
MAX_SAMPLED_RECORDS = 8


def forecast(
    cfg: DictConfig, recipe: Recipe, tasks: list[Task], stages: dict[str, float], blank: Any
) -> dict[str, Any]:
    """Recorded and missing clips of a job, with their estimated seconds and bytes.

    stages: seconds of a batch by stage; blank: the backbone without weights. `needs` holds the names
    of clips and LR flows, so that `totals` counts shared ones once.
    """
    local = cfg.backbone.family == "tiny"  # its weights are local, and hashing is quick
    if local:
        weights = loading.weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
        recipe = replace(recipe, weights=weights)
    run_id = recipe.run_id if local else _run_of_same_recipe(Path(cfg.runs_dir), recipe)
    store = Store(cfg.runs_dir, run_id or recipe.run_id, {}, write=False)
    force = cfg.cache == "force"
    recorded, failed = ({}, ()) if force else (store.recorded(), store.failed())
    missing = [t for t in tasks if t.key not in recorded]
    flows, missing_flows = loading.low_flows(cfg), set()
    ranks = cfg.context_parallel if cfg.context_parallel > 1 else None
    for t in missing if "lr" in stages else ():
        key = low_key(recipe.low_identity(), t.prompt, t.seed, ranks)
        if not (local and flows.folder is not None and flows.path(key).exists()):
            missing_flows.add(flows.name(key))
    clip_bytes, bytes_from = _clip_bytes(cfg, recipe, store)
    low = _low_bytes(recipe, blank) if flows.folder is not None and "lr" in stages else 0
    per_clip = sum(s for name, s in stages.items() if name != "lr") / cfg.batch
    return {
        "run_id": run_id,
        "label": recipe.label,
        "cached": len(tasks) - len(missing),
        "missing": len(missing),
        "failed_before": sum(t.key in failed for t in missing),
        "cache": cfg.cache,
        "seconds_clip": round(per_clip, 3),
        "seconds_low_flow": round(stages.get("lr", 0.0) / cfg.batch, 3),
        "bytes_clip": clip_bytes,
        "bytes_from": bytes_from,
        "bytes_low_flow": low,
        "low_flows_limit": flows.limit,
        "gpu": cfg.memory is not None or loading.device_here(cfg.device) != "cpu",
        "needs": {
            "json": cfg.plan == "json",
            "every_clip": [f"{recipe.run_id}/{t.key}" for t in tasks],
            "clips": [f"{recipe.run_id}/{t.key}" for t in missing],
            "low_flows": sorted(missing_flows),
            "runs_dir": str(cfg.runs_dir),
        },
    }


def _run_of_same_recipe(runs_dir: Path, recipe: Recipe) -> str | None:
    """The run with most records of this recipe, with any weights."""
    identity = {k: v for k, v in recipe.identity().items() if k != "weights"}
    runs = []
    for path in runs_dir.glob("*/recipe.json"):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if {k: v for k, v in stored.items() if k not in ("weights", "version")} == identity:
            runs.append((len(list((path.parent / "records").glob("*.json"))), path.parent.name))
    return max(runs)[1] if runs else None


def _clip_bytes(cfg: DictConfig, recipe: Recipe, store: Store) -> tuple[int, str]:
    """(bytes of one clip's files, their source: "records" or "pixels")."""
    size = (recipe.frames, *recipe.high)
    for folder in (store.folder, *sorted(Path(cfg.runs_dir).glob("*"))):
        paths = islice((folder / "records").glob("[!.]*.json"), MAX_SAMPLED_RECORDS)
        records = [r for r in map(read_record, paths) if r is not None]
        if records and tuple(records[0][k] for k in ("frames", "height", "width")) == size:
            names = [f"{Path(r['video']).stem}.*" for r in records]
            kinds = ("clips", "sheets", "records", "windows", "latents")
            files = (p for kind in kinds for name in names for p in (folder / kind).glob(name))
            return sum(p.stat().st_size for p in files) // len(records), "records"
    pixels = recipe.frames * (math.prod(recipe.high) + math.prod(recipe.low))
    return round(pixels * BYTES_PER_PIXEL) + SIDE_FILE_BYTES, "pixels"


def _low_bytes(recipe: Recipe, blank: Any) -> int:
    """Bytes of one LR flow on disk: z, v and coverage of every node, float32."""
    shape = blank.latent_shape(*recipe.low, recipe.frames)
    bricks = math.prod(brick_grid(blank.token_grid(shape), recipe.brick_low))
    heads = blank.router.layers * blank.transformer.config.num_attention_heads
    return 4 * (recipe.steps + 1) * (2 * math.prod(shape) + heads * bricks)
