"""What the numbers of conf/backbone may be, before anything is worked out from them; and threads.

A file of conf/backbone is knobs like any other (`backbone.multiple=16`), and these are divided by,
counted with and raised to powers. Each error is one line: what was typed, why not, what to type.
"""

import math
from typing import Any

from s2flow.errors import UserError

COUNTS = ("steps", "frames", "fps", "multiple", "frame_step", "max_frames", "max_side")
LEVELS = ("handoff_sigma", "boundary")  # of noise, in (0, 1); a boundary may be null
TRIPLES, PAIRS = ("brick_low", "brick_high"), ("low", "high")
MOST = 2**31  # larger counts are typing errors, and no size of anything here
MOST_THREADS = 1024  # torch starts as many as it is told


def check_backbone(conf: Any) -> None:
    """Raises UserError for a number that no model can have."""
    for name in COUNTS:
        _check(
            1 <= conf[name] <= MOST,
            f"backbone.{name}={conf[name]} is no count; type backbone.{name}=1 or more",
        )
    for name in LEVELS:
        _check(
            conf[name] is None or 0 < conf[name] < 1,
            f"backbone.{name}={conf[name]} is no noise level; type one in (0, 1), backbone.{name}=0.5",
        )
    for name, n in (*((t, 3) for t in TRIPLES), *((p, 2) for p in PAIRS)):
        sides = list(conf[name])
        _check(
            len(sides) == n and all(1 <= side <= MOST for side in sides),
            f"backbone.{name}={sides} is no size; type {n} whole numbers from 1 on",
        )
    for name in ("shift", "guidance"):
        _check(
            math.isfinite(conf[name]),
            f"backbone.{name}={conf[name]} is not finite; type backbone.{name}=5",
        )


def check_threads(threads: int | None) -> None:
    """Raises UserError for a number of CPU threads that no machine runs."""
    _check(
        threads is None or 1 <= threads <= MOST_THREADS,
        f"threads={threads} is not in 1..{MOST_THREADS}; type threads=1, or null for all cores",
    )


def _check(good: bool, otherwise: str) -> None:
    if not good:
        raise UserError(otherwise)
