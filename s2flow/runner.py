"""One job: for each clip not yet in the store, generate, write, score, record.

A clip is a prompt text and a seed; list entries with the same text share one. With `seeds` above 1
all prompts get their first seed before any gets its second: whenever a job is stopped, as many
prompts as possible have a clip, and prompts are what statistics count. Whatever is already
recorded is skipped, so re-issuing a command continues it. A clip that fails leaves its traceback,
the others go on, and the job ends non-zero with counts and the command to type. Within one process
a backbone is loaded once, and an LR flow is computed once for all HR variants of a sweep that
share it. Several processes share a job as `s2flow.parallel` says.
"""

import errno
import functools
import gc
import importlib
import re
import shutil
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import save_file

from s2flow import methods
from s2flow.backbones import checkpoint
from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.compiled import compile_backbone
from s2flow.backbones.placement import place, tile_vae
from s2flow.backbones.ulysses import share_videos
from s2flow.cascade import Generated
from s2flow.config import plain, resolve
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.lowflow import LowFlowCache
from s2flow.outcome import outcome
from s2flow.parallel import Team, join, own_device
from s2flow.params import variant
from s2flow.planning import plan, refuse
from s2flow.policies import sta
from s2flow.progress import Progress
from s2flow.progress import check as check_progress
from s2flow.prompts import Prompt, load_prompts
from s2flow.provenance import provenance
from s2flow.recipe import VERSION, Recipe
from s2flow.score import Scoring
from s2flow.store import Store, clip_key, read_run, sha256_of, without_nan, written_whole
from s2flow.summary import print_failure, print_run
from s2flow.timing import Clock
from s2flow.tracking import Tracker, experiment, sweep, tracked
from s2flow.tracking import check as check_tracker
from s2flow.video import contact_sheet, write_video
from s2flow.windowmap import save_windows

_loaded: dict[tuple, Backbone] = {}  # at most one


