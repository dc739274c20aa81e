"""A job: one recipe on one store. Generate a batch, write it, record it, score it.

A clip that fails leaves its traceback, and the job continues. If a batch fails, each clip is tried
alone, so that only the failing one is lost. A clip that runs out of memory is tried once more with the
settings of `process.memory`. Errors that every clip would have end the job: a full disk, an invalid
knob. A signal drops the clip in flight (`process.stopping`). Several processes share a job as in
`process.parallel`.
"""

import errno
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors.torch import save_file

from s2flow import methods
from s2flow.backbones import checkpoint
from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.tiles import tile_vae
from s2flow.cascade import Generated
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.process import loading, memory, stopping
from s2flow.process.memory import Saving
from s2flow.process.parallel import Team
from s2flow.process.provenance import provenance
from s2flow.process.stopping import Preempted
from s2flow.process.timing import Clock
from s2flow.recipe.given import Given
from s2flow.recipe.identity import Recipe
from s2flow.report.windowmap import save_windows
from s2flow.scorers.score import Scoring
from s2flow.store import Store, sha256_of, without_nan, written_whole
from s2flow.store.outcome import outcome
from s2flow.store.tasks import Task
from s2flow.terminal.progress import Progress
from s2flow.terminal.summary import print_failure
from s2flow.tracking.tracker import Tracker, sweep, tracked
from s2flow.video import contact_sheet, write_video

STOP_POINTS = ("text", "lr", "plan", "handoff", "hr")  # stages before which a clip may be dropped
MAX_REWRITES = 3  # attempts to write a clip whose files another worker overwrote


@dataclass(frozen=True)
class Failure:
    """Why a batch failed, as text only: an exception's frames would keep its tensors alive."""

    error: str
    line: str
    traceback: str
    stage: str | None
    ran_out: bool  # of memory


