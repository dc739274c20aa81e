"""wandb as a view of the store: one wandb run per s2flow run, with the same id.

    python run.py tracker=wandb ...                      while clips are made; offline, without a login
    python -m s2flow.tracking publish runs/              everything from the store, with later scores
    python -m s2flow.tracking dashboard --entity E --project P      a workspace that shows it

    config      the recipe
    history     per step of a clip  lr/seconds lr/sigma lr/left   hr/seconds hr/density hr/sigma hr/left
                per clip            score/* seconds/* density outcome prompt seed, and of the first
                                    `tracker.videos` prompts video/p1-s0 and windows/p1-s0
    summary     tables `clips`, `scores` and `steps`; mean/*, the means over clips

The row of a step has the number 10000 x (the clip's index in its run) + its own index, so `publish`
can be repeated: rows that wandb has are not sent again, and the tables of the summary are replaced. In
a batch, steps are logged with the rows of its first clip, with the mean density. Clips that were
recorded before log nothing. Of several processes that work on one run each has its own history: publish
once they are done. An error of wandb after its start costs no clip.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from s2flow.cascade import Step
from s2flow.errors import UserError, print_error
from s2flow.recipe.identity import Recipe
from s2flow.recipe.schema import TrackerConf
from s2flow.report.windowmap import read_windows, window_picture
from s2flow.store import read_run
from s2flow.tracking.dashboard import dashboard
from s2flow.tracking.rows import Record, Row, clip_row, step_row, steps_of, summary

TRACKERS = ("none", "wandb")
MODES = ("offline", "online", "disabled")
ALIASES = {"dryrun": "offline", "run": "online"}  # of wandb, in its environment
ROWS_PER_CLIP = 10_000  # history rows reserved for a clip, more than its steps


class Tracker:
    """An open wandb run that logs steps and clips. Errors of wandb are not raised.

    run: of wandb; runs_dir: for the message that names `publish`; indices: of the prompts, of which
    the first `videos` are shown as p1, p2, ...; place: index of the next clip in its run.
    """

    def __init__(
        self, run: Any, runs_dir: Path, indices: Iterable[int], videos: int, place: int = 0
    ) -> None:
        self.run, self.runs_dir, self.place = run, runs_dir, place
        self.names = {k: f"p{i + 1}" for i, k in enumerate(sorted(set(indices))[:videos])}
        self.open, self.rows = True, 0

    def step(self, step: Step) -> None:
        """Log a step of a flow."""
        density = fmean(step.density) if step.density else None
        row = step_row(step.stage, step.n, step.sigma, step.seconds, density)
        self._safely(self._next, row)

    def clip(self, record: Record, folder: Path) -> None:
        """Log a clip that is recorded and scored, and go on to the next."""
        self._safely(lambda: self._next(clip_row(record) | self._media(record, folder)))
        self.skip()

    def skip(self) -> None:
        """Go on to the next clip."""
        self.place, self.rows = self.place + 1, 0

    def replay(self, record: Record, folder: Path) -> None:
        """Log all rows of a recorded clip that wandb does not have."""
        for step in steps_of(record):
            self._safely(self._next, step_row(*step))
        self.clip(record, folder)

    def tables(self, records: Sequence[Record]) -> None:
        """Replace the tables and means of the summary."""
        self._safely(lambda: self.run.summary.update(summary(records)))

    def _safely(self, act: Callable[..., Any], *arguments: Any) -> None:
        """Call; if wandb fails, report it once and log nothing more."""
        try:
            if self.open:
                act(*arguments)
        except Exception as error:
            self.open = False
            print(
                f"wandb stopped ({_reason(error)}); clips are still made, and when it works again "
                f"`python -m s2flow.tracking publish {self.runs_dir}` sends them",
                file=sys.stderr,
            )

    def _next(self, row: Row) -> None:
        number, self.rows = self.place * ROWS_PER_CLIP + self.rows, self.rows + 1
        if number >= self.run.step:
            self.run.log({k: v for k, v in row.items() if v is not None}, step=number)

    def _media(self, record: Record, folder: Path) -> Row:
        """Video and windows of a clip if it is one of those shown."""
        name, video = self.names.get(min(record["prompt_index"])), folder / record["video"]
        if name is None or self.place * ROWS_PER_CLIP + self.rows < self.run.step:
            return {}
        import wandb  # takes seconds to load; a run without it must not wait

        caption, name = f"{record['prompt']} (seed {record['seed']})", f"{name}-s{record['seed']}"
        media: Row = {}
        if video.exists():
            media[f"video/{name}"] = wandb.Video(str(video), caption=caption, format="mp4")
        windows = read_windows(folder, record)
        if windows is not None:
            picture = window_picture(windows, record["prompt"])
            media[f"windows/{name}"] = wandb.Image(picture, caption=caption)
        return media


def experiment() -> str | None:
    """The experiment of this job, as in experiment=table2; None without one."""
    config = HydraConfig.instance().cfg
    return None if config is None else config.hydra.runtime.choices.get("experiment")


def sweep() -> str | None:
    """The experiment of this job, else the folder of its sweep; None for a single run."""
    config = HydraConfig.instance().cfg
    if experiment() or config is None or config.hydra.mode != RunMode.MULTIRUN:
        return experiment()
    return "/".join(Path(config.hydra.sweep.dir).parts[-2:])


def check(conf: DictConfig | TrackerConf, of: str = "tracker.") -> None:
    """Raises UserError for a tracker or mode that does not exist and a negative number of videos.

    of: the prefix of these words on the command line.
    """
    if conf.name not in TRACKERS:
        raise UserError(f"{of}name={conf.name} is unknown; type one of tracker=none|wandb")
    if (mode := mode_of(conf)) not in MODES:
        given, known = f"{of}mode={mode}", f"{of}mode={'|'.join(MODES)}"
        given = given if conf.mode else f"WANDB_MODE={mode}"
        raise UserError(f"{given} is unknown; type one of {known}")
    if conf.videos < 0:
        raise UserError(f"{of}videos={conf.videos} is negative; type {of}videos=0 or more")


def mode_of(conf: DictConfig | TrackerConf) -> str:
    """The mode that was typed, else wandb's own variable, else offline."""
    mode = conf.mode or os.environ.get("WANDB_MODE") or "offline"
    return mode if conf.mode else ALIASES.get(mode, mode)


