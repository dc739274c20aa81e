"""One recipe at work on one store: generate a batch, write it, record it, score it.

A clip that fails leaves its traceback and the others go on; of a batch that fails each clip is tried
alone, so that only the culprit is lost, and one that does not fit the memory is tried once more with
what `process.memory` saves. What is no clip's fault ends the job, since every clip would fail: a full
disk, a knob that turns out wrong. A signal drops the clip in flight (`process.stopping`). Several
processes share a job as `process.parallel` says.
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

BOUNDARIES = ("text", "lr", "plan", "handoff", "hr")  # stages before which a clip may be dropped
AGAIN = 3  # times that a clip is written anew because another worker's files came between


@dataclass(frozen=True)
class Failure:
    """A batch that was not made: the error in words only, because frames would hold its tensors."""

    error: str
    line: str
    traceback: str
    stage: str | None
    ran_out: bool  # of memory


@dataclass(frozen=True)
class Job:
    """One recipe at work on one store.

    stale: clips that have a record and are made again (cache=force), see `tasks.Work`.
    """

    cfg: DictConfig
    recipe: Recipe
    store: Store
    scoring: Scoring
    team: Team = Team()
    stale: Mapping[str, float | None] = field(default_factory=dict)
    saving: Saving = field(default_factory=Saving)

    def make_all(self, todo: list[Task], tasks: list[Task], clips: int) -> int:
        """Make the missing ones of so many clips, batch by batch; returns how many failed.

        tasks: the clips of all processes, of which some are shown. Raises Preempted after a signal.
        """
        cfg, team, recipe, failed = self.cfg, self.team, self.recipe, 0
        if (device := loading.device_here(cfg.device)) != "cpu":
            from s2flow.costs.planning import refuse  # loads diffusers, which takes seconds

            refuse(cfg, recipe, device)
        loading.low_flows(cfg).tidy()
        have = 0 if cfg.tracker.name == "none" else len(self.store.recorded())
        shown = [min(t.indices) for t in tasks]
        # before weights are loaded: a login that is missing is said at once
        with tracked(cfg, recipe, shown, have) if team.leads else nullcontext() as track:
            methods.check(self.backbone(), recipe)
            with Progress(recipe, clips, len(todo), cfg.progress, not team.leads) as progress:
                for i in range(0, len(todo), cfg.batch):
                    self.stop_if_asked()
                    group = self.missing(todo[i : i + cfg.batch])
                    failed += self.make(group, progress, track) if group else 0
        return failed

    def backbone(self) -> Backbone:
        """The loaded backbone, placed as the config or the memory says."""
        cfg, offload = self.cfg, self.saving.offload or self.cfg.offload
        compiled = cfg.compile and (self.saving.after is None or offload == "none")
        placed = (loading.device_here(cfg.device), offload, cfg.fp8, compiled)
        backbone = loading.load_backbone(cfg.backbone, *placed, self.team.tensors)
        tile_vae(backbone.vae, self.recipe.vae_tile)
        return backbone

    def missing(self, tasks: list[Task]) -> list[Task]:
        """Those that nobody has recorded yet, or recorded anew, as the leader sees it."""
        return self.team.agree([t for t in tasks if self.lacks(t)])

    def lacks(self, task: Task) -> bool:
        """Whether there is no record, or only the one that is to be replaced."""
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
        left = self.missing(group)
        if track is not None:
            track.skip()  # its steps are sent; the next clip's follow them
        if len(group) > 1:  # one by one, so that only the culprit fails
            return sum(self.make([task], progress, track) for task in left)
        if left and failure.ran_out and self.saving.after is None:
            self.save_memory(failure)
            return self.make(group, progress, track)
        if self.team.leads and left:
            self.fail(left[0], failure)
        return len(left)

    def attempt(
        self, group: list[Task], progress: Progress, track: Tracker | None
    ) -> Failure | None:
        """Generate and record one batch; returns how it failed, if it did.

        Raises UserError for what is no clip's fault, Preempted after a signal.
        """
        team, prompts, seeds = self.team, [t.prompt for t in group], [t.seed for t in group]
        clock = Clock(watch=self.watch(progress))
        progress.batch()
        try:
            backbone = self.backbone()
            clock.device = backbone.device
            how = {"clock": clock, "cache": loading.low_flows(self.cfg)}
            how |= {"progress": self.step(progress)}
            how["on_step"] = None if track is None else track.step
            made = methods.generate(backbone, self.recipe, prompts, seeds, **how)
            team.lead(lambda: self.commit(group, made, clock, backbone))
        except Preempted as stop:
            left = tuple(t.prompt for t in group if self.lacks(t))
            raise Preempted(stop.by, left, stop.at_once) from None
        except Exception as error:
            ran_out = memory.ran_out(error)
            team.fail_together(error, memory.advice(self.cfg) if ran_out else "")
            refusal = team.agree(self.refusal(error))
            if refusal is not None:
                raise UserError(refusal) from None
            line = f"{type(error).__name__}: {error}".split("\n")[0]
            words = (repr(error), line, traceback.format_exc(), clock.broke)
            return Failure(*words, team.agree(ran_out))
        return None

    def refusal(self, error: Exception) -> str | None:
        """What to say of an error that every clip would run into; None: it is this clip's own."""
        if isinstance(error, UserError):
            return str(error)
        if _disk_is_full(error, self.store.folder):
            return (
                f"the disk of runs_dir={self.cfg.runs_dir} is full; nothing recorded is lost: "
                "free some space and type the same command again"
            )
        return None

    def save_memory(self, failure: Failure) -> None:
        """From now on, do without what `s2flow.process.memory` names."""
        device = loading.device_here(self.cfg.device)
        self.saving.begin(device, self.cfg.offload, failure.stage)
        memory.give_back(loading.low_flows(self.cfg))
        if self.team.leads:
            how = f"offload={self.saving.offload}, LR flows on disk only"
            print(f"note: {self.saving.after}; tried once more with {how}", file=sys.stderr)

    def fail(self, task: Task, failure: Failure) -> None:
        """Say that a clip has failed, and keep why."""
        more = f"; out of memory again: {memory.advice(self.cfg)}" if failure.ran_out else ""
        print_failure(task.prompt, failure.line + more)
        found = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
        found |= {"error": failure.error, "stage": failure.stage, "traceback": failure.traceback}
        found |= self.saving.report()
        self.store.fail(task.key, found | provenance(loading.device_here(self.cfg.device)))

    # -- signals ------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Raises Preempted, on every rank of the group, if a signal has reached its leader."""
        by = self.team.agree(stopping.asked())
        if by is not None:
            raise Preempted(by)

    def watch(self, progress: Progress) -> Any:
        """What a clock tells: shown, and a place to stop before a stage that would be lost."""

        def told(stage: str, seconds: float | None) -> None:
            if seconds is None and stage in BOUNDARIES:
                self.stop_if_asked()
            progress.stage(stage, seconds)

        return told

    def step(self, progress: Progress) -> Any:
        """What a flow tells after a step; its last one is not lost: what follows needs it."""

        def told(stage: str, done: int, total: int) -> None:
            progress.step(stage, done, total)
            if done < total:
                self.stop_if_asked()

        return told

    # -- files --------------------------------------------------------------------------------

    def commit(self, group: list[Task], made: Generated, clock: Clock, backbone: Backbone) -> None:
        """Write and record a batch."""
        for i, task in enumerate(group):
            replaces = self.stale.get(task.key)
            for _ in range(AGAIN):
                with ExitStack() as files:
                    record = self.write(task, i, made, clock, backbone, files)
                    self.store.commit(task.key, record, files, replaces)
                if self.store.matches(task.key):
                    break
                replaces = record["at"]

    def finish(self, task: Task, progress: Progress, track: Tracker | None) -> None:
        """Score a clip that was just recorded, and show it."""
        with Clock(watch=progress.stage)("score"):
            self.score(task)
        record = self.store.record(task.key)
        progress.clip_done(record)
        if track is not None:
            track.clip(record, self.store.folder)

    def write(
        self,
        task: Task,
        i: int,
        made: Generated,
        clock: Clock,
        backbone: Backbone,
        files: ExitStack,
    ) -> dict[str, Any]:
        """Write clip i of a batch, whole, beside its place in the store; returns its record."""
        recipe, fps = self.recipe, self.cfg.backbone.fps
        video = made.video[i]
        low = None if made.low_video is None else made.low_video[i]
        own, batch = Clock(backbone.device, watch=clock.watch), len(made.video)
        with own("write"):
            path = self.beside("clips", f"{task.key}.mp4", files)
            write_video(path, video, fps)
            rows = [(f"{recipe.method} {video.shape[1]}x{video.shape[2]}", video)]
            if low is not None:
                write_video(self.beside("clips", f"{task.key}.low.mp4", files), low, fps)
                rows.insert(0, (f"LR {low.shape[1]}x{low.shape[2]}", low))
            contact_sheet(self.beside("sheets", f"{task.key}.png", files), rows, task.prompt)
            if self.cfg.keep_latents:
                latent = {"latent": made.latent[i].float().cpu().contiguous()}
                save_file(latent, self.beside("latents", f"{task.key}.safetensors", files))
            if made.windows and made.windows[i]:
                save_windows(self.beside("windows", f"{task.key}.npz", files), made.windows[i])
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
            "variant": recipe.variant,
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
            "compile": self.cfg.compile and self.saving.offload in (None, "none"),
            "context_parallel": self.team.k,
            "offload": self.saving.offload or self.cfg.offload,
            **self.saving.report(),
            "source": self.cfg.backbone.source,
            "revision": checkpoint.revision(Origin.of(self.cfg.backbone)),
            "dtype": recipe.dtype,
            "oov_rate": round(backbone.oov_rate(task.prompt), 4),
            **provenance(backbone.device),
        }

    def beside(self, kind: str, name: str, files: ExitStack) -> Path:
        """A temporary path that takes its place when `files` closes without an exception."""
        return files.enter_context(written_whole(self.store.path(kind, name)))

    def rescore(self, recorded: dict[str, dict[str, Any]]) -> int:
        """Enter the verdicts that recorded clips lack; returns how many stay without a score.

        recorded: of `store.recorded`. Only clips that lack something are looked at. Raises Preempted.
        """
        unscored = 0
        for key, known in recorded.items() if self.scoring.parts else ():
            if self.scoring.missing(known) or not self.scoring.scored(known):
                record = self.store.record(key)
                unscored += record is not None and not self.scoring.score(record)
            if self.team.k == 1:  # in a group, ranks must leave together
                stopping.check()
        return unscored

    def score(self, task: Task) -> bool:
        """Enter the verdicts that a recorded clip lacks; False if one of them is no score."""
        return self.scoring.score(self.store.record(task.key))


def _disk_is_full(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(folder).free < 2**20  # ffmpeg does not pass its errno on
