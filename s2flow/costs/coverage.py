"""Planning: what it costs to record the coverage of every window in one layer of an LR step (Eq. 8).

`windows.coverage_by_heads` is run on the meta device for one head. With R sampled rows, L keys of
width d, and bricks g_t x g_h x g_w:

    rows         2 R L d a head, in float32, and the softmax over R x L
    all boxes    2 R g_t g_h g_w (g_t + g_h + g_w) a head: windows of every size along one axis after
                 another
    moved        k is widened to float32; R x L logits, their softmax, and the sum over bricks

At the paper's size and the assumed rates this is 0.6 to 0.9 % of an LR forward, and 0.05 % of its
FLOPs; kernel by kernel (`Rates.kernels`) up to 1.1 %, on an H100. A kernel that never writes the rows
moves less. What ranks exchange is the outcome, g_t g_h g_w numbers a head. The choice itself (Eq. 9) is
an argmax over small tables on the CPU and counts as nothing.
"""

import math
from dataclasses import dataclass

import torch

from s2flow.costs.trace import Moved, tracing
from s2flow.windows import Box, attention_rows, brick_grid, coverage_of_all_boxes, sample_rows


@dataclass(frozen=True)
class Coverage:
    """Of one layer, all heads: FLOPs in float32, bytes moved, bytes of the outcome."""

    flops: int
    moved: Moved
    outcome: int

    def sent(self, k: int) -> int:
        """Bytes that each of k ranks sends, its own heads' outcome to each of the others."""
        return self.outcome // k * (k - 1)


def coverage_cost(
    q: tuple[int, int, int, int], size: int, rows: int, tokens: Box, brick: Box
) -> Coverage:
    """q: (B, heads, L, d) of a layer, text included; size: bytes of one number; rows: R."""
    B, heads, L, d = q
    kind = {1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32}[size]
    one = torch.empty(B, 1, L, d, dtype=kind, device="meta")
    n_video = math.prod(tokens)
    sampled = sample_rows(n_video, rows, 0)
    with tracing() as trace:
        A = attention_rows(one, one, sampled, n_video)
        coverage_of_all_boxes(A, sampled, tokens, brick)
    outcome = 4 * B * heads * math.prod(brick_grid(tokens, brick))
    return Coverage(heads * trace.flops, trace.moved * heads, outcome)