@dataclass(frozen=True)
class Job:
    """One recipe on one store.

    stale: clips whose record is to be replaced (cache=force), see `tasks.Work`.
    """

    cfg: DictConfig
    recipe: Recipe
    store: Store
    scoring: Scoring
    team: Team = Team()
    stale: Mapping[str, float | None] = field(default_factory=dict)
    saving: Saving = field(default_factory=Saving)
    given: Given | None = None  # the clip that is refined

    def make_all(self, todo: list[Task], tasks: list[Task], clips: int) -> int:
        """Make the missing clips (`todo`) batch by batch; returns how many failed.

        tasks: the clips of all processes, from which the tracker chooses; clips: how many this process
        has. Raises Preempted after a signal.
        """
        cfg, team, recipe, failed = self.cfg, self.team, self.recipe, 0
        if (device := loading.device_here(cfg.device)) != "cpu":
            from s2flow.costs.planning import refuse  # loads diffusers, which takes seconds

            refuse(cfg, recipe, device)
        loading.low_flows(cfg).tidy()
        recorded = 0 if cfg.tracker.name == "none" else len(self.store.recorded())
        shown = [min(t.indices) for t in tasks]
        # before weights are loaded: a missing login is reported at once
        with tracked(cfg, recipe, shown, recorded) if team.leads else nullcontext() as track:
            methods.check(self.backbone(), recipe)
            with Progress(recipe, clips, len(todo), cfg.progress, not team.leads) as progress:
                for i in range(0, len(todo), cfg.batch):
                    self.stop_if_asked()
                    group = self.missing(todo[i : i + cfg.batch])
                    failed += self.make(group, progress, track) if group else 0
        return failed

    def backbone(self) -> Backbone:
        """The loaded backbone, placed by the config or the memory-saving settings."""
        cfg, offload = self.cfg, self.saving.offload or self.cfg.offload
        compiled = cfg.compile and (self.saving.after is None or offload == "none")
        placed = (loading.device_here(cfg.device), offload, cfg.fp8, compiled)
        backbone = loading.load_backbone(cfg.backbone, *placed, self.team.tensors)
        tile_vae(backbone.vae, self.recipe.vae_tile)
        return backbone

    def missing(self, tasks: list[Task]) -> list[Task]:
        """Tasks without a current record, as the leader sees it."""
        return self.team.agree([t for t in tasks if self.lacks(t)])

    def lacks(self, task: Task) -> bool:
        """Whether a task has no record, or only the one that is to be replaced."""
        record = self.store.record(task.key)
        stale = record is not None and task.key in self.stale
        return record is None or (stale and record.get("at") == self.stale[task.key])

    def make(self, group: list[Task], progress: Progress, track: Tracker | None) -> int:
        """Generate and record one batch; returns how many clips failed."""
        failure = self.attempt(group, progress, track)
        if failure is None:
            for task in group if self.team.leads else ():
                self.finish(task, progress, track)
            return 0
        missing = self.missing(group)
        if track is not None:
            track.skip()  # keeps step numbers increasing: those of the failed batch were sent
        if len(group) > 1:  # one by one, so that only the failing clip is lost
            return sum(self.make([task], progress, track) for task in missing)
        if missing and failure.ran_out and self.saving.after is None:
            self.save_memory(failure)
            return self.make(group, progress, track)
        if self.team.leads and missing:
            self.fail(missing[0], failure)
        return len(missing)

    def attempt(
        self, group: list[Task], progress: Progress, track: Tracker | None
    ) -> Failure | None:
        """Generate and record one batch; returns its failure, or None.

        Raises UserError for an error that every clip would have, Preempted after a signal.
        """
        team, prompts, seeds = self.team, [t.prompt for t in group], [t.seed for t in group]
        clock = Clock(watch=self.watch(progress))
        progress.batch()
        try:
            backbone = self.backbone()
            clock.device = backbone.device
            options = {"clock": clock, "cache": loading.low_flows(self.cfg)}
            options |= {"progress": self.step(progress)}
            options["video"] = None if self.given is None else self.given.video
            options["on_step"] = None if track is None else track.step
            made = methods.generate(backbone, self.recipe, prompts, seeds, **options)
            with team.lead() as leads:
                if leads:
                    self.commit(group, made, clock, backbone)
        except Preempted as stop:
            dropped = tuple(t.prompt for t in group if self.lacks(t))
            raise Preempted(stop.by, dropped, stop.at_once) from None
        except Exception as error:
            ran_out = memory.ran_out(error)
            team.fail_together(error, memory.advice(self.cfg) if ran_out else "")
            refusal = str(error) if isinstance(error, UserError) else None
            if _disk_is_full(error, self.store.folder):
                refusal = (
                    f"the disk of runs_dir={self.cfg.runs_dir} is full; nothing recorded is lost: "
                    "free some space and type the same command again"
                )
            if (refusal := team.agree(refusal)) is not None:
                raise UserError(refusal) from None
            line = f"{type(error).__name__}: {error}".split("\n")[0]
            fields = (repr(error), line, traceback.format_exc(), clock.failed_stage)
            return Failure(*fields, team.agree(ran_out))
        return None

    def save_memory(self, failure: Failure) -> None:
        """Switch on the settings of `s2flow.process.memory` for the rest of the job."""
        device = loading.device_here(self.cfg.device)
        self.saving.begin(device, self.cfg.offload, failure.stage)
        memory.give_back(loading.low_flows(self.cfg))
        if self.team.leads:
            settings = f"offload={self.saving.offload}, LR flows on disk only"
            print(f"note: {self.saving.after}; tried once more with {settings}", file=sys.stderr)

    def fail(self, task: Task, failure: Failure) -> None:
        """Print that a clip failed, and store the reason."""
        advice = f"; out of memory again: {memory.advice(self.cfg)}" if failure.ran_out else ""
        print_failure(task.prompt, failure.line + advice)
        report = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
        report |= {"error": failure.error, "stage": failure.stage, "traceback": failure.traceback}
        report |= self.saving.report()
        self.store.fail(task.key, report | provenance(loading.device_here(self.cfg.device)))

    # -- signals ------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Raises Preempted, on every rank of the group, if a signal has reached its leader."""
        by = self.team.agree(stopping.asked())
        if by is not None:
            raise Preempted(by)

    def watch(self, progress: Progress) -> Any:
        """`Clock.watch`: shows the stage, and may stop before one whose work would be lost."""

        def on_stage(stage: str, seconds: float | None) -> None:
            if seconds is None and stage in STOP_POINTS:
                self.stop_if_asked()
            progress.stage(stage, seconds)

        return on_stage

    def step(self, progress: Progress) -> Any:
        """`Cascade.progress`: shows the step, and may stop after any but the last."""

        def on_step(stage: str, done: int, total: int) -> None:
            progress.step(stage, done, total)
            if done < total:
                self.stop_if_asked()

        return on_step

    # -- files --------------------------------------------------------------------------------

    def commit(self, group: list[Task], made: Generated, clock: Clock, backbone: Backbone) -> None:
        """Write and record a batch."""
        for i, task in enumerate(group):
            replaces = self.stale.get(task.key)
            for _ in range(MAX_REWRITES):
                writing = Clock(backbone.device, watch=clock.watch)
                with ExitStack() as files:
                    with writing("write"):
                        path = self.write_files(task, i, made, files)
                    record = self.record(task, i, made, path, backbone)
                    record |= times(clock, writing, made, i)
                    self.store.commit(task.key, record, files, replaces)
                if self.store.matches(task.key):
                    break
                replaces = record["at"]

    def finish(self, task: Task, progress: Progress, track: Tracker | None) -> None:
        """Score a newly recorded clip, and show it."""
        with Clock(watch=progress.stage)("score"):
            self.score(task)
        record = self.store.record(task.key)
        progress.clip_done(record)
        if track is not None:
            track.clip(record, self.store.folder)

    def record(
        self, task: Task, i: int, made: Generated, path: Path, backbone: Backbone
    ) -> dict[str, Any]:
        """The record of clip i of a batch, whose mp4 is at `path`; without `times`."""
        video = made.video[i]
        return {
            "status": "ok",
            "run_id": self.recipe.run_id,
            "recipe": self.recipe.identity(),
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
            "fps": self.cfg.backbone.fps,
            **outcome(video, made.latent[i]),
            "token_pixels": self.cfg.backbone.multiple,
            "windows": self.recipe.windows_label,
            "variant": self.recipe.variant,
            **noise_levels(self.recipe),
            **without_nan(made.reports[i]),
            "at": round(time.time(), 3),
            "sweep": sweep(),
            "compile": self.cfg.compile and self.saving.offload in (None, "none"),
            "context_parallel": self.team.k,
            "offload": self.saving.offload or self.cfg.offload,
            **self.saving.report(),
            "source": self.cfg.backbone.source,
            "revision": checkpoint.revision(Origin.of(self.cfg.backbone)),
            "dtype": self.recipe.dtype,
            "oov_rate": round(backbone.oov_rate(task.prompt), 4),
            **provenance(backbone.device),
        }

    def write_files(self, task: Task, i: int, made: Generated, files: ExitStack) -> Path:
        """Videos, contact sheet, windows and latent of clip i of a batch; returns the clip's path."""
        video, fps = made.video[i], self.cfg.backbone.fps

        def temporary(kind: str, ending: str) -> Path:  # renamed when `files` closes
            return files.enter_context(written_whole(self.store.path(kind, task.key + ending)))

        path = temporary("clips", ".mp4")
        write_video(path, video, fps)
        rows = [(f"{self.recipe.method} {video.shape[1]}x{video.shape[2]}", video)]
        if made.low_video is not None:
            low = made.low_video[i]
            write_video(temporary("clips", ".low.mp4"), low, fps)
            rows.insert(0, (f"LR {low.shape[1]}x{low.shape[2]}", low))
        contact_sheet(temporary("sheets", ".png"), rows, task.prompt)
        if self.cfg.keep_latents:
            latent = {"latent": made.latent[i].float().cpu().contiguous()}
            save_file(latent, temporary("latents", ".safetensors"))
        if made.windows and made.windows[i]:
            save_windows(temporary("windows", ".npz"), made.windows[i])
        return path

    def rescore(self, recorded: dict[str, dict[str, Any]]) -> int:
        """Add missing verdicts of recorded clips; returns how many clips remain without a score.

        recorded: from `store.recorded`. Only records with missing verdicts are read. Raises Preempted.
        """
        unscored = 0
        for key, summary in recorded.items() if self.scoring.parts else ():
            if self.scoring.missing(summary) or not self.scoring.scored(summary):
                record = self.store.record(key)
                unscored += record is not None and not self.scoring.score(record)
            if self.team.k == 1:  # in a group, ranks must leave together
                stopping.check()
        return unscored

    def score(self, task: Task) -> bool:
        """Add missing verdicts of a recorded clip; False if one of them is no score."""
        return self.scoring.score(self.store.record(task.key))