@dataclass(frozen=True)
class Task:
    """One clip to make: text, seed, its places in the prompt list, its key in the store.

    original: the entry that an augmented text stands for; None: it is the text.
    """

    prompt: str
    seed: int
    indices: tuple[int, ...]
    original: str | None = None

    @property
    def key(self) -> str:
        """See `store.clip_key`."""
        return clip_key(self.prompt, self.seed, self.original)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Make all clips of one config; returns the summary that tables are printed from.

    Raises UserError for values that cannot work and, at the end, if any clip failed.
    """
    check_progress(cfg.progress)
    check_tracker(cfg.tracker)
    tasks = clip_tasks(cfg)
    knobs = methods.method(cfg.method.name).KNOBS
    if cfg.plan:
        return plan(cfg, resolve(cfg, "", knobs), device_here(cfg.device), len(tasks))
    if cfg.offload != "none" and device_here(cfg.device) == "cpu":
        raise UserError(
            f"offload={cfg.offload} keeps weights on the CPU while a GPU computes, and the device "
            "here is the CPU; leave offload out"
        )
    weights = weights_hash(cfg.backbone.family, Origin.of(cfg.backbone))
    recipe = resolve(cfg, weights, knobs)
    sta.check_prompts(recipe, [t.prompt for t in tasks])
    arguments = plain(cfg, "scorer")
    scorers = {name: instantiate(conf) for name, conf in arguments.items()}
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    store = Store(cfg.runs_dir, recipe.run_id, {"version": VERSION, **recipe.identity()})
    team = join(cfg.context_parallel, device_here(cfg.device))
    scoring = Scoring(store.book, scorers, arguments)
    job, mine = Job(cfg, recipe, store, scoring, team), team.share(tasks)
    todo = team.agree([t for t in mine if store.record(t.key) is None])
    made, failed, unscored, refused = [], 0, 0, None
    try:
        unscored = sum(not job.score(t) for t in mine if t not in todo and team.leads)
        failed = job.make_all(todo, tasks, len(mine)) if todo else 0
        made = [r for r in (store.record(t.key) for t in todo) if r is not None]
        unscored += sum(not scoring.scored(r) for r in made if team.leads)
    except UserError as error:  # the other groups count with this one before anybody leaves
        refused = error
    made, failed, unscored, stopped = team.total(len(made), failed, unscored, refused is not None)
    if refused is not None:
        raise refused
    if stopped:
        raise UserError("another process could not go on and says why; what is recorded stays")
    store.book.refresh()  # what others said meanwhile
    records = [store.record(t.key) for t in tasks]
    summary = {
        "run_id": recipe.run_id,
        "label": label(recipe),
        "experiment": experiment(),
        "clips": len(tasks),
        "made": made,
        "failed": failed,
        "unscored": unscored,
        "folder": str(store.folder),
        "records": [r for r in records if r is not None],
    }
    if team.first:
        print_run(summary)
    if failed or unscored:
        error = UserError(_what_failed(summary))
        error.summary, error.reported = summary, not team.first  # for the sweep's table
        raise error
    return summary


def _what_failed(summary: dict[str, Any]) -> str:
    clips, failed, unscored = (summary[k] for k in ("clips", "failed", "unscored"))
    said = []
    if failed:
        said += [
            f"{failed} of {clips} clips failed, {clips - failed} are complete; "
            f"tracebacks are in {summary['folder']}/failures"
        ]
    if unscored:
        said += [
            f"{unscored} of {clips} clips lack scores; why stands in {summary['folder']}/scores"
        ]
    return "; ".join(said) + "; the same command tries the failed ones again"


def clip_tasks(cfg: DictConfig) -> list[Task]:
    """The clips of a config: one `prompt`, or the prompts group; equal texts merged.

    Two entries are equal if both what the model is given and what is scored are. Seed by seed.
    """
    if cfg.seeds < 1:
        raise UserError(f"seeds={cfg.seeds} asks for no clip of a prompt; type seeds=1 or more")
    if cfg.prompt is not None:
        if cfg.shard != "1/1":
            raise UserError(
                f"shard={cfg.shard} splits a list, prompt= is one prompt; drop one of them"
            )
        if cfg.prompts.augmented is not None:
            raise UserError(
                f"prompts.augmented={cfg.prompts.augmented} maps a list, prompt= is one prompt; "
                "drop one of them"
            )
        if not cfg.prompt.strip():
            raise UserError("prompt is empty; type prompt='a large blue star spins on sand'")
        if any("\ud800" <= c <= "\udfff" for c in cfg.prompt):  # undecodable bytes in argv
            raise UserError(f"prompt={cfg.prompt!a} is not UTF-8; type it in a UTF-8 terminal")
        entries = [Prompt(0, cfg.prompt)]
    else:
        p = cfg.prompts
        entries = load_prompts(
            p.source,
            file=p.file,
            augmented=p.augmented,
            subset=p.subset,
            seed=p.subset_seed,
            shard=cfg.shard,
            count=p.count,
            world=cfg.backbone.name if cfg.backbone.family == "tiny" else "micro",
        )
    places: dict[tuple[str, str | None], list[int]] = {}
    for entry in entries:
        places.setdefault((entry.text, entry.original), []).append(entry.index)
    return [
        Task(text, seed, tuple(where), original)
        for seed in range(cfg.seed, cfg.seed + cfg.seeds)
        for (text, original), where in places.items()
    ]


def family(name: str) -> ModuleType:
    """The module of a backbone family; `backbones/base.py` says what it offers."""
    return importlib.import_module(f"s2flow.backbones.{name}")


def load_backbone(
    conf: DictConfig,
    device: str,
    offload: str = "none",
    fp8: bool = False,
    compiled: bool = False,
    group: Any = None,
) -> Backbone:
    """The backbone, loaded once per process; another one takes its place in memory.

    group: of processes that make each video together, None for one. Raises UserError if its strides,
    or its experts, are not those that the config was checked with, or its heads cannot be shared.
    """
    key = (conf.family, Origin.of(conf), device, offload, fp8, compiled, group)
    if key not in _loaded:
        _loaded.clear()
        gc.collect()
        elsewhere = offload != "none" or fp8  # as a whole it might not fit the device
        backbone = family(conf.family).from_origin(Origin.of(conf), "cpu" if elsewhere else device)
        if elsewhere:
            place(backbone, device, offload, fp8)
        for knob in ("multiple", "frame_step", "boundary"):
            stated, found = conf[knob], getattr(backbone, knob, None)
            if stated != found:
                stated, found = ("null" if x is None else x for x in (stated, found))
                raise UserError(
                    f"backbone.{knob}={stated}, but these weights have {found}; "
                    f"type backbone.{knob}={found}, or choose another backbone="
                )
        if group is not None:
            share_videos(backbone, group)
        if compiled:
            compile_backbone(backbone)
        _loaded[key] = backbone
    return _loaded[key]


def low_flows(cfg: DictConfig) -> LowFlowCache:
    """The LR flows of this process, and of the folder that the config names."""
    gib = 0 if cfg.context_parallel > 1 else cfg.lr_cache_gib  # ranks must agree on what is there
    folder = Path(cfg.runs_dir) / "lr_cache" if cfg.lr_cache_dir is None else cfg.lr_cache_dir
    return _low_flows(str(folder) if gib else None, round(gib * 2**30))


@functools.lru_cache
def _low_flows(folder: str | None, limit: int) -> LowFlowCache:
    return LowFlowCache(folder, limit)


@functools.lru_cache
def weights_hash(family_name: str, weights: Origin) -> str:
    """Name of the weights, as recipes hold it; worked out once per process."""
    return family(family_name).identity(weights)


@dataclass(frozen=True)
class Job:
    """One recipe at work on one store."""

    cfg: DictConfig
    recipe: Recipe
    store: Store
    scoring: Scoring
    team: Team = Team()

    def make_all(self, todo: list[Task], tasks: list[Task], clips: int) -> int:
        """Make the missing ones of so many clips, batch by batch; returns how many failed.

        tasks: the clips of all processes, of which some are shown.
        """
        cfg, team, recipe, failed = self.cfg, self.team, self.recipe, 0
        device = device_here(cfg.device)
        refuse(cfg, recipe, device)
        shown, have = [min(t.indices) for t in tasks], len(read_run(self.store.folder))
        # before weights are loaded: a login that is missing is said at once
        with tracked(cfg, recipe, shown, have) if team.leads else nullcontext() as track:
            placed = (cfg.offload, cfg.fp8, cfg.compile)
            backbone = load_backbone(cfg.backbone, device, *placed, team.tensors)
            tile_vae(backbone.vae, recipe.vae_tile)
            methods.check(backbone, recipe)
            with Progress(recipe, clips, len(todo), cfg.progress, not team.leads) as progress:
                for i in range(0, len(todo), cfg.batch):
                    group = self.missing(todo[i : i + cfg.batch])
                    failed += self.make(group, backbone, progress, track) if group else 0
        return failed

    def missing(self, tasks: list[Task]) -> list[Task]:
        """Those that nobody has recorded yet, as the leader sees it."""
        return self.team.agree([t for t in tasks if self.store.record(t.key) is None])

    def make(
        self, group: list[Task], backbone: Backbone, progress: Progress, track: Tracker | None
    ) -> int:
        """Generate and record one batch; returns how many clips failed."""
        clock, store, team = Clock(backbone.device, watch=progress.stage), self.store, self.team
        progress.batch()
        prompts, seeds = [t.prompt for t in group], [t.seed for t in group]
        try:
            how = {"clock": clock, "cache": low_flows(self.cfg), "progress": progress.step}
            how["on_step"] = None if track is None else track.step
            made = methods.generate(backbone, self.recipe, prompts, seeds, **how)
            team.lead(lambda: self.commit(group, made, clock, backbone))
        except Exception as error:
            team.fail_together(error)
            if _disk_is_full(error, store.folder):
                raise UserError(
                    f"the disk of runs_dir={self.cfg.runs_dir} is full; nothing recorded is lost: "
                    "free some space and type the same command again"
                ) from None
            left = self.missing(group)
            if track is not None:
                track.skip()  # its steps are sent; the next clip's follow them
            if len(group) > 1:  # one by one, so that only the culprit fails
                return sum(self.make([task], backbone, progress, track) for task in left)
            if team.leads:
                print_failure(group[0].prompt, error)
            for task in left if team.leads else ():
                failure = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
                failure |= {"error": repr(error), "traceback": traceback.format_exc()}
                store.fail(task.key, failure | provenance(backbone.device))
            return len(left)
        for task in group if team.leads else ():
            self.finish(task, progress, track)
        return 0

    def commit(self, group: list[Task], made: Generated, clock: Clock, backbone: Backbone) -> None:
        """Write and record a batch."""
        for i, task in enumerate(group):
            self.store.commit(task.key, self.write(task, i, made, clock, backbone))

    def finish(self, task: Task, progress: Progress, track: Tracker | None) -> None:
        """Score a clip that was just recorded, and show it."""
        with Clock(watch=progress.stage)("score"):
            self.score(task)
        record = self.store.record(task.key)
        progress.clip_done(record)
        if track is not None:
            track.clip(record, self.store.folder)

    def write(
        self, task: Task, i: int, made: Generated, clock: Clock, backbone: Backbone
    ) -> dict[str, Any]:
        """Write clip i of a batch to the store; returns its record."""
        recipe, store, fps = self.recipe, self.store, self.cfg.backbone.fps
        video = made.video[i]
        low = None if made.low_video is None else made.low_video[i]
        path = store.path("clips", f"{task.key}.mp4")
        own, batch = Clock(backbone.device, watch=clock.watch), len(made.video)
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
            if self.cfg.keep_latents:
                with written_whole(store.path("latents", f"{task.key}.safetensors")) as temporary:
                    save_file({"latent": made.latent[i].float().cpu().contiguous()}, temporary)
            if made.windows and made.windows[i]:
                save_windows(store.path("windows", f"{task.key}.npz"), made.windows[i])
        sigma, sigma_high = (
            [round(s, 8) for s in reversed(sigma_grid(recipe.steps, k or recipe.shift).tolist())]
            for k in (recipe.shift, recipe.shift_high)
        )
        return {
            "status": "ok",
            "run_id": recipe.run_id,
            "recipe": recipe.identity(),
            "prompt": task.prompt,
            **({} if task.original is None else {"original_prompt": task.original}),
            "prompt_index": list(task.indices),
            "seed": task.seed,
            "video": f"clips/{task.key}.mp4",
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "frames": len(video),
            "height": video.shape[1],
            "width": video.shape[2],
            "fps": fps,
            **outcome(video, made.latent[i]),
            "token_pixels": self.cfg.backbone.multiple,
            "windows": recipe.windows_label,
            "variant": variant(recipe.params, recipe.t_i),
            "sigmas": sigma,
            **({} if recipe.shift_high is None else {"sigmas_high": sigma_high}),
            "sigma_handoff": sigma_high[recipe.steps - recipe.t_i]
            if "t_i" in recipe.knobs
            else None,
            **without_nan(made.reports[i]),
            "seconds": {k: round(v / batch, 4) for k, v in clock.seconds.items()}
            | {k: round(v, 4) for k, v in own.seconds.items()},
            "peak_mib": {k: round(v, 1) for k, v in (clock.peak_mib | own.peak_mib).items()},
            "step_seconds": {
                stage: {str(n): round(s, 6) for n, s in steps.items()}
                for stage, steps in clock.steps.items()
                if stage != "lr" or not made.reports[i].get("low_flow_reused")
            },
            "batch": batch,
            "at": round(time.time(), 3),
            "sweep": sweep(),
            "compile": self.cfg.compile,
            "context_parallel": self.team.k,
            "offload": self.cfg.offload,
            "source": self.cfg.backbone.source,
            "revision": checkpoint.revision(Origin.of(self.cfg.backbone)),
            "dtype": recipe.dtype,
            "oov_rate": round(backbone.oov_rate(task.prompt), 4),
            **provenance(backbone.device),
        }

    def score(self, task: Task) -> bool:
        """Enter the verdicts that a recorded clip lacks; False if one of them is no score."""
        return self.scoring.score(self.store.record(task.key))


def _disk_is_full(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(folder).free < 2**20  # ffmpeg does not pass its errno on


def label(recipe: Recipe) -> str:
    """The knobs of a run in a few words, for tables."""
    words = [" ".join(filter(None, (recipe.method, variant(recipe.params, recipe.t_i))))]
    if "windows" in recipe.knobs:
        s = f" s={recipe.sparsity:g}" + ("³" if recipe.density == "per_axis" else "")
        unused = recipe.whole_grid or recipe.windows.name in ("coverage", "inward")
        words.append(f"{recipe.windows_label}{'' if unused else s}")
        words.append(f"lri K={recipe.order}" if recipe.solver == "lri" else recipe.solver)
    if "t_i" in recipe.knobs:
        words.append(f"t_i={recipe.t_i}/{recipe.steps}")
        words += [f"then {h}x{w} at {n}" for (h, w), n in recipe.stages[1:]]
        words += ["adain"] if recipe.adain and recipe.handoff != "noisy" else []
    return ", ".join(words)


def device_here(name: str) -> str:
    """The device that `device=` means for this process. Raises UserError if it is not here."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device={name} is unknown; type one of device=auto|cpu|cuda|cuda:1")
    if name == "auto":
        return own_device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}: torch finds no CUDA device here; type device=cpu")
    if ":" in name and int(name.split(":")[1]) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: there are {torch.cuda.device_count()}; type device=cuda:0"
        )
    return own_device(name)
