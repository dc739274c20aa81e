"""Several processes, one per device: prompts are dealt to groups, a group makes each clip together.

    torchrun --nproc_per_node=8 run.py ...                       8 groups of one: prompts are shared
    torchrun --nproc_per_node=8 run.py context_parallel=4 ...    2 groups of 4: each video, too

`accelerate launch` sets the same variables (RANK, WORLD_SIZE, LOCAL_RANK) and is as good. Every group
takes its share of the clips that `shard=k/n` leaves; within one, all ranks run the same lines, and
only the first, its leader, writes, scores and tracks. What the ranks then do depends on the store,
which others change, so the leader's view of it is law. At the end rank 0 gathers the counts and
prints the table.

A clip that fails on every rank of its group costs only itself, as in one process. A rank that fails
alone ends the job, because the others wait for it: torchrun and accelerate then stop them.
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

PATIENCE = timedelta(seconds=60)  # for the others to fail as well


def local_rank() -> int:
    """This process's number on its machine, which is the number of its device."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def free_jobs(threads: int | None) -> int:
    """Processes of so many threads (None: one) that the cores given to this one can run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // (threads or 1))


@dataclass(frozen=True)
class Team:
    """This process among the others: `k` consecutive ranks form a group. Alone by default."""

    rank: int = 0
    size: int = 1
    k: int = 1
    tensors: Any = None  # the group, for tensors on the device
    words: Any = None  # the group, for Python objects
    alarms: Any = None  # the group, for those who failed

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
        told = [value]
        dist.broadcast_object_list(told, group=self.words, group_src=0)
        return told[0]

    @contextmanager
    def lead(self) -> Iterator[bool]:
        """Whether this rank acts for its group; if the leader fails inside, every rank fails."""
        error = None
        try:
            yield self.leads
        except Exception as raised:
            error = raised
        told = self.agree(repr(error) if error else None)
        if error is not None:
            raise error
        if told is not None:
            raise RuntimeError(f"the leader of this group failed: {told}")

    def fail_together(self, error: Exception, advice: str = "") -> None:
        """Returns once the whole group has failed.

        Raises SystemExit with the line to print if this rank is the only one: nothing on the way, a
        sweep's next job neither, may go on with others who wait for this one. advice: what to type.
        """
        if self.k == 1:
            return
        try:
            dist.monitored_barrier(self.alarms, PATIENCE)
        except RuntimeError:
            atexit.unregister(dist.destroy_process_group)  # it would wait for the others
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise SystemExit(
                f"error: rank {self.rank} failed alone ({reason}), and the others of its video wait "
                f"for it; {advice or 'the same command goes on from here'}"
            ) from error

    def total(self, *counts: int) -> list[int]:
        """Sums over all groups; waits for every process."""
        if self.size == 1:
            return list(counts)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, counts)
        return [sum(column) for column in zip(*found[:: self.k], strict=True)]


def join(k: int, device: str) -> Team:
    """This process's team, k ranks to a video. Raises UserError if the processes do not fit k."""
    size = world_size()
    if size % k:
        raise UserError(
            f"context_parallel={k} needs a multiple of {k} processes and there "
            f"{'is' if size == 1 else 'are'} {size}; type torchrun --nproc_per_node={k} run.py ..."
        )
    return Team() if size == 1 else _team(k, device.startswith("cuda"))


def own_device(device: str) -> str:
    """The device of this process where `device` was found: of several, each has a card of its own.

    Raises UserError for one card for all of them, or fewer cards than processes.
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


@functools.lru_cache  # the jobs of a sweep share their groups
def _team(k: int, cuda: bool) -> Team:
    if not dist.is_initialized():
        # clips take as long as they take; torchrun and accelerate notice the dead
        dist.init_process_group("gloo", timeout=timedelta(days=30))
        atexit.register(dist.destroy_process_group)
    if cuda:
        torch.cuda.set_device(local_rank())
    me, size = dist.get_rank(), dist.get_world_size()
    mine: list[Any] = [None, None, None]
    for start in range(0, size, k) if k > 1 else ():  # everyone forms every group
        ranks = list(range(start, start + k))
        made = [
            dist.new_group(ranks, timedelta(hours=1), "nccl" if cuda else "gloo"),
            dist.new_group(ranks, timedelta(days=30), "gloo"),
            dist.new_group(ranks, PATIENCE, "gloo"),
        ]
        mine = made if me in ranks else mine
    return Team(me, size, k, *mine)
