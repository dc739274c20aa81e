"""Ranks and cores of this process, from its environment; without torch, so that errors come quickly."""

import os


def rank() -> int:
    """Rank of this process among those of torchrun or accelerate; 0 without them."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes of torchrun or accelerate; 1 without them."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def free_jobs(threads: int | None) -> int:
    """How many processes of `threads` threads (None: 1) this process's cores can run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // (threads or 1))
