"""Several processes, one per device: data parallel over groups, context parallel within a group.

    torchrun --nproc_per_node=8 run.py ...                       8 groups of 1 rank: clips are divided
    torchrun --nproc_per_node=8 run.py context_parallel=4 ...    2 groups of 4 ranks: so is each video

`accelerate launch` sets the same variables (RANK, WORLD_SIZE, LOCAL_RANK). Every group takes its share
of the clips that `shard=k/n` selects. Within a group all ranks run the same code; only its first rank,
the leader, writes, scores and tracks, and ranks use its view of the store, which others change
meanwhile. At the end rank 0 gathers the counts and prints the table.

A clip that fails on every rank of its group is recorded as failed, as in one process. A rank that
fails alone ends the job, because the others wait for it: torchrun and accelerate then stop them.
"""

import atexit
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from s2flow.errors import UserError
from s2flow.process.ranks import rank, world_size

FAILURE_TIMEOUT = timedelta(seconds=60)  # for the other ranks to fail, too


def local_rank() -> int:
    """This process's number on its machine, which is the number of its device."""
    return int(os.environ.get("LOCAL_RANK", rank()))


@dataclass(frozen=True)
class Team:
    """This process among the others: `k` consecutive ranks form a group. Alone by default."""

    rank: int = 0
    size: int = 1
    k: int = 1
    tensors: Any = None  # the group, for tensors on the device
    objects: Any = None  # the group, for Python objects
    failures: Any = None  # the group, for the barrier of failed ranks

    @property
    def first(self) -> bool:
        """Whether this process prints the table."""
        return self.rank == 0

    @property
    def leads(self) -> bool:
        """Whether this process writes its group's clips."""
        return self.rank % self.k == 0

    def share(self, tasks: list) -> list:
        """The group's part of a list."""
        return tasks[self.rank // self.k :: self.size // self.k]

    def agree(self, value: Any) -> Any:
        """The leader's value, on every rank of the group."""
        if self.k == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.objects, group_src=0)
        return values[0]

    @contextmanager
    def lead(self) -> Iterator[bool]:
        """Whether this rank acts for its group; if the leader fails inside, every rank fails."""
        error = None
        try:
            yield self.leads
        except Exception as raised:
            error = raised
        reason = self.agree(repr(error) if error else None)
        if error is not None:
            raise error
        if reason is not None:
            raise RuntimeError(f"the leader of this group failed: {reason}")

    def fail_together(self, error: Exception, advice: str = "") -> None:
        """Returns once the whole group has failed.

        Raises SystemExit with the message if this rank failed alone: the other ranks wait for it, so
        neither this job nor a sweep's next one may go on. advice: what to type.
        """
        if self.k == 1:
            return
        try:
            dist.monitored_barrier(self.failures, FAILURE_TIMEOUT)
        except RuntimeError:
            atexit.unregister(dist.destroy_process_group)  # it would wait for the other ranks
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise SystemExit(
                f"error: rank {self.rank} failed alone ({reason}), and the others of its video wait "
                f"for it; {advice or 'the same command goes on from here'}"
            ) from error

    def total(self, *counts: int) -> list[int]:
        """Sums over all groups; waits for every process."""
        if self.size == 1:
            return list(counts)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, counts)
        return [sum(column) for column in zip(*gathered[:: self.k], strict=True)]


def join(k: int, device: str) -> Team:
    """This process's team, k ranks per video. Raises UserError if k does not divide the processes."""
    size = world_size()
    if size % k:
        raise UserError(
            f"context_parallel={k} needs a multiple of {k} processes and there "
            f"{'is' if size == 1 else 'are'} {size}; type torchrun --nproc_per_node={k} run.py ..."
        )
    return Team() if size == 1 else _team(k, device.startswith("cuda"))


def own_device(device: str) -> str:
    """`device` for this process: with several processes, each has its own GPU.

    Raises UserError for one GPU for all of them, or fewer GPUs than processes.
    """
    if world_size() == 1 or device == "cpu":
        return device
    if ":" in device:
        raise UserError(f"device={device} puts every process on one card; type device=cuda")
    cards = torch.cuda.device_count()
    if local_rank() >= cards:
        raise UserError(
            f"process {local_rank()} of this machine has no card, there are {cards}; "
            f"type --nproc_per_node={cards}"
        )
    return f"cuda:{local_rank()}"


@functools.lru_cache  # jobs of a sweep share the groups
def _team(k: int, cuda: bool) -> Team:
    if not dist.is_initialized():
        # clips may take long; torchrun and accelerate detect dead processes
        dist.init_process_group("gloo", timeout=timedelta(days=30))
        atexit.register(dist.destroy_process_group)
    if cuda:
        torch.cuda.set_device(local_rank())
    me, size = dist.get_rank(), dist.get_world_size()
    groups: list[Any] = [None, None, None]
    for start in range(0, size, k) if k > 1 else ():  # new_group is collective over all ranks
        ranks = list(range(start, start + k))
        kinds = [(timedelta(hours=1), "nccl" if cuda else "gloo")]
        kinds += [(timedelta(days=30), "gloo"), (FAILURE_TIMEOUT, "gloo")]
        created = [dist.new_group(ranks, *kind) for kind in kinds]
        groups = created if me in ranks else groups
    return Team(me, size, k, *groups)
