"""executor=ray: the missing clips of a job, shared by Ray's actors that keep the backbone loaded.

    ray.address=null   a private Ray instance on this machine, which listens on 127.0.0.1 only
    ray.address=auto   the local cluster of `ray start`; HOST:PORT: another cluster

A worker is one actor, or with context_parallel=k a group of k actors on one node that make each video
together. Each actor has one GPU, or `threads` cores if Ray has no GPU. A free worker takes the next
clip (or `batch` of clips), which balances long and short clips. All jobs of a sweep use the same
workers. Actors write clips, records, scores and failures to runs_dir themselves, as a single process
does, so every machine must see runs_dir under the same path. The driver prints their results and reads
the store at the end.

If a worker dies, Ray restarts it, on this or another node, and the same clip is tried again,
`ray.retries` times; then the clip has failed. A group is replaced as a whole.
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
from s2flow.process.provenance import provenance
from s2flow.process.ranks import free_jobs, world_size
from s2flow.run.actor import Actor, JobRequest
from s2flow.run.job import Job
from s2flow.store.tasks import Task
from s2flow.terminal.progress import Progress
from s2flow.terminal.summary import print_failure
from s2flow.tracking.tracker import tracked

INSTALL_COMMAND = 'pip install "s2flow[cluster]"'
RAY_LAUNCHERS = ("ray", "ray_cluster", "gpus")  # launchers whose jobs run in Ray already


def check(cfg: DictConfig) -> None:
    """Raises UserError for an executor that is unknown, not installed, or unusable here."""
    if cfg.executor not in ("local", "ray"):
        raise UserError(
            f"executor={cfg.executor} is unknown; type one of executor=local|executor=ray"
        )
    if cfg.executor == "local":
        return
    conf, hydra = cfg.ray, HydraConfig.instance().cfg
    launcher = None if hydra is None else hydra.hydra.runtime.choices.get("hydra/launcher")
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"executor=ray needs Ray, which is not installed; type {INSTALL_COMMAND}")
    if world_size() > 1:
        raise UserError(
            "executor=ray starts its own processes; leave torchrun or accelerate out and type "
            "python run.py executor=ray ..."
        )
    if launcher in RAY_LAUNCHERS:
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
        raise UserError(
            f"device={cfg.device} is one GPU; executor=ray assigns them: type device=cuda"
        )


def make_all(job: Job, todo: list[Task], tasks: list[Task], clips: int) -> int:
    """`Job.make_all` by Ray's workers."""
    cfg, recipe, folder = job.cfg, job.recipe, job.store.folder
    workers = _workers(cfg)
    shown, recorded = [min(t.indices) for t in tasks], len(job.store.recorded())
    batches = deque(todo[i : i + cfg.batch] for i in range(0, len(todo), cfg.batch))
    actor_cfg, failed = cfg.copy(), 0
    actor_cfg.tracker.name, actor_cfg.progress = "none", "off"  # left to the driver
    with (
        tracked(cfg, recipe, shown, recorded) as track,
        Progress(recipe, clips, len(todo), cfg.progress) as progress,
    ):
        for task, result in workers.make(JobRequest(actor_cfg, recipe, job.stale), batches):
            if isinstance(result, dict):
                progress.clip_done(result)
                if track is not None:
                    track.replay(result, folder)
                continue
            failed += 1
            print_failure(task.prompt, result)
            if isinstance(result, Exception):  # else the actor has stored the traceback
                failure = {"status": "failed", "prompt": task.prompt, "seed": task.seed}
                failure |= {"error": repr(result), "traceback": str(result)}
                job.store.fail(task.key, failure | provenance("cpu"))
    job.store.book.refresh()  # verdicts that the actors entered
    return failed


# -- workers ------------------------------------------------------------------------------------


