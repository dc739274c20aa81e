"""The clips of a config: what is to be made, and under which key each is kept.

A clip is a prompt text and a seed; list entries with the same text share one. With `seeds` above 1
all prompts get their first seed before any gets its second: whenever a job is stopped, as many
prompts as possible have a clip, and prompts are what statistics count. `cache` says what is made:

    cached      what is recorded is skipped, and so is what failed before
    retry       what failed before is tried again
    force       everything is made again; a record stands until the new one is whole
    read-only   nothing is made and nothing is written
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.prompts import Prompt, load_prompts
from s2flow.store import Store, clip_key

MOST = 1_000_000  # clips of a job


@dataclass(frozen=True)
class Task:
    """One clip to make: text, seed, its places in the prompt list, its key in the store.

    original: the entry that an augmented text stands for; None: it is the text.
    """

    prompt: str
    seed: int
    indices: tuple[int, ...]
    original: str | None = None

    @cached_property
    def key(self) -> str:
        """See `store.clip_key`."""
        return clip_key(self.prompt, self.seed, self.original)


@dataclass(frozen=True)
class Work:
    """What is to be done with a list of clips.

    todo: those to make; failed: those that failed before and are left out; recorded: those that are
    done, as `Store.recorded` has them; stale: of clips that are made again, when they were recorded,
    by key.
    """

    todo: list[Task]
    failed: list[Task]
    recorded: dict[str, dict[str, Any]]
    stale: dict[str, float | None] = field(default_factory=dict)


def work(cache: str, store: Store, tasks: list[Task]) -> Work:
    """What `cache` makes of these clips; see the module."""
    known = store.recorded()
    recorded = {t.key: known[t.key] for t in tasks if t.key in known}
    if cache == "read-only":
        return Work([], [], recorded)
    if cache == "force":
        records = ((key, store.record(key)) for key in recorded)
        return Work(list(tasks), [], {}, {k: r.get("at") for k, r in records if r is not None})
    missing = [t for t in tasks if t.key not in recorded]
    gave_up = set() if cache == "retry" else store.failed()
    failed = [t for t in missing if t.key in gave_up]
    return Work([t for t in missing if t.key not in gave_up], failed, recorded)


def clip_tasks(cfg: DictConfig) -> list[Task]:
    """The clips of a config: one `prompt`, or the prompts group; equal texts merged.

    Two entries are equal if both what the model is given and what is scored are. Seed by seed.
    """
    if cfg.seeds < 1:
        raise UserError(f"seeds={cfg.seeds} asks for no clip of a prompt; type seeds=1 or more")
    p = cfg.prompts
    if cfg.prompt is not None:
        _check_prompt(cfg)
        entries = [Prompt(0, cfg.prompt)]
    else:
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
    if cfg.seeds * len(entries) > MOST:
        raise UserError(
            f"seeds={cfg.seeds} of {len(entries)} prompts are more than {MOST} clips; type fewer"
        )
    if abs(cfg.seed) + cfg.seeds >= 2**63:
        raise UserError(f"seed={cfg.seed} has more than 64 bits, which tables hold; type seed=0")
    places: dict[tuple[str, str | None], list[int]] = {}
    for entry in entries:
        places.setdefault((entry.text, entry.original), []).append(entry.index)
    return [
        Task(text, seed, tuple(where), original)
        for seed in range(cfg.seed, cfg.seed + cfg.seeds)
        for (text, original), where in places.items()
    ]


def _check_prompt(cfg: DictConfig) -> None:
    lists = {f"shard={cfg.shard} splits": cfg.shard != "1/1"}
    lists |= {f"prompts.augmented={cfg.prompts.augmented} maps": cfg.prompts.augmented is not None}
    for what, typed in lists.items():
        if typed:
            raise UserError(f"{what} a list, prompt= is one prompt; drop one of them")
    if not cfg.prompt.strip():
        raise UserError("prompt is empty; type prompt='a large red ball moves right on sand'")
    if any("\ud800" <= c <= "\udfff" for c in cfg.prompt):  # undecodable bytes in argv
        raise UserError(f"prompt={cfg.prompt!a} is not UTF-8; type it in a UTF-8 terminal")
