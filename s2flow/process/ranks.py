"""Which process this is, of those that a launcher started; without torch, so that errors are quick."""

import os


def rank() -> int:
    """This process's number among all that the launcher started."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes torchrun or accelerate started; 1 without them."""
    launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return int(os.environ["WORLD_SIZE"]) if launched else 1