def noise_levels(recipe: Recipe) -> dict[str, Any]:
    """Record fields: sigma at every node of the LR and HR grids, and at the hand-off."""
    if recipe.scheduler is not None:  # whose levels are its own
        return {"sigma_handoff": None}
    low, high = (
        [round(s, 8) for s in reversed(sigma_grid(recipe.steps, k or recipe.shift).tolist())]
        for k in (recipe.shift, recipe.shift_high)
    )
    levels = {"sigmas": low} | ({} if recipe.shift_high is None else {"sigmas_high": high})
    handed_off = "t_i" in recipe.knobs
    return levels | {"sigma_handoff": high[recipe.steps - recipe.t_i] if handed_off else None}


def times(clock: Clock, writing: Clock, made: Generated, i: int) -> dict[str, Any]:
    """Record fields of clip i: seconds per stage and step, and peak memory.

    clock: of the batch, divided by its clips; writing: of this clip alone.
    """
    batch, reused = len(made.video), made.reports[i].get("low_flow_reused")
    seconds = {k: v / batch for k, v in clock.seconds.items()} | writing.seconds
    return {
        "seconds": {k: round(v, 4) for k, v in seconds.items()},
        "peak_mib": {k: round(v, 1) for k, v in (clock.peak_mib | writing.peak_mib).items()},
        "step_seconds": {
            stage: {str(n): round(s, 6) for n, s in steps.items()}
            for stage, steps in clock.steps.items()
            if stage != "lr" or not reused
        },
        "batch": batch,
    }


def _disk_is_full(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(folder).free < 2**20  # ffmpeg does not report its errno