@contextlib.contextmanager
def tracked(
    cfg: DictConfig, recipe: Recipe, indices: Iterable[int] = (), place: int = 0
) -> Iterator[Tracker | None]:
    """The tracker of a job, None for tracker=none. Raises UserError if wandb cannot start.

    indices: of the prompts of the job; place: number of clips that the run has. See also `check`.
    """
    if cfg.tracker.name == "none":
        yield None
        return
    group, runs_dir = cfg.tracker.group or sweep() or recipe.method, Path(cfg.runs_dir)
    with _opened(cfg.tracker, recipe.run_id, recipe.identity(), group) as run:
        behind = math.ceil(run.step / ROWS_PER_CLIP)  # run.step: number of the next row
        tracker = Tracker(run, runs_dir, indices, cfg.tracker.videos, max(place, behind))
        try:
            yield tracker
        finally:
            tracker.tables(read_run(runs_dir / recipe.run_id))


@contextlib.contextmanager
def _opened(
    conf: DictConfig | TrackerConf, run_id: str, recipe: Record, group: str | None
) -> Iterator[Any]:
    """A wandb run with our id, closed at the end. Raises UserError if it cannot be opened."""
    import wandb  # see above

    mode = mode_of(conf)
    try:
        run = wandb.init(
            id=run_id,
            name=f"{recipe['method']}-{run_id}",
            project=conf.project,
            entity=conf.entity,
            group=group,
            config=recipe,
            mode=mode,
            resume="allow",
            # its output would break our progress lines
            settings=wandb.Settings(silent=True, console="off"),
        )
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise UserError(
            f"wandb cannot start: {_reason(error).rstrip('.')}; mode=offline needs neither login "
            "nor network, WANDB_DIR moves its files"
        ) from None
    folder = Path(run.dir).parent
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    where = run.url if mode == "online" else folder
    hint = f"; `wandb sync {where}` uploads it" if mode == "offline" else ""
    failed = 1
    try:
        yield run
        failed = 0
    finally:
        try:
            run.finish(exit_code=failed)
            if mode != "disabled":
                print(f"wandb {run_id}: {where}{hint}", file=sys.stderr)
        except Exception as error:
            print(f"wandb could not close {run_id}: {_reason(error)}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().split("\n")[0]


def publish(runs_dir: Path, conf: TrackerConf, only: Sequence[str] = ()) -> None:
    """Send all finished clips below runs_dir; rows that wandb has are not sent again.

    only: run ids; none: all. Raises UserError if there is nothing to send or wandb cannot start.
    """
    check(conf, "--")
    every = {p.parent.name: p.parent for p in sorted(runs_dir.glob("*/recipe.json"))}
    for run_id in only:
        if run_id not in every:
            raise UserError(f"{runs_dir} has no run {run_id}; it has {', '.join(every) or 'none'}")
    runs = {run_id: read_run(every[run_id]) for run_id in only or every}
    if not any(runs.values()):
        raise UserError(
            f"{runs_dir} holds no finished clips; type the folder that run.py wrote its runs to"
        )
    for run_id, records in runs.items():
        if not records:
            print(f"{run_id}: no finished clip, nothing to send")
            continue
        folder = every[run_id]
        records.sort(key=lambda record: _made(record, folder))  # so that later ones are appended
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        recipe.pop("version", None)
        group = conf.group or records[-1].get("sweep") or recipe["method"]
        indices = [min(r["prompt_index"]) for r in records]
        with _opened(conf, run_id, recipe, group) as run:
            tracker = Tracker(run, runs_dir, indices, conf.videos)
            for record in records:
                tracker.replay(record, folder)
            tracker.tables(records)
        if not tracker.open:
            raise UserError(f"{run_id} was not sent completely; the same command sends the rest")
        print(f"{run_id}: {len(records)} clips")


def _made(record: Record, folder: Path) -> float:
    """When a clip was made; old records do not tell."""
    path = folder / "records" / f"{Path(record['video']).stem}.json"
    return path.stat().st_mtime if record.get("at") is None else record["at"]


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 2 and one line for a UserError."""
    parser = argparse.ArgumentParser("python -m s2flow.tracking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    send = commands.add_parser("publish", help="send everything below a folder of runs to wandb")
    send.add_argument("runs", type=Path, help="the folder that run.py wrote its runs to")
    send.add_argument("--run", action="append", default=[], metavar="ID", help="only this run")
    send.add_argument("--mode", help="|".join(MODES) + "; WANDB_MODE, else offline, if not set")
    send.add_argument("--group", help="the sweep that made the newest clip, if not set")
    send.add_argument("--videos", type=int, default=4, help="of the first so many prompts [4]")
    show = commands.add_parser("dashboard", help="save a workspace that shows the runs; logs in")
    show.add_argument("--name", default="S²Flow")
    show.add_argument("--videos", type=int, default=4, help="prompts that are shown [4]")
    show.add_argument("--seeds", type=int, default=1, help="seeds of each of them [1]")
    show.add_argument("--out", type=Path, metavar="FILE", help="write the definition as JSON, too")
    show.add_argument("--dry-run", action="store_true", help="build it only; needs no login")
    for command in (send, show):
        command.add_argument("--project", default="s2flow")
        command.add_argument("--entity", help="your own, if not set")
    args = parser.parse_args(argv)
    try:
        if args.command == "publish":
            given = (args.project, args.entity, args.mode, args.group, args.videos)
            publish(args.runs, TrackerConf("wandb", *given), args.run)
        else:
            dashboard(args)
    except UserError as error:
        print_error(error)
        sys.exit(2)
