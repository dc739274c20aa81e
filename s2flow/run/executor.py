"""executor=ray: the missing clips of a job, shared by Ray's actors that keep the backbone loaded.

    ray.address=null   a Ray of this command's own, on this machine, which listens on 127.0.0.1 only
    ray.address=auto   the cluster that `ray start` made here joins in; HOST:PORT: another one

A worker is one actor, or with context_parallel=k a group of k actors on one node that make each video
together. It has a GPU (each of its actors has one), or `threads` cores where Ray has no GPU. Whoever is
free takes the next clip (or `batch` of clips), so that long and short ones share well. All jobs of a
sweep use the same workers. Actors write clips, records, scores and failures to runs_dir themselves, as
a single process does, so runs_dir must be a folder that every machine sees under the same path; the
driver prints what they say and reads the store at the end.

A worker that dies costs the clip in its hands: Ray starts it again, here or on another node, and asks
for the same clip again, `ray.retries` times; then the clip has failed. A group is replaced as a whole.
"""

import importlib.util
import os
import re
import signal
import socket
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2flow.errors import UserError
from s2flow.process import stopping
from s2flow.process.loading import device_here
from s2flow.process.parallel import Team, free_jobs, join
from s2flow.process.provenance import provenance
from s2flow.process.ranks import world_size
from s2flow.run.actor import Actor, Told
from s2flow.run.job import Job
from s2flow.store.tasks import Task
from s2flow.terminal.progress import Progress
from s2flow.terminal.summary import print_failure
from s2flow.tracking.tracker import tracked

INSTALL = 'pip install "s2flow[cluster]"'
INSIDE = ("ray", "ray_cluster", "gpus")  # launchers whose jobs are in Ray already


def check(cfg: DictConfig) -> None:
    """Raises UserError for an executor that does not exist, is not installed or has no place here."""
    if cfg.executor not in ("local", "ray"):
        raise UserError(
            f"executor={cfg.executor} is unknown; type one of executor=local|executor=ray"
        )
    if cfg.executor == "local":
        return
    conf, hydra = cfg.ray, HydraConfig.instance().cfg
    launcher = None if hydra is None else hydra.hydra.runtime.choices.get("hydra/launcher")
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"executor=ray needs Ray, which is not installed; type {INSTALL}")
    if world_size() > 1:
        raise UserError(
            "executor=ray starts its own processes; leave torchrun or accelerate out and type "
            "python run.py executor=ray ..."
        )
    if launcher in INSIDE:
        raise UserError(
            f"executor=ray and hydra/launcher={launcher} both ask Ray for workers; type one of them"
        )
    if conf.workers is not None and conf.workers < 1:
        raise UserError(f"ray.workers={conf.workers} makes no clip; type ray.workers=1 or more")
    if conf.retries < 0:
        raise UserError(f"ray.retries={conf.retries} is negative; type ray.retries=0 or more")
    if not re.fullmatch(r"auto|[^\s:/]+:\d{1,5}", conf.address or "auto"):
        raise UserError(
            f"ray.address={conf.address} is no address; type ray.address=auto, HOST:PORT or null"
        )
    if ":" in cfg.device:
        raise UserError(f"device={cfg.device} is one card; executor=ray deals them: device=cuda")


def team_here(cfg: DictConfig) -> Team:
    """The team of this process: under Ray the driver is alone, and its actors form their own."""
    return Team() if cfg.executor == "ray" else join(cfg.context_parallel, device_here(cfg.device))


def make_all(job: Job, todo: list[Task], tasks: list[Task], clips: int) -> int:
    """As `Job.make_all`, by Ray's workers."""
    cfg, recipe, folder = job.cfg, job.recipe, job.store.folder
    workers = _workers(cfg)
    shown, have = [min(t.indices) for t in tasks], len(job.store.recorded())
    batches = deque(todo[i : i + cfg.batch] for i in range(0, len(todo), cfg.batch))
    quiet, failed = cfg.copy(), 0
    quiet.tracker.name, quiet.progress = "none", "off"  # the driver does that
    with (
        tracked(cfg, recipe, shown, have) as track,
        Progress(recipe, clips, len(todo), cfg.progress) as progress,
    ):
        for task, said in workers.make(Told(quiet, recipe, job.stale), batches):
            if isinstance(said, dict):
                progress.clip_done(said)
                if track is not None:
                    track.replay(said, folder)
                continue
            failed += 1
            print_failure(task.prompt, said)
            if isinstance(said, Exception):  # of others the actor has kept the traceback
                failure = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
                failure |= {"error": repr(said), "traceback": str(said)}
                job.store.fail(task.key, failure | provenance("cpu"))
    job.store.book.refresh()  # what the actors said
    return failed


