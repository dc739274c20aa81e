"""Cost of planning: the coverage of every window in one layer of an LR step (Eq. 8).

As on a GPU, where a kernel (`attention.coverage`) reads the keys once and writes no rows. With R
sampled rows, L keys of width d, and bricks g_t x g_h x g_w,

    sums         2 R L d per head; k is read for every 128 rows, and a sum is written per row and brick
    all boxes    2 R g_t g_h g_w (g_t + g_h + g_w) per head: windows of every size along one axis after
                 another, traced on the meta device

Ranks exchange the result, g_t g_h g_w numbers per head. The choice itself (Eq. 9) is an argmax over
small tables on the CPU and is not counted.
"""

import math
from dataclasses import dataclass

import torch

from s2flow.costs.trace import Moved, tracing
from s2flow.coverage import coverage_of_masses, launch_options, sample_rows
from s2flow.grid import Box, brick_grid


@dataclass(frozen=True)
class Coverage:
    """Of one layer, all heads: FLOPs in float32, bytes moved, bytes of the result."""

    flops: int
    moved: Moved
    result: int

    def sent(self, k: int) -> int:
        """Bytes that each of k ranks sends: its heads' result to each of the others."""
        return self.result // k * (k - 1)


def coverage_cost(
    q: tuple[int, int, int, int], size: int, rows: int, tokens: Box, brick: Box
) -> Coverage:
    """q: (B, heads, L, d) of a layer, text included; size: bytes of one number; rows: R."""
    B, heads, L, d = q
    bricks, volume = math.prod(brick_grid(tokens, brick)), math.prod(brick)
    slots = bricks + math.ceil((L - math.prod(tokens)) / volume)  # text is a few bricks more
    sampled = sample_rows(math.prod(tokens), rows, 0)
    R = len(sampled)
    with tracing() as trace:
        sums = torch.empty(B, 1, slots, R, device="meta")
        masses = sums.softmax(2)[:, :, :bricks].transpose(2, 3)
        coverage_of_masses(masses, sampled, tokens, brick)
    kind = torch.float32 if size == 4 else torch.bfloat16
    tile = launch_options(d, kind, volume, many=True)["BLOCK_R"]  # rows
    flops = 2 * B * R * L * d + trace.flops
    moved = Moved(products=B * (size * d * (L * math.ceil(R / tile) + R) + 4 * slots * R))
    result = 4 * B * heads * bricks
    return Coverage(heads * flops, (moved + trace.moved) * heads, result)
