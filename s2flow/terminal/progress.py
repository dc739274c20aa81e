"""Progress output: one live line per stage, and one line per clip.

    progress=auto    on a terminal a live line per stage with its remaining time, and one for all clips;
                     in logs, in CI and under launchers that start other processes as `plain`
    progress=plain   a line per run and a line per clip
    progress=off     only failures and the tables at the end

The remaining time is extrapolated from the steps or clips so far, or from a stage's last duration.
"""

import json
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from s2flow.errors import UserError
from s2flow.process.ranks import rank, world_size
from s2flow.recipe.identity import Recipe

MODES = ("auto", "plain", "off")
STAGES = {
    "text": "text",
    "lr": "LR flow",
    "plan": "plan",
    "handoff": "hand-off",
    "hr": "HR flow",
    "decode": "decode",
    "write": "write",
    "score": "score",
}


class Progress:
    """Live lines on a terminal, a line per clip everywhere. Raises UserError for an unknown mode.

    clips: of the run; todo: how many of them are missing.
    """

    def __init__(
        self, recipe: Recipe, clips: int, todo: int, mode: str = "auto", quiet: bool = False
    ) -> None:
        check(mode)
        self.console = Console(stderr=True, highlight=False, quiet=quiet or mode == "off")
        recorded = f", {clips - todo} already recorded" if clips > todo else ""
        summary = f"{recipe.method} on {recipe.backbone}: {todo} clip(s) to make{recorded}"
        prefix = f"rank {rank()} of {world_size()}: " if world_size() > 1 else ""
        self.console.print(f"[bold]{recipe.run_id}[/] {prefix}{summary}", soft_wrap=True)
        self.crowded = among_others()
        self.run_id, self.done, self.todo = recipe.run_id, 0, todo
        live = mode == "auto" and not quiet and not self.crowded and sys.stderr.isatty()
        self.bars = Bars(
            TextColumn("{task.description:>8}"),
            BarColumn(24),
            _Count(),
            _Remaining(),
            console=self.console,
            transient=True,
            disable=not live or self.console.is_dumb_terminal,
        )
        hidden = {"total": 1, "visible": False, "per": None}
        self.rows = {s: self.bars.add_task(words, **hidden) for s, words in STAGES.items()}
        self.rows["clips"] = self.bars.add_task("clips", total=todo, per=None)

    def __enter__(self) -> "Progress":
        self.bars.start()
        self.bars.reset(self.rows["clips"])  # starts their clock
        return self

    def __exit__(self, *failure: object) -> None:
        self.bars.stop()

    def batch(self) -> None:
        """Start of the next batch: hide its stages."""
        for stage in STAGES:
            self.bars.update(self.rows[stage], visible=False)

    def stage(self, name: str, seconds: float | None) -> None:
        """A stage begins (seconds None) or has ended; called by `timing.Clock`."""
        if name in self.rows and seconds is None:
            self.bars.reset(self.rows[name], visible=True)
        elif name in self.rows:
            self._at(name, int(self._task(name).total))

    def step(self, stage: str, done: int, total: int) -> None:
        """One step of a flow was taken."""
        self._at(stage, done, total)

    def clip_done(self, record: dict[str, Any]) -> None:
        """A clip is recorded and scored."""
        self.done += 1
        self._at("clips", self.done)
        stages = "  ".join(f"{k} {v:.1f}s" for k, v in record["seconds"].items() if v >= 0.05)
        text = json.dumps(record["prompt"], ensure_ascii=False)
        outcome = record.get("outcome", "ok")
        mark = "" if outcome == "ok" else f"  [bold red]{outcome}[/]"
        prefix = f"{self.run_id} " if self.crowded else ""
        line = f"  {prefix}{self.done}/{self.todo} {escape(text)}{mark}  [dim]{stages}[/]"
        self.console.print(line, soft_wrap=True)

    def _task(self, name: str) -> Task:
        return self.bars.tasks[self.rows[name]]  # ids count from 0, and none is removed

    def _at(self, name: str, done: int, total: int | None = None) -> None:
        """Set a bar's progress, and its time per step from the time since its start."""
        per = (self._task(name).elapsed or 0.0) / done if done else None
        self.bars.update(self.rows[name], completed=done, total=total, per=per)


class _Count(ProgressColumn):
    """12/20; empty where the total is one."""

    def render(self, task: Task) -> Text:
        count = f"{task.completed:.0f}/{task.total:.0f}"
        return Text(count.rjust(7) if task.total > 1 or task.description == "clips" else " " * 7)


class _Remaining(ProgressColumn):
    """Seconds of a finished stage; of a running one, the remaining time at the present rate."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{task.finished_time or 0.0:.1f} s", "dim")
        per, elapsed = task.fields["per"], task.elapsed or 0.0
        if per is None:
            return Text(f"{duration(elapsed)} so far", "dim")
        return Text(f"{duration(max(per * task.total - elapsed, 0.0))} left")


def duration(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def check(mode: str) -> None:
    """Raises UserError for an unknown mode."""
    if mode not in MODES:
        raise UserError(f"progress={mode} is unknown; type one of progress={'|'.join(MODES)}")


def among_others() -> bool:
    """Whether other processes write to this terminal: Hydra's launchers, torchrun, accelerate."""
    hydra = HydraConfig.instance().cfg
    choices = {} if hydra is None else hydra.hydra.runtime.choices
    return world_size() > 1 or choices.get("hydra/launcher", "basic") not in ("basic", None)