# -- the workers, as the driver sees them -------------------------------------------------------


def start(address: str | None, cpus: int | None = None) -> None:
    """Ray for this process: its own (None), with so many cores, or a cluster. Once per process.

    Raises UserError if there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # warnings, twenty of a silent address
    if address is None:  # a misnomer: it keeps all of Ray on 127.0.0.1; read at its import
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif address != "auto":  # Ray would wait for minutes
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"nothing answers at {address} ({error}); type `ray start --head` there first, and "
                "the HOST:PORT that it prints"
            ) from None
    import ray

    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    on_term = signal.getsignal(signal.SIGTERM)
    for left in (2, 1, 0):  # on a crowded machine its half minute for a start is not enough
        try:
            ray.init(address or "local", **quiet, **({} if address else own))
            break
        except Exception as error:
            ray.shutdown()
            reason = str(error).strip().split("\n")[0]
            if address is not None:
                raise UserError(
                    f"no Ray cluster at {address} lets this command in ({reason}); type `ray start "
                    "--head` first, and `export RAY_AUTH_MODE=token` if the cluster asks for one"
                ) from None
            if not left:
                raise UserError(
                    f"Ray cannot start here ({reason}); try again, or type executor=local"
                ) from None
    signal.signal(signal.SIGTERM, on_term)  # Ray has put its own in its place


@dataclass
class Worker:
    """Actors that make each clip together; alone, an actor is restarted by Ray."""

    actors: list[Any]
    placed: Any = None  # where a group has its place
    tasks: list[Task] = field(default_factory=list)  # those in its hands
    asked: list[Any] = field(default_factory=list)  # what each actor will say

    @classmethod
    def start(cls, k: int, threads: int, gpu: bool, retries: int) -> "Worker":
        """k actors; they load when they are first asked."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        needs = {"num_cpus": threads, "num_gpus": int(gpu)}
        here = (os.getcwd(), threads)
        if k == 1:
            needs |= {"max_restarts": -1, "max_task_retries": retries}
            return cls([ray.remote(Actor).options(**needs).remote(*here)])
        place = {"CPU": threads} | ({"GPU": 1} if gpu else {})
        placed = placement_group([place] * k, strategy="STRICT_PACK")
        needs["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placed)
        actors = [ray.remote(Actor).options(**needs).remote(*here) for _ in range(k)]
        address = actors[0].address.remote()
        for rank, actor in enumerate(actors):
            actor.join.remote(rank, k, address)
        return cls(actors, placed)

    def begin(self, told: Any, tasks: list[Task]) -> None:
        """Ask for clips."""
        self.tasks = tasks
        self.asked = [actor.make.remote(told, tasks) for actor in self.actors]

    def end(self) -> None:
        """All its actors, as one."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self.actors:
            ray.kill(actor)
        if self.placed is not None:
            remove_placement_group(self.placed)


class Workers:
    """At most `limit` workers: started when there is a clip for them, kept for the next job."""

    def __init__(self, cfg: DictConfig) -> None:
        self.k, self.retries = cfg.context_parallel, cfg.ray.retries
        self.limit, self.threads, self.gpu = _shape(cfg)
        self.idle: list[Worker] = []
        self.busy: dict[Any, Worker] = {}  # by what each of its actors will say

    def make(self, told: Told, batches: deque[list[Task]]) -> Iterator[tuple[Task, Any]]:
        """Each task as it is done, with its record, the reason it failed for (str) or was given up.

        Raises UserError if an actor says that nobody can go on, once the others are done.
        """
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        told, died, refused = ray.put(told), Counter(), None
        try:
            while batches or self.busy:
                while batches and (worker := self._free()):
                    worker.begin(told, batches.popleft())
                    self.busy |= dict.fromkeys(worker.asked, worker)
                answers, _ = ray.wait(list(self.busy), timeout=1.0)
                stopping.check()  # the clips in flight are dropped with their actors
                if not answers:
                    continue
                answer = answers[0]
                worker = self.busy.pop(answer)
                try:
                    said = ray.get(answer)
                except RayActorError as error:
                    self._end(worker)
                    if "creation task" in str(error):  # it would never start
                        raise UserError(
                            f"a worker cannot start: {str(error).strip().splitlines()[-1]}; every "
                            "machine of the cluster needs the same s2flow and folders"
                        ) from None
                    key = worker.tasks[0].key
                    died[key] += 1  # a group, or an actor that was killed for good
                    tried = self.k == 1 and isinstance(error, ActorUnavailableError)  # by Ray
                    if tried or died[key] > self.retries:
                        yield from ((task, error) for task in worker.tasks)
                    else:
                        batches.appendleft(worker.tasks)
                    continue
                except RayTaskError as error:
                    raise error.cause from None
                if isinstance(said, UserError):
                    refused = refused or said
                    batches.clear()
                    self._end(worker)  # the others of its group may wait for it
                    continue
                worker.asked.remove(answer)
                if worker.asked:
                    continue
                self.idle.append(worker)
                yield from ((task, said[task.key]) for task in worker.tasks)
        finally:
            for worker in [*self.busy.values()]:
                self._end(worker)
        if refused is not None:
            raise refused

    def end(self) -> None:
        """All of them."""
        for worker in [*self.idle]:
            worker.end()
        self.idle.clear()

    def _free(self) -> Worker | None:
        if self.idle:
            return self.idle.pop()
        if len({id(w) for w in self.busy.values()}) >= self.limit:
            return None
        return Worker.start(self.k, self.threads, self.gpu, self.retries)

    def _end(self, worker: Worker) -> None:
        for answer in worker.asked:
            self.busy.pop(answer, None)
        worker.end()


_kept: dict[tuple, Workers] = {}  # at most one


def _workers(cfg: DictConfig) -> Workers:
    """The workers of this command; those of an earlier job if it wanted the same."""
    conf = cfg.ray
    key = (cfg.context_parallel, cfg.threads, cfg.device, conf.address, conf.workers, conf.retries)
    if key not in _kept:
        for workers in _kept.values():
            workers.end()
        _kept.clear()
        each = (cfg.threads or 1) * cfg.context_parallel
        start(conf.address, max(free_jobs(1), (conf.workers or 1) * each))
        _kept[key] = Workers(cfg)
    return _kept[key]


def _shape(cfg: DictConfig) -> tuple[int, int, bool]:
    """(workers, threads of each actor, whether on GPUs) that this Ray has room for.

    Raises UserError if there is too little of anything.
    """
    import ray

    have, k = ray.cluster_resources(), cfg.context_parallel
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    gpu = cfg.device != "cpu" and gpus > 0
    if cfg.device == "cuda" and not gpu:
        raise UserError("device=cuda: this Ray has no GPU; type device=cpu, or start it with GPUs")
    room = gpus // k if gpu else cpus // (k * (cfg.threads or 1))
    workers = cfg.ray.workers or max(1, room)
    threads = cfg.threads or max(1, cpus // (workers * k))
    kind, largest = ("GPU", k) if gpu else ("CPU", k * threads)
    node = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
    if workers * k > gpus if gpu else workers * k * threads > cpus:
        raise UserError(
            f"ray.workers={workers} with context_parallel={k} and threads={threads} does not fit "
            f"{cpus} cores and {gpus} GPUs; type ray.workers={max(1, room)} or less of the others"
        )
    if largest > node:
        raise UserError(
            f"context_parallel={k} needs {largest} {kind}s on one machine, and the largest of this "
            f"Ray has {node:g}; type context_parallel={max(1, int(node) * k // largest)}"
        )
    return workers, threads, gpu
