"""One recipe at work on one store: generate a batch, write it, record it, score it.

A clip that fails leaves its traceback and the others go on; of a batch that fails each clip is tried
alone, so that only the culprit is lost. A full disk ends the job, since every clip would fail. Several
processes share a job as `s2flow.parallel` says.
"""

import errno
import shutil
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors.torch import save_file

from s2flow import loading, methods
from s2flow.backbones import checkpoint
from s2flow.backbones.base import Backbone, Origin
from s2flow.backbones.placement import tile_vae
from s2flow.cascade import Generated
from s2flow.errors import UserError
from s2flow.flow import sigma_grid
from s2flow.outcome import outcome
from s2flow.parallel import Team
from s2flow.params import variant
from s2flow.planning import refuse
from s2flow.progress import Progress
from s2flow.provenance import provenance
from s2flow.recipe import Recipe
from s2flow.score import Scoring
from s2flow.store import Store, sha256_of, without_nan, written_whole
from s2flow.summary import print_failure
from s2flow.tasks import Task
from s2flow.timing import Clock
from s2flow.tracking import Tracker, sweep, tracked
from s2flow.video import contact_sheet, write_video
from s2flow.windowmap import save_windows


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
        device = loading.device_here(cfg.device)
        refuse(cfg, recipe, device)
        shown, have = [min(t.indices) for t in tasks], len(self.store.recorded())
        # before weights are loaded: a login that is missing is said at once
        with tracked(cfg, recipe, shown, have) if team.leads else nullcontext() as track:
            placed = (cfg.offload, cfg.fp8, cfg.compile)
            backbone = loading.load_backbone(cfg.backbone, device, *placed, team.tensors)
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
            how = {"clock": clock, "cache": loading.low_flows(self.cfg), "progress": progress.step}
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

    def rescore(self, tasks: list[Task], todo: list[Task], have: dict[str, dict]) -> int:
        """Enter the verdicts that recorded clips lack; returns how many stay without a score.

        have: what `store.recorded` gave. Only clips that lack something are looked at.
        """
        if not self.scoring.parts:
            return 0
        left = {t.key for t in todo}
        lacking = [t for t in tasks if t.key not in left and not self._settled(have.get(t.key))]
        return sum(not self.score(t) for t in lacking)

    def _settled(self, known: dict[str, Any] | None) -> bool:
        return known is not None and not self.scoring.missing(known) and self.scoring.scored(known)

    def score(self, task: Task) -> bool:
        """Enter the verdicts that a recorded clip lacks; False if one of them is no score."""
        return self.scoring.score(self.store.record(task.key))


def _disk_is_full(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return False
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or shutil.disk_usage(folder).free < 2**20  # ffmpeg does not pass its errno on
