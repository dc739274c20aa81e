"""wandb as a view of the store: one wandb run per s2flow run, one row per clip, nothing more.

Offline by default, which needs no login. Clips that were already recorded log nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.recipe import Recipe

Track = Callable[[dict[str, Any], Path], None]


@contextlib.contextmanager
def tracked(cfg: DictConfig, recipe: Recipe) -> Iterator[Track]:
    """A function to call with every new record and the run's folder."""
    if cfg.tracker.name == "none":
        yield lambda record, folder: None
        return
    modes = ("offline", "online", "disabled")
    if cfg.tracker.mode not in modes:
        raise UserError(
            f"tracker.mode={cfg.tracker.mode} is unknown; "
            f"type one of tracker.mode={'|'.join(modes)}"
        )
    import wandb

    try:
        run = wandb.init(
            id=recipe.run_id,
            name=f"{recipe.method}-{recipe.run_id}",
            project=cfg.tracker.project,
            group=recipe.method,
            config=recipe.identity(),
            mode=cfg.tracker.mode,
            resume="allow",
        )
    except wandb.errors.UsageError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"wandb: {reason}; log in, or type tracker.mode=offline") from None

    def track(record: dict[str, Any], folder: Path) -> None:
        scores = {f"score/{k}": v for k, v in record["scores"].items() if v is not None}
        seconds = {f"seconds/{k}": v for k, v in record["seconds"].items()}
        video = wandb.Video(str(folder / record["video"]), caption=record["prompt"], format="mp4")
        run.log({**scores, **seconds, "video": video, "prompt": record["prompt"]})

    with run:
        yield track