def start(address: str | None, cpus: int | None = None) -> None:
    """Start a private Ray with `cpus` cores (address None), or join a cluster. Once per process.

    Raises UserError if there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # quiet about unreachable addresses
    if address is None:  # despite its name, keeps Ray on 127.0.0.1; read at import
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    elif address != "auto":  # Ray itself would wait for minutes
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
    logging = {"log_to_driver": False, "logging_level": "ERROR"}
    local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    on_term = signal.getsignal(signal.SIGTERM)
    message = "Ray cannot start here ({}); try again, or type executor=local"
    if address is not None:
        message = (
            f"no Ray cluster at {address} accepts this command ({{}}); type `ray start --head` "
            "first, and `export RAY_AUTH_MODE=token` if the cluster asks for one"
        )
    for tries_left in (2, 1, 0):  # Ray's limit of 30 s can be too short on a busy machine
        try:
            ray.init(address or "local", **logging, **({} if address else local))
            break
        except Exception as error:
            ray.shutdown()
            if address is not None or not tries_left:
                reason = str(error).strip().split("\n")[0]
                raise UserError(message.format(reason)) from None
    signal.signal(signal.SIGTERM, on_term)  # Ray has replaced the handler


@dataclass
class Worker:
    """Actors that make each clip together. Ray restarts a single actor by itself."""

    actors: list[Any]
    placement: Any = None  # placement group of several actors
    tasks: list[Task] = field(default_factory=list)  # in progress
    pending: list[Any] = field(default_factory=list)  # an object reference per actor

    @classmethod
    def start(cls, k: int, threads: int, gpu: bool, retries: int) -> "Worker":
        """k actors; they load the backbone at their first clip."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options, placement = {"num_cpus": threads, "num_gpus": int(gpu)}, None
        if k == 1:
            options |= {"max_restarts": -1, "max_task_retries": retries}
        else:
            bundle = {"CPU": threads} | ({"GPU": 1} if gpu else {})
            placement = placement_group([bundle] * k, strategy="STRICT_PACK")
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement)
        kind = ray.remote(Actor).options(**options)
        actors = [kind.remote(os.getcwd(), threads) for _ in range(k)]
        address = actors[0].address.remote() if k > 1 else None
        for rank, actor in enumerate(actors if k > 1 else ()):
            actor.join.remote(rank, k, address)
        return cls(actors, placement)

    def end(self) -> None:
        """Stop all actors."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self.actors:
            ray.kill(actor)
        if self.placement is not None:
            remove_placement_group(self.placement)


class Workers:
    """At most `limit` workers, started on demand and kept for the next job."""

    def __init__(self, cfg: DictConfig) -> None:
        self.k, self.retries = cfg.context_parallel, cfg.ray.retries
        self.limit, self.threads, self.gpu = _capacity(cfg)
        self.idle: list[Worker] = []
        self.busy: dict[Any, Worker] = {}  # by the object references of its actors

    def make(self, request: JobRequest, batches: deque[list[Task]]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as tasks finish: record, error line, or exception of a dead worker.

        Raises UserError if an actor returned one, after the other workers have finished.
        """
        import ray
        from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

        request, died, refused = ray.put(request), Counter(), None
        try:
            while batches or self.busy:
                while batches and (worker := self._free()):
                    worker.tasks = batches.popleft()
                    worker.pending = [a.make.remote(request, worker.tasks) for a in worker.actors]
                    self.busy |= dict.fromkeys(worker.pending, worker)
                ready, _ = ray.wait(list(self.busy), timeout=1.0)
                stopping.check()  # the clips in flight are dropped with their actors
                if not ready:
                    continue
                reference = ready[0]
                worker = self.busy.pop(reference)
                try:
                    result = ray.get(reference)
                except RayActorError as error:
                    self._end(worker)
                    if "creation task" in str(error):  # every restart would fail
                        raise UserError(
                            f"a worker cannot start: {str(error).strip().splitlines()[-1]}; every "
                            "machine of the cluster needs the same s2flow and folders"
                        ) from None
                    key = worker.tasks[0].key
                    died[key] += 1  # of a group, or of an actor that is not restarted
                    retried = self.k == 1 and isinstance(error, ActorUnavailableError)  # by Ray
                    if retried or died[key] > self.retries:
                        yield from ((task, error) for task in worker.tasks)
                    else:
                        batches.appendleft(worker.tasks)
                    continue
                except RayTaskError as error:
                    raise error.cause from None
                if isinstance(result, UserError):
                    refused = refused or result
                    batches.clear()
                    self._end(worker)  # other actors of its group may wait for it
                    continue
                worker.pending.remove(reference)
                if worker.pending:
                    continue
                self.idle.append(worker)
                yield from ((task, result[task.key]) for task in worker.tasks)
        finally:
            for worker in [*self.busy.values()]:
                self._end(worker)
        if refused is not None:
            raise refused

    def end(self) -> None:
        """Stop all idle workers."""
        while self.idle:
            self.idle.pop().end()

    def _free(self) -> Worker | None:
        if self.idle:
            return self.idle.pop()
        if len({id(w) for w in self.busy.values()}) >= self.limit:
            return None
        return Worker.start(self.k, self.threads, self.gpu, self.retries)

    def _end(self, worker: Worker) -> None:
        for reference in worker.pending:
            self.busy.pop(reference, None)
        worker.end()


_kept: dict[tuple, Workers] = {}  # by settings; at most one


def _workers(cfg: DictConfig) -> Workers:
    """The workers of this command; reused from an earlier job with the same settings."""
    conf = cfg.ray
    key = (cfg.context_parallel, cfg.threads, cfg.device, conf.address, conf.workers, conf.retries)
    if key not in _kept:
        while _kept:
            _kept.popitem()[1].end()
        cores = (cfg.threads or 1) * cfg.context_parallel
        start(conf.address, max(free_jobs(1), (conf.workers or 1) * cores))
        _kept[key] = Workers(cfg)
    return _kept[key]


def _capacity(cfg: DictConfig) -> tuple[int, int, bool]:
    """(workers, threads per actor, whether on GPUs) that fit this Ray.

    Raises UserError if cores, GPUs or machines are too small.
    """
    import ray

    resources, k = ray.cluster_resources(), cfg.context_parallel
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    gpu = cfg.device != "cpu" and gpus > 0
    if cfg.device == "cuda" and not gpu:
        raise UserError("device=cuda: this Ray has no GPU; type device=cpu, or start it with GPUs")
    most = gpus // k if gpu else cpus // (k * (cfg.threads or 1))
    workers = cfg.ray.workers or max(1, most)
    threads = cfg.threads or max(1, cpus // (workers * k))
    kind, needed = ("GPU", k) if gpu else ("CPU", k * threads)
    largest_node = max(n["Resources"].get(kind, 0) for n in ray.nodes() if n["Alive"])
    if workers * k > gpus if gpu else workers * k * threads > cpus:
        raise UserError(
            f"ray.workers={workers} with context_parallel={k} and threads={threads} does not fit "
            f"{cpus} cores and {gpus} GPUs; type ray.workers={max(1, most)} or less of the others"
        )
    if needed > largest_node:
        raise UserError(
            f"context_parallel={k} needs {needed} {kind}s on one machine, and the largest of this "
            f"Ray has {largest_node:g}; type context_parallel={max(1, int(largest_node) * k // needed)}"
        )
    return workers, threads, gpu
