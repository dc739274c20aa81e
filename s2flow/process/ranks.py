"""Rank and world size, from the environment; without torch, so that errors are printed quickly."""

import os


def rank() -> int:
    """Rank of this process among those of torchrun or accelerate; 0 without them."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes of torchrun or accelerate; 1 without them."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1
