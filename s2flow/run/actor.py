"""The Ray actor of executor=ray: it keeps the backbone loaded and makes clips.

Like a single process, it writes clips, records, scores and failures to runs_dir itself. It returns to
the driver, `s2flow.run.executor`, what is to be printed. In a group of k it is one rank of
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
class JobRequest:
    """A job as sent to an actor: config, recipe, and the provenance of its records.

    stale: records that are to be replaced (cache=force), see `Job`.
    """

    cfg: DictConfig
    recipe: Recipe
    stale: dict[str, float | None]
    hydra: DictConfig | None = field(default_factory=lambda: HydraConfig.instance().cfg)
    argv: list[str] = field(default_factory=lambda: sys.argv)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


class Actor:
    """One process of a worker; keeps the backbone and the present job.

    folder: the driver's working directory, the base of relative paths; threads: of torch.
    """

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads, self.name = folder, threads, None

    def address(self) -> tuple[str, int]:
        """Address for the process group of a worker: this node, and a free port."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def join(self, rank: int, size: int, address: tuple[str, int]) -> None:
        """Set the environment that `process.parallel` reads. Every actor sees its own GPU only."""
        host, port = address
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}

    def make(self, request: JobRequest, tasks: list[Task]) -> dict[str, Any] | UserError:
        """Make and score clips: {key: record or error line}, or the UserError that ends the job."""
        try:
            job = self._job(request)
            if job.team.leads:  # recorded by an actor that died before scoring
                for task in tasks:
                    if not job.lacks(task):
                        job.score(task)
            job.make_all(tasks, tasks, len(tasks))
            return {task.key: self._result(task) for task in tasks}
        except UserError as error:
            return UserError(str(error))  # returned without its traceback

    def _job(self, request: JobRequest) -> Job:
        if self.name == request.name:
            return self.job
        if not os.path.isdir(self.folder):
            raise UserError(
                f"{socket.gethostname()} has no folder {self.folder}; start from one that all "
                "machines see, with runs_dir in it"
            )
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        setup_globals()  # registers the resolvers of Hydra's config
        HydraConfig.instance().cfg, sys.argv = request.hydra, request.argv
        cfg, recipe = request.cfg, request.recipe
        arguments = plain(cfg, "scorer")
        scorers = {name: build(name, conf) for name, conf in arguments.items()}
        store = Store(cfg.runs_dir, recipe.run_id, {"version": VERSION, **recipe.identity()})
        team = join(cfg.context_parallel, device_here(cfg.device))
        self.job = Job(
            cfg, recipe, store, Scoring(store.book, scorers, arguments), team, request.stale
        )
        self.name = request.name
        return self.job

    def _result(self, task: Task) -> dict[str, Any] | str:
        store = self.job.store
        if (record := store.record(task.key)) is not None:
            return record
        return store.failure(task.key)["traceback"].strip().splitlines()[-1]
