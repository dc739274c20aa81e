"""Which backend computes: the first usable one, where usable means seen to be right on this device.

A backend is a module of this package with

    IN_BRICKS            whether it takes its video tokens in brick order (`order.py`)
    AUTO                 the device types on which `auto` considers it
    RAGGED               False: only grids that the brick divides (default True)
    unusable(problem)    why its device, dtype, head_dim or brick cannot be used, or None (optional)
    window_attention(q, k, v, problem) -> out

Before the first use small problems are computed and compared with the reference: kernels exist that
return dense attention where they cannot do better, and say nothing. Each answer holds for a device,
dtype, head_dim and brick, and is kept for the process.
"""

import functools
import importlib
import math
from types import ModuleType

import torch

from s2flow.attention.order import brick_order, reordered
from s2flow.attention.problem import Problem
from s2flow.errors import UserError
from s2flow.grid import Box

FASTEST_FIRST = ("fa4", "triton", "flex", "tiled")
NAMES = (*FASTEST_FIRST, "reference")
CHECKED = 1024  # tokens of a brick up to which the reference is written out for the self-check
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}  # of the self-check


def module(name: str) -> ModuleType:
    """The module of a backend."""
    return importlib.import_module(f"s2flow.attention.{name}")


def resolve(backend: str, problem: Problem) -> str:
    """The backend that `attention=backend` means for a problem, whatever its windows.

    Raises UserError, with the reason, for one that is unknown or cannot be used.
    """
    if backend == "auto":
        return choose(problem)
    if backend not in NAMES:
        raise UserError(
            f"attention={backend} is unknown; type attention=auto or one of {list(NAMES)}"
        )
    reason = why_not(backend, problem)
    if reason is not None:
        raise UserError(f"attention={backend} cannot be used: {reason}; type attention=auto")
    return backend


def choose(problem: Problem) -> str:
    """The fastest backend that is usable for a problem."""
    for name in FASTEST_FIRST:
        if problem.device.type in module(name).AUTO and why_not(name, problem) is None:
            return name
    return "tiled"  # plain torch


def why_not(name: str, problem: Problem) -> str | None:
    """Why a backend cannot be used for a problem, in a line; None if it can."""
    if problem.ragged and not getattr(module(name), "RAGGED", True):
        grid = "x".join(map(str, problem.tokens))
        return f"bricks {tuple(problem.brick)} do not divide the {grid} grid"
    key = (problem.device, problem.dtype, problem.head_dim, tuple(problem.brick))
    return _why_not(name, *key)


@functools.cache
def _why_not(
    name: str, device: torch.device, dtype: torch.dtype, d: int, brick: Box
) -> str | None:
    try:
        unusable = getattr(module(name), "unusable", lambda problem: None)
        reason = unusable(Problem(brick, brick, d, dtype, device))
        if reason is not None or name == "reference":
            return reason
        if math.prod(brick) > CHECKED:
            large = f"bricks of {math.prod(brick)} tokens are too large for its self-check"
            return None if name == "tiled" else large
        off = self_check(name, device, dtype, d, brick)
    except Exception as error:  # whatever a kernel or its compiler may raise: it is not usable
        line = (str(error).splitlines() or [""])[0]
        return f"its self-check failed with {type(error).__name__}: {line}"
    return f"its self-check is off by {off:.2g}" if off > TOLERANCE.get(dtype, 1e-4) else None


@torch.no_grad()
def self_check(name: str, device: torch.device, dtype: torch.dtype, d: int, brick: Box) -> float:
    """|out - reference| / |reference| on small grids, with text and padding: the worst of them.

    On a grid that the brick divides, and on a ragged one where the backend takes it. Infinite for NaN.
    """
    attend, worst = module(name), 0.0
    windows = torch.tensor([[[1, 2, 1], [2, 1, 3]], [[3, 3, 3], [1, 1, 1]]])
    for cut in (0, 1) if getattr(attend, "RAGGED", True) else (0,):
        tokens = tuple(3 * b - cut * (b // 2) for b in brick)
        shape = (3, 2, 2, math.prod(tokens) + 7, d)  # 7 text tokens
        qkv = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        problem = Problem.of(qkv[0], tokens, brick, windows, [5, 7])
        truth = module("reference").window_attention(*qkv, problem)
        if attend.IN_BRICKS:
            order, inverse = brick_order(tokens, brick, device)
            found = attend.window_attention(*(reordered(x, order) for x in qkv), problem)
            found = reordered(found, inverse)
        else:
            found = attend.window_attention(*qkv, problem)
        off = float((found.float() - truth.float()).norm() / truth.float().norm())
        worst = max(worst, math.inf if math.isnan(off) else off)
    return worst
