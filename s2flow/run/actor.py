"""What runs in Ray's processes for executor=ray: an actor that keeps the backbone and makes clips.

It does what one process does: writes clips, records, scores and failures to runs_dir itself, and tells
the driver, `s2flow.run.executor`, only what there is to print. In a group of k it is one rank of
`s2flow.process.parallel`.
"""

import os
import socket
import sys
import uuid
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.process.loading import device_here
from s2flow.process.parallel import join
from s2flow.recipe.identity import Recipe
from s2flow.recipe.resolve import plain
from s2flow.run.job import Job
from s2flow.scorers import build
from s2flow.scorers.score import Scoring
from s2flow.store import Store
from s2flow.store.recipes import VERSION
from s2flow.store.tasks import Task


@dataclass(frozen=True)
class Told:
    """What an actor is told of a job: config, recipe, and what its records say of the command.

    stale: records that are to be replaced (cache=force), see `Job`.
    """

    cfg: DictConfig
    recipe: Recipe
    stale: dict[str, float | None]
    hydra: DictConfig | None = field(default_factory=lambda: HydraConfig.instance().cfg)
    argv: list[str] = field(default_factory=lambda: sys.argv)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


class Actor:
    """One process of a worker; it keeps the backbone, and the job that it is at.

    folder: the driver's working folder, which relative paths are meant from; threads: for torch.
    """

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads, self.name = folder, threads, None

    def address(self) -> tuple[str, int]:
        """Where the first of a group waits for the others: its node, and a port that is free."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def join(self, rank: int, size: int, address: tuple[str, int]) -> None:
        """Tell `process.parallel` which of a group this is. Every actor sees its own card only."""
        host, port = address
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}

    def make(self, told: Told, tasks: list[Task]) -> dict[str, Any] | UserError:
        """Make and score clips: {key: record, or why it failed}, or why nobody can go on."""
        try:
            job = self._job(told)
            if job.team.leads:  # a clip whose actor died before it was scored
                for task in tasks:
                    if not job.lacks(task):
                        job.score(task)
            job.make_all(tasks, tasks, len(tasks))
            return {task.key: self._said(task) for task in tasks}
        except UserError as error:
            return UserError(str(error))  # as an answer: its traceback need not travel

    def _job(self, told: Told) -> Job:
        if self.name == told.name:
            return self.job
        if not os.path.isdir(self.folder):
            raise UserError(
                f"{socket.gethostname()} has no folder {self.folder}; start from one that all "
                "machines see, with runs_dir in it"
            )
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        setup_globals()  # resolvers of Hydra's config
        HydraConfig.instance().cfg, sys.argv = told.hydra, told.argv
        cfg, recipe = told.cfg, told.recipe
        arguments = plain(cfg, "scorer")
        scorers = {name: build(name, conf) for name, conf in arguments.items()}
        store = Store(cfg.runs_dir, recipe.run_id, {"version": VERSION, **recipe.identity()})
        team = join(cfg.context_parallel, device_here(cfg.device))
        self.job = Job(
            cfg, recipe, store, Scoring(store.book, scorers, arguments), team, told.stale
        )
        self.name = told.name
        return self.job

    def _said(self, task: Task) -> dict[str, Any] | str:
        record = self.job.store.record(task.key)
        if record is not None:
            return record
        return self.job.store.failure(task.key)["traceback"].strip().splitlines()[-1]
