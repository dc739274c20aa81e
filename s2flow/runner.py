"""One job: for each clip not yet in the store, generate, write, score, record.

A clip is a prompt text and a seed; list entries with the same text share one. Whatever is already
recorded is skipped, so re-issuing a command continues it. A clip that fails leaves its traceback,
the others go on, and the job ends non-zero with counts and the command to type. Within one process
a backbone is loaded once, and an LR flow is computed once for all HR variants of a sweep that
share it.
"""

import errno
import functools
import gc
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from s2flow import methods
from s2flow.backbones.base import Backbone
from s2flow.cascade import Cascade, Generated, LowFlowCache
from s2flow.config import plain, resolve
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.prompts import load_prompts
from s2flow.recipe import VERSION, Recipe
from s2flow.scorers import Clip
from s2flow.store import Store, clip_key, sha256_of, written_whole
from s2flow.summary import Progress, print_run
from s2flow.timing import Clock
from s2flow.tracking import Track, tracked
from s2flow.video import contact_sheet, read_video, write_video

_low_flows = LowFlowCache()  # shared by the jobs of a sweep


@dataclass(frozen=True)
class Task:
    """One clip to make: text, seed, its places in the prompt list, its key in the store."""

    prompt: str
    seed: int
    indices: tuple[int, ...]

    @property
    def key(self) -> str:
        """See `store.clip_key`."""
        return clip_key(self.prompt, self.seed)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make all clips of one config; returns the summary that tables are printed from.

    Raises UserError for values that cannot work and, at the end, if any clip failed.
    """
    tasks = clip_tasks(cfg)
    knobs = methods.method(cfg.method.name).KNOBS
    recipe = resolve(cfg, _weights_hash(cfg.backbone.family, cfg.backbone.name), knobs)
    scorers = {name: instantiate(conf) for name, conf in plain(cfg, "scorer").items()}
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    store = Store(cfg.runs_dir, recipe.run_id, {"version": VERSION, **recipe.identity()})
    job = Job(cfg, recipe, store, scorers)
    todo = [t for t in tasks if store.record(t.key) is None]
    failed = job.make_all(todo, len(tasks)) if todo else 0
    job.score_again([t for t in tasks if t not in todo])
    records = [store.record(t.key) for t in tasks]
    summary = {
        "run_id": recipe.run_id,
        "label": label(cfg, recipe),
        "clips": len(tasks),
        "made": len(todo) - failed,
        "failed": failed,
        "folder": str(store.folder),
        "records": [r for r in records if r is not None],
    }
    print_run(summary)
    if failed:
        error = UserError(
            f"{failed} of {len(tasks)} clips failed, {len(tasks) - failed} are recorded; "
            f"tracebacks are in {store.folder}/failures; "
            "the same command tries the failed ones again"
        )
        error.summary = summary  # for the sweep's table
        raise error
    return summary


def clip_tasks(cfg: DictConfig) -> list[Task]:
    """The clips of a config: one `prompt`, or the prompts group; equal texts merged."""
    if cfg.prompt is not None:
        if not cfg.prompt.strip():
            raise UserError("prompt is empty; type prompt='a large blue star spins on sand'")
        if any("\ud800" <= c <= "\udfff" for c in cfg.prompt):  # undecodable bytes in argv
            raise UserError(f"prompt={cfg.prompt!a} is not UTF-8; type it in a UTF-8 terminal")
        entries = [(0, cfg.prompt)]
    else:
        p = cfg.prompts
        found = load_prompts(
            p.source,
            file=p.file,
            subset=p.subset,
            seed=p.subset_seed,
            shard=cfg.shard,
            count=p.count,
            world=cfg.backbone.name if cfg.backbone.family == "tiny" else "micro",
        )
        entries = [(e.index, e.text) for e in found]
    places: dict[str, list[int]] = {}
    for index, text in entries:
        places.setdefault(text, []).append(index)
    return [Task(text, cfg.seed, tuple(where)) for text, where in places.items()]


@functools.lru_cache(maxsize=1)
def load_backbone(family: str, name: str, device: str) -> Backbone:
    """The backbone, loaded once per process; another one takes its place in memory."""
    gc.collect()
    if family == "tiny":
        from s2flow.backbones import tiny

        return tiny.load(name, device)
    raise UserError(f"backbone={name}: no adapter for family {family}; type backbone=micro")


@functools.lru_cache
def _weights_hash(family: str, name: str) -> str:
    if family == "tiny":
        from s2flow.backbones import tiny

        return tiny.weights_hash(name)
    raise UserError(f"backbone={name}: no adapter for family {family}; type backbone=micro")


@dataclass(frozen=True)
class Job:
    """One recipe at work on one store."""

    cfg: DictConfig
    recipe: Recipe
    store: Store
    scorers: dict[str, Any]

    def make_all(self, todo: list[Task], clips: int) -> int:
        """Make the missing ones of so many clips, batch by batch; returns how many failed."""
        cfg, failed = self.cfg, 0
        backbone = load_backbone(cfg.backbone.family, cfg.backbone.name, _device(cfg.device))
        layers = backbone.router.layers
        for layer in self.recipe.windows.dense_layers:
            if not 0 <= layer < layers:
                raise UserError(
                    f"windows.dense_layers holds {layer}; {backbone.name} has layers 0..{layers - 1}"
                )
        with (
            Progress(self.recipe, clips, len(todo)) as progress,
            tracked(cfg, self.recipe) as track,
        ):
            for i in range(0, len(todo), cfg.batch):
                group = [t for t in todo[i : i + cfg.batch] if self.store.record(t.key) is None]
                failed += self.make(group, backbone, progress, track) if group else 0
        return failed

    def make(self, group: list[Task], backbone: Backbone, progress: Progress, track: Track) -> int:
        """Generate and record one batch; returns how many clips failed."""
        clock, store = Clock(backbone.device), self.store
        prompts, seeds = [t.prompt for t in group], [t.seed for t in group]
        try:
            cascade = Cascade(
                backbone, self.recipe, prompts, seeds, clock, _low_flows, progress.step
            )
            made = methods.method(self.recipe.method).generate(cascade)
            if not torch.isfinite(made.latent).all():
                raise FloatingPointError("the latent holds NaN or infinity")
            for i, task in enumerate(group):
                record = self.write(task, i, made, clock, backbone)
                store.commit(task.key, record)
                progress.clip_done(record)
                track(record, store.folder)
            return 0
        except Exception as error:
            if _disk_is_full(error, store.folder):
                raise UserError(
                    f"the disk of runs_dir={self.cfg.runs_dir} is full; nothing recorded is lost: "
                    "free some space and type the same command again"
                ) from None
            left = [t for t in group if store.record(t.key) is None]
            if len(group) > 1:  # one by one, so that only the culprit fails
                return sum(self.make([task], backbone, progress, track) for task in left)
            progress.failed(group[0].prompt, error)
            for task in left:
                failure = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
                failure |= {"error": repr(error), "traceback": traceback.format_exc()}
                store.fail(task.key, failure | provenance(backbone.device))
            return len(left)

    def write(
        self, task: Task, i: int, made: Generated, clock: Clock, backbone: Backbone
    ) -> dict[str, Any]:
        """Write clip i of a batch to the store and score it; returns its record."""
        recipe, store, fps = self.recipe, self.store, self.cfg.backbone.fps
        video = made.video[i]
        low = None if made.low_video is None else made.low_video[i]
        path = store.path("clips", f"{task.key}.mp4")
        own, batch = Clock(backbone.device), len(made.video)
        with own("write"):
            with written_whole(path) as temporary:
                write_video(temporary, video, fps)
            rows = [(f"{recipe.method} {video.shape[1]}x{video.shape[2]}", video)]
            if low is not None:
                with written_whole(store.path("clips", f"{task.key}.low.mp4")) as temporary:
                    write_video(temporary, low, fps)
                rows.insert(0, (f"LR {low.shape[1]}x{low.shape[2]}", low))
            with written_whole(store.path("sheets", f"{task.key}.png")) as temporary:
                contact_sheet(temporary, rows, task.prompt)
        with own("score"):
            scores = self.score(task, self.scorers)
        sigma = [round(s, 8) for s in reversed(sigma_grid(recipe.steps, recipe.shift).tolist())]
        return {
            "status": "ok",
            "run_id": recipe.run_id,
            "recipe": recipe.identity(),
            "prompt": task.prompt,
            "prompt_index": list(task.indices),
            "seed": task.seed,
            "video": f"clips/{task.key}.mp4",
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "frames": len(video),
            "height": video.shape[1],
            "width": video.shape[2],
            "fps": fps,
            "windows": _window_label(self.cfg, recipe),
            "sigmas": sigma,
            "sigma_handoff": sigma[recipe.steps - recipe.t_i] if "t_i" in recipe.knobs else None,
            **made.reports[i],
            "seconds": {k: round(v / batch, 4) for k, v in clock.seconds.items()}
            | {k: round(v, 4) for k, v in own.seconds.items()},
            "peak_mib": {k: round(v, 1) for k, v in (clock.peak_mib | own.peak_mib).items()},
            "batch": batch,
            "scorers": sorted(self.scorers),
            "scores": scores,
            "oov_rate": round(backbone.oov_rate(task.prompt), 4),
            **provenance(backbone.device),
        }

    def score(self, task: Task, scorers: dict[str, Any]) -> dict[str, float | None]:
        """Scores of a clip in the store, from its files alone."""
        low = self.store.path("clips", f"{task.key}.low.mp4")
        clip = Clip(
            read_video(self.store.path("clips", f"{task.key}.mp4")),
            task.prompt,
            task.seed,
            self.store.runs_dir,
            read_video(low) if low.exists() else None,
        )
        return {k: v for scorer in scorers.values() for k, v in scorer(clip).items()}

    def score_again(self, tasks: list[Task]) -> None:
        """Give clips that were recorded before the scores they lack; nothing is generated."""
        for task in tasks:
            record = self.store.record(task.key)
            if record is None:
                continue
            new = {k: s for k, s in self.scorers.items() if k not in record["scorers"]}
            # a fidelity score belongs to its reference, so it is taken anew each time
            new |= {k: s for k, s in self.scorers.items() if k == "fidelity"}
            if new:
                record["scores"] |= self.score(task, new)
                record["scorers"] = sorted({*record["scorers"], *new})
                self.store.commit(task.key, record)


def _disk_is_full(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(folder).free < 2**20  # ffmpeg does not pass its errno on


def _window_label(cfg: DictConfig, recipe: Recipe) -> str | None:
    if "windows" not in recipe.knobs:
        return None
    return "full" if recipe.whole_grid else cfg.windows.label


def label(cfg: DictConfig, recipe: Recipe) -> str:
    """The knobs of a run in a few words, for tables."""
    words = [recipe.method]
    if "windows" in recipe.knobs:
        s = f" s={recipe.sparsity:g}" + ("³" if recipe.density == "per_axis" else "")
        unused = recipe.whole_grid or recipe.windows.name == "coverage"
        words.append(f"{_window_label(cfg, recipe)}{'' if unused else s}")
        words.append(f"lri K={recipe.order}" if recipe.solver == "lri" else recipe.solver)
    if "t_i" in recipe.knobs:
        words.append(f"t_i={recipe.t_i}/{recipe.steps}")
    return ", ".join(words)


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name} is unknown; type one of device=auto|cpu|cuda|cuda:1")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch finds no CUDA device here; type device=cpu")
    return name


@functools.lru_cache
def provenance(device: str) -> dict[str, Any]:
    """Where and with what this process runs: versions, device, host, commit."""
    names = ("s2flow", "torch", "diffusers", "transformers", "hydra-core", "numpy")
    cuda = device.startswith("cuda")
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in names}},
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "commit": commit,
        "dirty": None if dirty is None else bool(dirty),
        "command": " ".join(sys.argv),
    }


def _processor() -> str:
    """The CPU's model name and the cores this process may use."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(r.split(":")[1].strip() for r in rows if r.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu, {name}, {cores} cores"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
